"""A network of whole volumes in the place of one of windows, to be compared with it."""

import torch
from torch import Tensor, nn

from tomokit.networks.sequence import NEVER


class WholeVolume(nn.Module):
    """A network of whole volumes that takes and gives what `WindowSequence` does; its windows are of class 0, for sure.

    So the two learn from the same batches, with the same loss. It does not know the lengths: in a batch of volumes of
    different length it sees the shorter ones with their padding.

    Args:
        network: takes (B, C, X, Y, Z) and gives logits (B, classes).
        axis: of (X, Y, Z), along which the slices lie.
        stride: slices from a window to the next.
    """

    def __init__(self, network: nn.Module, axis: int = -1, stride: int = 1) -> None:
        super().__init__()
        self.network = network
        self.axis = axis % 3 + 2
        self.stride = stride
        self.never = NEVER

    def forward(self, image: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits (B, classes, 1 + T) for an image (B, C, X, Y, Z): the volume's, then those of T windows."""
        volume = self.network(image).float()
        absent = torch.full_like(volume, self.never)
        absent[:, 0] = 0
        windows = (image.shape[self.axis] + self.stride - 1) // self.stride
        return torch.cat([volume.unsqueeze(2), absent.unsqueeze(2).expand(-1, -1, windows)], 2)
