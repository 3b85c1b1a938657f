"""Losses that MONAI lacks: of label maps, classes, pairs, registrations, mended and hidden images, autoencoders."""

from tomokit.losses.adversarial import DeceptionLoss, DiscriminationLoss
from tomokit.losses.classification import OneHotLoss, class_weights
from tomokit.losses.registration import LocalCorrelation, MutualInformation, RegistrationLoss
from tomokit.losses.restoration import HiddenVoxelsLoss, RestorationLoss
from tomokit.losses.segmentation import DeepSupervision, DiceCrossEntropyLoss, merge_unlabelled
from tomokit.losses.sequence import SequenceLoss
from tomokit.losses.siamese import SiameseLoss
from tomokit.losses.targets import join_target, one_hot, split_target
from tomokit.losses.variational import VariationalLoss

__all__ = [
    "DeceptionLoss",
    "DeepSupervision",
    "DiceCrossEntropyLoss",
    "DiscriminationLoss",
    "HiddenVoxelsLoss",
    "LocalCorrelation",
    "MutualInformation",
    "OneHotLoss",
    "RegistrationLoss",
    "RestorationLoss",
    "SequenceLoss",
    "SiameseLoss",
    "VariationalLoss",
    "class_weights",
    "join_target",
    "merge_unlabelled",
    "one_hot",
    "split_target",
]
