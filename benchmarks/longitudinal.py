"""Compare pairs of scans with a Siamese network: which is the earlier one, changed or not, by how much; and rivals.

Command: make bench NAME=longitudinal [ONLY="phantom hippocampus control unet"] [FULL=1]

Plain: hippocampus with simulated changes of 1, 3 and 5 % (trained on 2 to 20 %), and the control that sees the
resampling alone, over all folds. `phantom`: the phantoms. `unet`: "segment, then subtract" with the segmentation
bundle's U-Net. A row is written when it is finished; a stopped benchmark goes on where it was.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from blocks import fill_blocks, markdown_table, show_interval
from commands import bundle_run
from records import load_rows, save_rows
from rich.console import Console
from rich.table import Table

from tomokit import phantoms
from tomokit.bundles import find_bundle
from tomokit.catalogue import SIMULATED, get_dataset
from tomokit.datasets import case_name, data_root, read_entries, select_cases
from tomokit.pairs import answer_columns, choose_change_threshold, summarise_pairs, truth_columns
from tomokit.rivals.pairs import answer_pairs, fit_pairs, pair_table
from tomokit.statistics import bootstrap_mean

NAME, COMMAND = "longitudinal", "make bench NAME=longitudinal FULL=1"
FOLDER = Path("runs") / NAME
PHANTOMS, HIPPOCAMPUS = "phantom-followup", "hippocampus-followup"
PERCENTS, GOAL_PERCENT = (1, 5, 3), 3
GROUPS = ("hippocampus", "control", "phantom", "unet")
PLAIN = ("hippocampus", "control")
RATE = 0.05  # of unchanged pairs that may be called changed
ORDER_GOAL, CONTROL_GOAL = 0.9, 0.55
SYSTEMS = {
    "siamese": "Siamese network",
    "unet": "U-Net segments, then subtracted",
    "otsu": "Otsu's tissues counted, then subtracted",
    "resampling": "control: resampling alone, test cases",
    "control": "control: resampling alone, all folds",
}
Row = dict[str, Any]


def config(bundle: str, name: str) -> Path:
    """Return the path of a bundle's config."""
    return find_bundle(bundle) / "configs" / f"{name}.yaml"


def hippocampus_set(percent: int) -> Path:
    """Return the folder of pairs made as the catalogue's, but with changes of so many per cent."""
    mirror = os.environ.get("TOMOKIT_MIRROR")
    folder = data_root() / f"{HIPPOCAMPUS}-{percent}"
    if not (folder / "dataset.json").is_file():
        origin, make = SIMULATED[HIPPOCAMPUS]
        share = percent / 100
        # the same pairs of each case, so that the names are those of the run's own split
        pairs = make.keywords["pairs"]
        phantoms.simulate_followup_set(folder, get_dataset(origin, source=mirror), pairs=pairs, change=(share, share))
    return folder


def label_of(percent: int) -> str:
    """Return how the rows name a set of hippocampi."""
    return f"hippocampus, {percent} %"


def score_rows(system: str, dataset: str, summary: Mapping[str, Any], common: Mapping[str, Any]) -> list[Row]:
    """Return a row per measure."""
    return [
        {"system": system, "dataset": dataset, "metric": metric, "value": score["mean"]}
        | {"ci95": score["ci95"], "n": score["n"], **common}
        for metric, score in summary.items()
    ]


def run_rows(run_dir: Path, dataset: str) -> list[Row]:
    """Return the rows of an evaluated run and of its rivals."""
    measures = json.loads((run_dir / "metrics.json").read_text())
    training = json.loads((run_dir / "validation.json").read_text())
    common = {"seconds": training["seconds"], "epochs": training["epochs"], "parameters": training["parameters"]}
    common |= {"peak_rss_gb": max(measures["peak_rss_gb"], training["peak_rss_gb"])}
    rows = score_rows("siamese", dataset, measures["summary"], common)
    for name, rival in measures["rivals"].items():
        rows += score_rows(name, dataset, rival["summary"], {"seconds": None, "peak_rss_gb": None})
    return rows


def phantom_rows() -> list[Row]:
    """Return the rows of the phantoms, trained and scored."""
    run_dir = FOLDER / "phantom"
    get_dataset(PHANTOMS)
    bundle_run([config(NAME, "train")], {"run_dir": run_dir, "resume": "true"})
    bundle_run([run_dir / "configs" / "train.yaml", config(NAME, "evaluate")], {})
    return run_rows(run_dir, PHANTOMS)


def hippocampus_rows(percent: int) -> list[Row]:
    """Return the rows of the hippocampi that changed by so many per cent, by the network trained on all sizes."""
    run_dir = FOLDER / "hippocampus"
    get_dataset(HIPPOCAMPUS, source=os.environ.get("TOMOKIT_MIRROR"))
    if not (run_dir / "decision.json").is_file():  # the last that a training writes
        files = [config(NAME, "train"), config(NAME, f"data/{HIPPOCAMPUS}")]
        bundle_run(files, {"run_dir": run_dir, "resume": "true"})
    folder = hippocampus_set(percent)
    bundle_run([run_dir / "configs" / "train.yaml", config(NAME, "evaluate")], {"dataset_dir": folder.resolve()})
    return run_rows(run_dir, label_of(percent))


def control_rows(percent: int) -> list[Row]:
    """Return how often a model of the resampling alone is right, each patient by one that did not see them.

    Over all folds, since among the test pairs of one a coin would pass 55 % too often.
    """
    began = time.perf_counter()
    folder = hippocampus_set(percent)
    entries = read_entries(folder)
    table = pair_table(entries, "resampling")
    place = {entry["case"]: number for number, entry in enumerate(entries)}
    rows: list[Row] = []
    for fold in range(len(json.loads((folder / "splits.json").read_text())["folds"])):
        cases = select_cases(folder, "splits.json", fold)
        seen, test = cases["training"] + cases["validation"], cases["test"]
        models = fit_pairs(table[[place[entry["case"]] for entry in seen]], seen)
        rows += answer_pairs(models, table[[place[entry["case"]] for entry in test]], test)
    right = [(row["p_changed"] > 0.5) == (row["truth"] != "unchanged") for row in rows]
    mean, low, high, n = bootstrap_mean(right, [row["patient"] for row in rows])
    summary = {"order_accuracy": summarise_pairs(rows)["summary"]["order_accuracy"]}
    summary["change_accuracy"] = {"mean": mean, "ci95": [low, high], "n": n}
    common = {"seconds": time.perf_counter() - began, "peak_rss_gb": None}
    return score_rows("control", label_of(percent), summary, common)


def unet_rows(percent: int) -> list[Row]:
    """Return the rows of "segment, then subtract": the U-Net's volumes in both scans of each pair."""
    run_dir, folder = FOLDER / "unet", hippocampus_set(percent)
    files = [config("segmentation", "train"), config("segmentation", "data/hippocampus")]
    bundle_run(files, {"run_dir": run_dir, "resume": "true"})
    cases = select_cases(folder, "splits.json", 0)
    scans, masks = FOLDER / f"scans-{percent}", FOLDER / f"masks-{percent}"
    scans.mkdir(parents=True, exist_ok=True)
    for path in (Path(file) for part in ("validation", "test") for entry in cases[part] for file in entry["image"]):
        if not (scans / path.name).exists():
            (scans / path.name).symlink_to(path.resolve())
    given = {"input": scans.resolve(), "output_dir": masks.resolve()}
    bundle_run([run_dir / "configs" / "train.yaml", config("segmentation", "inference")], given)
    unchanged = [entry for entry in cases["validation"] if entry["label"] == 0]
    decision = choose_change_threshold([certainty(amount_of(entry, masks)) for entry in unchanged], RATE)
    rows = [subtracted(entry, amount_of(entry, masks), decision["threshold"]) for entry in cases["test"]]
    seconds = json.loads((run_dir / "validation.json").read_text())["seconds"]
    common = {"seconds": seconds, "peak_rss_gb": None}
    return score_rows("unet", label_of(percent), summarise_pairs(rows)["summary"], common)


def amount_of(entry: Mapping[str, Any], masks: Path) -> float:
    """Return the change in per cent from the first scan's mask to the second's."""
    first, second = (
        np.count_nonzero(np.asarray(nibabel.load(masks / f"{case_name(path)}.nii.gz").dataobj))
        for path in entry["image"]
    )
    return 100 * (max(second, 1) / max(first, 1) - 1)


def certainty(amount: float) -> float:
    """Return a number of 0–1 that grows with the size of an amount; the threshold gives it its meaning."""
    return 1 - math.exp(-abs(amount) / 10)


def subtracted(entry: Mapping[str, Any], amount: float, threshold: float) -> Row:
    """Return the row of a pair whose amount was measured."""
    p_changed = certainty(amount)
    first = 0.5 if amount == 0 else float(amount < 0)
    names = {"case": entry["case"], "patient": entry["patient"]}
    return names | truth_columns(entry) | answer_columns(p_changed, p_changed > threshold, first, amount)


def chosen_work(groups: Sequence[str]) -> list[tuple[str, str, Callable[[], list[Row]]]]:
    """Return (system, dataset, how to measure it) of what was asked for; the goal's comes last, so its files stay."""
    work: list[tuple[str, str, Callable[[], list[Row]]]] = []
    if "phantom" in groups:
        work.append(("siamese", PHANTOMS, phantom_rows))
    for group, system, measure in (
        ("hippocampus", "siamese", hippocampus_rows),
        ("control", "control", control_rows),
        ("unet", "unet", unet_rows),
    ):
        if group in groups:
            work += [(system, label_of(percent), lambda m=measure, p=percent: m(p)) for percent in PERCENTS]
    return work


def belongs(row: Mapping[str, Any], system: str, dataset: str) -> bool:
    """Return whether a row is measured with this system: a network's rivals are measured with it."""
    together = ("siamese", "otsu", "resampling") if system == "siamese" else (system,)
    return row["dataset"] == dataset and row["system"] in together


def block(rows: Sequence[Row], kind: str) -> str:
    """Return the Markdown table of a kind for the docs: `scores` or `control`."""
    names = list(dict.fromkeys((row["dataset"], row["system"]) for row in rows))
    names = sorted(names, key=lambda name: (name[0], list(SYSTEMS).index(name[1])))
    control = kind == "control"
    head = ["pairs", "", "order right [95 %]"]
    head += ["change right [95 %]"] if control else ["unchanged called changed", "changed called changed", "error, %"]
    metrics = ("order_accuracy", "change_accuracy")
    metrics = metrics if control else ("order_accuracy", "false_positive_rate", "sensitivity", "amount_mae")
    lines = []
    for dataset, system in names:
        own = {row["metric"]: row for row in rows if (row["dataset"], row["system"]) == (dataset, system)}
        if (system == "control") == control:
            lines.append([dataset, SYSTEMS[system], *(cell(own.get(metric)) for metric in metrics)])
    return markdown_table(head, lines)


def cell(row: Mapping[str, Any] | None) -> str:
    """Return a row's value with its interval, as far as it has them."""
    if row is None or row["value"] is None:
        return "–"
    return show_interval(dict(row)) if row["ci95"] else f"{row['value']:.3f}"


def verdict(row: Mapping[str, Any]) -> str:
    """Return whether a row's goal is met; nothing where it has none."""
    goals = {
        ("siamese", "order_accuracy"): row["value"] is not None and row["value"] >= ORDER_GOAL,
        ("siamese", "false_positive_rate"): row["value"] is not None and row["value"] <= RATE,
    }
    if row["system"] == "control":
        return f"≤ {CONTROL_GOAL}: " + ("met" if row["value"] <= CONTROL_GOAL else "missed")
    key = (row["system"], row["metric"])
    if key not in goals or row["dataset"] != label_of(GOAL_PERCENT):
        return ""
    goal = f"≥ {ORDER_GOAL}" if key[1] == "order_accuracy" else f"≤ {RATE}"
    return f"{goal}: " + ("met" if goals[key] else "missed")


def show(rows: Sequence[Row]) -> None:
    """Print all rows."""
    table = Table("pairs", "system", "measure", "value [95 %]", "patients", "goal")
    for row in rows:
        table.add_row(row["dataset"], row["system"], row["metric"], cell(row), str(row["n"]), verdict(row))
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=GROUPS)
    parser.add_argument("--full", action="store_true", help="all groups")
    options = parser.parse_args()
    rows = load_rows(NAME)
    for system, dataset, measure in chosen_work(options.only or (GROUPS if options.full else PLAIN)):
        if any(belongs(row, system, dataset) for row in rows):
            print(f"{system}, {dataset}: measured already; delete its rows in results/{NAME}.json to measure it again")
            continue
        kept = [row for row in rows if not belongs(row, system, dataset)]
        rows = save_rows(NAME, COMMAND, kept, measure())
        fill_blocks(NAME, lambda words, rows=rows: block(rows, *words))
    show(rows)


if __name__ == "__main__":
    main()
