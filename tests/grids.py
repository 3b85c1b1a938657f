"""Grids that lie obliquely in the world."""

import nibabel
import numpy as np
from scipy.spatial.transform import Rotation


def oblique_affine(codes: str, shape, spacing=(1.5, 1.5, 3.0)) -> np.ndarray:
    """Return an affine with axes along `codes`, then turned by 12° about an oblique axis and moved."""
    axes = nibabel.orientations.axcodes2ornt(codes)
    affine = nibabel.orientations.inv_ornt_aff(axes, shape) @ np.diag([*spacing, 1.0])
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec(np.deg2rad(12) * np.array([0.6, 0.0, 0.8])).as_matrix()
    affine = turn @ affine
    affine[:3, 3] += (40.0, -25.0, 310.0)
    return affine
