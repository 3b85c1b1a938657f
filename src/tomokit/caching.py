"""Preprocessed cases kept in memory, kept on the disk, or made anew each time: by what fits, and said.

What is kept is the outcome of a transform's deterministic part, up to its first random step. On the disk it is
kept under a name that is a hash of the case's entry, of the content of each of its files, of the transforms with
all their parameters, and of the versions of the libraries; whatever of these changes, another name is looked for,
so that nothing stale is ever read. Nothing there is deleted by itself: delete the folder to free the space.
"""

import contextlib
import enum
import functools
import hashlib
import inspect
import io
import json
import logging
import os
import pickle
import platform
import shutil
import sys
import time
import types
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, Dataset, ImageReader, PersistentDataset, get_track_meta
from monai.transforms import Compose, RandomizableTrait, Transform, convert_to_contiguous
from monai.utils import enums
from numpy.typing import NDArray

from tomokit.datasets import data_root
from tomokit.errors import TomokitError
from tomokit.files import replacing
from tomokit.memory import free_memory
from tomokit.volumes import read_header, suffix_of, voxel_files

logger = logging.getLogger(__name__)

CHOICES = ("auto", "memory", "disk", "none")
MEMORY_SHARE = 0.5  # of the free memory; the rest is for training itself
DISK_ROOM = 1.2  # times the estimate
READERS = 8  # threads that read headers and files
STALE_SECONDS = 3600.0  # a temporary file of this age is what a killed process left
CHECKSUM_BYTES = 4
LAYOUT = 2  # of the kept files
LIBRARIES = ("tomokit", "monai", "torch", "numpy", "scipy", "nibabel", "SimpleITK", "pillow")
Entry = Mapping[str, Any]
Predictor = NDArray[np.float64]


def cached_dataset(
    data: Sequence[Entry],
    transform: Compose | Sequence[Callable[..., Any]] | Callable[..., Any],
    cache: str = "auto",
    cache_dir: str | Path | None = None,
) -> Dataset:
    """Return MONAI's `CacheDataset`, `PersistentDataset` or `Dataset` over `data`, as `cache` says; all give the same.

    Args:
        data: the cases' entries, with the paths of their files.
        transform: what makes an item of an entry; it is kept up to its first random step.
        cache: "memory", "disk", "none" (made anew each time), or "auto": in memory if the preprocessed cases take
            no more than half of what is free, else on the disk if there is room, else none. The choice is logged,
            with a warning where one made by hand is unlikely to fit.
        cache_dir: the folder on the disk (default: `cache_root()`).

    Raises:
        TomokitError: when `cache` is none of these, a header can't be read, or the disk was asked for and can't
            serve.
    """
    if cache not in CHOICES:
        raise TomokitError(f"`cache` must be one of {', '.join(CHOICES)}, got {cache!r}")
    # a nested `Compose` counts as random, so that its steps would be made anew each time
    transform = (transform if isinstance(transform, Compose) else Compose(transform)).flatten()
    if not data:
        return Dataset(data, transform)
    if cache == "none":
        _tell(f"{len(data)} cases: read and preprocessed anew each time, as set")
        return Dataset(data, transform)
    size, made = estimate_bytes(data, transform)
    memory = free_memory()
    told = f"{len(data)} case{'s' * (len(data) != 1)}, {_text(size)} when preprocessed, {_text(memory)} of memory free"
    fits = size <= MEMORY_SHARE * memory
    if cache == "memory" or (cache == "auto" and fits):
        _tell(f"{told}: kept in memory{_reason(cache, fits, 'disk')}", fits)
        return _MemoryDataset(data, transform, made)
    return _on_disk(data, transform, cache, Path(cache_dir or cache_root()), size, made, told)


def cache_root() -> Path:
    """Return the folder of what is kept on the disk: `$TOMOKIT_CACHE`, or `cache` beside the data sets' folder."""
    configured = os.environ.get("TOMOKIT_CACHE")
    return Path(configured) if configured else data_root().parent / "cache"


def _on_disk(
    data: Sequence[Entry], transform: Compose, cache: str, folder: Path, size: int, made: Mapping[int, Any], told: str
) -> Dataset:
    """Return the dataset kept on the disk, or, with "auto" and no room or no way to keep it there, a plain one."""
    try:
        dataset = DiskDataset(data, transform, folder)
        room, needed = shutil.disk_usage(folder).free, DISK_ROOM * size * dataset.count_missing() / len(data)
        fits = needed <= room
        if fits or cache == "disk":
            dataset.keep(made)
    except TomokitError as error:
        if cache == "disk":
            raise
        _tell(f"{told}: read and preprocessed anew each time, since the disk can't keep them: {error}")
        return Dataset(data, transform)
    place = f"{folder}, {_text(room)} free there"
    if not fits and cache == "auto":
        _tell(f"{told}: read and preprocessed anew each time, since they do not fit on the disk either ({place})")
        return Dataset(data, transform)
    held = _text(sum(file.stat().st_size for file in folder.glob("[!.]*.pt")))
    _tell(f"{told}: kept on the disk in {place}, {held} held already{_reason(cache, fits, 'memory')}", fits)
    return dataset


def _reason(cache: str, fits: bool, other: str) -> str:
    """Return why it was chosen, and how to choose otherwise."""
    if cache == "auto":
        return f" (chosen by size; `cache: {other}` or `none` chooses otherwise)"
    return ", as set" if fits else f", as set, where they may not fit; `cache: {other}` or `none` chooses otherwise"


def _tell(text: str, well: bool = True) -> None:
    """Log a line, a warning where not all is well; once where several processes train."""
    if int(os.environ.get("RANK", "0")) == 0:
        logger.log(logging.INFO if well else logging.WARNING, text)


def _text(size: float) -> str:
    """Return a number of bytes in GiB, or in MiB below a tenth of that."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


class _MemoryDataset(CacheDataset):
    """MONAI's cache in memory, which takes over the cases that were preprocessed for the estimate.

    A case is copied each time it is taken, since a transform may write into it, unless the first random one says by
    `copies_input` that what it returns is its own: a patch is cut from a volume of 256³ without copying that.
    """

    def __init__(self, data: Sequence[Entry], transform: Compose, made: dict[int, Any]) -> None:
        self.made = made
        place = _first_random(transform)
        own = place is not None and getattr(transform.transforms[place], "copies_input", False)
        super().__init__(data, transform, progress=False, copy_cache=not own)

    def _load_cache_item(self, idx: int) -> Any:
        return self.made.pop(idx) if idx in self.made else super()._load_cache_item(idx)


# How much


def estimate_bytes(data: Sequence[Entry], transform: Compose) -> tuple[int, dict[int, Any]]:
    """Return about how many bytes the preprocessed cases take, and the preprocessed cases it was measured on.

    The smallest, the median and the largest case by physical volume are preprocessed. The others follow from
    whatever is nearest to proportional in these: the physical volume (resampled to one spacing), the number of
    voxels (not resampled), or neither (cropped or padded to one size).

    Raises:
        TomokitError: when a volume's header can't be read.
    """
    with ThreadPoolExecutor(READERS) as pool:
        sizes = np.array(list(pool.map(_source_size, data)))
    order = np.argsort(sizes[:, 1], kind="stable")
    chosen = list(dict.fromkeys([int(order[0]), int(order[len(order) // 2]), int(order[-1])]))
    made = {number: preprocess(data[number], transform) for number in chosen}
    measured = np.array([max(count_bytes(made[number]), 1) for number in chosen], float)
    predictors: list[Predictor] = [np.ones(len(data)), sizes[:, 0], sizes[:, 1]]
    best = min(predictors, key=lambda predictor: np.ptp(np.log(measured / predictor[chosen])))
    known = np.argsort(best[chosen])
    ratios = np.interp(best, best[chosen][known], (measured / best[chosen])[known])
    return int((ratios * best).sum()), made


def preprocess(entry: Entry, transform: Compose) -> Any:
    """Return what the deterministic part of `transform` makes of an entry, contiguous in memory."""
    item = transform(entry, end=_first_random(transform), threading=True)
    return convert_to_contiguous(item, memory_format=torch.contiguous_format)


def count_bytes(item: Any) -> int:
    """Return the bytes of all tensors and arrays in nested dictionaries and lists."""
    if isinstance(item, torch.Tensor | np.ndarray):
        return int(item.nbytes)
    if isinstance(item, Mapping):
        return sum(map(count_bytes, item.values()))
    return sum(map(count_bytes, item)) if isinstance(item, list | tuple) else 0


def _source_size(entry: Entry) -> tuple[float, float]:
    """Return the voxels and the physical volume in mm³ of an entry's first image; (1, 1) where it has no volume."""
    sources = entry.get("image", entry) if isinstance(entry, Mapping) else entry
    first = next((path for path in _files_of(sources) if suffix_of(path)), None)
    if first is None:
        return 1.0, 1.0
    header = read_header(first)
    voxels = float(np.prod(header.shape))
    return voxels, voxels * abs(float(np.linalg.det(header.affine[:3, :3])))


def _first_random(transform: Compose) -> int | None:
    """Return the place of the first step that is not kept, by MONAI's rule, or None."""
    place = transform.get_index_of_first(
        lambda step: isinstance(step, RandomizableTrait) or not isinstance(step, Transform)
    )
    return None if place is None else int(place)


# On the disk


class DiskDataset(PersistentDataset):
    """MONAI's `PersistentDataset`, keyed by content and by every parameter, whose files are whole or made again.

    MONAI's own keeps the paths as key and, where the transforms are no JSON, their names alone; it reads no
    metadata back, takes a changed or bit-flipped file for good, and moves files between file systems.

    Args:
        data: the cases' entries.
        transform: kept up to its first random step.
        cache_dir: the folder, made where it is absent.

    Raises:
        TomokitError: when the folder can't be made, a file can't be read, or a transform can't be told apart
            from others of its kind.
    """

    def __init__(self, data: Sequence[Entry], transform: Compose, cache_dir: str | Path) -> None:
        try:
            Path(cache_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TomokitError(f"can't make the cache folder {cache_dir} ({error}); set TOMOKIT_CACHE") from error
        super().__init__(data, transform, cache_dir, hash_func=EntryHash())
        self.folder = Path(cache_dir)
        self.transform_hash = hash_transforms(self.transform)
        for left in self.folder.glob(".partial-*"):
            with contextlib.suppress(FileNotFoundError):  # another process has just finished it
                if time.time() - left.stat().st_mtime > STALE_SECONDS:
                    left.unlink()
        self.set_data(data)

    def set_data(self, data: Sequence[Entry]) -> None:
        """Take other entries; nothing that is kept is deleted, unlike in MONAI's own: other runs may need it."""
        self.data = data
        with ThreadPoolExecutor(READERS) as pool:  # before workers are forked, so that they share the digests
            self.paths = list(pool.map(self.path_of, data))

    def path_of(self, entry: Entry) -> Path:
        """Return where the preprocessed entry is kept, or will be."""
        return self.folder / f"{self.hash_func(entry).decode()}{self.transform_hash}.pt"

    def count_missing(self) -> int:
        """Return how many cases are not kept yet."""
        return sum(not path.is_file() for path in self.paths)

    def keep(self, made: Mapping[int, Any]) -> None:
        """Keep cases that are preprocessed already, by their number, once one of them was read back as it should."""
        for item in list(made.values())[:1]:
            if _load(io.BytesIO(_pack(item))) is None:
                raise TomokitError(
                    "the preprocessed cases hold objects that are not read back as they were; set `cache`"
                )
        for number, item in made.items():
            if not self.paths[number].is_file():
                _write(self.paths[number], item)

    def _cachecheck(self, item_transformed: Entry) -> Any:
        """Return the preprocessed entry, read from the disk or made and kept there."""
        path = self.path_of(item_transformed)
        if (kept := _read(path)) is not None:
            return kept
        item = self._pre_transform(deepcopy(item_transformed))
        item = convert_to_contiguous(item, memory_format=torch.contiguous_format)
        if self.path_of(item_transformed) == path:  # its files were not changed meanwhile
            _write(path, item)
        return item


class EntryHash:
    """Hashes an entry with the content of its files; a file is read again only when its state on the disk changed.

    The state is size, inode, and the times of the last change of content and of inode; the last one can't be set
    back. A process that starts reads every file once.
    """

    def __init__(self) -> None:
        self.known: dict[tuple[Any, ...], str] = {}

    def __call__(self, entry: Any) -> bytes:
        """Return the hash, 32 hexadecimal digits.

        Raises:
            TomokitError: when a file can't be read, or a value can't be told without its address in memory.
        """
        files = [[path, self.digest(Path(path))] for path in _files_of(entry)]
        return _hash([describe(entry), files]).encode()

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file's content, remembered while its state stays the same."""
        try:
            state = path.stat()
            key = (str(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev)
            if key not in self.known:
                with path.open("rb") as file:
                    self.known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise TomokitError(
                f"{path} can't be read ({error.strerror}); restore it or correct dataset.json"
            ) from error
        return self.known[key]


def hash_transforms(transform: Compose) -> str:
    """Return the hash of a transform's deterministic part with all parameters, and of all versions: 32 digits.

    Raises:
        TomokitError: when a parameter can't be told without its address in memory.
    """
    own = {name: getattr(transform, name) for name in ("lazy", "overrides", "map_items", "unpack_items")}
    steps = list(transform.transforms)[: _first_random(transform)]
    versions = {name: metadata.version(name) for name in LIBRARIES} | {"python": platform.python_version()}
    settings = [LAYOUT, get_track_meta(), str(torch.get_default_dtype()), os.environ.get("MONAI_TRACE_TRANSFORM", "1")]
    return _hash([describe(own), describe(steps), describe(versions), settings])


def _hash(content: Any) -> str:
    """Return 32 hexadecimal digits over plain nested lists."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _files_of(value: Any) -> list[str]:
    """Return the files that an entry names, at any depth."""
    if isinstance(value, Mapping):
        return [path for key in sorted(value, key=str) for path in _files_of(value[key])]
    if isinstance(value, list | tuple):
        return [path for item in value for path in _files_of(item)]
    return _files_at(Path(value)) if isinstance(value, str | PurePath) and str(value) else []


def _files_at(path: Path) -> list[str]:
    """Return the file of a path, the data file that it points to, or a folder's files; none where it is no path."""
    if path.name == str(path) and not suffix_of(path):
        return []  # a name, though a folder of this name may be there
    try:
        if path.is_dir():
            return sorted(str(file) for file in path.rglob("*") if file.is_file())
        return [str(path), *(str(other) for other in voxel_files(path) if other != path)] if path.is_file() else []
    except OSError:  # a text too long for a path
        return []


def _pack(item: Any) -> bytes:
    """Return an item as bytes, its checksum last, where torch's reading of a file in place passes over it."""
    buffer = io.BytesIO()
    try:
        torch.save(item, buffer)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TomokitError(f"the preprocessed cases hold what can't be stored ({error}); set `cache: none`") from error
    content = buffer.getvalue()
    return content + zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "big")


def _is_whole(content: bytes) -> bool:
    """Return whether the checksum fits what stands before it."""
    body = memoryview(content)[:-CHECKSUM_BYTES]
    return zlib.crc32(body).to_bytes(CHECKSUM_BYTES, "big") == content[-CHECKSUM_BYTES:]


def _load(source: Path | io.BytesIO) -> Any:
    """Return the item, or None when it holds other things than tensors, arrays and metadata.

    A file's tensors stay on the disk until they are used: a patch costs the reading of a patch.
    """
    trusted = torch.serialization.get_safe_globals()
    try:
        with torch.serialization.safe_globals([kind for kind in _METADATA_TYPES if kind not in trusted]):
            return torch.load(source, weights_only=True, mmap=isinstance(source, Path))
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, EOFError, pickle.UnpicklingError):
        return None


# what MONAI's metadata is made of; few, since each of them slows torch's careful reading down
_METADATA_TYPES = [
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdSU"},
    *np.array([0]).__reduce__()[:1],  # numpy's private makers of arrays and of scalars
    *np.float64(0).__reduce__()[:1],
    *(enums.TraceKeys, enums.MetaKeys, enums.SpaceKeys, enums.InterpolateMode, enums.NdimageMode, enums.SplineMode),
    *(enums.GridSampleMode, enums.GridSamplePadMode, enums.NumpyPadMode, enums.PytorchPadMode),
]


_whole: set[tuple[str, int, int, int]] = set()  # the files whose checksum was right, with their state


def _read(path: Path) -> Any:
    """Return a kept item, or None when it is absent or damaged, which is said.

    A file's checksum is looked at once in a process, as long as its state on the disk stays the same.
    """
    try:
        state = path.stat()
        key = (str(path), state.st_size, state.st_mtime_ns, state.st_ino)
        item = _load(path) if key in _whole or _is_whole(path.read_bytes()) else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TomokitError(f"{path} can't be read ({error.strerror}); delete it, or set `cache: none`") from error
    if item is None:
        logger.warning("%s is damaged; it is made again", path)
    else:
        _whole.add(key)
    return item


def _write(path: Path, item: Any) -> None:
    """Keep an item, whole or not at all."""
    content = _pack(item)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except TomokitError as error:
        raise TomokitError(
            f"{error}; the preprocessed cases are kept there: set `cache: none`, delete what {path.parent} holds of "
            "earlier runs, or set TOMOKIT_CACHE to a folder with more room"
        ) from error


# What tells one transform from another


def describe(value: Any, inside: tuple[int, ...] = ()) -> Any:
    """Return a value as nested lists of text and numbers that are the same in every process.

    Objects are told by their class, the source of its module, and their state; functions by their code. No
    address in memory is part of it. `inside` has the ids of the objects that hold the value.

    Raises:
        TomokitError: when an object hides its state.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    for kinds, tell in _TELLERS:
        if isinstance(value, kinds):
            return [_name(kind), tell(value)]
    if id(value) in inside:
        return ["itself", inside.index(id(value))]
    inside = (*inside, id(value))
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return [_name(kind), _describe_container(value, inside)]
    return ["class", *_lineage(value)] if isinstance(value, type) else _describe_object(value, inside)


def _describe_container(value: Any, inside: tuple[int, ...]) -> Any:
    """Return what a container holds; the order counts in lists and tuples alone."""
    if isinstance(value, Mapping):
        return sorted(([describe(key, inside), describe(held, inside)] for key, held in value.items()), key=json.dumps)
    held = [describe(item, inside) for item in value]
    return held if isinstance(value, list | tuple) else sorted(held, key=json.dumps)


def _describe_array(value: NDArray[Any]) -> Any:
    """Return an array's type, shape and the hash of its values."""
    content = describe(value.tolist()) if value.dtype.hasobject else hashlib.sha256(value.tobytes()).hexdigest()
    return [str(value.dtype), list(value.shape), content]


def _describe_tensor(value: torch.Tensor) -> Any:
    """Return a tensor's type, shape and the hash of its values."""
    plain = value.detach().cpu().as_subclass(torch.Tensor).reshape(-1).contiguous()
    return [str(value.dtype), list(value.shape), hashlib.sha256(plain.view(torch.uint8).numpy().tobytes()).hexdigest()]


_TELLERS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (enum.Enum, lambda value: value.name),
    ((float, complex, bytes, np.dtype, torch.dtype, torch.device, range, slice, PurePath, int, str), repr),
    (np.generic, lambda value: [str(value.dtype), value.tobytes().hex()]),
    (np.ndarray, _describe_array),
    (torch.Tensor, _describe_tensor),
)


def _describe_object(value: Any, inside: tuple[int, ...]) -> Any:
    """Return a function, a method or an object of a class by its code or its state."""
    if isinstance(value, functools.partial):
        return ["partial", describe([value.func, value.args, value.keywords], inside)]
    if isinstance(value, types.MethodType):
        return ["method", value.__func__.__qualname__, describe([value.__self__, value.__func__], inside)]
    if isinstance(value, types.FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        return [
            "function",
            f"{value.__module__}.{value.__qualname__}",
            _source_hash(value.__module__),
            _describe_code(value.__code__),
            describe([value.__defaults__, value.__kwdefaults__, held], inside),
        ]
    owner = getattr(value, "__self__", None)
    if isinstance(value, np.ufunc) or (isinstance(value, types.BuiltinFunctionType) and _is_module(owner)):
        return ["function", getattr(value, "__module__", None) or "numpy", value.__name__]
    if isinstance(value, types.ModuleType) or not _has_state(value):
        raise TomokitError(
            f"a {_name(type(value))} among the transforms' parameters hides what it is, so that two of them can't be "
            "told apart on the disk; give plain values, or a function of a module"
        )
    return ["object", *_lineage(type(value)), describe(_state_of(value), inside)]


def _state_of(value: Any) -> Any:
    """Return an object's own state, as it would be pickled; a reader's without the file that it read last."""
    state = value.__getstate__()
    if isinstance(value, ImageReader):
        return {name: held for name, held in (state or {}).items() if name not in ("filenames", "has_series")}
    return state


def _has_state(value: Any) -> bool:
    """Return whether an object's state is in its `__dict__` or its `__slots__`, and not hidden in C."""
    return hasattr(value, "__dict__") or any("__slots__" in vars(base) for base in type(value).__mro__)


def _is_module(owner: Any) -> bool:
    """Return whether a builtin function belongs to a module, not to an object."""
    return owner is None or isinstance(owner, types.ModuleType)


def _describe_code(code: types.CodeType) -> Any:
    """Return a function's instructions, names and constants, inner functions too."""
    constants = [
        _describe_code(held) if isinstance(held, types.CodeType) else describe(held) for held in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), constants]


def _lineage(kind: type) -> list[list[str | None]]:
    """Return a class and those it derives from, each with the hash of its module's source."""
    return [[_name(base), _source_hash(base.__module__)] for base in kind.__mro__[:-1]]


def _name(kind: type) -> str:
    """Return a class's name with its module."""
    return f"{kind.__module__}.{kind.__qualname__}"


@functools.cache
def _source_hash(module: str) -> str | None:
    """Return the hash of a module's source file, or None where it has none: then its version tells."""
    try:
        path = inspect.getsourcefile(sys.modules[module])
        return None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()[:32]
    except (KeyError, TypeError, OSError):
        return None
