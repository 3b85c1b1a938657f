"""The way back: which voxels of the network's grid a voxel of the source lies between, along each axis by itself.

Orienting, resampling, padding and cropping leave the axes of the network's grid along those of the source, in some
order and direction. So a source voxel's place is found by axis, from the two affines alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tomokit.errors import TomokitError

MOST_TILT = 0.1  # voxels of the network's grid that the source's whole length may lean along another axis
CLOSE = 1e-4  # voxels: what affines in float32 miss a voxel's centre by
BORDER = 1 - CLOSE  # voxels of the network's grid: resampling leaves the source's ends less far out than one


class Axis(NamedTuple):
    """How the source lies along one axis of the network's grid.

    Attributes:
        source: the axis of the source that lies along it.
        places: of each of the source's voxels its place (length,), in voxels of the network's grid, from its first to
            its last; monotonic. What was cropped away lies at ∓ infinity.
    """

    source: int
    places: NDArray[np.float64]


def relate_grids(
    shape: Sequence[int], affine: ArrayLike, source_shape: Sequence[int], source_affine: ArrayLike
) -> tuple[Axis, ...]:
    """Return, for each axis of the network's grid, how the source lies along it.

    A source voxel less than one voxel beyond the network's grid, as resampling leaves some, is placed on its border, as
    MONAI's padding mode "border" does; those further out were cropped away, and lie nowhere on the grid.

    Args:
        shape: (X, Y, Z) of the network's grid; fewer axes are those of an image.
        affine: (4, 4) from the network's voxel index to world.
        source_shape: (X, Y, Z) of the source.
        source_affine: (4, 4) from the source's voxel index to world.

    Raises:
        TomokitError: when an axis of one grid lies along none of the other's.
    """
    dims = len(source_shape)
    to_network = np.linalg.solve(np.asarray(affine, float), np.asarray(source_affine, float))
    scale, offset = to_network[:dims, :dims], to_network[:dims, 3]
    order = np.abs(scale).argmax(1)
    lean = np.abs(scale) * np.asarray(source_shape)
    lean[np.arange(dims), order] = 0
    if sorted(order) != list(range(dims)) or lean.max() > MOST_TILT:
        raise TomokitError(
            f"the network's grid is turned against the source's (index to index {scale.round(3).tolist()}): the "
            "way back needs axes along the source's; leave out what turns them, or set the inferer's `grid: network`"
        )
    axes = []
    for axis, source in enumerate(order):
        places = scale[axis, source] * np.arange(source_shape[source]) + offset[axis]
        near = np.abs(places - places.round()) < CLOSE
        places = np.where(near, places.round(), places)
        last = shape[axis] - 1
        beyond = np.where(places < -BORDER, -np.inf, np.where(places > last + BORDER, np.inf, 0))
        axes.append(Axis(int(source), places.clip(0, last) + beyond))
    return tuple(axes)


def same_grid(shape: Sequence[int]) -> tuple[Axis, ...]:
    """Return the axes of a grid of that shape on itself."""
    return tuple(Axis(axis, np.arange(length, dtype=float)) for axis, length in enumerate(shape))


def turn_back(
    values: NDArray[Any], affine: ArrayLike, source_shape: Sequence[int], source_affine: ArrayLike
) -> NDArray[Any]:
    """Return an array (X, Y[, Z]) with its axes in the source's order and direction: a view, nothing is resampled.

    Args:
        values: on a grid whose voxels are the source's, turned.
        affine: (4, 4) of that grid, from voxel index to world.
        source_shape: (X, Y[, Z]) of the source.
        source_affine: (4, 4) of the source.

    Raises:
        TomokitError: when a voxel of the source is none of the grid's.
    """
    axes = relate_grids(values.shape, affine, source_shape, source_affine)
    whole = [np.array_equal(np.sort(axis.places), np.arange(n)) for axis, n in zip(axes, values.shape, strict=True)]
    if not all(whole):
        raise TomokitError(
            f"a prediction of {values.shape} voxels does not lie on its source of {tuple(source_shape)}: it was "
            "resampled, padded or cropped; leave that out of the preprocessing"
        )
    forward = tuple(slice(None, None, 1 if axis.places[0] <= axis.places[-1] else -1) for axis in axes)
    return values[forward].transpose(np.argsort([axis.source for axis in axes]))


class Stretch(NamedTuple):
    """A stretch of one axis: source voxels, and how each is interpolated between nodes of the network's grid.

    Attributes:
        nodes: the first node, and one behind the last.
        voxels: the first source voxel, and one behind the last; ascending in the source's own index.
        matrix: (voxels, nodes), rows that sum to 1, float32; with `nearest` one 1 in each.
    """

    nodes: tuple[int, int]
    voxels: tuple[int, int]
    matrix: Tensor


def stretches(
    places: NDArray[np.float64], first: int, last: int, edge: int, nearest: bool, with_first: bool
) -> list[Stretch]:
    """Return the stretches of at most `edge` cells between two nodes, with the source voxels in them.

    Args:
        places: of the source's voxels, in voxels of the network's grid, monotonic.
        first: the first node that source voxels may lie at.
        last: the last one.
        edge: cells of a stretch; its nodes are one more.
        nearest: take the nearest node's value, not interpolate.
        with_first: source voxels exactly at the first node are wanted too; else the part before has had them.
    """
    found = []
    for low in range(first, max(last, first + 1), edge):
        high = min(low + edge, last)
        inside = (places >= low) & ((places < high) | ((places == high) & (high == last)))
        if low == first and not with_first:
            inside &= places > low
        voxels = np.flatnonzero(inside)
        if len(voxels):
            found.append(_stretch(places, (low, high + 1), (int(voxels[0]), int(voxels[-1]) + 1), nearest))
    return found


def _stretch(places: NDArray[np.float64], nodes: tuple[int, int], voxels: tuple[int, int], nearest: bool) -> Stretch:
    """Return a stretch with its matrix."""
    within = places[slice(*voxels)] - nodes[0]
    count = nodes[1] - nodes[0]
    matrix = np.maximum(0, 1 - np.abs(within[:, None] - np.arange(count)))  # of the two neighbours
    if nearest:
        matrix = np.eye(count)[np.floor(within + 0.5).astype(int).clip(0, count - 1)]
    return Stretch(nodes, voxels, torch.from_numpy(matrix.astype(np.float32)))


def interpolate_back(
    scores: NDArray[np.float32], affine: ArrayLike, source_shape: tuple[int, ...], source_affine: ArrayLike
) -> NDArray[np.float32]:
    """Return scores (X, Y[, Z]) on the source's grid, interpolated linearly; 0 where the source was cropped away.

    Args:
        scores: on the network's grid.
        affine: (4, 4) from the network's voxel index to world.
        source_shape: of the source, as many axes.
        source_affine: (4, 4) from the source's voxel index to world.

    Raises:
        TomokitError: when the network's grid is turned against the source's.
    """
    axes = relate_grids(scores.shape, affine, source_shape, source_affine)
    for number, (axis, size) in enumerate(zip(axes, scores.shape, strict=True)):
        matrix = np.zeros((len(axis.places), size), np.float32)
        for part in stretches(axis.places, 0, size - 1, size, False, True):
            matrix[slice(*part.voxels), slice(*part.nodes)] = part.matrix.numpy()
        scores = np.moveaxis(np.tensordot(matrix, scores, (1, number)), 0, number)
    order = [[axis.source for axis in axes].index(source) for source in range(len(axes))]
    return np.ascontiguousarray(scores.transpose(order), dtype=np.float32)
