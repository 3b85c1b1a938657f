"""Losses of pairs of scans: which came first, changed or not, by how much."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tomokit.errors import TomokitError
from tomokit.networks.siamese import OUTPUTS


class SiameseLoss(nn.Module):
    """Gives the weighted sum of the losses of what a pair of scans tells, each over the pairs where it is known.

    Order and change have binary cross-entropy, the amount a squared error that grows linearly from one unit on, and
    the distance of the scans' features the contrastive loss: small where nothing changed, at least `margin` where it
    did.

    Args:
        order: weight of the order.
        change: weight of changed or not.
        amount: weight of the amount.
        contrastive: weight of the distance.
        margin: distance from which a changed pair costs nothing.

    Raises:
        TomokitError: when outputs or targets are not those of pairs.
    Source: Hadsell et al., Dimensionality reduction by learning an invariant mapping, CVPR 2006; Huber, Annals of
        Mathematical Statistics 35 (1964).
    """

    def __init__(
        self,
        order: float = 1.0,
        change: float = 1.0,
        amount: float = 1.0,
        contrastive: float = 0.0,
        margin: float = 1.0,
    ) -> None:
        super().__init__()
        self.weights = (order, change, amount, contrastive)
        self.margin = margin

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            outputs: (B, 4), as `SiameseNetwork` gives them: order, change, amount, distance.
            targets: (B, 3): 1 where the first scan is the earlier one, else 0; 1 where changed, else 0; the amount
                from the first to the second. NaN where unknown.
        """
        if outputs.ndim != 2 or outputs.shape[1] != len(OUTPUTS) or targets.shape != (len(outputs), 3):
            raise TomokitError(
                f"pairs have outputs (B, {len(OUTPUTS)}) and targets (B, 3): order, changed, amount; got shapes "
                f"{tuple(outputs.shape)} and {tuple(targets.shape)}"
            )
        outputs, targets = outputs.float(), targets.float()
        known = ~targets.isnan()
        order, changed, amount = targets.nan_to_num().unbind(1)
        entropy = functional.binary_cross_entropy_with_logits
        parts = (
            (entropy(outputs[:, 0], order, reduction="none"), known[:, 0]),
            (entropy(outputs[:, 1], changed, reduction="none"), known[:, 1]),
            (functional.smooth_l1_loss(outputs[:, 2], amount, reduction="none"), known[:, 2]),
            (contrastive_losses(outputs[:, 3], changed, self.margin), known[:, 1]),
        )
        losses = torch.stack([(loss * known).sum() / known.sum().clamp(min=1) for loss, known in parts])
        return (losses * losses.new_tensor(self.weights)).sum()


def contrastive_losses(distance: Tensor, changed: Tensor, margin: float) -> Tensor:
    """Return each pair's contrastive loss (B,): half the square of its distance, or of what it lacks to the margin.

    Args:
        distance: (B,), 0 or more.
        changed: (B,), 1 for pairs that shall lie apart, 0 for those that shall not.
        margin: distance from which a changed pair costs nothing.
    """
    return ((1 - changed) * distance.square() + changed * (margin - distance).clamp(min=0).square()) / 2
