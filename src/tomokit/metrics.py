"""Scores of segmentations, classifications and regressions: per case, and over a test set with intervals by patient."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from tomokit.errors import TomokitError, raise_problems
from tomokit.geometry import voxel_volume_ml
from tomokit.labels import check_label_map, foreground
from tomokit.statistics import Interval, bootstrap_mean, bootstrap_statistic, bootstrap_statistics

Row = Mapping[str, Any]
NOT_SCORED = Interval(None, None, None, 0)
TASKS = {"classes": "classification", "labels": "multi_label", "value": "regression"}  # in a config; in metrics.json
LABEL_MEASURES = ("auc", "average_precision", "sensitivity", "specificity", "f1", "brier", "ece")
VALUE_MEASURES = ("mae", "rmse", "mse", "r2", "pearson", "spearman", "bias")
MOST_BINS = 15  # of the calibration error
NO_ROWS = "no {} cases to summarise, got 0 rows; does the test split have cases?"


def score_segmentation(
    prediction: ArrayLike,
    truth: ArrayLike,
    labels: Mapping[str, str] | Mapping[int, str],
    affine: ArrayLike,
) -> list[dict[str, Any]]:
    """Return one row per structure: its name ("class"), "dice", "truth_ml" and "predicted_ml".

    `prediction` and `truth` are label maps (X, Y, Z) on the grid of `affine`. Dice lies in 0–1; it is None
    when the structure is absent from both, since 0/0 has no value, and 0 when it is absent from one.

    Raises:
        TomokitError: when shapes differ, or a value is not in the label map.
    Source: Dice, Measures of the amount of ecologic association between species, Ecology 26 (1945).
    """
    predicted, true = np.asarray(prediction), np.asarray(truth)
    if predicted.shape != true.shape:
        raise TomokitError(f"prediction {predicted.shape} and truth {true.shape} must have the same shape")
    n_values = len(check_label_map(labels))
    _check_values(predicted, "prediction", n_values)
    _check_values(true, "truth", n_values)
    table = _count_pairs(predicted, true, n_values)
    voxel_ml = voxel_volume_ml(affine)
    rows = []
    for value, name in foreground(labels).items():
        in_truth, in_prediction = int(table[value].sum()), int(table[:, value].sum())
        total = in_truth + in_prediction
        dice = 2 * int(table[value, value]) / total if total else None
        volumes = {"truth_ml": in_truth * voxel_ml, "predicted_ml": in_prediction * voxel_ml}
        rows.append({"class": name, "dice": dice, **volumes})
    return rows


def mean_dice_by_case(rows: Sequence[Row]) -> dict[str, float]:
    """Return each case's mean Dice over its scored structures; a case with none is left out.

    Rows carry "case", "class" and "dice" (None where the structure is absent from truth and prediction).
    """
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row["dice"] is not None:
            scores.setdefault(row["case"], []).append(row["dice"])
    return {case: float(np.mean(values)) for case, values in scores.items()}


def summarise_segmentation(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the Dice over a test set as {"summary": …, "per_class": …}.

    Rows carry "case", "patient", "class" and "dice" (None where absent from both, which is counted and not
    scored), and may carry "truth_ml". Each Dice is {"mean", "ci95": [low, high] or None, "n": patients,
    "cases"}; the summary's is the mean over cases of the case's mean over its scored structures. A structure
    also has "absent_in_both" (cases without a score) and "empty_truth" (cases whose truth lacks it, those
    included; None when the rows don't carry "truth_ml").

    Raises:
        TomokitError: when there are no rows.
    """
    if not rows:
        raise TomokitError(NO_ROWS.format("scored"))
    patient_of = {row["case"]: row["patient"] for row in rows}
    means = mean_dice_by_case(rows)
    per_class = {}
    for name in dict.fromkeys(row["class"] for row in rows):
        mine = [row for row in rows if row["class"] == name]
        scored = [row for row in mine if row["dice"] is not None]
        volumes_known = all("truth_ml" in row for row in mine)
        per_class[name] = {
            "dice": _mean([row["dice"] for row in scored], [row["patient"] for row in scored]),
            "absent_in_both": len(mine) - len(scored),
            "empty_truth": sum(row["truth_ml"] == 0 for row in mine) if volumes_known else None,
        }
    dice = _mean(list(means.values()), [patient_of[case] for case in means])
    return {"summary": {"dice": dice}, "per_class": per_class}


def check_task(task: str) -> None:
    """Raise when a task is none of "classes", "labels" and "value".

    Raises:
        TomokitError: which lists them.
    """
    if task not in TASKS:
        raise TomokitError(f"`task` must be one of {', '.join(TASKS)}, got {task!r}")


def summarise_task(task: str, rows: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    """Return the summary that a task has: of classes, of several labels per case, or of a value.

    `names` are those of the classes or labels; a value needs none.

    Raises:
        TomokitError: when there is no such task, and as the summary itself.
    """
    check_task(task)
    if task == "labels":
        return summarise_labels(rows, names)
    return summarise_regression(rows) if task == "value" else summarise_classification(rows, names)


def summarise_classification(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, Any]:
    """Return AUC, accuracies and calibration over a test set, and each class's AUC and sensitivity.

    Rows carry "case", "patient", "truth" (a class's name) and a probability "p_<class>" for each class. The
    AUC is that of the probabilities; with two classes the last is the positive, with more it is the mean of
    each class against the rest. Accuracies take the most probable class, and "ece" (`calibration_error`) asks
    how often it is right. "brier" is half the squared distance of the probabilities from the truth, 0–1: with
    two classes the usual score. Values are {"mean", "ci95": [low, high] or None, "n": patients, "cases"}. Means
    run over the classes that have cases; "absent_classes" lists the others. Resamples which lack a class that
    the test set has are skipped for AUC and balanced accuracy.

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
            "auc": _entry(bootstrap_statistic(auc, [truth, scores], patients), len(rows)),
            "accuracy": _mean(correct, patients),
            "balanced_accuracy": _entry(bootstrap_statistic(balanced, [truth, correct], patients), len(rows)),
            "brier": _mean(brier, patients),
            "ece": _entry(ece, len(rows)),
        },
        "per_class": {name: _class_scores(i, truth, scores, correct, patients) for i, name in enumerate(classes)},
        "absent_classes": [name for i, name in enumerate(classes) if i not in present],
    }


def summarise_labels(
    rows: Sequence[Row], labels: Sequence[str], thresholds: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Return the scores of several labels per case over a test set: each label's, and their means.

    Rows carry "case", "patient" and for each label "truth_<label>" (0 or 1), the probability "p_<label>", and
    "decided_<label>" (0 or 1). With `thresholds`, `{label: probability}`, these decide instead: what reaches its
    threshold is 1. Each label has "auc", "average_precision", "sensitivity", "specificity", "f1", "brier" and
    "ece" (`calibration_error`) in "per_class", with its number of "positives"; "summary" has the means over the
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
    table = {name: [_entry(next(intervals), len(rows)) for _ in range(1 + len(labels))] for name in LABEL_MEASURES}
    return {
        "summary": {name: entries[0] for name, entries in table.items()},
        "per_class": {
            label: {name: entries[1 + i] for name, entries in table.items()} | {"positives": positives[i]}
            for i, label in enumerate(labels)
        },
        "absent_classes": [label for i, label in enumerate(labels) if i not in known],
    }


def summarise_regression(rows: Sequence[Row]) -> dict[str, Any]:
    """Return how near predicted values are to the truth over a test set, as {"summary": …, "per_class": {}}.

    Rows carry "case", "patient", "truth" and "prediction", numbers in one unit. The summary has "mae", "rmse" and
    "bias" (the mean of prediction minus truth) in that unit, "mse" in its square, "r2" (1: perfect, 0: no better
    than the mean of these cases), and the correlations "pearson" and "spearman", which need values that differ.
    Values and resamples are as in `summarise_classification`.

    Raises:
        TomokitError: when there are no rows, or rows are incomplete or hold no finite number.
    """
    if not rows:
        raise TomokitError(NO_ROWS.format("predicted"))
    _check_targets(rows)
    columns = [np.array([float(row[column]) for row in rows]) for column in ("truth", "prediction")]
    intervals = bootstrap_statistics(_measure_values, columns, [str(row["patient"]) for row in rows])
    summary = {name: _entry(own, len(rows)) for name, own in zip(VALUE_MEASURES, intervals, strict=True)}
    return {"summary": summary, "per_class": {}}


def area_under_curve(truth: NDArray[Any], score: NDArray[Any]) -> float:
    """Return the area under the ROC curve, 0–1: how often a positive scores above a negative, ties half.

    `truth` holds True for positives, `score` grows with the belief in it. NaN unless both kinds are there.

    Source: Mann and Whitney, Annals of Mathematical Statistics 18 (1947).
    """
    positive = np.asarray(truth, dtype=bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if n_positive == 0 or n_negative == 0:
        return float("nan")
    ranks = scipy.stats.rankdata(score)[positive].sum()
    return float((ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def average_precision(truth: NDArray[Any], score: NDArray[Any]) -> float:
    """Return the mean precision over the recalls, 0–1; NaN without a positive.

    `truth` holds True for positives, `score` grows with the belief in it; cases of one score are found together.
    scikit-learn's function gives the same, too slowly for thousands of resamples.
    """
    positive, numbers = np.asarray(truth, dtype=bool), np.asarray(score, dtype=float)
    if not positive.any():
        return float("nan")
    order = np.argsort(-numbers, kind="stable")
    falls = np.append(np.diff(numbers[order]) != 0, True)  # the last case of each score
    found, hits = np.flatnonzero(falls) + 1, positive[order].cumsum()[falls]
    return float((np.diff(hits, prepend=0) * hits / found).sum() / hits[-1])


def calibration_error(outcomes: NDArray[Any], chances: NDArray[Any]) -> float:
    """Return the expected calibration error, 0–1: how far probabilities lie from how often they come true.

    `outcomes` holds True where an event came, `chances` its probability. The cases are put into bins by their
    probability; the gaps between a bin's mean probability and its share of events are averaged, each bin weighed by
    its cases. For classes the event is that the most probable one is right, and the probability is that one's.

    Bins hold as many cases each, since bins of equal width leave some with a case or two; cases of one probability
    stay together. There are as many as the cube root of the number of cases, at most 15 (from 3,049 cases on): each
    bin adds its own noise, so that with 15 bins of few cases even the best calibrated network seems to err. In
    resamples the noise comes twice: an interval of this measure lies too high rather than too low.

    Source: Guo et al., On calibration of modern neural networks, ICML 2017; bins of as many cases: Nixon et al.,
        Measuring calibration in deep learning, CVPR workshops 2019; their number: Scott, Biometrika 66 (1979).
    """
    count = len(chances)
    bins = min(MOST_BINS, max(1, round(count ** (1 / 3))))
    places = ((scipy.stats.rankdata(chances) - 0.5) * bins / count).astype(int)
    gaps = np.bincount(places, weights=np.asarray(chances, dtype=float) - np.asarray(outcomes, dtype=float))
    return float(np.abs(gaps).sum() / count)


def _check_values(array: NDArray[Any], name: str, n_values: int) -> None:
    """Raise when an array holds anything but the whole numbers of the label map."""
    whole = np.issubdtype(array.dtype, np.integer) or array.dtype == bool
    if array.size == 0 or (array.min() >= 0 and array.max() < n_values and (whole or (array % 1 == 0).all())):
        return
    wrong = sorted(set(np.unique(array).tolist()) - set(range(n_values)))
    raise TomokitError(
        f"the {name} holds values outside the label map (0 to {n_values - 1}): {wrong[:10]}; "
        "correct `labels` or the file"
    )


def _count_pairs(prediction: NDArray[Any], truth: NDArray[Any], n_values: int) -> NDArray[np.int64]:
    """Return how many voxels have each (truth, prediction), slab by slab to spare memory."""
    counts = np.zeros(n_values * n_values, dtype=np.int64)
    for predicted, true in zip(prediction, truth, strict=True):
        pairs = true.astype(np.int64) * n_values + predicted.astype(np.int64)
        counts += np.bincount(pairs.ravel(), minlength=len(counts))
    return counts.reshape(n_values, n_values)


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


def _check_targets(rows: Sequence[Row]) -> None:
    """Raise one error with everything that is wrong with the rows of a regression."""
    problems = []
    for row, column in itertools.product(rows, ("truth", "prediction")):
        if column not in row:
            problems.append(f"case {row['case']} has no column {column}")
        elif not np.isfinite(float(row[column])):
            problems.append(f"{column} of case {row['case']} must be a finite number, got {row[column]}")
    raise_problems("can't score the values:", problems)


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


def _measure_values(truth: NDArray[np.float64], prediction: NDArray[np.float64]) -> list[float]:
    """Return the measures of a regression in the order of `VALUE_MEASURES`; NaN is what is undefined."""
    errors = prediction - truth
    square = float((errors**2).mean())
    r2 = 1 - square / float(truth.var()) if np.ptp(truth) > 0 else float("nan")
    spearman = _correlation(scipy.stats.rankdata(truth), scipy.stats.rankdata(prediction))
    correlations = [_correlation(truth, prediction), spearman]
    return [float(np.abs(errors).mean()), square**0.5, square, r2, *correlations, float(errors.mean())]


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the linear correlation; NaN where one of the two does not vary."""
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")


def _class_scores(
    index: int, truth: NDArray[Any], scores: NDArray[Any], correct: NDArray[Any], patients: list[str]
) -> dict[str, Any]:
    """Return one class's AUC against the rest and its sensitivity."""
    mine = truth == index
    auc = bootstrap_statistic(area_under_curve, [mine, scores[:, index]], patients)
    return {
        "auc": _entry(auc, len(truth)),
        "sensitivity": _mean(correct[mine], list(itertools.compress(patients, mine))),
    }


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


def _mean(values: Sequence[float] | NDArray[Any], patients: Sequence[str]) -> dict[str, Any]:
    """Return the mean of values as an entry of metrics.json; an empty one when nothing was scored."""
    return _entry(bootstrap_mean(values, patients) if len(values) else NOT_SCORED, len(values))


def _entry(interval: Interval, cases: int) -> dict[str, Any]:
    """Return an interval as an entry of metrics.json."""
    ci95 = None if interval.low is None else [interval.low, interval.high]
    return {"mean": interval.mean, "ci95": ci95, "n": interval.n_patients, "cases": cases}


mean_entry = _mean
