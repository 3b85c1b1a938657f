"""How well two label maps agree, by their table of pairs: how often one says this label where the other says that."""

from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from tomokit.errors import TomokitError

Pairs = NDArray[np.int64]
ROWS = 16  # slices of the first axis that are counted at once


def count_pairs(first: NDArray[np.integer], second: NDArray[np.integer], classes: int) -> Pairs:
    """Return how many voxels have each pair of labels, (classes, classes), the first map's down."""
    counts = np.zeros(classes * classes, np.int64)
    for start in range(0, len(first), ROWS):
        one, two = (np.asarray(labels[start : start + ROWS], np.int64).ravel() for labels in (first, second))
        counts += np.bincount(one * classes + two, minlength=classes * classes)
    return counts.reshape(classes, classes)


def count_file_pairs(first: Path, second: Path, classes: int) -> Pairs:
    """Return the pairs of two files of label maps.

    Raises:
        TomokitError: when they do not lie on one grid.
    """
    images = [nibabel.load(path) for path in (first, second)]
    if images[0].shape != images[1].shape or not np.allclose(images[0].affine, images[1].affine, atol=1e-3):
        raise TomokitError(f"{first} and {second} lie on two grids, of {images[0].shape} and {images[1].shape} voxels")
    return count_pairs(*(np.asarray(image.dataobj).astype(np.uint8) for image in images), classes)


def share_equal(pairs: Pairs) -> float:
    """Return the share of voxels that have one label in both maps."""
    return float(np.trace(pairs) / pairs.sum())


def lowest_dice(pairs: Pairs) -> float | None:
    """Return the lowest Dice of a structure that either map has; None where there is none."""
    sizes = pairs.sum(0) + pairs.sum(1)
    dice = 2 * np.diag(pairs)[1:] / np.maximum(sizes[1:], 1)
    found = sizes[1:] > 0
    return float(dice[found].min()) if found.any() else None


def count_structures(pairs: Pairs) -> int:
    """Return how many structures the second map has."""
    return int((pairs.sum(0)[1:] > 0).sum())
