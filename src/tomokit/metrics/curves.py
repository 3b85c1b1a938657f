"""What is measured on the order of probabilities, and on how often they come true."""

from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

MOST_BINS = 15  # of the calibration error


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
