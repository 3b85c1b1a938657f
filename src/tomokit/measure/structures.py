"""Each structure and each lesion of a label map, in the numbers that a report tells; `COLUMNS` lists them.

A label map is (X, Y, Z); its affine (4, 4) maps a voxel's index to world RAS mm. A voxel counts as a box: lengths run
from edge to edge, so that a smooth shape measures up to a voxel's diagonal too much. Axial slices are those of the grid
across the axis nearest to the patient's, from feet to head, as they are looked at: of an oblique grid they are as
oblique, and lengths within them are true ones. In any orientation of the grid the measures in mm are the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import io_orientation
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist

from tomokit.errors import TomokitError
from tomokit.geometry import check_affine, spacing_from_affine, voxel_volume_ml
from tomokit.labels import find_lesions, foreground
from tomokit.measure.features import (
    TOUCHING,
    Affine,
    Mask,
    measure_outline,
    measure_surface,
    outer_corners,
    refine,
)

DENSITY = {  # of the image inside
    "density_mean": "mean",
    "density_sd": "standard deviation",
    "density_median": "median",
    "density_p05": "5th percentile",
    "density_p95": "95th percentile",
    "density_unit": "unit of these: HU of a CT; empty where the scan's numbers have none",
}
COLUMNS = {
    "structure": "name in the label map",
    "piece": "empty for the whole structure; 1, 2, … for the connected pieces of a lesion, the largest first",
    "voxels": "number of voxels; what a structure without one has no value for is empty",
    "volume_ml": "volume",
    "pieces": "number of connected pieces; voxels that touch at a corner are of one",
    "axial_longest_mm": "longest diameter within one axial slice",
    "axial_short_mm": "longest line at a right angle to it in that slice",
    "axial_slice": "that slice's index in the file, from 0",
    "axial_axis": "the axis of the file along which slices are counted, 0 to 2",
    "axial_longest_ends_mm": "ends of the longest diameter, world RAS",
    "axial_short_ends_mm": "ends of the line across it, world RAS",
    "longest_diameter_mm": "largest distance of two of its points",
    "box_first": "lowest index along each axis of the file, from 0",
    "box_last": "highest index along each axis of the file",
    "extent_mm": "size along the patient's axes: to the right, to the front, to the head",
    "centre_mm": "centre of mass, world RAS",
    "sphericity": "surface of the ball of the same volume over its own: 1 for a ball, less for other shapes",
    "touches_edge": "whether it reaches the edge of the scan, which may cut it off",
    **DENSITY,
}
MOST_PIECES = 100  # of a lesion that get a row each; `pieces` tells how many there are
SAME_MM = 1e-6  # lengths that differ by less are the same
PLACES = 4  # decimals of mm by which points are put in order

Points = NDArray[np.float64]
Box = tuple[slice, ...]
Row = dict[str, Any]


class _Scan(NamedTuple):
    """What all structures of a label map share."""

    affine: Affine
    shape: tuple[int, ...]
    image: NDArray[Any] | None
    unit: str


class _Line(NamedTuple):
    """A line by its length in mm and its two ends (2, 3) in world RAS mm."""

    length: float
    ends: Points


def measure_structures(
    label_map: ArrayLike,
    labels: Mapping[str, str] | Mapping[int, str],
    affine: ArrayLike,
    image: ArrayLike | None = None,
    lesions: Sequence[str] | None = None,
    unit: str = "",
) -> list[Row]:
    """Return a row with the measures of `COLUMNS` for each structure, and one for each piece of those that are lesions.

    Diameters are of the convex hull: of a crescent they may leave it. Of slices in which the longest diameter is the
    same, the one nearest to the structure's middle is told.

    Args:
        label_map: (X, Y, Z), whole numbers.
        labels: its values' names, `{"0": "background", "1": "liver", …}`.
        affine: its voxel to world matrix (4, 4).
        image: (X, Y, Z) on the same grid, whose density is told; None tells none.
        lesions: the names of lesions; None takes those that `find_lesions` knows by their names.
        unit: of the image's values, such as "HU".

    Raises:
        TomokitError: when label map or image have other axes than three or the other's, hold values that are not
            expected, a lesion is not in the label map, or the affine is not invertible.
    Source: Eisenhauer et al., New response evaluation criteria in solid tumours: revised RECIST guideline (version
        1.1), European Journal of Cancer 45 (2009), for the diameters in the axial plane.
    """
    names = foreground(labels)
    array = _check_label_map(label_map, len(names))
    scan = _Scan(check_affine(affine), array.shape, _check_image(image, array.shape), unit)
    ill = _check_lesions(labels, names, lesions)
    boxes = dict(enumerate(ndimage.find_objects(array), start=1))
    rows: list[Row] = []
    for value, name in names.items():
        if (box := boxes.get(value)) is None:
            rows.append({**dict.fromkeys(COLUMNS), **_named(name, "", 0), "voxels": 0, "volume_ml": 0.0})
        else:
            rows += _measure_structure(name, array[box] == value, box, scan, name in ill)
    return rows


def _check_label_map(label_map: ArrayLike, count: int) -> NDArray[Any]:
    """Return a label map whose values are all told."""
    array = np.asarray(label_map)
    if array.ndim != 3:
        raise TomokitError(f"a label map must have three axes (X, Y, Z), got {array.shape}; add or drop an axis")
    if array.dtype.kind not in "iu":
        raise TomokitError(f"a label map must hold whole numbers, got {array.dtype}; round it, or give the right array")
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    if low < 0 or high > count:
        raise TomokitError(f"the label map holds values from {low} to {high}, `labels` names 0 to {count}; correct one")
    return array


def _check_image(image: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """Return an image that lies on the label map's grid, or None without one."""
    if image is None:
        return None
    array = np.asarray(image)
    if array.shape != shape:
        raise TomokitError(f"image {array.shape} and label map {shape} differ in shape; resample one of them")
    return array


def _check_lesions(
    labels: Mapping[str, str] | Mapping[int, str], names: Mapping[int, str], lesions: Sequence[str] | None
) -> list[str]:
    """Return the names of the lesions, given or found."""
    if lesions is None:
        return find_lesions(labels)
    if unknown := [name for name in lesions if name not in names.values()]:
        raise TomokitError(f"`lesions` names {unknown}, the label map has {list(names.values())}; correct `lesions`")
    return list(lesions)


def _named(name: str, piece: int | str, pieces: int) -> Row:
    """Return what tells a row from the others."""
    return {"structure": name, "piece": piece, "pieces": pieces}


def _measure_structure(name: str, mask: Mask, box: Box, scan: _Scan, lesion: bool) -> list[Row]:
    """Return the row of a structure, a mask in its box, and of a lesion those of its pieces."""
    numbers, count = ndimage.label(mask, TOUCHING)
    rows = [_ordered(_named(name, "", count) | _measure_mask(mask, box, scan))]
    if not lesion:
        return rows
    places = ndimage.find_objects(numbers)
    largest = np.argsort(-np.bincount(numbers.ravel())[1:], kind="stable")[:MOST_PIECES]
    found = []
    for number in largest:
        own = places[number]
        outer = tuple(slice(part.start + a.start, part.start + a.stop) for part, a in zip(box, own, strict=True))
        found.append(_measure_mask(numbers[own] == number + 1, outer, scan))
    found.sort(key=lambda row: (-row["voxels"], np.round(row["centre_mm"], PLACES).tolist()))
    return rows + [_ordered(_named(name, piece, 1) | row) for piece, row in enumerate(found, start=1)]


def _ordered(row: Row) -> Row:
    """Return a row in the order of `COLUMNS`, None where it has no value."""
    return {name: row.get(name) for name in COLUMNS}


def _measure_mask(mask: Mask, box: Box, scan: _Scan) -> Row:
    """Return the measures of a mask in its box."""
    first = [part.start for part in box]
    affine = scan.affine.copy()
    affine[:3, 3] = apply_affine(affine, first)
    voxels = int(np.count_nonzero(mask))
    volume_ml = voxels * voxel_volume_ml(affine)
    outline = measure_outline(mask, affine)
    surface = measure_surface(*refine(mask, spacing_from_affine(affine)), volume_ml * 1000)
    return {
        "voxels": voxels,
        "volume_ml": volume_ml,
        **_measure_axial(mask, affine, first),
        "longest_diameter_mm": float(outline["longest_diameter_mm"]),
        "box_first": first,
        "box_last": [part.stop - 1 for part in box],
        "extent_mm": [float(outline[f"extent_{axis}_mm"]) for axis in "xyz"],
        "centre_mm": apply_affine(affine, ndimage.center_of_mass(mask)).tolist(),
        "sphericity": float(surface["sphericity"]),
        "touches_edge": any(
            part.start == 0 or part.stop == length for part, length in zip(box, scan.shape, strict=True)
        ),
        **({} if scan.image is None else _measure_density(scan.image[box][mask], scan.unit)),
    }


def _measure_density(values: NDArray[Any], unit: str) -> Row:
    """Return the measures of `DENSITY` of an image's values in a mask."""
    values = values.astype(np.float64)
    if wrong := int(np.count_nonzero(~np.isfinite(values))):
        raise TomokitError(f"the image has {wrong} intensities that are not finite in a structure; replace them")
    low, median, high = np.percentile(values, (5, 50, 95))
    found = (values.mean(), values.std(), median, low, high)
    return {**dict(zip(DENSITY, map(float, found), strict=False)), "density_unit": unit}


# Diameters in axial slices


def _measure_axial(mask: Mask, affine: Affine, first: Sequence[int]) -> Row:
    """Return the longest diameter within one axial slice and the longest line across it, with their places."""
    axis = int(np.flatnonzero(io_orientation(affine)[:, 0] == 2)[0])
    slices = np.moveaxis(mask, axis, 0)
    inside = [number for number in range(3) if number != axis]
    limits = _limits(slices, affine[:3, inside])
    best: tuple[Any, int, Points, _Line] | None = None
    for place in np.argsort(-limits, kind="stable"):
        if best is not None and limits[place] < best[3].length - SAME_MM:
            break
        points = _outline_of(slices[place], int(place), axis, affine)
        line = _longest(points)
        off = abs(place - (len(slices) - 1) / 2), apply_affine(affine, np.eye(3)[axis] * place)[2]
        rank = (-round(line.length / SAME_MM) * SAME_MM, *off)
        if best is None or rank < best[0]:
            best = rank, int(place), points, line
    assert best is not None, "a mask has a voxel"
    _, place, points, line = best
    short = _across(points, line)
    return {
        "axial_longest_mm": line.length,
        "axial_short_mm": short.length,
        "axial_slice": first[axis] + place,
        "axial_axis": axis,
        "axial_longest_ends_mm": line.ends.tolist(),
        "axial_short_ends_mm": short.ends.tolist(),
    }


def _limits(slices: Mask, steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a length in mm for each slice that none in it exceeds: the diagonal of its box; -1 of an empty slice."""
    edges = []
    for other in (2, 1):
        held = np.asarray(slices.any(axis=other))
        last = held.shape[1] - held[:, ::-1].argmax(axis=1)
        edges.append((last - held.argmax(axis=1))[:, None] * steps[:, 2 - other])
    diagonals = np.linalg.norm([edges[0] + edges[1], edges[0] - edges[1]], axis=2).max(axis=0)
    return np.where(slices.any(axis=(1, 2)), diagonals, -1.0)


def _outline_of(plane: Mask, place: int, axis: int, affine: Affine) -> Points:
    """Return the corners (N, 3) of a slice's convex hull in world RAS mm, in their order around it."""
    corners = outer_corners(plane)
    corners = corners[ConvexHull(corners).vertices]
    return apply_affine(affine, np.insert(corners, axis, place, axis=1))


def _longest(points: Points) -> _Line:
    """Return the longest line between two points."""
    lengths = cdist(points, points)
    pairs = np.argwhere(np.triu(lengths >= lengths.max() - SAME_MM, 1))
    return _first_line(points[pairs])


def _across(points: Points, line: _Line) -> _Line:
    """Return the longest line at a right angle to another one within a convex outline in a plane.

    How long such a line is changes evenly between two corners, so that the longest one begins or ends in a corner.
    """
    start, end = line.ends
    along = (end - start) / line.length
    offsets = points - start
    normal = np.cross(along, offsets[np.linalg.norm(np.cross(along, offsets), axis=1).argmax()])
    side = np.cross(normal / np.linalg.norm(normal), along)
    far, high = offsets @ along, offsets @ side
    with np.errstate(divide="ignore", invalid="ignore"):  # of edges at a right angle the corners count
        part = (far[:, None] - far) / (np.roll(far, -1) - far)  # of each edge, where the line of each corner meets it
        met = np.where((part >= 0) & (part <= 1), high + part * (np.roll(high, -1) - high), np.nan)
    ends = [start + far[:, None] * along + edge(met, axis=1)[:, None] * side for edge in (np.nanmin, np.nanmax)]
    return _first_line(np.stack(ends, axis=1))


def _first_line(lines: Points) -> _Line:
    """Return the longest of lines (N, 2, 3), of several the first one by its place in the world, ends in that order."""
    lengths = np.linalg.norm(lines[:, 1] - lines[:, 0], axis=1)
    longest = [sorted(line.tolist(), key=_order) for line in lines[lengths >= lengths.max() - SAME_MM]]
    return _Line(float(lengths.max()), np.array(min(longest, key=lambda line: [_order(end) for end in line])))


def _order(point: Sequence[float]) -> list[float]:
    """Return what puts points in order, blind to rounding errors."""
    return np.round(point, PLACES).tolist()
