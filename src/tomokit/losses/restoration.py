"""Losses of images that were hidden in part."""

from torch import Tensor, nn

from tomokit.errors import TomokitError


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
