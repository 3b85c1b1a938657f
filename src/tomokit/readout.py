"""Features of a pretrained network read out by a logistic regression, which becomes the network's last layer."""

import copy
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.special
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tomokit.engines.checkpoints import save
from tomokit.engines.hardware import unwrap
from tomokit.engines.predicting import predict_cases
from tomokit.errors import TomokitError
from tomokit.files import write_json
from tomokit.finetuning import find_head
from tomokit.metrics import area_under_curve
from tomokit.runs import is_main_process, peak_memory_gb

logger = logging.getLogger(__name__)

STRENGTHS = tuple(10.0**power for power in range(-4, 3))  # scikit-learn's C, the inverse of the penalty
STRENGTH = 1.0  # where no validation case chooses it


class ReadOut(NamedTuple):
    """A linear layer: weights (classes, features) and biases (classes,), and the strength C it was fitted with."""

    weights: NDArray[np.float64]
    biases: NDArray[np.float64]
    strength: float

    def logits(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the logits (cases, classes) of features (cases, features)."""
        return features @ self.weights.T + self.biases


class Table(NamedTuple):
    """Cases with known classes: features (cases, features) and classes (cases,)."""

    features: NDArray[np.float64]
    classes: NDArray[np.int64]


def fit_read_out(
    trainer: Any, evaluator: Any, run_dir: str | Path, labels: Mapping[str, str], task: str = "classes"
) -> ReadOut | None:
    """Return the regression that reads the network's features out, put into its last linear layer and kept as best.

    The features are what reaches that layer, of the training cases as they are, without augmentation, and with the
    network as in evaluation; nothing else of the network is changed. The penalty is chosen on the validation cases.
    It stands in a config's `run` in place of `trainer.run()`; evaluation and inference then work unchanged. Of several
    processes the first one does it; the others get None.

    Args:
        trainer: MONAI's trainer, for its cases; its network has the pretrained weights.
        evaluator: MONAI's evaluator on the validation cases.
        run_dir: the run's folder; `checkpoints/best.pt` and `validation.json` are written there.
        labels: the classes, `{"0": name, …}`.
        task: only "classes" can be read out.

    Raises:
        TomokitError: when the task is another one, a class has no training case, or the head has no linear layer.
    """
    if task != "classes":
        raise TomokitError(f"a logistic regression reads out classes, got the task {task!r}; leave modes/read_out out")
    if not is_main_process():
        return None
    began = time.perf_counter()
    network = unwrap(evaluator.network)
    layer = last_linear(network)
    training = gather_features(evaluator, trainer.data_loader.dataset, layer)
    held = evaluator.data_loader.dataset
    validation = gather_features(evaluator, held, layer) if len(held) else None
    found = choose_read_out(training, validation, [labels[key] for key in sorted(labels, key=int)])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(found.weights))
        layer.bias.copy_(torch.from_numpy(found.biases))
    save(network.state_dict(), Path(run_dir) / "checkpoints" / "best.pt")
    record = _summarise(found, validation) | {"seconds": time.perf_counter() - began, "peak_rss_gb": peak_memory_gb()}
    record |= {"cases": len(training.classes), "features": training.features.shape[1]}
    record |= {"parameters": sum(parameter.numel() for parameter in network.parameters())}
    write_json(Path(run_dir) / "validation.json", record)
    told = (training.features.shape[1], len(training.classes), found.strength, run_dir)
    logger.info("read out: %d features of %d training cases, strength C %.3g: %s", *told)
    return found


def last_linear(network: nn.Module) -> nn.Linear:
    """Return the last linear layer of the network's head.

    Raises:
        TomokitError: when the head has none, or can't be told.
    """
    heads = find_head(network)
    found = [part for name in heads for part in network.get_submodule(name).modules() if isinstance(part, nn.Linear)]
    if not found:
        told = f"{type(network).__name__} has no linear layer in its head {', '.join(heads)}"
        raise TomokitError(f"{told}, so it can't be read out to it; use another network")
    return found[-1]


def gather_features(evaluator: Any, dataset: Any, layer: nn.Module) -> Table:
    """Return what reaches a layer of the evaluator's network, for each case of a data set in its order."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        kept.append(given[0].double().cpu())

    own = evaluator.data_loader
    view = copy.copy(evaluator)  # the same engine on other cases
    view.data_loader = DataLoader(dataset, own.batch_size or 1, collate_fn=own.collate_fn)
    hook = layer.register_forward_pre_hook(keep)
    try:
        _, classes = predict_cases(view)
    finally:
        hook.remove()
    return Table(torch.cat(kept).numpy(), classes.astype(np.int64))


def choose_read_out(training: Table, validation: Table | None, names: list[str]) -> ReadOut:
    """Return the regression of least log loss on the validation cases; without any, the one with a ridge of 1.

    Raises:
        TomokitError: when a class has no training case.
    """
    absent = sorted(set(range(len(names))) - set(training.classes.tolist()))
    if absent:
        raise TomokitError(
            f"no training case is of class {', '.join(names[number] for number in absent)}, so it can't be read out; "
            "give `label_count` more cases, or leave the class out"
        )
    if validation is None:
        return fit_regression(training, STRENGTH)
    fitted = [fit_regression(training, strength) for strength in STRENGTHS]
    return min(fitted, key=lambda found: _log_loss(found, validation))


def fit_regression(table: Table, strength: float) -> ReadOut:
    """Return scikit-learn's logistic regression on standardised features, as a layer on the features themselves."""
    scaler = StandardScaler().fit(table.features)
    model = LogisticRegression(C=strength, max_iter=5000).fit(scaler.transform(table.features), table.classes)
    weights, biases = model.coef_, model.intercept_
    if len(weights) == 1:  # of two classes scikit-learn tells the difference of their logits
        weights, biases = np.concatenate([-weights, weights]) / 2, np.concatenate([-biases, biases]) / 2
    weights = weights / scaler.scale_
    return ReadOut(weights, biases - weights @ scaler.mean_, strength)


def _summarise(found: ReadOut, validation: Table | None) -> dict[str, Any]:
    """Return what `validation.json` tells of a training without epochs: the metric, and how the penalty was chosen."""
    record: dict[str, Any] = {"metric": "val_auc", "best": None, "epochs": 0, "history": []}
    record |= {"strength": found.strength, "seconds_per_step": None}
    if validation is None:
        return record
    logits = found.logits(validation.features)
    chances = scipy.special.softmax(logits, axis=1)
    curves = [area_under_curve(validation.classes == number, column) for number, column in enumerate(chances.T)]
    known = [value for value in curves if np.isfinite(value)]
    metric = float(np.mean(known)) if known else None
    return record | {"best": {"epoch": 0, "metric": metric}, "log_loss": _log_loss(found, validation)}


def _log_loss(found: ReadOut, table: Table) -> float:
    """Return the mean log loss of cases."""
    logits = found.logits(table.features)
    own = np.take_along_axis(logits, table.classes[:, None], axis=1)[:, 0]
    return float((scipy.special.logsumexp(logits, axis=1) - own).mean())
