"""The writer of every import: a folder with `dataset.json`, whole or absent."""

import contextlib
import gzip
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tomokit.errors import TomokitError, raise_problems
from tomokit.files import replacing, write_json
from tomokit.geometry import grid_difference, spacing_from_affine
from tomokit.importers.label_files import Numbering, flips_to, number_labels, renumber, turn_label, whole_values
from tomokit.importers.records import FOLDERS, Case, Plan, Source, count_of, list_lines, name_cases
from tomokit.volumes import NIFTI, Volume, read_header, suffix_of, write_volume

Follow = Callable[[Sequence[Any], str], Iterable[Any]]
Grid = tuple[NDArray[np.float64], tuple[int, ...]]
GZIP_LEVEL = 4
UNREADABLE = "cases that can't be brought in"
OTHER_GRID = "image and label lie on different grids; kept as they are, and the check will show them"
REORDERED = "label reordered onto its image's grid (flipped or exchanged axes; no interpolation)"


class Piece(NamedTuple):
    """What becomes one file: a file to copy, or voxels to write."""

    path: Path | None = None
    volume: Volume | None = None


@dataclass
class Written:
    """What was written: `entries` by section, and the `sizes` and `spacings` of the images."""

    entries: dict[str, list[dict[str, Any]]]
    labels: dict[int, str] | None = None
    channels: int = 0
    sizes: list[tuple[int, ...]] = field(default_factory=list)
    spacings: list[tuple[float, ...]] = field(default_factory=list)


def write_dataset(plan: Plan, target: Path) -> Written:
    """Write the planned cases to the new folder `target`; what can't be read goes to the plan's list of things left.

    The folder is made under a temporary name beside `target`, so that an interrupted import leaves nothing.

    Raises:
        TomokitError: when no case can be brought in, or the disk refuses.
    """
    name_cases(plan.cases)
    partial = target.with_name(f".partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        written = _write_cases(plan, partial)
        write_json(partial / "dataset.json", _describe(plan, written, target.name))
        partial.replace(target)
    except OSError as error:
        raise TomokitError(f"can't write {target}: {error.strerror}; choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return written


def _write_cases(plan: Plan, folder: Path) -> Written:
    """Write all cases, one in memory at a time."""
    written = Written({section: [] for section in FOLDERS})
    with _progress() as follow:
        numbering = _read_numbering(plan, follow)
        written.labels = numbering.names if numbering else plan.labels
        for case in follow(plan.cases, "import"):
            try:
                images, grid = _read_images(case, len(plan.modality) or written.channels)
                label = None
                if numbering is not None and isinstance(case.label, Source):
                    label = _read_label(case, case.label, grid, numbering, plan)
            except TomokitError as error:
                plan.leave(UNREADABLE, f"{case.name} ({error})")
                continue
            written.entries[case.section].append(_write_case(folder, case, images, label))
            written.channels = len(images)
            written.sizes.append(grid[1])
            written.spacings.append(spacing_from_affine(grid[0]))
    if not written.sizes:
        raise_problems("nothing could be imported; mend the source, then import again", list_lines(plan.left))
    return written


@contextlib.contextmanager
def _progress() -> Iterator[Follow]:
    """Yield a function that follows an iteration with a bar on a terminal, and with nothing in a log."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cases"))
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    with bar:
        yield lambda items, title: bar.track(items, description=title)


# Reading


def _read_numbering(plan: Plan, follow: Follow) -> Numbering | None:
    """Return the numbering of label files, which are all read unless the source tells every value; else None."""
    labels = [(case.name, case.label) for case in plan.cases if isinstance(case.label, Source)]
    if not labels:
        return None
    told = {0, *(plan.labels or ())}
    values: set[int] = set()
    if not plan.labels or plan.values_untold or sorted(told) != list(range(len(told))):
        for name, source in follow(labels, "read labels"):
            with contextlib.suppress(TomokitError):  # told when the case is written
                found = whole_values(source.read().array)
                if found is None:
                    plan.note("labels with negative or fractional values, kept: the check will show them", name)
                values.update(found or ())
    return number_labels(plan, values)


def _read_images(case: Case, channels: int) -> tuple[list[Piece], Grid]:
    """Return a piece per channel, and the grid of the first.

    Raises:
        TomokitError: when an image can't be read, or there are fewer or more channels than `channels`, unless 0.
    """
    pieces: list[Piece] = []
    grids: list[Grid] = []
    for source in case.images:
        header = _copyable(source)
        if header is not None:
            pieces.append(Piece(path=source.path))
            grids.append(header)
            continue
        volume = source.read()
        array = volume.array if volume.array.ndim > 2 else volume.array[:, :, None]
        if array.ndim > 4:
            raise TomokitError(f"{source.name} has {array.ndim} axes {array.shape}; store one file per point in time")
        layers = [array] if array.ndim == 3 else [array[..., channel] for channel in range(array.shape[3])]
        pieces += [Piece(volume=Volume(layer, volume.affine)) for layer in layers]
        grids.append((volume.affine, array.shape[:3]))
    if channels and len(pieces) != channels:
        raise TomokitError(
            f"{count_of(len(pieces), 'channel')}, where the modality or the cases before have {channels}"
        )
    return pieces, grids[0]


def _copyable(source: Source) -> Grid | None:
    """Return the grid of a file that needs no change, or None for every other."""
    if source.path is None or suffix_of(source.path) not in NIFTI:
        return None
    header = read_header(source.path)
    return (header.affine, header.shape) if len(header.shape) == 3 else None


def _read_label(case: Case, source: Source, grid: Grid, numbering: Numbering, plan: Plan) -> Piece:
    """Return the label on the image's grid where only flips and the order of axes differ, else on its own.

    Raises:
        TomokitError: when it can't be read, or has several channels.
    """
    own = _copyable(source)
    if own is not None and not numbering.new_of and grid_difference(*grid, *own) is None:
        return Piece(path=source.path)
    label = _read_map(source)
    turn = None
    if grid_difference(*grid, label.affine, label.array.shape) is not None:
        turn = flips_to(*grid, label.affine, label.array.shape)
        plan.note(OTHER_GRID if turn is None else REORDERED, case.name)
    if own is not None and not numbering.new_of and turn is None:
        return Piece(path=source.path)
    if turn is not None:
        label = turn_label(label, turn, grid[0])
    if numbering.new_of and whole_values(label.array) is not None:
        label = Volume(renumber(label.array, numbering.new_of), label.affine)
    return Piece(volume=label)


def _read_map(source: Source) -> Volume:
    """Return the voxels of a label as (X, Y, Z).

    Raises:
        TomokitError: when it can't be read, or has several channels.
    """
    array, affine = source.read()
    if array.ndim == 2 or (array.ndim == 4 and array.shape[3] == 1):
        array = array.reshape((*array.shape[:2], array.size // (array.shape[0] * array.shape[1])))
    if array.ndim != 3:
        raise TomokitError(f"the label {source.name} has the shape {array.shape}; store one value per voxel")
    return Volume(array, affine)


# Writing


def _write_case(folder: Path, case: Case, images: Sequence[Piece], label: Piece | None) -> dict[str, Any]:
    """Write one case's files and return its entry."""
    ending = FOLDERS[case.section]
    names = [case.name] if len(images) == 1 else [f"{case.name}_{number:04d}" for number in range(len(images))]
    paths = [f"images{ending}/{name}.nii.gz" for name in names]
    for path, image in zip(paths, images, strict=True):
        _write_piece(folder / path, image)
    entry: dict[str, Any] = {"image": paths[0] if len(paths) == 1 else paths}
    if label is not None:
        entry["label"] = f"labels{ending}/{case.name}.nii.gz"
        _write_piece(folder / entry["label"], label)
    elif case.label is not None:
        entry["label"] = case.label
    entry["patient"] = case.patient or case.name
    if case.group is not None:
        entry["group"] = case.group
    if case.clinical:
        entry["clinical"] = case.clinical
    return entry


def _write_piece(path: Path, piece: Piece) -> None:
    """Copy a file byte for byte, compressed where it is not, or write voxels."""
    if piece.volume is not None:
        write_volume(path, _storable(piece.volume.array), piece.volume.affine)
        return
    assert piece.path is not None
    with replacing(path) as temporary:
        if suffix_of(piece.path) == ".nii.gz":
            shutil.copyfile(piece.path, temporary)
            return
        with (
            piece.path.open("rb") as source,
            temporary.open("wb") as raw,
            gzip.GzipFile("", "wb", GZIP_LEVEL, raw, mtime=0) as packed,
        ):
            shutil.copyfileobj(source, packed)


def _storable(array: NDArray[Any]) -> NDArray[Any]:
    """Return voxels in a type that every reader of NIfTI knows: no bool, no 64-bit integers, no half floats."""
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        small = np.int32 if np.abs(array).max(initial=0) < 2**31 else np.float64
        return array.astype(small)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _describe(plan: Plan, written: Written, name: str) -> dict[str, Any]:
    """Return the content of `dataset.json`."""
    content: dict[str, Any] = {"name": name, "description": f"imported from a {plan.kind}"}
    if plan.modality:
        content["modality"] = {str(number): kind for number, kind in enumerate(plan.modality)}
    labelled = any("label" in entry for entries in written.entries.values() for entry in entries)
    if written.labels and labelled:
        content["labels"] = {str(value): label for value, label in written.labels.items()}
    return content | written.entries
