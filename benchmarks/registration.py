"""Register hippocampi of different patients: by the images alone, with label maps as help, and by SimpleITK.

Command: make bench NAME=registration [ONLY="unsupervised assisted rivals"] [MINUTES=15]

Fold 0 of the Decathlon's hippocampus set: 50 pairs of its test cases by name, each with the next one, scored on the
fixed scan's own grid. MINUTES= is how long each network is trained, from the raw files to the last weight; its pace is
found first. A row is written when it is finished; a stopped benchmark goes on where it was.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blocks import fill_blocks, markdown_table, show_interval
from commands import bundle_run
from records import load_rows, save_rows
from rich.console import Console
from rich.table import Table

from tomokit.bundles import find_bundle
from tomokit.catalogue import get_dataset
from tomokit.files import write_json

NAME, COMMAND, DATA = "registration", "make bench NAME=registration", "hippocampus"
FOLDER = Path("runs") / NAME
CONFIGS = find_bundle(NAME) / "configs"
LAYERS: Mapping[str, Sequence[str]] = {"unsupervised": (), "assisted": ("modes/assisted",)}
RIVALS = ("none", "affine", "bspline", "demons")
GROUPS = (*LAYERS, "rivals")
GOALS = {("unsupervised", "dice"): 0.75, ("assisted", "dice"): 0.80}
MOST = {"folds": 0.0, "sdlogj": 0.15, "seconds": 0.5}
COUNTED, SHARE = 2, 0.9  # epochs by which a training's pace is found; of the minutes, since validation takes some too
SYSTEMS = {
    "unsupervised": "network, images alone",
    "assisted": "network, trained with label maps",
    "none": "centres laid on each other",
    "affine": "SimpleITK, affine",
    "bspline": "SimpleITK, affine and B-spline",
    "demons": "SimpleITK, affine and demons",
}
Row = dict[str, Any]


def epochs_for(minutes: float, files: Sequence[Path], run_dir: Path) -> int:
    """Return how many epochs fit into so many minutes, by the pace of a few."""
    bundle_run(files, {"run_dir": run_dir, "epochs": COUNTED, "val_interval": COUNTED})
    record = json.loads((run_dir / "validation.json").read_text())
    pace = min(entry["seconds"] for entry in record["history"])
    return max(1, int(SHARE * 60 * minutes / pace))


def train(system: str, minutes: float) -> Path:
    """Return the folder of a network that was trained in so many minutes; one that was stopped goes on."""
    run_dir = FOLDER / system
    files = [CONFIGS / f"{name}.yaml" for name in ("train", f"data/{DATA}", *LAYERS[system])]
    chosen = FOLDER / f"{system}.json"
    if not chosen.is_file():
        write_json(chosen, {"epochs": epochs_for(minutes, files, FOLDER / f"{system}-pace")})
    epochs = json.loads(chosen.read_text())["epochs"]
    bundle_run(files, {"run_dir": run_dir, "epochs": epochs, "val_interval": max(1, epochs // 5), "resume": "true"})
    return run_dir


def score(run_dir: Path, rivals: Sequence[str]) -> dict[str, Any]:
    """Return the measures of a network on the test pairs, and of rivals."""
    bundle_run([run_dir / "configs" / "train.yaml", CONFIGS / "evaluate.yaml"], {"rivals": list(rivals)})
    measures: dict[str, Any] = json.loads((run_dir / "metrics.json").read_text())
    return measures


def rows_of(system: str, measures: Mapping[str, Any], common: Mapping[str, Any]) -> list[Row]:
    """Return a row per measure, the structures' Dice among them."""
    found = dict(measures["summary"])
    found |= {f"dice_{name}": own["dice"] for name, own in measures["per_class"].items()}
    return [
        {"system": system, "dataset": DATA, "metric": metric, "value": own["mean"], "ci95": own["ci95"], "n": own["n"]}
        | dict(common)
        for metric, own in found.items()
    ]


def network_rows(system: str, minutes: float) -> list[Row]:
    """Return the rows of a network."""
    run_dir = train(system, minutes)
    measures = score(run_dir, [])
    record = json.loads((run_dir / "validation.json").read_text())
    common = {"seconds": record["seconds"], "epochs": record["epochs"], "parameters": record["parameters"]}
    peak = max(measures["peak_rss_gb"], record["peak_rss_gb"])
    return rows_of(system, measures, {**common, "peak_rss_gb": peak, "note": f"trained within {minutes:g} minutes"})


def rival_rows() -> list[Row]:
    """Return the rows of the rivals, scored beside whichever network is there."""
    run_dir = next((FOLDER / name for name in LAYERS if (FOLDER / name / "metrics.json").is_file()), None)
    if run_dir is None:
        raise SystemExit("the rivals are scored on a network's pairs; measure `unsupervised` or `assisted` first")
    rivals = score(run_dir, RIVALS)["rivals"]
    return [row for name, own in rivals.items() for row in rows_of(name, own, {"peak_rss_gb": None})]


def block(rows: Sequence[Row]) -> str:
    """Return the Markdown table for the docs."""
    head = ["system", "Dice [95 %]", "folded voxels", "SDlogJ", "seconds per pair"]
    lines = []
    for system, told in SYSTEMS.items():
        own = {row["metric"]: row for row in rows if row["system"] == system}
        if own:
            folds = f"{100 * own['folds']['value']:.3f} %"
            last = [folds, f"{own['sdlogj']['value']:.3f}", f"{own['seconds']['value']:.2f}"]
            lines.append([told, show_interval(own["dice"]), *last])
    return markdown_table(head, lines)


def verdict(row: Mapping[str, Any]) -> str:
    """Return whether a row's goal is met; nothing where it has none."""
    least = GOALS.get((row["system"], row["metric"]))
    if least is not None:
        return f"≥ {least}: " + ("met" if row["value"] >= least else "missed")
    if row["system"] not in LAYERS or row["metric"] not in MOST:
        return ""
    most = MOST[row["metric"]]
    return f"≤ {most}: " + ("met" if row["value"] <= most else "missed")


def show(rows: Sequence[Row]) -> None:
    """Print all rows."""
    table = Table("system", "measure", "value", "patients", "goal")
    for row in rows:
        value = show_interval(row) if row["ci95"] else f"{row['value']:.4f}"
        table.add_row(row["system"], row["metric"], value, str(row["n"]), verdict(row))
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=GROUPS)
    parser.add_argument("--full", action="store_true", help="all of them, as without it")
    parser.add_argument("--minutes", type=float, default=15.0, help="for the training of each network")
    options = parser.parse_args()
    get_dataset(DATA, source=os.environ.get("TOMOKIT_MIRROR"))
    rows = load_rows(NAME)
    for group in options.only or GROUPS:
        systems = RIVALS if group == "rivals" else (group,)
        if any(row["system"] in systems for row in rows):
            print(f"{group}: measured already; delete its rows in results/{NAME}.json to measure it again")
            continue
        measured = rival_rows() if group == "rivals" else network_rows(group, options.minutes)
        rows = save_rows(NAME, COMMAND, rows, measured)
        fill_blocks(NAME, lambda words, rows=rows: block(rows))
    show(rows)


if __name__ == "__main__":
    main()
