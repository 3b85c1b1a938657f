"""Tell hyperplastic adrenal glands from normal ones by their shape: networks, with and without measures, and rivals.

Command: make bench NAME=adrenal [SIZE=64] [ONLY="resnet resnet+features features"] [FULL=1]

AdrenalMNIST3D's own parts. Each network is trained with five seeds; epoch and temperature are chosen on the validation
part, and the test part is scored once. With the measures they are the same trained networks, whose logits are averaged
with those of a regression of the measures. A row is the mean of the five, its interval that of other glands (bootstrap)
and its time that of a training and its evaluation. `chosen` and `chosen+features` are the networks with the best mean
validation AUC, without and with the measures; their test score is the claim. Each network is compared with the
measures alone (`features`, a logistic regression) by DeLong's test on the same cases. Beside them stand five-fold
cross-validated AUCs over the training and validation part, which no test case is in: of the measures and the chosen
networks, with FULL=1 of all.

What is done is kept in runs/adrenal28 or runs/adrenal64, seed by seed; a stopped benchmark goes on where it was.
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from blocks import fill_blocks, markdown_table, show_interval
from commands import bundle_run
from numpy.typing import NDArray
from records import load_rows, save_rows
from rich.console import Console
from rich.table import Table

from tomokit.bundles import find_bundle
from tomokit.catalogue import get_dataset
from tomokit.datasets import read_sections
from tomokit.ensembles import read_rows
from tomokit.files import read_json, write_json
from tomokit.metrics import area_under_curve, calibration_error
from tomokit.rivals import feature_table, make_classifier
from tomokit.splits import draw_folds
from tomokit.statistics import bootstrap_statistics, delong

NAME = "adrenal"
DATA = {28: "adrenalmnist3d", 64: "adrenalmnist3d_64"}
POSITIVE = "hyperplasia"
MASK_ABOVE = 127
SEEDS, FOLDS = range(5), range(5)
JOINED = "+features"
METRICS = ("auc", "acc", "ece")
HEAD = ["system", "AUC [95 %]", "accuracy", "ECE", "AUC − features' [95 %]", "cross-validated", "time", "parameters"]
DENSE = "network_def::network::network::"
FOUR_BLOCKS = {DENSE + "block_config": [4, 4, 4, 4]}
# of each network by the volumes' edge: what differs from its layer, so that two CPU cores bear it
NETWORKS: dict[int, dict[str, dict[str, Any]]] = {
    28: {
        "resnet": {},
        "densenet": FOUR_BLOCKS | {DENSE + "init_features": 16, DENSE + "growth_rate": 8},
        "inception": {"epochs": 15},
        "cnn": {},
        "senet": {"network_def::inplanes": 16, "epochs": 10},
        "sequence": {},
    },
    64: {  # each within a few minutes on one core
        "resnet": {},
        "densenet": FOUR_BLOCKS | {DENSE + "init_features": 8, DENSE + "growth_rate": 8, "epochs": 6},
        "inception": {"network_def::width": 4, "epochs": 3},
        "cnn": {"network_def::filters": [8, 16, 32, 64], "epochs": 9},
        "senet": {"network_def::inplanes": 8, "epochs": 2},
        "sequence": {"epochs": 6},
    },
}
CLASSICAL = {"features": "logistic", "tree": "tree", "perceptron": "perceptron", "best-feature": "threshold"}
SYSTEMS = [*CLASSICAL, *(name + joined for joined in ("", JOINED) for name in NETWORKS[28])]
CHOSEN = {"chosen": "", "chosen" + JOINED: JOINED}
GOALS = (("chosen" + JOINED, "auc", 0.90), ("chosen", "auc", 0.85))
MOST_ECE, MOST_MINUTES = 0.05, 5.0
Truth = NDArray[np.bool_]
Chances = NDArray[np.float64]  # of hyperplasia: (cases, trainings)


def name_of(size: int) -> str:
    """Return the data set's name in the rows."""
    return f"{NAME}{size}"


# ------------------------------------------------------------------------------------------------ trainings


def train_and_score(size: int, system: str, run_dir: Path, overrides: Mapping[str, Any]) -> None:
    """Train and score one network, unless that was done; a training that was stopped is gone on with."""
    if (run_dir / "seconds.json").is_file():
        return
    configs = find_bundle("classification") / "configs"
    network = system.removesuffix(JOINED)
    files = [configs / "train.yaml", configs / "data" / f"{DATA[size]}.yaml"]
    files += [] if network == "resnet" else [configs / "networks" / f"{network}.yaml"]
    resumed = (run_dir / "checkpoints" / "last.pt").is_file()
    given = {"run_dir": run_dir, "resume": str(resumed).lower()} | NETWORKS[size][network] | dict(overrides)
    before = 0.0
    if system.endswith(JOINED):
        alone = alone_of(run_dir)
        train_and_score(size, network, alone, overrides)
        before = read_json(alone / "validation.json")["seconds"]
        files.append(configs / "modes" / "features.yaml")
        given["pretrained"] = alone
    seconds = bundle_run(files, given)
    if resumed:  # what went before is known without the program's start
        seconds = max(seconds, read_json(run_dir / "validation.json")["seconds"])
    evaluate = [run_dir / "configs" / "train.yaml", configs / "evaluate.yaml"]
    seconds += before + bundle_run(evaluate, {"rival": "false", "feature_models": "[]"})
    write_json(run_dir / "seconds.json", {"seconds": seconds, "resumed": resumed})


def alone_of(run_dir: Path) -> Path:
    """Return the run of a network without measures, which is its own if it has none."""
    return run_dir.parents[1] / run_dir.parent.name.removesuffix(JOINED) / run_dir.name


def read_chances(runs: Sequence[Path]) -> tuple[list[str], Truth, Chances]:
    """Return the cases of scored runs, which of them are positive, and each run's probabilities (cases, runs)."""
    tables = [{row["case"]: row for row in read_rows(run / "cases.csv")} for run in runs]
    cases = sorted(tables[0])
    assert all(sorted(table) == cases for table in tables), "the seeds must be scored on the same cases"
    truth = np.array([tables[0][case]["truth"] == POSITIVE for case in cases])
    chances = np.array([[table[case][f"p_{POSITIVE}"] for table in tables] for case in cases])
    return cases, truth, chances


def network_rows(size: int, system: str, features: Chances) -> list[dict[str, Any]]:
    """Return the rows of a network trained with all seeds; `features` are the measures' probabilities (cases, 1)."""
    runs = [Path("runs") / name_of(size) / system / f"seed_{seed}" for seed in SEEDS]
    for seed, run in zip(SEEDS, runs, strict=True):
        train_and_score(size, system, run, {"seed": seed})
    _, truth, chances = read_chances(runs)
    validated = [read_json(run / "validation.json") for run in runs]
    trained = [read_json(alone_of(run) / "validation.json") for run in runs]
    memory = [record["peak_rss_gb"] for record in [*validated, *trained]]
    memory += [read_json(run / "metrics.json")["peak_rss_gb"] for run in runs]
    common = {
        "seconds": float(np.mean([read_json(run / "seconds.json")["seconds"] for run in runs])),
        "peak_rss_gb": max(memory),
        "parameters": validated[0]["parameters"],
        "epochs": trained[0]["epochs"],
        "validation_auc": float(np.mean([record["best"]["metric"] for record in validated])),
    }
    rows = metric_rows(size, system, truth, chances, common)
    return [*rows, difference_row(size, system, truth, (chances, features), common)]


# ------------------------------------------------------------------------------------------------- measures


def scores(truth: Truth, *columns: NDArray[np.float64]) -> list[float]:
    """Return the mean over trainings of the AUC, the accuracy and the calibration error; a column of each training."""
    measured = []
    for chances in columns:
        right = (chances >= 0.5) == truth
        error = calibration_error(right, np.maximum(chances, 1 - chances))
        measured.append([area_under_curve(truth, chances), float(right.mean()), error])
    return [float(value) for value in np.mean(measured, axis=0)]


def metric_rows(
    size: int, system: str, truth: Truth, chances: Chances, common: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return a row for each of `METRICS`: the mean over trainings, its interval by cases, and each training's own."""
    intervals = bootstrap_statistics(scores, [truth, *chances.T], range(len(truth)))
    own = np.array([scores(truth, column) for column in chances.T]).T
    return [
        {"system": system, "dataset": name_of(size), "metric": metric, "value": interval.mean}
        | {"ci95": [interval.low, interval.high], "n": len(truth), "by_seed": values.tolist()}
        | dict(common)
        for metric, interval, values in zip(METRICS, intervals, own, strict=True)
    ]


def difference_row(
    size: int, system: str, truth: Truth, pair: tuple[Chances, Chances], common: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the row of a system's AUC less that of the measures alone, with what DeLong's test says of it."""
    found = delong(truth, *pair)
    names = {"system": system, "dataset": name_of(size), "metric": "auc - features", "value": found.difference}
    told = {"ci95": [found.low, found.high], "n": len(truth), "p": found.p, "verdict": found.verdict}
    return names | told | dict(common)


# -------------------------------------------------------------------------------------------- the measures alone


class Measured:
    """The measures of all glands of a size, taken once.

    Args:
        size: the volumes' edge.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.sections = read_sections(get_dataset(DATA[size]))
        entries = [entry for part in self.sections.values() for entry in part]
        _, table = feature_table(entries, MASK_ABOVE)
        self.of_case = {entry["case"]: values for entry, values in zip(entries, table, strict=True)}
        self.label = {entry["case"]: int(entry["label"]) for entry in entries}

    def table(self, cases: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the measures (cases, features) and the classes of cases."""
        return np.stack([self.of_case[case] for case in cases]), np.array([self.label[case] for case in cases])

    def predict(self, model: str, training: Sequence[str], test: Sequence[str]) -> Chances:
        """Return the probabilities (cases, 1) of test cases by a classifier that was fitted on the training cases."""
        fitted = make_classifier(model).fit(*self.table(training))
        return np.asarray(fitted.predict_proba(self.table(test)[0])[:, 1:])

    def on_test(self, model: str) -> tuple[Truth, Chances]:
        """Return the truth and the probabilities of the test cases, in the order of their names."""
        training = [entry["case"] for entry in self.sections["training"]]
        test = sorted(entry["case"] for entry in self.sections["test"])
        return self.table(test)[1] == 1, self.predict(model, training, test)

    def folds(self) -> list[dict[str, list[str]]]:
        """Return the folds of the cross-validation, over the training and validation part."""
        known = [*self.sections["training"], *self.sections["validation"]]
        return draw_folds(known, len(FOLDS), seed=0)


def classical_rows(measured: Measured, system: str) -> list[dict[str, Any]]:
    """Return the rows of a classifier on the measures."""
    truth, chances = measured.on_test(CLASSICAL[system])
    common = {"seconds": None, "peak_rss_gb": None, "parameters": None}
    rows = metric_rows(measured.size, system, truth, chances, common)
    if system == "features":
        return rows
    return [*rows, difference_row(measured.size, system, truth, (chances, measured.on_test("logistic")[1]), common)]


# ------------------------------------------------------------------------------------------- cross-validation


def crossval_rows(measured: Measured, system: str) -> list[dict[str, Any]]:
    """Return the row of a system's cross-validated AUC: the mean of the folds'."""
    folds = measured.folds()
    if system in CLASSICAL:
        truth, chances, places = _classical_folds(measured, CLASSICAL[system], folds)
    else:
        truth, chances, places = _network_folds(measured.size, system, folds)
    interval = bootstrap_statistics(_fold_auc, [truth, chances, places], range(len(truth)))[0]
    names = {"system": system, "dataset": name_of(measured.size), "metric": "auc cv", "value": interval.mean}
    told = {"ci95": [interval.low, interval.high], "n": len(truth), "folds": len(folds)}
    return [names | told | {"seconds": None, "peak_rss_gb": None}]


def _fold_auc(truth: Truth, chances: NDArray[np.float64], places: NDArray[np.int64]) -> list[float]:
    """Return the mean of the folds' AUCs, each of its own network."""
    areas = [area_under_curve(truth[places == fold], chances[places == fold]) for fold in FOLDS]
    return [float(np.mean(areas))]


def _classical_folds(measured: Measured, model: str, folds: Sequence[Mapping[str, list[str]]]) -> tuple[Any, Any, Any]:
    """Return truth, probabilities and fold of each case, by classifiers on the measures."""
    tests = [fold["test"] for fold in folds]
    known = [measured.predict(model, fold["training"] + fold["validation"], fold["test"])[:, 0] for fold in folds]
    truth = np.concatenate([measured.table(test)[1] == 1 for test in tests])
    return truth, np.concatenate(known), np.repeat(list(FOLDS), [len(test) for test in tests])


def _network_folds(size: int, system: str, folds: Sequence[Mapping[str, list[str]]]) -> tuple[Any, Any, Any]:
    """Return truth, probabilities and fold of each case, by a network trained on each fold with the first seed."""
    folder = Path("runs") / name_of(size)
    split = folder / "folds.json"
    write_json(split, {"folds": list(folds)})
    truths, known = [], []
    for number in FOLDS:
        run = folder / system / f"fold_{number}"
        train_and_score(size, system, run, {"seed": 0, "split": split.resolve(), "fold": number})
        _, truth, chances = read_chances([run])
        truths.append(truth)
        known.append(chances[:, 0])
    return np.concatenate(truths), np.concatenate(known), np.repeat(list(FOLDS), [len(truth) for truth in truths])


# ----------------------------------------------------------------------------------------------------- rows


def chosen_rows(rows: Sequence[Mapping[str, Any]], size: int) -> list[dict[str, Any]]:
    """Return the rows of the networks with the best validation AUC so far, as `chosen` and `chosen+features`."""
    own = [row for row in rows if row["dataset"] == name_of(size)]
    found = []
    for label, joined in CHOSEN.items():
        names = {name + joined for name in NETWORKS[size]}
        areas = [row for row in own if row["system"] in names and row["metric"] == "auc"]
        known = {row["system"]: row["validation_auc"] for row in areas}
        if not known:
            continue
        best = max(known, key=lambda name: known[name])
        about = {"network": best, "among": sorted(known)}
        found += [{**row, "system": label, **about} for row in own if row["system"] == best]
    return found


def add_rows(
    rows: list[dict[str, Any]], size: int, system: str, metric: str, measure: Callable[[], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Return all rows with those of a system, measured now unless its row of that metric is there."""
    key = (system, name_of(size), metric)
    if any((row["system"], row["dataset"], row["metric"]) == key for row in rows):
        told = f"{system}, {name_of(size)}, {metric}"
        print(f"{told}: measured already; to repeat it, delete its rows in results/{NAME}.json")
        return rows
    rows = save(rows, measure())
    kept = [row for row in rows if row["system"] not in CHOSEN or row["dataset"] != name_of(size)]
    return save(kept, chosen_rows(kept, size))


def save(kept: list[dict[str, Any]], measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all rows, written to the benchmark's file and into the docs."""
    rows = save_rows(NAME, f"make bench NAME={NAME}", kept, measured)
    fill_blocks(NAME, lambda words: markdown_table(HEAD, table_lines(rows, int(words[0]))))
    return rows


# ---------------------------------------------------------------------------------------------------- tables


def table_lines(rows: Sequence[Mapping[str, Any]], size: int) -> list[list[str]]:
    """Return the cells of the table of one size, a line per system, the chosen networks first."""
    by_name: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["dataset"] == name_of(size):
            by_name.setdefault(row["system"], {})[row["metric"]] = row
    found = []
    for system in [*CHOSEN, *SYSTEMS]:
        own = by_name.get(system, {})
        if "auc" not in own:
            continue
        difference, time_taken, weights = "—", own["auc"].get("seconds"), own["auc"].get("parameters")
        if tested := own.get("auc - features"):
            difference = f"{show_interval(dict(tested), 3, '+')}, p {tested['p']:.3f}: {tested['verdict']}"
        found.append(
            [
                f"{system}: {own['auc']['network']}" if "network" in own["auc"] else system,
                *(show_interval(dict(own[metric])) for metric in METRICS),
                difference,
                show_interval(dict(own["auc cv"])) if "auc cv" in own else "—",
                "—" if time_taken is None else f"{time_taken / 60:.1f} min",
                "—" if weights is None else f"{weights / 1e6:.2f}M",
            ]
        )
    return found


def show(rows: Sequence[Mapping[str, Any]], size: int) -> None:
    """Print the table of one size, and whether the goals are met, which are those of 28³."""
    console = Console(width=180)
    table = Table(*HEAD)
    for cells in table_lines(rows, size):
        table.add_row(*cells)
    console.print(table)
    own = {(row["system"], row["metric"]): row for row in rows if row["dataset"] == name_of(size)}
    for system, metric, least in GOALS:
        if row := own.get((system, metric)):
            met = "met" if row["value"] >= least else "missed"
            console.print(f"{system} ({row['network']}): test {metric} {row['value']:.4f}, goal ≥ {least:.2f}: {met}")
            met = "met" if row["seconds"] <= 60 * MOST_MINUTES else "missed"
            console.print(f"  {row['seconds'] / 60:.1f} minutes per seed, goal ≤ {MOST_MINUTES:g}: {met}")
    if row := own.get(("chosen" + JOINED, "ece")):
        met = "met" if row["value"] <= MOST_ECE else "missed"
        console.print(f"{row['system']} ({row['network']}): ECE {row['value']:.3f}, goal ≤ {MOST_ECE:.2f}: {met}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=28, choices=list(DATA), help="the volumes' edge in voxels")
    parser.add_argument("--only", nargs="*", choices=SYSTEMS)
    parser.add_argument("--full", action="store_true", help="cross-validate every network, not the chosen ones alone")
    options = parser.parse_args()
    size = options.size
    get_dataset(DATA[size], source=os.environ.get("TOMOKIT_MIRROR"))
    measured = Measured(size)
    rows = load_rows(NAME)
    systems = options.only or SYSTEMS
    for system in systems:
        if system in CLASSICAL:
            rows = add_rows(rows, size, system, "auc", partial(classical_rows, measured, system))
        else:
            features = measured.on_test(CLASSICAL["features"])[1]
            rows = add_rows(rows, size, system, "auc", partial(network_rows, size, system, features))
    chosen = [row["network"] for row in rows if row["system"] in CHOSEN and row["dataset"] == name_of(size)]
    beside = systems if options.full else ["features", *dict.fromkeys(chosen)]
    for system in beside if options.full or not options.only else []:
        rows = add_rows(rows, size, system, "auc cv", partial(crossval_rows, measured, system))
    show(rows, size)


if __name__ == "__main__":
    main()
