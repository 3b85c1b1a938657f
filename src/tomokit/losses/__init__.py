"""Losses that MONAI lacks: of label maps, of classes, of sequences of windows, of pairs of scans, of mended images."""

from tomokit.losses.adversarial import DeceptionLoss, DiscriminationLoss
from tomokit.losses.classification import OneHotLoss, class_weights
from tomokit.losses.restoration import RestorationLoss
from tomokit.losses.segmentation import DeepSupervision, DiceCrossEntropyLoss, merge_unlabelled
from tomokit.losses.sequence import SequenceLoss
from tomokit.losses.siamese import SiameseLoss

__all__ = [
    "DeceptionLoss",
    "DeepSupervision",
    "DiceCrossEntropyLoss",
    "DiscriminationLoss",
    "OneHotLoss",
    "RestorationLoss",
    "SequenceLoss",
    "SiameseLoss",
    "class_weights",
    "merge_unlabelled",
]
