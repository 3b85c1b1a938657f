"""Scores of predicted values: how near they are to the truth."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from tomokit.errors import TomokitError, raise_problems
from tomokit.metrics.entries import NO_ROWS, Row, entry_of
from tomokit.statistics import bootstrap_statistics

VALUE_MEASURES = ("mae", "rmse", "mse", "r2", "pearson", "spearman", "bias")


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
    summary = {name: entry_of(own, len(rows)) for name, own in zip(VALUE_MEASURES, intervals, strict=True)}
    return {"summary": summary, "per_class": {}}


def _check_targets(rows: Sequence[Row]) -> None:
    """Raise one error with everything that is wrong with the rows of a regression."""
    problems = []
    for row, column in itertools.product(rows, ("truth", "prediction")):
        if column not in row:
            problems.append(f"case {row['case']} has no column {column}")
        elif not np.isfinite(float(row[column])):
            problems.append(f"{column} of case {row['case']} must be a finite number, got {row[column]}")
    raise_problems("can't score the values:", problems)


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
