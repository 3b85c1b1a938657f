"""Sequences of slices: bleeds found from volume labels alone, what order is worth, adrenal shapes beside a 3D network.

Command: make bench NAME=sequences [ONLY="bleeds order adrenal"] [FULL=1] [ARGS="--seeds 3 --size 64"]

Plain: the bleeds; FULL=1 is all three. On both phantoms an attention without an RNN stands beside it. Rows are
written when a seed is finished; a stopped training goes on where it was, in runs/sequences (delete it to measure again
after a change).
"""

import argparse
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blocks import fill_blocks, markdown_table, show_interval
from commands import bundle_run
from records import load_rows, save_rows
from rich.console import Console
from rich.table import Table

from tomokit.bundles import find_bundle
from tomokit.catalogue import get_dataset
from tomokit.ensembles import read_rows
from tomokit.errors import TomokitError
from tomokit.files import read_json
from tomokit.statistics import delong

FOLDER = Path("runs") / "sequences"
POSITIVE = "hyperplasia"
RIVAL, SHUFFLED, WITHOUT_RNN = "3D ResNet of equal size", "shuffled slices", "attention, no RNN"
WITHOUT_RIVALS = {"rival": "false", "feature_models": "[]"}  # they are those of the first run on the set
DIFFERENCE = f"AUC - {RIVAL}'s"
GOALS = {
    ("phantom-bleeds", "slice AUC"): 0.95,
    ("phantom-order", "cost of shuffling"): 0.10,
    ("adrenal28", DIFFERENCE): -0.02,
    ("adrenal64", DIFFERENCE): -0.02,
}


def train_and_score(name: str, layers: Sequence[str], seed: int, **evaluation: Any) -> Path:
    """Return the folder of a run, trained to its end and scored."""
    configs, run_dir = find_bundle("sequence") / "configs", FOLDER / f"{name}_{seed}"
    files = [configs / "train.yaml", *(configs / f"{layer}.yaml" for layer in layers)]
    resumed = (run_dir / "checkpoints" / "last.pt").is_file()
    bundle_run(files, {"run_dir": run_dir, "seed": seed, "resume": str(resumed).lower()})
    bundle_run([run_dir / "configs" / "train.yaml", configs / "evaluate.yaml"], evaluation)
    return run_dir


def make_row(names: tuple[str, str, str], score: Mapping[str, Any], seed: int, run_dir: Path | None) -> dict[str, Any]:
    """Return a row of (system, dataset, metric); a rival that is no run has no seconds."""
    row = dict(zip(("system", "dataset", "metric"), names, strict=True))
    row |= {"value": score["mean"], "ci95": score["ci95"], "n": score["n"], "seed": seed}
    if run_dir is None:
        return row | {"seconds": None, "peak_rss_gb": None}
    training, measures = read_json(run_dir / "validation.json"), read_json(run_dir / "metrics.json")
    memory = max(training["peak_rss_gb"], measures["peak_rss_gb"])
    told = {"seconds": training["seconds"], "peak_rss_gb": memory}
    return row | told | {key: training[key] for key in ("parameters", "epochs", "seconds_per_step")}


def measure_bleeds(seed: int, size: int) -> list[dict[str, Any]]:
    """Return the rows of the bleeds: volumes, slices from volume labels alone, and the rivals' volumes."""
    get_dataset("phantom-bleeds")
    own = train_and_score("bleeds", [], seed)
    other = train_and_score("bleeds_attention", ["networks/attention"], seed, **WITHOUT_RIVALS)
    rows = []
    for system, run_dir in (("sequence", own), (WITHOUT_RNN, other)):
        measures = read_json(run_dir / "metrics.json")
        scores = {"AUC": measures["summary"]["auc"]}
        scores |= {"slice AUC": measures["slices"]["auc"], "hit": measures["slices"]["hit"]}
        rows += [make_row((system, "phantom-bleeds", key), score, seed, run_dir) for key, score in scores.items()]
    return [*rows, *rival_rows("phantom-bleeds", read_json(own / "metrics.json"), seed)]


def measure_order(seed: int, size: int) -> list[dict[str, Any]]:
    """Return the rows of the order-dependent set: in order, shuffled, the cost, without an RNN, and the rivals'."""
    name = "phantom-order"
    get_dataset(name)
    run_dir = train_and_score("order", [f"data/{name}"], seed, shuffle_slices="true")
    measures = read_json(run_dir / "metrics.json")
    shuffled = measures["rivals"].pop(SHUFFLED)["summary"]["auc"]
    compared = next(iter(measures["comparisons"][SHUFFLED].values()))
    cost = compared | {"mean": compared["difference"]}
    other = train_and_score("order_attention", [f"data/{name}", "networks/attention"], seed, **WITHOUT_RIVALS)
    without = read_json(other / "metrics.json")["summary"]["auc"]
    return [
        make_row(("sequence", name, "AUC"), measures["summary"]["auc"], seed, run_dir),
        make_row((f"sequence, {SHUFFLED}", name, "AUC"), shuffled, seed, run_dir),
        make_row(("sequence", name, "cost of shuffling"), cost, seed, run_dir),
        make_row((WITHOUT_RNN, name, "AUC"), without, seed, other),
        *rival_rows(name, measures, seed),
    ]


def measure_adrenal(seed: int, size: int) -> list[dict[str, Any]]:
    """Return the rows of the sequence and of the 3D network on the official test part, and the difference (DeLong)."""
    name, layer = f"adrenal{size}", "adrenalmnist3d" if size == 28 else f"adrenalmnist3d_{size}"
    try:
        get_dataset(layer, source=os.environ.get("TOMOKIT_MIRROR"))
    except TomokitError as error:
        nothing = {"mean": None, "ci95": None, "n": None}
        return [make_row(("sequence", name, "AUC"), nothing, seed, None) | {"note": str(error)}]
    own = train_and_score(name, [f"data/{layer}"], seed)
    other = train_and_score(f"{name}_3d", [f"data/{layer}", "networks/whole_volume"], seed, **WITHOUT_RIVALS)
    scores = {run_dir: read_json(run_dir / "metrics.json")["summary"]["auc"] for run_dir in (own, other)}
    return [
        make_row(("sequence", name, "AUC"), scores[own], seed, own),
        make_row((RIVAL, name, "AUC"), scores[other], seed, other),
        difference_row(name, own, other, seed),
        *rival_rows(name, read_json(own / "metrics.json"), seed),
    ]


def difference_row(dataset: str, own: Path, other: Path, seed: int) -> dict[str, Any]:
    """Return the row of a run's AUC minus another's on the same cases, with its p and its verdict."""
    tables = [{row["case"]: row for row in read_rows(run_dir / "cases.csv")} for run_dir in (own, other)]
    cases = list(tables[0])
    truth = [tables[0][case]["truth"] == POSITIVE for case in cases]
    ours, theirs = ([float(table[case][f"p_{POSITIVE}"]) for case in cases] for table in tables)
    found = delong(truth, ours, theirs)
    score = {"mean": found.difference, "ci95": [found.low, found.high], "n": len(cases)}
    return make_row(("sequence", dataset, DIFFERENCE), score, seed, own) | {"p": found.p, "verdict": found.verdict}


def rival_rows(dataset: str, measures: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Return the rows of the cheap rivals: the histogram, the best single measure, a regression on all of them."""
    return [
        make_row((name, dataset, "AUC"), rival["summary"]["auc"], seed, None)
        for name, rival in measures["rivals"].items()
    ]


MEASURES: dict[str, Callable[[int, int], list[dict[str, Any]]]] = {
    "bleeds": measure_bleeds,
    "order": measure_order,
    "adrenal": measure_adrenal,
}


def table_lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return a line for each system, set and metric: the mean over the seeds, with what it was to reach."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["dataset"], row["metric"], row["system"]), []).append(row)
    lines = []
    for (dataset, metric, system), own in groups.items():
        known = [row for row in own if row["value"] is not None]
        if not known:
            lines.append([dataset, system, metric, "not measured", "", ""])
            continue
        mean = statistics.mean(row["value"] for row in known)
        goal = GOALS.get((dataset, metric)) if system == "sequence" else None
        told = "" if goal is None else f"≥ {goal:g}: {'met' if mean >= goal else 'missed'}"
        minutes = "" if known[0]["seconds"] is None else f"{known[0]['seconds'] / 60:.1f} min"
        lines.append([dataset, system, metric, tell(known, mean), told, minutes])
    return lines


def tell(rows: Sequence[dict[str, Any]], mean: float) -> str:
    """Return a score with its interval, and of a comparison the verdict; of several seeds the mean and the range."""
    if len(rows) > 1:
        values = [row["value"] for row in rows]
        return f"{mean:.3f}, {min(values):.3f} to {max(values):.3f} over {len(values)} seeds"
    text = f"{mean:.3f}" if rows[0]["ci95"] is None else show_interval(rows[0])
    return f"{text}, p {rows[0]['p']:.2f}: {rows[0]['verdict']}" if "p" in rows[0] else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(MEASURES))
    parser.add_argument("--full", action="store_true", help="the bleeds, the order and the adrenal shapes")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--size", type=int, default=28, choices=(28, 64), help="of the adrenal volumes")
    options = parser.parse_args()
    head = ("set", "system", "measure", "value [95 %]", "goal", "training")
    rows = load_rows("sequences")
    for group in options.only or (list(MEASURES) if options.full else ["bleeds"]):
        for seed in range(options.seeds):
            measured = MEASURES[group](seed, options.size)
            dataset = measured[0]["dataset"]
            kept = [row for row in rows if (row["dataset"], row["seed"]) != (dataset, seed)]
            rows = save_rows("sequences", "make bench NAME=sequences FULL=1", kept, measured)
            fill_blocks("sequences", lambda _, rows=rows: markdown_table(head, table_lines(rows)))
    table = Table(*head)
    for line in table_lines(rows):
        table.add_row(*line)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
