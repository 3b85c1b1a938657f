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
MOST_COLUMNS = 2  # of rivals beside the scores; more of them stand in the table of comparisons alone
# of each task of metrics.json: the scores of all cases, and those of each class or label, with their titles
SUMMARIES = {
    "classification": {
        "auc": "AUC",
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced accuracy",
        "brier": "Brier score",
        "ece": "calibration error",
    },
    "multi_label": {
        "auc": "mean AUC",
        "average_precision": "mean average precision",
        "f1": "mean F1",
        "ece": "mean calibration error",
    },
    "regression": {
        "mae": "mean absolute error",
        "rmse": "root mean squared error",
        "bias": "mean error",
        "r2": "R²",
        "pearson": "Pearson correlation",
        "spearman": "Spearman correlation",
    },
    "pairs": {
        "order_accuracy": "order right",
        "change_auc": "AUC of change",
        "sensitivity": "changed called changed",
        "false_positive_rate": "unchanged called changed",
        "amount_mae": "error of the amount, %",
        "amount_bias": "bias of the amount, %",
        "amount_correlation": "correlation of the amount",
    },
    "enhancement": {"psnr": "PSNR, dB", "ssim": "SSIM", "seconds": "seconds per volume"},
    "pretraining": {
        "restored": "share of the error undone",
        "error": "mean absolute error, restored",
        "error_distorted": "mean absolute error, distorted",
        "psnr_db": "PSNR restored, dB",
        "psnr_distorted_db": "PSNR distorted, dB",
    },
    "anomaly": {"auc": "AUC, kinds not seen in training", "flagged normals": "normal volumes flagged"},
}
OWN: dict[str, dict[str, str]] = {
    "classification": {"sensitivity": "sensitivity"},
    "multi_label": {"auc": "AUC", "sensitivity": "sensitivity", "specificity": "specificity"},
    "regression": {},
    "pairs": {},
    "enhancement": {"psnr": "PSNR, dB", "ssim": "SSIM"},
    "pretraining": {},
    "anomaly": {"auroc": "AUC", "voxel_ap": "voxels' average precision"},
}
# by which a run is compared with its rivals, of each task but those by AUC: the score, its title, and the test
COMPARED = {"enhancement": ("psnr", "PSNR", "the paired bootstrap by patient, Wilcoxon's p")}
BY_AUC = ("auc", "AUC", "DeLong's test")


def print_run(run_dir: str | Path, console: Console | None = None) -> None:
    """Return nothing; print a run's table of scores, then the checkpoint that was scored, speed, memory and files.

    Reads `metrics.json` of the run, and `seconds_per_step` of its `validation.json` where training wrote one.
    Scores stand with their 95 % interval, those of the rivals (simple methods on the same cases) beside them. A second
    table compares the network's AUC with each rival's, where that was done.

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
    if compared := _compared(metrics):
        console.print(_comparison_table(metrics, compared))
    for line in _facts(run_dir, metrics):
        console.print(Text(line), soft_wrap=True)


def _score_table(metrics: Mapping[str, Any], path: Path) -> Table:
    """Return the table of scores, a row per structure or score, a column per rival."""
    lines = _lines(metrics, path)
    rivals = metrics.get("rivals") or {}
    if len(rivals) > MOST_COLUMNS and _compared(metrics):
        rivals = {}
    segmentation = metrics["task"] == "segmentation"
    surfaces = segmentation and "nsd" in metrics["summary"]
    caption = "95 % intervals from the bootstrap by patient; n: patients"
    if surfaces:
        caption += f"; NSD: share of the surfaces within {metrics['tolerance_mm']:g} mm"
    table = Table(caption=caption, caption_justify="left")
    table.add_column("structure" if segmentation else "score", overflow="fold")
    table.add_column("Dice [95 % interval]" if segmentation else "value [95 % interval]", no_wrap=True)
    if surfaces:
        table.add_column("NSD", no_wrap=True)
    for name in rivals:
        table.add_column(Text(f"{name}, Dice" if segmentation else name), overflow="fold")
    table.add_column("n", justify="right")
    for title, place in lines:
        entry = _entry(metrics, place)
        others = [Text(_score(_entry(metrics, (*place[:-1], "nsd"))))] if surfaces else []
        others += [Text(_score(_entry(rival, place))) for rival in rivals.values()]
        table.add_row(Text(title), Text(_score(entry, interval=True)), *others, str(entry.get("n", "–")))
    return table


def _compared(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the comparisons with each rival of which there are any."""
    return {rival: found for rival, found in (metrics.get("comparisons") or {}).items() if found}


def _comparison_table(metrics: Mapping[str, Any], compared: Mapping[str, Any]) -> Table:
    """Return the table of the network's AUC or PSNR beside each rival's, a row per rival and class or degradation."""
    key, name_of_score, test = COMPARED.get(metrics["task"], BY_AUC)
    caption = f"the network beside the rival: {test} on the same cases; a tie: p is 0.05 or more"
    table = Table(caption=caption, caption_justify="left")
    for title in ("rival", "of"):
        table.add_column(title, overflow="fold")
    table.add_column(name_of_score, justify="right")
    table.add_column("network − rival [95 %]", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    table.add_column("result")
    for rival, classes in compared.items():
        for name, found in classes.items():
            theirs = _entry(metrics, ("rivals", rival, "per_class", name, key))
            low, high = found["ci95"]
            difference = f"{found['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
            p = f"{found['p']:.3f}" if found["p"] >= 0.001 else "<.001"
            table.add_row(Text(rival), Text(name), _score(theirs), Text(difference), p, found["verdict"])
    return table


def _lines(metrics: Mapping[str, Any], path: Path) -> list[Line]:
    """Return the table's rows for the run's task."""
    task = metrics.get("task")
    if task != "segmentation" and task not in SUMMARIES:
        known = ", ".join(f'"{name}"' for name in ("segmentation", *SUMMARIES))
        raise TomokitError(f'{path}: "task" must be one of {known}, got {task!r}')
    absent = [block for block in ("summary", "per_class") if block not in metrics]
    if absent:
        raise TomokitError(f"{path} lacks {absent}; run `make evaluate RUN={path.resolve().parent.name}` again")
    names = list(metrics["per_class"])
    if task == "segmentation":
        structures: list[Line] = [(name, ("per_class", name, "dice")) for name in names]
        return [*structures, ("mean", ("summary", "dice"))]
    told = {key: title for key, title in SUMMARIES[task].items() if key in metrics["summary"]}
    scores: list[Line] = [(title, ("summary", key)) for key, title in told.items()]
    for name in names:
        scores += [(f"{title}, {name}", ("per_class", name, key)) for key, title in OWN[task].items()]
    if "slices" in metrics:
        scores += [("slice AUC", ("slices", "auc")), ("most suspicious slice shows it", ("slices", "hit"))]
    return scores


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
