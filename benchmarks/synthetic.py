"""A segmentation trained on label maps alone, beside one trained on real images, on real images of either contrast.

Command: make bench NAME=synthetic [ONLY="label_maps images"]

Fold 0 of hippocampus, two labels. `label_maps`: the segmentation bundle with modes/synthetic.yaml, which sees no image
of a training or validation case. `images`: the same network and steps on the training cases' own images. Both are
scored on the 52 real test images, and on the same with their contrast turned round (a voxel's value is what it lies
below the image's maximum), of which neither saw any. Intervals are from the bootstrap by patient. A row is written when
it is finished; a stopped benchmark, and a stopped training, goes on where it was.
"""

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from blocks import fill_blocks, markdown_table, show_interval
from commands import bundle_run
from records import load_rows, save_rows
from rich.console import Console
from rich.table import Table

from tomokit.bundles import find_bundle
from tomokit.catalogue import get_dataset
from tomokit.configs import write_config
from tomokit.datasets import find_dataset, read_description, select_cases
from tomokit.files import read_json, write_json
from tomokit.volumes import read_volume, write_volume

NAME = "synthetic"
SOURCE, TURNED = "hippocampus", "hippocampus, contrast turned"
FOLDER = Path("runs") / NAME
EPOCHS = 30  # of 95 steps
SYSTEMS = {"label_maps": ("modes/synthetic",), "images": ()}
TOLD = {"label_maps": "label maps alone", "images": "real images"}
HEAD = ["trained on", "Dice on the test images [95 %]", "Dice, contrast turned [95 %]", "time"]


def configs(*names: str) -> list[Path]:
    """Return the segmentation bundle's configs of these names."""
    return [find_bundle("segmentation") / "configs" / f"{name}.yaml" for name in names]


def trained(system: str) -> Path:
    """Return the folder of a trained run; one that was stopped goes on."""
    run_dir, options = FOLDER / system, FOLDER / "options.yaml"
    write_config({"dataset_dir": str(find_dataset(SOURCE))}, options)
    files = [*configs("train", "data/hippocampus"), options, *configs(*SYSTEMS[system])]
    bundle_run(files, {"run_dir": run_dir, "epochs": EPOCHS, "resume": "true"})
    return run_dir


def turned_set() -> Path:
    """Return a copy of the set whose test images have their contrast turned round; made once."""
    folder, source = FOLDER / "turned", find_dataset(SOURCE)
    if not (folder / "dataset.json").exists():
        for entry in select_cases(SOURCE, "splits.json", 0)["test"]:
            array, affine = read_volume(entry["image"])
            path = folder / Path(entry["image"]).relative_to(source)
            write_volume(path, np.asarray(array).max() - np.asarray(array), affine)
            label = folder / Path(entry["label"]).relative_to(source)
            label.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(entry["label"], label)
        shutil.copy(source / "splits.json", folder)
        write_json(folder / "dataset.json", read_description(source))
    return folder


def measure(system: str, dataset: str) -> dict[str, Any]:
    """Return a row: a system's mean Dice on the test images of a set."""
    run_dir = trained(system)
    overrides: dict[str, Any] = {"rival": "false"}
    if dataset == TURNED:  # its scores are those of a run of their own
        copy = FOLDER / f"{system}-turned"
        shutil.rmtree(copy, ignore_errors=True)
        run_dir = Path(shutil.copytree(run_dir, copy))
        overrides |= {"dataset_dir": turned_set().resolve(), "run_dir": run_dir}
    bundle_run([run_dir / "configs" / "train.yaml", *configs("evaluate")], overrides)
    found = read_json(run_dir / "metrics.json")["summary"]["dice"]
    record = read_json(run_dir / "validation.json")
    row = {"system": system, "dataset": dataset, "metric": "dice", "value": found["mean"], "ci95": found["ci95"]}
    return row | {"n": found["n"], "seconds": record["seconds"], "peak_rss_gb": record["peak_rss_gb"]}


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the table, a line per system."""
    found = []
    for system in SYSTEMS:
        own = {row["dataset"]: row for row in rows if row["system"] == system}
        if own:
            scores = [show_interval(own[name]) if name in own else "" for name in (SOURCE, TURNED)]
            seconds = next(iter(own.values()))["seconds"]
            found.append([TOLD[system], *scores, f"{seconds / 60:.1f} min"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(SYSTEMS))
    parser.add_argument("--full", action="store_true", help="the same: both systems are the headline")
    options = parser.parse_args()
    get_dataset(SOURCE, source=os.environ.get("TOMOKIT_MIRROR"))
    rows = load_rows(NAME)
    for system in options.only or SYSTEMS:
        for dataset in (SOURCE, TURNED):
            if any((row["system"], row["dataset"]) == (system, dataset) for row in rows):
                print(f"{system}, {dataset}: measured already; delete its row in results/{NAME}.json to do it again")
                continue
            rows = save_rows(NAME, f"make bench NAME={NAME}", rows, [measure(system, dataset)])
            fill_blocks(NAME, lambda _, rows=rows: markdown_table(HEAD, lines(rows)))
    table = Table(*HEAD, title="hippocampus, fold 0, 52 test images", title_justify="left")
    for cells in lines(rows):
        table.add_row(*cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
