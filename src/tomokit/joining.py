"""Measures of the cases joined to a trained network, by a regression of them beside it."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from tomokit.engines.checkpoints import load_weights, save
from tomokit.engines.hardware import unwrap
from tomokit.engines.predicting import predict_cases
from tomokit.errors import TomokitError
from tomokit.files import write_json
from tomokit.metrics import check_task, macro_auc
from tomokit.rivals import feature_table, make_classifier
from tomokit.runs import is_main_process, peak_memory_gb

logger = logging.getLogger(__name__)


def join_measures(
    evaluator: Any,
    run_dir: str | Path,
    pretrained: str | Path,
    entries: Sequence[Mapping[str, Any]],
    mask_above: float | None = None,
    task: str = "classes",
) -> None:
    """Give a `MeasuresAdded` its network's weights and its fitted regression, and keep it as the run's best.

    It stands in a config's `run` in place of `trainer.run()`; evaluation and inference then work unchanged. Of several
    processes the first one does it.

    Args:
        evaluator: MONAI's evaluator on the validation cases; its network is a `MeasuresAdded`.
        run_dir: the run's folder; `checkpoints/best.pt` and `validation.json` are written there.
        pretrained: the folder of the run that trained the network; its best weights are taken, else the last.
        entries: the training cases, with their `label` and files, as `tomokit.rivals.feature_table` takes them.
        mask_above: as there.
        task: "classes", "labels" or "value".

    Raises:
        TomokitError: when that run has no weights, or those of another network, and as `fit_measures`.
    """
    if not is_main_process():
        return
    began = time.perf_counter()
    network: Any = unwrap(evaluator.network)
    load_weights(network.network, pretrained, "best")
    fit_measures(network, entries, mask_above, task)
    save(network.state_dict(), Path(run_dir) / "checkpoints" / "best.pt")
    held = len(evaluator.data_loader.dataset)
    metric = score_outputs(*predict_cases(evaluator), task) if held else None
    record = {"metric": evaluator.state.key_metric_name, "best": {"epoch": 0, "metric": metric}, "epochs": 0}
    record |= {"history": [], "seconds": time.perf_counter() - began, "seconds_per_step": None}
    record |= {"peak_rss_gb": peak_memory_gb(), "cases": len(entries), "measures": len(network.mean)}
    record |= {"parameters": sum(parameter.numel() for parameter in network.parameters())}
    write_json(Path(run_dir) / "validation.json", record)
    scored = "" if metric is None else f"; {record['metric']} {metric:.3f}"
    logger.info("%d measures of %d training cases joined%s: %s", len(network.mean), len(entries), scored, run_dir)


def fit_measures(
    network: Any, entries: Sequence[Mapping[str, Any]], mask_above: float | None = None, task: str = "classes"
) -> None:
    """Fit the linear model of a `MeasuresAdded` to the training cases.

    Classes and labels have the logistic regression that is the network's rival; a value, standardised over the cases as
    the network learns it, has scikit-learn's ridge of 1.

    Args:
        network: a `MeasuresAdded`.
        entries: as in `join_measures`.
        mask_above: as there.
        task: as there.

    Raises:
        TomokitError: when there is no such task, the cases have other measures than the network was made for, a class
            has no case, a label has all cases or none, and as `feature_table`.
    """
    check_task(task)
    names, table = feature_table(entries, mask_above)
    if len(names) != len(network.mean):
        raise TomokitError(
            f"the training cases have {len(names)} measures, the network takes {len(network.mean)}; set `mask_key: "
            "mask` where each entry has a `mask`, else null"
        )
    targets = np.array([entry["label"] for entry in entries])
    _check_targets(targets, task, network.fc.out_features)
    models = _fit_models(table, targets, task)
    weight = np.concatenate([np.atleast_2d(model[-1].coef_) for model in models])
    bias = np.concatenate([np.atleast_1d(model[-1].intercept_) for model in models])
    if task == "classes" and len(bias) == 1:  # of two classes scikit-learn gives the difference of their logits
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    scaler = models[0][0]
    with torch.no_grad():
        for own, values in (
            *((network.mean, scaler.mean_), (network.deviation, scaler.scale_)),
            *((network.fc.weight, weight), (network.fc.bias, bias)),
        ):
            own.copy_(torch.from_numpy(values))


def score_outputs(outputs: NDArray[np.float64], truth: NDArray[Any], task: str) -> float | None:
    """Return the mean AUC of logits (cases, C), or a standardised value's mean squared error; None if undefined.

    Args:
        outputs: (cases, C) logits, or (cases, 1) standardised values.
        truth: classes (cases,), labels (cases, C), or standardised values (cases, 1).
        task: "classes", "labels" or "value".
    """
    if task == "value":
        return float(np.mean((outputs - truth.reshape(outputs.shape)) ** 2))
    if task == "labels":
        return macro_auc(truth > 0, outputs)
    return macro_auc(truth.reshape(-1, 1) == np.arange(outputs.shape[1]), scipy.special.softmax(outputs, axis=1))


def _check_targets(targets: NDArray[Any], task: str, outputs: int) -> None:
    """Raise when there is a class (of targets (cases,)) or label (cases, L) that nothing can be fitted to."""
    if task == "value":
        return
    held = targets[:, None] == np.arange(outputs) if task == "classes" else targets == 1
    alike = [number for number, own in enumerate(held.T) if own.min() == own.max()]
    if alike:
        kind = {"classes": "class", "labels": "label"}[task]
        raise TomokitError(
            f"no regression of the measures can be fitted to the {kind} {alike[0]}: all training cases have it, or "
            f"none has; leave modes/features out, or the {kind}"
        )


def _fit_models(table: NDArray[np.float64], targets: NDArray[Any], task: str) -> list[Pipeline]:
    """Return the fitted models, each a standardisation and a regression: one, or one for each label."""
    if task == "value":
        return [make_pipeline(StandardScaler(), Ridge()).fit(table, (targets - targets.mean()) / targets.std())]
    columns = targets.T if task == "labels" else [targets]
    return [make_classifier("logistic").fit(table, column) for column in columns]
