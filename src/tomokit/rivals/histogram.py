"""A logistic regression on the intensity histogram."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tomokit.rivals.cases import (
    QUANTILES_PER_CASE,
    Volume,
    class_names,
    load,
    normalise_intensity,
    probability_rows,
    training_targets,
)

HISTOGRAM_BINS = 32


def score_histogram(
    training_entries: Sequence[Mapping[str, Any]],
    test_entries: Sequence[Mapping[str, Any]],
    classes: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Return a row `{"case", "patient", "truth", "p_<class>" …}` of a logistic regression per test case.

    Its features are the shares of voxels in 32 bins of the stored and in 32 of the normalised intensities,
    between the training images' 0.5th and 99.5th percentiles, standardised by the training cases. Entries
    hold `case`, `image` (NIfTI) and `label` (an integer class); `classes` is dataset.json's `labels`, `{"0":
    "compact", …}`. `truth` is the class's name and each `p_` its probability, 0 for a class without training
    cases.

    Raises:
        TomokitError: when the training cases are all of one class, or a label is no class.
    """
    names = class_names(classes, [*training_entries, *test_entries])
    targets = training_targets(training_entries, names)
    edges = histogram_edges(training_entries)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(np.stack([measure_histogram(entry, edges) for entry in training_entries]), targets)
    return probability_rows(model, test_entries, (measure_histogram(entry, edges) for entry in test_entries), names)


def histogram_edges(entries: Sequence[Mapping[str, Any]]) -> list[NDArray[np.float64]]:
    """Return the bins of the stored and of the normalised intensities, open at both ends."""
    samples: tuple[list[Volume], list[Volume]] = ([], [])
    for entry in entries:
        image = load(entry["image"])
        for kind, volume in zip(samples, (image, normalise_intensity(image)), strict=True):
            kind.append(np.quantile(volume, np.linspace(0, 1, QUANTILES_PER_CASE)))
    limits = [np.percentile(np.concatenate(kind), (0.5, 99.5)) for kind in samples]
    return [np.concatenate([[-np.inf], np.linspace(low, high, HISTOGRAM_BINS - 1), [np.inf]]) for low, high in limits]


def measure_histogram(entry: Mapping[str, Any], edges: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the shares of voxels in each bin, of the stored and then of the normalised intensities."""
    image = load(entry["image"])
    volumes = (image, normalise_intensity(image))
    counts = [np.histogram(volume, bins)[0] for volume, bins in zip(volumes, edges, strict=True)]
    return np.concatenate(counts) / image.size
