"""Does a label belong to its image? What the label tells of the intensities, as it lies, mirrored, and moved."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LARGEST_EDGE = 96  # voxels; larger volumes are thinned, which the measure stands
BINS = 32
SHIFTS = (-6, -4, -3, -2, 2, 3, 4, 6)  # voxels of the thinned grid
LARGEST_CHANCE = 10.0  # times the mutual information that chance alone would show


class Fit(NamedTuple):
    """How well a label explains its image.

    Attributes:
        information: mutual information of intensity and label over the label's entropy, 0 to 1.
        mirrored: for each axis x, y, z (RAS), the information of the mirrored label over the label's own.
        moved: the largest information of the label moved along one axis, over its own.
        shift: that move, in voxels along x, y, z.
        voxels: of the thinned grid; in few of them chance weighs more.
        class_ranks: for each class value, the mean and deviation of its voxels' intensity ranks, 0 to 1.
    """

    information: float
    mirrored: tuple[float, float, float]
    moved: float
    shift: tuple[int, int, int]
    voxels: int
    class_ranks: dict[int, tuple[float, float]]


def measure_fit(image: NDArray, label: NDArray) -> Fit | None:
    """Return how well a label (X, Y, Z) of integers explains the image's intensities, both turned to RAS.

    None where nothing can be said: no foreground, a flat image, or no more than chance in any position.

    Source: mutual information as a measure of alignment, Viola and Wells, IJCV 24 (1997).
    """
    thin = tuple(slice(None, None, -(-size // LARGEST_EDGE)) for size in image.shape)
    bins, n_bins = _bin(image[thin])
    values, classes = np.unique(label[thin], return_inverse=True)
    classes = classes.reshape(bins.shape)
    if n_bins < 2 or values.size < 2:
        return None
    background = int(np.argmax(values == 0)) if (values == 0).any() else 0
    chance = (n_bins - 1) * (values.size - 1) / (2 * bins.size)
    own = _information(bins, classes)
    mirrored = [_information(bins, np.flip(classes, axis)) for axis in range(3)]
    moves = {shift: _information(bins, _move(classes, shift, background)) for shift in _shifts(bins.shape)}
    if max(own, *mirrored, *moves.values()) < LARGEST_CHANCE * chance:
        return None
    own = max(own, chance)
    shares = np.bincount(classes.ravel()) / classes.size
    entropy = float(-(shares * np.log(shares)).sum())
    best = max(moves, key=lambda shift: moves[shift], default=(0, 0, 0))
    x, y, z = (value / own for value in mirrored)
    moved = moves.get(best, own) / own
    return Fit(own / entropy, (x, y, z), moved, best, bins.size, _class_ranks(image[thin], label[thin]))


def _bin(image: NDArray) -> tuple[NDArray[np.intp], int]:
    """Return the image's intensities in up to `BINS` bins of equal share, and how many bins there are."""
    sample = np.sort(image.ravel()[:: max(1, image.size // 50_000)])
    places = np.linspace(0, sample.size - 1, BINS + 1).astype(int)[1:-1]
    edges = np.unique(sample[places])
    edges = edges[edges > sample[0]]
    return np.searchsorted(edges, image.ravel(), side="right").reshape(image.shape), edges.size + 1


def _information(bins: NDArray[np.intp], classes: NDArray[np.intp]) -> float:
    """Return the mutual information of two integer arrays of one shape, in nats."""
    n_classes = int(classes.max()) + 1
    joint = np.bincount((bins * n_classes + classes).ravel()).astype(float)
    joint = np.pad(joint, (0, -joint.size % n_classes)).reshape(-1, n_classes) / bins.size
    expected = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    filled = joint > 0
    return float((joint[filled] * np.log(joint[filled] / expected[filled])).sum())


def _shifts(shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Return the moves along one axis that a volume of this shape has room for."""
    moves = []
    for axis, size in enumerate(shape):
        for step in SHIFTS:
            if 3 * abs(step) < size:
                move = [0, 0, 0]
                move[axis] = step
                moves.append((move[0], move[1], move[2]))
    return moves


def _move(classes: NDArray[np.intp], shift: tuple[int, int, int], fill: int) -> NDArray[np.intp]:
    """Return the array moved by whole voxels, what enters filled."""
    moved = np.full_like(classes, fill)
    source = tuple(slice(max(0, -step), size - max(0, step)) for step, size in zip(shift, classes.shape, strict=True))
    target = tuple(slice(max(0, step), size - max(0, -step)) for step, size in zip(shift, classes.shape, strict=True))
    moved[target] = classes[source]
    return moved


def _class_ranks(image: NDArray, label: NDArray) -> dict[int, tuple[float, float]]:
    """Return the mean and deviation of the intensity ranks of each class's voxels."""
    sample = np.sort(image.ravel()[:: max(1, image.size // 20_000)])
    found = {}
    for value in np.unique(label[label > 0]):
        ranks = np.searchsorted(sample, image[label == value]) / sample.size
        found[int(value)] = (float(ranks.mean()), float(ranks.std()))
    return found
