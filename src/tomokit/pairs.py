"""Pairs of scans of one patient: what a network learns of them, what it answers, and how right the answers are.

An entry's `image` lists two files on one grid, the first scan and the second. Its `label` is 0 where the structure is
unchanged, 1 where it is smaller in the second scan, 2 where it is larger; `change`, where it is known, is the volume in
the second scan over that in the first, less 1. As in atrophy, the scan with the larger structure counts as the earlier
one: of what grows, read it the other way round.
"""

import itertools
import json
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from monai.config import KeysCollection
from monai.metrics import CumulativeIterationMetric
from monai.transforms import MapTransform
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from torch import Tensor

from tomokit.errors import TomokitError, raise_problems
from tomokit.files import read_json
from tomokit.metrics import NO_ROWS, NOT_SCORED, Row, area_under_curve
from tomokit.statistics import Interval, bootstrap_mean, bootstrap_statistics

CHANGES = ("unchanged", "smaller", "larger")  # by an entry's `label`
UNCHANGED, SMALLER, LARGER = range(3)
TASK = "pairs"  # in metrics.json and decision.json
FILE = "decision.json"
THRESHOLD = 0.5  # where none is chosen
CONFIDENCE = 0.9  # with which the rate of false alarms is held
MEASURES = ("auc", "order_auc", "change_auc", "amount_mae", "amount_bias", "amount_correlation")
ANSWERS = ("p_changed", "changed", "p_first_is_earlier", "amount")

# What is learned, and what is answered


def pair_target(label: Any, change: Any = None) -> tuple[float, float, float]:
    """Return what is known of a pair: 1 where the first scan is the earlier one, 1 where it changed, the amount in %.

    The opposite is 0, what is not known NaN. Of an unchanged pair the order is not known; of a changed one without
    `change` the amount is not.

    Args:
        label: 0 unchanged, 1 smaller, 2 larger.
        change: volume in the second scan over that in the first, less 1; None where it is not known.

    Raises:
        TomokitError: when the label is none of these, or the change is no number or of another sign.
    """
    if isinstance(label, bool) or not isinstance(label, int) or label not in (UNCHANGED, SMALLER, LARGER):
        told = ", ".join(f"{number} {name}" for number, name in enumerate(CHANGES))
        raise TomokitError(f"the `label` of a pair of scans must be one of {told}; got {label!r}")
    if change is None:
        amount = 0.0 if label == UNCHANGED else math.nan
    elif isinstance(change, bool) or not isinstance(change, int | float) or not math.isfinite(change):
        raise TomokitError(f"`change` must be a number such as -0.03, a loss of 3 %; got {change!r}")
    else:
        amount = 100 * float(change)
    kind = UNCHANGED if amount == 0 else SMALLER if amount < 0 else LARGER
    if label != UNCHANGED and not math.isnan(amount) and kind != label:
        raise TomokitError(f"the `label` {label} says {CHANGES[label]}, the `change` {change} {CHANGES[kind]}")
    return {UNCHANGED: math.nan, SMALLER: 1.0, LARGER: 0.0}[label], float(label != UNCHANGED), amount


class PairTargetd(MapTransform):
    """Turns the label of a pair, with its `change`, into the target (3,) of `SiameseLoss`: order, changed, amount in %.

    NaN stands for what is not known. The key `change` goes, since not every case needs to have one.

    Args:
        keys: the key of the label.

    Raises:
        TomokitError: that names the case, as `pair_target`.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)
        self.target = pair_target  # a part of the state, so that a cache on the disk knows its source

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with each label as a vector (3,), float32."""
        result = dict(data)
        change = result.pop("change", None)
        for key in self.key_iterator(result):
            try:
                target = self.target(result[key], change)
            except TomokitError as error:
                raise TomokitError(f"{data.get('case', key)}: {error}; correct dataset.json") from error
            result[key] = torch.tensor(target, dtype=torch.float32)
        return result


class PairAnswersd(MapTransform):
    """Turns a network's output (4,) into the answer (3,), and says whether the pair is called changed.

    The answer is the probability that something changed, that of "the first scan is the earlier one", and the amount
    in per cent from the first to the second. Beside it, as `<key>_changed`, stands 1 where the first probability is
    above the threshold of `<run_dir>/decision.json`, else 0.

    Args:
        keys: the key of the output, as `SiameseNetwork` gives it.
        run_dir: the run's folder.

    Raises:
        TomokitError: when the file is malformed or of another task.
    """

    def __init__(self, keys: KeysCollection, run_dir: str | Path) -> None:
        super().__init__(keys)
        self.path = Path(run_dir) / FILE
        self.threshold: float | None = None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the answer of each key, float64."""
        result = dict(data)
        if self.threshold is None:
            self.threshold = read_threshold(self.path)
        for key in self.key_iterator(result):
            order, change, amount = torch.as_tensor(result[key]).tolist()[:3]
            p_changed, p_first = (float(expit(value)) for value in (change, order))  # as the threshold was made
            result[key] = torch.tensor([p_changed, p_first, amount], dtype=torch.float64)
            result[f"{key}_changed"] = torch.tensor(int(p_changed > self.threshold), dtype=torch.uint8)
        return result


def read_threshold(path: Path) -> float:
    """Return the probability above which a run calls a pair changed, 0.5 where it has not chosen one.

    Raises:
        TomokitError: when the file is malformed or of another task.
    """
    if not path.is_file():
        return THRESHOLD
    content = read_json(path)
    if isinstance(content, dict) and content.get("task") == TASK and isinstance(content.get("threshold"), int | float):
        return float(content["threshold"])
    raise TomokitError(
        f"{path} does not tell the threshold of pairs of scans ({json.dumps(content)[:80]}); go on with the run's own "
        "config and `--resume true`, which writes it at the end of the training"
    )


def choose_change_threshold(unchanged: ArrayLike, rate: float = 0.05) -> dict[str, Any]:
    """Return the probability above which a pair is called changed, so that few unchanged ones are.

    `{"threshold", "unchanged", "called", "rate", "confidence"}`: it is the lowest one that leaves so few of the
    unchanged pairs above it ("called") that, with a confidence of 90 %, at most `rate` of all unchanged pairs would
    lie there. Fewer than 45 pairs can't say that of 5 %: then it is the highest of them, and "confidence" tells what
    that is worth. Several pairs of a patient are taken as independent, which makes it seem surer than it is.

    Args:
        unchanged: the probabilities of change (N,), one or more, of validation pairs that did not change.
        rate: of unchanged pairs that may be called changed.

    Raises:
        TomokitError: when there is no pair, or the rate does not lie between 0 and 1.
    Source: Wilks, Determination of sample sizes for setting tolerance limits, Annals of Mathematical Statistics 12
        (1941); Clopper and Pearson, Biometrika 26 (1934).
    """
    chances = np.sort(np.asarray(unchanged, dtype=float))[::-1]
    if not len(chances):
        raise TomokitError("a threshold of change needs unchanged validation pairs, got none")
    if not 0 < rate < 1:
        raise TomokitError(f"the rate of unchanged pairs called changed must lie between 0 and 1, got {rate}")
    chance_of_fewer = scipy.stats.binom.cdf(np.arange(len(chances)), len(chances), rate)
    called = max(int((chance_of_fewer <= 1 - CONFIDENCE).sum()) - 1, 0)
    return {
        "threshold": float(chances[called]),
        "unchanged": len(chances),
        "called": int((chances > chances[called]).sum()),
        "rate": rate,
        "confidence": float(1 - chance_of_fewer[called]),
    }


# How right the answers are


def truth_columns(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the truth of a pair as columns of the table of cases: its change, and the amount in % where known."""
    _, _, amount = pair_target(entry["label"], entry.get("change"))
    return {"truth": CHANGES[entry["label"]], "truth_amount": None if math.isnan(amount) else amount}


def answer_columns(p_changed: float, changed: int, p_first_is_earlier: float, amount: float) -> dict[str, Any]:
    """Return an answer as columns of the table of cases; `changed` is 0 or 1, the amount is in per cent."""
    values = (float(p_changed), int(changed), float(p_first_is_earlier), float(amount))
    return dict(zip(ANSWERS, values, strict=True))


def summarise_pairs(rows: Sequence[Row]) -> dict[str, Any]:
    """Return how right the answers on pairs of scans are, over a test set, as {"summary": …, "per_class": {}}.

    Rows carry "case", "patient", "truth" (of `CHANGES`), "truth_amount" (per cent, None where unknown), the
    probabilities "p_changed" and "p_first_is_earlier", "changed" (0 or 1: called so) and "amount" (per cent). The
    summary has "order_accuracy" and "order_auc" over the changed pairs, "change_auc", "auc" (the mean of both areas),
    "sensitivity" (changed pairs called changed), "false_positive_rate" (unchanged ones called so), and of the amount
    "amount_mae" and "amount_bias" in per cent and "amount_correlation" (linear), over all pairs of known amount. Each
    is {"mean", "ci95": [low, high] or None, "n": patients, "cases"}; patients are resampled with all their pairs.

    Raises:
        TomokitError: when there are no rows, or rows are incomplete or out of range.
    """
    if not rows:
        raise TomokitError(NO_ROWS.format("compared"))
    _check_rows(rows)
    patients = [str(row["patient"]) for row in rows]
    changed = np.array([row["truth"] != CHANGES[UNCHANGED] for row in rows])
    first = np.array([row["truth"] == CHANGES[SMALLER] for row in rows])
    amounts = np.array([math.nan if row["truth_amount"] is None else float(row["truth_amount"]) for row in rows])
    answers = [np.array([float(row[name]) for row in rows]) for name in ANSWERS]
    p_changed, called, p_first, amount = answers
    right = np.where(p_first == 0.5, 0.5, (p_first > 0.5) == first)
    arrays = [changed, first, p_changed, p_first, amounts, amount]
    intervals = dict(zip(MEASURES, bootstrap_statistics(_measure, arrays, patients), strict=True))
    told = int((~np.isnan(amounts)).sum())
    summary = {
        "order_accuracy": _mean(right, patients, changed),
        "sensitivity": _mean(called, patients, changed),
        "false_positive_rate": _mean(called, patients, ~changed),
        **{name: _entry(found, told if "amount" in name else len(rows)) for name, found in intervals.items()},
    }
    return {"summary": summary, "per_class": {}}


def pair_areas(
    changed: NDArray[np.bool_], first: NDArray[np.bool_], p_changed: NDArray[Any], p_first: NDArray[Any]
) -> list[float]:
    """Return three areas under ROC curves: the mean of the other two, that of order, that of change.

    Args:
        changed: (N,), whether a pair changed.
        first: (N,), whether the first scan is the earlier one; looked at in changed pairs alone.
        p_changed: (N,), grows with the belief that a pair changed.
        p_first: (N,), grows with the belief that the first scan is the earlier one.
    """
    areas = [area_under_curve(first[changed], p_first[changed]), area_under_curve(changed, p_changed)]
    return [sum(areas) / 2, *areas]


class PairAUC(CumulativeIterationMetric):
    """MONAI metric: the mean of two areas under ROC curves, of the order of changed pairs and of changed or not.

    It takes outputs (B, 4) of `SiameseNetwork` and targets (B, 3) of `PairTargetd`, or lists of single ones. NaN
    where there are not both kinds of pairs.
    """

    def _compute_tensor(self, y_pred: Tensor, y: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        return y_pred, y

    def aggregate(self) -> float:
        """Return the metric over all pairs since the last reset."""
        kept = self.get_buffer()
        if kept is None:
            return math.nan
        outputs, targets = (torch.as_tensor(part).double().cpu().numpy() for part in kept)
        return pair_areas(targets[:, 1] == 1, targets[:, 0] == 1, outputs[:, 1], outputs[:, 0])[0]


def _measure(
    changed: NDArray[np.bool_],
    first: NDArray[np.bool_],
    p_changed: NDArray[Any],
    p_first: NDArray[Any],
    truth: NDArray[np.float64],
    amount: NDArray[np.float64],
) -> list[float]:
    """Return the numbers `MEASURES`; NaN is what is undefined, as a `truth` that is not known."""
    areas = pair_areas(changed, first, p_changed, p_first)
    known = ~np.isnan(truth)
    if not known.any():
        return [*areas, math.nan, math.nan, math.nan]
    own, given = truth[known], amount[known]
    varied = np.ptp(own) > 0 and np.ptp(given) > 0
    correlation = float(np.corrcoef(own, given)[0, 1]) if varied else math.nan
    return [*areas, float(np.abs(given - own).mean()), float((given - own).mean()), correlation]


def _check_rows(rows: Sequence[Row]) -> None:
    """Raise one error with everything that is wrong with the rows."""
    problems = []
    for row, column in itertools.product(rows, ("truth", "truth_amount", *ANSWERS)):
        where = f"{column} of case {row.get('case')}"
        if column not in row:
            problems.append(f"case {row.get('case')} has no column {column}")
        elif column == "truth" and row[column] not in CHANGES:
            problems.append(f"{where} must be one of {', '.join(CHANGES)}, got {row[column]!r}")
        elif column.startswith("p_") and not 0 <= float(row[column]) <= 1:
            problems.append(f"{where} must lie in 0–1, got {row[column]}")
        elif column == "changed" and float(row[column]) not in (0, 1):
            problems.append(f"{where} must be 0 or 1, got {row[column]}")
        elif column == "amount" and not math.isfinite(float(row[column])):
            problems.append(f"{where} must be a finite number, got {row[column]}")
    raise_problems("can't score the pairs:", problems)


def _mean(values: NDArray[Any], patients: Sequence[str], where: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the mean of the chosen values as an entry of metrics.json; an empty one when none is chosen."""
    chosen = list(itertools.compress(patients, where))
    return _entry(bootstrap_mean(values[where], chosen) if chosen else NOT_SCORED, len(chosen))


def _entry(interval: Interval, cases: int) -> dict[str, Any]:
    """Return an interval as an entry of metrics.json."""
    ci95 = None if interval.low is None else [interval.low, interval.high]
    return {"mean": interval.mean, "ci95": ci95, "n": interval.n_patients, "cases": cases}
