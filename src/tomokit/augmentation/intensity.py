"""Random changes of intensity, in the units that the image has after its normalisation.

Every channel of a drawn sample gets its own random value. Where nnU-Net has the change, its probability and range are
the default (Isensee et al., Nature Methods 18, 2021).
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from tomokit.augmentation.draws import (
    change_samples,
    check_axes,
    check_probability,
    check_range,
    draw_events,
    draw_factors,
    draw_uniform,
)
from tomokit.augmentation.separable import along_axes, coarsening_matrix, gaussian_matrix, spline_matrix
from tomokit.errors import TomokitError

# ------------------------------------------------------------------------- changes with given values


def spread(values: Tensor, image: Tensor) -> Tensor:
    """Return values (B, C) as (B, C, 1, 1[, 1]), to be combined with an image."""
    return values.reshape(*values.shape, *[1] * (image.ndim - 2))


def add_noise(image: Tensor, deviations: Tensor) -> Tensor:
    """Return the image (B, C, …) with Gaussian noise of standard deviations (B, C), drawn on the image's device."""
    return torch.addcmul(image, torch.randn_like(image), spread(deviations, image))


def smooth(image: Tensor, sigmas: Tensor) -> Tensor:
    """Return the image (B, C, …) smoothed by Gaussians of `sigmas` (B, C) voxels along every axis."""
    return along_axes(image, [gaussian_matrix(size, sigmas) for size in image.shape[2:]])


def multiply(image: Tensor, factors: Tensor) -> Tensor:
    """Return the image (B, C, …) times factors (B, C)."""
    return image * spread(factors, image)


def shift_intensity(image: Tensor, offsets: Tensor) -> Tensor:
    """Return the image (B, C, …) plus offsets (B, C)."""
    return image + spread(offsets, image)


def change_contrast(image: Tensor, factors: Tensor, preserve_range: bool = True) -> Tensor:
    """Return the image (B, C, …) stretched by factors (B, C) about each channel's mean.

    With `preserve_range` no value leaves the range that its channel had.
    """
    axes = tuple(range(2, image.ndim))
    stretched = torch.lerp(image.mean(axes, keepdim=True), image, spread(factors, image))
    if not preserve_range:
        return stretched
    return stretched.clamp(image.amin(axes, keepdim=True), image.amax(axes, keepdim=True))


def change_gamma(image: Tensor, gammas: Tensor, invert_image: bool = False, retain_stats: bool = True) -> Tensor:
    """Return the image (B, C, …) with each channel, scaled to 0–1, raised to gammas (B, C), and scaled back.

    `invert_image` does it to the negative image; `retain_stats` restores each channel's mean and deviation.
    """
    axes = tuple(range(2, image.ndim))
    source = -image if invert_image else image
    low = source.amin(axes, keepdim=True)
    extent = (source.amax(axes, keepdim=True) - low).clamp(min=1e-7)
    result = ((source - low) / extent).pow(spread(gammas, image)) * extent + low
    if retain_stats:
        deviation, mean = torch.std_mean(source, axes, keepdim=True)
        deviation_after, mean_after = torch.std_mean(result, axes, keepdim=True)
        result = (result - mean_after) * (deviation / deviation_after.clamp(min=1e-7)) + mean
    return -result if invert_image else result


def lower_resolution(image: Tensor, zooms: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Return the image (B, C, …) brought to a grid of `zooms` (B, C) times its size and back along `axes` (None: all).

    Down by the nearest voxel, up by linear interpolation, as MONAI's RandSimulateLowResolution does by default.
    """
    sizes = image.shape[2:]
    matrices = [
        coarsening_matrix(size, (zooms * size).round().clamp(min=1)) if axes is None or axis in axes else None
        for axis, size in enumerate(sizes)
    ]
    return along_axes(image, matrices)


def apply_bias(image: Tensor, controls: Tensor) -> Tensor:
    """Return the image (B, C, …) with its distance from each channel's least value times exp(a smooth field).

    The least value, which stands for no signal, stays: after a normalisation it is below zero, and what lies below
    zero would be darkened where the field brightens. `controls` (B, C, points, …) are the field's control points.
    """
    axes = tuple(range(2, image.ndim))
    points = controls.shape[2]
    matrices = [spline_matrix(size, points, max(size - 1, 1) / (points - 3), image) for size in image.shape[2:]]
    field = along_axes(controls, matrices).exp()
    return torch.lerp(image.amin(axes, keepdim=True), image, field)


# ------------------------------------------------------------------------------- changes of drawn samples


def change_drawn(
    transform: Any,
    data: Mapping[Hashable, Any],
    draw: Callable[[torch.Size], Tensor],
    change: Callable[[Tensor, Tensor], Tensor],
) -> dict[Hashable, Any]:
    """Return the batch with each key's drawn samples changed by values (B, C, …) that `draw` makes of its shape."""
    result = dict(data)
    for key in transform.key_iterator(result):
        image: Tensor = result[key]
        if image.ndim not in (4, 5) or not image.is_floating_point():
            raise TomokitError(
                f"{type(transform).__name__} takes numbers with a fraction, (B, C, X, Y[, Z]), got {image.dtype} of "
                f"shape {tuple(image.shape)} in {key!r}; name images alone in `keys`"
            )
        samples = draw_events(len(image), transform.prob).nonzero().flatten().tolist()
        values = draw(image.shape)  # drawn for all, so that the draws that follow don't depend on how many there were

        def change_some(chosen: Tensor, samples: list[int] = samples, values: Tensor = values) -> Tensor:
            return change(chosen, values[samples].to(chosen.device, chosen.dtype, non_blocking=True))

        result[key] = change_samples(image, samples, change_some)
    return result


class BatchRandGaussianNoised(MapTransform):
    """Adds Gaussian noise.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        std_range: range of the noise's standard deviation, in the image's units.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.1, std_range: Sequence[float] = (0.0, 0.1)) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)
        self.std_range = check_range("std_range", std_range, 0)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with noise in the drawn samples."""
        return change_drawn(self, data, lambda shape: draw_uniform(shape[:2], self.std_range), add_noise)


class BatchRandGaussianSmoothd(MapTransform):
    """Smooths by a Gaussian.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        sigma_range: range of the Gaussian's standard deviation, in voxels.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.2, sigma_range: Sequence[float] = (0.5, 1.0)) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)
        self.sigma_range = check_range("sigma_range", sigma_range, 0.05)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with the drawn samples smoothed."""
        return change_drawn(self, data, lambda shape: draw_uniform(shape[:2], self.sigma_range), smooth)


class BatchRandBrightnessd(MapTransform):
    """Multiplies by a factor.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        factor_range: range of the factor; one that spans 1 gives as many below as above.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.15, factor_range: Sequence[float] = (0.75, 1.25)) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)
        self.factor_range = check_range("factor_range", factor_range, 0)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with the drawn samples multiplied."""
        return change_drawn(self, data, lambda shape: draw_factors(shape[:2], self.factor_range), multiply)


class BatchRandShiftIntensityd(MapTransform):
    """Adds an offset.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        offset_range: range of the offset, in the image's units.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.15, offset_range: Sequence[float] = (-0.1, 0.1)) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)
        self.offset_range = check_range("offset_range", offset_range)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with the drawn samples shifted in intensity."""
        return change_drawn(self, data, lambda shape: draw_uniform(shape[:2], self.offset_range), shift_intensity)


class BatchRandContrastd(MapTransform):
    """Stretches the intensities about each channel's mean.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        factor_range: range of the factor; above 1 is more contrast, and as many lie below as above.
        preserve_range: whether values are held in the range that their channel had.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.15,
        factor_range: Sequence[float] = (0.75, 1.25),
        preserve_range: bool = True,
    ) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)
        self.factor_range = check_range("factor_range", factor_range, 0)
        self.preserve_range = preserve_range

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with the drawn samples stretched."""

        def change(image: Tensor, factors: Tensor) -> Tensor:
            return change_contrast(image, factors, self.preserve_range)

        return change_drawn(self, data, lambda shape: draw_factors(shape[:2], self.factor_range), change)


class BatchRandGammad(MapTransform):
    """Raises each channel, scaled to 0–1, to a power, and scales it back.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        gamma_range: range of the exponent; above 1 darkens, and as many lie below as above.
        invert_image: whether it is done to the negative image; nnU-Net lists both, this one with `prob: 0.1`.
        retain_stats: whether each channel keeps its mean and standard deviation.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.3,
        gamma_range: Sequence[float] = (0.7, 1.5),
        invert_image: bool = False,
        retain_stats: bool = True,
    ) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)
        self.gamma_range = check_range("gamma_range", gamma_range, 0.05)
        self.invert_image = invert_image
        self.retain_stats = retain_stats

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with another gamma in the drawn samples."""

        def change(image: Tensor, gammas: Tensor) -> Tensor:
            return change_gamma(image, gammas, self.invert_image, self.retain_stats)

        return change_drawn(self, data, lambda shape: draw_factors(shape[:2], self.gamma_range), change)


class BatchRandLowResolutiond(MapTransform):
    """Takes detail away: to a coarser grid by the nearest voxel, and back by linear interpolation.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        zoom_range: range of the coarser grid's size as part of the image's, up to 1.
        axes: of (X, Y, Z), those that are coarsened; None for all. Leave out an axis that is coarse already.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.25,
        zoom_range: Sequence[float] = (0.5, 1.0),
        axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)
        self.zoom_range = check_range("zoom_range", zoom_range, 0.05, 1)
        self.axes = None if axes is None else check_axes("axes", axes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with less detail in the drawn samples."""

        def change(image: Tensor, zooms: Tensor) -> Tensor:
            return lower_resolution(image, zooms, self.axes)

        return change_drawn(self, data, lambda shape: draw_uniform(shape[:2], self.zoom_range), change)


class BatchRandBiasFieldd(MapTransform):
    """Brightens and darkens smoothly over the image, as a receive coil does in MRI.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        strength_range: range of the field's strength s: it lies within exp(-s) and exp(s).
        points: control points along each axis, at least 4; more change faster.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(
        self, keys: KeysCollection, prob: float = 0.15, strength_range: Sequence[float] = (0.0, 0.5), points: int = 5
    ) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)
        self.strength_range = check_range("strength_range", strength_range, 0)
        if points < 4:
            raise TomokitError(f"points must be at least 4, got {points}")
        self.points = points

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with the drawn samples under random fields."""

        def draw(shape: torch.Size) -> Tensor:
            strengths = draw_uniform((*shape[:2], *[1] * (len(shape) - 2)), self.strength_range)
            return strengths * draw_uniform((*shape[:2], *[self.points] * (len(shape) - 2)), (-1.0, 1.0))

        return change_drawn(self, data, draw, apply_bias)
