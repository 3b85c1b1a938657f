"""Voxel grids in space: spacing, orientation, volume, and whether two grids are the same.

Arrays are (X, Y, Z), the index order of the file; an affine is a (4, 4) matrix that maps a voxel's index to
its centre in the world, in mm, with x to the right, y to the front and z to the head (RAS).
"""

import itertools
from collections.abc import Sequence

import nibabel
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import ArrayLike, NDArray

from tomokit.errors import TomokitError


def spacing_from_affine(affine: ArrayLike) -> tuple[float, float, float]:
    """Return the distances between neighbouring voxels along the three index axes, in mm.

    Raises:
        TomokitError: when `affine` is not an invertible (4, 4) matrix.
    """
    x, y, z = voxel_sizes(check_affine(affine))
    return float(x), float(y), float(z)


def axis_codes(affine: ArrayLike) -> str:
    """Return the direction in which each index axis grows, such as "RAS"; oblique axes get the nearest.

    Letters are R(ight), L(eft), A(nterior), P(osterior), S(uperior), I(nferior).

    Raises:
        TomokitError: when `affine` is not an invertible (4, 4) matrix.
    """
    return "".join(nibabel.aff2axcodes(check_affine(affine)))


def voxel_volume_ml(affine: ArrayLike) -> float:
    """Return the volume of one voxel in ml (1 ml is 1,000 mm³), right for sheared grids too.

    Raises:
        TomokitError: when `affine` is not an invertible (4, 4) matrix.
    """
    return float(abs(np.linalg.det(check_affine(affine)[:3, :3]))) / 1000


def grid_difference(
    affine_a: ArrayLike,
    shape_a: Sequence[int],
    affine_b: ArrayLike,
    shape_b: Sequence[int],
    tolerance_mm: float = 0.01,
) -> str | None:
    """Return None when two grids are the same, else a sentence that says how they differ.

    Grids are the same when their shapes (X, Y, Z) are equal and corresponding corner voxels lie within
    `tolerance_mm` of each other; every other voxel is then at most as far apart.

    Raises:
        TomokitError: when an affine is not an invertible (4, 4) matrix.
    """
    affine_a, affine_b = check_affine(affine_a), check_affine(affine_b)
    shape_a, shape_b = tuple(map(int, shape_a)), tuple(map(int, shape_b))
    if shape_a != shape_b:
        return f"their shapes differ: {shape_a} and {shape_b} voxels"
    corners = np.array(list(itertools.product(*((0, size - 1) for size in shape_a))))
    moved = apply_affine(affine_a, corners) - apply_affine(affine_b, corners)
    worst = float(np.linalg.norm(moved, axis=1).max())
    if worst <= tolerance_mm:
        return None
    return (
        f"corresponding corner voxels are up to {worst:.3g} mm apart (tolerance {tolerance_mm:g} mm; "
        f"axes {axis_codes(affine_a)} and {axis_codes(affine_b)}, "
        f"spacing {_in_mm(affine_a)} and {_in_mm(affine_b)} mm)"
    )


def check_affine(affine: ArrayLike) -> NDArray[np.float64]:
    """Return `affine` as a (4, 4) array of float64.

    Raises:
        TomokitError: when it has another shape, is not finite or not invertible, or its last row is not 0 0 0
        1.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if (
        matrix.shape == (4, 4)
        and np.isfinite(matrix).all()
        and np.allclose(matrix[3], [0, 0, 0, 1])
        and np.linalg.matrix_rank(matrix[:3, :3]) == 3
    ):
        return matrix
    raise TomokitError(
        f"an affine must be an invertible (4, 4) matrix whose last row is 0 0 0 1, got {matrix.tolist()}; "
        "correct the header's orientation (sform, qform)"
    )


def _in_mm(affine: ArrayLike) -> str:
    """Return the spacing as readable text."""
    return " × ".join(f"{size:.4g}" for size in spacing_from_affine(affine))
