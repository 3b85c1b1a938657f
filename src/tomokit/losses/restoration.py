"""How far a mended image is from the clean one."""

from monai.losses import SSIMLoss
from torch import Tensor, nn

from tomokit.errors import TomokitError


class RestorationLoss(nn.Module):
    """The mean absolute difference, and what the structural similarity lacks of 1.

    Args:
        spatial_dims: 2 or 3.
        ssim: the weight of the second; 0 leaves it out.
        window: voxels along each edge of the similarity's window.

    Raises:
        TomokitError: when the weight is negative.
    Source: Zhao et al., Loss functions for image restoration with neural networks, IEEE Transactions on Computational
        Imaging 3 (2017).
    """

    def __init__(self, spatial_dims: int = 3, ssim: float = 0.1, window: int = 7) -> None:
        super().__init__()
        if ssim < 0:
            raise TomokitError(f"ssim must be at least 0, got {ssim}")
        self.ssim = ssim
        self.similarity = SSIMLoss(spatial_dims, data_range=1.0, win_size=window) if ssim else None

    def forward(self, image: Tensor, clean: Tensor) -> Tensor:
        """Return the loss of mended images (B, C, X, Y[, Z]) in units of their range."""
        loss = (image - clean).abs().mean()
        if self.similarity is None:
            return loss
        return loss + self.ssim * self.similarity(image.contiguous(), clean.contiguous())
