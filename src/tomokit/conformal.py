"""Conformal label sets and intervals, and the share of cases that may be answered at a stated risk.

What is promised rests on calibration cases that the network was not trained on and that are exchangeable with the new
ones: of one source, a case a patient. A promise is on the average over such cases, not for each kind of them.
"""

import math
from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from tomokit.errors import TomokitError

SMALLEST_ML = 0.01  # below it an error does not shrink with the volume any more
CONFIDENCE = 0.95  # with which a risk is promised


class Curve(NamedTuple):
    """Of cases, most certain first: the share answered, and the share of those that is wrong; both (cases,), 0–1."""

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]


def conformal_quantile(scores: ArrayLike, error_rate: float) -> float:
    """Return the score that a new case exceeds with at most a probability of `error_rate`.

    It is the ⌈(n + 1)(1 − error_rate)⌉-th smallest of the n scores (n,) of calibration cases, and infinite where these
    are too few: 9 are needed for an error rate of 0.1, 19 for 0.05. The chance of a score at or below it lies between
    1 − error_rate and 1 − error_rate + 1/(n + 1) where no two scores are equal.

    Raises:
        TomokitError: when the error rate is not between 0 and 1, or scores are none, not in a row, or not numbers.
    Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World (2005), as Angelopoulos and Bates,
        A gentle introduction to conformal prediction, Foundations and Trends in Machine Learning 16 (2023), state it.
    """
    check_share(error_rate, "error_rate")
    numbers = np.sort(np.asarray(scores, dtype=float))
    if numbers.ndim != 1 or not numbers.size or np.isnan(numbers).any():
        raise TomokitError(f"calibration needs a row of scores that are numbers, got {numbers.tolist()[:5]}")
    # less a rounding error, so that e.g. 10 × 0.9 is 9
    rank = math.ceil((numbers.size + 1) * (1 - error_rate) - 1e-9)
    return float(numbers[rank - 1]) if rank <= numbers.size else math.inf


def fit_label_sets(probabilities: ArrayLike, truth: ArrayLike, error_rate: float) -> float:
    """Return the least probability with which a class belongs to a case's set, 0–1.

    `probabilities` (cases, classes) are of calibration cases, whose true classes are `truth` (cases,), indices. A set
    of all classes that reach the least probability holds the true one in at least 1 − error_rate of new cases.

    Raises:
        TomokitError: as `conformal_quantile`, and when shapes or indices do not fit.
    Source: Sadinle, Lei and Wasserman, Least ambiguous set-valued classifiers with bounded error levels, Journal of
        the American Statistical Association 114 (2019).
    """
    chances, classes = np.asarray(probabilities, dtype=float), np.asarray(truth)
    if chances.ndim != 2 or classes.shape != chances.shape[:1]:
        raise TomokitError(
            f"label sets need probabilities (cases, classes) and a class of each case, got {chances.shape} and "
            f"{classes.shape}"
        )
    if classes.size and not (classes.min() >= 0 and classes.max() < chances.shape[1]):
        raise TomokitError(f"classes must lie in 0 to {chances.shape[1] - 1}, got {classes.min()} to {classes.max()}")
    own = chances[np.arange(len(classes)), classes.astype(int)]
    return max(0.0, 1 - conformal_quantile(1 - own, error_rate))


def label_sets(probabilities: ArrayLike, least: float) -> NDArray[np.bool_]:
    """Return which classes belong to each case's set, (cases, classes), by `fit_label_sets`' least probability.

    A set may be empty: then the case is unlike those of any class.
    """
    # one rounding error less, since the least probability is itself a case's
    return np.asarray(np.asarray(probabilities, dtype=float) >= least - 1e-12)


def fit_volume_interval(predicted_ml: ArrayLike, truth_ml: ArrayLike, error_rate: float) -> float:
    """Return how far true volumes may lie from predicted ones, in units of `volume_scale`.

    Both (cases,) in ml, of calibration cases.

    Raises:
        TomokitError: as `conformal_quantile`, and when the shapes differ or a volume is below 0.
    """
    predicted, true = np.asarray(predicted_ml, dtype=float), np.asarray(truth_ml, dtype=float)
    if predicted.shape != true.shape:
        raise TomokitError(f"each case needs both volumes, got shapes {predicted.shape} and {true.shape}")
    for name, volumes in (("predicted", predicted), ("true", true)):
        if volumes.size and volumes.min() < 0:
            raise TomokitError(f"{name} volumes must be 0 ml or more, got {volumes.min()}")
    return conformal_quantile(np.abs(true - predicted) / volume_scale(predicted), error_rate)


def volume_interval(predicted_ml: float, reach: float) -> tuple[float, float]:
    """Return the lowest and highest volume in ml that `fit_volume_interval`'s reach leaves for a predicted one."""
    if math.isinf(reach):
        return 0.0, math.inf
    half = reach * float(volume_scale(predicted_ml))
    return max(0.0, predicted_ml - half), predicted_ml + half


def volume_scale(predicted_ml: ArrayLike) -> NDArray[np.float64]:
    """Return what the error of a volume in ml is measured in: errors lie on its surface, which grows as ml^(2/3)."""
    return np.asarray((np.asarray(predicted_ml, dtype=float) + SMALLEST_ML) ** (2 / 3))


def risk_coverage(certainty: ArrayLike, wrong: ArrayLike) -> Curve:
    """Return the risk of answering only the most certain cases, for each share of them.

    `certainty` (cases,) grows with the belief in the answer, `wrong` (cases,) is 1 where it was wrong, or a loss in
    0–1. Cases of one certainty are answered together: each has the risk of all of them.

    Raises:
        TomokitError: when there are no cases, or the shapes differ.
    Source: El-Yaniv and Wiener, On the foundations of noise-free selective classification, JMLR 11 (2010).
    """
    belief, loss = _check_pairs(certainty, wrong)
    order = np.argsort(-belief, kind="stable")
    counts = np.arange(1, len(belief) + 1)
    last = np.searchsorted(-belief[order], -belief[order], side="right")  # of the cases of each certainty
    return Curve(last / len(belief), (loss[order].cumsum() / counts)[last - 1])


def area_under_risk(curve: Curve) -> float:
    """Return the mean risk over the coverages, 0–1: less is better, and 0 is a network that knows when it errs."""
    return float(curve.risk.mean())


def choose_referral(certainty: ArrayLike, wrong: ArrayLike, risk: float) -> float:
    """Return the least certainty of an answer such that at most `risk` of answers are wrong, with a confidence of 95 %.

    What is less certain is referred to a human. The answer is infinite, all is referred, where no certainty has that
    risk: with few calibration cases none can be shown to, since even 59 right answers in a row leave room for 5 %.
    The least certainties are tried from the highest on, the first at so many cases as could pass without an error, and
    the search ends at the first whose upper bound is above the risk: so the confidence is that of a single try.

    Args:
        certainty: (cases,) of calibration cases, growing with the belief in the answer.
        wrong: (cases,) 1 where the answer was wrong, else 0.
        risk: the share of answers that may be wrong, 0–1.

    Raises:
        TomokitError: when the risk is not between 0 and 1, there are no cases, or the shapes differ.
    Source: Angelopoulos et al., Learn then test, Annals of Applied Statistics 19 (2025), fixed sequences; Clopper and
        Pearson, Biometrika 26 (1934).
    """
    check_share(risk, "risk")
    belief, loss = _check_pairs(certainty, wrong)
    order = np.argsort(-belief, kind="stable")
    errors, ranked = loss[order].cumsum(), belief[order]
    first = math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - risk))
    least = math.inf
    for count in range(first, len(ranked) + 1):
        if count < len(ranked) and ranked[count] == ranked[count - 1]:
            continue  # the next case has the same certainty, so it is answered too
        if upper_bound(round(errors[count - 1]), count) > risk:
            break
        least = float(ranked[count - 1])
    return least


def upper_bound(errors: int, cases: int) -> float:
    """Return the share of errors that lies above the true one with a confidence of 95 % (Clopper and Pearson)."""
    return 1.0 if errors >= cases else float(scipy.stats.beta.ppf(CONFIDENCE, errors + 1, cases - errors))


def check_share(value: float, name: str) -> None:
    """Raise when a number does not lie between 0 and 1.

    Raises:
        TomokitError: which names it.
    """
    if not 0 < value < 1:
        raise TomokitError(f"`{name}` must lie between 0 and 1, such as 0.1, got {value}")


def _check_pairs(certainty: ArrayLike, wrong: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both as numbers (cases,)."""
    belief, loss = np.asarray(certainty, dtype=float), np.asarray(wrong, dtype=float)
    if belief.ndim != 1 or belief.shape != loss.shape or not belief.size:
        raise TomokitError(
            f"each case needs a certainty and whether it was wrong, got shapes {belief.shape} and {loss.shape}"
        )
    return belief, loss
