"""The loss of a variational autoencoder."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tomokit.errors import TomokitError


class VariationalLoss(nn.Module):
    """The mean distance of the reconstruction from the image, and the code's distance from a standard normal one.

    Args:
        beta: the weight of the latter, per voxel of the image.

    Raises:
        TomokitError: when the weight is below 0.
    Source: Higgins et al., beta-VAE, ICLR 2017.
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        if not beta >= 0:
            raise TomokitError(f"beta must be at least 0, got {beta}")
        self.beta = beta

    def forward(self, output: Sequence[Tensor], image: Tensor) -> Tensor:
        """Return the loss of (reconstruction, mean, log variance, code) for an image (B, C, X, Y[, Z])."""
        made, mean, log_variance = (part.float() for part in output[:3])
        divergence = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(1)
        return (made - image).abs().mean() + self.beta * torch.mean(divergence) / image[0].numel()
