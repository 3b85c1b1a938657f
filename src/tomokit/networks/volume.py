"""The volume's logits alone, of a network that gives those of its windows too."""

from torch import Tensor, nn


class VolumeLogits(nn.Module):
    """A `WindowSequence` as a classifier of volumes of one length: of its logits those of the volume.

    Args:
        network: gives (B, classes, 1 + T), first the volume's logits, then each window's.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, classes) for an image (B, C, X, Y, Z)."""
        return self.network(image)[:, :, 0]
