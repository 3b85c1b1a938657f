"""Structures in numbers: features for classifiers, and the measures of each structure and lesion of a label map."""

from tomokit.measure.features import (
    INTENSITY,
    PLACE,
    SHAPE,
    Measures,
    feature_names,
    measure_case,
    measure_features,
    measure_intensity,
    measure_shape,
)
from tomokit.measure.structures import COLUMNS, DENSITY, measure_structures

__all__ = [
    "COLUMNS",
    "DENSITY",
    "INTENSITY",
    "PLACE",
    "SHAPE",
    "Measures",
    "feature_names",
    "measure_case",
    "measure_features",
    "measure_intensity",
    "measure_shape",
    "measure_structures",
]
