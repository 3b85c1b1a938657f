"""Scores of segmentations and classifications: per case, and over a test set with intervals by patient."""

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
from tomokit.statistics import Interval, bootstrap_mean, bootstrap_statistic

Row = Mapping[str, Any]
NOT_SCORED = Interval(None, None, None, 0)


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
        raise TomokitError("no scored cases to summarise, got 0 rows; does the test split have cases?")
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


def summarise_classification(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, Any]:
    """Return AUC, accuracy and balanced accuracy over a test set, and each class's AUC and sensitivity.

    Rows carry "case", "patient", "truth" (a class's name) and a probability "p_<class>" for each class. The
    AUC is that of the probabilities; with two classes the last is the positive, with more it is the mean of
    each class against the rest. Accuracies take the most probable class. Values are {"mean", "ci95": [low,
    high] or None, "n": patients, "cases"}. Means run over the classes that have cases; "absent_classes" lists
    the others. Resamples which lack a class that the test set has are skipped for AUC and balanced accuracy.

    Raises:
        TomokitError: when there are fewer than two classes, no rows, or rows are incomplete or out of range.
    Source: Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 27 (2006).
    """
    _check_classification(rows, classes)
    truth = np.array([list(classes).index(row["truth"]) for row in rows])
    scores = np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])
    patients = [str(row["patient"]) for row in rows]
    correct = scores.argmax(axis=1) == truth
    present = [i for i in range(len(classes)) if (truth == i).any()]
    positives = [1] if len(classes) == 2 else present
    auc = functools.partial(_mean_auc, positives=positives)
    balanced = functools.partial(_balanced_accuracy, present=present)
    return {
        "summary": {
            "auc": _entry(bootstrap_statistic(auc, [truth, scores], patients), len(rows)),
            "accuracy": _mean(correct, patients),
            "balanced_accuracy": _entry(bootstrap_statistic(balanced, [truth, correct], patients), len(rows)),
        },
        "per_class": {name: _class_scores(i, truth, scores, correct, patients) for i, name in enumerate(classes)},
        "absent_classes": [name for i, name in enumerate(classes) if i not in present],
    }


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
        raise TomokitError("no classified cases to summarise, got 0 rows; does the test split have cases?")
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


def _mean_auc(truth: NDArray[Any], scores: NDArray[Any], positives: Sequence[int]) -> float:
    """Return the mean over `positives` of each class's AUC against the rest; NaN when one is undefined."""
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
