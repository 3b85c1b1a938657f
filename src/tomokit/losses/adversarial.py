"""What a network and its discriminator lose to each other, by the logits of MONAI's `PatchDiscriminator`."""

from collections.abc import Sequence

from monai.losses import PatchAdversarialLoss
from torch import Tensor, nn

from tomokit.errors import TomokitError

CRITERION = "least_squares"


class DeceptionLoss(nn.Module):
    """How well the discriminator knows mended images for what they are: the network's part of the loss.

    Args:
        weight: of this part beside the distance from the clean image.

    Raises:
        TomokitError: when the weight is negative.
    Source: Mao et al., Least squares generative adversarial networks, ICCV 2017.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        if weight < 0:
            raise TomokitError(f"weight must be at least 0, got {weight}")
        self.weight = weight
        self.loss = PatchAdversarialLoss(criterion=CRITERION, no_activation_leastsq=True)

    def forward(self, fakes: Sequence[Tensor]) -> Tensor:
        """Return the loss of mended images, of which the discriminator's features are given, the logits last."""
        found: Tensor = self.loss(fakes[-1], target_is_real=True, for_discriminator=False)
        return self.weight * found


class DiscriminationLoss(nn.Module):
    """How badly the discriminator tells clean images from mended ones."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = PatchAdversarialLoss(criterion=CRITERION, no_activation_leastsq=True)

    def forward(self, reals: Sequence[Tensor], fakes: Sequence[Tensor]) -> Tensor:
        """Return the mean loss of both, of which the discriminator's features are given, the logits last."""
        real: Tensor = self.loss(reals[-1], target_is_real=True, for_discriminator=True)
        fake: Tensor = self.loss(fakes[-1], target_is_real=False, for_discriminator=True)
        return (real + fake) / 2
