"""Distortions that a network learns to undo, so that it knows images before it knows labels.

They keep the image's size and its range of values. Where a distortion hides voxels, a map of them can be kept.

Source: Zhou et al., Models Genesis, Medical Image Analysis 67 (2021), from which the distortions and their
probabilities are; He et al., Masked autoencoders are scalable vision learners, CVPR 2022.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from tomokit.augmentation.draws import check_probability, check_range, draw_events, draw_uniform, per_axis
from tomokit.errors import TomokitError

# ------------------------------------------------------------------------- changes with given values


def bend_intensity(image: Tensor, heights: Tensor) -> Tensor:
    """Return an image (C, X, Y[, Z]) whose values went through a curve, within each channel's own range.

    The curve goes straight from each of `heights` (C, points), from 0 to 1, to the next, over equal steps of the range.
    """
    axes = tuple(range(1, image.ndim))
    low = image.amin(axes, keepdim=True)
    extent = (image.amax(axes, keepdim=True) - low).clamp(min=1e-7)
    steps = heights.shape[1] - 1
    position = (image - low) / extent * steps
    below = position.floor().clamp(0, steps - 1)
    flat = below.long().flatten(1)
    ends = [heights.gather(1, flat + step).reshape(image.shape) for step in (0, 1)]
    return low + extent * torch.lerp(ends[0], ends[1], position - below)


def shuffle_blocks(image: Tensor, block: Sequence[int], shift: Sequence[int], chosen: Tensor, order: Tensor) -> Tensor:
    """Return an image (C, X, Y[, Z]) with the voxels of some blocks in another order, alike in all channels.

    Args:
        image: to shuffle.
        block: edges of a block in voxels; the first one begins `shift` voxels before the image.
        shift: for each axis.
        chosen: a flag for each block of the grid, in the order of its axes.
        order: random numbers (X, Y[, Z]) in 0–1, by which the voxels of a chosen block are sorted.
    """
    blocks = block_numbers(image.shape[1:], block, shift, image.device).flatten()
    places = torch.arange(len(blocks), device=image.device)
    kept = places.double() / len(places)  # in the order in which they are
    keys = torch.where(chosen[blocks], order.flatten().double(), kept)
    into = torch.argsort(blocks, stable=True)
    taken = torch.argsort(blocks + keys, stable=True)
    result = torch.empty_like(image.flatten(1))
    result[:, into] = image.flatten(1)[:, taken]
    return result.reshape(image.shape)


def block_numbers(
    shape: Sequence[int], block: Sequence[int], shift: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Return the number of its block for each voxel (X, Y[, Z]), counted along the last axis first."""
    counts = block_counts(shape, block, shift)
    numbers = torch.zeros((1,) * len(shape), dtype=torch.long, device=device)
    for axis, (size, edge, before, count) in enumerate(zip(shape, block, shift, counts, strict=True)):
        own = (torch.arange(size, device=device) + before) // edge
        numbers = numbers * count + own.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return numbers


def block_counts(shape: Sequence[int], block: Sequence[int], shift: Sequence[int]) -> list[int]:
    """Return how many blocks there are along each axis."""
    return [(size + before - 1) // edge + 1 for size, edge, before in zip(shape, block, shift, strict=True)]


def boxes_mask(shape: Sequence[int], corners: Tensor, sizes: Tensor) -> Tensor:
    """Return which voxels (X, Y[, Z]), bool, lie in one of the boxes with corners and sizes (N, axes) in voxels."""
    mask = torch.zeros(tuple(shape), dtype=torch.bool)
    for corner, size in zip(corners.tolist(), sizes.tolist(), strict=True):
        mask[tuple(slice(start, start + edge) for start, edge in zip(corner, size, strict=True))] = True
    return mask


# ------------------------------------------------------------------------------- changes of drawn samples


class _Distortion(MapTransform):
    """What the distortions have in common: the images are changed one by one, each with draws of its own."""

    def __init__(self, keys: KeysCollection, prob: float) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with the drawn samples distorted."""
        result = dict(data)
        for key in self.key_iterator(result):
            batch = check_images(self, key, result)
            result[key] = torch.stack([self._distort(own) if draw_events(1, self.prob) else own for own in batch])
        return result

    def _distort(self, image: Tensor) -> Tensor:
        """Return an image (C, X, Y[, Z]), distorted."""
        raise NotImplementedError


class BatchRandBentIntensityd(_Distortion):
    """Sends the values of each channel through a random curve that rises, or falls, from end to end of their range.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        points: of the curve, at least 2; more bend it more.
        falling_prob: the probability that a curve falls, so that bright becomes dark.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.9, points: int = 6, falling_prob: float = 0.5) -> None:
        super().__init__(keys, prob)
        if points < 2:
            raise TomokitError(f"points must be at least 2, got {points}")
        self.points = int(points)
        self.falling_prob = check_probability("falling_prob", falling_prob)

    def _distort(self, image: Tensor) -> Tensor:
        steps = -torch.rand(len(image), self.points - 1).clamp(min=1e-6).log()  # uniform among all shares of 1
        heights = torch.cat([torch.zeros(len(image), 1), steps.cumsum(1) / steps.sum(1, keepdim=True)], 1)
        falling = draw_events((len(image), 1), self.falling_prob)
        return bend_intensity(image, torch.where(falling, 1 - heights, heights).to(image))


class BatchRandShuffledBlocksd(_Distortion):
    """Shuffles the voxels within small blocks: texture is lost, the structures' places stay.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        block_range: range of the blocks' edges, in voxels, each axis its own.
        share: of the blocks that are shuffled.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(
        self, keys: KeysCollection, prob: float = 0.5, block_range: Sequence[int] = (2, 6), share: float = 0.5
    ) -> None:
        super().__init__(keys, prob)
        self.block_range = tuple(map(int, check_range("block_range", block_range, 1)))
        self.share = check_probability("share", share)

    def _distort(self, image: Tensor) -> Tensor:
        axes = image.ndim - 1
        block = torch.randint(self.block_range[0], self.block_range[1] + 1, (axes,)).tolist()
        shift = [int(torch.randint(edge, ())) for edge in block]
        chosen = draw_events(math.prod(block_counts(image.shape[1:], block, shift)), self.share)
        order = torch.rand(image.shape[1:])
        return shuffle_blocks(image, block, shift, chosen.to(image.device), order.to(image.device))


class BatchRandPaintedBoxesd(_Distortion):
    """Hides boxes, or all that lies outside of them, behind noise over the range of each channel's values.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        outside_prob: the probability that what lies outside the boxes is hidden, of a sample that is drawn.
        boxes: range of their number.
        inside_range: range of a hidden box's edges, as part of the image's.
        outside_range: likewise of a box that is left.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.9,
        outside_prob: float = 0.8,
        boxes: Sequence[int] = (1, 5),
        inside_range: Sequence[float] = (0.15, 0.35),
        outside_range: Sequence[float] = (0.45, 0.7),
    ) -> None:
        super().__init__(keys, prob)
        self.outside_prob = check_probability("outside_prob", outside_prob)
        self.boxes = tuple(map(int, check_range("boxes", boxes, 1)))
        self.inside_range = check_range("inside_range", inside_range, 0, 1)
        self.outside_range = check_range("outside_range", outside_range, 0, 1)

    def _distort(self, image: Tensor) -> Tensor:
        shape = torch.tensor(image.shape[1:])
        outside = bool(draw_events(1, self.outside_prob))
        count = int(torch.randint(self.boxes[0], self.boxes[1] + 1, ()))
        shares = draw_uniform((count, len(shape)), self.outside_range if outside else self.inside_range)
        sizes = (shares * shape).round().long().clamp(min=1)
        corners = (torch.rand(count, len(shape)) * (shape - sizes + 1)).long()
        hidden = boxes_mask(image.shape[1:], corners, sizes) ^ outside
        axes = tuple(range(1, image.ndim))
        low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
        noise = low + (high - low) * torch.rand(image.shape, device=image.device, dtype=image.dtype)
        return torch.where(hidden.to(image.device), noise, image)


class BatchMaskedBlocksd(MapTransform):
    """Hides a share of all blocks behind each channel's mean, and keeps a map of the hidden voxels.

    Args:
        keys: the images' keys; all are hidden alike.
        block: the blocks' edges in voxels, one number or one per axis; their grid lies anew in each sample.
        share: range of the share of the blocks that are hidden.
        mask_key: where the map (B, 1, X, Y[, Z]) goes: 1 where hidden, else 0.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        block: int | Sequence[int] = 8,
        share: Sequence[float] = (0.6, 0.75),
        mask_key: str = "mask",
    ) -> None:
        super().__init__(keys)
        self.block = block if isinstance(block, int) else tuple(block)
        if min((block,) if isinstance(block, int) else block) < 1:
            raise TomokitError(f"block must be edges of at least 1 voxel, got {block}")
        self.share = check_range("share", share, 0, 1)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with hidden blocks, and their map."""
        result = dict(data)
        first = check_images(self, self.first_key(result), result)
        hidden = torch.stack([self._draw(first.shape[2:]) for _ in first])[:, None].to(first.device)
        for key in self.key_iterator(result):
            image = check_images(self, key, result)
            means = image.mean(tuple(range(2, image.ndim)), keepdim=True)
            result[key] = torch.where(hidden, means, image)
        result[self.mask_key] = hidden.to(first.dtype)
        return result

    def _draw(self, shape: Sequence[int]) -> Tensor:
        """Return which voxels (X, Y[, Z]) of one sample are hidden."""
        block = [int(edge) for edge in per_axis("block", self.block, len(shape))]
        shift = [int(torch.randint(edge, ())) for edge in block]
        count = math.prod(block_counts(shape, block, shift))
        hidden = torch.zeros(count, dtype=torch.bool)
        hidden[torch.randperm(count)[: round(float(draw_uniform(1, self.share)) * count)]] = True
        return hidden[block_numbers(shape, block, shift)]


def check_images(transform: MapTransform, key: Hashable, data: Mapping[Hashable, Any]) -> Tensor:
    """Return a batch of images.

    Raises:
        TomokitError: when it is none, such as one of label maps.
    """
    batch: Tensor = data[key]
    if batch.ndim not in (4, 5) or not batch.is_floating_point():
        raise TomokitError(
            f"{type(transform).__name__} takes numbers with a fraction, (B, C, X, Y[, Z]), got {batch.dtype} of "
            f"shape {tuple(batch.shape)} in {key!r}; name images alone in `keys`"
        )
    return batch
