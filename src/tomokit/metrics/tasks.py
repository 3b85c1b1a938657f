"""The tasks whose cases have one answer each, and the summary that each of them has."""

from collections.abc import Sequence
from typing import Any

from tomokit.errors import TomokitError
from tomokit.metrics.classification import summarise_classification, summarise_labels
from tomokit.metrics.entries import Row
from tomokit.metrics.regression import summarise_regression

TASKS = {"classes": "classification", "labels": "multi_label", "value": "regression"}  # in a config; in metrics.json


def check_task(task: str) -> None:
    """Raise when a task is none of "classes", "labels" and "value".

    Raises:
        TomokitError: which lists them.
    """
    if task not in TASKS:
        raise TomokitError(f"`task` must be one of {', '.join(TASKS)}, got {task!r}")


def summarise_task(task: str, rows: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    """Return the summary that a task has: of classes, of several labels per case, or of a value.

    `names` are those of the classes or labels; a value needs none.

    Raises:
        TomokitError: when there is no such task, and as the summary itself.
    """
    check_task(task)
    if task == "labels":
        return summarise_labels(rows, names)
    return summarise_regression(rows) if task == "value" else summarise_classification(rows, names)
