"""Run the main job from raw data to the last prediction, time it, and write its figures into the docs.

Command: make bench NAME=demo [ONLY="phantom-ct hippocampus"] [FULL=1]
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from typing import Any

from blocks import ROOT, fill_blocks, markdown_table, show_interval
from records import load_rows, save_rows

COMMANDS = {
    "phantom-ct": ["RUN=demo"],
    "hippocampus": ["DATA=hippocampus", "RUN=hippocampus", "FROM={mirror}"],
    "phantom-ct-classes": ["BUNDLE=classification", "RUN=classes"],
}
MAKE_VARIABLES = {
    "MAKEFLAGS",
    "MFLAGS",
    "MAKEOVERRIDES",
    "ARGS",
    "SIZE",
    "FULL",
    "ONLY",
    "NAME",
    "RUN",
    "DATA",
    "FROM",
    "BUNDLE",
}
RIVALS = {"threshold": "best thresholds", "histogram": "histogram model"}


def measure(dataset: str) -> list[dict[str, Any]]:
    """Return the rows of one main job: the network's and its rival's scores, with the whole job's seconds."""
    mirror = os.environ.get("TOMOKIT_MIRROR")
    if dataset == "hippocampus" and mirror is None:
        return [_row("unet", dataset, "dice", None, {}) | {"note": "TOMOKIT_MIRROR is unset"}]
    arguments = [argument.format(mirror=mirror) for argument in COMMANDS[dataset]]
    # variables of the make that runs this benchmark are not the demo's
    environment = {name: value for name, value in os.environ.items() if name not in MAKE_VARIABLES}
    with tempfile.TemporaryDirectory() as sets:
        began = time.perf_counter()
        subprocess.run(["make", "demo", *arguments], cwd=ROOT, check=True, env=environment | {"TOMOKIT_DATA": sets})
        seconds = time.perf_counter() - began
    run = ROOT / "runs" / next(a.removeprefix("RUN=") for a in arguments if a.startswith("RUN="))
    measures = json.loads((run / "metrics.json").read_text())
    training = json.loads((run / "validation.json").read_text())
    common = {"seconds": seconds, "peak_rss_gb": max(measures["peak_rss_gb"], training["peak_rss_gb"])}
    common |= {"epochs": training["epochs"], "seconds_per_step": training["seconds_per_step"]}
    system = "resnet" if measures["task"] == "classification" else "unet"
    rows = _rows(system, dataset, measures, common)
    for name, rival in measures.get("rivals", {}).items():
        rows += _rows(name, dataset, rival, {"seconds": None, "peak_rss_gb": None})
    return rows


def _rows(system: str, dataset: str, measures: dict[str, Any], common: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row per summary score and per structure's Dice."""
    scores = dict(measures["summary"])
    scores |= {f"dice {name}": entry["dice"] for name, entry in measures["per_class"].items() if "dice" in entry}
    return [_row(system, dataset, metric, score["mean"], common, score) for metric, score in scores.items()]


def _row(
    system: str,
    dataset: str,
    metric: str,
    value: float | None,
    common: dict[str, Any],
    score: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return one row in the form that all benchmarks share."""
    score = score or {}
    names = {"system": system, "dataset": dataset, "metric": metric, "value": value}
    return names | {"ci95": score.get("ci95"), "n": score.get("n")} | common


def _block(rows: list[dict[str, Any]], dataset: str, kind: str) -> str:
    """Return one figure, or a table of all scores, as Markdown."""
    own = [row for row in rows if row["dataset"] == dataset and row["system"] in ("unet", "resnet")]
    rivals = [row for row in rows if row["dataset"] == dataset and row["system"] in RIVALS]
    if not own or own[0]["value"] is None:
        return "not measured"
    if kind == "time":
        minutes, seconds = divmod(round(own[0]["seconds"]), 60)
        return f"{minutes} min {seconds:02d} s"
    if kind == "epochs":
        return str(own[0]["epochs"])
    if kind == "score":
        return show_interval(own[0])
    if kind == "rival":
        return show_interval(rivals[0])
    head = ["", f"{own[0]['system']} [95 % interval]", RIVALS[rivals[0]["system"]], "test patients"]
    pairs = zip(own, rivals, strict=True)
    return markdown_table(
        head, [[row["metric"], show_interval(row), f"{rival['value']:.3f}", str(row["n"])] for row, rival in pairs]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(COMMANDS))
    parser.add_argument("--full", action="store_true", help="all data sets, not the phantoms alone")
    options = parser.parse_args()
    chosen = options.only or (list(COMMANDS) if options.full else ["phantom-ct"])
    rows = load_rows("demo")
    for dataset in chosen:
        kept = [row for row in rows if row["dataset"] != dataset]
        rows = save_rows("demo", "make bench NAME=demo FULL=1", kept, measure(dataset))
        fill_blocks("demo", lambda words, rows=rows: _block(rows, *words))


if __name__ == "__main__":
    main()
