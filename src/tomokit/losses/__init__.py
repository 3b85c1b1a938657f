"""Losses that MONAI lacks: of label maps, of classes, of sequences of windows, of pairs of scans, of autoencoders."""

from tomokit.losses.classification import OneHotLoss, class_weights
from tomokit.losses.segmentation import DeepSupervision, DiceCrossEntropyLoss, merge_unlabelled
from tomokit.losses.sequence import SequenceLoss
from tomokit.losses.siamese import SiameseLoss
from tomokit.losses.variational import VariationalLoss

__all__ = [
    "DeepSupervision",
    "DiceCrossEntropyLoss",
    "OneHotLoss",
    "SequenceLoss",
    "SiameseLoss",
    "VariationalLoss",
    "class_weights",
    "merge_unlabelled",
]
