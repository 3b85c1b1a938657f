"""A finished run as its files tell it, for a page."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tomokit.configs import read_config
from tomokit.datasets import find_dataset, read_entries
from tomokit.errors import TomokitError
from tomokit.files import read_json

SCORED = "metrics.json"


class Finished(NamedTuple):
    """What a run's folder holds.

    Attributes:
        folder: the run's.
        metrics: its scores on the test cases.
        rows: of `cases.csv`, texts by their columns.
        validation: what training measured; empty for an ensemble.
        environment: versions, hardware, what it was made of.
        config: of the training, as merged and run.
        text: the same, as it is written.
        explanations: of a run that was explained, their summary; else empty.
    """

    folder: Path
    metrics: dict[str, Any]
    rows: list[dict[str, str]]
    validation: dict[str, Any]
    environment: dict[str, Any]
    config: dict[str, Any]
    text: str
    explanations: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def task(self) -> str:
        """The task of its scores, such as "segmentation"."""
        return str(self.metrics["task"])

    @property
    def classes(self) -> list[str]:
        """The names of its structures, classes or labels, as they are scored."""
        return list(self.metrics["per_class"])


def read_finished(folder: str | Path) -> Finished:
    """Return a run that was trained and evaluated.

    Raises:
        TomokitError: when the folder holds no run, or one without scores, or its scores lack their parts.
    """
    folder = Path(folder)
    config = folder / "configs" / "train.yaml"
    if not config.is_file():
        raise TomokitError(f"{folder} holds no run (no configs/train.yaml); give the folder of a trained run")
    path = folder / SCORED
    if not path.is_file():
        raise TomokitError(f"{path} does not exist; `make evaluate RUN={folder.resolve().name}` makes it")
    metrics = read_json(path)
    absent = [block for block in ("task", "summary", "per_class") if block not in metrics]
    if absent:
        raise TomokitError(f"{path} lacks {absent}; run `make evaluate RUN={folder.resolve().name}` again")
    return Finished(
        folder,
        metrics,
        read_table(folder / "cases.csv"),
        _read_or_empty(folder / "validation.json"),
        _read_or_empty(folder / "environment.json"),
        read_config(config),
        config.read_text(encoding="utf-8"),
        _read_or_empty(folder / "explanations" / "explanations.json"),
    )


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file as texts; none where it is absent."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def number(text: str | None) -> float | None:
    """Return a table's cell as a number; None where it is empty."""
    return float(text) if text not in (None, "") else None


def test_entries(run: Finished) -> dict[str, Mapping[str, Any]]:
    """Return the entries of a run's test cases by name; none where the data set is not here any more."""
    try:
        entries = read_entries(find_dataset(str(run.config["dataset_dir"])))
    except (TomokitError, KeyError):
        return {}
    wanted = set(run.config.get("cases", {}).get("test", []))
    return {entry["case"]: entry for entry in entries if entry["case"] in wanted}


def _read_or_empty(path: Path) -> dict[str, Any]:
    """Return a file's content, empty where it is absent."""
    return dict(read_json(path)) if path.is_file() else {}
