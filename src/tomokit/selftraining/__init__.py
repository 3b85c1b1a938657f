"""Learning from cases whose labels are hidden or absent: a teacher's labels, agreement with a moving average."""

from tomokit.selftraining.comparison import check_baseline, compare_classification, compare_segmentation
from tomokit.selftraining.mean_teacher import MeanTeacher, images_alone
from tomokit.selftraining.pseudo_labels import PseudoLabeld, attach_pseudo_labels, read_pseudo_labels

__all__ = [
    "MeanTeacher",
    "PseudoLabeld",
    "attach_pseudo_labels",
    "check_baseline",
    "compare_classification",
    "compare_segmentation",
    "images_alone",
    "read_pseudo_labels",
]
