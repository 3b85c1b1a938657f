"""Find anomalies in hippocampus volumes with models that learned from normal ones; and principal components.

Command: make bench NAME=anomaly [ONLY="foreign vae"] [MINUTES=15]

Of fold 0's 208 training and validation cases 160 are left, 24 of them for validation; the other 48, drawn by seed,
join its 52 test cases. Of each volume the middle 32×48×32 voxels are looked at. Each test volume is scored as it is,
and with a sphere of each kind. Each model is trained in so many minutes; `pca` is scored beside the first. A row is
written when it is finished; a stopped benchmark goes on where it was, in the middle of a training too.
"""

import argparse
import json
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from blocks import fill_blocks, markdown_table, show_interval
from commands import bundle_run
from loops import bundle_workflow, time_steps
from records import load_rows, save_rows
from rich.console import Console
from rich.table import Table

from tomokit.bundles import find_bundle
from tomokit.catalogue import get_dataset
from tomokit.files import write_json

NAME, DATA = "anomaly", "hippocampus"
FOLDER = Path("runs") / "benchmarks" / NAME
SYSTEMS = {"foreign": "U-Net, foreign patches", "vae": "variational autoencoder", "pca": "principal components"}
LAYERS = {"foreign": ["data/hippocampus", "modes/centre"], "vae": ["data/hippocampus", "networks/vae"]}
TEST, VALIDATION, SEED = 100, 24, 0
METRICS = ("auroc", "voxel_ap")
GOALS = {"auroc": {"bright": 0.85, "dark": 0.85, "foreign": 0.7, "shuffled": 0.7}}
RESERVE = 0.9  # of the minutes: the rest is for the start, the validations and the threshold
Row = dict[str, Any]


def config(name: str) -> Path:
    """Return the path of one of the bundle's configs."""
    return find_bundle(NAME) / "configs" / f"{name}.yaml"


def write_split(path: Path) -> Path:
    """Write the protocol's split: 136 training, 24 validation and 100 test cases, and return its path."""
    folder = get_dataset(DATA, source=os.environ.get("TOMOKIT_MIRROR"))
    fold = json.loads((folder / "splits.json").read_text())["folds"][0]
    names = np.random.default_rng(SEED).permutation(sorted(fold["training"] + fold["validation"])).tolist()
    more = TEST - len(fold["test"])
    parts = {"test": [*fold["test"], *names[:more]], "validation": names[more : more + VALIDATION]}
    parts["training"] = names[more + VALIDATION :]
    write_json(path, {"folds": [{part: sorted(own) for part, own in parts.items()}]})
    return path


def train(system: str, minutes: float) -> Path:
    """Return the run of a model trained in so many minutes; one that was begun is finished."""
    run_dir = FOLDER / system
    if (run_dir / "decision.json").is_file():  # the last that a training writes
        return run_dir
    if (run_dir / "checkpoints" / "last.pt").is_file():
        bundle_run([run_dir / "configs" / "train.yaml"], {"resume": "true"})
        return run_dir
    shutil.rmtree(run_dir, ignore_errors=True)
    files = [config("train"), *map(config, LAYERS[system])]
    overrides = {"split": str(write_split(FOLDER / "split.json").resolve())}
    with bundle_workflow(files, overrides) as workflow:
        trainer = workflow.parser.get_parsed_content("train::trainer")
        per_epoch = statistics.median(time_steps(trainer, 16)[4:]) * len(trainer.data_loader)
    epochs = max(1, int(60 * RESERVE * minutes / per_epoch))
    bundle_run(files, overrides | {"run_dir": run_dir, "epochs": epochs})
    return run_dir


def score_rows(system: str, measures: Mapping[str, Any], common: Mapping[str, Any]) -> list[Row]:
    """Return a row per kind of anomaly and measure, and the share of normal volumes that are flagged."""
    rows = []
    for kind, scores in measures["per_class"].items():
        for metric in METRICS:
            found = {"value": scores[metric]["mean"], "ci95": scores[metric]["ci95"], "n": scores[metric]["n"]}
            seen = {"seen": scores["seen"] and system == "foreign"}
            rows.append({"system": system, "dataset": kind, "metric": metric, **found, **seen, **common})
    flagged = measures["summary"]["flagged normals"]
    found = {"value": flagged["mean"], "ci95": flagged["ci95"], "n": flagged["n"]}
    return [*rows, {"system": system, "dataset": "normal", "metric": "flagged", **found, **common}]


def measure(system: str, minutes: float) -> list[Row]:
    """Return the rows of a model, trained and scored, and of the rival."""
    run_dir = train(system, minutes)
    bundle_run([run_dir / "configs" / "train.yaml", config("evaluate")], {"rival": str(system == "foreign").lower()})
    measures = json.loads((run_dir / "metrics.json").read_text())
    training = json.loads((run_dir / "validation.json").read_text())
    common = {"peak_rss_gb": max(measures["peak_rss_gb"], training["peak_rss_gb"])}
    common |= {key: training[key] for key in ("seconds", "epochs", "parameters")}
    rows = score_rows(system, measures, common)
    for name, rival in measures.get("rivals", {}).items():
        rows += score_rows(name, rival, {"seconds": None, "peak_rss_gb": None})
    return [row for row in rows if row["value"] is not None]


def block(rows: Sequence[Row], kind: str) -> str:
    """Return the Markdown table for the docs: a line per kind of anomaly and system."""
    assert kind == "scores", kind
    lines = []
    for row in rows:
        if row["metric"] != METRICS[0]:
            continue
        precision = next(r for r in rows if (r["system"], r["dataset"], r["metric"]) == key(row, METRICS[1]))
        taken = "" if row["seconds"] is None else f"{row['seconds'] / 60:.1f} min"
        named = f"{row['dataset']} (seen)" if row.get("seen") else row["dataset"]
        lines.append([named, SYSTEMS[row["system"]], show_interval(row), show_interval(precision), taken])
    lines.sort(key=lambda line: line[0])
    return markdown_table(["anomaly", "", "AUROC [95 %]", "voxel AP [95 %]", "training"], lines)


def key(row: Row, metric: str) -> tuple[str, str, str]:
    """Return what names the row of another metric beside a row."""
    return row["system"], row["dataset"], metric


def show(rows: Sequence[Row]) -> None:
    """Print all rows, the goals beside."""
    table = Table("anomaly", "system", "measure", "value [95 %]", "training", "goal")
    for row in rows:
        taken = "" if row["seconds"] is None else f"{row['seconds'] / 60:.1f} min"
        least = GOALS.get(row["metric"], {}).get(row["dataset"]) if row["system"] != "pca" else None
        goal = "" if least is None else f"≥ {least}: " + ("met" if row["value"] >= least else "missed")
        named = f"{row['dataset']} (seen)" if row.get("seen") else row["dataset"]
        table.add_row(named, row["system"], row["metric"], show_interval(row), taken, goal)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(LAYERS))
    parser.add_argument("--full", action="store_true", help="the same: there is nothing more")
    parser.add_argument("--minutes", type=float, default=15.0)
    options = parser.parse_args()
    rows = load_rows(NAME)
    for system in options.only or LAYERS:
        if any(row["system"] == system for row in rows):
            print(f"{system}: measured already; delete its rows in results/{NAME}.json to measure it again")
            continue
        measured = measure(system, options.minutes)
        names = {row["system"] for row in measured}
        kept = [row for row in rows if row["system"] not in names]
        rows = save_rows(NAME, f"make bench NAME={NAME} MINUTES={options.minutes:g}", kept, measured)
        fill_blocks(NAME, lambda words, rows=rows: block(rows, *words))
    show(rows)


if __name__ == "__main__":
    main()
