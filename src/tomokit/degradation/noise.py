"""Noise of the magnitude image in MRI, and of fewer photons in CT."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from tomokit.augmentation.draws import check_probability, check_range, draw_uniform
from tomokit.augmentation.intensity import change_drawn, smooth, spread
from tomokit.errors import TomokitError

GRAIN_VOXELS = 0.55  # deviation of the Gaussian that makes neighbours alike, as the phantoms' scanner has it


def add_rician_noise(image: Tensor, sigmas: Tensor) -> Tensor:
    """Return the magnitude of an image (B, C, …) whose real and imaginary part got noise of deviations (B, C)."""
    real = torch.addcmul(image, torch.randn_like(image), spread(sigmas, image))
    return torch.hypot(real, torch.randn_like(image) * spread(sigmas, image))


def add_grain(image: Tensor, sigmas: Tensor) -> Tensor:
    """Return the image (B, C, …) with noise of deviations (B, C) whose neighbouring voxels are alike."""
    grain = smooth(torch.randn_like(image), torch.full_like(sigmas, GRAIN_VOXELS))
    grain = grain / grain.std(tuple(range(2, image.ndim)), keepdim=True).clamp(min=1e-7)
    return torch.addcmul(image, grain, spread(sigmas, image))


class BatchRandRicianNoised(MapTransform):
    """Makes the noise of a magnitude image: Gaussian in the real and the imaginary part, never below 0.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        sigma_range: range of both parts' standard deviation, as a share of the image's range.

    Raises:
        TomokitError: when an argument is out of its range.
    Source: Gudbjartsson and Patz, The Rician distribution of noisy MRI data, Magnetic Resonance in Medicine 34 (1995).
    """

    def __init__(self, keys: KeysCollection, prob: float = 1.0, sigma_range: Sequence[float] = (0.02, 0.12)) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)
        self.sigma_range = check_range("sigma_range", sigma_range, 0)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with noise in the drawn samples."""
        return change_drawn(self, data, lambda shape: draw_uniform(shape[:2], self.sigma_range), add_rician_noise)


class BatchRandLowDosed(MapTransform):
    """Adds the noise that a CT scan of fewer photons would have beside the given one.

    The variance of a reconstructed voxel goes with one over the photons: at a share d of the dose, noise of the
    deviation sigma times √(1/d − 1) is added, with the grain of a reconstruction. Streaks behind bone, which need the
    projections, are not simulated.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        dose_range: range of the photons that are left, as a share of the given scan's, above 0 to 1.
        sigma: the given scan's own noise, a standard deviation as a share of the image's range.

    Raises:
        TomokitError: when an argument is out of its range.
    Source: Zeng et al., A simple low-dose X-ray CT simulation from high-dose scan, IEEE Transactions on Nuclear
        Science 62 (2015).
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 1.0,
        dose_range: Sequence[float] = (0.05, 0.5),
        sigma: float = 0.02,
    ) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)
        self.dose_range = check_range("dose_range", dose_range, 1e-4, 1)
        if sigma < 0:
            raise TomokitError(f"sigma must be at least 0, got {sigma}")
        self.sigma = sigma

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with the drawn samples at a lower dose."""

        def draw(shape: torch.Size) -> Tensor:
            return self.sigma * (1 / draw_uniform(shape[:2], self.dose_range) - 1).sqrt()

        return change_drawn(self, data, draw, add_grain)
