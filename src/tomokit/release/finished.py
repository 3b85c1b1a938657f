"""A run that is trained and scored: what of it a release is made from."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tomokit.checks.ranges import FILE as RANGE
from tomokit.configs import read_config
from tomokit.decisions import FILE as DECISION
from tomokit.engines.checkpoints import find_checkpoint
from tomokit.engines.evaluation import tell_checkpoint
from tomokit.errors import TomokitError
from tomokit.files import read_json
from tomokit.held_out import FILE as HELD_OUT
from tomokit.postprocessing import FILE as POSTPROCESSING
from tomokit.records import FILE as RECORDS
from tomokit.splits import PARTS

LEARNED = (POSTPROCESSING, DECISION, RECORDS, HELD_OUT, RANGE)  # what training chose, fitted or saw


class FinishedRun(NamedTuple):
    """A finished run as its files tell it.

    Attributes:
        folder: of the run.
        train: its config, as merged and run.
        weights: the file of the weights that were scored.
        metrics: their measures on the test cases.
        environment: versions, hardware, what it was made of.
        validation: what training measured; empty for an ensemble, which was joined and not trained.
        metadata: the run's own.
        cases: how many it was trained, validated and tested on.
        names: of its cases and patients.
    """

    folder: Path
    train: dict[str, Any]
    weights: Path
    metrics: dict[str, Any]
    environment: dict[str, Any]
    validation: dict[str, Any]
    metadata: dict[str, Any]
    cases: dict[str, int]
    names: frozenset[str]


def read_run(folder: Path) -> FinishedRun:
    """Return what a run's files hold.

    Raises:
        TomokitError: when the folder holds no run, its training was interrupted, it was not evaluated, or its
            measures are of other weights than it now has.
    """
    config = folder / "configs" / "train.yaml"
    if not config.is_file():
        raise TomokitError(f"{folder} holds no run (no configs/train.yaml); train one, or give the run's folder")
    train = read_config(config)
    find_checkpoint(folder, "best")  # tells where there is none
    environment = read_json(folder / "environment.json")
    validation = {} if "members" in environment else read_json(folder / "validation.json")
    _check_trained(folder, train, validation)
    path = folder / "metrics.json"
    if not path.is_file():
        raise TomokitError(f"{folder} was not evaluated; `make evaluate RUN={folder.resolve().name}` scores it")
    metrics = read_json(path)
    weights = _scored_weights(folder, str(metrics.get("checkpoint")))
    metadata = read_json(folder / "configs" / "metadata.json")
    lists = train.get("cases", {})
    cases = {part: len(lists.get(part, [])) for part in PARTS}
    names = _names(folder, train)
    return FinishedRun(folder, train, weights, metrics, environment, validation, metadata, cases, names)


def _check_trained(folder: Path, train: Mapping[str, Any], validation: Mapping[str, Any]) -> None:
    """Raise when a training by epochs ended before its last one, and not by its patience."""
    history, epochs, patience = validation.get("history"), train.get("epochs"), train.get("patience", 0)
    if not history or not isinstance(epochs, int):  # joined, or read out
        return
    best = (validation.get("best") or {}).get("epoch", 0)
    since = sum("metric" in entry and entry["epoch"] > best for entry in history)
    if validation["epochs"] < epochs and not 0 < patience <= since:
        raise TomokitError(
            f"the training of {folder} ended after epoch {validation['epochs']} of {epochs}; go on with\n"
            f"  python -m monai.bundle run --config_file {folder / 'configs' / 'train.yaml'} --resume true"
        )


def _scored_weights(folder: Path, scored: str) -> Path:
    """Return the checkpoint that the measures are of."""
    name = Path(scored.partition(",")[0]).stem
    now = tell_checkpoint(folder, name) if (folder / "checkpoints" / f"{name}.pt").is_file() else "none of that name"
    if now != scored:
        raise TomokitError(
            f"the measures of {folder} are of {scored}, its weights now are {now}; "
            f"`make evaluate RUN={folder.resolve().name}` scores these"
        )
    return folder / "checkpoints" / f"{name}.pt"


def _names(folder: Path, train: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of a run's cases and patients, which no release may tell."""
    names = {str(name) for part in PARTS for name in train.get("cases", {}).get(part, [])}
    table = folder / "cases.csv"
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as file:
            names |= {row[key] for row in csv.DictReader(file) for key in ("case", "patient") if row.get(key)}
    return frozenset(names)
