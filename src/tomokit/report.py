"""What a finished run prints: its scores beside a rival's, its speed and memory, and where its files lie."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tomokit.errors import TomokitError
from tomokit.files import read_json

Line = tuple[str, tuple[str, ...]]  # a row's title, and where its score stands in metrics.json
CLASSIFICATION_SUMMARY = {"auc": "AUC", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}


def print_run(run_dir: str | Path, console: Console | None = None) -> None:
    """Return nothing; print a run's table of scores, then the checkpoint that was scored, speed, memory and files.

    Reads `metrics.json` of the run, and `seconds_per_step` of its `validation.json` where training wrote one.
    Scores stand with their 95 % interval, those of the rivals (simple methods on the same cases) beside them.

    Raises:
        TomokitError: when `metrics.json` is absent, is not JSON, lacks a block, or names an unknown task.
    """
    run_dir = Path(run_dir)
    console = console or Console()
    path = run_dir / "metrics.json"
    if not path.is_file():
        raise TomokitError(f"{path} does not exist; `make evaluate RUN={run_dir.resolve().name}` makes it")
    metrics = read_json(path)
    console.print(_score_table(metrics, path))
    for line in _facts(run_dir, metrics):
        console.print(Text(line), soft_wrap=True)


def _score_table(metrics: Mapping[str, Any], path: Path) -> Table:
    """Return the table of scores, a row per structure or score, a column per rival."""
    lines = _lines(metrics, path)
    rivals = metrics.get("rivals") or {}
    segmentation = metrics["task"] == "segmentation"
    table = Table(caption="95 % intervals from the bootstrap by patient; n: patients", caption_justify="left")
    table.add_column("structure" if segmentation else "score", overflow="fold")
    table.add_column("Dice [95 % interval]" if segmentation else "value [95 % interval]", no_wrap=True)
    for name in rivals:
        table.add_column(Text(f"{name}, Dice" if segmentation else name), overflow="fold")
    table.add_column("n", justify="right")
    for title, place in lines:
        entry = _entry(metrics, place)
        others = [Text(_score(_entry(rival, place))) for rival in rivals.values()]
        table.add_row(Text(title), Text(_score(entry, interval=True)), *others, str(entry.get("n", "–")))
    return table


def _lines(metrics: Mapping[str, Any], path: Path) -> list[Line]:
    """Return the table's rows for the run's task."""
    task = metrics.get("task")
    if task not in {"segmentation", "classification"}:
        raise TomokitError(f'{path}: "task" must be "segmentation" or "classification", got {task!r}')
    absent = [block for block in ("summary", "per_class") if block not in metrics]
    if absent:
        raise TomokitError(f"{path} lacks {absent}; run `make evaluate RUN={path.resolve().parent.name}` again")
    names = list(metrics["per_class"])
    if task == "segmentation":
        structures: list[Line] = [(name, ("per_class", name, "dice")) for name in names]
        return [*structures, ("mean", ("summary", "dice"))]
    scores: list[Line] = [(title, ("summary", key)) for key, title in CLASSIFICATION_SUMMARY.items()]
    return scores + [(f"sensitivity, {name}", ("per_class", name, "sensitivity")) for name in names]


def _entry(block: Mapping[str, Any], place: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the score at a place of metrics.json, empty where it was not measured."""
    for key in place:
        block = block.get(key) or {}
    return block


def _score(entry: Mapping[str, Any], interval: bool = False) -> str:
    """Return a score as text, a dash where it is undefined or was not measured."""
    if entry.get("mean") is None:
        return "–"
    bounds = entry.get("ci95")
    text = f"{entry['mean']:.3f}"
    return f"{text} [{bounds[0]:.3f}, {bounds[1]:.3f}]" if interval and bounds else text


def _facts(run_dir: Path, metrics: Mapping[str, Any]) -> list[str]:
    """Return the lines under the table: the checkpoint, speed, memory and where the results lie."""
    validation = run_dir / "validation.json"
    step = read_json(validation).get("seconds_per_step") if validation.is_file() else None
    facts = {
        "seconds per training step": None if step is None else f"{step:.3g}",
        "seconds to evaluate": None if metrics.get("seconds") is None else f"{metrics['seconds']:.1f}",
        "peak memory": None if metrics.get("peak_rss_gb") is None else f"{metrics['peak_rss_gb']:.2f} GB",
    }
    lines = [f"scored checkpoint: {metrics['checkpoint']}"] if metrics.get("checkpoint") else []
    lines += [f"{name}: {value or 'not measured'}" for name, value in facts.items()]
    lines.append(f"results: {run_dir}")
    if metrics.get("picture"):
        lines.append(f"picture: {run_dir / metrics['picture']}")
    return lines
