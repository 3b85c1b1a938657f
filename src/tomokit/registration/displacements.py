"""Where a displacement takes a point, in mm: on the fixed scan's own grid, and as ITK's transform.

A network's displacement is in voxels of its grid. Its grid lies in the world of the fixed scan by one affine, in that
of the moving scan by another: both scans' centres fall together there. In the world a displacement is what is added
to a point of the fixed scan to get the point of the moving scan that shows the same: x to the right, y to the front,
z to the head (RAS). ITK's are LPS: the first two change their sign.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from tomokit.geometry import spacing_from_affine
from tomokit.volumes import LPS_TO_RAS

EDGE = 0.5  # voxels beyond the first and the last centre are image, as ITK has it
CLOSE = 1e-4  # voxels: what affines in float32 miss


def displacement_mm(
    voxels: ArrayLike, fixed: ArrayLike, moving: ArrayLike, affine: ArrayLike, shape: Sequence[int]
) -> NDArray[np.float32]:
    """Return a network's displacement on another grid (3, X, Y, Z), in mm along the world's axes (RAS).

    Between voxels it is interpolated, beyond the network's grid that of its edge counts.

    Args:
        voxels: (3, X, Y, Z) on the network's grid, in its voxels.
        fixed: (4, 4) from the network's grid to the fixed scan's world.
        moving: (4, 4) from the network's grid to the moving scan's world.
        affine: (4, 4) of the grid that is wanted, in the fixed scan's world.
        shape: of that grid.
    """
    field = np.asarray(voxels, np.float32)
    fixed, moving, affine = (np.asarray(own, float) for own in (fixed, moving, affine))
    to_network = np.linalg.solve(fixed, affine)
    own = [
        ndimage.affine_transform(
            part, to_network[:3, :3], to_network[:3, 3], tuple(shape), np.float32, order=1, mode="nearest"
        )
        for part in field
    ]
    places = np.ogrid[tuple(slice(size) for size in shape)]
    between = moving @ to_network - affine  # of a displacement of 0: how the two worlds differ
    result = np.empty((3, *shape), np.float32)
    for axis in range(3):
        result[axis] = between[axis, 3] + sum(between[axis, other] * places[other] for other in range(3))
        for other in range(3):
            if moving[axis, other]:
                result[axis] += np.float32(moving[axis, other]) * own[other]
    return result


def move_volume(
    array: NDArray[Any], affine: ArrayLike, displacement: NDArray[np.float32], fixed: ArrayLike, outside: float = 0.0
) -> NDArray[np.float32]:
    """Return the moving volume as the fixed scan's grid sees it (X, Y, Z), by linear interpolation.

    Args:
        array: (X, Y, Z) of the moving scan.
        affine: (4, 4) of the moving scan.
        displacement: (3, X, Y, Z) on the fixed scan's grid, in mm (RAS).
        fixed: (4, 4) of the fixed scan.
        outside: the value of what lies outside the moving scan.
    """
    to_index = np.linalg.inv(np.asarray(affine, float))
    whole = to_index @ np.asarray(fixed, float)
    shape = displacement.shape[1:]
    volume = np.ascontiguousarray(array, np.float32)
    result = np.empty(shape, np.float32)
    for first in range(shape[0]):  # a slice at a time: the places of a whole volume would take six times its memory
        index = np.array(np.meshgrid(first, *map(np.arange, shape[1:]), indexing="ij"), float).reshape(3, -1)
        places = whole[:3, :3] @ index + whole[:3, 3:] + to_index[:3, :3] @ displacement[:, first].reshape(3, -1)
        seen = ndimage.map_coordinates(volume, places, order=1, mode="nearest")
        far = np.array(array.shape)[:, None] - 1 + EDGE + CLOSE
        inside = ((places >= -EDGE - CLOSE) & (places <= far)).all(0)
        result[first] = np.where(inside, seen, np.float32(outside)).reshape(shape[1:])
    return result


def moved_labels(
    labels: NDArray[Any], values: Sequence[int], affine: ArrayLike, displacement: NDArray[np.float32], fixed: ArrayLike
) -> NDArray[np.uint8]:
    """Return the moving label map on the fixed scan's grid: the likeliest of `values`, or 0 of all others.

    Each structure is interpolated linearly by itself, and the largest share wins.

    Args:
        labels: (X, Y, Z) of the moving scan.
        values: of the structures.
        affine: (4, 4) of the moving scan.
        displacement: (3, X, Y, Z) on the fixed scan's grid, in mm (RAS).
        fixed: (4, 4) of the fixed scan.
    """
    shares = np.stack([move_volume(labels == value, affine, displacement, fixed) for value in values])
    whole = np.concatenate([1 - shares.sum(0, keepdims=True), shares])
    return np.array([0, *values], np.uint8)[whole.argmax(0)]


def cover_grid(
    shape: Sequence[int], affine: ArrayLike, source_shape: Sequence[int], source_affine: ArrayLike
) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Return the shape and affine of a grid enlarged by whole voxels until it covers another one."""
    affine = np.asarray(affine, float)
    corners = np.array(np.meshgrid(*([0, size - 1] for size in source_shape), 1, indexing="ij")).reshape(4, -1)
    places = (np.linalg.solve(affine, np.asarray(source_affine, float)) @ corners)[:3]
    low = np.minimum(np.floor(places.min(1) + CLOSE), 0)
    high = np.maximum(np.ceil(places.max(1) - CLOSE), np.asarray(shape) - 1)
    larger = affine.copy()
    larger[:3, 3] = affine[:3, :3] @ low + affine[:3, 3]
    return tuple(int(size) for size in high - low + 1), larger


def field_image(displacement: NDArray[np.float32], affine: ArrayLike) -> Any:
    """Return a displacement (3, X, Y, Z) in mm (RAS) as SimpleITK's image of vectors, float64, in ITK's world (LPS)."""
    import SimpleITK as sitk

    turned = LPS_TO_RAS[:3, :3] @ displacement.reshape(3, -1).astype(float)
    image = sitk.GetImageFromArray(turned.reshape(displacement.shape).T, isVector=True)
    grid = LPS_TO_RAS @ np.asarray(affine, float)
    spacing = np.array(spacing_from_affine(affine))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((grid[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(grid[:3, 3].tolist())
    return image


def field_transform(displacement: NDArray[np.float32], affine: ArrayLike) -> Any:
    """Return SimpleITK's transform, from fixed to moving points, of a displacement (3, X, Y, Z) in mm (RAS).

    `SimpleITK.Resample(moving, fixed, transform)` gives the moved volume. Outside its grid nothing is displaced.
    """
    import SimpleITK as sitk

    return sitk.DisplacementFieldTransform(field_image(displacement, affine))


def read_displacement(transform: Any, shape: Sequence[int], affine: ArrayLike) -> NDArray[np.float32]:
    """Return what a SimpleITK transform does on a grid: (3, X, Y, Z) in mm (RAS)."""
    import SimpleITK as sitk

    grid = LPS_TO_RAS @ np.asarray(affine, float)
    spacing = np.array(spacing_from_affine(affine))
    place = (grid[:3, 3].tolist(), spacing.tolist(), (grid[:3, :3] / spacing).ravel().tolist())
    size = [int(length) for length in shape]
    field = sitk.TransformToDisplacementField(transform, sitk.sitkVectorFloat64, size, *place)
    own = sitk.GetArrayFromImage(field).T.reshape(3, -1)
    return np.ascontiguousarray((LPS_TO_RAS[:3, :3] @ own).reshape(3, *shape), np.float32)
