"""Random changes of pairs of scans, a batch at a time: which scan is the first, and where each lies.

A pair is an image (B, 2·C, X, Y[, Z]) with all channels of the first scan first.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from tomokit.augmentation.draws import check_probability, draw_events
from tomokit.errors import TomokitError


class BatchRandSwapScansd(MapTransform):
    """Swaps the two scans of a pair, and what is known of their order with them.

    Args:
        keys: the images' keys.
        label_key: the key of the targets (B, 3): 1 where the first scan is the earlier one, else 0; changed; amount.
        prob: the probability for each pair.

    Raises:
        TomokitError: when the probability is not in 0–1, or the targets are not those of pairs.
    """

    def __init__(self, keys: KeysCollection, label_key: str, prob: float = 0.5) -> None:
        super().__init__(keys)
        self.label_key = label_key
        self.prob = check_probability("prob", prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with the drawn pairs the other way round; what is unknown (NaN) stays so."""
        result = dict(data)
        targets: Tensor = result[self.label_key]
        if targets.ndim != 2 or targets.shape[1] != 3:
            raise TomokitError(f"pairs have targets (B, 3): order, changed, amount; got shape {tuple(targets.shape)}")
        samples = draw_events(len(targets), self.prob).nonzero().flatten().tolist()
        for key in self.key_iterator(result):
            check_pairs(key, result[key])
            result[key] = result[key].clone()
            for number in samples:
                result[key][number] = torch.cat(data[key][number].chunk(2)[::-1])
        result[self.label_key] = targets.clone()
        for number in samples:
            order, changed, amount = targets[number]
            result[self.label_key][number] = torch.stack([1 - order, changed, -amount])
        return result


class BatchRandShiftScansd(MapTransform):
    """Moves each scan of a pair by whole voxels of its own, the voxels at the edge filling what is left.

    Nothing is interpolated: of a pair with one interpolated scan, the blur would tell which it is.

    Args:
        keys: the images' keys.
        most: the greatest shift along each axis, in voxels.
        prob: the probability for each scan.

    Raises:
        TomokitError: when an argument is out of its range, or an image holds no pair.
    """

    def __init__(self, keys: KeysCollection, most: int = 2, prob: float = 0.5) -> None:
        super().__init__(keys)
        if most < 0:
            raise TomokitError(f"most must be a number of voxels of at least 0, got {most}")
        self.most = int(most)
        self.prob = check_probability("prob", prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with the drawn scans moved."""
        result = dict(data)
        for key in self.key_iterator(result):
            image: Tensor = result[key]
            check_pairs(key, image)
            axes, channels = image.ndim - 2, image.shape[1] // 2
            shifts = torch.randint(-self.most, self.most + 1, (len(image), 2, axes))
            shifts = shifts * draw_events((len(image), 2, 1), self.prob)
            result[key] = image.clone()
            for number, pair in enumerate(shifts.tolist()):
                for scan, shift in enumerate(pair):
                    part = slice(scan * channels, (scan + 1) * channels)
                    if any(shift):
                        result[key][number, part] = shift_voxels(image[number, part], shift)
        return result


def shift_voxels(image: Tensor, shift: Sequence[int]) -> Tensor:
    """Return an image (C, X, Y[, Z]) moved by whole voxels along each axis, its edge repeated where nothing is."""
    for axis, step in enumerate(shift, start=1):
        last = image.shape[axis] - 1
        places = (torch.arange(last + 1, device=image.device) - step).clamp(0, last)
        image = image.index_select(axis, places) if step else image
    return image


def check_pairs(key: Hashable, image: Tensor) -> None:
    """Raise when an image does not hold two scans of as many channels.

    Raises:
        TomokitError: that gives its shape.
    """
    if image.ndim not in (4, 5) or image.shape[1] % 2:
        raise TomokitError(
            f"pairs of scans are (B, 2·C, X, Y[, Z]), got {key!r} of shape {tuple(image.shape)}; "
            "each entry's `image` must list two files"
        )
