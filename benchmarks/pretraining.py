"""What pretraining without labels is worth: ten labelled hippocampus volumes, with and without it, five seeds.

Command: make bench NAME=pretraining [ONLY="scratch genesis masked"]

Fold 0 of the published folds. A network is pretrained once on the images of all 191 training cases, none of whose
labels is read: by restoring distorted volumes (`genesis`), or hidden blocks (`masked`). Then 10 labelled training cases
are drawn with each seed, and the segmentation bundle's U-Net is trained on them, from scratch or from those weights,
all with as many steps; the last weights are scored on the 52 test cases. Intervals are Student's over seeds, which draw
the labels and the training; differences are taken seed by seed, on the same cases. A run, and a row, is kept when it is
finished; a stopped benchmark, and a stopped training, goes on where it was.
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blocks import fill_blocks, markdown_table, show_interval
from commands import bundle_run
from records import load_rows, save_rows
from rich.console import Console
from rich.table import Table
from transfer import difference, student_interval

from tomokit.bundles import find_bundle
from tomokit.catalogue import get_dataset
from tomokit.configs import write_config
from tomokit.datasets import find_dataset
from tomokit.files import read_json

NAME = "pretraining"
SOURCE = "hippocampus"
DATASET = "hippocampus-10"
FOLDER = Path("runs") / NAME
LABELS, SEEDS, STEPS, BATCH = 10, 5, 400, 2
PRETRAINING_EPOCHS = 20  # of 95 steps
SCRATCH = "scratch"
PRETRAININGS: dict[str, tuple[str, ...]] = {"genesis": (), "masked": ("modes/masked",)}
SYSTEMS = {
    SCRATCH: "from scratch",
    "genesis": "after restoring distorted volumes",
    "masked": "after restoring hidden blocks",
}
HEAD = ["", f"Dice [95 %, {SEEDS} seeds]", "minus from scratch [95 %]", "time", "pretraining"]


def layers(bundle: str, *names: str) -> list[Path]:
    """Return the configs of a bundle on the hippocampus set: train.yaml, the set's numbers, then layers."""
    folder = find_bundle(bundle)
    options = FOLDER / "options.yaml"
    write_config({"dataset_dir": str(find_dataset(SOURCE))}, options)
    own = [folder / "configs" / f"{name}.yaml" for name in ("train", "data/hippocampus")]
    shared = folder.parent
    further = [shared / f"{name}.yaml" if name[0] == "_" else folder / "configs" / f"{name}.yaml" for name in names]
    return [*own, options, *further]


def pretrained(system: str) -> Path:
    """Return the folder of a finished pretraining; one that was stopped goes on."""
    run_dir = FOLDER / system / "pretrained"
    overrides: dict[str, Any] = {"run_dir": run_dir, "epochs": PRETRAINING_EPOCHS, "resume": "true"}
    if not (run_dir / "metrics.json").exists():
        bundle_run(layers("pretraining", *PRETRAININGS[system]), overrides)
        bundle_run([run_dir / "configs" / "train.yaml", find_bundle("pretraining") / "configs" / "evaluate.yaml"], {})
    return run_dir


def trained(system: str, seed: int) -> Path:
    """Return the folder of a run on the labels that the seed draws, trained and scored unless it is there."""
    run_dir = FOLDER / system / f"seed_{seed}"
    if (run_dir / "metrics.json").exists():
        return run_dir
    epochs = STEPS * BATCH // LABELS
    overrides: dict[str, Any] = {"run_dir": run_dir, "seed": seed, "label_count": LABELS, "resume": "true"}
    overrides |= {"epochs": epochs, "val_interval": epochs}  # validated once: the best weights are the last ones
    files = layers("segmentation", "_layers/few_labels")
    if system != SCRATCH:
        overrides |= {"pretrained": pretrained(system), "finetuning_rate": 1.0}
        files += layers("segmentation", "_layers/finetune")[-1:]
    bundle_run(files, overrides)
    evaluate = find_bundle("segmentation") / "configs" / "evaluate.yaml"
    bundle_run([run_dir / "configs" / "train.yaml", evaluate], {"rival": "false"})
    return run_dir


def measure(system: str) -> dict[str, Any]:
    """Return the row of one system: the mean over seeds, with each seed's value."""
    runs = [trained(system, seed) for seed in range(SEEDS)]
    values = [read_json(run / "metrics.json")["summary"]["dice"]["mean"] for run in runs]
    records = [read_json(run / "validation.json") for run in runs]
    mean, interval = student_interval(values)
    row = {"system": system, "dataset": DATASET, "metric": "dice", "value": mean, "ci95": interval, "n": SEEDS}
    row |= {"values": values, "seconds": statistics.mean(record["seconds"] for record in records)}
    row |= {"peak_rss_gb": max(record["peak_rss_gb"] for record in records)}
    if system != SCRATCH:
        folder = pretrained(system)
        row["pretraining_seconds"] = read_json(folder / "validation.json")["seconds"]
        row["restored"] = read_json(folder / "metrics.json")["summary"]["restored"]["mean"]
    return row


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the table, a line per system."""
    renamed = [{**row, "system": "from scratch" if row["system"] == SCRATCH else row["system"]} for row in rows]
    found = []
    for row in renamed:
        gain = difference(renamed, row)
        told = "" if gain is None else f"{show_interval(gain, 3, '+')}: {gain['verdict']}"
        before = f"{row['pretraining_seconds'] / 60:.0f} min" if "pretraining_seconds" in row else "none"
        name = SYSTEMS.get(row["system"], row["system"])
        found.append([name, show_interval(row), told, f"{row['seconds']:.0f} s", before])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(SYSTEMS))
    parser.add_argument("--full", action="store_true", help="the same: all systems are the headline")
    options = parser.parse_args()
    get_dataset(SOURCE, source=os.environ.get("TOMOKIT_MIRROR"))
    rows = load_rows(NAME)
    for system in options.only or SYSTEMS:
        if any(row["system"] == system for row in rows):
            print(f"{system}: measured already; delete its row in results/{NAME}.json to measure it again")
            continue
        rows = save_rows(NAME, f"make bench NAME={NAME}", rows, [measure(system)])
        fill_blocks(NAME, lambda _, rows=rows: markdown_table(HEAD, lines(rows)))
    table = Table(*HEAD, title=f"{LABELS} labelled hippocampus volumes, {STEPS} steps", title_justify="left")
    for cells in lines(rows):
        table.add_row(*cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
