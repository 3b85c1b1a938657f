"""Scores of each voxel: how unlike the normal cases it is."""

from collections.abc import Callable
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor

from tomokit.errors import TomokitError

LEAST_SPREAD = 0.5  # of its mean


class PatchScoreInferer(Inferer):
    """Gives the probability that a voxel is of something foreign, 0–1, smoothed.

    Args:
        inferer: gives the network's logits (B, 1, X, Y[, Z]), such as a `SlabInferer` with `reduce: logits`.
        smoothing: of the scores, one deviation of a Gaussian in voxels; 0 smooths nothing.

    Raises:
        TomokitError: when the smoothing is below 0.
    """

    def __init__(self, inferer: Inferer, smoothing: float = 1.0) -> None:
        super().__init__()
        self.inferer = inferer
        self.smoothing = check_smoothing(smoothing)

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Return the scores (B, 1, X, Y[, Z]) of images (B, C, X, Y[, Z])."""
        logits = self.inferer(inputs, network, *args, **kwargs)
        plain = logits.as_tensor() if isinstance(logits, MetaTensor) else logits
        return smooth(plain.float().sigmoid(), self.smoothing)


class ReconstructionInferer(Inferer):
    """Gives the distance of each voxel from what a network makes of the image: the mean over channels, smoothed.

    Where the network knows its usual distance at each voxel, as `spread` (1, 1, X, Y[, Z]), the distance is in units of
    that, which is smoothed alike; half its mean is added, so that it is nowhere near 0.

    Args:
        inferer: gives the network's reconstruction (B, C, X, Y[, Z]).
        smoothing: of the scores, one deviation of a Gaussian in voxels; 0 smooths nothing.

    Raises:
        TomokitError: when the smoothing is below 0.
    """

    def __init__(self, inferer: Inferer, smoothing: float = 1.0) -> None:
        super().__init__()
        self.inferer = inferer
        self.smoothing = check_smoothing(smoothing)

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Return the scores (B, 1, X, Y[, Z]) of images (B, C, X, Y[, Z])."""
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        made = self.inferer(image, network, *args, **kwargs)
        scores = smooth((image - made.float()).abs().mean(1, keepdim=True), self.smoothing)
        spread = getattr(network, "spread", None)
        if spread is None:
            return scores
        return scores / (smooth(spread, self.smoothing) + LEAST_SPREAD * spread.mean())


def smooth(scores: Tensor, sigma: float) -> Tensor:
    """Return scores (B, 1, X, Y[, Z]) smoothed by a Gaussian of `sigma` voxels, those at the edge repeated beyond."""
    if sigma == 0:
        return scores
    kernel = gaussian_1d(torch.tensor(float(sigma)), truncated=4.0).to(scores)
    kernel = kernel / kernel.sum()  # MONAI's misses what is cut off
    return separable_filtering(scores, [kernel] * (scores.ndim - 2), mode="replicate")


def check_smoothing(sigma: float) -> float:
    """Return a smoothing.

    Raises:
        TomokitError: when it is below 0.
    """
    if not sigma >= 0:
        raise TomokitError(f"smoothing must be a number of voxels of at least 0, got {sigma}")
    return float(sigma)
