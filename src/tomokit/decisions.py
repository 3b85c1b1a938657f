"""What turns a network's output into an answer: temperatures, thresholds and units, the same in every later stage.

They are chosen on the validation cases after training, or known from the training cases, and kept in the run's folder.
"""

import json
import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from numpy.typing import NDArray
from torch import Tensor

from tomokit.engines.checkpoints import load, weights_of
from tomokit.engines.hardware import plain
from tomokit.engines.predicting import predict_cases
from tomokit.errors import TomokitError
from tomokit.files import read_json, write_json
from tomokit.held_out import keep_classes, keep_values
from tomokit.metrics import check_task
from tomokit.runs import is_main_process

logger = logging.getLogger(__name__)

FILE = "decision.json"
COLDEST, HOTTEST = 0.1, 10.0  # temperatures that are tried
SPREAD = 0.5  # of the logarithm of temperatures before a case is seen; it weighs like some 16 uncertain cases
FEWEST = 3  # cases with a label, and without, to choose its threshold by
THRESHOLD = 0.5  # where none is chosen


class Decision(NamedTuple):
    """Temperatures and thresholds, one for all channels or one for each; the mean and deviation of a target."""

    temperatures: tuple[float, ...] = (1.0,)
    thresholds: tuple[float, ...] = (THRESHOLD,)
    mean: float = 0.0
    deviation: float = 1.0


class Calibratedd(MapTransform):
    """Turns a network's output (C,) into an answer, as `<run_dir>/decision.json` of its training says.

    Of classes it gives the softmax of the logits divided by the temperature. Of labels it gives each one's sigmoid,
    likewise, and beside it, as `<key>_decided`, 1 where the label's threshold is reached and 0 elsewhere. Of a value
    it gives the value in its own unit. Without the file, as for a run without validation cases, the temperature is 1
    and the threshold 0.5.

    Args:
        keys: the key of the output.
        run_dir: the run's folder.
        task: "classes", "labels" or "value".

    Raises:
        TomokitError: when there is no such task; when the file is of another task or of other labels, is malformed,
            or, for a value, is absent.
    """

    def __init__(self, keys: KeysCollection, run_dir: str | Path, task: str = "classes") -> None:
        super().__init__(keys)
        check_task(task)
        self.path = Path(run_dir) / FILE
        self.task = task
        self.decision: Decision | None = None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the probabilities or the value of each key, float32."""
        result = dict(data)
        if self.decision is None:
            self.decision = read_decision(self.path, self.task)
        for key in self.key_iterator(result):
            output = plain(torch.as_tensor(result[key])).float()
            if self.task == "value":
                result[key] = output * self.decision.deviation + self.decision.mean
                continue
            scaled = output / self._by_channel(self.decision.temperatures, output)
            result[key] = scaled.softmax(0) if self.task == "classes" else scaled.sigmoid()
            if self.task == "labels":
                reached = result[key] >= self._by_channel(self.decision.thresholds, output)
                result[f"{key}_decided"] = reached.to(torch.uint8)
        return result

    def _by_channel(self, values: Sequence[float], output: Tensor) -> Tensor:
        """Return numbers of the decision as a tensor that goes with the channels (C, …) of an output."""
        if len(values) not in (1, len(output)):
            raise TomokitError(
                f"{self.path} decides on {len(values)} labels, the network gives {len(output)}; use the config that "
                "the run was trained with"
            )
        return output.new_tensor(values).view(-1, *[1] * (output.ndim - 1))


class StandardiseTargetd(MapTransform):
    """Turns a case's target, a number, into a tensor (1,) that has mean 0 and deviation 1 over the training part.

    Args:
        keys: the key of the target.
        scale: `{"mean", "deviation"}` as `target_scale` returns them.
    """

    def __init__(self, keys: KeysCollection, scale: Mapping[str, float]) -> None:
        super().__init__(keys)
        self.mean, self.deviation = float(scale["mean"]), float(scale["deviation"])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with each target standardised, float32."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = torch.tensor([(float(result[key]) - self.mean) / self.deviation], dtype=torch.float32)
        return result


def target_scale(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean and the deviation of the targets of training cases, `{"mean", "deviation"}` in their unit.

    Raises:
        TomokitError: when a label is no number, or the targets are all alike.
    """
    values = []
    for entry in entries:
        if not isinstance(entry["label"], int | float) or isinstance(entry["label"], bool):
            raise TomokitError(f"{entry['case']} has the label {entry['label']!r}; a regression needs a number")
        values.append(float(entry["label"]))
    if len(set(values)) < 2:
        raise TomokitError(f"a regression needs training cases of different targets, got only {sorted(set(values))}")
    return {"mean": float(np.mean(values)), "deviation": float(np.std(values))}


def choose_decision(
    evaluator: Any,
    run_dir: str | Path,
    labels: Mapping[str, str],
    task: str = "classes",
    scale: Mapping[str, float] | None = None,
) -> dict[str, Any] | None:
    """Return what is decided, written to `<run_dir>/decision.json`: on the validation cases, with the best weights.

    Classes get one temperature, several labels a temperature and a threshold each. Nothing is decided where there are
    no validation cases: then None is returned, and no file written. Of a value only the target's scale is kept. The
    answers on classes and values are kept for what they promise of new cases (`tomokit.held_out`).

    Args:
        evaluator: MONAI's evaluator on the validation cases; its network gets the best weights.
        run_dir: the run's folder.
        labels: the classes or labels, `{"0": name, …}`.
        task: "classes", "labels" or "value".
        scale: of a value, what `target_scale` returned.

    Raises:
        TomokitError: when there is no such task, or a value comes without its scale.
    """
    check_task(task)
    if not is_main_process():
        return None
    scaled = _keep_scale(scale) if task == "value" else None
    predicted = _predict_best(evaluator, Path(run_dir))
    if scaled and predicted:
        values = predicted[0][:, 0] * scaled["deviation"] + scaled["mean"]
        keep_values(run_dir, values, predicted[1].reshape(-1) * scaled["deviation"] + scaled["mean"])
    found = scaled or (predicted and _choose(*predicted, Path(run_dir), labels, task))
    if found is None:
        return None
    content = {"task": task, **found}
    write_json(Path(run_dir) / FILE, content)
    return content


def decide_classes(logits: NDArray[np.float64], truth: NDArray[Any]) -> dict[str, Any]:
    """Return the temperature of logits (cases, C) whose true classes (cases,) are known, and what it brings.

    `{"cases", "temperatures": [one], "log_loss", "plain"}`; "plain" is the mean log loss without the temperature.

    Source: Guo et al., On calibration of modern neural networks, ICML 2017.
    """
    classes = truth.astype(int)

    def loss(temperature: float) -> float:
        scaled = logits / temperature
        own = np.take_along_axis(scaled, classes[:, None], axis=1)[:, 0]
        return float((scipy.special.logsumexp(scaled, axis=1) - own).sum())

    temperature = choose_temperature(loss)
    found = _tell_losses(loss, temperature, len(classes))
    told = (temperature, len(classes), found["log_loss"], found["plain"])
    logger.info("temperature %.3g; log loss of %d validation cases %.4f, without %.4f", *told)
    return {"cases": len(classes), "temperatures": [temperature], **found}


def decide_labels(logits: NDArray[np.float64], truth: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the temperature and threshold of each label of logits (cases, C), whose truth (cases, C) is 0 or 1.

    `{"cases", "temperatures", "thresholds", "tried": {label: {"cases_with", "log_loss", "plain"}}}`, in the order of
    `names`; "plain" is the mean log loss without the temperature.
    """
    content: dict[str, Any] = {"cases": len(logits), "temperatures": [], "thresholds": [], "tried": {}}
    for name, own, flags in zip(names, logits.T, truth.T > 0, strict=True):
        signed = np.where(flags, own, -own)

        def loss(temperature: float, signed: NDArray[np.float64] = signed) -> float:
            return float(np.logaddexp(0, -signed / temperature).sum())

        temperature = choose_temperature(loss)
        threshold = choose_threshold(flags, scipy.special.expit(own / temperature))
        found = _tell_losses(loss, temperature, len(own))
        content["temperatures"].append(temperature)
        content["thresholds"].append(threshold)
        content["tried"][name] = {"cases_with": int(flags.sum()), **found}
        told = (name, temperature, threshold, found["log_loss"], found["plain"])
        logger.info("%s: temperature %.3g, threshold %.3g; validation log loss %.4f, without %.4f", *told)
    return content


def choose_temperature(loss: Callable[[float], float]) -> float:
    """Return the temperature of the least log loss, never one of a greater loss than that of 1.

    `loss` gives the sum over the cases. Temperatures far from 1 need many cases to speak for them: their logarithm is
    taken to lie about 0 with a deviation of 0.5 before any case is seen, and none is below 0.1 or above 10. So a few
    cases that all happen to be right don't make a network certain.

    Source: maximum a posteriori estimation; MacKay, Information Theory, Inference and Learning Algorithms (2003).
    """

    def penalised(logarithm: float) -> float:
        return loss(math.exp(logarithm)) + (logarithm / SPREAD) ** 2 / 2

    # the penalised loss may have several minima: the best of a grid is refined
    grid = np.linspace(math.log(COLDEST), math.log(HOTTEST), 47).tolist()
    nearest = min(range(len(grid)), key=lambda place: penalised(grid[place]))
    bounds = (grid[max(nearest - 1, 0)], grid[min(nearest + 1, len(grid) - 1)])
    found = scipy.optimize.minimize_scalar(penalised, bounds=bounds, method="bounded")
    return math.exp(found.x) if found.fun < penalised(0.0) else 1.0


def choose_threshold(truth: NDArray[np.bool_], chances: NDArray[np.float64]) -> float:
    """Return the probability that decides on a label: that of the greatest sum of sensitivity and specificity.

    This sum (Youden's) weighs cases with and without the label alike, however rare it is, where F1 depends on how
    rare it is among these very cases. Thresholds lie half-way between probabilities; of equally good ones the nearest
    to 0.5 is taken, and 0.5 itself where fewer than three cases have the label, or lack it.

    Source: Youden, Index for rating diagnostic tests, Cancer 3 (1950).
    """
    if min(truth.sum(), (~truth).sum()) < FEWEST:
        return THRESHOLD
    values = np.unique(chances)
    candidates = np.append((values[1:] + values[:-1]) / 2, THRESHOLD)
    reached = chances[:, None] >= candidates
    youden = reached[truth].mean(axis=0) - reached[~truth].mean(axis=0)
    best = candidates[youden == youden.max()]
    return float(best[np.abs(best - THRESHOLD).argmin()])


def read_decision(path: Path, task: str) -> Decision:
    """Return what a run's file decides; a temperature of 1 and a threshold of 0.5 where there is no file.

    Raises:
        TomokitError: when the file is malformed or of another task, or, for a value, absent.
    """
    again = "go on with the run's own config and `--resume true`, which writes it at the end of the training"
    if not path.is_file():
        if task == "value":
            raise TomokitError(f"{path} is absent, which tells the mean and deviation of the target; {again}")
        return Decision()
    content = read_json(path)
    try:
        if content["task"] == task:
            return _parse(content, task)
    except (KeyError, TypeError, ValueError) as error:
        raise TomokitError(f"{path} is malformed ({json.dumps(content)[:80]}); {again}") from error
    raise TomokitError(f"{path} decides for the task {content['task']!r}, the config's `task` is {task!r}; correct it")


def _parse(content: Mapping[str, Any], task: str) -> Decision:
    """Return the decision that a file holds; what is wrong raises one of Python's own errors."""
    if task == "value":
        return Decision(mean=float(content["mean"]), deviation=float(content["deviation"]))
    temperatures = tuple(map(float, content["temperatures"]))
    thresholds = tuple(map(float, content["thresholds"])) if task == "labels" else (THRESHOLD,)
    if min(temperatures) <= 0:
        raise ValueError(temperatures)
    return Decision(temperatures, thresholds)


def _predict_best(evaluator: Any, run_dir: Path) -> tuple[NDArray[np.float64], NDArray[Any]] | None:
    """Return what the best weights give on the validation cases, and their labels; None where there are none."""
    best = run_dir / "checkpoints" / "best.pt"
    if not best.is_file() or not len(evaluator.data_loader.dataset):
        return None
    evaluator.network.load_state_dict(weights_of(load(best)))
    return predict_cases(evaluator)


def _choose(
    logits: NDArray[np.float64], truth: NDArray[Any], run_dir: Path, labels: Mapping[str, str], task: str
) -> dict[str, Any]:
    """Return what is decided on classes or labels; the answers on classes are kept."""
    if task == "labels":
        return decide_labels(logits, truth, [labels[key] for key in sorted(labels, key=int)])
    found = decide_classes(logits, truth)
    keep_classes(run_dir, scipy.special.softmax(logits / found["temperatures"][0], axis=1), truth)
    return found


def _keep_scale(scale: Mapping[str, float] | None) -> dict[str, Any]:
    """Return a target's scale as the file keeps it."""
    if scale is None:
        raise TomokitError("a regression needs the `scale` of its target; give what target_scale returns")
    return {"mean": float(scale["mean"]), "deviation": float(scale["deviation"])}


def _tell_losses(loss: Callable[[float], float], temperature: float, cases: int) -> dict[str, float]:
    """Return the mean log loss with and without a temperature."""
    return {"log_loss": loss(temperature) / cases, "plain": loss(1.0) / cases}
