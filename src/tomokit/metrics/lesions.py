"""Lesions, one by one: which are found, how many are invented, and how both depend on a threshold."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from tomokit.errors import TomokitError
from tomokit.metrics.boxes import common_box
from tomokit.metrics.entries import NO_ROWS, NOT_SCORED, Row, entry_of, mean_entry
from tomokit.statistics import bootstrap_statistics

FOUND, MISSED, INVENTED = "found", "missed", "invented"
FALSE_POSITIVES = (0.125, 0.25, 0.5, 1, 2, 4, 8)  # per case, at which FROC's sensitivities are averaged


class Froc(NamedTuple):
    """Sensitivity (T,) against false positives per case (T,), at each threshold (T,), the highest first."""

    thresholds: NDArray[np.float64]
    false_positives: NDArray[np.float64]
    sensitivity: NDArray[np.float64]


def score_lesions(prediction: NDArray[Any], truth: NDArray[Any], voxel_ml: float) -> list[dict[str, Any]]:
    """Return a row for each lesion of one case: "status" (found, missed or invented) and "ml".

    A lesion is a connected piece of a mask (X, Y, Z), voxels that touch at a corner included. One is found where the
    prediction has a voxel of it; a predicted piece without a voxel of any lesion is invented.

    Args:
        prediction: bool.
        truth: bool, on the same grid.
        voxel_ml: the volume of a voxel.

    Raises:
        TomokitError: when the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise TomokitError(f"prediction {prediction.shape} and truth {truth.shape} must have the same shape")
    rows: list[dict[str, Any]] = []
    box = common_box(prediction, truth)
    prediction, truth = prediction[box].astype(bool), truth[box].astype(bool)
    for mask, other, hit, missed in ((truth, prediction, FOUND, MISSED), (prediction, truth, "", INVENTED)):
        numbers, count = scipy.ndimage.label(mask, np.ones((3,) * mask.ndim))
        sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
        touched = np.bincount(numbers[other], minlength=count + 1)[1:] > 0
        statuses = [hit if own else missed for own in touched]
        rows += [
            {"status": told, "ml": int(size) * voxel_ml} for told, size in zip(statuses, sizes, strict=True) if told
        ]
    return rows


def summarise_lesions(rows: Sequence[Row], patients: Mapping[str, str]) -> dict[str, Any]:
    """Return the detection of lesions over a test set.

    Rows carry "case" and "status". "sensitivity" and "precision" are over all lesions, "f1" their harmonic mean, and
    "false_positives" the mean over the cases, each with its 95 % interval by patient; what has no lesion is None.

    Args:
        rows: of all lesions; a case without a lesion, true or predicted, has none.
        patients: of every case, also of those without a row.

    Raises:
        TomokitError: when there are no cases.
    """
    if not patients:
        raise TomokitError(NO_ROWS.format("scored"))
    cases = list(patients)
    counts = {status: np.zeros(len(cases), int) for status in (FOUND, MISSED, INVENTED)}
    place = {case: number for number, case in enumerate(cases)}
    for row in rows:
        counts[row["status"]][place[row["case"]]] += 1
    names = [patients[case] for case in cases]
    entries = dict.fromkeys(("sensitivity", "precision", "f1"), entry_of(NOT_SCORED, 0))
    if rows:
        found = bootstrap_statistics(_shares, list(counts.values()), names)
        entries = {key: entry_of(own, len(cases)) for key, own in zip(entries, found, strict=True)}
    return entries | {
        "false_positives": mean_entry(counts[INVENTED], names),
        "lesions": int((counts[FOUND] + counts[MISSED]).sum()),
        **{status: int(own.sum()) for status, own in counts.items()},
    }


def _shares(found: NDArray[np.int_], missed: NDArray[np.int_], invented: NDArray[np.int_]) -> list[float]:
    """Return sensitivity, precision and F1 of counts by case; NaN is what is undefined."""
    hits, lost, extra = int(found.sum()), int(missed.sum()), int(invented.sum())
    ratios = [(hits, hits + lost), (hits, hits + extra), (2 * hits, 2 * hits + lost + extra)]
    return [above / below if below else float("nan") for above, below in ratios]


def froc(scores: Sequence[float], lesions: Sequence[str], count: int, cases: int) -> Froc:
    """Return how many lesions are found, and how many pieces invented, at each threshold of the pieces' scores.

    Args:
        scores: of each predicted piece, growing with the belief in it.
        lesions: the lesion that each piece hits, "" for none; a lesion that several pieces hit is found once.
        count: of all true lesions.
        cases: of the test set.

    Raises:
        TomokitError: when there is no lesion or no case, or the lengths differ.
    Source: Bunch et al., A free-response approach to the measurement and characterization of radiographic-observer
        performance, Journal of Applied Photographic Engineering 4 (1978).
    """
    if count < 1 or cases < 1 or len(scores) != len(lesions):
        told = f"{count} lesions, {cases} cases, {len(scores)} scores and {len(lesions)} pieces"
        raise TomokitError(f"FROC needs a lesion, a case, and of each piece its score and its lesion, got {told}")
    best: dict[str, float] = {}
    for score, lesion in zip(scores, lesions, strict=True):
        if lesion:
            best[lesion] = max(score, best.get(lesion, score))
    invented = np.sort([score for score, lesion in zip(scores, lesions, strict=True) if not lesion])
    found = np.sort(list(best.values()))
    thresholds = np.unique(np.asarray(scores, dtype=float))[::-1]
    above = [len(own) - np.searchsorted(own, thresholds) for own in (invented, found)]
    return Froc(thresholds, above[0] / cases, above[1] / count)


def mean_sensitivity(curve: Froc) -> float:
    """Return the mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per case, 0–1.

    Source: van Ginneken et al., Comparing and combining algorithms for computer-aided detection of pulmonary nodules
        (LUNA16's score), Medical Image Analysis 14 (2010).
    """
    reached = [curve.sensitivity[curve.false_positives <= most] for most in FALSE_POSITIVES]
    return float(np.mean([own.max() if len(own) else 0.0 for own in reached]))
