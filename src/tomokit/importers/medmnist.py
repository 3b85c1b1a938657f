"""MedMNIST's `.npz` archives, read row by row so that one image is in memory at a time."""

import contextlib
import re
import tokenize
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomokit.errors import TomokitError, raise_problems
from tomokit.importers.records import Case, Plan, Source
from tomokit.volumes import DEFLATE_RATIO, LARGEST_BYTES, LPS_TO_RAS, Volume

SECTIONS = {"train": "training", "val": "validation", "test": "test"}
SIZE = re.compile(r"(.+?)(?:_(\d+))?")
BYTES_PER_PACKED = 100  # images are packed 1–10 times, masks 100 times; only a trap passes both limits
NAMES = {  # MedMNIST's info.py, CC BY 4.0
    "organmnist3d": "liver,kidney-right,kidney-left,femur-right,femur-left,bladder,heart,lung-right,lung-left,spleen,"
    "pancreas",
    "nodulemnist3d": "benign,malignant",
    "adrenalmnist3d": "normal,hyperplasia",
    "fracturemnist3d": "buckle rib fracture,nondisplaced rib fracture,displaced rib fracture",
    "vesselmnist3d": "vessel,aneurysm",
    "synapsemnist3d": "inhibitory synapse,excitatory synapse",
}

# what zip, deflate and NumPy's header raise on a damaged archive
_DAMAGES = (OSError, EOFError, ValueError, NotImplementedError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)


class Member(NamedTuple):
    """One array of an archive: its shape with the rows first, and the type of its values."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Rows:
    """Reads the rows of an archive's array one by one; going on is quick, going back starts again.

    Args:
        path: the archive.
        name: the array's name.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.open: contextlib.ExitStack | None = None
        self.next = 0

    def read(self, index: int) -> NDArray[Any]:
        """Return row `index`.

        Raises:
            TomokitError: when the archive is truncated or damaged.
        """
        try:
            if self.open is None or index < self.next:
                self._start()
            row = np.empty(0)
            while self.next <= index:
                data = self.stream.read(self.size)
                if len(data) < self.size:
                    raise EOFError(f"row {self.next} is cut off")
                self.next += 1
            row = np.frombuffer(data, self.member.dtype).reshape(self.member.shape[1:])
            if self.next == self.member.shape[0]:
                self.close()
            return row
        except _DAMAGES as error:
            self.close()
            raise TomokitError(f"{self.path}: {self.name} can't be read ({error}); restore the file") from error

    def close(self) -> None:
        """Let the archive go."""
        if self.open is not None:
            self.open.close()
            self.open = None

    def _start(self) -> None:
        """Open the array at its first row."""
        self.close()
        self.open = contextlib.ExitStack()
        archive = self.open.enter_context(zipfile.ZipFile(self.path))
        self.stream = self.open.enter_context(archive.open(f"{self.name}.npy"))
        self.member = _read_member(self.stream)
        self.size = self.member.dtype.itemsize * int(np.prod(self.member.shape[1:], dtype=np.int64))
        self.next = 0


def plan_medmnist(paths: Sequence[Path]) -> Plan:
    """Return the cases of the archive, in MedMNIST's own sections; of several sizes the smallest is taken.

    Raises:
        TomokitError: when there are several sets, or an array is absent, damaged, or not what MedMNIST stores.
    """
    path, larger = _choose(paths)
    plan = Plan("MedMNIST archive", used={path})
    for other in larger:
        plan.leave("the same set at a larger size", f"{other.name} (take it with: tomokit import {other} DIR)", other)
    members = _read_members(path)
    sections = {key: name for key, name in SECTIONS.items() if f"{key}_images" in members}
    _check_members(path, members, sections)
    labels = {key: _read_labels(path, key, members) for key in sections}
    multiple = any(array.shape[1] > 1 for array in labels.values())
    name = SIZE.fullmatch(path.stem.lower())
    stem = name[1] if name else path.stem
    for key, section in sections.items():
        rows = Rows(path, f"{key}_images")
        for index, row in enumerate(labels[key]):
            source = Source(f"{path.name}:{key}_images[{index}]", partial(_read_image, rows, index))
            label: int | list[int] = [int(value) for value in row] if multiple else int(row[0])
            plan.cases.append(Case(f"{stem}_{key}_{index:05d}", [source], label, section, keys=(f"{key}_{index}",)))
    places = max(array.shape[1] if multiple else int(array.max()) + 1 for array in labels.values() if array.size)
    known = NAMES[stem].split(",") if stem in NAMES and not multiple else []
    plan.labels = dict(enumerate(known if places <= len(known) else map(str, range(places))))
    if places > len(known):
        plan.told.append("the names of the classes are not in the file: numbers stand for them in dataset.json")
    plan.told.append("patients are not in the file: each image counts as one; keep MedMNIST's own sections")
    plan.told.append("spacing and orientation are not in the file: 1 mm, axes (D, H, W) taken as z, y, x")
    return plan


def _choose(paths: Sequence[Path]) -> tuple[Path, list[Path]]:
    """Return the smallest size of the one set, and the larger ones."""
    sets: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for path in paths:
        match = SIZE.fullmatch(path.stem.lower())
        if match:
            sets[match[1]].append((int(match[2] or 28), path))
    if len(sets) != 1:
        names = ", ".join(str(path) for path in paths)
        raise TomokitError(f"{paths[0].parent} has {len(sets)} sets as .npz; give one of the files: {names}")
    ordered = [path for _, path in sorted(next(iter(sets.values())))]
    return ordered[0], ordered[1:]


def _read_members(path: Path) -> dict[str, Member]:
    """Return the arrays of an archive by name, each of a size that the archive can hold.

    Raises:
        TomokitError: when the archive or an array's header is damaged, claims too much, or holds objects.
    """
    members = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                _check_size(path, info)
                if info.filename.endswith(".npy"):
                    with archive.open(info) as stream:
                        members[info.filename.removesuffix(".npy")] = _read_member(stream)
    except _DAMAGES as error:
        raise TomokitError(f"{path} can't be read ({type(error).__name__}: {error}); restore the file") from error
    return members


def _check_size(path: Path, info: zipfile.ZipInfo) -> None:
    """Raise when an array is said to be larger than its packed bytes can hold, or than any such set is."""
    packed = info.compress_size
    impossible = info.file_size > packed * DEFLATE_RATIO + DEFLATE_RATIO
    if impossible or (info.file_size > LARGEST_BYTES and info.file_size > BYTES_PER_PACKED * packed):
        raise TomokitError(
            f"{path}: {info.filename} is said to unpack from {packed:,} to {info.file_size:,} bytes, more than images "
            "would; get the file again from its home"
        )


def _read_member(stream: IO[bytes]) -> Member:
    """Return an array's shape and type from its header.

    Raises:
        ValueError: when the header is damaged, or the values are objects or in Fortran's order.
    """
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise ValueError(f"values of the type {dtype}, not numbers")
    if fortran and len(shape) > 1:
        raise ValueError("an array in Fortran's order, which MedMNIST does not store")
    return Member(tuple(int(length) for length in shape), dtype)


def _check_members(path: Path, members: dict[str, Member], sections: dict[str, str]) -> None:
    """Raise with everything that is not as MedMNIST stores it."""
    if not sections:
        raise TomokitError(
            f"{path} is no MedMNIST archive: it has {', '.join(sorted(members)) or 'no array'}, not train_images "
            "with train_labels; save each volume as NIfTI and import the folder"
        )
    problems = []
    for key in sections:
        images, labels = members[f"{key}_images"].shape, members.get(f"{key}_labels")
        if len(images) not in (3, 4, 5) or (len(images) == 5 and images[4] > 4):
            problems.append(f"{key}_images has the shape {images}; it must be (N, D, H, W), (N, H, W) or (N, H, W, 3)")
        if labels is None:
            problems.append(f"{key}_labels is absent")
        elif len(labels.shape) != 2 or labels.shape[0] != images[0]:
            problems.append(f"{key}_labels has the shape {labels.shape}; it must be ({images[0]}, 1) or more columns")
    raise_problems(f"{path} is not as MedMNIST stores it; get it again from its home", problems)


def _read_labels(path: Path, key: str, members: dict[str, Member]) -> NDArray[np.int64]:
    """Return the labels of a section, (N, 1) classes or (N, k) of 0 and 1."""
    rows = Rows(path, f"{key}_labels")
    count, columns = members[f"{key}_labels"].shape
    array = np.array([rows.read(index) for index in range(count)]).reshape(count, columns).astype(np.int64)
    if array.size and (array.min() < 0 or (columns > 1 and array.max() > 1)):
        raise TomokitError(
            f"{path}: {key}_labels has values from {array.min()} to {array.max()}; one column holds classes from 0, "
            "several hold 0 and 1"
        )
    return array


def _read_image(rows: Rows, index: int) -> Volume:
    """Return one image as (X, Y, Z[, C]): (D, H, W) is turned to x, y, z; (H, W) becomes one slice."""
    array = rows.read(index)
    colour = array.ndim == 4 or (array.ndim == 3 and array.shape[2] == 3)
    if array.ndim == 2 or (array.ndim == 3 and colour):
        return Volume(np.swapaxes(array, 0, 1)[:, :, None], LPS_TO_RAS.copy())
    return Volume(array.transpose(2, 1, 0, *range(3, array.ndim)), np.eye(4))
