"""Regions that are cut out of an image, to be filled in again."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from tomokit.augmentation.draws import check_probability, check_range, draw_uniform
from tomokit.augmentation.intensity import change_drawn
from tomokit.degradation.units import spacing_of
from tomokit.errors import TomokitError

HOLE = -1.0  # what stands in a hole: no image has it, whose values as shares of their range are 0 or more


def cut(image: Tensor, holes: Tensor) -> Tensor:
    """Return the image (B, C, …) with `HOLE` where `holes` (B, 1, …) is not 0."""
    return torch.where(holes != 0, torch.full_like(image, HOLE), image)


class BatchRandHolesd(MapTransform):
    """Cuts balls out of images, all channels alike.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        diameter_mm_range: range of the balls' diameter, in mm.
        count: how many there are in a sample; they may overlap.

    Raises:
        TomokitError: when an argument is out of its range, or the batch does not tell its spacing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 1.0,
        diameter_mm_range: Sequence[float] = (4.0, 12.0),
        count: int = 2,
    ) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)
        self.diameter_mm_range = check_range("diameter_mm_range", diameter_mm_range, 0)
        if count < 1:
            raise TomokitError(f"count must be at least 1, got {count}")
        self.count = count

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with holes in the drawn samples."""
        spacing = spacing_of(data, self)

        def draw(shape: torch.Size) -> Tensor:
            batch, sizes = shape[0], shape[2:]
            places = torch.meshgrid(*(torch.arange(size, dtype=torch.float32) for size in sizes), indexing="ij")
            grid = torch.stack(places)[None]  # (1, dimensions, …)
            over = [1] * len(sizes)
            holes = torch.zeros(batch, *sizes, dtype=torch.bool)
            for _ in range(self.count):
                centres = torch.rand(batch, len(sizes)) * (torch.tensor(sizes) - 1)
                away = (grid - centres.reshape(batch, -1, *over)) * spacing.reshape(batch, -1, *over)
                radii = draw_uniform(batch, self.diameter_mm_range).reshape(batch, *over) / 2
                holes |= away.square().sum(1) <= radii.square()
            return holes[:, None].float()

        return change_drawn(self, data, draw, cut)
