"""Losses that MONAI lacks: of label maps, of classes, of sequences of windows, of pairs of scans, of hidden voxels."""

from tomokit.losses.classification import OneHotLoss, class_weights
from tomokit.losses.restoration import HiddenVoxelsLoss
from tomokit.losses.segmentation import DeepSupervision, DiceCrossEntropyLoss, merge_unlabelled
from tomokit.losses.sequence import SequenceLoss
from tomokit.losses.siamese import SiameseLoss

__all__ = [
    "DeepSupervision",
    "DiceCrossEntropyLoss",
    "HiddenVoxelsLoss",
    "OneHotLoss",
    "SequenceLoss",
    "SiameseLoss",
    "class_weights",
    "merge_unlabelled",
]
