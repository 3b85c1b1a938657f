"""What is measured on the order of probabilities, and on how often they come true."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomokit.errors import TomokitError

MOST_BINS = 15  # of the calibration error


class RocPoints(NamedTuple):
    """Sensitivity (T,) against the share of false positives (T,) at each threshold (T,), the highest first."""

    thresholds: NDArray[np.float64]
    false_positive_rate: NDArray[np.float64]
    sensitivity: NDArray[np.float64]


class PrecisionRecallPoints(NamedTuple):
    """Precision (T,) against recall (T,) at each threshold (T,), the highest first."""

    thresholds: NDArray[np.float64]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]


class ReliabilityPoints(NamedTuple):
    """Of each bin of cases the mean probability (B,), the share of events (B,) and the number of cases (B,)."""

    chances: NDArray[np.float64]
    shares: NDArray[np.float64]
    counts: NDArray[np.int_]


def area_under_curve(truth: NDArray[Any], score: NDArray[Any]) -> float:
    """Return the area under the ROC curve, 0–1: how often a positive scores above a negative, ties half.

    `truth` holds True for positives, `score` grows with the belief in it. NaN unless both kinds are there.

    Source: Mann and Whitney, Annals of Mathematical Statistics 18 (1947).
    """
    positive = np.asarray(truth, dtype=bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if n_positive == 0 or n_negative == 0:
        return float("nan")
    ranks = middle_ranks(score)[positive].sum()
    return float((ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def middle_ranks(numbers: NDArray[Any]) -> NDArray[np.float64]:
    """Return the rank of each number (N,), from 1 for the least; equal numbers share their mean rank.

    NaN where any number is. As scipy's `rankdata`, which takes several times as long for the few cases of a resample.
    """
    given = np.asarray(numbers, dtype=float)
    if np.isnan(given).any():
        return np.full(given.shape, np.nan)
    ordered = np.sort(given)
    ranks: NDArray[np.float64] = (np.searchsorted(ordered, given) + np.searchsorted(ordered, given, "right") + 1) / 2
    return ranks


def average_precision(truth: NDArray[Any], score: NDArray[Any]) -> float:
    """Return the mean precision over the recalls, 0–1; NaN without a positive.

    `truth` holds True for positives, `score` grows with the belief in it; cases of one score are found together.
    scikit-learn's function gives the same, too slowly for thousands of resamples.
    """
    if not np.any(truth):
        return float("nan")
    _, found, hits = _count_found(truth, score)
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
    gaps = np.asarray(chances, dtype=float) - np.asarray(outcomes, dtype=float)
    return float(np.abs(np.bincount(_bins(chances), weights=gaps)).sum() / len(chances))


def roc_points(truth: NDArray[Any], score: NDArray[Any]) -> RocPoints:
    """Return the points of the ROC curve, from (0, 0) at an infinite threshold to (1, 1).

    `truth` holds True for positives, `score` grows with the belief in it; cases of one score are one point.

    Raises:
        TomokitError: unless both kinds are there.
    """
    positive = np.asarray(truth, dtype=bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if min(n_positive, n_negative) == 0:
        raise TomokitError(f"a ROC curve needs both kinds of cases, got {n_positive} positive, {n_negative} negative")
    thresholds, found, hits = _count_found(positive, score)
    shares = [np.append(0.0, own) for own in ((found - hits) / n_negative, hits / n_positive)]
    return RocPoints(np.append(np.inf, thresholds), *shares)


def precision_recall_points(truth: NDArray[Any], score: NDArray[Any]) -> PrecisionRecallPoints:
    """Return the points of the precision-recall curve; arguments as of `roc_points`.

    Raises:
        TomokitError: when there is no positive.
    """
    if not np.any(truth):
        raise TomokitError(f"a precision-recall curve needs a positive, got 0 in {len(truth)} cases")
    thresholds, found, hits = _count_found(truth, score)
    return PrecisionRecallPoints(thresholds, hits / hits[-1], hits / found)


def reliability_points(outcomes: NDArray[Any], chances: NDArray[Any]) -> ReliabilityPoints:
    """Return the points of a reliability diagram, by rising probability, in the bins of `calibration_error`.

    Calibrated probabilities have as great a share of events. `outcomes` holds True where an event came, `chances` its
    probability. The calibration error is the mean gap of the two, each bin weighed by its cases.

    Raises:
        TomokitError: when there is no case.
    """
    if len(chances) == 0:
        raise TomokitError("a reliability diagram needs a case, got 0")
    places = _bins(chances)
    counts = np.bincount(places)
    sums = [np.bincount(places, weights=np.asarray(own, dtype=float))[counts > 0] for own in (chances, outcomes)]
    counts = counts[counts > 0]
    return ReliabilityPoints(sums[0] / counts, sums[1] / counts, counts)


def _count_found(
    truth: NDArray[Any], score: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.int_], NDArray[np.int_]]:
    """Return each score that occurs, the highest first, how many cases reach it, and how many positives do."""
    numbers = np.asarray(score, dtype=float)
    order = np.argsort(-numbers, kind="stable")
    falls = np.append(np.diff(numbers[order]) != 0, True)  # the last case of each score
    return numbers[order][falls], np.flatnonzero(falls) + 1, np.asarray(truth, dtype=bool)[order].cumsum()[falls]


def _bins(chances: NDArray[Any]) -> NDArray[np.int_]:
    """Return the bin of each case, from 0 by rising probability; some are empty where probabilities are equal."""
    bins = min(MOST_BINS, max(1, round(len(chances) ** (1 / 3))))
    places: NDArray[np.int_] = ((middle_ranks(chances) - 0.5) * bins / len(chances)).astype(int)
    return places


def sensitivity_at(truth: NDArray[Any], score: NDArray[Any], specificity: float) -> float:
    """Return the greatest sensitivity of a cut that leaves at least that share of the negatives below it, 0–1.

    `truth` holds True for positives, `score` grows with the belief in it. NaN unless both kinds are there.
    """
    positive, numbers = np.asarray(truth, dtype=bool), np.asarray(score, dtype=float)
    if positive.all() or not positive.any():
        return float("nan")
    below = np.sort(numbers[~positive])
    # at most so many negatives may reach the cut, less a rounding error of the share
    allowed = int((1 - specificity) * len(below) + 1e-9)
    return float((numbers[positive] > below[len(below) - allowed - 1]).mean())
