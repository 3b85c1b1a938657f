"""The box of an image that holds the body: what is around it is air, which no network need look at."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST_SAMPLES = 96  # voxels along an axis that are looked at: the box is found to that fraction of an edge
LEVEL = 0.1  # of the way from the darkest to the brightest: air, a scanner's noise in it too, is below
LEAST_SHARE = 0.002  # of a slice's voxels that are body, for the slice to hold some of it
LIMITS = (0.01, 0.99)  # quantiles that count as the darkest and the brightest
MARGIN_MM = 20.0
Box = tuple[tuple[int, int], ...]  # of each axis: the first voxel, and one behind the last


def whole_box(shape: Sequence[int]) -> Box:
    """Return the box of a whole volume."""
    return tuple((0, length) for length in shape)


def find_body(image: Tensor, spacing: Sequence[float]) -> Box:
    """Return the box of an image that holds the body, with 20 mm around it.

    A voxel belongs to the body when one channel is brighter than a tenth of the way between its first and its 99th
    percentile. Where the air is not darker than the body, the box is the whole image.

    Args:
        image: (C, X, Y[, Z]), in any unit.
        spacing: of the voxels in mm.
    """
    shape = image.shape[1:]
    steps = [max(1, length // MOST_SAMPLES) for length in shape]
    samples = image[(slice(None), *(slice(None, None, step) for step in steps))].float().cpu()
    low, high = np.quantile(samples.flatten(1).numpy(), LIMITS, axis=1)  # torch's sorts, and takes ten times as long
    level = torch.from_numpy(low + LEVEL * (high - low)).view(-1, *[1] * len(shape))
    body = (samples > level).any(0)
    box = []
    for axis, (length, step, edge) in enumerate(zip(shape, steps, spacing[: len(shape)], strict=True)):
        others = [other for other in range(body.ndim) if other != axis]
        held = torch.nonzero(body.float().mean(others) > LEAST_SHARE)[:, 0]
        if not len(held):
            return whole_box(shape)
        margin = round(MARGIN_MM / edge)
        low, high = int(held[0]) * step - step - margin, (int(held[-1]) + 1) * step + margin
        box.append((max(0, low), min(length, high)))
    return tuple(box)


def widen(box: Box, size: Sequence[int], shape: Sequence[int]) -> Box:
    """Return a box that holds a window of that size, as far as the volume does: what is around it is real, not 0."""
    wide = []
    for (low, high), edge, length in zip(box, size, shape, strict=True):
        count = max(high - low, min(edge, length))
        first = min(max(0, low - (count - (high - low)) // 2), length - count)
        wide.append((first, first + count))
    return tuple(wide)


def reach(box: Box, places: Sequence[NDArray[np.float64]], shape: Sequence[int]) -> Box:
    """Return a box widened to the next of the places at each face, so that a structure at the face lies at one of them.

    Args:
        box: in voxels of the network's grid.
        places: of each axis where the wanted voxels lie, in voxels of the network's grid; those at infinity nowhere.
        shape: of the whole volume.
    """
    wide = []
    for (low, high), own, length in zip(box, places, shape, strict=True):
        there = own[np.isfinite(own)]
        below, above = there[there < low], there[there > high - 1]
        first = math.floor(below.max()) if len(below) else low
        last = math.ceil(above.min()) if len(above) else high - 1
        wide.append((max(0, first), min(length, last + 1)))
    return tuple(wide)


def grow(box: Box, labels: Tensor, shape: Sequence[int], spacing: Sequence[float], margin_mm: float) -> Box:
    """Return a box grown by a margin at each face that a label touches inside the volume, else the same box.

    Args:
        box: in voxels of the network's grid.
        labels: what was found in the box, on its grid, background 0.
        shape: of the whole volume.
        spacing: of the voxels in mm.
        margin_mm: how far it grows.
    """
    grown = []
    for axis, ((low, high), length) in enumerate(zip(box, shape, strict=True)):
        margin = max(1, round(margin_mm / spacing[axis]))
        below = margin if labels.select(axis, 0).any() else 0
        above = margin if labels.select(axis, -1).any() else 0
        grown.append((max(0, low - below), min(length, high + above)))
    return tuple(grown)
