"""Transforms that MONAI lacks, in its dictionary form."""

from collections.abc import Hashable, Mapping, Sized
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from tomokit.errors import TomokitError


class OneHotClassd(MapTransform):
    """Turns a case's class, an integer, into a one-hot vector (C,) as MONAI's metrics take it.

    MONAI's `AsDiscreted` needs a channel axis, which a single number does not have.

    Args:
        keys: the keys of the classes.
        num_classes: the number of classes C.
    """

    def __init__(self, keys: KeysCollection, num_classes: int) -> None:
        super().__init__(keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with each class as a vector (C,), float32."""
        result = dict(data)
        for key in self.key_iterator(result):
            classes = torch.as_tensor(result[key]).long()
            result[key] = torch.nn.functional.one_hot(classes, self.num_classes).float()
        return result


def class_ratios(labels: Sized, foreground_share: float) -> list[float]:
    """Return how often a patch shall be centred on each class: the background, then all structures alike.

    Args:
        labels: the label map, background first.
        foreground_share: the part of the patches that is centred on a structure, 0–1.

    Raises:
        TomokitError: when the share is not in 0–1.
    """
    if not 0 <= foreground_share <= 1:
        raise TomokitError(f"foreground_share must lie in 0–1, got {foreground_share}")
    structures = len(labels) - 1
    return [1 - foreground_share] + [foreground_share / structures] * structures
