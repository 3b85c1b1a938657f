"""From a scan's own units to a share of its range, and back."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray
from torch import Tensor

from tomokit.errors import TomokitError

RANGE = "unit_range"  # in an image's metadata: of each channel what 0 and 1 stand for, in the source's units
LEAST = 1e-6  # of the range: a constant image has none


class ScaleToUnitd(MapTransform):
    """Scales each channel of an image so that one percentile becomes 0 and another 1; what these were is noted.

    Args:
        keys: the images' keys, `MetaTensor`s (C, X, Y[, Z]).
        lower: the percentile that becomes 0.
        upper: the percentile that becomes 1.
        clip: whether what lies beyond becomes 0 and 1; else it stays beyond.

    Raises:
        TomokitError: when the percentiles are not in order within 0–100, or an image has no metadata.
    """

    def __init__(self, keys: KeysCollection, lower: float = 0.0, upper: float = 99.5, clip: bool = False) -> None:
        super().__init__(keys)
        if not 0 <= lower < upper <= 100:
            raise TomokitError(f"lower and upper must be percentiles in order, 0 to 100, got {lower} and {upper}")
        self.lower, self.upper, self.clip = lower, upper, clip

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the images scaled, float32."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            if not isinstance(image, MetaTensor):
                raise TomokitError(
                    f"{data.get('case', key)} has no metadata; put ScaleToUnitd before track_meta: false"
                )
            values = image.as_tensor().float().clone()
            ends = [np.percentile(channel.cpu().numpy(), (self.lower, self.upper)) for channel in values]
            for channel, (low, high) in zip(values, ends, strict=True):
                channel.sub_(float(low)).div_(max(float(high - low), LEAST))
            if self.clip:
                values.clamp_(0, 1)
            result[key] = MetaTensor(values, meta=image.meta)
            result[key].meta[RANGE] = torch.tensor(np.array(ends), dtype=torch.float64)
        return result


class RestoreUnitsd(MapTransform):
    """Brings images that `ScaleToUnitd` scaled, or what a network made of them, back to the source's units, in place.

    Args:
        keys: the keys of what is brought back, (C, X, Y[, Z]).
        image_key: the key of the image that was scaled.
    """

    def __init__(self, keys: KeysCollection, image_key: str = "image") -> None:
        super().__init__(keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data`; its images are in the source's units."""
        result = dict(data)
        for key in self.key_iterator(result):
            values: Tensor = result[key]
            for channel, (low, high) in zip(values, unit_range(result[self.image_key]), strict=False):
                channel.mul_(max(high - low, LEAST)).add_(low)
        return result


def unit_range(image: Any) -> NDArray[np.float64]:
    """Return what 0 and 1 of each channel of a scaled image stand for (C, 2), in the source's units.

    Raises:
        TomokitError: when the image was not scaled by `ScaleToUnitd`.
    """
    if not isinstance(image, MetaTensor) or RANGE not in image.meta:
        raise TomokitError("the image's own units are not known; scale it by tomokit.intensity.ScaleToUnitd")
    ends: NDArray[np.float64] = np.asarray(image.meta[RANGE], float).reshape(-1, 2)
    return ends
