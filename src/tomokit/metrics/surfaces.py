"""Distances between the surfaces of two masks in mm: the share within a tolerance, and the far tail."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from monai.metrics.utils import get_code_to_measure_table
from numpy.typing import NDArray
from scipy.spatial import KDTree

from tomokit.errors import TomokitError
from tomokit.metrics.boxes import common_box

TAIL = 0.95
SLACK = 1e-6  # of a distance: rounding must not put three voxels of 0.1 mm beyond a tolerance of 0.3 mm


class SurfaceScores(NamedTuple):
    """How two surfaces agree: the normalised surface Dice, 0–1, and the 95th percentile of their distances in mm."""

    nsd: float | None
    hd95_mm: float | None


class Surface(NamedTuple):
    """The pieces of a surface: their places in mm (N, axes), and their areas in mm², or lengths of an outline, (N,)."""

    places: NDArray[np.float64]
    areas: NDArray[np.float64]


def compare_surfaces(
    prediction: NDArray[Any], truth: NDArray[Any], spacing: Sequence[float], tolerance_mm: float
) -> SurfaceScores:
    """Return how the surfaces of two masks (X, Y, Z) agree; of one slice (X, Y, 1), their outlines.

    The NSD is the share of both surfaces that lies within `tolerance_mm` of the other; each piece of surface counts by
    its area. The distance is the greater one of both directions' 95th percentiles, likewise by area. Both are None
    where neither mask has a voxel; where only one has, the NSD is 0, and there is no distance.

    Args:
        prediction: bool.
        truth: bool, on the same grid.
        spacing: of the voxels along X, Y, Z in mm.
        tolerance_mm: how far a surface may lie away and still be right.

    Raises:
        TomokitError: when the shapes differ, or the tolerance is not above 0.
    Source: Nikolov et al., Deep learning to achieve clinically applicable segmentation of head and neck anatomy for
        radiotherapy, arXiv 1809.04430; Huttenlocher et al., IEEE PAMI 15 (1993). The areas are MONAI's.
    """
    if prediction.shape != truth.shape:
        raise TomokitError(f"prediction {prediction.shape} and truth {truth.shape} must have the same shape")
    check_tolerance(tolerance_mm)
    if not prediction.any() or not truth.any():
        return SurfaceScores(0.0 if prediction.any() or truth.any() else None, None)
    box = common_box(prediction, truth)
    one, two = (_surface(mask[box], spacing) for mask in (prediction, truth))
    both = [(KDTree(other.places).query(own.places)[0], own.areas) for own, other in ((one, two), (two, one))]
    within = sum(float(areas[far <= tolerance_mm * (1 + SLACK)].sum()) for far, areas in both)
    total = float(one.areas.sum() + two.areas.sum())
    return SurfaceScores(within / total, max(_weighted_quantile(far, areas, TAIL) for far, areas in both))


def check_tolerance(tolerance_mm: float) -> None:
    """Raise when a tolerance is not above 0.

    Raises:
        TomokitError: which tells it.
    """
    if not tolerance_mm > 0:
        raise TomokitError(f"`tolerance_mm` must be above 0, such as 1.0, got {tolerance_mm}")


def _surface(mask: NDArray[np.bool_], spacing: Sequence[float]) -> Surface:
    """Return the surface of a mask that has a voxel: a piece within each 2 × 2 × 2 voxels that are not all alike.

    Each such block is told by a number of eight bits, one a voxel, of which MONAI has the area. Its own function takes
    the numbers by a convolution, with tens of bytes a voxel; here it is one.
    """
    if mask.shape[-1] == 1:
        mask, spacing = mask[..., 0], spacing[:2]
    table, weights = (part.numpy() for part in get_code_to_measure_table([float(size) for size in spacing]))
    padded = np.pad(mask, 1).view(np.uint8)
    shape = [size - 1 for size in padded.shape]
    codes = np.zeros(shape, np.uint8)
    for corner in np.ndindex(*(2,) * mask.ndim):
        block = tuple(slice(first, first + size) for first, size in zip(corner, shape, strict=True))
        codes |= padded[block] * np.uint8(weights[0, 0][corner])
    mixed = (codes > 0) & (codes < len(table) - 1)
    return Surface(np.argwhere(mixed) * np.asarray(spacing, dtype=float), table[codes[mixed]].astype(float))


def _weighted_quantile(values: NDArray[np.float64], weights: NDArray[np.float64], share: float) -> float:
    """Return the least value that as much of the weight as `share` does not exceed."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(reached, share)), len(values) - 1)])
