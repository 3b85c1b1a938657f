"""How far a mended image is from the clean one, everywhere or where it was hidden."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tomokit.errors import TomokitError

LEAST = 1e-4  # of a difference: an image that equals the clean one has a loss too
STABLE = (0.01**2, 0.03**2)  # that keep the similarity's quotients finite, at a range of 1


class RestorationLoss(nn.Module):
    """The logarithm of each image's mean absolute difference, and what the structural similarity lacks of 1.

    With the logarithm an image with little noise counts as much as one with much, whose errors are larger
    (docs/experiments.md).

    The similarity is over a cubic window, whose means are taken axis by axis: MONAI's `SSIMLoss` gives the same, and
    took longer than the network.

    Args:
        ssim: the weight of the second; 0 leaves it out.
        window: voxels along each edge of the similarity's window.

    Raises:
        TomokitError: when the weight is negative, or an image is smaller than the window.
    Source: Zhao et al., Loss functions for image restoration with neural networks, IEEE Transactions on Computational
        Imaging 3 (2017).
    """

    def __init__(self, ssim: float = 0.1, window: int = 7) -> None:
        super().__init__()
        if ssim < 0:
            raise TomokitError(f"ssim must be at least 0, got {ssim}")
        self.ssim = ssim
        self.window = window

    def forward(self, image: Tensor, clean: Tensor) -> Tensor:
        """Return the loss of mended images (B, C, X, Y[, Z]) in units of their range."""
        loss = ((image - clean).abs().flatten(1).mean(1) + LEAST).log().mean()
        if not self.ssim:
            return loss
        if min(image.shape[2:]) < self.window:
            raise TomokitError(
                f"the similarity's window of {self.window} voxels does not fit into {tuple(image.shape[2:])}; take "
                "larger patches, or set the loss's `ssim: 0`"
            )
        return loss + self.ssim * (1 - self._similarity(image, clean))

    def _similarity(self, image: Tensor, clean: Tensor) -> Tensor:
        """Return the mean structural similarity."""
        parts = torch.cat([image, clean, image * image, clean * clean, image * clean], 1)
        one, other, one_square, other_square, product = _means(parts, self.window).chunk(5, 1)
        variances = one_square - one * one, other_square - other * other
        brightness = (2 * one * other + STABLE[0]) / (one * one + other * other + STABLE[0])
        structure = (2 * (product - one * other) + STABLE[1]) / (variances[0] + variances[1] + STABLE[1])
        return (brightness * structure).mean()


class HiddenVoxelsLoss(nn.Module):
    """Gives the mean absolute error over the hidden voxels alone: what a network saw it could copy.

    Raises:
        TomokitError: when the targets are not images with a map.
    Source: He et al., Masked autoencoders are scalable vision learners, CVPR 2022.
    """

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss, a scalar; 0 where nothing is hidden.

        Args:
            outputs: (B, C, X, Y[, Z]).
            targets: (B, C + 1, X, Y[, Z]): the clean image, and as its last channel 1 where hidden, else 0.
        """
        if targets.shape != (len(outputs), outputs.shape[1] + 1, *outputs.shape[2:]):
            raise TomokitError(
                f"targets are images with a map of what is hidden, one channel more than the outputs; got shapes "
                f"{tuple(targets.shape)} for {tuple(outputs.shape)}"
            )
        clean, hidden = targets[:, :-1].float(), targets[:, -1:].float()
        return ((outputs.float() - clean).abs() * hidden).sum() / (hidden.sum() * outputs.shape[1]).clamp(min=1)


def _means(images: Tensor, window: int) -> Tensor:
    """Return the means of images (B, C, X, Y[, Z]) over each whole window that lies in them."""
    for axis in range(2, images.ndim):
        size = [1] * (images.ndim - 2)
        size[axis - 2] = window
        pool = functional.avg_pool3d if images.ndim == 5 else functional.avg_pool2d
        images = pool(images, size, stride=1)
    return images
