"""Losses of label maps: several heads, voxels nobody labelled, partly labelled cases, overlapping regions."""

from collections.abc import Sequence

import torch
from monai.losses import DeepSupervisionLoss
from torch import Tensor, nn
from torch.nn import functional

from tomokit.errors import TomokitError
from tomokit.regions import Regions, region_table, regions_of, unlabelled_classes

SMOOTH = 1e-5  # keeps 0/0 away; MONAI's value


class DeepSupervision(nn.Module):
    """Gives the weighted mean of a loss over a network's heads: 1, 1/2, 1/4, …, scaled to a sum of 1.

    MONAI's `DeepSupervisionLoss` does the work; it neither scales the weights nor takes a DynUNet's stacked heads.

    Args:
        loss: the loss of one head, called with logits (B, C, X, Y[, Z]) and a label map (B, 1, X, Y[, Z]).

    Source: Lee et al., Deeply-supervised nets, AISTATS 2015; weights as in nnU-Net (Isensee et al., 2021).
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the loss, a scalar.

        `logits` are one tensor (B, C, X, Y[, Z]); a list of them, full resolution first; or a DynUNet's stack of heads
        (B, heads, C, X, Y[, Z]). The target is brought to each head's grid by its nearest voxel.
        """
        if isinstance(logits, Tensor) and logits.ndim == target.ndim:
            return self.loss(logits, target)
        heads = logits.unbind(1) if isinstance(logits, Tensor) else logits
        weights = [0.5**level for level in range(len(heads))]
        scaled = [weight / sum(weights) for weight in weights]
        return DeepSupervisionLoss(self.loss, weights=scaled)(list(heads), target.float())


class DiceCrossEntropyLoss(nn.Module):
    """Gives Dice loss plus cross-entropy, over all voxels of a batch together, of what the target knows.

    Without further arguments it is MONAI's `DiceCELoss(softmax, to_onehot_y, batch, include_background=False)`.
    Voxels of the ignore label count in neither part. In a case whose background is coded by
    `tomokit.regions.MarkUnlabelledd`, the probabilities of the classes that nobody annotated are added to the
    background's. With `regions` each channel is a region, with a sigmoid and binary cross-entropy; a region is left
    out at the coded voxels of a case in which one of its labels was not annotated.

    Args:
        ignore_label: the label of voxels that nobody labelled; None where there are none.
        partly_labelled: whether the targets of some cases are coded.
        regions: `{name: [labels], …}` in the order of the network's channels; None: channels are labels.
        include_background: whether channel 0 counts in the Dice loss, where channels are labels.

    Raises:
        TomokitError: when the network's channels are not as many as the regions.
    Source: Milletari et al., V-Net, 3DV 2016; Shi et al., Marginal loss and exclusion loss for partially supervised
        multi-organ segmentation, Medical Image Analysis 70 (2021).
    """

    def __init__(
        self,
        ignore_label: int | None = None,
        partly_labelled: bool = False,
        regions: Regions | None = None,
        include_background: bool = False,
    ) -> None:
        super().__init__()
        self.ignore_label = ignore_label
        self.partly_labelled = partly_labelled
        self.first = 0 if include_background or regions is not None else 1
        self.table: Tensor | None
        self.register_buffer("table", None if regions is None else region_table(regions), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits (B, C, X, Y[, Z]) and label maps (B, 1, X, Y[, Z])."""
        logits = logits.float()
        known = None if self.ignore_label is None else target != self.ignore_label
        if self.table is None:
            return self._loss_of_labels(logits, target, known)
        return self._loss_of_regions(logits, target, known, self.table.to(logits.device))

    def _loss_of_labels(self, logits: Tensor, target: Tensor, known: Tensor | None) -> Tensor:
        """Return the loss where the channels exclude each other."""
        if self.partly_labelled:
            logits = merge_unlabelled(logits, unlabelled_classes(target, logits.shape[1]))
            target = torch.where(target < 0, 0, target)
        labels = masked(target.long(), known)
        chances = functional.log_softmax(logits, 1)
        cross_entropy = -mean_of_known(chances.gather(1, labels), known)
        classes = torch.arange(self.first, logits.shape[1], device=logits.device).view(-1, *[1] * (logits.ndim - 2))
        truth = masked(labels == classes, known)
        return cross_entropy + dice_loss(masked(chances[:, self.first :].exp(), known), truth)

    def _loss_of_regions(self, logits: Tensor, target: Tensor, known: Tensor | None, table: Tensor) -> Tensor:
        """Return the loss where each channel is a region of its own."""
        if logits.shape[1] != len(table):
            raise TomokitError(
                f"the network gives {logits.shape[1]} channels for {len(table)} regions; "
                "set `network_def::out_channels` to `$len(@regions)`, after another network's layer"
            )
        if self.partly_labelled:
            missing = unlabelled_classes(target, table.shape[1])
            unsure = (table & missing[:, None]).any(2)
            sure = ~(unsure.view(*unsure.shape, *[1] * (logits.ndim - 2)) & (target < 0))
            known = sure if known is None else known & sure
        truth = regions_of(target, table)
        entropies = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        cross_entropy = mean_of_known(entropies, known)
        return cross_entropy + dice_loss(masked(logits.sigmoid(), known), masked(truth, known))


def masked(values: Tensor, known: Tensor | None) -> Tensor:
    """Return the values (B, C, X, Y[, Z]), 0 where they are not known; `known` None: all are."""
    return values if known is None else values * known


def mean_of_known(values: Tensor, known: Tensor | None) -> Tensor:
    """Return the mean over the values that are known, a scalar; 0 when none is."""
    if known is None:
        return values.mean()
    known = known.expand_as(values)
    return (values * known).sum() / known.sum().clamp(min=1)


def dice_loss(chances: Tensor, truth: Tensor) -> Tensor:
    """Return 1 - Dice, a scalar: the mean over channels, each from all voxels of a batch (B, C, X, Y[, Z])."""
    axes = [axis for axis in range(chances.ndim) if axis != 1]
    truth = truth.to(chances.dtype)
    both = (chances * truth).sum(axes)
    return (1 - (2 * both + SMOOTH) / (chances.sum(axes) + truth.sum(axes) + SMOOTH)).mean()


def merge_unlabelled(logits: Tensor, missing: Tensor) -> Tensor:
    """Return logits (B, C, X, Y[, Z]) whose softmax adds the classes `missing` (B, C) to the background's."""
    missing = missing.view(*missing.shape, *[1] * (logits.ndim - 2))
    merged = missing.clone()
    merged[:, 0] = True
    lowest = torch.finfo(logits.dtype).min
    background = logits.masked_fill(~merged, lowest).logsumexp(1, keepdim=True)
    return torch.cat([background, logits[:, 1:].masked_fill(missing[:, 1:], lowest)], 1)
