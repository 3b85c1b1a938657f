"""Where the windows of a sliding inference lie, and what each voxel of one weighs."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tomokit.errors import TomokitError

SIGMA = 0.125  # of the Gaussian weights, as part of the window's edge: MONAI's
MODES = ("gaussian", "constant")


class Windows(NamedTuple):
    """Windows of one size on a grid.

    Attributes:
        size: voxels of a window along each axis.
        starts: of each axis, the first voxel of every window, ascending; a window stands at each combination.
        weights: of each axis, what the voxels of a window weigh (size,), float32; a voxel's weight is the product.
    """

    size: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    weights: tuple[Tensor, ...]

    @property
    def number(self) -> int:
        """Return the number of windows."""
        return math.prod(map(len, self.starts))

    def reaching(self, strip: tuple[int, int]) -> tuple[int, ...]:
        """Return the starts along the second axis of windows that reach a strip, its first voxel and one behind."""
        return tuple(start for start in self.starts[1] if start < strip[1] and start + self.size[1] > strip[0])

    def total_weights(self, axis: int) -> Tensor:
        """Return the sum of the weights along one axis (length,): what a voxel got is divided by their product."""
        starts, weights = self.starts[axis], self.weights[axis]
        total = torch.zeros(starts[-1] + self.size[axis], device=weights.device)
        for start in starts:
            total[start : start + len(weights)] += weights
        return total


def place_windows(shape: Sequence[int], size: Sequence[int], overlap: float, mode: str) -> Windows:
    """Return windows that cover a grid, evenly spaced, neighbours sharing at least `overlap` of their edge.

    Args:
        shape: the grid's, at least the window's along each axis.
        size: the window's, in voxels.
        overlap: from 0 to below 1.
        mode: "gaussian", so that a window's middle counts most, or "constant".

    Raises:
        TomokitError: when overlap or mode is out of range.
    """
    if not 0 <= overlap < 1:
        raise TomokitError(f"overlap must be from 0 to below 1, got {overlap}")
    if mode not in MODES:
        raise TomokitError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    starts = tuple(_spread(*pair, overlap) for pair in zip(shape, size, strict=True))
    weights = tuple(_gaussian(edge) if mode == "gaussian" else torch.ones(edge) for edge in size)
    return Windows(tuple(size), starts, weights)


def _spread(length: int, edge: int, overlap: float) -> tuple[int, ...]:
    """Return the first voxels of evenly spaced windows along one axis; the last one ends with it."""
    step = max(1, int(edge * (1 - overlap)))
    count = math.ceil((length - edge) / step) + 1
    return tuple(round(number * (length - edge) / max(1, count - 1)) for number in range(count))


def _gaussian(edge: int) -> Tensor:
    """Return MONAI's Gaussian weights along one axis (edge,)."""
    distance = torch.arange(edge) - (edge - 1) / 2
    return torch.exp(distance**2 / (-2 * (SIGMA * edge) ** 2))
