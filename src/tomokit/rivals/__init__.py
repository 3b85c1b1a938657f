"""Cheap rivals to show beside a network: thresholds, histograms, and measures of size, shape and intensity.

Thresholds and histograms see each intensity as stored and also normalised by the image's own percentiles, since the
former carries the information in CT (HU) and the latter in MRI (arbitrary units).
"""

from tomokit.rivals.cases import normalise_intensity
from tomokit.rivals.features import feature_table, make_classifier, score_feature_models, score_features
from tomokit.rivals.histogram import score_histogram
from tomokit.rivals.histogram_tasks import score_histogram_labels, score_histogram_value
from tomokit.rivals.record import score_record
from tomokit.rivals.thresholds import apply_threshold, fit_thresholds, score_thresholds

__all__ = [
    "apply_threshold",
    "feature_table",
    "fit_thresholds",
    "make_classifier",
    "normalise_intensity",
    "score_feature_models",
    "score_features",
    "score_histogram",
    "score_histogram_labels",
    "score_histogram_value",
    "score_record",
    "score_thresholds",
]
