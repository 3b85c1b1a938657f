"""Learning curves: what pretraining, and cases without labels, are worth at 10, 20, 40 and all labelled cases.

Command: make bench NAME=transfer [ONLY="classes adrenal segmentation hippocampus"] [FULL=1]

Plain: the headline, fine-tuning beside training from scratch at 10 labels on the classification phantoms. ONLY= picks
targets with all their systems and numbers of labels; FULL=1 is all of them. On one target all trainings take as many
steps, whatever the labels, and the last weights are scored: no label of the validation part chooses an epoch. A seed
draws the labels (nested: 10 are among 20) and the training; intervals are Student's over seeds, differences are taken
seed by seed. A run, and a row, is kept when it is finished; a stopped benchmark goes on where it was.
"""

import argparse
import math
import os
import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from blocks import fill_blocks, markdown_table, show_interval
from commands import bundle_run
from records import load_rows, save_rows
from rich.console import Console
from rich.table import Table

from tomokit import phantoms
from tomokit.bundles import find_bundle
from tomokit.catalogue import get_dataset
from tomokit.configs import read_config, write_config
from tomokit.datasets import find_dataset, select_cases
from tomokit.files import read_json, write_json
from tomokit.rivals import feature_table

NAME = "transfer"
FOLDER = Path("runs") / NAME
COUNTS = (10, 20, 40, None)  # labelled training cases; None: all
REFERENCE = "from scratch"
MEASURES = ("volume_ml", "elongation", "flatness", "solidity", "thickness_mean_mm")  # whose labels adrenals give free
SELF_LABELS = "adrenal-measures"


class System(NamedTuple):
    """A way to train: its layers, whether it begins with pretrained weights, the key of the supervised run it needs."""

    layers: tuple[str, ...]
    pretrained: bool = False
    supervised: str = ""


SYSTEMS = {
    REFERENCE: System(()),
    "fine-tuned": System(("_layers/finetune",), pretrained=True),
    "head, then all": System(("_layers/finetune_head_then_all",), pretrained=True),
    "slower early layers": System(("_layers/finetune", "_layers/layer_rates"), pretrained=True),
    "read out": System(("modes/read_out",), pretrained=True),
    "pseudo-labels": System(("modes/self_training",), supervised="teacher"),
    "mean teacher": System(("modes/mean_teacher",), supervised="baseline"),
}


class Target(NamedTuple):
    """A set to learn from few labels.

    Attributes:
        dataset: its name in the catalogue.
        bundle: that is trained.
        metric: of metrics.json's summary.
        steps: of each training.
        seeds: how many.
        layers: of the bundle, for the set.
        pretrain: makes the other set in a folder and returns the layers and options of the pretraining.
        told: what the pretraining is, for the table.
    """

    dataset: str
    bundle: str
    metric: str
    steps: int
    seeds: int
    layers: tuple[str, ...]
    pretrain: Callable[[Path], tuple[tuple[str, ...], dict[str, Any]]]
    told: str


def other_classes(folder: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Make CT phantoms of other patients with the same two classes."""
    if not (folder / "dataset.json").exists():
        phantoms.make_classification_set(folder, "CT", cases=440, test_cases=40, seed=1)
    return (), {"dataset_dir": str(folder.resolve())}


def other_organs(folder: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Make MRI phantoms of other patients with liver, spleen and lesions."""
    if not (folder / "dataset.json").exists():
        phantoms.make_segmentation_set(folder, "MRI", cases=48, seed=1)
    return ("data/phantom-mri",), {"dataset_dir": str(folder.resolve())}


def own_measures(folder: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Make a set of adrenalmnist3d's training cases whose labels are measures above their median: nobody gave them."""
    if not (folder / "dataset.json").exists():
        entries = select_cases("adrenalmnist3d", "splits.json", 0)["training"]
        names, table = feature_table(entries, mask_above=127)
        columns = table[:, [names.index(name) for name in MEASURES]]
        flags = (columns > np.median(columns, axis=0)).astype(int).tolist()
        cases = [{"image": entry["image"], "label": own} for entry, own in zip(entries, flags, strict=True)]
        last = len(entries) // 10
        names_of = [entry["case"] for entry in entries]
        fold = {"training": names_of[:-last], "validation": names_of[-last:], "test": []}
        write_json(folder / "splits.json", {"folds": [fold]})
        labels = {str(number): name for number, name in enumerate(MEASURES)}
        about = {"name": SELF_LABELS, "labels": labels}
        write_json(folder / "dataset.json", about | {"training": cases})
    labels = read_json(folder / "dataset.json")["labels"]
    layers = ("data/adrenalmnist3d", "modes/multi_label")
    return layers, {"dataset_dir": str(folder.resolve()), "labels": labels, "epochs": 20, "val_interval": 5}


TARGETS = {
    "classes": Target(
        "phantom-mri-classes",
        "classification",
        "auc",
        300,
        5,
        ("data/phantom-mri-classes",),
        other_classes,
        "400 labelled CT phantoms of other patients, the same classes",
    ),
    "adrenal": Target(
        "adrenalmnist3d",
        "classification",
        "auc",
        600,
        5,
        ("data/adrenalmnist3d",),
        own_measures,
        "five measures of the training volumes themselves, above their median or not, without a label of the target",
    ),
    "segmentation": Target(
        "phantom-ct",
        "segmentation",
        "dice",
        280,
        3,
        (),
        other_organs,
        "40 labelled MRI phantoms of other patients, the same structures",
    ),
    "hippocampus": Target(
        "hippocampus",
        "segmentation",
        "dice",
        600,
        3,
        ("data/hippocampus",),
        other_organs,
        "40 labelled MRI phantoms of abdomens",
    ),
}


def layer(bundle: str, name: str) -> Path:
    """Return the file of a layer of the bundle, or of one for all bundles."""
    folder = find_bundle(bundle)
    return folder.parent / f"{name}.yaml" if name.startswith("_layers/") else folder / "configs" / f"{name}.yaml"


def base_files(name: str) -> list[Path]:
    """Return the configs that all trainings on a target begin with."""
    target = TARGETS[name]
    options = FOLDER / name / "options.yaml"
    write_config({"dataset_dir": str(find_dataset(target.dataset))}, options)
    return [layer(target.bundle, "train"), *(layer(target.bundle, own) for own in target.layers), options]


def pretrain(name: str) -> Path:
    """Return the run whose weights the target's trainings begin with; trained once, without the target's labels."""
    target, run_dir = TARGETS[name], FOLDER / name / "pretrained"
    done = FOLDER / name / "pretrained.json"
    if not done.exists():
        shutil.rmtree(run_dir, ignore_errors=True)
        layers, options = target.pretrain(FOLDER / name / "source")
        extra = FOLDER / name / "source.yaml"
        write_config(options, extra)
        files = [layer(target.bundle, "train"), *(layer(target.bundle, own) for own in layers), extra]
        write_json(done, {"seconds": bundle_run(files, {"run_dir": run_dir})})
    return run_dir


def count_cases(name: str) -> int:
    """Return how many labelled training cases a target has."""
    return len(select_cases(TARGETS[name].dataset, "splits.json", 0)["training"])


def fit_epochs(files: Sequence[Path], cases: int, steps: int) -> int:
    """Return how many epochs take so many steps: what does not fill a batch is left out, unless it is all there is."""
    sizes = [read_config(file).get("batch_size") for file in files]
    batch = [size for size in sizes if size is not None][-1]
    return math.ceil(steps / max(cases // batch, 1))


def trained(name: str, system: str, count: int | None, seed: int) -> Path:
    """Return the folder of a run of a target, trained and scored unless it is there."""
    target, own = TARGETS[name], SYSTEMS[system]
    folder = FOLDER / name / system.replace(" ", "_").replace(",", "")
    run_dir = folder / f"{count or 'all'}-{seed}"
    if (run_dir / "metrics.json").exists():
        return run_dir
    shutil.rmtree(run_dir, ignore_errors=True)
    files, cases = base_files(name), count or count_cases(name)
    overrides: dict[str, Any] = {"run_dir": run_dir, "seed": seed}
    if count is not None:
        files.append(layer(target.bundle, "_layers/few_labels"))
        overrides["label_count"] = count
    if own.pretrained:
        overrides["pretrained"] = pretrain(name)
    if own.supervised:
        overrides[own.supervised] = supervised = trained(name, REFERENCE, count, seed)
    if system == "pseudo-labels":
        cases += len(read_json(pseudo_labels(supervised, target.bundle))["cases"])
    epochs = fit_epochs(files, cases, target.steps)
    # validated once, at the end: the best weights are the last ones
    overrides |= {"epochs": epochs, "val_interval": epochs}
    if "_layers/finetune_head_then_all" in own.layers:
        overrides["head_epochs"] = max(epochs // 5, 1)
    files += [layer(target.bundle, part) for part in own.layers]
    bundle_run(files, overrides)
    without = {"rival": "false"} | ({"feature_models": []} if target.bundle == "classification" else {})
    bundle_run([run_dir / "configs" / "train.yaml", layer(target.bundle, "evaluate")], without)
    return run_dir


def pseudo_labels(teacher: Path, bundle: str) -> Path:
    """Return the file of a teacher's labels of the cases it was not trained on; made once."""
    found = teacher / "pseudo_labels" / "pseudo_labels.json"
    if not found.exists():
        bundle_run([teacher / "configs" / "train.yaml", layer(bundle, "pseudo_label")], {})
    return found


def taught(name: str, count: int | None, seed: int) -> Path:
    """Return the folder of a self-training's run; where the teacher is sure of no case, that is the teacher's own."""
    teacher = trained(name, REFERENCE, count, seed)
    sure = read_json(pseudo_labels(teacher, TARGETS[name].bundle))["cases"]
    return trained(name, "pseudo-labels", count, seed) if sure else teacher


def measure(name: str, system: str, count: int | None) -> dict[str, Any]:
    """Return the row of one system at one number of labels: the mean over seeds, with each seed's value."""
    target = TARGETS[name]
    seeds = range(target.seeds)
    runs = [
        taught(name, count, seed) if system == "pseudo-labels" else trained(name, system, count, seed) for seed in seeds
    ]
    values = [read_json(run / "metrics.json")["summary"][target.metric]["mean"] for run in runs]
    records = [read_json(run / "validation.json") for run in runs]
    mean, interval = student_interval(values)
    row = {"system": system, "dataset": dataset_of(name, count), "metric": target.metric, "value": mean}
    inside = [max(interval[0], 0.0), min(interval[1], 1.0)]  # AUC and Dice lie in there
    row |= {"ci95": inside, "n": target.seeds, "values": values}
    row |= {"seconds": statistics.mean(record["seconds"] for record in records)}
    row |= {"peak_rss_gb": max(record["peak_rss_gb"] for record in records)}
    verdicts = [record["comparison"]["verdict"] for record in records if record.get("comparison")]
    # what the layer itself told of the validation cases, seed by seed
    row |= {"on_validation": verdicts} if verdicts else {}
    note = unsure(system, runs)
    return row | ({"note": note} if note else {})


def unsure(system: str, runs: Sequence[Path]) -> str:
    """Return in how many seeds the teacher was sure of no case, so that its own score stands in the row."""
    count = sum(run.parent.name == REFERENCE.replace(" ", "_") for run in runs) if system == "pseudo-labels" else 0
    return f"the teacher was sure of no case in {count} of {len(runs)} seeds" if count else ""


def student_interval(values: Sequence[float]) -> tuple[float, list[float]]:
    """Return the mean of a few values with its 95 % interval by Student's distribution."""
    mean = statistics.mean(values)
    reach = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, [mean - reach, mean + reach]


def dataset_of(name: str, count: int | None) -> str:
    """Return the `dataset` of a row."""
    return f"{name}, {count or 'all'} labels"


def chosen(options: argparse.Namespace) -> list[tuple[str, str, int | None]]:
    """Return (target, system, number of labels) of what was asked for, in the order of the tables."""
    targets = options.only or (list(TARGETS) if options.full else [])
    if not targets:
        return [("classes", system, 10) for system in (REFERENCE, "fine-tuned")]
    work = []
    for name in targets:
        for count in (count for count in COUNTS if count is None or count < count_cases(name)):
            for system, own in SYSTEMS.items():
                classifies = TARGETS[name].bundle == "classification"
                if (system == "read out" and not classifies) or (own.supervised and count is None):
                    continue  # no logistic regression of voxels; no case without a label is left
                work.append((name, system, count))
    return work


def difference(rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any] | None:
    """Return a row's difference from training from scratch, seed by seed, with a verdict; None for that itself."""
    same = [other for other in rows if other["dataset"] == row["dataset"] and other["system"] == REFERENCE]
    if row["system"] == REFERENCE or not same:
        return None
    pairs = zip(row["values"], same[0]["values"], strict=True)
    mean, interval = student_interval([ours - theirs for ours, theirs in pairs])
    verdict = "helps" if interval[0] > 0 else "hurts" if interval[1] < 0 else "not shown to help"
    return {"value": mean, "ci95": interval, "verdict": verdict}


def lines(rows: Sequence[dict[str, Any]], name: str) -> list[list[str]]:
    """Return the cells of a target's table, a line per number of labels and system."""
    found = []
    for count in COUNTS:
        own = {row["system"]: row for row in rows if row["dataset"] == dataset_of(name, count)}
        for row in (own[system] for system in SYSTEMS if system in own):
            gain = difference(rows, row)
            told = "" if gain is None else f"{show_interval(gain, 3, '+')}: {gain['verdict']}"
            note = f" ({row['note']})" if row.get("note") else ""
            seconds = f"{row['seconds']:.0f} s"
            found.append([str(count or "all"), row["system"] + note, show_interval(row), told, seconds])
    return found


def heads(name: str) -> list[str]:
    """Return the head of a target's table."""
    metric = {"auc": "AUC", "dice": "Dice"}[TARGETS[name].metric]
    seeds = TARGETS[name].seeds
    return ["labels", "training", f"{metric} [95 %, {seeds} seeds]", "minus from scratch [95 %]", "time"]


def block(rows: Sequence[dict[str, Any]], name: str) -> str:
    """Return the Markdown table of a target for the docs."""
    return markdown_table(heads(name), lines(rows, name))


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of each target that has rows."""
    for name, target in TARGETS.items():
        if found := lines(rows, name):
            table = Table(*heads(name), title=f"{target.dataset}; pretrained on {target.told}", title_justify="left")
            for cells in found:
                table.add_row(*cells)
            Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(TARGETS))
    parser.add_argument("--full", action="store_true", help="all targets")
    options = parser.parse_args()
    for name in options.only or (list(TARGETS) if options.full else ["classes"]):
        get_dataset(TARGETS[name].dataset, source=os.environ.get("TOMOKIT_MIRROR"))
    rows = load_rows(NAME)
    for name, system, count in chosen(options):
        key = (system, dataset_of(name, count))
        if any((row["system"], row["dataset"]) == key for row in rows):
            print(f"{key[0]}, {key[1]}: measured already; delete its row in results/{NAME}.json to measure it again")
            continue
        rows = save_rows(NAME, f"make bench NAME={NAME} FULL=1", rows, [measure(name, system, count)])
        fill_blocks(NAME, lambda words, rows=rows: block(rows, *words))
    show(rows)


if __name__ == "__main__":
    main()
