"""Linear maps of an image one axis after the other, each as a matrix: one matrix product per axis, on any device.

Smoothing, loss of resolution and smooth random fields are all such maps, and each sample can have its own. At a
patch's size a dense product is faster than a convolution, which torch runs slowly for one kernel per sample.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def along_axes(image: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """Return (B, C, *sizes) with a matrix applied along each spatial axis of an image (B, C, X, Y[, Z]).

    A matrix is (new size, size) for all, or (B, C, new size, size), one for each channel; None leaves its axis.
    """
    batch, channels, *sizes = image.shape
    result = image.reshape(batch * channels, *sizes)
    for axis, matrix in enumerate(matrices):  # takes the first axis and appends it as the last: a cycle
        flat = result.reshape(batch * channels, sizes[axis], -1).transpose(1, 2)
        if matrix is not None:
            maps = matrix.expand(batch, channels, *matrix.shape[-2:]).flatten(0, 1)
            flat = flat @ maps.transpose(1, 2)
            sizes[axis] = matrix.shape[-2]
        result = flat.reshape(batch * channels, *sizes[axis + 1 :], *sizes[: axis + 1])
    return result.reshape(batch, channels, *sizes)


def gaussian_matrix(size: int, sigmas: Tensor) -> Tensor:
    """Return (…, size, size): smoothing by Gaussians of `sigmas` (…) voxels, cut at 4 of them.

    Weights outside the image are shared out among those inside, so that a constant stays one.
    """
    places = torch.arange(size, device=sigmas.device, dtype=sigmas.dtype)
    distances = (places - places[:, None]) / sigmas[..., None, None]
    weights = torch.exp(-0.5 * distances.square()) * (distances.abs() <= 4)  # the rest would be subnormal, and slow
    return weights / weights.sum(-1, keepdim=True)


def coarsening_matrix(size: int, coarse: Tensor) -> Tensor:
    """Return (…, size, size): to a grid of `coarse` (…) voxels by the nearest one, and back by linear interpolation.

    As `torch.nn.functional.interpolate` does with "nearest-exact" and then "linear".
    """
    coarse = coarse[..., None]
    places = torch.arange(size, device=coarse.device, dtype=coarse.dtype)
    position = ((places + 0.5) * coarse / size - 0.5).clamp(min=0)
    below = position.floor()
    above = torch.minimum(below + 1, coarse - 1)
    share = (position - below)[..., None]
    rows = [((((end + 0.5) * size) / coarse).floor()[..., None] == places) for end in (below, above)]
    return rows[0] * (1 - share) + rows[1] * share


def spline_points(size: int, distance: float) -> int:
    """Return how many control points, `distance` voxels apart, a cubic B-spline needs over `size` voxels."""
    return math.ceil((size - 1) / distance) + 3


def spline_matrix(size: int, points: int, distance: float, like: Tensor) -> Tensor:
    """Return (size, points): from control points, `distance` voxels apart about the centre, to a cubic B-spline.

    With enough points its rows are positive with the sum 1, so a field never leaves the range of its control points.
    Device and dtype are those of `like`.
    """
    voxels = (torch.arange(size, device=like.device, dtype=like.dtype) - (size - 1) / 2) / distance
    knots = torch.arange(points, device=like.device, dtype=like.dtype) - (points - 1) / 2
    gaps = (voxels[:, None] - knots).abs()
    return ((2 - gaps).clamp(min=0) ** 3 - 4 * (1 - gaps).clamp(min=0) ** 3) / 6
