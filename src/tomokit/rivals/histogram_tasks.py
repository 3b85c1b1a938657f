"""Linear models of the intensity histogram for several labels per case, and for a value."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tomokit.errors import TomokitError
from tomokit.rivals.cases import identify
from tomokit.rivals.histogram import histogram_edges, measure_histogram

PENALTIES = np.logspace(-1, 4, 11)  # of a ridge regression, the best by leaving each training case out


def score_histogram_labels(
    training_entries: Sequence[Mapping[str, Any]],
    test_entries: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Return a row `{"case", "patient", "truth_<label>", "p_<label>", "decided_<label>" …}` per test case.

    Each label has a logistic regression of its own on the histogram of `score_histogram`. What reaches the label's
    share of the training cases is decided to be 1: of probabilities that hold, this threshold has the greatest sum
    of sensitivity and specificity. A label that all or no training cases have is given to all or none. Entries
    hold `case`, `image` and `label`, a list of 0 and 1 in the order of `labels`, `{"0": name, …}`.

    Raises:
        TomokitError: when there is no training case, or a label is no such list.
    """
    names = [labels[key] for key in sorted(labels, key=int)]
    for entry in [*training_entries, *test_entries]:
        flags = entry["label"]
        if not isinstance(flags, list) or len(flags) != len(names) or not set(flags) <= {0, 1}:
            raise TomokitError(f"{entry['case']} has the label {flags!r}; it must list 0 or 1 for each of {names}")
    edges = _checked_edges(training_entries)
    histograms = _histograms(training_entries, edges)
    targets = np.array([entry["label"] for entry in training_entries])
    models = [_fit_label(histograms, own) for own in targets.T]
    shares = targets.mean(axis=0)
    rows = []
    for entry in test_entries:
        histogram = _histograms([entry], edges)
        row = identify(entry)
        for name, flag, model, share in zip(names, entry["label"], models, shares, strict=True):
            chance = float(share) if model is None else float(model.predict_proba(histogram)[0, 1])
            decided = chance >= (0.5 if model is None else share)
            row |= {f"truth_{name}": int(flag), f"p_{name}": chance, f"decided_{name}": int(decided)}
        rows.append(row)
    return rows


def score_histogram_value(
    training_entries: Sequence[Mapping[str, Any]], test_entries: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return a row `{"case", "patient", "truth", "prediction"}` of a ridge regression per test case.

    Its features are the histogram of `score_histogram`; its penalty is chosen among the training cases. Entries
    hold `case`, `image` and `label`, a number.

    Raises:
        TomokitError: when there is no training case, or a label is no number.
    """
    for entry in [*training_entries, *test_entries]:
        if not isinstance(entry["label"], int | float) or isinstance(entry["label"], bool):
            raise TomokitError(f"{entry['case']} has the label {entry['label']!r}; a regression needs a number")
    edges = _checked_edges(training_entries)
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=PENALTIES))
    model.fit(_histograms(training_entries, edges), [float(entry["label"]) for entry in training_entries])
    return [
        identify(entry)
        | {"truth": float(entry["label"]), "prediction": float(model.predict(_histograms([entry], edges))[0])}
        for entry in test_entries
    ]


def _checked_edges(entries: Sequence[Mapping[str, Any]]) -> list[NDArray[np.float64]]:
    """Return the bins of the training cases' histograms.

    Raises:
        TomokitError: when there is no training case.
    """
    if not entries:
        raise TomokitError("the histogram's rival needs training cases, got none")
    return histogram_edges(entries)


def _fit_label(histograms: NDArray[np.float64], target: NDArray[Any]) -> Any:
    """Return a logistic regression of one label; None where all cases are alike."""
    if target.min() == target.max():
        return None
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(histograms, target)


def _histograms(entries: Sequence[Mapping[str, Any]], edges: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the histogram of each entry's image (entries, bins)."""
    return np.stack([measure_histogram(entry, edges) for entry in entries])
