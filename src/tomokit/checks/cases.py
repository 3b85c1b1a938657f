"""One case: its files read once, its faults, and what the comparison with the other cases needs."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray

from tomokit.checks.findings import Finding
from tomokit.checks.fit import Fit, measure_fit
from tomokit.checks.regions import Region, measure_regions
from tomokit.errors import TomokitError
from tomokit.geometry import grid_difference, spacing_from_affine
from tomokit.volumes import NIFTI, Header, read_header, read_volume, suffix_of

SMALLEST_SPACING_MM, LARGEST_SPACING_MM = 0.05, 15.0
SPACING_TOLERANCE = 1e-3  # relative, between two files
ANGLE_TOLERANCE = np.sin(np.deg2rad(0.1))
PIXDIM_TOLERANCE = 0.01  # relative, within one header
QFORM_TOLERANCE = 0.5  # voxels
HU_LOWEST, HU_HIGHEST = -1100, 4096
FEWEST_NEGATIVE = 0.001  # share of voxels; in HU air, fat and noise are negative
LARGEST_STORED_LOW, SMALLEST_STORED_SHARE = -200, 0.1  # air about 0 and tissue about 1000, as stored values are
SMALLEST_RANGE_HU = 50  # the noise of a scan alone has more
SLAB_VOXELS = 1 << 22
SAMPLE_VOXELS = 1 << 18
LARGEST_LABEL = 65535
MOST_LABEL_VALUES = 4096  # more distinct values than any label map has
DESCRIPTOR_SIZE = 24
THUMBNAIL = 128
BYTES_PER_BYTE = 5  # an image, its label, a slab in float32, the pieces of a structure; 4.4 were measured


class Expected(NamedTuple):
    """What the data set says of every case: label values, and the kind of each channel (None: unsaid).

    Attributes:
        own_grids: whether the modalities of a case may lie on grids of their own, or be absent; None only warns of the
            former, and False of the latter.
    """

    values: frozenset[int] | None
    modality: tuple[str, ...] | None
    own_grids: bool | None = False


class View(NamedTuple):
    """A slice (columns, rows) turned to RAS: grey values 0–255, label, and the pixel's size in mm."""

    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    pixel_mm: tuple[float, float]


class Channel(NamedTuple):
    """The intensities of one image: extremes, the 1st, 50th and 99th percentile, and the stored type.

    `negative` and `dense` are the shares of voxels below 0, and from 900 to 1200: bone in HU, tissue as stored.
    """

    minimum: float
    low: float
    median: float
    high: float
    maximum: float
    dtype: str
    negative: float
    dense: float


@dataclass(eq=False)
class Case:
    """One case as read: its findings, and measures for the comparison with others (empty where it has errors)."""

    name: str
    patient: str
    entry: Mapping[str, Any]
    findings: list[Finding] = field(default_factory=list)
    header: Header | None = None  # of the first image
    channels: list[Channel | None] = field(default_factory=list)  # one per image; None where it can't be read
    image_digests: list[str] = field(default_factory=list)  # one per image
    label_digest: str | None = None
    descriptors: list[NDArray[np.float16] | None] = field(default_factory=list)  # one per image; None where it is flat
    regions: dict[int, Region] | None = None  # by label value; None without a label file
    fit: Fit | None = None
    view: View | None = None

    def add(self, kind: str, evidence: str) -> None:
        """Note a finding of this case."""
        self.findings.append(Finding(self.name, kind, evidence))

    @property
    def is_sound(self) -> bool:
        """Return whether the case has no error, so that it may stand for others."""
        return not any(finding.severity == "error" for finding in self.findings)

    @property
    def is_readable(self) -> bool:
        """Return whether the voxels of its images could be read."""
        return any(channel is not None for channel in self.channels)


def examine_case(
    entry: Mapping[str, Any], expected: Expected, measured: bool = True, hold: Callable[[int], Any] = nullcontext
) -> Case:
    """Return a case with its faults.

    Each file's header is read, then its voxels, once; the label and one image are in memory at a time.

    Args:
        entry: the case, as `datasets.read_entries` returns it.
        expected: what the data set says of every case.
        measured: measure also what the comparison with other cases needs.
        hold: called with the bytes that are needed, gives the context in which the voxels are read.
    """
    case = Case(str(entry["case"]), str(entry["patient"]), entry)
    images = [entry["image"]] if isinstance(entry["image"], str) else list(entry["image"])
    if expected.modality is not None and len(images) != len(expected.modality):
        kinds = ", ".join(expected.modality)
        case.add("channel_count", f"{len(images)} images, but modality has {len(expected.modality)} kinds ({kinds})")
    headers = [None if path is None else _read_header(case, path) for path in images]
    case.header = next(header for path, header in zip(images, headers, strict=True) if path is not None)
    label = entry.get("label")
    label_header = _read_header(case, label) if isinstance(label, str) else None
    _check_spacings(case, [*zip(images, headers, strict=True), (label, label_header)])
    if label is not None and not isinstance(label, str):
        _check_classes(case, label, expected)
    if not expected.own_grids:
        _note_absent(case, images)
    present = [(path, header) for path, header in zip(images, headers, strict=True) if path is not None]
    _compare_grids(case, [*present, (label, label_header)], expected.own_grids)
    with hold(BYTES_PER_BYTE * max(map(_bytes_of, [*headers, label_header]))):
        array = _read_label(case, label, label_header, expected) if isinstance(label, str) and label_header else None
        _read_images(case, images, headers, array, expected, measured)
    return case


def _note_absent(case: Case, images: Sequence[str | None]) -> None:
    """Note which images of a case are absent."""
    absent = [str(place) for place, path in enumerate(images) if path is None]
    if absent:
        case.add("modality_absent", f"no image {', '.join(absent)} (null in dataset.json)")


def _bytes_of(header: Header | None) -> int:
    """Return the size of a file's voxels in memory."""
    return math.prod(header.shape) * header.dtype.itemsize if header else 0


def images_of_entry(entry: Mapping[str, Any]) -> list[str]:
    """Return the files of a case: its images, then its label where that is a file."""
    images = [entry["image"]] if isinstance(entry["image"], str) else list(entry["image"])
    return [
        *(path for path in images if path is not None),
        *([entry["label"]] if isinstance(entry.get("label"), str) else []),
    ]


# Headers


def _read_header(case: Case, path: str) -> Header | None:
    """Return a file's header, or None with the fault noted."""
    name = Path(path).name
    try:
        there = Path(path).is_file()
    except OSError as error:
        case.add("unreadable", f"{path}: {error.strerror}")
        return None
    if not there:
        case.add("missing_file", f"{path} does not exist")
        return None
    try:
        header = read_header(path)
    except TomokitError as error:
        kind = "spacing_invalid" if "must be an invertible" in str(error) else "unreadable"
        case.add(kind, str(error))
        return None
    lone = header.shape[3:] == (1,) and path == case.entry["image"]  # a fourth axis of one does no harm to one image
    if len(header.shape) != 3 and not lone:
        case.add("dimension", f"{name} has the shape {header.shape}")
        return None
    if suffix_of(path) not in NIFTI:
        case.add("format", f"{name} is not NIfTI (.nii, .nii.gz)")
    return header


def _check_spacings(case: Case, files: Sequence[tuple[Any, Header | None]]) -> None:
    """Note what is wrong with the spacing of each file, once for files that tell the same."""
    seen: list[Header] = []
    for path, header in files:
        if header is None or any(_tell_same(header, other) for other in seen):
            continue
        seen.append(header)
        _check_spacing(case, _in_set(path), header)


def _tell_same(a: Header, b: Header) -> bool:
    """Return whether two headers tell the same spacing and directions."""
    return (a.pixdim, a.unit, a.qform_away_mm) == (b.pixdim, b.unit, b.qform_away_mm) and np.array_equal(
        a.affine[:3, :3], b.affine[:3, :3]
    )


def _check_spacing(case: Case, name: str, header: Header) -> None:
    """Note a spacing that is invalid, implausible or told twice otherwise, and axes that are not orthogonal."""
    spacing = np.array(spacing_from_affine(header.affine))
    pixdim = None if header.pixdim is None else np.array(header.pixdim)
    shown = " × ".join(f"{size:.4g}" for size in spacing)
    real = np.array(header.shape[:3]) > 1  # the thickness of a single slice is often unknown
    if pixdim is not None and not (np.isfinite(pixdim) & (pixdim > 0)).all():
        case.add("spacing_invalid", f"{name} has pixdim {pixdim.tolist()}")
        return
    if ((spacing < SMALLEST_SPACING_MM) | (spacing > LARGEST_SPACING_MM))[real].any():
        case.add("spacing_implausible", f"{name} has a spacing of {shown} mm")
    elif header.unit not in ("mm", "unknown"):
        case.add("spacing_implausible", f"{name} gives its spacing of {shown} in {header.unit}")
    cosines = header.affine[:3, :3] / spacing
    skew = float(np.abs(cosines.T @ cosines - np.eye(3)).max())
    if skew > ANGLE_TOLERANCE:
        case.add("not_orthogonal", f"{name} has axes {np.rad2deg(np.arcsin(min(1.0, skew))):.1f}° off the right angle")
    if pixdim is not None and (abs(pixdim - spacing) > PIXDIM_TOLERANCE * spacing)[real].any():
        case.add("header_inconsistent", f"{name} has pixdim {pixdim.round(4).tolist()}, its affine {shown} mm")
    elif skew <= ANGLE_TOLERANCE and header.qform_away_mm > QFORM_TOLERANCE * spacing.min():  # a qform has no skew
        evidence = f"{name} has a qform and an sform whose corners lie up to {header.qform_away_mm:.3g} mm apart"
        case.add("header_inconsistent", evidence)


def _compare_grids(case: Case, files: Sequence[tuple[Any, Header | None]], own_grids: bool | None = False) -> None:
    """Note each file whose grid is not the first image's; further images may be allowed their own."""
    (first_path, first), *others = files
    if first is None:
        return
    for path, header in others:
        if header is None:
            continue
        kind = _grid_fault(first, header)
        if kind is None or (own_grids and path != case.entry.get("label")):
            continue
        if own_grids is None and path != case.entry.get("label"):
            kind = "own_grids"
        difference = grid_difference(first.affine, first.shape[:3], header.affine, header.shape[:3])
        case.add(kind, f"{_in_set(first_path)} and {_in_set(path)} differ: {difference}")


def _in_set(path: str) -> str:
    """Return a file's name with its folder's, since image and label are often called alike."""
    return "/".join(Path(path).parts[-2:])


def _grid_fault(first: Header, other: Header) -> str | None:
    """Return the kind of the gravest difference of two grids, or None when they are the same."""
    if first.shape[:3] != other.shape[:3]:
        return "shape_mismatch"
    if grid_difference(first.affine, first.shape[:3], other.affine, other.shape[:3]) is None:
        return None
    spacings = [np.array(spacing_from_affine(header.affine)) for header in (first, other)]
    if not np.allclose(spacings[0], spacings[1], rtol=SPACING_TOLERANCE):
        return "spacing_mismatch"
    directions = [header.affine[:3, :3] / spacing for header, spacing in zip((first, other), spacings, strict=True)]
    if np.abs(directions[0] - directions[1]).max() > ANGLE_TOLERANCE:
        return "orientation_mismatch"
    return "affine_mismatch"


# Labels


def _check_classes(case: Case, label: Any, expected: Expected) -> None:
    """Note a class outside the label map, or a list that is not one 0 or 1 for each label."""
    if expected.values is None:
        return
    if isinstance(label, list):
        if len(label) != len(expected.values) or not set(label) <= {0, 1}:
            case.add(
                "label_outside_map", f"the list {label} is not one 0 or 1 for each of {len(expected.values)} labels"
            )
    elif isinstance(label, bool | float) or label not in expected.values:
        case.add("label_outside_map", f"class {label!r} is not in the label map {sorted(expected.values)}")


def _read_label(case: Case, path: str, header: Header, expected: Expected) -> NDArray[Any] | None:
    """Return a label's voxels as integers (X, Y, Z), or None with the fault noted."""
    try:
        array = read_volume(path, header).array
    except TomokitError as error:
        case.add("unreadable", str(error))
        return None
    found = _distinct(array)
    name = Path(path).name
    fractional = [value for value in found if not float(value).is_integer()]
    if fractional:
        shown = ", ".join(map(repr, fractional[:5]))
        case.add("label_fractional", f"{name} has values that are not whole: {shown}")
        return None
    known_values = expected.values or range(LARGEST_LABEL + 1)
    outside = sorted(value for value in found if int(value) not in known_values)
    if outside or len(found) >= MOST_LABEL_VALUES:
        shown = ", ".join(str(int(value)) for value in outside[:5])
        known = sorted(expected.values) if expected.values else f"0 to {LARGEST_LABEL}"
        case.add("label_outside_map", f"{name} has values outside the label map {known}: {shown}")
        return None
    if not any(found):
        case.add("label_empty", f"{name} is 0 everywhere")
    return array.astype(np.uint8 if max(found) < 256 else np.int32, copy=False)


def _distinct(array: NDArray[Any]) -> list[float]:
    """Return the distinct values of a label as the loader reads them (float32), at most `MOST_LABEL_VALUES`."""
    values = np.empty(0)
    for slab in _slabs(array):
        loaded = slab.astype(np.float32) if slab.dtype.kind == "f" else slab
        values = np.union1d(values, np.unique(loaded).astype(np.float64))
        if values.size > MOST_LABEL_VALUES:
            break
    return [float(value) for value in values[:MOST_LABEL_VALUES]]


# Images


def _read_images(
    case: Case,
    paths: Sequence[str | None],
    headers: Sequence[Header | None],
    label: NDArray[Any] | None,
    expected: Expected,
    measured: bool,
) -> None:
    """Read each image's voxels, note their faults, and measure what the comparison needs."""
    fits: list[Fit] = []
    for number, (path, header) in enumerate(zip(paths, headers, strict=True)):
        array = None if header is None or path is None else _voxels(case, path, header)
        # it keeps its place; a label map in an image's place has no intensities
        if header is None or path is None or array is None or path == case.entry.get("label"):
            case.channels.append(None)
            case.descriptors.append(None)
            continue
        kind = expected.modality[number] if expected.modality and number < len(expected.modality) else ""
        channel = describe_channel(array)
        case.channels.append(channel)
        sound = _check_intensities(case, Path(path).name, array, channel, kind)
        if not measured:
            continue
        case.image_digests.append(_digest(array))
        turn = io_orientation(header.affine)
        image = apply_orientation(array, turn)
        fitting = label is not None and label.shape == array.shape
        turned = apply_orientation(label, turn) if label is not None and fitting else None
        if sound and turned is not None and (fit := measure_fit(image, turned)) is not None:
            fits.append(fit)
        if case.view is None:
            spacing = np.array(spacing_from_affine(header.affine))[np.argsort(turn[:, 0])]
            case.view = _view(image, turned, spacing, channel)
        case.descriptors.append(describe_image(image) if channel.minimum < channel.maximum else None)
    if measured:
        case.fit = max(fits, key=lambda fit: fit.information, default=None)
        _measure_label(case, label)


def _voxels(case: Case, path: str, header: Header) -> NDArray[Any] | None:
    """Return an image's voxels (X, Y, Z), or None with the fault noted."""
    try:
        return read_volume(path, header).array.reshape(header.shape[:3])
    except TomokitError as error:
        case.add("unreadable", str(error))
        return None


def describe_channel(array: NDArray[Any]) -> Channel:
    """Return the extremes and percentiles of an image's finite voxels."""
    extremes = [(float(np.nanmin(slab)), float(np.nanmax(slab))) for slab in _slabs(array) if np.isfinite(slab).any()]
    sample = array.ravel(order="K")[:: max(1, array.size // SAMPLE_VOXELS)]
    sample = sample[np.isfinite(sample)].astype(np.float64)
    low, median, high = np.percentile(sample, [1, 50, 99]) if sample.size else (0.0, 0.0, 0.0)
    lowest = min((a for a, _ in extremes), default=0.0)
    highest = max((b for _, b in extremes), default=0.0)
    shares = [float(np.mean(part)) if sample.size else 0.0 for part in (sample < 0, (sample > 900) & (sample < 1200))]
    return Channel(lowest, float(low), float(median), float(high), highest, str(array.dtype), *shares)


def _check_intensities(case: Case, name: str, array: NDArray[Any], channel: Channel, kind: str) -> bool:
    """Note voxels that are not finite, an image of one value, and a CT that is not in HU; return if all is sound."""
    before = len(case.findings)
    if array.dtype.kind == "f":
        count = array.size - sum(int(np.count_nonzero(np.isfinite(slab))) for slab in _slabs(array))
        if count:
            case.add("not_finite", f"{name} has {count} voxels that are NaN or infinite")
            return False
    if channel.minimum == channel.maximum:
        case.add("constant_image", f"{name} is {channel.minimum:g} everywhere")
    elif kind.upper() == "CT":
        shown = f"from {channel.minimum:g} to {channel.maximum:g}, median {channel.median:g}"
        if _is_unscaled(channel):
            case.add("hu_not_rescaled", f"{name} runs {shown}")
        elif channel.minimum < HU_LOWEST or channel.maximum > HU_HIGHEST:
            case.add("hu_out_of_range", f"{name} runs {shown} HU")
            return True
    return len(case.findings) == before


def _is_unscaled(channel: Channel) -> bool:
    """Return whether a CT's intensities are no HU: hardly any below 0, much where only dense bone is, or no range."""
    stored = channel.low > LARGEST_STORED_LOW and channel.dense > SMALLEST_STORED_SHARE
    return channel.negative < FEWEST_NEGATIVE or stored or channel.maximum - channel.minimum < SMALLEST_RANGE_HU


def describe_image(image: NDArray[Any]) -> NDArray[np.float16]:
    """Return an image (X, Y, Z) shrunk to 24 blocks an axis, with mean 0 and length 1; axes of one slice stay one.

    Blind to the range of intensities, to the encoding and to the number of voxels.
    """
    finite = np.nan_to_num(image, posinf=0, neginf=0) if image.dtype.kind == "f" else image
    shrunk = finite.astype(np.float32) if image.size <= SLAB_VOXELS else finite
    for axis, size in enumerate(image.shape):
        target = min(DESCRIPTOR_SIZE, size) if size == 1 else DESCRIPTOR_SIZE
        shrunk = _shrink(shrunk, axis, target)
    centred = shrunk - shrunk.mean()
    length = float(np.linalg.norm(centred))
    return (centred / (length or 1.0)).astype(np.float16)


def _shrink(array: NDArray[Any], axis: int, target: int) -> NDArray[np.float32]:
    """Return the mean of `target` equal parts along an axis, parts of a voxel counted in proportion."""
    size = array.shape[axis]
    edges = np.linspace(0, size, target + 1)
    weights = np.zeros((target, size), np.float32)
    for part in range(target):
        voxels = np.arange(size)
        overlap = np.minimum(voxels + 1, edges[part + 1]) - np.maximum(voxels, edges[part])
        weights[part] = np.clip(overlap, 0, None) * target / size
    return np.moveaxis(np.tensordot(weights, array, axes=(1, axis)), 0, axis)


def _measure_label(case: Case, label: NDArray[Any] | None) -> None:
    """Keep the digest of a label and the measures of its regions."""
    if label is None or case.header is None or label.shape != case.header.shape[:3]:
        return
    if label.any():
        case.label_digest = _digest(label)
    case.regions = measure_regions(label, case.header.affine)


def _digest(array: NDArray[Any]) -> str:
    """Return a hash of an array's shape and values, whatever type they are stored as."""
    digest = hashlib.blake2b(str(array.shape).encode(), digest_size=16)
    for slab in _slabs(array):
        digest.update(np.ascontiguousarray(slab, np.float32).tobytes())
    return digest.hexdigest()


def _slabs(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield an array in parts along its last axis, of about `SLAB_VOXELS` voxels each."""
    step = max(1, SLAB_VOXELS // max(1, array[..., 0].size))
    for start in range(0, array.shape[-1], step):
        yield array[..., start : start + step]


def _view(image: NDArray[Any], label: NDArray[Any] | None, spacing: NDArray[Any], channel: Channel) -> View:
    """Return the slice with most label, or the middle one, thinned to a thumbnail.

    Slices are taken across the axis of the largest spacing, or of a single slice, else axial.
    """
    sizes = np.array(image.shape)
    across = int(np.argmin(sizes)) if sizes.min() == 1 else 2
    if sizes.min() > 1 and spacing.max() > 1.5 * spacing.min():
        across = int(np.argmax(spacing))
    place = int(sizes[across] // 2)
    if label is not None and label.any():
        place = int(np.count_nonzero(label, axis=tuple(axis for axis in range(3) if axis != across)).argmax())
    step = max(1, -(-int(np.delete(sizes, across).max()) // THUMBNAIL))
    plane = np.take(image, place, axis=across)[::step, ::step].astype(np.float32)
    wide = (channel.high - channel.low) or 1.0
    grey = np.clip(np.nan_to_num((plane - channel.low) / wide) * 255, 0, 255).astype(np.uint8)
    shown = None if label is None else np.take(label, place, axis=across)[::step, ::step].astype(np.uint8)
    width, height = (float(size) for size in np.delete(spacing, across))
    return View(grey, shown, (width, height))


__all__ = [
    "Case",
    "Channel",
    "Expected",
    "View",
    "describe_channel",
    "describe_image",
    "examine_case",
    "images_of_entry",
]
