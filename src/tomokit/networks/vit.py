"""MONAI's vision transformer as a classifier."""

from monai.networks.nets import ViT
from torch import Tensor, nn

from tomokit.errors import TomokitError


class ViTClassifier(nn.Module):
    """MONAI's ViT, of whose outputs the logits are taken; it gives the states of its blocks beside them.

    Its blocks hold a norm for a cross attention that they do not have, which is left out of training: no gradient
    reaches it, and processes that train together would wait for one.

    Args:
        network: a ViT with `classification: true` and `post_activation: null`; its image size is fixed.

    Raises:
        TomokitError: when it gives no logits.
    Source: Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021.
    """

    def __init__(self, network: ViT) -> None:
        super().__init__()
        head = getattr(network, "classification_head", None)
        if not isinstance(head, nn.Linear):
            raise TomokitError(
                "ViT gives logits with `classification: true` and `post_activation: null` alone, its last layer is "
                f"{type(head).__name__}"
            )
        for block in network.blocks:
            block.norm_cross_attn.requires_grad_(False)
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, num_classes) for an image (B, C, X, Y[, Z]) of the network's size."""
        return self.network(image)[0]
