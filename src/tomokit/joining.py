"""Measures of the cases joined to a trained network, by a regression of them beside it."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from tomokit.engines.checkpoints import list_differences, load_weights, save
from tomokit.engines.hardware import unwrap
from tomokit.errors import TomokitError, raise_problems
from tomokit.files import write_json
from tomokit.metrics import check_task
from tomokit.rivals import feature_table, make_classifier
from tomokit.runs import is_main_process, peak_memory_gb

logger = logging.getLogger(__name__)

Entries = Sequence[Mapping[str, Any]]


def take_trained(network: nn.Module, pretrained: str | Path, cases: Mapping[str, Entries]) -> nn.Module:
    """Return a `MeasuresAdded`, its network with the best weights of a run on the same cases.

    In a config it stands at the trainer, `train::trainer::network`, so that nothing of an earlier run is moved before.

    Args:
        network: a `MeasuresAdded`, joined with other processes' or not; it is changed in place.
        pretrained: the run's folder.
        cases: the split, which the run must have had too, or test cases would be among what it learned.

    Raises:
        TomokitError: when there is no such run, or its cases or its network are others.
    """
    folder = Path(pretrained)
    bare: Any = unwrap(network)
    if not (folder / "configs" / "train.yaml").is_file():
        raise TomokitError(f"no run in {folder} to join measures to; set `pretrained` to a trained run's folder")
    problems = list_differences(folder, cases, bare.network)
    raise_problems(f"measures can't be joined to {folder}; use its split, seed, fold and network layer", problems)
    load_weights(bare.network, folder, "best")
    return network


def join_measures(
    evaluator: Any, run_dir: str | Path, entries: Entries, mask_above: float | None = None, task: str = "classes"
) -> None:
    """Fit the regression of a `MeasuresAdded` whose network is trained, and keep both as the run's best weights.

    It stands in a config's `run` in place of `trainer.run()`; evaluation and inference then work unchanged. Of several
    processes the first one does it.

    Args:
        evaluator: MONAI's evaluator on the validation cases; its network is a `MeasuresAdded`.
        run_dir: the run's folder; `checkpoints/best.pt` and `validation.json` are written there.
        entries: the training cases, with their `label` and files, as `tomokit.rivals.feature_table` takes them.
        mask_above: as there.
        task: "classes", "labels" or "value".

    Raises:
        TomokitError: as `fit_measures`.
    """
    if not is_main_process():
        return
    began = time.perf_counter()
    network: Any = unwrap(evaluator.network)
    fit_measures(network, entries, mask_above, task)
    save(network.state_dict(), Path(run_dir) / "checkpoints" / "best.pt")
    name, metric = evaluator.state.key_metric_name, None
    if len(evaluator.data_loader.dataset):
        evaluator.run()
        metric = float(evaluator.state.metrics[name])
    record = {"metric": name, "best": {"epoch": 0, "metric": metric}, "epochs": 0, "history": []}
    record |= {"seconds": time.perf_counter() - began, "seconds_per_step": None, "peak_rss_gb": peak_memory_gb()}
    record |= {"cases": len(entries), "measures": len(network.mean)}
    record |= {"parameters": sum(parameter.numel() for parameter in network.parameters())}
    write_json(Path(run_dir) / "validation.json", record)
    scored = "" if metric is None else f"; {name} {metric:.3f}"
    logger.info("%d measures of %d training cases joined%s: %s", len(network.mean), len(entries), scored, run_dir)


def fit_measures(network: Any, entries: Entries, mask_above: float | None = None, task: str = "classes") -> None:
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
