"""Losses that MONAI lacks: of label maps, classes, pairs of scans, mended images, autoencoders, hidden voxels."""

from tomokit.losses.adversarial import DeceptionLoss, DiscriminationLoss
from tomokit.losses.classification import OneHotLoss, class_weights
from tomokit.losses.restoration import HiddenVoxelsLoss, RestorationLoss
from tomokit.losses.segmentation import DeepSupervision, DiceCrossEntropyLoss, merge_unlabelled
from tomokit.losses.sequence import SequenceLoss
from tomokit.losses.siamese import SiameseLoss
from tomokit.losses.variational import VariationalLoss

__all__ = [
    "DeceptionLoss",
    "DeepSupervision",
    "DiceCrossEntropyLoss",
    "DiscriminationLoss",
    "HiddenVoxelsLoss",
    "OneHotLoss",
    "RestorationLoss",
    "SequenceLoss",
    "SiameseLoss",
    "VariationalLoss",
    "class_weights",
    "merge_unlabelled",
]
