"""Where a new scan lies outside what was trained on: voxel sizes, field of view, voxels, intensities.

`range.json` of a run holds the lowest and the highest of its training cases. Axes are those of the grid nearest to the
patient's: x to the right, y to the front, z to the head. A case's grid is that of its first image.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import ArrayLike

from tomokit.checks.cases import Case, Channel, describe_channel
from tomokit.datasets import has_image
from tomokit.errors import TomokitError
from tomokit.files import read_json, write_json
from tomokit.geometry import spacing_from_affine
from tomokit.reading import read_scan
from tomokit.volumes import read_header

FILE = "range.json"
SCALED = "CT"  # the modality whose intensities mean the same in every scan
MARGIN = 0.1  # of the range, which a new scan may lie outside of it
LEAST_MARGIN = 0.05  # of a grid's largest value, or of all the intensities: training cases may all be alike
MOST_READ = 50  # images whose voxels are read, where the check before training has not
GRID = {"spacing_mm": ("spacing", " mm"), "extent_mm": ("field of view", " mm"), "voxels": ("number of voxels", "")}
INTENSITIES = {"p01": "1st percentile", "p50": "median", "p99": "99th percentile"}
Image = str | Path | Sequence[str | None]
Range = Mapping[str, Any]


class _Facts(NamedTuple):
    """What of a case is compared: its grid along x, y, z, and `INTENSITIES` of each image, None where it is absent."""

    grid: dict[str, list[float]]
    intensities: list[dict[str, float] | None] | None


_noted: dict[tuple[str | None, ...], _Facts] = {}
_noting = threading.Lock()


def note_case(case: Case) -> None:
    """Keep what a check has read of a case until `write_range` asks for it, which then need not read it again."""
    if case.header is not None and any(channel is not None for channel in case.channels):
        channels = [None if channel is None else _percentiles(channel) for channel in case.channels]
        with _noting:
            _noted[_images(case.entry["image"])] = _Facts(_grid(case.header.shape, case.header.affine), channels)


def write_range(run_dir: str | Path, entries: Sequence[Mapping[str, Any]], modality: Sequence[str]) -> None:
    """Write the range of the training cases to `range.json` in a run's folder.

    Args:
        run_dir: the run's folder.
        entries: the training cases.
        modality: the kind of each of their images.

    Raises:
        TomokitError: when there is no case, or a file can't be read or written.
    """
    try:
        write_json(Path(run_dir) / FILE, describe_range(entries, modality))
    finally:
        _noted.clear()  # files may change until the next training


def describe_range(entries: Sequence[Mapping[str, Any]], modality: Sequence[str]) -> dict[str, Any]:
    """Return the lowest and the highest of each quantity over training cases, as `range.json` holds them.

    Of spacing, field of view and voxels for each axis; of the 1st, 50th and 99th percentile of the intensities for each
    image. Where the check before training has not read the cases, headers are read of all, and voxels of 50 at most.

    Raises:
        TomokitError: when there is no case, or a file can't be read.
    """
    if not entries:
        raise TomokitError("no training case, so that there is no range of them; correct the split")
    step = -(-len(entries) // MOST_READ)
    facts = [
        _noted.get(_images(entry["image"])) or _read(entry["image"], place % step == 0 and has_image(entry))
        for place, entry in enumerate(entries)
    ]
    found: dict[str, Any] = {"cases": len(entries), "modality": [str(kind) for kind in modality]}
    for name in GRID:
        values = np.array([fact.grid[name] for fact in facts])
        found[name] = np.stack([values.min(axis=0), values.max(axis=0)], axis=1).tolist()
    looked = [fact.intensities for fact in facts if fact.intensities is not None]
    found["intensity"] = [_range_of([own[number] for own in looked]) for number in range(len(modality))]
    return found


def read_range(run_dir: str | Path) -> dict[str, Any] | None:
    """Return what `range.json` of a run's folder holds; None where there is none, as in runs of earlier versions.

    Raises:
        TomokitError: when the file is malformed.
    """
    path = Path(run_dir) / FILE
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        shapes = {np.shape(content[name]) for name in GRID}
        shapes |= {np.shape([channel[name] for name in INTENSITIES]) for channel in content["intensity"] if channel}
    except (KeyError, TypeError, ValueError):
        shapes = set()
    if shapes != {(3, 2)} or len(content["intensity"]) != len(content["modality"]):
        raise TomokitError(f"{path} is malformed; delete it to compare new scans with nothing")
    return dict(content)


def join_ranges(ranges: Sequence[Range], cases: int) -> dict[str, Any]:
    """Return the range of what several runs were trained on, `cases` in all, of modalities that are alike.

    Raises:
        TomokitError: when there is no range.
    """
    if not ranges:
        raise TomokitError("no range to join, got an empty list")
    found: dict[str, Any] = {"cases": cases, "modality": ranges[0]["modality"]}
    for name in GRID:
        limits = np.array([own[name] for own in ranges])
        found[name] = np.stack([limits[..., 0].min(axis=0), limits[..., 1].max(axis=0)], axis=1).tolist()
    found["intensity"] = [_joined(channels) for channels in zip(*(own["intensity"] for own in ranges), strict=True)]
    return found


def find_outside(known: Range, image: Image) -> list[str]:
    """Return a sentence for each quantity of a new scan that lies outside the training cases' range; none outside it.

    A tenth of the range is a margin on either side, at least 5 % of its largest value, of intensities at least 5 % of
    what lies between the lowest and the highest percentile of all training cases. Intensities are compared of CT alone:
    those of MRI have no scale, so that every fifth scan of a set was outside the range of others of the same set.

    Args:
        known: the range, as `read_range` returns it.
        image: a scan: its file, or its DICOM folder; or the list of its modalities' in their order, None for an absent
            one.

    Raises:
        TomokitError: when a file can't be read, or there are more modalities than in training.
    """
    facts = _read(image, True)
    kinds = known["modality"]
    if facts.intensities is None or len(facts.intensities) != len(kinds):
        count = len(facts.intensities or ())
        raise TomokitError(f"{image} is of {count} modalities, training cases are of {len(kinds)} ({', '.join(kinds)})")
    told = []
    for name, (words, unit) in GRID.items():
        for axis, value, limits in zip("xyz", facts.grid[name], known[name], strict=True):
            least = LEAST_MARGIN * max(map(abs, limits))
            told += _compare(f"{words} along {axis}", value, limits, least, unit)
    for kind, own, limits in zip(kinds, facts.intensities, known["intensity"], strict=True):
        if own is None or limits is None or kind.upper() != SCALED:
            continue  # absent here, or in all training cases
        least = LEAST_MARGIN * (limits["p99"][1] - limits["p01"][0])
        for name, words in INTENSITIES.items():
            told += _compare(f"{words} of the intensities ({kind})", own[name], limits[name], least, " HU")
    return told


def _compare(words: str, value: float, limits: Sequence[float], least: float, unit: str) -> list[str]:
    """Return a sentence when a value lies outside two limits by more than the margin."""
    low, high = limits
    margin = max(MARGIN * (high - low), least)
    if low - margin <= value <= high + margin:
        return []
    between = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    return [f"{words} is {value:.4g}{unit}, in training {between}{unit}"]


def _images(image: Image) -> tuple[str | None, ...]:
    """Return the files of a case."""
    if isinstance(image, str | Path):
        return (str(image),)
    return tuple(None if path is None else str(path) for path in image)


def _read(image: Image, voxels: bool) -> _Facts:
    """Return what of a case is compared, intensities only if its voxels shall be read."""
    paths = _images(image)
    if not voxels:
        header = read_header(next(path for path in paths if path is not None))
        return _Facts(_grid(header.shape, header.affine), None)
    grid: dict[str, list[float]] = {}
    found: list[dict[str, float] | None] = []
    for path in paths:
        scan = None if path is None else read_scan(path)
        grid = grid or ({} if scan is None else _grid(scan.array.shape, scan.affine))
        found.append(None if scan is None else _percentiles(describe_channel(scan.array)))
    return _Facts(grid, found)


def _grid(shape: Sequence[int], affine: ArrayLike) -> dict[str, list[float]]:
    """Return the quantities of `GRID` along x, y, z."""
    order = np.argsort(io_orientation(affine)[:, 0])
    spacing, voxels = np.array(spacing_from_affine(affine))[order], np.array((*shape, 1, 1, 1)[:3])[order]
    return {"spacing_mm": spacing.tolist(), "extent_mm": (spacing * voxels).tolist(), "voxels": voxels.tolist()}


def _percentiles(channel: Channel) -> dict[str, float]:
    """Return the percentiles of `INTENSITIES`."""
    return dict(zip(INTENSITIES, (channel.low, channel.median, channel.high), strict=True))


def _range_of(channels: Sequence[Mapping[str, float] | None]) -> dict[str, list[float]] | None:
    """Return the lowest and the highest of each percentile over the cases that have an image; None if none has."""
    own = [channel for channel in channels if channel is not None]
    if not own:
        return None
    return {name: [min(one[name] for one in own), max(one[name] for one in own)] for name in INTENSITIES}


def _joined(channels: Sequence[Mapping[str, Sequence[float]] | None]) -> dict[str, list[float]] | None:
    """Return the range of the percentiles of one image over several ranges; None if none has it."""
    own = [channel for channel in channels if channel is not None]
    if not own:
        return None
    return {name: [min(one[name][0] for one in own), max(one[name][1] for one in own)] for name in INTENSITIES}
