"""Scores of segmentations: of each case and structure, and over a test set with intervals by patient."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tomokit.errors import TomokitError
from tomokit.geometry import spacing_from_affine, voxel_volume_ml
from tomokit.labels import check_label_map, foreground
from tomokit.metrics.boxes import label_boxes
from tomokit.metrics.entries import NO_ROWS, Row, mean_entry
from tomokit.metrics.surfaces import check_tolerance, compare_surfaces

MEASURES = ("dice", "nsd", "hd95_mm")
LIMIT = 1.96  # deviations, between which 95 % of a normal distribution lie


def score_segmentation(
    prediction: ArrayLike,
    truth: ArrayLike,
    labels: Mapping[str, str] | Mapping[int, str],
    affine: ArrayLike,
    tolerance_mm: float | None = None,
) -> list[dict[str, Any]]:
    """Return one row per structure: its name ("class"), "dice", "truth_ml" and "predicted_ml".

    `prediction` and `truth` are label maps (X, Y, Z) on the grid of `affine`. Dice lies in 0–1; it is None
    when the structure is absent from both, since 0/0 has no value, and 0 when it is absent from one. With
    `tolerance_mm` a row also has "nsd", 0–1, and "hd95_mm" (`compare_surfaces`), and "difference_ml", predicted less
    true.

    Raises:
        TomokitError: when shapes differ, a value is not in the label map, or the tolerance is not above 0.
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
    rows: list[dict[str, Any]] = []
    for value, name in foreground(labels).items():
        in_truth, in_prediction = int(table[value].sum()), int(table[:, value].sum())
        total = in_truth + in_prediction
        dice = 2 * int(table[value, value]) / total if total else None
        volumes = {"truth_ml": in_truth * voxel_ml, "predicted_ml": in_prediction * voxel_ml}
        rows.append({"class": name, "dice": dice, **volumes})
    if tolerance_mm is None:
        return rows
    found = _score_surfaces(predicted, true, n_values, spacing_from_affine(affine), tolerance_mm)
    return [
        {**row, **own, "difference_ml": row["predicted_ml"] - row["truth_ml"]}
        for row, own in zip(rows, found, strict=True)
    ]


def mean_by_case(rows: Sequence[Row], measure: str = "dice") -> dict[str, float]:
    """Return each case's mean of a measure over its scored structures; a case with none is left out.

    Rows carry "case", "class" and the measure (None where it has no value).
    """
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row[measure] is not None:
            scores.setdefault(row["case"], []).append(row[measure])
    return {case: float(np.mean(values)) for case, values in scores.items()}


def summarise_segmentation(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the scores over a test set as {"summary": …, "per_class": …}.

    Rows carry "case", "patient", "class" and "dice" (None where absent from both, which is counted and not
    scored), and may carry "nsd", "hd95_mm", and "truth_ml" with "predicted_ml". Each score is {"mean", "ci95": [low,
    high] or None, "n": patients, "cases"}; the summary's is the mean over cases of the case's mean over its scored
    structures. A structure also has "absent_in_both" (cases without a score) and, where the rows carry "truth_ml",
    "empty_truth" (cases whose truth lacks it, those included; else None); with "predicted_ml" too, "missed" (in the
    truth, not found), "invented" (found, not in the truth), and "difference_ml", predicted less true, with Bland and
    Altman's 95 % "limits_ml" between which single cases lie.

    Raises:
        TomokitError: when there are no rows.
    Source: Bland and Altman, Lancet 327 (1986).
    """
    if not rows:
        raise TomokitError(NO_ROWS.format("scored"))
    measures = [name for name in MEASURES if all(name in row for row in rows)]
    per_class = {}
    for name in dict.fromkeys(row["class"] for row in rows):
        mine = [row for row in rows if row["class"] == name]
        scored = {measure: [row for row in mine if row[measure] is not None] for measure in measures}
        own_scores: dict[str, Any] = {
            measure: mean_entry([row[measure] for row in own], [row["patient"] for row in own])
            for measure, own in scored.items()
        }
        absent = len(mine) - len(scored["dice"])
        per_class[name] = own_scores | {"absent_in_both": absent, **_summarise_volumes(mine)}
    return {"summary": summarise_cases(rows), "per_class": per_class}


def summarise_cases(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return the mean over cases of each case's mean over its scored structures, for each measure of the rows."""
    patient_of = {row["case"]: row["patient"] for row in rows}
    found = {}
    for measure in (name for name in MEASURES if all(name in row for row in rows)):
        means = mean_by_case(rows, measure)
        found[measure] = mean_entry(list(means.values()), [patient_of[case] for case in means])
    return found


def _score_surfaces(
    predicted: NDArray[Any], true: NDArray[Any], n_values: int, spacing: Sequence[float], tolerance_mm: float
) -> list[dict[str, Any]]:
    """Return the scores of each structure's surface, each looked at within its own box."""
    check_tolerance(tolerance_mm)
    found, there = (
        array if np.issubdtype(array.dtype, np.integer) else array.astype(np.int32) for array in (predicted, true)
    )
    return [
        compare_surfaces(found[box] == value, there[box] == value, spacing, tolerance_mm)._asdict()
        for value, box in enumerate(label_boxes(found, there, n_values), start=1)
    ]


def _summarise_volumes(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what a structure's volumes tell of being there or not, and how far they are wrong."""
    if not all("truth_ml" in row for row in rows):
        return {"empty_truth": None}
    found: dict[str, Any] = {"empty_truth": sum(row["truth_ml"] == 0 for row in rows)}
    if not all("predicted_ml" in row for row in rows):
        return found
    found["missed"] = sum(row["truth_ml"] > 0 == row["predicted_ml"] for row in rows)
    found["invented"] = sum(row["predicted_ml"] > 0 == row["truth_ml"] for row in rows)
    differences = np.array([row["predicted_ml"] - row["truth_ml"] for row in rows])
    found["difference_ml"] = mean_entry(differences, [row["patient"] for row in rows])
    if len(differences) > 1:
        reach = LIMIT * float(differences.std(ddof=1))
        found["limits_ml"] = [float(differences.mean()) - reach, float(differences.mean()) + reach]
    return found


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
