"""Images made from label maps, each time anew, so that a segmentation can be trained without an image.

Nothing of a scanner is modelled here but that each tissue has a brightness: what follows in a config (smoothing, bias
field, loss of resolution, noise, gamma) are the changes of `tomokit.augmentation.intensity`.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from tomokit.augmentation.draws import check_probability, check_range, draw_events, draw_uniform
from tomokit.augmentation.separable import along_axes, spline_matrix, spline_points
from tomokit.errors import TomokitError


def draw_regions(shape: Sequence[int], count: int, distance: float, device: torch.device | str = "cpu") -> Tensor:
    """Return a map (X, Y[, Z]) of `count` regions, 0 to `count` - 1, with smooth borders in random places.

    Each region has a smooth random field of control points `distance` voxels apart, and lies where its own is highest.

    Source: Hoffmann et al., SynthMorph, IEEE Transactions on Medical Imaging 41 (2022), whose shapes are made alike.
    """
    points = [spline_points(size, distance) for size in shape]
    controls = torch.randn(1, count, *points).to(device)
    matrices = [spline_matrix(size, own, distance, controls) for size, own in zip(shape, points, strict=True)]
    return along_axes(controls, matrices)[0].argmax(0)


class BatchImagesFromLabelsd(MapTransform):
    """Puts images made from the label maps in the place of the images.

    Every structure has a random mean, in 0–1, and a random standard deviation in each channel, so that it is as often
    brighter as darker than what surrounds it. What no structure takes is divided into smooth random regions with means
    and deviations of their own, anew in each image, as the body has tissues there that nobody labelled.

    Args:
        keys: the images' keys; their values are not looked at, only their channels and type.
        label_key: the key of the label maps (B, 1, X, Y[, Z]).
        num_classes: the number of labels with the background. Voxels of other values, such as an ignore label's,
            count as background here.
        regions: range of the number of regions outside the structures.
        region_size: range of the distance, in voxels, over which they change.
        std_range: range of the standard deviations.
        alike_prob: the probability that a structure has the mean and deviation of the one before it, as two parts of
            one organ have.

    Raises:
        TomokitError: when an argument is out of its range, or labels and images differ in shape.
    Source: Billot et al., SynthSeg, Medical Image Analysis 86 (2023).
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str,
        num_classes: int,
        regions: Sequence[int] = (2, 8),
        region_size: Sequence[float] = (4.0, 16.0),
        std_range: Sequence[float] = (0.0, 0.15),
        alike_prob: float = 0.3,
    ) -> None:
        super().__init__(keys)
        self.label_key = label_key
        if num_classes < 2:
            raise TomokitError(f"num_classes must be at least 2, the background and a structure, got {num_classes}")
        self.num_classes = int(num_classes)
        self.regions = tuple(map(int, check_range("regions", regions, 1)))
        self.region_size = check_range("region_size", region_size, 1)
        self.std_range = check_range("std_range", std_range, 0)
        self.alike_prob = check_probability("alike_prob", alike_prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with images of its label maps."""
        result = dict(data)
        label: Tensor = result[self.label_key]
        for key in self.key_iterator(result):
            image: Tensor = result[key]
            if label.shape != (len(image), 1, *image.shape[2:]):
                raise TomokitError(
                    f"images are made from label maps (B, 1, X, Y[, Z]) of their shape, got {tuple(label.shape)} in "
                    f"{self.label_key!r} and {tuple(image.shape)} in {key!r}"
                )
            made = [self._make(own, image.shape[1]) for own in label[:, 0]]
            result[key] = torch.stack(made).to(image.dtype)
        return result

    def _make(self, label: Tensor, channels: int) -> Tensor:
        """Return an image (C, X, Y[, Z]) of one label map; all its draws follow each other, whatever the batch."""
        structures = self.num_classes - 1
        count = int(torch.randint(self.regions[0], self.regions[1] + 1, ()))
        distance = float(draw_uniform(1, self.region_size))
        drawn = draw_regions(label.shape, count, distance, label.device)
        known = (label > 0) & (label <= structures)
        tissues = torch.where(known, label.long() - 1, drawn + structures)
        values = torch.rand(2, channels, structures + count)  # mean and deviation
        for place in draw_events(structures, self.alike_prob).nonzero().flatten().tolist():
            values[..., place] = values[..., max(place - 1, 0)]
        low, high = self.std_range
        means, deviations = values.to(label.device)
        noise = torch.randn(channels, *label.shape, device=label.device)
        return means[:, tissues] + (low + (high - low) * deviations)[:, tissues] * noise


class BatchNormalizeIntensityd(MapTransform):
    """Brings each channel of each sample to mean 0 and standard deviation 1; a constant one becomes 0.

    Args:
        keys: the images' keys.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch, normalised."""
        result = dict(data)
        for key in self.key_iterator(result):
            image: Tensor = result[key]
            axes = tuple(range(2, image.ndim))
            deviation, mean = torch.std_mean(image, axes, correction=0, keepdim=True)
            result[key] = (image - mean) / deviation.where(deviation > 0, 1.0)
        return result
