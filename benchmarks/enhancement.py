"""Take simulated noise out of hippocampus MRI: PSNR, SSIM, time, and what it does to measured volumes; beside filters.

Command: make bench NAME=enhancement [ONLY="l1 gan"] [MINUTES=15] [ARGS="--segmentation runs/hippocampus"]

Fold 0. Each volume is scaled from its minimum and 99.5th percentile to 0–1 and clipped, noise is drawn by the case's
number, results are clipped to 0–1, and the peak of the PSNR is 1. `l1` is the bundle's default, `gan` its layer of that
name, each trained for MINUTES (the schedule is made for 15 on two CPU cores). Filters get the strength that is best on
validation cases. With `--segmentation`, a trained run of the segmentation bundle, structures are measured in the clean,
the degraded and the enhanced images. A row is written when it is finished; a stopped benchmark goes on where it was.
"""

import argparse
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from blocks import fill_blocks, markdown_table, show_interval
from commands import bundle_run
from monai.bundle import ConfigParser
from records import load_rows, save_rows
from rich.console import Console
from rich.table import Table

from tomokit.bundles import find_bundle
from tomokit.catalogue import get_dataset
from tomokit.configs import read_config
from tomokit.inference import WritePredictiond, finish_writing
from tomokit.intensity import RestoreUnitsd
from tomokit.rivals.denoising import apply_filter
from tomokit.statistics import bootstrap_mean

NAME, COMMAND = "enhancement", "make bench NAME=enhancement"
DATA = "hippocampus"
FOLDER = Path("runs") / NAME
SYSTEMS = {"l1": (), "gan": ("modes/gan",)}
FILTERS = ("gaussian", "tv", "nlm")
NOISY = "noisy"
MINUTES = 15.0  # that the schedule of data/hippocampus.yaml is made for
MEASURED = ("gaussian5", "gaussian10")  # in which structures are measured
GOALS = {("gaussian5", "psnr"): 29.0, ("gaussian10", "psnr"): 25.5}
AIMS = {("gaussian5", "psnr"): 29.6, ("gaussian10", "psnr"): 26.3}  # BM4D's, on ten of the volumes
MOST_SHIFT = 1.0  # per cent
Row = dict[str, Any]


def config(bundle: str, name: str) -> Path:
    """Return the path of a bundle's config."""
    return find_bundle(bundle) / "configs" / f"{name}.yaml"


def train(system: str, minutes: float) -> Path:
    """Train a system for so many minutes, score it on the test cases, and return its run's folder."""
    run_dir = FOLDER / system
    get_dataset(DATA, source=os.environ.get("TOMOKIT_MIRROR"))
    numbers = config(NAME, f"data/{DATA}")
    epochs = max(1, round(read_config(numbers)["epochs"] * minutes / MINUTES))
    files = [config(NAME, "train"), numbers, *(config(NAME, layer) for layer in SYSTEMS[system])]
    bundle_run(files, {"run_dir": run_dir, "resume": "true", "epochs": epochs})
    bundle_run([run_dir / "configs" / "train.yaml", config(NAME, "evaluate")], {})
    return run_dir


def entry_row(system: str, dataset: str, metric: str, entry: Mapping[str, Any], common: Mapping[str, Any]) -> Row:
    """Return the row of an entry of metrics.json."""
    names = {"system": system, "dataset": dataset, "metric": metric}
    return {**names, "value": entry["mean"], "ci95": entry["ci95"], "n": entry["n"], **common}


def score_rows(system: str, run_dir: Path) -> list[Row]:
    """Return the rows of a scored run, those of the filters, and the differences from these."""
    measures = json.loads((run_dir / "metrics.json").read_text())
    training = json.loads((run_dir / "validation.json").read_text())
    common = {key: training[key] for key in ("seconds", "epochs", "parameters")}
    common["peak_rss_gb"] = max(measures["peak_rss_gb"], training["peak_rss_gb"])
    none = {"seconds": None, "peak_rss_gb": None}
    rows = []
    for dataset, entries in measures["per_class"].items():
        rows += [entry_row(system, dataset, metric, entry, common) for metric, entry in entries.items()]
        for rival, block in measures["rivals"].items():
            name = NOISY if rival == "degraded" else rival
            rows += [entry_row(name, dataset, key, own, none) for key, own in block["per_class"][dataset].items()]
            found = measures["comparisons"][rival][dataset]
            entry = {"mean": found["difference"], "ci95": found["ci95"], "n": found["n"]}
            rows.append(entry_row(system, dataset, f"psnr above {name}", entry, common | {"p": found["p"]}))
    return rows


def write_filtered(run_dir: Path, folder: Path) -> None:
    """Write the degraded test images of a run, and what the filters make of them, in the source's units."""
    parser = ConfigParser(read_config(run_dir / "configs" / "evaluate.yaml"))
    degrade, tests = parser.get_parsed_content("degraded"), parser.get_parsed_content("tests")
    entries = parser.get_parsed_content("dataset::data")
    strengths = json.loads((run_dir / "metrics.json").read_text())["strengths"]
    wanted = [entry for entry in entries if entry["degradation"] in set(MEASURED) & set(tests)]
    for item in map(degrade, wanted):
        given = item["image"][0].numpy()
        for system in (NOISY, *FILTERS):
            known = strengths.get(f"{system}, {item['degradation']}")
            values = given if known is None else apply_filter(system, given, known)
            found = {**item, "pred": item["image"].clone()}
            found["pred"][0] = found["pred"].new_tensor(values.clip(0, 1))
            output_dir = folder / system
            WritePredictiond("pred", output_dir, folder_key="degradation")(RestoreUnitsd("pred")(found))
    finish_writing()


def measure(images: Path, masks: Path, segmentation: Path) -> dict[str, int]:
    """Return the voxels of all structures in each image of a folder, by the case's name."""
    if not masks.is_dir():
        given = {"input": images.resolve(), "output_dir": masks.resolve()}
        bundle_run([segmentation / "configs" / "train.yaml", config("segmentation", "inference")], given)
    return {
        path.name: int(np.count_nonzero(np.asarray(nibabel.load(path).dataobj))) for path in sorted(masks.iterdir())
    }


def clean_images(run_dir: Path, folder: Path) -> Path:
    """Return a folder with links to the test images."""
    parser = ConfigParser(read_config(run_dir / "configs" / "train.yaml"))
    folder.mkdir(parents=True, exist_ok=True)
    for entry in parser.get_parsed_content("cases")["test"]:
        link = folder / Path(entry["image"]).name
        if not link.exists():
            link.symlink_to(Path(entry["image"]).resolve())
    return folder


def shift_rows(runs: Mapping[str, Path], segmentation: Path) -> list[Row]:
    """Return how far measured volumes move from those of the clean images, in per cent, by system and dataset."""
    first = next(iter(runs.values()))
    base = FOLDER / "volumes"
    shutil.rmtree(base, ignore_errors=True)
    write_filtered(first, base / "images")
    truth = measure(clean_images(first, base / "images" / "clean"), base / "masks" / "clean", segmentation)
    rows = []
    for system in (NOISY, *runs, *FILTERS):
        for dataset in MEASURED:
            images = (runs[system] / "predictions" if system in runs else base / "images" / system) / dataset
            found = measure(images, base / "masks" / system / dataset, segmentation)
            shifts = [100 * (found[name] / truth[name] - 1) for name in truth if truth[name]]
            for metric, values in (("volume_shift", shifts), ("volume_shift_size", np.abs(shifts))):
                mean, low, high, n = bootstrap_mean(values, range(len(values)))
                entry = {"mean": mean, "ci95": [low, high], "n": n}
                rows.append(entry_row(system, dataset, metric, entry, {"seconds": None, "peak_rss_gb": None}))
    return rows


def cell(row: Mapping[str, Any] | None, digits: int = 2) -> str:
    """Return a row's value with its interval, a dash where it is not measured."""
    if row is None or row["value"] is None:
        return "–"
    return show_interval(dict(row), digits) if row["ci95"] else f"{row['value']:.{digits}f}"


def block(rows: Sequence[Row], kind: str) -> str:
    """Return the Markdown table for the docs: of a dataset's scores."""
    order = ["noisy", *FILTERS, *SYSTEMS]
    table = {(row["system"], row["metric"]): row for row in rows if row["dataset"] == kind}
    head = ["system", "PSNR, dB [95 %]", "SSIM", "seconds per volume", "volumes move by, % [95 %]", "size of that, %"]
    lines = []
    for system in order:
        if (system, "psnr") in table:
            own = {metric: row for (name, metric), row in table.items() if name == system}
            cells = [cell(own["psnr"]), f"{own['ssim']['value']:.3f}"]
            cells.append(f"{own['seconds']['value']:.2f}" if "seconds" in own else "–")
            cells += [cell(own.get("volume_shift")), cell(own.get("volume_shift_size"))]
            lines.append([system, *cells])
    return markdown_table(head, lines)


def verdict(row: Mapping[str, Any]) -> str:
    """Return whether a row's goal is met; nothing where it has none."""
    key = (row["dataset"], row["metric"])
    if row["system"] not in SYSTEMS or row["value"] is None:
        return ""
    if key in GOALS:
        return f"≥ {GOALS[key]}: {'met' if row['value'] >= GOALS[key] else 'missed'}; BM4D {AIMS[key]}"
    if row["metric"] == "volume_shift":
        return f"≤ {MOST_SHIFT} %: {'met' if abs(row['value']) <= MOST_SHIFT else 'missed'}"
    if row["metric"] == "seconds":
        return "≤ 1: " + ("met" if row["value"] <= 1 else "missed")
    return ""


def show(rows: Sequence[Row]) -> None:
    """Print all rows."""
    table = Table("degraded by", "system", "measure", "value [95 %]", "patients", "goal")
    for row in sorted(rows, key=lambda row: (row["dataset"], row["metric"])):
        table.add_row(row["dataset"], row["system"], row["metric"], cell(row, 3), str(row["n"]), verdict(row))
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(SYSTEMS))
    parser.add_argument("--full", action="store_true", help="as without it: all systems")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--segmentation", type=Path, help="a trained run of the segmentation bundle")
    options = parser.parse_args()
    rows = load_rows(NAME)
    for system in options.only or SYSTEMS:
        if any(row["system"] == system and row["metric"] == "psnr" for row in rows):
            print(f"{system}: measured already; delete its rows in results/{NAME}.json to measure it again")
            continue
        measured = score_rows(system, train(system, options.minutes))
        names = {(row["system"], row["dataset"], row["metric"]) for row in measured}
        kept = [row for row in rows if (row["system"], row["dataset"], row["metric"]) not in names]
        rows = save_rows(NAME, COMMAND, kept, measured)
        fill_blocks(NAME, lambda words, rows=rows: block(rows, *words))
    if options.segmentation:
        runs = {system: FOLDER / system for system in SYSTEMS if (FOLDER / system / "metrics.json").is_file()}
        kept = [row for row in rows if not row["metric"].startswith("volume_shift")]
        rows = save_rows(NAME, COMMAND, kept, shift_rows(runs, options.segmentation))
        fill_blocks(NAME, lambda words: block(rows, *words))
    show(rows)


if __name__ == "__main__":
    main()
