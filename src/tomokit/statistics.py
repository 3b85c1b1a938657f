"""Means and other statistics with bootstrap intervals, resampled by patient; and whether two ROC curves differ."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from tomokit.errors import TomokitError

BATCH_VALUES = 2_000_000  # numbers held at once while resampling: 16 MB
LEAST_P = 0.05  # from which on it is a tie
# how often a 95 % interval of a mean Dice held the true one in simulated studies of so many patients
COVERAGE = {20: 0.9225, 50: 0.9415}  # by `make bench NAME=intervals`
FEW = 100  # patients, from which on it is 95 %, to 1.5 %


class Interval(NamedTuple):
    """A statistic over all cases, its confidence interval, and the number of patients behind it.

    `mean` is None where the statistic is undefined; `low` and `high` are None where no interval can be had
    (one patient, or a statistic that most resamples leave undefined).
    """

    mean: float | None
    low: float | None
    high: float | None
    n_patients: int


class Comparison(NamedTuple):
    """The first score minus the second on the same cases, its confidence interval, and the p of no difference."""

    difference: float
    low: float
    high: float
    p: float

    @property
    def verdict(self) -> str:
        """What the first is beside the second: "better" or "worse" where p is below 0.05, else "tie"."""
        if self.p >= LEAST_P:
            return "tie"
        return "better" if self.difference > 0 else "worse"


def coverage_note(patients: int) -> str:
    """Return how far an interval of so few patients falls short of its 95 %, a sentence; none from 100 patients on."""
    if patients >= FEW:
        return ""
    size = max((size for size in COVERAGE if size <= patients), default=min(COVERAGE))
    told = "Even of" if patients < size else "Of"
    share = f"{COVERAGE[size]:.1%}"
    return f"{told} {size} patients such intervals held the truth in {share} of simulated studies, not 95 %."


def bootstrap_mean(
    values: ArrayLike,
    patients: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """Return the mean over cases with its percentile bootstrap interval.

    Patients are resampled, each with all its cases, since scans of one patient are not independent. `values`
    and `patients` hold one entry per case. One patient gives no interval; equal values give an interval of
    width 0.

    Raises:
        TomokitError: when there are no values, one is not finite, or the lengths differ.
    Source: Davison and Hinkley, Bootstrap Methods and their Application (1997), sections 3.8 and 5.3.
    """
    numbers = np.asarray(values, dtype=float)
    members = _members(len(numbers), patients)
    _check_finite(numbers, patients)
    counts = np.bincount(members)
    if len(counts) == 1:
        return Interval(float(numbers.mean()), None, None, 1)
    if np.ptp(numbers) == 0:
        constant = float(numbers[0])
        return Interval(constant, constant, constant, len(counts))
    interval = scipy.stats.bootstrap(
        (np.bincount(members, weights=numbers), counts),
        _ratio,
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=confidence,
        n_resamples=resamples,
        batch=max(1, BATCH_VALUES // len(counts)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(numbers.mean()), float(interval.low), float(interval.high), len(counts))


def bootstrap_statistic(
    statistic: Callable[..., float],
    arrays: Sequence[ArrayLike],
    patients: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = 1999,
    seed: int = 0,
) -> Interval:
    """Return `statistic(*arrays)` over all cases with its percentile bootstrap interval.

    For what is not a mean, such as the area under the ROC curve of (truth, score). The first axis of each
    array, and `patients`, hold one entry per case. Patients are resampled, each with all its cases. The
    statistic returns NaN where it is undefined (an AUC without both classes): such resamples are skipped, and
    where more than half are skipped there is no interval. NaN over all cases gives `mean` None; one patient
    gives no interval.

    Raises:
        TomokitError: when there are no arrays or no cases, or the lengths differ.
    """

    def alone(*columns: NDArray[Any]) -> list[float]:
        return [statistic(*columns)]

    return bootstrap_statistics(alone, arrays, patients, confidence=confidence, resamples=resamples, seed=seed)[0]


def bootstrap_statistics(
    statistics: Callable[..., Sequence[float] | NDArray[np.float64]],
    arrays: Sequence[ArrayLike],
    patients: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = 1999,
    seed: int = 0,
) -> list[Interval]:
    """Return an interval for each of the numbers `statistics(*arrays)`, as `bootstrap_statistic` does for one.

    All of them are taken from the same resamples, which is faster than one after the other.

    Raises:
        TomokitError: when there are no arrays or no cases, or the lengths differ.
    """
    columns = [np.asarray(array) for array in arrays]
    if not columns:
        raise TomokitError("a statistic needs at least one array, got none")
    for column in columns:
        members = _members(len(column), patients)
    n_patients = int(members.max()) + 1
    values = np.asarray(statistics(*columns), dtype=float)
    drawn = np.empty((0, len(values)))
    if n_patients > 1 and not np.isnan(values).all():
        drawn = _resample(statistics, columns, members, resamples, seed)
    return [
        _percentile_interval(float(value), own, n_patients, confidence)
        for value, own in zip(values, drawn.T, strict=True)
    ]


def compare_means(scores_a: ArrayLike, scores_b: ArrayLike, patients: Sequence[Hashable]) -> Comparison:
    """Return the mean of `scores_a` minus that of `scores_b` on the same cases, its interval, and p of no difference.

    The interval is the paired bootstrap's by patient, p is that of Wilcoxon's signed ranks of the patients' mean
    differences: 1 where all are equal. Each array, and `patients`, hold one entry per case. Of one patient the interval
    is the difference itself, and p 1.

    Raises:
        TomokitError: when there are no cases, the lengths differ, or a score is not finite.
    Source: Wilcoxon, Individual comparisons by ranking methods, Biometrics Bulletin 1 (1945).
    """
    one, two = np.asarray(scores_a, dtype=float), np.asarray(scores_b, dtype=float)
    if one.shape != two.shape:
        raise TomokitError(f"both must score the same cases, got {one.shape} and {two.shape} scores")
    found = bootstrap_mean(one - two, patients)
    members = _members(len(one), patients)
    means = np.bincount(members, weights=one - two) / np.bincount(members)
    p = float(scipy.stats.wilcoxon(means).pvalue) if len(means) > 1 and means.any() else 1.0
    mean = float((one - two).mean())
    ends = (mean, mean) if found.low is None or found.high is None else (found.low, found.high)
    return Comparison(mean, *ends, p)


def rank_methods(
    scores: Mapping[str, ArrayLike], patients: Sequence[Hashable], *, more_is_better: bool = True, resamples: int = 1999
) -> dict[str, Interval]:
    """Return each method's rank by its mean score over the same cases, 1 the best, with its interval; the best first.

    Methods of one mean share the mean of their ranks. The interval tells how the ranking would change with other
    patients of the kind: it is the bootstrap's, all methods on the same resamples.

    Args:
        scores: of each method, by its name, one entry per case.
        patients: one entry per case.
        more_is_better: False of distances and errors.
        resamples: of the patients.

    Raises:
        TomokitError: when there are fewer than two methods or no cases, the lengths differ, or a score is not finite.
    Source: Wiesenfarth et al., Methods and open-source toolkit for analyzing and visualizing challenge results,
        Scientific Reports 11 (2021).
    """
    if len(scores) < 2:
        raise TomokitError(f"a ranking needs two methods or more, got {list(scores)}")
    for name, own in scores.items():
        if len(numbers := np.asarray(own, dtype=float)) != len(patients) or not np.isfinite(numbers).all():
            told = f"{len(numbers)} scores, {int((~np.isfinite(numbers)).sum())} of them not finite"
            raise TomokitError(f"each method needs a finite score of each of {len(patients)} cases, {name} has {told}")
    table = np.column_stack([np.asarray(own, dtype=float) for own in scores.values()])

    def ranks(cases: NDArray[np.float64]) -> NDArray[np.float64]:
        means = cases.mean(axis=0)
        return np.asarray(scipy.stats.rankdata(-means if more_is_better else means))

    found = zip(scores, bootstrap_statistics(ranks, [table], patients, resamples=resamples), strict=True)
    return dict(sorted(found, key=lambda pair: pair[1].mean or 0.0))


def delong(truth: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike, *, confidence: float = 0.95) -> Comparison:
    """Return the AUC of `scores_a` minus that of `scores_b` on the same cases, its interval, and p of no difference.

    `truth` holds True or 1 for positives; scores grow with the belief in it, in any unit. Scores (cases, trainings) of
    a method that was trained several times stand for the mean of their AUCs. The cases are taken as independent: of a
    patient with several scans, give one, else interval and p are too small; and the trainings as given: interval and p
    tell of other cases, not of other trainings. Two curves whose difference does not vary from case to case (two
    perfect ones) have an interval of width 0, and p 1 or 0.

    Raises:
        TomokitError: when there are fewer than two cases of a kind, the lengths differ, or a value is impossible.
    Source: DeLong et al., Biometrics 44 (1988); Sun and Xu, IEEE Signal Processing Letters 21 (2014).
    """
    (above_a, below_a), (above_b, below_b) = _mean_placements(truth, scores_a), _mean_placements(truth, scores_b)
    above, below = above_a - above_b, below_a - below_b
    difference = float(above.mean())
    deviation = math.sqrt(_placement_variance(above, below))
    reach = float(scipy.stats.norm.ppf((1 + confidence) / 2)) * deviation
    z = abs(difference) / deviation if deviation > 0 else (math.inf if difference else 0.0)
    p = float(2 * scipy.stats.norm.sf(z))
    return Comparison(difference, max(difference - reach, -1.0), min(difference + reach, 1.0), p)


def auc_variance(truth: ArrayLike, scores: ArrayLike) -> float:
    """Return the variance of an area under the ROC curve, as `delong` estimates it; arguments as there.

    Raises:
        TomokitError: when there are fewer than two cases of a kind, the lengths differ, or a value is impossible.
    """
    return _placement_variance(*_placements(truth, scores))


def _mean_placements(truth: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the placements of scores (cases,), or their mean over the trainings of scores (cases, trainings)."""
    numbers = np.asarray(scores, dtype=float)
    if numbers.ndim != 2 or numbers.shape[1] == 0:
        return _placements(truth, numbers)
    above, below = zip(*(_placements(truth, own) for own in numbers.T), strict=True)
    return np.mean(above, axis=0), np.mean(below, axis=0)


def _placements(truth: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the share of negatives below each positive, and of positives above each negative, ties half.

    The mean of either is the AUC. Ranks give them without comparing each positive with each negative.
    """
    positive, numbers = np.asarray(truth), np.asarray(scores, dtype=float)
    if positive.ndim != 1 or positive.shape != numbers.shape:
        raise TomokitError(f"each case needs a truth and a score, got shapes {positive.shape} and {numbers.shape}")
    if not np.isin(positive, (0, 1)).all():
        raise TomokitError(f"the truth must be 0 or 1, got {np.unique(positive).tolist()[:10]}")
    if not np.isfinite(numbers).all():
        place = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise TomokitError(f"scores must be finite, got {numbers[place]} in place {place}")
    positive = positive.astype(bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if min(n_positive, n_negative) < 2:
        raise TomokitError(
            f"the variance of an AUC needs two cases of each kind, got {n_positive} positive and {n_negative} negative"
        )
    ranks = scipy.stats.rankdata(numbers)
    above = (ranks[positive] - scipy.stats.rankdata(numbers[positive])) / n_negative
    below = 1 - (ranks[~positive] - scipy.stats.rankdata(numbers[~positive])) / n_positive
    return above, below


def _placement_variance(above: NDArray[np.float64], below: NDArray[np.float64]) -> float:
    """Return the variance of the mean of placements, or of differences of them."""
    return float(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below))


def _resample(
    statistics: Callable[..., Sequence[float] | NDArray[np.float64]],
    columns: Sequence[NDArray[Any]],
    members: NDArray[np.intp],
    resamples: int,
    seed: int,
) -> NDArray[np.float64]:
    """Return the statistics of each resample of the patients: (resamples, statistics)."""
    n_patients = int(members.max()) + 1
    cases_of = [np.flatnonzero(members == patient) for patient in range(n_patients)]
    generator = np.random.default_rng(seed)
    draws = np.stack([generator.integers(n_patients, size=n_patients) for _ in range(resamples)])
    # of few patients, most resamples are the same again in another order
    _, first, which = np.unique(np.sort(draws, axis=1), axis=0, return_index=True, return_inverse=True)
    found = []
    for patients in draws[first]:
        chosen = np.concatenate([cases_of[patient] for patient in patients])
        found.append(np.asarray(statistics(*(column[chosen] for column in columns)), dtype=float))
    return np.stack(found)[which.ravel()]


def _percentile_interval(value: float, drawn: NDArray[np.float64], n_patients: int, confidence: float) -> Interval:
    """Return a statistic with the interval that its resamples give, where enough of them are defined."""
    if math.isnan(value):
        return Interval(None, None, None, n_patients)
    defined = drawn[~np.isnan(drawn)]
    if len(defined) == 0 or 2 * len(defined) < len(drawn):
        return Interval(value, None, None, n_patients)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high), n_patients)


def _ratio(sums: NDArray[np.float64], counts: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Return the mean over cases of patients given by their sums and numbers of cases."""
    mean: NDArray[np.float64] = sums.sum(axis=axis) / counts.sum(axis=axis)
    return mean


def _members(n_values: int, patients: Sequence[Hashable]) -> NDArray[np.intp]:
    """Return each case's patient as an index from 0, in the order of the patients' names."""
    if n_values != len(patients):
        raise TomokitError(f"each value needs a patient, got {n_values} values and {len(patients)} patients")
    if n_values == 0:
        raise TomokitError("no values to summarise, got an empty list; check that the test split has cases")
    return np.unique([str(patient) for patient in patients], return_inverse=True)[1].ravel()


def _check_finite(numbers: NDArray[np.float64], patients: Sequence[Hashable]) -> None:
    """Raise when a value is not finite."""
    pairs = zip(patients, numbers, strict=True)
    wrong = [(patient, number) for patient, number in pairs if not np.isfinite(number)]
    if wrong:
        raise TomokitError(
            f"values must be finite, got {wrong[0][1]} for patient {wrong[0][0]}; leave out what is undefined"
        )
