"""A background that holds nothing: what was masked away, or padded."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from tomokit.augmentation.draws import check_probability, draw_events

MOST_EMPTY = 0.75  # of a sample's extent along the plane's normal


def half_spaces(shape: torch.Size) -> Tensor:
    """Return random half-spaces (B, 1, X, Y[, Z]), bool on the CPU: what lies beyond a plane of any direction."""
    batch, sizes = shape[0], shape[2:]
    axes = torch.meshgrid(*(torch.linspace(-1, 1, size) for size in sizes), indexing="ij")
    normals = torch.nn.functional.normalize(torch.randn(batch, len(sizes)), dim=1)
    along = torch.einsum("bd,d...->b...", normals, torch.stack(axes))
    reach = normals.abs().sum(1)  # of `along`, at a corner
    limits = reach * (1 - 2 * MOST_EMPTY * torch.rand(batch))
    return (along > limits.reshape(batch, *[1] * len(sizes)))[:, None]


class BatchRandEmptyBackgroundd(MapTransform):
    """Sets what lies beyond a random plane to 0, in all keys and channels alike.

    Put after the noise, it shows a network the border between tissue and a background without signal or noise, as in
    brains without their skull and in windows that reach beyond the scan. One that has never seen it may answer anything
    there.

    Args:
        keys: the images' keys, all of one shape but for the channels.
        prob: the probability for each sample.

    Raises:
        TomokitError: when the probability is out of its range.
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.25) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with an empty part in the drawn samples."""
        result = dict(data)
        shape = result[self.keys[0]].shape
        empty = half_spaces(shape) & draw_events(shape[0], self.prob).reshape(-1, *[1] * (len(shape) - 1))
        for key in self.key_iterator(result):
            result[key] = result[key].masked_fill(empty.to(result[key].device, non_blocking=True), 0)
        return result
