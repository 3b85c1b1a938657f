"""Transforms that MONAI lacks, in its dictionary form."""

from collections.abc import Hashable, Mapping, Sequence, Sized
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandCropByLabelClassesd
from monai.utils import fall_back_tuple

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


class RandPatchByLabelClassesd(RandCropByLabelClassesd):
    """MONAI's crop around a voxel of a drawn class, the same draws, as plain tensors without a record of the crop.

    MONAI writes the crop into each tensor's metadata, which takes longer than the crop of a small patch itself.
    Takes MONAI's arguments; `num_samples` patches come back for each case.
    """

    copies_input = True  # the cache then hands out its cases as they are

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> list[dict[Hashable, Any]]:
        """Return `num_samples` dictionaries, each key's image (C, X, Y[, Z]) cut to (C, *spatial_size), copied."""
        rest = {key: value for key, value in data.items() if key != self.indices_key}
        self._check(data)
        self.randomize(data.get(self.label_key), data.get(self.indices_key), data.get(self.image_key))
        size = self.cropper.spatial_size
        patches: list[dict[Hashable, Any]] = []
        for centre in self.cropper.centers or ():
            patch = dict(rest)
            for key in self.key_iterator(patch):
                patch[key] = _cut(torch.as_tensor(rest[key]).as_subclass(torch.Tensor), centre, size)
            patches.append(patch)
        return patches

    def _check(self, data: Mapping[Hashable, Any]) -> None:
        """Raise when a case with known places has none of the classes that are drawn.

        Raises:
            TomokitError: that names the case.
        """
        places = data.get(self.indices_key)
        if places is None:
            return
        ratios = self.cropper.ratios or [1.0] * len(places)
        if any(len(own) and ratio > 0 for own, ratio in zip(places, ratios, strict=True)):
            return
        raise TomokitError(
            f"{data.get('case', 'a case')} has no voxel of a class that patches are centred on; leave it out of the "
            "training cases, or set foreground_share below 1"
        )


def _cut(image: torch.Tensor, centre: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """Return the part (C, *size) of an image (C, X, Y[, Z]) about a voxel, moved inside at the edges, copied."""
    for axis, (place, wanted) in enumerate(zip(centre, fall_back_tuple(size, image.shape[1:]), strict=True), start=1):
        first = max(int(place) - wanted // 2, 0)
        image = image.narrow(axis, first, min(wanted, image.shape[axis] - first))
    return image.clone(memory_format=torch.contiguous_format)


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
