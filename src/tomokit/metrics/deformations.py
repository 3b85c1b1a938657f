"""How a displacement bends space, and how near it brings landmarks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tomokit.errors import TomokitError


def jacobian_determinants(displacement: ArrayLike, spacing: Sequence[float]) -> NDArray[np.float64]:
    """Return how the volume of each voxel changes, (X, Y, Z): 1 nothing, 0 or less where space is folded.

    Slopes are those from a voxel's one neighbour to its other, at the edge from the voxel itself.

    Args:
        displacement: (3, X, Y, Z) in mm, along the grid's own axes.
        spacing: of the voxels along X, Y, Z in mm.

    Raises:
        TomokitError: when the shape is another, an axis has fewer than two voxels, the spacing is not above 0, or a
            displacement is not finite: it would not count as a fold.
    """
    field = np.asarray(displacement, dtype=float)
    if field.ndim != 4 or field.shape[0] != 3 or min(field.shape[1:]) < 2:
        raise TomokitError(f"a displacement must be (3, X, Y, Z), two voxels or more each way, got {field.shape}")
    if len(spacing) != 3 or min(spacing) <= 0:
        raise TomokitError(f"spacing must be three positive numbers in mm, got {tuple(spacing)}")
    if wrong := int((~np.isfinite(field)).sum()):
        raise TomokitError(f"a displacement must be finite, got {wrong} of {field.size} numbers that are not")
    slopes = np.stack([np.stack(np.gradient(own, *spacing)) for own in field])  # (component, axis, X, Y, Z)
    moved: NDArray[np.float64] = np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1)) + np.eye(3))
    return moved


def share_folded(determinants: ArrayLike) -> float:
    """Return the share of voxels, 0–1, at which space is folded: a determinant of 0 or less."""
    return float((np.asarray(determinants) <= 0).mean())


def spread_of_volume(determinants: ArrayLike) -> float:
    """Return the standard deviation of the logarithm of the determinants (SDlogJ): 0 where nothing is bent.

    Determinants below 1e-9, folds among them, count as that.

    Source: Leow et al., Statistical properties of Jacobian maps, IEEE Transactions on Medical Imaging 26 (2007).
    """
    return float(np.log(np.clip(determinants, 1e-9, None)).std())


def landmark_error_mm(moved: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return how far each landmark (N, 3) in world mm lies from where it should (N,): the target registration error.

    Raises:
        TomokitError: when the shapes differ or are no points.
    """
    one, two = np.asarray(moved, dtype=float), np.asarray(truth, dtype=float)
    if one.shape != two.shape or one.ndim != 2 or one.shape[1] != 3:
        raise TomokitError(f"landmarks must be (N, 3) in world mm, both alike, got {one.shape} and {two.shape}")
    return np.asarray(np.linalg.norm(one - two, axis=1))
