"""Scores with their intervals as `metrics.json` has them."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from tomokit.statistics import Interval, bootstrap_mean

Row = Mapping[str, Any]
NOT_SCORED = Interval(None, None, None, 0)
NO_ROWS = "no {} cases to summarise, got 0 rows; does the test split have cases?"


def mean_entry(values: Sequence[float] | NDArray[Any], patients: Sequence[str]) -> dict[str, Any]:
    """Return the mean of values as an entry of metrics.json; an empty one when nothing was scored."""
    return entry_of(bootstrap_mean(values, patients) if len(values) else NOT_SCORED, len(values))


def entry_of(interval: Interval, cases: int) -> dict[str, Any]:
    """Return an interval as an entry of metrics.json."""
    ci95 = None if interval.low is None else [interval.low, interval.high]
    return {"mean": interval.mean, "ci95": ci95, "n": interval.n_patients, "cases": cases}
