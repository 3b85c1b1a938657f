"""Join images with clinical records, and modalities with each other, beside each arm alone and the best possible.

Command: make bench NAME=fusion [ONLY="phantom-ct-records chest_xray_clinical"] [FULL=1]

Plain: the joint network and its two arms, each trained the same way; FULL=1 also the other two ways to join. The best
possible is computed from the phantoms' own model. AUCs are compared by DeLong's test, of several images of a patient by
the bootstrap over patients. A row is written when it is finished; a stopped benchmark goes on where it was.
"""

import argparse
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from blocks import fill_blocks, markdown_table, show_interval
from commands import bundle_run
from records import load_rows, save_rows
from rich.console import Console
from rich.table import Table

from tomokit import phantoms, rivals
from tomokit.bundles import find_bundle
from tomokit.catalogue import get_dataset
from tomokit.datasets import Entry, read_entries, read_sections, select_cases
from tomokit.ensembles import read_rows
from tomokit.errors import TomokitError
from tomokit.files import read_json, write_json, write_table
from tomokit.metrics import area_under_curve
from tomokit.records import read_records
from tomokit.splits import Split, draw_folds, write_split
from tomokit.statistics import bootstrap_statistic, delong

NAME, COMMAND = "fusion", "make bench NAME=fusion FULL=1"
FOLDER = Path("runs") / NAME
CONFIGS = find_bundle(NAME) / "configs"
RECORDS = ("phantom-ct-records", "phantom-ct-records-gaps")
MODALITIES, CHEST = "phantom-modalities", "chest_xray_clinical"
SETS = (*RECORDS, MODALITIES, CHEST)
JOINT = "joint"
NETWORKS = {JOINT: "", "image": "image_only", "record": "record_only", "film": "film", "concatenate": "concatenate"}
MORE = ("film", "concatenate")  # with FULL=1
KINDS = ("T1", "FLAIR")
FOLDS = 5
ARM, DISTANCE, LEAST_P = 0.80, 0.03, 0.05
HEAD = ["", "AUC [95 %]", "joint − this [95 %]", "p"]
# what is compared with what, the first minus the second
PAIRS = {
    **{name: [(JOINT, arm) for arm in ("image", "record", "best", *MORE)] for name in RECORDS},
    MODALITIES: [
        *(("both", name) for name in (*KINDS, "best")),
        ("both, T1 missing", "FLAIR"),
        ("both, T1 missing", "best of FLAIR"),
        ("both, FLAIR missing", "T1"),
        ("both, FLAIR missing", "best of T1"),
    ],
    CHEST: [(JOINT, name) for name in ("image", "record", *MORE, "logistic of record", "projection")],
}
Row = dict[str, Any]


# Training


def train(run_dir: Path, layers: Sequence[str], overrides: Mapping[str, Any], checkpoint: str = "best") -> Row:
    """Train and score a run from the beginning, and return its seconds, memory and parameters."""
    shutil.rmtree(run_dir, ignore_errors=True)
    files = [CONFIGS / "train.yaml", *(CONFIGS / f"{name}.yaml" for name in layers)]
    if checkpoint == "last":  # no case to choose an epoch by
        files.append(CONFIGS.parents[1] / "_layers" / "all_cases.yaml")
    seconds = bundle_run(files, {"run_dir": run_dir, **overrides})
    rivals_wanted = {"rival": "false", "feature_models": "[]"} if checkpoint == "last" else {}
    scoring = [run_dir / "configs" / "train.yaml", CONFIGS / "evaluate.yaml"]
    bundle_run(scoring, {"checkpoint": checkpoint, **rivals_wanted})
    training = read_json(run_dir / "validation.json")
    return {"seconds": seconds, "peak_rss_gb": training["peak_rss_gb"], "parameters": training["parameters"]}


def network_layers(system: str) -> list[str]:
    """Return the layer of a way to join image and record, or of an arm."""
    return [f"networks/{NETWORKS[system]}"] if NETWORKS[system] else []


def measure_records(dataset: str, system: str) -> list[Row]:
    """Return the rows of a network on images with records; the joint one's with those of the rivals."""
    run_dir = FOLDER / dataset / system
    spent = train(run_dir, network_layers(system), {"dataset_dir": dataset})
    keep(dataset, system, read_rows(run_dir / "cases.csv"))
    return [auc_row(dataset, system, spent), *(rival_rows(dataset, run_dir) if system == JOINT else [])]


def rival_rows(dataset: str, run_dir: Path) -> list[Row]:
    """Return the rows of the rivals that a run was scored beside."""
    scores = {name: own["summary"]["auc"] for name, own in read_json(run_dir / "metrics.json")["rivals"].items()}
    return [
        make_row(dataset, f"rival: {name}", "auc", score["mean"], score["ci95"], score["n"])
        for name, score in scores.items()
    ]


def measure_modalities(dataset: str, system: str) -> list[Row]:
    """Return the rows of a network on two modalities, one alone, or both and each of them missing in use."""
    source, run_dir = get_dataset(dataset), FOLDER / dataset / system
    layers = [f"data/{dataset}", "modes/modalities"]
    if system in KINDS:
        other = leave_out(source, FOLDER / dataset / f"only {system}", 1 - KINDS.index(system))
        spent = train(run_dir, layers, {"dataset_dir": other})
        keep(dataset, system, read_rows(run_dir / "cases.csv"))
        return [auc_row(dataset, system, spent)]
    spent = train(run_dir, layers, {"dataset_dir": dataset})
    keep(dataset, system, read_rows(run_dir / "cases.csv"))
    rows = [auc_row(dataset, system, spent), *rival_rows(dataset, run_dir)]
    for place, kind in enumerate(KINDS):
        lacking = leave_out(source, FOLDER / dataset / f"without {kind}", place)
        keep(dataset, f"both, {kind} missing", use_run(run_dir, lacking))
        rows.append(auc_row(dataset, f"both, {kind} missing", {}))
    return rows


def leave_out(source: Path, target: Path, place: int) -> Path:
    """Return the absolute folder of a data set whose cases lack one modality."""
    content = read_json(source / "dataset.json")
    for entry in [*content["training"], *content["test"]]:
        paths = [str(source.resolve() / path) for path in entry["image"]]
        entry["image"] = [None if number == place else path for number, path in enumerate(paths)]
    write_json(target / "dataset.json", content)
    shutil.copy(source / "splits.json", target / "splits.json")
    return target.resolve()


def use_run(run_dir: Path, dataset_dir: Path) -> list[Row]:
    """Return the rows of a run used on the test cases of a data set, as its inference writes them."""
    files = [run_dir / "configs" / "train.yaml", CONFIGS / "inference.yaml"]
    output = run_dir / "lacking"
    bundle_run(files, {"dataset_dir": dataset_dir, "output_dir": output})
    rows = read_rows(output / "classes.csv")
    names = [key.removeprefix("p_") for key in rows[0] if key.startswith("p_")]
    entries = {entry["case"]: entry for entry in read_sections(dataset_dir)["test"]}
    truths = {case: {"patient": entry["patient"], "truth": names[entry["label"]]} for case, entry in entries.items()}
    return [row | truths[row["case"]] for row in rows]


def measure_chest(dataset: str, system: str) -> list[Row]:
    """Return the rows of a network on radiographs, cross-validated by patient; the joint one's with those of rivals."""
    folder = get_dataset(dataset, source=os.environ.get("TOMOKIT_MIRROR"))
    split = write_folds(read_entries(folder))
    layers = [f"data/{dataset}", *network_layers(system)]
    spent, rows = [], []
    for fold in range(FOLDS):
        run_dir = FOLDER / dataset / system / f"fold_{fold}"
        overrides = {"dataset_dir": folder.resolve(), "split": split, "fold": fold}
        spent.append(train(run_dir, layers, overrides, checkpoint="last"))
        rows += read_rows(run_dir / "cases.csv")
    keep(dataset, system, rows)
    total = spent[0] | {"seconds": sum(own["seconds"] for own in spent)}
    found = [auc_row(dataset, system, total)]
    if system == JOINT:
        keep(dataset, "logistic of record", score_records(folder, split))
        entries = {entry["case"]: entry for entry in read_entries(folder)}
        ap = [float(entries[row["case"]]["clinical"]["projection"] == "ap") for row in rows]
        positive = [key for key in rows[0] if key.startswith("p_")][-1]
        keep(dataset, "projection", [{**row, positive: value} for row, value in zip(rows, ap, strict=True)])
        found += [auc_row(dataset, name, {}) for name in ("logistic of record", "projection")]
    return found


def write_folds(entries: Sequence[Entry]) -> Path:
    """Return the absolute path of a file of folds by patient, stratified by class."""
    path = (FOLDER / CHEST / "splits.json").resolve()
    folds = draw_folds(entries, FOLDS, seed=0)
    write_split(path, Split(f"{FOLDS} folds by patient", 0, "class", folds), entries)
    return path


def score_records(folder: Path, split: Path) -> list[Row]:
    """Return the rows of a logistic regression on the record, in the same folds."""
    labels = read_json(folder / "dataset.json")["labels"]
    rows = []
    for fold in range(FOLDS):
        cases = select_cases(folder, split, fold, join_validation=True, keep=["clinical"])
        fitted = read_records(FOLDER / CHEST / JOINT / f"fold_{fold}")
        rows += rivals.score_record(cases["training"], cases["test"], labels, fitted)
    return rows


# Scores


def keep(dataset: str, system: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep what a system says of each case: the probability of the last class."""
    positive = [key for key in rows[0] if key.startswith("p_")][-1]
    table = [
        {
            "case": row["case"],
            "patient": row["patient"],
            "truth": int(row["truth"] == positive.removeprefix("p_")),
            "p": row[positive],
        }
        for row in rows
    ]
    write_table(table_of(dataset, system), table)


def keep_best(dataset: str) -> None:
    """Keep the best possible probabilities of the test cases, from all that is known and from each arm."""
    entries = read_sections(get_dataset(dataset))["test"]
    for entry in entries:
        if dataset == MODALITIES:
            u, v = entry["t1_factor"], entry["flair_factor"]
            known = {"best": (u, v), "best of T1": (u, None), "best of FLAIR": (None, v)}
            best = {name: phantoms.best_probability_of_modalities(*given) for name, given in known.items()}
        else:
            u, record = entry["image_factor"], entry["clinical"]
            given = {"best": (u, record), "best of image": (u, {}), "best of record": (None, record)}
            best = {name: phantoms.best_probability(*own) for name, own in given.items()}
        entry["best"] = best
    for name in entries[0]["best"]:
        keep(dataset, name, [best_row(entry, name) for entry in entries])


def best_row(entry: Entry, name: str) -> Row:
    """Return what the best possible says of a case, as a table of cases has it."""
    told = {"case": entry["case"], "patient": entry["patient"], "truth": str(entry["label"])}
    return told | {"p_1": entry["best"][name]}


def table_of(dataset: str, system: str) -> Path:
    """Return where the probabilities of a system are kept."""
    return FOLDER / dataset / "tables" / f"{system}.csv"


def auc_row(dataset: str, system: str, spent: Mapping[str, Any]) -> Row:
    """Return the AUC of a system whose probabilities are kept, with its interval by patient."""
    table = read_rows(table_of(dataset, system))
    truth, p = np.array([row["truth"] == "1" for row in table]), np.array([row["p"] for row in table])
    found = bootstrap_statistic(area_under_curve, [truth, p], [row["patient"] for row in table])
    return make_row(dataset, system, "auc", found.mean, [found.low, found.high], found.n_patients) | dict(spent)


def make_row(dataset: str, system: str, metric: str, value: float | None, ci95: Any, n: int | None) -> Row:
    """Return a row in the form that all benchmarks share."""
    row = {"system": system, "dataset": dataset, "metric": metric, "value": value, "ci95": ci95, "n": n}
    return row | {"seconds": None, "peak_rss_gb": None}


def compare(dataset: str, first: str, second: str) -> list[Row]:
    """Return the row of one system's AUC minus another's on the same cases; none where one was not measured."""
    if not all(table_of(dataset, name).is_file() for name in (first, second)):
        return []
    own = read_rows(table_of(dataset, first))
    others = {row["case"]: row["p"] for row in read_rows(table_of(dataset, second))}
    truth, patients = np.array([row["truth"] == "1" for row in own]), [row["patient"] for row in own]
    a, b = np.array([row["p"] for row in own]), np.array([others[row["case"]] for row in own])
    if len(set(patients)) == len(patients):
        found = delong(truth, a, b)
        value, ci95, p = found.difference, [found.low, found.high], found.p
    else:
        interval = bootstrap_statistic(subtract_areas, [truth, a, b], patients)
        value, ci95, p = interval.mean, [interval.low, interval.high], None
    return [make_row(dataset, first, f"auc - {second}", value, ci95, len(set(patients))) | {"p": p}]


def subtract_areas(truth: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """Return the AUC of the first scores minus that of the second."""
    return area_under_curve(truth, a) - area_under_curve(truth, b)


def missing_share(dataset: str) -> float:
    """Return the share of the test cases' fields that are missing."""
    records = [entry["clinical"] for entry in read_sections(get_dataset(dataset))["test"]]
    return float(np.mean([value is None for record in records for value in record.values()]))


# Tables


def lines(rows: Sequence[Row], dataset: str) -> list[list[str]]:
    """Return the cells of a data set's table: each system's AUC, and the joint network's lead over it."""
    own = [row for row in rows if row["dataset"] == dataset]
    joint = PAIRS[dataset][0][0]
    found = []
    for row in (row for row in own if row["metric"] == "auc" and row["value"] is not None):
        leads = [other for other in own if (other["system"], other["metric"]) == (joint, f"auc - {row['system']}")]
        lead = show_interval(leads[0], sign="+") if leads else "—"
        found.append([row["system"], show_interval(row), lead, show_p(leads[0]["p"]) if leads else "—"])
    return found


def show_p(p: float | None) -> str:
    """Return a p value; by the bootstrap there is none."""
    return "—" if p is None else "< .001" if p < 0.001 else f"{p:.3f}"


def block(rows: Sequence[Row], dataset: str) -> str:
    """Return a data set's table in Markdown."""
    return markdown_table(HEAD, lines(rows, dataset))


def tell_goals(rows: Sequence[Row], dataset: str) -> list[str]:
    """Return whether the joint network is above both arms, near the best possible, and each arm hard enough."""
    own = {(row["system"], row["metric"]): row for row in rows if row["dataset"] == dataset}
    told = []
    for arm in ("image", "record"):
        if row := own.get((JOINT, f"auc - {arm}")):
            met = row["value"] > 0 and row["p"] < LEAST_P
            told.append(f"joint − {arm} {row['value']:+.3f}, p {show_p(row['p'])} < {LEAST_P}: {show_met(met)}")
        if row := own.get((f"best of {arm}", "auc")):
            told.append(f"best possible of the {arm} {row['value']:.3f} ≤ {ARM:.2f}: {show_met(row['value'] <= ARM)}")
    joint = PAIRS[dataset][0][0]
    if row := own.get((joint, "auc - best")):
        met = row["value"] >= -DISTANCE
        told.append(f"{joint} − best possible {row['value']:+.3f} ≥ −{DISTANCE}: {show_met(met)}")
    return told


def show_met(met: bool) -> str:
    """Return a goal's outcome in a word."""
    return "met" if met else "missed"


def show(rows: Sequence[Row], dataset: str) -> None:
    """Print a data set's table, and its goals."""
    console = Console(width=120)
    table = Table(*HEAD, title=dataset, title_justify="left")
    for cells in lines(rows, dataset):
        table.add_row(*cells)
    console.print(table)
    if dataset in RECORDS:
        console.print(f"{missing_share(dataset):.0%} of the test cases' fields are missing")
    if dataset != CHEST:  # nobody knows the best possible there
        for line in tell_goals(rows, dataset):
            console.print(line)
    for row in rows:
        if row["dataset"] == dataset and row["metric"].startswith("auc - ") and "missing" in row["system"]:
            other = row["metric"].removeprefix("auc - ")
            lead = f"{show_interval(row, sign='+')}, p {show_p(row['p'])}"
            console.print(f"{row['system']} − {other}: {lead}")


def systems_of(dataset: str, full: bool) -> list[str]:
    """Return what is trained on a data set."""
    if dataset == MODALITIES:
        return ["both", *KINDS]
    return [name for name in NETWORKS if full or name not in MORE]


def measure(dataset: str, system: str) -> list[Row]:
    """Return the rows of one system on one data set; of what could not be had, one that says why."""
    ways = {MODALITIES: measure_modalities, CHEST: measure_chest}
    try:
        return ways.get(dataset, measure_records)(dataset, system)
    except TomokitError as error:
        return [make_row(dataset, system, "auc", None, None, None) | {"note": str(error)}]


def measure_set(rows: list[Row], dataset: str, full: bool) -> list[Row]:
    """Return all rows, with those of one data set that were not there yet."""
    if dataset != CHEST:
        get_dataset(dataset)
        keep_best(dataset)
    for system in systems_of(dataset, full):
        if any((row["system"], row["dataset"]) == (system, dataset) and row["value"] is not None for row in rows):
            print(f"{system}, {dataset}: measured already; delete its rows in results/{NAME}.json to measure it again")
            continue
        found = measure(dataset, system)
        replaced = {(row["system"], row["metric"]) for row in found}
        kept = [row for row in rows if row["dataset"] != dataset or (row["system"], row["metric"]) not in replaced]
        rows = save_rows(NAME, COMMAND, kept, found)
    best = sorted(path.stem for path in (FOLDER / dataset / "tables").glob("best*.csv"))
    found = [auc_row(dataset, name, {}) for name in best]
    found += [row for pair in PAIRS[dataset] for row in compare(dataset, *pair)]
    replaced = {(row["system"], row["metric"]) for row in found}
    kept = [row for row in rows if row["dataset"] != dataset or (row["system"], row["metric"]) not in replaced]
    return save_rows(NAME, COMMAND, kept, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=SETS)
    parser.add_argument("--full", action="store_true", help="also the other ways to join image and record")
    options = parser.parse_args()
    rows = load_rows(NAME)
    for dataset in options.only or SETS:
        rows = measure_set(rows, dataset, options.full)
        fill_blocks(NAME, lambda words, rows=rows: block(rows, words[0]))
        show([row for row in rows if row["value"] is not None], dataset)


if __name__ == "__main__":
    main()
