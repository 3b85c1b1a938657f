"""Losses that MONAI lacks: of label maps, of classes, of sequences of windows, of pairs of scans, of registrations."""

from tomokit.losses.classification import OneHotLoss, class_weights
from tomokit.losses.registration import LocalCorrelation, MutualInformation, RegistrationLoss
from tomokit.losses.segmentation import DeepSupervision, DiceCrossEntropyLoss, merge_unlabelled
from tomokit.losses.sequence import SequenceLoss
from tomokit.losses.siamese import SiameseLoss
from tomokit.losses.targets import join_target, one_hot, split_target

__all__ = [
    "DeepSupervision",
    "DiceCrossEntropyLoss",
    "LocalCorrelation",
    "MutualInformation",
    "OneHotLoss",
    "RegistrationLoss",
    "SequenceLoss",
    "SiameseLoss",
    "class_weights",
    "join_target",
    "merge_unlabelled",
    "one_hot",
    "split_target",
]
