"""Segment the Decathlon's hippocampus set in nnU-Net's folds: plan, train, predict and score in so many minutes.

Command: make bench NAME=hippocampus [FOLD=0] [MINUTES=10] [RUN=h10] [ONLY="networks"] [FULL=1]

Plain: one fold, as the headline. ONLY= picks of `folds` (all five), `networks` and `ingredients` (each at equal
time, on an inner validation part), and `loop` (steps per second beside MONAI's stock way); FULL=1 is all of them. A
row is written when it is finished; a stopped benchmark goes on where it was.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from blocks import fill_blocks, markdown_table, show_interval
from loops import bundle_workflow, compare_loops, time_steps
from monai.metrics import compute_surface_dice
from records import load_rows, save_rows
from rich.console import Console
from rich.table import Table

from tomokit.bundles import find_bundle
from tomokit.catalogue import get_dataset
from tomokit.ensembles import read_rows
from tomokit.files import write_json
from tomokit.statistics import bootstrap_mean

DATA = "hippocampus"
NNUNET = (0.8922, 0.8865, 0.8901, 0.8904, 0.8928)  # 3d_fullres, 1000 epochs: its published five-fold Dice
GROUPS = ("folds", "networks", "ingredients", "loop")
TOLERANCE_MM = 1.0
EQUAL_MINUTES = 4.0
UNEQUAL = 0.1  # of these minutes: trainings that are further off are repeated
INNER_FOLD = 1  # whose test cases, all among fold 0's training cases, are its inner validation part
REFERENCE = "unet"  # what networks and ingredients are compared with, measured first
LABELS = (0, 1, 2)  # background, anterior, posterior

# what each ingredient buys: the planned training without it, or with one more
INGREDIENTS: dict[str, dict[str, Any]] = {
    "no weight averaging": {"weight_averaging": 0.0},
    "no deep supervision": {"network_def::heads": 1},
    "no augmentation": {"train::augmentation::transforms": []},
    "flips along x and a mirrored pass too": {"flip_axes": [0], "mirror_axes": [0]},
    "patches anywhere": {"foreground_share": 0.0},
    "AdamW for Muon": {"layer": "_layers/adamw.yaml"},
    "SGD for Muon": {"layer": "_layers/sgd.yaml"},
}


def run(*command: str | Path) -> None:
    """Run a command and show it."""
    print("+", *command, flush=True)
    subprocess.run([str(word) for word in command], check=True)


def tomokit(*words: str | Path) -> None:
    """Run the command `tomokit` of this environment."""
    run(Path(sys.executable).with_name("tomokit"), *words)


def bundle_run(files: Sequence[str | Path], **overrides: Any) -> None:
    """Run `python -m monai.bundle run` on config files with overrides."""
    listed = "[" + ",".join(f"'{file}'" for file in files) + "]"
    pairs = [text for key, value in overrides.items() for text in (f"--{key}", str(value))]
    monai = (sys.executable, "-W", "ignore:parsing config_file", "-m", "monai.bundle", "run")
    run(*monai, "--config_file", listed, *pairs)


def write_splits(path: Path, inner: bool) -> Path:
    """Write nnU-Net's folds without a validation part; `inner`: of fold 0's training cases alone, a part to score."""
    content = json.loads((get_dataset(DATA) / "splits.json").read_text())
    folds = [
        {"training": sorted(fold["training"] + fold["validation"]), "validation": [], "test": fold["test"]}
        for fold in content["folds"]
    ]
    if inner:
        scored = folds[INNER_FOLD]["test"]
        rest = sorted(set(folds[0]["training"]) - set(scored))
        folds = [{"training": rest, "validation": [], "test": scored}]
    write_json(path, {"folds": folds})
    return path


def plan(folder: Path, minutes: float, fold: int, inner: bool = False) -> Path:
    """Plan a bundle for the set in so many minutes and return its train.yaml."""
    splits = write_splits(folder.with_name(f"{folder.name}-splits.json"), inner)
    shutil.rmtree(folder, ignore_errors=True)
    parts = ("--split", splits.resolve(), "--fold", str(fold))
    tomokit("plan", DATA, "--out", folder, "--minutes", f"{minutes:g}", *parts)
    return folder / "configs" / "train.yaml"


def train_and_score(files: Sequence[Path], run_dir: Path, **overrides: Any) -> None:
    """Train a run from the beginning, predict its test cases and score them."""
    shutil.rmtree(run_dir, ignore_errors=True)
    bundle_run(files, run_dir=run_dir, **overrides)
    evaluate = find_bundle("segmentation") / "configs" / "evaluate.yaml"
    bundle_run([run_dir / "configs" / "train.yaml", evaluate], checkpoint="last", rival="false")


def headline(fold: int, minutes: float, run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of one fold, planned, trained and predicted within the minutes."""
    began = time.perf_counter()
    config = plan(run_dir.with_name(f"{run_dir.name}-plan"), minutes, fold)
    train_and_score([config], run_dir)
    return score_rows(f"unet, {minutes:g} min", f"fold {fold}", run_dir, time.perf_counter() - began)


def score_rows(system: str, part: str, run_dir: Path, seconds: float | None) -> list[dict[str, Any]]:
    """Return a row per measure of a scored run: Dice, of each structure too, and the surface's at 1 mm."""
    measures = json.loads((run_dir / "metrics.json").read_text())
    training = json.loads((run_dir / "validation.json").read_text())
    common = {
        "seconds": seconds,
        "peak_rss_gb": max(measures["peak_rss_gb"], training["peak_rss_gb"]),
        "parameters": training["parameters"],
        "epochs": training["epochs"],
        "seconds_per_step": training["seconds_per_step"],
    }
    by_case = dice_by_case(run_dir)
    values = {"dice": list(by_case.values())}
    table = read_rows(run_dir / "cases.csv")
    for name in dict.fromkeys(row["class"] for row in table):
        values[f"dice {name.lower()}"] = [row["dice"] for row in table if row["class"] == name]
    values["nsd 1 mm"] = [surface_dice(run_dir, case) for case in by_case]
    rows = []
    for metric, numbers in values.items():
        mean, low, high, n = bootstrap_mean(numbers, range(len(numbers)))
        names = {"system": system, "dataset": f"{DATA} {part}", "metric": metric, "value": mean}
        rows.append(names | {"ci95": [low, high], "n": n} | common)
    return rows


def dice_by_case(run_dir: Path) -> dict[str, float]:
    """Return each scored case's mean Dice over the structures."""
    by_case: dict[str, list[float]] = {}
    for row in read_rows(run_dir / "cases.csv"):
        by_case.setdefault(row["case"], []).append(row["dice"])
    return {case: statistics.mean(values) for case, values in by_case.items()}


def surface_dice(run_dir: Path, case: str) -> float:
    """Return the mean over structures of a written prediction's surface Dice at 1 mm, by MONAI.

    Surfaces within voxels, as the Decathlon measures them: through the middle between a voxel inside and one outside.
    """
    prediction = nibabel.load(run_dir / "predictions" / f"{case}.nii.gz")
    truth = nibabel.load(get_dataset(DATA) / "labelsTr" / f"{case}.nii.gz")
    spacing = [float(edge) for edge in truth.header.get_zooms()[:3]]
    maps = [torch.from_numpy(np.asarray(image.dataobj).astype(np.int64)) for image in (prediction, truth)]
    channels = [torch.stack([volume == value for value in LABELS])[None].float() for volume in maps]
    limits = [TOLERANCE_MM] * (len(LABELS) - 1)
    scores = compute_surface_dice(*channels, class_thresholds=limits, spacing=spacing, use_subvoxels=True)
    return float(scores.mean())


def equal_time(name: str, group: str, layers: Sequence[Path], overrides: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of one network or ingredient, trained for the equal time and scored on the inner part."""
    folder = Path("runs") / "benchmarks" / "hippocampus" / "equal"
    config = folder / "plan" / "configs" / "train.yaml"
    if not config.is_file():
        plan(folder / "plan", EQUAL_MINUTES, 0, inner=True)
    run_dir = folder / name.replace(" ", "_")
    files = [config, *layers]
    epochs, seconds = fit_epochs(files, overrides), 0.0
    for _ in range(2):  # a second time where a few steps told too little of the whole
        train_and_score(files, run_dir, epochs=epochs, **overrides)
        seconds = json.loads((run_dir / "validation.json").read_text())["seconds"]
        if abs(seconds / (60 * EQUAL_MINUTES) - 1) <= max(UNEQUAL, 0.5 / epochs):
            break
        epochs = max(1, round(epochs * 60 * EQUAL_MINUTES / seconds))
    rows = score_rows(name, f"inner, {group}", run_dir, seconds)
    reference = folder / REFERENCE
    return rows if reference == run_dir else [*rows, difference_row(rows[0], run_dir, reference)]


def difference_row(row: Mapping[str, Any], run_dir: Path, reference: Path) -> dict[str, Any]:
    """Return the row of a run's Dice minus the reference's, case by case."""
    ours, theirs = dice_by_case(run_dir), dice_by_case(reference)
    mean, low, high, _ = bootstrap_mean([ours[case] - theirs[case] for case in theirs], list(theirs))
    return {**row, "metric": f"dice - {reference.name}'s", "value": mean, "ci95": [low, high]}


def fit_epochs(files: Sequence[Path], overrides: Mapping[str, Any]) -> int:
    """Return how many epochs of the config fit into the equal time, by the time of some of its steps."""
    with bundle_workflow(files, overrides) as workflow:
        trainer = workflow.parser.get_parsed_content("train::trainer")
        seconds = statistics.median(time_steps(trainer, 12)[4:])
        per_epoch = len(trainer.data_loader)
    return max(1, round(60 * EQUAL_MINUTES / seconds / per_epoch))


def loop_rows(minutes: float) -> list[dict[str, Any]]:
    """Return the steps per second of a plan's loop, of MONAI's stock loop and of the bare network, in turn."""
    folder = Path("runs") / "benchmarks" / "hippocampus" / "loop"
    config = plan(folder / "plan", minutes, 0)
    return [row | {"dataset": DATA} for row in compare_loops(config)]


def networks() -> dict[str, list[Path]]:
    """Return the layers of each network of the segmentation bundle; the first is the default, without a layer."""
    found = sorted((find_bundle("segmentation") / "configs" / "networks").glob("*.yaml"))
    return {"unet": [], **{path.stem: [path] for path in found}}


def chosen_rows(options: argparse.Namespace) -> Sequence[tuple[str, str, Any]]:
    """Return (system, dataset, how to measure it) of what was asked for, in order."""
    groups = options.only or (GROUPS if options.full else ())
    work: list[tuple[str, str, Any]] = []
    label = f"unet, {options.minutes:g} min"
    if not groups:
        run_dir = Path("runs") / options.run
        work.append((label, f"{DATA} fold {options.fold}", lambda: headline(options.fold, options.minutes, run_dir)))
    if "folds" in groups:
        for fold in range(len(NNUNET)):
            run_dir = Path("runs") / "benchmarks" / "hippocampus" / f"fold_{fold}"
            work.append((label, f"{DATA} fold {fold}", lambda f=fold, r=run_dir: headline(f, options.minutes, r)))
    if "networks" in groups or "ingredients" in groups:
        for name, layers in networks().items() if "networks" in groups else [(REFERENCE, [])]:
            changes = {"network_def::tasks": [[1], [2]]} if name == "task_heads" else {}
            measure = lambda n=name, ls=layers, c=changes: equal_time(n, "networks", ls, c)  # noqa: E731
            work.append((name, f"{DATA} inner, networks", measure))
    if "ingredients" in groups:
        for name, changes in INGREDIENTS.items():
            work.append((name, f"{DATA} inner, ingredients", lambda n=name, c=changes: without(n, c)))
    if "loop" in groups:
        work.append(("bundle", DATA, lambda: loop_rows(options.minutes)))
    return work


def without(name: str, changes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a training with an ingredient changed."""
    overrides = {key: value for key, value in changes.items() if key != "layer"}
    layers = [find_bundle("segmentation").parent / changes["layer"]] if "layer" in changes else []
    return equal_time(name, "ingredients", layers, overrides)


def block(rows: Sequence[dict[str, Any]], kind: str) -> str:
    """Return the Markdown table of a kind for the docs: `folds`, `networks`, `ingredients` or `loop`."""
    if kind == "folds":
        return fold_table(rows)
    if kind == "loop":
        found = [row for row in rows if row["metric"] == "steps per second"]
        ratios = [row for row in rows if row["metric"].startswith("seconds per step /")]
        pairs = zip(found, ratios, strict=True)
        cells = [[row["system"], f"{row['value']:.1f}", f"{ratio['value']:.2f}"] for row, ratio in pairs]
        return markdown_table(["", "steps per second", "seconds per step, bundle = 1"], cells)
    return equal_time_table(rows, kind)


def fold_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a line per system and fold, nnU-Net's figure beside it, and the mean where all five are there."""
    lines, means = [], []
    found = (row for row in rows if " fold " in row["dataset"] and row["metric"] == "dice")
    for row in sorted(found, key=lambda row: (row["system"], row["dataset"])):
        fold = int(row["dataset"][-1])
        names = row["system"], row["dataset"]
        surface = next(r for r in rows if (r["system"], r["dataset"], r["metric"]) == (*names, "nsd 1 mm"))
        time_taken = f"{row['seconds'] / 60:.1f} min"
        score = show_interval(row, 4)
        lines.append([row["system"], str(fold), score, f"{NNUNET[fold]:.4f}", f"{surface['value']:.4f}", time_taken])
    for system in dict.fromkeys(line[0] for line in lines):
        values = [float(line[2].split()[0]) for line in lines if line[0] == system]
        if len(values) == len(NNUNET):
            beside = f"{statistics.mean(NNUNET):.4f}"
            means.append([system, "mean of five", f"{statistics.mean(values):.4f}", beside, "", ""])
    return markdown_table(["", "fold", "Dice [95 %]", "nnU-Net", "NSD at 1 mm", "time"], lines + means)


def equal_time_table(rows: Sequence[dict[str, Any]], group: str) -> str:
    """Return a line per network or ingredient: size, speed, Dice, and the difference from the reference."""
    lines = []
    found = [row for row in rows if " inner, " in row["dataset"] and row["metric"] == "dice"]
    for row in sorted(found, key=lambda row: row["system"] != REFERENCE):
        name = row["system"]
        if name != REFERENCE and not row["dataset"].endswith(group):
            continue
        difference = [r for r in rows if (r["system"], r["dataset"]) == (name, row["dataset"]) and " - " in r["metric"]]
        against = show_interval(difference[0], 4, "+") + verdict(difference[0]) if difference else "—"
        speed = f"{row['seconds_per_step']:.2f} s × {row['epochs']} epochs"
        size = [] if group == "ingredients" else [describe_layer(name), f"{row['parameters'] / 1e6:.2f}M"]
        if group == "ingredients" and name == REFERENCE:
            name = "all, the planned U-Net"
        lines.append([f"`{name}`" if size else name, *size, speed, show_interval(row, 4), against])
    size = [] if group == "ingredients" else ["what", "parameters"]
    beside = f"Dice − {'all' if group == 'ingredients' else REFERENCE}'s [95 %]"
    return markdown_table(["", *size, "step", "Dice [95 %]", beside], lines)


def verdict(row: Mapping[str, Any]) -> str:
    """Return in words whether a difference's interval lies above or below 0."""
    low, high = row["ci95"]
    return ": better" if low > 0 else ": worse" if high < 0 else ": not better"


def describe_layer(name: str) -> str:
    """Return the first words of a network layer's own header."""
    layers = networks()[name]
    if not layers:
        return "the default: a U-Net with few convolutions at full resolution, skips added"
    header = " ".join(line[1:].strip() for line in layers[0].read_text().splitlines() if line.startswith("#"))
    return re.split(r" \(|[:.] ", header)[0]


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print all rows as a table, nnU-Net's figure beside a fold's."""
    table = Table("system", "part", "measure", "value [95 %]", "nnU-Net", "time", "parameters")
    for row in rows:
        part = row["dataset"].removeprefix(DATA).strip()
        beside = f"{NNUNET[int(part[-1])]:.4f}" if part.startswith("fold") and row["metric"] == "dice" else ""
        interval = "" if row["ci95"] is None else f" [{row['ci95'][0]:.3f}, {row['ci95'][1]:.3f}]"
        seconds = "" if row["seconds"] is None else f"{row['seconds'] / 60:.1f} min"
        size = f"{row['parameters'] / 1e6:.2f}M" if row.get("parameters") else ""
        table.add_row(row["system"], part, row["metric"], f"{row['value']:.4f}{interval}", beside, seconds, size)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fold", type=int, default=0, choices=range(len(NNUNET)))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--run", default="hippocampus-bench")
    parser.add_argument("--only", nargs="*", choices=GROUPS)
    parser.add_argument("--full", action="store_true", help="all groups")
    options = parser.parse_args()
    get_dataset(DATA, source=os.environ.get("TOMOKIT_MIRROR"))
    rows = load_rows(DATA)
    for system, dataset, measure in chosen_rows(options):
        own = [row for row in rows if (row["system"], row["dataset"]) == (system, dataset)]
        if own and (options.only or options.full):
            print(f"{system}, {dataset}: measured already; delete its rows in results/{DATA}.json to measure it again")
            continue
        kept = [row for row in rows if (row["system"], row["dataset"]) != (system, dataset)]
        rows = save_rows(DATA, "make bench NAME=hippocampus FULL=1", kept, measure())
    fill_blocks(DATA, lambda words: block(rows, *words))
    show(rows)


if __name__ == "__main__":
    main()
