"""The part of a grid that holds what is compared: masks of whole scans are mostly empty."""

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

Box = tuple[slice, ...]


def common_box(*masks: NDArray[np.bool_]) -> Box:
    """Return the smallest box that holds the voxels of all masks of one shape; an empty one where none has a voxel."""
    axes = range(masks[0].ndim)
    box = []
    for axis in axes:
        others = tuple(other for other in axes if other != axis)
        here = np.flatnonzero(np.any([mask.any(axis=others) for mask in masks], axis=0))
        box.append(slice(int(here[0]), int(here[-1]) + 1) if len(here) else slice(0, 0))
    return tuple(box)


def label_boxes(one: NDArray[np.integer], two: NDArray[np.integer], n_values: int) -> list[Box]:
    """Return for each value 1, 2, …, `n_values` - 1 the box that holds it in both label maps; empty where none does."""
    found = [scipy.ndimage.find_objects(array, n_values - 1) for array in (one, two)]
    nowhere = (slice(0, 0),) * one.ndim
    return [_join(a, b) if a and b else a or b or nowhere for a, b in zip(*found, strict=True)]


def _join(one: Box, two: Box) -> Box:
    """Return the smallest box that holds two."""
    pairs = zip(one, two, strict=True)
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in pairs)
