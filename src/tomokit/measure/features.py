"""Size, shape and intensity of a structure, as numbers named with their units; `SHAPE` and `INTENSITY` list them.

A mask is (X, Y, Z), bool; its affine (4, 4) maps a voxel's index to world RAS mm. A voxel counts as a box: lengths run
from edge to edge and a single voxel has its own size. What does not depend on directions is the same in any orientation
of the grid, oblique or not; extents, sections, asymmetries are along the patient's axes (x right, y front, z head).
A mask without a voxel measures 0 in everything: `volume_ml` tells it from a structure.
"""

import itertools
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import io_orientation
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist

from tomokit.errors import TomokitError
from tomokit.geometry import check_affine, spacing_from_affine, voxel_volume_ml
from tomokit.volumes import itk_image

PLACE = {
    "centre_x_mm": "centre of mass in world RAS coordinates, to the right",
    "centre_y_mm": "to the front",
    "centre_z_mm": "to the head",
}
SHAPE = {
    "volume_ml": "volume",
    "surface_mm2": "area of the surface",
    "surface_to_volume_per_mm": "surface over volume, 3 / radius for a ball",
    "equivalent_diameter_mm": "diameter of the ball of the same volume",
    "longest_diameter_mm": "largest distance of two of its points (Feret's diameter)",
    "extent_x_mm": "from its leftmost to its rightmost point",
    "extent_y_mm": "from its rearmost to its foremost point",
    "extent_z_mm": "from its lowest to its highest point",
    "axis_longest_mm": "longest axis of the ellipsoid with the same second moments",
    "axis_middle_mm": "middle axis of that ellipsoid",
    "axis_shortest_mm": "shortest axis of that ellipsoid",
    "elongation": "longest over middle axis, 1 or more",
    "flatness": "middle over shortest axis, 1 or more",
    "sphericity": "surface of the ball of the same volume over its own: 1 for a ball, less for other shapes",
    "solidity": "volume over that of its convex hull, at most 1",
    "spread": "root mean square distance from its centre, over that in the ball of the same volume, 1 or more",
    "depth_mean_mm": "mean distance of its voxels from its surface",
    "thickness_mean_mm": "mean thickness along its middle, thick parts weighing more",
    "thickness_sd_mm": "standard deviation of that thickness",
    "thickness_max_mm": "diameter of the largest ball inside",
    "section_x_mm2": "largest area of a slice across x (sagittal)",
    "section_y_mm2": "largest area of a slice across y (coronal)",
    "section_z_mm2": "largest area of a slice across z (axial)",
    "section_fill_x": "mean over largest area of its slices across x, 0–1: 1 for a prism, 2/3 for a ball",
    "section_fill_y": "the same across y",
    "section_fill_z": "the same across z",
    "asymmetry_x": "skewness of its mass along x: above 0 where it thins out to the right, below to the left",
    "asymmetry_y": "the same along y: above 0 where it thins out to the front",
    "asymmetry_z": "the same along z: above 0 where it thins out to the head",
    "taper": "skewness of its mass along its longest axis, without a sign",
    "pieces": "number of connected pieces; voxels that touch at a corner are of one",
    "largest_piece_share": "volume of the largest piece over the whole, 0–1",
    **PLACE,
}
INTENSITY = {  # in the image's own units, where there is no other
    "intensity_mean": "mean",
    "intensity_sd": "standard deviation",
    "intensity_p05": "5th percentile",
    "intensity_p25": "25th percentile",
    "intensity_p50": "median",
    "intensity_p75": "75th percentile",
    "intensity_p95": "95th percentile",
    "intensity_skewness": "skewness, without a unit",
    "intensity_kurtosis": "kurtosis less 3, without a unit: 0 for a normal distribution",
    "intensity_entropy_bits": "entropy of a histogram of 32 bins from its minimum to its maximum, 0–5 bits",
    "intensity_contrast": "mean inside less mean in the two voxels around; 0 where nothing is around",
}
PERCENTILES = (5, 25, 50, 75, 95)
ENTROPY_BINS = 32
RIM_VOXELS = 2
RIDGE_SLOPE = 0.4  # a voxel is in the middle where no neighbour is deeper by more than this part of a voxel
TOUCHING = np.ones((3, 3, 3), dtype=bool)
HULL_BLOCK = 1000  # points compared with all others at a time

Mask = NDArray[np.bool_]
Affine = NDArray[np.float64]
Measures = dict[str, float]


def measure_shape(mask: ArrayLike, affine: ArrayLike) -> Measures:
    """Return the measures of `SHAPE`, in its order, of a mask (X, Y, Z); all 0 where it has no voxel.

    Surface and thickness are taken in the grid's own frame, its axes at right angles, after the mask was interpolated
    to nearly cubic voxels. The surface is within 3 % for rounded shapes of 10 voxels and more across, up to 11 % too
    small for boxes along the axes, and too small for shapes of a few voxels, whose sphericity can pass 1. Thickness
    is right within half of the finest spacing. About 50 bytes are taken for each voxel of the mask's box.

    Raises:
        TomokitError: when the mask has not three axes, or `affine` is not an invertible (4, 4) matrix.
    Source: Lehmann and Legland, Efficient N-dimensional surface estimation using Crofton formula and run-length
        encoding, Insight Journal (2012), in SimpleITK, for the surface; Raya and Udupa, Shape-based interpolation of
        multidimensional objects, IEEE Transactions on Medical Imaging 9 (1990), for the cubic voxels.
    """
    mask, affine = _check_mask(mask), check_affine(affine)
    if not mask.any():
        return dict.fromkeys(SHAPE, 0.0)
    mask, affine = _crop(mask, affine)
    cubic, spacing = refine(mask, spacing_from_affine(affine))
    found = {
        **_measure_mass(mask, affine),
        **measure_outline(mask, affine),
        **measure_surface(cubic, spacing, _volume_mm3(mask, affine)),
        **_measure_thickness(cubic, spacing),
        **_measure_sections(mask, affine),
        **_measure_pieces(mask),
    }
    return {name: float(found[name]) for name in SHAPE}


def measure_intensity(image: ArrayLike, mask: ArrayLike) -> Measures:
    """Return the measures of `INTENSITY`, in its order, of an image (X, Y, Z) in a mask; all 0 where it has no voxel.

    Raises:
        TomokitError: when image and mask differ in shape or have not three axes, or an intensity in or around the mask
            is not finite.
    """
    image, mask = np.asarray(image), _check_mask(mask)
    if image.shape != mask.shape:
        raise TomokitError(f"image {image.shape} and mask {mask.shape} differ in shape; resample one of them")
    if not mask.any():
        return dict.fromkeys(INTENSITY, 0.0)
    values, around = _intensities(image, mask)
    percentiles = np.percentile(values, PERCENTILES)
    names = [f"intensity_p{part:02d}" for part in PERCENTILES]
    found: dict[str, Any] = dict(zip(names, percentiles, strict=True))
    found |= {"intensity_mean": values.mean(), "intensity_sd": 0.0, "intensity_entropy_bits": 0.0}
    found |= {"intensity_skewness": 0.0, "intensity_kurtosis": 0.0}
    found["intensity_contrast"] = values.mean() - around.mean() if around.size else 0.0
    width = np.ptp(values)
    if width > 0:  # all alike, the sum's rounding would pass for a spread
        sd = values.std()
        standard = (values - values.mean()) / sd
        found |= {"intensity_sd": sd, "intensity_entropy_bits": _entropy_bits((values - values.min()) / width)}
        found |= {"intensity_skewness": (standard**3).mean(), "intensity_kurtosis": (standard**4).mean() - 3}
    return {name: float(found[name]) for name in INTENSITY}


def measure_case(image: ArrayLike, mask: ArrayLike, affine: ArrayLike) -> Measures:
    """Return the shape of a mask (X, Y, Z) and the intensities of an image within it: `SHAPE`, then `INTENSITY`.

    Raises:
        TomokitError: as `measure_shape` and `measure_intensity`.
    """
    return measure_shape(mask, affine) | measure_intensity(image, mask)


def measure_features(
    image: ArrayLike, affine: ArrayLike, mask: ArrayLike | None = None, mask_above: float | None = None
) -> Measures:
    """Return what a classifier may see of a case, as `feature_names` lists it.

    Args:
        image: (X, Y, Z).
        affine: its voxel to world matrix (4, 4).
        mask: the structure (X, Y, Z): its shape is measured, and the image's intensities within it.
        mask_above: without a mask, the image is one itself: voxels above this value are the structure, whose shape
            alone is measured. Without either, the intensities of the whole image are.

    Raises:
        TomokitError: as `measure_shape` and `measure_intensity`.
    """
    if mask is not None:
        found = measure_case(image, mask, affine)
    elif mask_above is not None:
        found = measure_shape(np.asarray(image) > mask_above, affine)
    else:
        found = measure_intensity(image, np.ones(np.shape(image), dtype=bool))
    return {name: found[name] for name in feature_names(mask is not None, mask_above)}


def feature_names(masked: bool, mask_above: float | None = None) -> list[str]:
    """Return the names of a case's features: no place, which tells of the scanner's table and not of the patient."""
    shape = [name for name in SHAPE if name not in PLACE]
    if masked:
        return [*shape, *INTENSITY]
    return list(INTENSITY) if mask_above is None else shape


def _check_mask(mask: ArrayLike) -> Mask:
    """Return the mask as an array of bool."""
    array = np.asarray(mask, dtype=bool)
    if array.ndim != 3:
        raise TomokitError(f"a mask must have three axes (X, Y, Z), got the shape {array.shape}; add or drop an axis")
    return array


def _crop(mask: Mask, affine: Affine) -> tuple[Mask, Affine]:
    """Return the part of a mask that holds its voxels, and the affine of that part."""
    box = ndimage.find_objects(mask.view(np.uint8))[0]
    moved = affine.copy()
    moved[:3, 3] = apply_affine(affine, [part.start for part in box])
    return mask[box], moved


def _volume_mm3(mask: Mask, affine: Affine) -> float:
    """Return the volume of a mask in mm³."""
    return int(np.count_nonzero(mask)) * voxel_volume_ml(affine) * 1000


def _ball_radius_mm(volume_mm3: float) -> float:
    """Return the radius of the ball of a volume."""
    return float(np.cbrt(3 * volume_mm3 / (4 * np.pi)))


def _measure_mass(mask: Mask, affine: Affine) -> dict[str, Any]:
    """Return volume, centre, axes, and how the mass lies about the centre."""
    points = apply_affine(affine, np.argwhere(mask))
    centre = points.mean(axis=0)
    offsets = points - centre
    cell = affine[:3, :3]
    # ITK takes voxels for points: a single slice then has no thickness, and a single voxel no axes
    covariance = offsets.T @ offsets / len(offsets) + cell @ cell.T / 12
    moments, axes = np.linalg.eigh(covariance)
    shortest, middle, longest = 2 * np.sqrt(5 * moments)
    along = offsets @ axes[:, 2]
    volume = _volume_mm3(mask, affine)
    radius = _ball_radius_mm(volume)
    found = {
        "volume_ml": volume / 1000,
        "equivalent_diameter_mm": 2 * radius,
        "axis_longest_mm": longest,
        "axis_middle_mm": middle,
        "axis_shortest_mm": shortest,
        "elongation": longest / middle,
        "flatness": middle / shortest,
        "spread": np.sqrt(np.trace(covariance) / 0.6) / radius,
        "taper": abs((along**3).mean()) / moments[2] ** 1.5,
    }
    skewness = (offsets**3).mean(axis=0) / np.diag(covariance) ** 1.5
    return found | _by_axis("centre_{}_mm", centre) | _by_axis("asymmetry_{}", skewness)


def measure_outline(mask: Mask, affine: Affine) -> dict[str, Any]:
    """Return what follows from the outermost corners of the voxels: extents, longest diameter and solidity."""
    corners = outer_corners(mask)
    hull = ConvexHull(corners)
    points = apply_affine(affine, corners[hull.vertices])
    blocks = np.array_split(points, len(points) // HULL_BLOCK + 1)  # the table of all pairs could fill the memory
    return {
        "longest_diameter_mm": max(float(cdist(block, points).max()) for block in blocks),
        "solidity": np.count_nonzero(mask) / hull.volume,
        **_by_axis("extent_{}_mm", np.ptp(points, axis=0)),
    }


def outer_corners(mask: Mask) -> NDArray[np.float64]:
    """Return the index coordinates (N, axes) of the first and last corner of a voxel on each line along the first axis.

    Of a mask (X, Y, Z), or of one slice (X, Y).
    """
    corners = np.zeros([length + 1 for length in mask.shape], dtype=bool)
    for start in itertools.product((0, 1), repeat=mask.ndim):
        corners[tuple(slice(first, first + length) for first, length in zip(start, mask.shape, strict=True))] |= mask
    lines = corners.any(axis=0)
    first = corners.argmax(axis=0)[lines]
    last = corners.shape[0] - 1 - corners[::-1].argmax(axis=0)[lines]
    across = np.argwhere(lines)
    ends = [np.column_stack([end, across]) for end in (first, last)]
    return np.concatenate(ends) - 0.5


def refine(mask: Mask, spacing: tuple[float, float, float]) -> tuple[Mask, tuple[float, ...]]:
    """Return a mask on nearly cubic voxels, a margin around it, and their spacing in mm.

    The distance from the surface is interpolated, not the mask, which keeps oblique surfaces smooth. One axis at a
    time, the coarsest first: then no voxel vanishes.
    """
    mask, sizes = np.pad(mask, 1), list(spacing)
    for axis in sorted(range(3), key=lambda number: -spacing[number]):
        parts = round(spacing[axis] / min(spacing))
        if parts == 1:
            continue
        inside, outside = (ndimage.distance_transform_edt(part, sampling=sizes) for part in (mask, ~mask))
        zoom = [parts if other == axis else 1 for other in range(3)]
        mask = ndimage.zoom(inside - outside, zoom, order=1, mode="nearest", grid_mode=True) > 0
        sizes[axis] /= parts
    return mask, tuple(sizes)


def measure_surface(mask: Mask, spacing: tuple[float, ...], volume_mm3: float) -> dict[str, Any]:
    """Return the surface of a mask of nearly cubic voxels, which ITK's weights of directions hold for, and ratios."""
    import SimpleITK as sitk

    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.ComputePerimeterOn()
    statistics.Execute(itk_image(mask.astype(np.uint8), np.diag([*spacing, 1.0])))
    surface = statistics.GetPerimeter(1)
    return {
        "surface_mm2": surface,
        "surface_to_volume_per_mm": surface / volume_mm3,
        "sphericity": 4 * np.pi * _ball_radius_mm(volume_mm3) ** 2 / surface,
    }


def _measure_thickness(mask: Mask, spacing: tuple[float, ...]) -> dict[str, Any]:
    """Return depth and thickness of a mask of nearly cubic voxels with a margin.

    Distances run to the centre of the next voxel outside, half a voxel too far. In the middle the voxel is up to half a
    voxel off the true middle as well, so that twice the distance is between 0 and 1 voxel too much.
    """
    finest = min(spacing)
    depth = ndimage.distance_transform_edt(mask, sampling=spacing)
    middle = mask & (depth > ndimage.maximum_filter(depth, 3) - RIDGE_SLOPE * finest)
    thickness = 2 * depth[middle] - finest / 2
    weights = thickness**2  # about its cross-section, so that single voxels on a rough surface count little
    mean = np.average(thickness, weights=weights)
    return {
        "depth_mean_mm": depth[mask].mean() - finest / 2,
        "thickness_mean_mm": mean,
        "thickness_sd_mm": np.sqrt(np.average((thickness - mean) ** 2, weights=weights)),
        "thickness_max_mm": thickness.max(),
    }


def _measure_sections(mask: Mask, affine: Affine) -> dict[str, Any]:
    """Return the slices' areas across the patient's axes; slices of an oblique grid go to the nearest axis."""
    spacing = spacing_from_affine(affine)
    largest, fill = np.zeros(3), np.zeros(3)
    for axis, place in enumerate(io_orientation(affine)[:, 0].astype(int)):
        one, other = (number for number in range(3) if number != axis)
        areas = np.count_nonzero(mask, axis=(one, other)) * spacing[one] * spacing[other]
        largest[place], fill[place] = areas.max(), areas.mean() / areas.max()
    return _by_axis("section_{}_mm2", largest) | _by_axis("section_fill_{}", fill)


def _measure_pieces(mask: Mask) -> dict[str, Any]:
    """Return how many pieces a mask has, and the largest one's part."""
    numbers, count = ndimage.label(mask, TOUCHING)
    sizes = np.bincount(numbers.ravel())[1:]
    return {"pieces": count, "largest_piece_share": sizes.max() / sizes.sum()}


def _intensities(image: NDArray[Any], mask: Mask) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the intensities in a mask, and those in the rim around it."""
    found = ndimage.find_objects(mask.view(np.uint8))[0]
    box = tuple(slice(max(part.start - RIM_VOXELS, 0), part.stop + RIM_VOXELS) for part in found)
    image, mask = image[box], mask[box]
    rim = ~mask  # of a whole image, nothing
    if rim.any():
        rim &= ndimage.binary_dilation(mask, iterations=RIM_VOXELS)
    values, around = image[mask].astype(np.float64), image[rim].astype(np.float64)
    wrong = sum(int(np.count_nonzero(~np.isfinite(part))) for part in (values, around))
    if wrong:
        raise TomokitError(f"the image has {wrong} intensities that are not finite in or around the mask; replace them")
    return values, around


def _entropy_bits(values: NDArray[np.float64]) -> float:
    """Return the entropy of the histogram of values in 0–1."""
    shares = np.histogram(values, ENTROPY_BINS, (0.0, 1.0))[0] / values.size
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def _by_axis(name: str, values: ArrayLike) -> dict[str, Any]:
    """Return three values under the names of the patient's axes."""
    return {name.format(axis): value for axis, value in zip("xyz", np.asarray(values), strict=True)}
