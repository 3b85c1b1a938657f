"""Whether unlabelled cases helped: a run beside the supervised one, both on the validation cases, case by case."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special
from numpy.typing import NDArray

from tomokit.engines.checkpoints import find_checkpoint, list_differences, load, weights_of
from tomokit.engines.predicting import predict_cases
from tomokit.errors import TomokitError, raise_problems
from tomokit.files import read_json, write_json
from tomokit.labels import foreground
from tomokit.metrics import area_under_curve, check_task
from tomokit.postprocessing import Transform, predict
from tomokit.runs import is_main_process
from tomokit.statistics import Interval, bootstrap_mean, bootstrap_statistic

logger = logging.getLogger(__name__)

Cases = Mapping[str, Sequence[Mapping[str, Any]]]
SCORES = {"classes": "AUC", "labels": "mean AUC", "value": "mean squared error"}


def check_baseline(baseline: str | Path, cases: Cases, network: Any) -> None:
    """Raise when a supervised run can't be compared with a training that begins; without validation cases none can.

    Args:
        baseline: the folder of a run that was trained on the labelled cases alone.
        cases: the split of the training that begins.
        network: its network, which the baseline's weights must fit.

    Raises:
        TomokitError: when there is no such run, or its labelled cases or its network are others.
    """
    if not cases["validation"]:
        logger.info("no validation cases: nothing will tell whether the unlabelled cases help")
        return
    folder = Path(baseline)
    if not (folder / "configs" / "train.yaml").is_file():
        raise TomokitError(f"no supervised run in {folder} to compare with; train one on the labelled cases first")
    problems = list_differences(folder, cases, network)
    raise_problems(f"{folder} can't be compared with; use the same split, seed, `label_count` and network", problems)


def compare_classification(
    evaluator: Any, run_dir: str | Path, baseline: str | Path, task: str = "classes"
) -> dict[str, Any] | None:
    """Return how the run's best network scores beside the baseline's; it is logged, and put into `validation.json`.

    `{"run", "metric", "value", "baseline", "difference", "ci95", "n", "verdict"}` of the (mean) AUC, or of a value's
    squared error in its standardised unit; the interval of the difference is from the bootstrap by patient. Both
    epochs were chosen by these cases, so that both scores are somewhat too good. None without validation cases.

    Args:
        evaluator: MONAI's evaluator on the validation cases; it ends with the run's best weights.
        run_dir: the run's folder.
        baseline: the supervised run's.
        task: "classes", "labels" or "value".

    Raises:
        TomokitError: when there is no such task.
    """
    check_task(task)
    sources = _best_weights(evaluator, run_dir, baseline)
    if sources is None:
        return None
    outputs = []
    for source in sources:
        evaluator.network.load_state_dict(source)
        output, truth = predict_cases(evaluator)
        outputs.append(output)
    theirs, ours = outputs

    def difference(truth: NDArray[Any], first: NDArray[Any], second: NDArray[Any]) -> float:
        return _score(task, truth, first) - _score(task, truth, second)

    patients = [str(entry["patient"]) for entry in evaluator.data_loader.dataset.data]
    found = bootstrap_statistic(difference, [truth, ours, theirs], patients)
    scores = _score(task, truth, ours), _score(task, truth, theirs)
    return _tell(run_dir, baseline, SCORES[task], scores, found, lower_is_better=task == "value")


def compare_segmentation(
    evaluator: Any, postprocessing: Transform, run_dir: str | Path, baseline: str | Path, labels: Mapping[str, str]
) -> dict[str, Any] | None:
    """Return what `compare_classification` does, of each case's mean Dice over the structures.

    Args:
        evaluator: MONAI's evaluator on the validation cases; it ends with the run's best weights.
        postprocessing: what makes a label map (1, X, Y[, Z]), or regions, of the logits.
        run_dir: the run's folder.
        baseline: the supervised run's.
        labels: the label map.
    """
    sources = _best_weights(evaluator, run_dir, baseline)
    if sources is None:
        return None
    scores = []
    for source in sources:
        evaluator.network.load_state_dict(source)
        maps = (predict(evaluator, postprocessing, item) for item in evaluator.data_loader.dataset)
        scores.append(np.array([_mean_dice(*pair, list(foreground(labels))) for pair in maps]))
    theirs, ours = scores
    patients = np.array([str(entry["patient"]) for entry in evaluator.data_loader.dataset.data])
    known = ~np.isnan(ours - theirs)
    if not known.any():
        return None
    found = bootstrap_mean((ours - theirs)[known], patients[known].tolist())
    means = float(ours[known].mean()), float(theirs[known].mean())
    return _tell(run_dir, baseline, "mean Dice", means, found)


def judge(low: float | None, high: float | None, lower_is_better: bool = False) -> str:
    """Return "helped" or "hurt" where the interval of a difference leaves 0 out, else "no difference shown"."""
    if low is None or high is None or low <= 0 <= high:
        return "no difference shown"
    return "helped" if (low > 0) != lower_is_better else "hurt"


def _best_weights(evaluator: Any, run_dir: str | Path, baseline: str | Path) -> list[dict[str, Any]] | None:
    """Return the best weights of the baseline and of the run; None where there is nothing to compare on, or by."""
    best = Path(run_dir) / "checkpoints" / "best.pt"
    if not is_main_process() or not best.is_file() or not len(evaluator.data_loader.dataset):
        return None
    return [weights_of(load(path)) for path in (find_checkpoint(baseline, "best"), best)]


def _score(task: str, truth: NDArray[Any], outputs: NDArray[np.float64]) -> float:
    """Return the (mean) AUC of logits (cases, C) or the mean squared error of values (cases, 1); NaN if undefined."""
    if task == "value":
        return float(np.mean((outputs - truth.reshape(outputs.shape)) ** 2))
    if task == "classes":
        outputs = scipy.special.softmax(outputs, axis=1)
        truth = truth.reshape(-1, 1) == np.arange(outputs.shape[1])
    curves = [area_under_curve(own > 0, column) for own, column in zip(truth.T, outputs.T, strict=True)]
    known = [value for value in curves if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _mean_dice(prediction: NDArray[Any], truth: NDArray[Any], values: Sequence[int]) -> float:
    """Return the mean Dice over the structures, or over regions, that are in the prediction or the truth; else NaN."""
    if len(prediction) > 1:  # regions, a channel each
        pairs = [(prediction[channel] > 0, truth[channel] > 0) for channel in range(len(prediction))]
    else:
        pairs = [(prediction == value, truth == value) for value in values]
    totals = [int(ours.sum()) + int(true.sum()) for ours, true in pairs]
    scores = [2 * int((ours & true).sum()) / n for (ours, true), n in zip(pairs, totals, strict=True) if n]
    return float(np.mean(scores)) if scores else float("nan")


def _tell(
    run_dir: str | Path,
    baseline: str | Path,
    metric: str,
    scores: tuple[float, float],
    found: Interval,
    lower_is_better: bool = False,
) -> dict[str, Any]:
    """Return the comparison, logged and written into the run's `validation.json`."""
    verdict = judge(found.low, found.high, lower_is_better)
    ours, theirs = (value if np.isfinite(value) else None for value in scores)
    content: dict[str, Any] = {
        "run": str(baseline),
        "metric": metric,
        "value": ours,
        "baseline": theirs,
        "difference": found.mean,
    }
    content |= {"ci95": None if found.low is None else [found.low, found.high], "n": found.n_patients}
    content["verdict"] = verdict
    path = Path(run_dir) / "validation.json"
    write_json(path, read_json(path) | {"comparison": content})
    interval = "no interval" if found.low is None else f"[{found.low:+.3f}, {found.high:+.3f}]"
    told = (*(f"{value:.3f}" for value in scores), interval, found.n_patients, verdict, baseline)
    level = logging.WARNING if verdict == "hurt" else logging.INFO
    text = f"the unlabelled cases: validation {metric} %s, without them %s; difference %s, %d patients: %s (%s)"
    logger.log(level, text, *told)
    return content
