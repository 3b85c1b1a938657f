"""Random changes of intensity, in the units that the image has after its normalisation."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor
from torch.nn import functional

from tomokit.augmentation.draws import (
    change_samples,
    check_probability,
    check_range,
    draw_samples,
    draw_uniform,
    spread,
)


class _Intensity(MapTransform):
    """Draws samples for each key and changes them by `change`; a channel is drawn for by itself."""

    def __init__(self, keys: KeysCollection, prob: float) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with the drawn samples of each key changed."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = change_samples(result[key], draw_samples(len(result[key]), self.prob), self.change)
        return result

    def change(self, x: Tensor) -> Tensor:
        """Return samples (k, C, X, Y[, Z]) changed."""
        raise NotImplementedError


class BatchRandGaussianNoised(_Intensity):
    """Adds Gaussian noise to the drawn samples.

    Args:
        keys: the keys.
        prob: of a sample.
        std_range: the noise's standard deviation is drawn between these.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.1, std_range: Sequence[float] = (0.0, 0.3)) -> None:
        super().__init__(keys, prob)
        self.std_range = check_range("std_range", std_range, 0.0)

    def change(self, x: Tensor) -> Tensor:
        """Return the samples with noise."""
        seed = int(torch.randint(2**31, ()))  # from the CPU's generator, so that any device draws reproducibly
        generator = torch.Generator(x.device).manual_seed(seed)
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return x + noise * spread(draw_uniform((len(x),), self.std_range), x)


class BatchRandGaussianSmoothd(_Intensity):
    """Smooths the drawn samples with a Gaussian, its width drawn per sample.

    Args:
        keys: the keys.
        prob: of a sample.
        sigma_range: the Gaussian's standard deviation in voxels is drawn between these.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.2, sigma_range: Sequence[float] = (0.5, 1.0)) -> None:
        super().__init__(keys, prob)
        self.sigma_range = check_range("sigma_range", sigma_range, 1e-3)

    def change(self, x: Tensor) -> Tensor:
        """Return the samples smoothed."""
        return smooth(x, draw_uniform((len(x),), self.sigma_range), math.ceil(4 * self.sigma_range[1]))


class BatchRandBrightnessd(_Intensity):
    """Multiplies the drawn samples by a factor per channel.

    Args:
        keys: the keys.
        prob: of a sample.
        factor_range: the factor is drawn between these.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.15, factor_range: Sequence[float] = (0.75, 1.25)) -> None:
        super().__init__(keys, prob)
        self.factor_range = check_range("factor_range", factor_range, 0.0)

    def change(self, x: Tensor) -> Tensor:
        """Return the samples multiplied."""
        return x * spread(draw_uniform(x.shape[:2], self.factor_range), x)


class BatchRandContrastd(_Intensity):
    """Stretches the drawn samples about each channel's mean, within the values that it had.

    Args:
        keys: the keys.
        prob: of a sample.
        factor_range: the factor is drawn between these; above 1 is more contrast.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.15, factor_range: Sequence[float] = (0.75, 1.25)) -> None:
        super().__init__(keys, prob)
        self.factor_range = check_range("factor_range", factor_range, 0.0)

    def change(self, x: Tensor) -> Tensor:
        """Return the samples stretched."""
        return stretch(x, spread(draw_uniform(x.shape[:2], self.factor_range), x))


class BatchRandGammad(_Intensity):
    """Raises each channel of the drawn samples, scaled to 0–1, to a power, and restores its mean and deviation.

    Args:
        keys: the keys.
        prob: of a sample.
        gamma_range: the exponent is drawn between these.
        invert_prob: of a drawn sample to be changed as its negative.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.3,
        gamma_range: Sequence[float] = (0.7, 1.5),
        invert_prob: float = 0.25,
    ) -> None:
        super().__init__(keys, prob)
        self.gamma_range = check_range("gamma_range", gamma_range, 1e-3)
        self.invert_prob = check_probability("invert_prob", invert_prob)

    def change(self, x: Tensor) -> Tensor:
        """Return the samples with another gamma."""
        signs = 1 - 2 * (torch.rand(len(x)) < self.invert_prob).float()
        sign = spread(signs, x)
        return sign * change_gamma(sign * x, spread(draw_uniform(x.shape[:2], self.gamma_range), x))


class BatchRandLowResolutiond(_Intensity):
    """Takes detail from the drawn samples: brings them to a coarser grid by the nearest voxel, and back linearly.

    Args:
        keys: the keys.
        prob: of a sample.
        zoom_range: the coarser grid's size, as part of the grid's, is drawn between these.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.25, zoom_range: Sequence[float] = (0.5, 1.0)) -> None:
        super().__init__(keys, prob)
        self.zoom_range = check_range("zoom_range", zoom_range, 0.05)

    def change(self, x: Tensor) -> Tensor:
        """Return the samples with less detail."""
        zooms = draw_uniform((len(x),), self.zoom_range).tolist()
        return torch.cat([coarsen(sample, zoom) for sample, zoom in zip(x.split(1), zooms, strict=True)])


class BatchRandBiasFieldd(_Intensity):
    """Multiplies the drawn samples by a smooth field, as a receive coil does in MRI.

    Args:
        keys: the keys.
        prob: of a sample.
        strength_range: the deviation of the field's logarithm at its control points is drawn between these.
        points: control points along each axis.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(
        self, keys: KeysCollection, prob: float = 0.15, strength_range: Sequence[float] = (0.0, 0.3), points: int = 4
    ) -> None:
        super().__init__(keys, prob)
        self.strength_range = check_range("strength_range", strength_range, 0.0)
        self.points = points

    def change(self, x: Tensor) -> Tensor:
        """Return the samples under their fields."""
        dims = x.ndim - 2
        coarse = torch.randn(len(x), 1, *[self.points] * dims)
        coarse = coarse * draw_uniform((len(x), 1, *[1] * dims), self.strength_range)
        coarse = coarse.to(x.device, x.dtype, non_blocking=True)
        mode = "trilinear" if dims == 3 else "bilinear"
        return x * functional.interpolate(coarse, size=list(x.shape[2:]), mode=mode, align_corners=True).exp()


def smooth(x: Tensor, sigmas: Tensor, radius: int) -> Tensor:
    """Return samples (k, C, X, Y[, Z]) under a Gaussian of `sigmas` (k,) voxels, cut at `radius`, borders repeated."""
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    parts = [spread(part, x) for part in weights.unbind(1)]
    for axis in range(2, x.ndim):
        ends = [x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)]
        repeats = [radius if other == axis else 1 for other in range(x.ndim)]
        padded = torch.cat([ends[0].repeat(repeats), x, ends[1].repeat(repeats)], axis)
        total = torch.zeros_like(x)
        for place, part in enumerate(parts):
            total = torch.addcmul(total, padded.narrow(axis, place, x.shape[axis]), part)
        x = total
    return x


def stretch(x: Tensor, factors: Tensor) -> Tensor:
    """Return samples stretched by factors (k, C, 1, …) about each channel's mean, within the values that it had."""
    axes = tuple(range(2, x.ndim))
    mean = x.mean(axes, keepdim=True)
    return torch.clamp((x - mean) * factors + mean, min=x.amin(axes, keepdim=True), max=x.amax(axes, keepdim=True))


def change_gamma(x: Tensor, gammas: Tensor) -> Tensor:
    """Return samples with each channel, scaled to 0–1, raised to gammas (k, C, 1, …); its mean and deviation kept."""
    axes = tuple(range(2, x.ndim))
    lowest = x.amin(axes, keepdim=True)
    extent = (x.amax(axes, keepdim=True) - lowest).clamp(min=1e-7)
    raised = ((x - lowest) / extent).clamp(min=0) ** gammas
    deviation, mean = torch.std_mean(x, axes, keepdim=True)
    raised_deviation, raised_mean = torch.std_mean(raised, axes, keepdim=True)
    return (raised - raised_mean) / raised_deviation.clamp(min=1e-7) * deviation + mean


def coarsen(x: Tensor, zoom: float) -> Tensor:
    """Return a batch sampled on a grid of `zoom` times the size, nearest voxels, and brought back linearly."""
    size = list(x.shape[2:])
    coarse = [max(1, round(edge * zoom)) for edge in size]
    mode = "trilinear" if len(size) == 3 else "bilinear"
    return functional.interpolate(functional.interpolate(x, size=coarse, mode="nearest-exact"), size=size, mode=mode)
