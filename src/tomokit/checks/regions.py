"""The regions of a label map: volume, place and pieces of each structure."""

from typing import Any, NamedTuple

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from tomokit.geometry import voxel_volume_ml

TOUCHING = np.ones((3, 3, 3), dtype=bool)  # voxels that share a face, an edge or a corner


class Region(NamedTuple):
    """One structure: voxels, volume in ml, centre in world RAS mm, and its pieces' voxels, largest first."""

    voxels: int
    volume_ml: float
    centre_mm: tuple[float, float, float]
    pieces: tuple[int, ...]


def measure_regions(label: NDArray[Any], affine: NDArray[np.float64]) -> dict[int, Region]:
    """Return the region of each value but 0 in a label map (X, Y, Z) of integers; `affine` maps to RAS mm."""
    voxel_ml = voxel_volume_ml(affine)
    regions = {}
    for value, box in enumerate(ndimage.find_objects(label), start=1):
        if box is None:
            continue
        inside = label[box] == value
        voxels = int(np.count_nonzero(inside))
        centre = [_centre(inside, axis) + part.start for axis, part in enumerate(box)]
        x, y, z = (float(mm) for mm in apply_affine(affine, centre))
        regions[value] = Region(voxels, voxels * voxel_ml, (x, y, z), _pieces(inside))
    return regions


def _centre(inside: NDArray[np.bool_], axis: int) -> float:
    """Return the mean index of a mask along one axis."""
    counts = np.count_nonzero(inside, axis=tuple(other for other in range(3) if other != axis))
    return float(counts @ np.arange(counts.size) / counts.sum())


def _pieces(inside: NDArray[np.bool_]) -> tuple[int, ...]:
    """Return the sizes in voxels of a mask's connected pieces, largest first."""
    parts, _ = ndimage.label(inside, TOUCHING)
    sizes = np.bincount(parts.ravel())[1:]
    return tuple(int(size) for size in np.sort(sizes)[::-1])
