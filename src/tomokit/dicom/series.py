"""Series of a DICOM folder: files grouped into volumes, checked, and read."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomokit.dicom.codec import Decoder
from tomokit.dicom.faults import Fault, LeftOut, Problem, count, gather, quiet
from tomokit.dicom.grids import SAME_PLACE_MM, affine_of, along_normal, grid_faults, places
from tomokit.dicom.headers import SEPARATING, Slice, read_slices
from tomokit.dicom.pixels import bounds, read_pixels
from tomokit.errors import TomokitError, raise_problems
from tomokit.volumes import LARGEST_BYTES, Volume

ORIENTATION_TOLERANCE = 1e-3  # of a direction cosine: 0.06°, a quarter of a mm at the edge of a 500 mm field
SPACING_TOLERANCE = 1e-4  # of the spacing
PLANES = ("sagittal", "coronal", "axial")


class Series(NamedTuple):
    """The slices of one volume.

    Attributes:
        uid: SeriesInstanceUID, "" where the files have none; volumes of one series share it.
        patient: PatientID, "" where the files have none. No other element that identifies a person is kept.
        modality: "CT", "MRI", "PET", or DICOM's own code.
        description: SeriesDescription, and the tag that tells this volume from others of its series.
        files: sorted along the slice normal; one file of an enhanced series holds many slices.
        faults: what is wrong, also when the series can be read.
        slices: sorted likewise, one per position unless `duplicate_slices` says otherwise.
    """

    uid: str
    patient: str
    modality: str
    description: str
    files: tuple[Path, ...]
    faults: tuple[Fault, ...]
    slices: tuple[Slice, ...]


def find_series(folder: str | Path) -> tuple[list[Series], list[Fault]]:
    """Return the volumes in a folder and its subfolders, and why other DICOM files were left out.

    Files are told by their content; those that are not DICOM are passed over. Only headers are read, except for the
    pixels of slices that lie at one position. Slices make one volume when they share series, size, spacing and
    orientation; a tag such as the echo time or the acquisition number parts them only when slices repeat at the same
    positions and each part is a set of its own. Without a SeriesInstanceUID, a folder is a series. A single slice
    without neighbours is a volume too.

    Raises:
        TomokitError: when the folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TomokitError(f"{folder} is not a folder; give the one that holds the DICOM files")
    slices: list[Slice] = []
    left: dict[str, list[tuple[Path, Problem]]] = defaultdict(list)  # by series UID, "" where unknown
    with quiet(), Decoder() as decoder:
        for path in sorted(path for path in folder.rglob("[!.]*") if path.is_file()):
            try:
                slices += read_slices(path)
            except LeftOut as reason:
                left[reason.uid].append((path, reason.problem))
        series: list[Series] = []
        faults = [fault._replace(stops=False) for fault in gather(chain(*left.values()), "left out")]
        for (uid, *_), group in _owned(slices).items():
            lost = gather(left[uid] if uid else [], "of this series left out")
            found, unused = _volumes(group, lost, decoder)
            series += found
            faults += unused
    return series, faults


def read_series(series: Series) -> Volume:
    """Return the voxels (X, Y, Z) of a series, in HU or as its rescale gives them, and the affine to RAS in mm.

    X runs along a row of the picture, Y down its columns, Z along the slice normal. Voxels are int16 or int32 where
    slopes and intercepts are integers and the values fit, else float32. Padding is left as it is stored. MONOCHROME1
    is inverted in X-ray pictures (brighter is denser), nowhere else, as it only concerns the display. A picture
    without a place is one axial slice, as other pictures are.

    Raises:
        TomokitError: when a fault of the series stops it, when it is larger than `LARGEST_BYTES`, or when pixels are
            truncated or damaged.
    """
    raise_problems(f"{_name(series)} can't become a volume:", [fault.text for fault in series.faults if fault.stops])
    slices = series.slices
    shape = (slices[0].pixels.columns, slices[0].pixels.rows, len(slices))
    dtype = _voxel_type(slices)
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size > LARGEST_BYTES:
        raise TomokitError(
            f"{_name(series)} would take {size / 2**30:.1f} GiB, more than {LARGEST_BYTES >> 30}; "
            "split it into parts or export fewer slices"
        )
    array = np.empty(shape, dtype, order="F")  # a slice is then one piece of memory
    with quiet(), Decoder() as decoder:
        for number, picture in enumerate(slices):
            array[:, :, number] = _rescaled(picture, decoder, dtype).T
    if dtype == np.int32 and np.iinfo(np.int16).min <= array.min() and array.max() <= np.iinfo(np.int16).max:
        array = array.astype(np.int16)
    return Volume(array, affine_of(slices))


def _name(series: Series) -> str:
    """Return what a user finds a series by."""
    return f"series {series.description or series.uid or 'without a name'} in {series.files[0].parent}"


def _voxel_type(slices: Sequence[Slice]) -> np.dtype[Any]:
    """Return the smallest of int16, int32 and float32 that holds all that the stored bits and rescales can give."""
    lowest, highest = 0.0, 0.0
    for picture in slices:
        slope, intercept = picture.rescale or (1.0, 0.0)
        if not (slope.is_integer() and intercept.is_integer()):
            return np.dtype(np.float32)
        ends = [slope * bound + intercept for bound in bounds(picture.pixels)]
        lowest, highest = min(lowest, *ends), max(highest, *ends)
    for dtype in (np.int16, np.int32):
        if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.float32)


def _rescaled(picture: Slice, decoder: Decoder, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a slice's values (rows, columns)."""
    stored = read_pixels(picture, decoder)
    slope, intercept = picture.rescale or (1.0, 0.0)
    if (slope, intercept) != (1.0, 0.0):
        stored = stored * np.float64(slope) + intercept  # exact for integers of 32 bits
    return stored.astype(dtype)


# Groups of slices that make one volume


def _owned(slices: list[Slice]) -> dict[tuple[str, ...], list[Slice]]:
    """Return slices by series UID, patient and modality; by their folder too where they have no UID."""
    owned: dict[tuple[str, ...], list[Slice]] = defaultdict(list)
    for picture in slices:
        uid, patient, modality, _ = picture.owner
        owned[uid, patient, modality, "" if uid else str(picture.path.parent)].append(picture)
    return owned


def _volumes(slices: list[Slice], lost: list[Fault], decoder: Decoder) -> tuple[list[Series], list[Fault]]:
    """Return the volumes of one series, and what was left out of it."""
    stacks = _stacks(slices)
    mixed, unused = _mixed(stacks)
    kept = [stack for stack in stacks if not mixed or len(stack) > 1]
    pieces = [piece for stack in kept for piece in _separate(stack)]
    return [_series(piece, label, [*lost, *mixed], decoder) for label, piece in pieces], unused


def _stacks(slices: list[Slice]) -> list[list[Slice]]:
    """Return slices grouped by size, spacing and orientation; each picture without a place is alone."""
    stacks: list[list[Slice]] = []
    for picture in slices:
        near = (stack for stack in stacks if _is_parallel(picture, stack[0])) if picture.placed else iter(())
        stack = next(near, None)
        if stack is None:
            stacks.append([picture])
        else:
            stack.append(picture)
    return stacks


def _is_parallel(a: Slice, b: Slice) -> bool:
    """Return whether two slices share size, spacing, orientation, and whether they are localizers."""
    return (
        b.placed
        and (a.pixels.columns, a.pixels.rows) == (b.pixels.columns, b.pixels.rows)
        and ("LOCALIZER" in a.tags["ImageType"]) == ("LOCALIZER" in b.tags["ImageType"])
        and all(abs(x - y) <= SPACING_TOLERANCE * y for x, y in zip(a.spacing, b.spacing, strict=True))
        and _same_axes(a, b)
    )


def _same_axes(a: Slice, b: Slice) -> bool:
    """Return whether two slices have the same orientation."""
    return bool(np.abs(a.axes - b.axes).max() <= ORIENTATION_TOLERANCE)


def _mixed(stacks: list[list[Slice]]) -> tuple[list[Fault], list[Fault]]:
    """Return a fault for the volumes of a series with several orientations, and one for what is left out of it."""
    firsts: list[Slice] = []
    for stack in stacks:
        if stack[0].placed and not any(_same_axes(stack[0], other) for other in firsts):
            firsts.append(stack[0])
    if len(firsts) < 2:
        return [], []
    planes = Counter(PLANES[int(np.abs(first.normal).argmax())] for first in firsts)
    owner = firsts[0].owner
    text = (
        f"series {owner.description or owner.uid or 'without a name'} in {firsts[0].path.parent} holds "
        f"{len(firsts)} orientations ({', '.join(f'{number} {plane}' for plane, number in planes.items())})"
    )
    alone = [stack[0].path for stack in stacks if len(stack) == 1]
    unused = (
        f"{text}; {count(len(alone), 'slice')} alone in an orientation left out (such as {alone[0]}); nothing is to "
        "be done for a localizer"
        if alone
        else ""
    )
    mixed = Fault("mixed_orientations", f"{text}; each becomes a volume of its own: choose the one you need")
    return [mixed], [Fault("mixed_orientations", unused)] if unused else []


def _separate(slices: list[Slice], label: str = "") -> list[tuple[str, list[Slice]]]:
    """Return slices parted by the tags that make full sets of them, each with a label that says by what."""
    numbers = places(slices)
    if len(set(numbers)) == len(slices):
        return [(label, slices)]
    for keyword in SEPARATING:
        parts: dict[str, list[int]] = defaultdict(list)
        for index, picture in enumerate(slices):
            parts[picture.tags[keyword]].append(index)
        if _are_sets([{numbers[index] for index in part} for part in parts.values()]):
            return [
                piece
                for value, part in parts.items()
                for piece in _separate([slices[index] for index in part], f"{label}, {keyword} {value or 'absent'}")
            ]
    return [(label, slices)]


def _are_sets(parts: list[set[int]]) -> bool:
    """Return whether parts of a stack are volumes by the places that each covers.

    No part is a lone slice, each lies where another does too, and the largest covers half of all places at least.
    Some scanners number each slice, or each turn of the gantry, as an acquisition: those are not sets.
    """
    times = Counter(place for part in parts for place in part)
    return (
        len(parts) > 1
        and min(map(len, parts)) >= min(2, len(times))
        and max(map(len, parts)) >= len(times) / 2
        and all(any(times[place] > 1 for place in part) for part in parts)
    )


# Faults of one volume


def _series(slices: list[Slice], label: str, faults: list[Fault], decoder: Decoder) -> Series:
    """Return one volume's slices in order, with all that is wrong with them."""
    owner = slices[0].owner
    along = along_normal(slices)
    ordered = [slices[index] for index in np.argsort(along, kind="stable")]
    problems = [(picture.path, picture.problem) for picture in ordered if picture.problem]
    kept, repeated = _without_copies(ordered, decoder)
    is_stack = not any(fault.stops for fault in repeated)  # one slice at each position
    return Series(
        uid=owner.uid,
        patient=owner.patient,
        modality=owner.modality,
        description=(owner.description + label).removeprefix(", "),
        files=tuple(dict.fromkeys(picture.path for picture in kept)),
        faults=(
            *faults,
            *gather(problems, f"of {len(set(picture.path for picture in slices))}"),
            *repeated,
            *(grid_faults(kept) if is_stack else ()),
            *_rescale_faults(kept),
        ),
        slices=tuple(kept),
    )


def _without_copies(ordered: list[Slice], decoder: Decoder) -> tuple[list[Slice], list[Fault]]:
    """Return slices with one of identical copies, and what was found at positions with several files.

    Pixels are compared until two differ: then the series is refused anyway.
    """
    groups: dict[int, list[Slice]] = defaultdict(list)
    for number, picture in zip(places(ordered), ordered, strict=True):
        groups[number].append(picture)
    kept: list[Slice] = []
    copies: list[tuple[Slice, Slice]] = []
    different: tuple[Slice, Slice] | None = None
    for first, *others in groups.values():
        kept.append(first)
        for other in others:
            if different is None and _are_copies(first, other, decoder):
                copies.append((other, first))
            else:
                different = different or (first, other)
                kept.append(other)
    faults = []
    if copies:
        copy, first = copies[0]
        text = f"{count(len(copies), 'slice')} left out as an exact copy of another ({copy.path} of {first.path})"
        faults.append(Fault("duplicate_slices", f"{text}; remove the copies"))
    if different:
        faults.append(_unparted(different, sum(len(group) > 1 for group in groups.values()), len(groups)))
    return kept, faults


def _are_copies(a: Slice, b: Slice, decoder: Decoder) -> bool:
    """Return whether two slices at one place along the normal are the same, pixel by pixel."""
    if a.problem or b.problem or a.rescale != b.rescale or np.abs(a.position - b.position).max() > SAME_PLACE_MM:
        return False
    try:
        return np.array_equal(read_pixels(a, decoder), read_pixels(b, decoder))
    except TomokitError:
        return False


def _unparted(pair: tuple[Slice, Slice], repeated: int, total: int) -> Fault:
    """Say that different pictures lie at one position."""
    first, second = pair
    return Fault(
        "duplicate_slices",
        f"different pictures at {repeated} of {count(total, 'position')}, such as {first.path} and {second.path} at "
        f"{along_normal(pair)[0]:.2f} mm along the slice normal, and no tag parts them into full sets; put the files "
        "of one volume into a folder of their own",
        stops=True,
    )


def _rescale_faults(slices: list[Slice]) -> list[Fault]:
    """Say which slices have no slope and intercept, where they should: in CT, and where others have them."""
    without = [picture.path for picture in slices if picture.rescale is None]
    if not without or (len(without) == len(slices) and slices[0].owner.modality != "CT"):
        return []
    if len(without) < len(slices):
        reason = "no rescale slope and intercept, while other slices of the series have them"
        problem = Problem("rescale_missing", reason)
    else:
        reason = "no rescale slope and intercept, so that values are as stored and may not be HU"
        problem = Problem("rescale_missing", reason, stops=False)
    return gather([(path, problem) for path in without], f"of {len(slices)}")
