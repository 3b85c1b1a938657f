"""Scores of classifications: of classes, and of several labels per case, with intervals by patient."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomokit.errors import TomokitError, raise_problems
from tomokit.metrics.curves import area_under_curve, average_precision, calibration_error, sensitivity_at
from tomokit.metrics.entries import NO_ROWS, Row, entry_of, mean_entry
from tomokit.statistics import bootstrap_statistic, bootstrap_statistics

LABEL_MEASURES = ("auc", "average_precision", "sensitivity", "specificity", "precision", "f1", "brier", "ece")
# of each class against the rest, beside its AUC and sensitivity
CLASS_MEASURES = ("average_precision", "specificity", "precision", "f1", "sensitivity_at_90", "sensitivity_at_95")


def summarise_classification(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, Any]:
    """Return AUC, accuracies and calibration over a test set, each class against the rest, and the confusion.

    Rows carry "case", "patient", "truth" (a class's name) and a probability "p_<class>" for each class. The
    AUC is that of the probabilities; with two classes the last is the positive, with more it is the mean of
    each class against the rest. Accuracies take the most probable class, and "ece" (`calibration_error`) asks
    how often it is right. "brier" is half the squared distance of the probabilities from the truth, 0–1: with
    two classes the usual score. Values are {"mean", "ci95": [low, high] or None, "n": patients, "cases"}. Means
    run over the classes that have cases; "absent_classes" lists the others. Resamples which lack a class that
    the test set has are skipped for AUC and balanced accuracy. A class has "auc", "sensitivity" (recall), and
    `CLASS_MEASURES`: "sensitivity_at_90" is that at a specificity of 90 %. "confusion" counts the cases of each true
    class (rows) by their most probable one.

    Raises:
        TomokitError: when there are fewer than two classes, no rows, or rows are incomplete or out of range.
    Source: Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 27 (2006); Brier, Verification of
        forecasts expressed in terms of probability, Monthly Weather Review 78 (1950).
    """
    _check_classification(rows, classes)
    truth = np.array([list(classes).index(row["truth"]) for row in rows])
    scores = np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])
    patients = [str(row["patient"]) for row in rows]
    correct = scores.argmax(axis=1) == truth
    present = [i for i in range(len(classes)) if (truth == i).any()]
    positives = [1] if len(classes) == 2 else present
    auc = functools.partial(mean_auc, positives=positives)
    balanced = functools.partial(_balanced_accuracy, present=present)
    brier = ((scores - np.eye(len(classes))[truth]) ** 2).sum(axis=1) / 2
    ece = bootstrap_statistic(calibration_error, [correct, scores.max(axis=1)], patients)
    return {
        "summary": {
            "auc": entry_of(bootstrap_statistic(auc, [truth, scores], patients), len(rows)),
            "accuracy": mean_entry(correct, patients),
            "balanced_accuracy": entry_of(bootstrap_statistic(balanced, [truth, correct], patients), len(rows)),
            "brier": mean_entry(brier, patients),
            "ece": entry_of(ece, len(rows)),
        },
        "per_class": {name: _class_scores(i, truth, scores, correct, patients) for i, name in enumerate(classes)},
        "absent_classes": [name for i, name in enumerate(classes) if i not in present],
        "confusion": _count_answers(truth, scores.argmax(axis=1), len(classes)),
    }


def summarise_labels(
    rows: Sequence[Row], labels: Sequence[str], thresholds: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Return the scores of several labels per case over a test set: each label's, and their means.

    Rows carry "case", "patient" and for each label "truth_<label>" (0 or 1), the probability "p_<label>", and
    "decided_<label>" (0 or 1). With `thresholds`, `{label: probability}`, these decide instead: what reaches its
    threshold is 1. Each label has "auc", "average_precision", "sensitivity", "specificity", "precision", "f1", "brier"
    and "ece" (`calibration_error`) in "per_class", with its number of "positives"; "summary" has the means over the
    labels of which there are cases with and without; "absent_classes" lists the others. Values and resamples are
    as in `summarise_classification`.

    Raises:
        TomokitError: when there are no labels, no rows, a label lacks its threshold, or rows are incomplete or out
            of range.
    """
    _check_labels(rows, labels, thresholds)
    patients = [str(row["patient"]) for row in rows]
    truth, chances = _columns(rows, "truth", labels) == 1, _columns(rows, "p", labels)
    if thresholds is None:
        decided = _columns(rows, "decided", labels) == 1
    else:
        decided = chances >= [thresholds[name] for name in labels]
    positives = truth.sum(axis=0).tolist()
    known = [i for i, count in enumerate(positives) if 0 < count < len(rows)]
    measure = functools.partial(_measure_labels, known=known)
    intervals = iter(bootstrap_statistics(measure, [truth, chances, decided], patients))
    # for each measure its mean, then each label's own
    table = {name: [entry_of(next(intervals), len(rows)) for _ in range(1 + len(labels))] for name in LABEL_MEASURES}
    return {
        "summary": {name: entries[0] for name, entries in table.items()},
        "per_class": {
            label: {name: entries[1 + i] for name, entries in table.items()} | {"positives": positives[i]}
            for i, label in enumerate(labels)
        },
        "absent_classes": [label for i, label in enumerate(labels) if i not in known],
    }


def _check_classification(rows: Sequence[Row], classes: Sequence[str]) -> None:
    """Raise one error with everything that is wrong with the rows."""
    if len(set(classes)) < max(2, len(classes)):
        raise TomokitError(f"two or more different classes are needed, got {list(classes)}")
    if not rows:
        raise TomokitError(NO_ROWS.format("classified"))
    problems = []
    for row in rows:
        if row["truth"] not in classes:
            problems.append(f"truth {row['truth']!r} of case {row['case']} is not one of {list(classes)}")
        for column in (f"p_{name}" for name in classes):
            if column not in row:
                problems.append(f"case {row['case']} has no column {column}")
            elif not 0 <= float(row[column]) <= 1:
                problems.append(f"{column} of case {row['case']} must lie in 0–1, got {row[column]}")
    raise_problems("can't score the classification:", problems)


def _check_labels(rows: Sequence[Row], labels: Sequence[str], thresholds: Mapping[str, float] | None) -> None:
    """Raise one error with everything that is wrong with the rows of several labels per case."""
    if len(set(labels)) < max(1, len(labels)):
        raise TomokitError(f"one or more different labels are needed, got {list(labels)}")
    if not rows:
        raise TomokitError(NO_ROWS.format("classified"))
    lacking = [name for name in labels if thresholds is not None and name not in thresholds]
    if lacking:
        raise TomokitError(f"each label needs its threshold, none is given for {lacking}")
    kinds = ("truth", "p") if thresholds is not None else ("truth", "p", "decided")
    problems = []
    for row, name, kind in itertools.product(rows, labels, kinds):
        column = f"{kind}_{name}"
        if column not in row:
            problems.append(f"case {row['case']} has no column {column}")
        elif kind == "p" and not 0 <= float(row[column]) <= 1:
            problems.append(f"{column} of case {row['case']} must lie in 0–1, got {row[column]}")
        elif kind != "p" and float(row[column]) not in (0, 1):
            problems.append(f"{column} of case {row['case']} must be 0 or 1, got {row[column]}")
    raise_problems("can't score the labels:", problems)


def _columns(rows: Sequence[Row], kind: str, labels: Sequence[str]) -> NDArray[np.float64]:
    """Return a column of each label as numbers (cases, labels)."""
    return np.array([[float(row[f"{kind}_{name}"]) for name in labels] for row in rows])


def _measure_labels(
    truth: NDArray[np.bool_], chances: NDArray[np.float64], decided: NDArray[np.bool_], known: Sequence[int]
) -> NDArray[np.float64]:
    """Return the mean of each measure over the labels `known`, then each label's, measure by measure in one row.

    The arrays are (cases, labels). NaN is what is undefined; the mean is so with one of its labels.
    """
    places, hits = range(truth.shape[1]), (decided & truth).sum(axis=0)
    with np.errstate(invalid="ignore"):  # 0/0 of a label without a case, or without one decided, is NaN
        shares = [
            hits / truth.sum(axis=0),
            (~decided & ~truth).sum(axis=0) / (~truth).sum(axis=0),
            hits / decided.sum(axis=0),
            2 * hits / (decided.sum(axis=0) + truth.sum(axis=0)),
        ]
    each = np.array(
        [
            [area_under_curve(truth[:, i], chances[:, i]) for i in places],
            [average_precision(truth[:, i], chances[:, i]) for i in places],
            *shares,
            ((chances - truth) ** 2).mean(axis=0),
            [calibration_error(truth[:, i], chances[:, i]) for i in places],
        ]
    )
    means = each[:, list(known)].mean(axis=1) if known else np.full(len(each), np.nan)
    return np.column_stack([means, each]).ravel()


def _count_answers(truth: NDArray[Any], answers: NDArray[Any], count: int) -> list[list[int]]:
    """Return how many cases of each true class (rows) got each answer (columns)."""
    table = np.bincount(truth * count + answers, minlength=count * count)
    return [[int(number) for number in row] for row in table.reshape(count, count)]


def _class_scores(
    index: int, truth: NDArray[Any], scores: NDArray[Any], correct: NDArray[Any], patients: list[str]
) -> dict[str, Any]:
    """Return one class's scores against the rest; it is decided for where it is the most probable."""
    mine, decided = truth == index, scores.argmax(axis=1) == index
    auc = bootstrap_statistic(area_under_curve, [mine, scores[:, index]], patients)
    more = bootstrap_statistics(_measure_class, [mine, scores[:, index], decided], patients)
    return {
        "auc": entry_of(auc, len(truth)),
        "sensitivity": mean_entry(correct[mine], list(itertools.compress(patients, mine))),
        **{name: entry_of(own, len(truth)) for name, own in zip(CLASS_MEASURES, more, strict=True)},
    }


def _measure_class(mine: NDArray[np.bool_], chances: NDArray[Any], decided: NDArray[np.bool_]) -> list[float]:
    """Return the measures of a class in the order of `CLASS_MEASURES`; NaN is what is undefined."""
    hits, called, own = int((mine & decided).sum()), int(decided.sum()), int(mine.sum())
    right = int((~mine & ~decided).sum())
    shares = [(right, len(mine) - own), (hits, called), (2 * hits, called + own)]
    ratios = [above / below if below else float("nan") for above, below in shares]
    at = [sensitivity_at(mine, chances, specificity) for specificity in (0.9, 0.95)]
    return [average_precision(mine, chances), *ratios, *at]


def mean_auc(truth: NDArray[Any], scores: NDArray[Any], positives: Sequence[int]) -> float:
    """Return the mean over `positives` of each class's AUC against the rest; NaN when one is undefined.

    Args:
        truth: (N,) classes.
        scores: (N, classes).
        positives: classes.
    """
    return float(np.mean([area_under_curve(truth == i, scores[:, i]) for i in positives]))


def _balanced_accuracy(truth: NDArray[Any], correct: NDArray[Any], present: Sequence[int]) -> float:
    """Return the mean sensitivity over the classes `present`; NaN when one has no case."""
    cases = np.bincount(truth, minlength=max(present) + 1)[present]
    hits = np.bincount(truth, weights=correct, minlength=max(present) + 1)[present]
    return float(np.mean(hits / cases)) if cases.all() else float("nan")
