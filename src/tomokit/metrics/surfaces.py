"""Distances between the surfaces of two masks in mm: the share within a tolerance, and the far tail."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.metrics.utils import get_edge_surface_distance
from numpy.typing import NDArray

from tomokit.errors import TomokitError

TAIL = 0.95


class SurfaceScores(NamedTuple):
    """How two surfaces agree: the normalised surface Dice, 0–1, and the 95th percentile of their distances in mm."""

    nsd: float | None
    hd95_mm: float | None


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
    flat = prediction.shape[-1] == 1
    box = _common_box(prediction | truth)
    masks = [torch.from_numpy(np.pad(mask[box], 1).astype(np.uint8)) for mask in (prediction, truth)]
    masks = [mask[..., 1] if flat else mask for mask in masks]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of MONAI's own call of what it deprecates
        found = get_edge_surface_distance(
            masks[0], masks[1], spacing=list(spacing[: 2 if flat else 3]), use_subvoxels=True, symmetric=True
        )
    both = [
        (torch.as_tensor(own).double().numpy(), torch.as_tensor(size)[torch.as_tensor(edges) > 0].double().numpy())
        for edges, own, size in zip(*found, strict=True)
    ]
    within = sum(float(size[own <= tolerance_mm].sum()) for own, size in both)
    total = sum(float(size.sum()) for _, size in both)
    return SurfaceScores(within / total, max(_weighted_quantile(own, size, TAIL) for own, size in both))


def check_tolerance(tolerance_mm: float) -> None:
    """Raise when a tolerance is not above 0.

    Raises:
        TomokitError: which tells it.
    """
    if not tolerance_mm > 0:
        raise TomokitError(f"`tolerance_mm` must be above 0, such as 1.0, got {tolerance_mm}")


def _common_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the box that holds a mask's voxels."""
    box = []
    for axis in range(mask.ndim):
        here = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(here[0]), int(here[-1]) + 1))
    return tuple(box)


def _weighted_quantile(values: NDArray[np.float64], weights: NDArray[np.float64], share: float) -> float:
    """Return the least value that as much of the weight as `share` does not exceed."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(reached, share)), len(values) - 1)])
