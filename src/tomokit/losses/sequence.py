"""The loss of a volume read as a sequence of windows, where some labels are unknown."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tomokit.errors import TomokitError
from tomokit.networks.sequence import pool_windows
from tomokit.sequences import UNKNOWN


class SequenceLoss(nn.Module):
    """Cross-entropy of the volumes' logits, of the windows' where these are labelled, and of pooled ones elsewhere.

    Where none of a volume's windows is labelled, its label can teach them all the same: it shows a class if one of
    its windows does, so the windows' odds, summed, are the volume's. That holds for a finding with a place, such as a
    bleed, not for what only the order of the slices tells: there `instance_weight` is 0. It is 0 too for a network
    whose volume logits are pooled ones already.

    Args:
        window_weight: of the labelled windows' part.
        instance_weight: of the part of volumes without labelled windows.

    Raises:
        TomokitError: when the labels do not fit the logits.
    Source: Dietterich et al., Solving the multiple instance problem, Artificial Intelligence 89 (1997); Pinheiro &
        Collobert, CVPR 2015 (log-sum-exp).
    """

    def __init__(self, window_weight: float = 1.0, instance_weight: float = 0.0) -> None:
        super().__init__()
        self.window_weight = window_weight
        self.instance_weight = instance_weight

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            logits: (B, classes, 1 + T), as `WindowSequence` gives them: the volume's, then its windows'.
            labels: (B,) of the volumes, or (B, 1 + T) of volume and windows; -1 where unknown, or no window.
        """
        labels = _fitting(logits, labels)
        loss = known_cross_entropy(logits, labels, self.window_weight)
        if self.instance_weight > 0:
            unlabelled = (labels[:, 1:] == UNKNOWN).all(1)
            volumes = torch.where(unlabelled, labels[:, 0], UNKNOWN)
            pooled = pool_windows(logits[..., 1:].float())
            loss = loss + self.instance_weight * mean_cross_entropy(pooled, volumes)
        return loss


def known_cross_entropy(logits: Tensor, labels: Tensor, window_weight: float) -> Tensor:
    """Return the mean over known volumes plus the weighted mean over known windows, a scalar."""
    volume = mean_cross_entropy(logits[..., 0].float(), labels[:, 0])
    return volume + window_weight * mean_cross_entropy(logits[..., 1:].float(), labels[:, 1:])


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits (B, classes[, T]) where labels (B[, T]) are known; 0 when none is."""
    flat = logits.movedim(1, -1).reshape(-1, logits.shape[1])  # torch sums over a grid in no fixed order on a GPU
    total = functional.cross_entropy(flat, labels.reshape(-1), ignore_index=UNKNOWN, reduction="sum")
    return total / (labels != UNKNOWN).sum().clamp(min=1)


def _fitting(logits: Tensor, labels: Tensor) -> Tensor:
    """Return labels (B, 1 + T), those of windows unknown where volumes alone are labelled.

    Raises:
        TomokitError: when there are not as many labels as logits.
    """
    labels = labels.long()
    count = logits.shape[2]
    if labels.ndim == 1:
        labels = functional.pad(labels[:, None], (0, count - 1), value=UNKNOWN)
    if labels.shape != (logits.shape[0], count):
        raise TomokitError(
            f"labels must be (B,) or (B, 1 + windows), here {(logits.shape[0], count)}, got shape "
            f"{tuple(labels.shape)}; give the collation of the cases the network's `stride`"
        )
    return labels
