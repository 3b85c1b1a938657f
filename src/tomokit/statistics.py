"""Means and other statistics with bootstrap confidence intervals, resampled by patient."""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from tomokit.errors import TomokitError

BATCH_VALUES = 2_000_000  # numbers held at once while resampling: 16 MB


class Interval(NamedTuple):
    """A statistic over all cases, its confidence interval, and the number of patients behind it.

    `mean` is None where the statistic is undefined; `low` and `high` are None where no interval can be had
    (one patient, or a statistic that most resamples leave undefined).
    """

    mean: float | None
    low: float | None
    high: float | None
    n_patients: int


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
    columns = [np.asarray(array) for array in arrays]
    if not columns:
        raise TomokitError("a statistic needs at least one array, got none")
    for column in columns:
        members = _members(len(column), patients)
    n_patients = int(members.max()) + 1
    value = float(statistic(*columns))
    if np.isnan(value):
        return Interval(None, None, None, n_patients)
    if n_patients == 1:
        return Interval(value, None, None, 1)
    cases_of = [np.flatnonzero(members == patient) for patient in range(n_patients)]
    generator = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for i in range(resamples):
        chosen = np.concatenate([cases_of[p] for p in generator.integers(n_patients, size=n_patients)])
        drawn[i] = statistic(*(column[chosen] for column in columns))
    defined = drawn[~np.isnan(drawn)]
    if 2 * len(defined) < resamples:
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
