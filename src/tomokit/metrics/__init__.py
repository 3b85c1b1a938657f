"""Scores: of segmentations, lesions, classes, labels, values, images, deformations; with intervals by patient."""

from tomokit.metrics.classification import LABEL_MEASURES, mean_auc, summarise_classification, summarise_labels
from tomokit.metrics.curves import (
    PrecisionRecallPoints,
    ReliabilityPoints,
    RocPoints,
    area_under_curve,
    average_precision,
    calibration_error,
    precision_recall_points,
    reliability_points,
    roc_points,
    sensitivity_at,
)
from tomokit.metrics.deformations import jacobian_determinants, landmark_error_mm, share_folded, spread_of_volume
from tomokit.metrics.entries import NO_ROWS, NOT_SCORED, Row, entry_of, mean_entry
from tomokit.metrics.images import psnr, ssim
from tomokit.metrics.lesions import Froc, froc, mean_sensitivity, score_lesions, summarise_lesions
from tomokit.metrics.regression import VALUE_MEASURES, summarise_regression
from tomokit.metrics.segmentation import mean_by_case, score_segmentation, summarise_cases, summarise_segmentation
from tomokit.metrics.surfaces import SurfaceScores, check_tolerance, compare_surfaces
from tomokit.metrics.tasks import TASKS, check_task, summarise_task

__all__ = [
    "LABEL_MEASURES",
    "NOT_SCORED",
    "NO_ROWS",
    "TASKS",
    "VALUE_MEASURES",
    "Froc",
    "PrecisionRecallPoints",
    "ReliabilityPoints",
    "RocPoints",
    "Row",
    "SurfaceScores",
    "area_under_curve",
    "average_precision",
    "calibration_error",
    "check_task",
    "check_tolerance",
    "compare_surfaces",
    "entry_of",
    "froc",
    "jacobian_determinants",
    "landmark_error_mm",
    "mean_auc",
    "mean_by_case",
    "mean_entry",
    "mean_sensitivity",
    "precision_recall_points",
    "psnr",
    "reliability_points",
    "roc_points",
    "score_lesions",
    "score_segmentation",
    "sensitivity_at",
    "share_folded",
    "spread_of_volume",
    "ssim",
    "summarise_cases",
    "summarise_classification",
    "summarise_labels",
    "summarise_lesions",
    "summarise_regression",
    "summarise_segmentation",
    "summarise_task",
]
