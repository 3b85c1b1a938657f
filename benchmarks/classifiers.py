"""Train the classification bundle's networks on phantoms of a compact or an elongated lesion, beside the rivals.

Command: make bench NAME=classifiers [ONLY="resnet cnn"]

Each is one `python -m monai.bundle run` with the bundle's own numbers; the time is that of this command, from the
program's start to its end, and the score that of `evaluate.yaml` on the 40 test cases.
"""

import argparse
import shutil
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
from tomokit.files import read_json

NAME = "classifiers"
DATA = "phantom-ct-classes"
NETWORKS = ("resnet", "densenet", "inception", "cnn")
GOAL, MINUTES, RIVALS_AT_MOST = 0.95, 3.0, 0.80
HEAD = ["network", "parameters", "epochs", "time", "AUC [95 %]"]


def measure(network: str) -> list[dict[str, Any]]:
    """Return the rows of one network, trained and scored, and of the rivals on the same cases."""
    configs = find_bundle("classification") / "configs"
    run_dir = Path("runs") / NAME / network
    shutil.rmtree(run_dir, ignore_errors=True)
    layers = [] if network == "resnet" else [configs / "networks" / f"{network}.yaml"]
    seconds = bundle_run([configs / "train.yaml", *layers], {"dataset_dir": DATA, "run_dir": run_dir})
    bundle_run([run_dir / "configs" / "train.yaml", configs / "evaluate.yaml"], {})
    measures, training = (read_json(run_dir / name) for name in ("metrics.json", "validation.json"))
    own = {"seconds": seconds, "peak_rss_gb": training["peak_rss_gb"], "parameters": training["parameters"]}
    rows = [row(network, measures["summary"]["auc"], own | {"epochs": training["epochs"]})]
    nothing = {"seconds": None, "peak_rss_gb": None}
    for name, rival in measures["rivals"].items():
        compared = measures["comparisons"][name].values()
        against = {"network": network, "comparison": next(iter(compared), None)}
        rows.append(row(name, rival["summary"]["auc"], nothing | against))
    return rows


def row(system: str, score: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return an AUC in the form that all benchmarks share."""
    names = {"system": system, "dataset": DATA, "metric": "auc", "value": score["mean"]}
    return names | {"ci95": score["ci95"], "n": score["n"]} | dict(more)


def best_rival(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the rival's row of the highest AUC; each network's run scores the same rivals."""
    return max((row for row in rows if row["system"] not in NETWORKS), key=lambda row: row["value"])


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the table, a line per network and one for the best rival."""
    found = []
    for name in NETWORKS:
        for own in (row for row in rows if row["system"] == name):
            size = f"{own['parameters'] / 1e6:.2f}M"
            found.append([name, size, str(own["epochs"]), f"{own['seconds']:.0f} s", show_interval(own)])
    if found:
        rival = best_rival(rows)
        found.append([f"best rival: {rival['system']}", "", "", "", show_interval(rival)])
    return found


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table, and whether each goal is met."""
    table = Table(*HEAD)
    for cells in lines(rows):
        table.add_row(*cells)
    console = Console(width=120)
    console.print(table)
    for own in (row for row in rows if row["system"] in NETWORKS):
        met = own["value"] >= GOAL and own["seconds"] <= 60 * MINUTES
        console.print(f"{own['system']}: AUC ≥ {GOAL} in ≤ {MINUTES:g} minutes {'met' if met else 'missed'}")
    rival = best_rival(rows)
    met = "met" if rival["value"] <= RIVALS_AT_MOST else "missed"
    console.print(f"best rival ({rival['system']}) ≤ {RIVALS_AT_MOST:.2f}: {rival['value']:.3f}, {met}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=NETWORKS)
    parser.add_argument("--full", action="store_true", help="all networks, as without --only")
    options = parser.parse_args()
    get_dataset(DATA)
    rows = load_rows(NAME)
    for network in options.only or NETWORKS:
        kept = [row for row in rows if network not in (row["system"], row.get("network"))]
        rows = save_rows(NAME, f"make bench NAME={NAME}", kept, measure(network))
        fill_blocks(NAME, lambda _, rows=rows: markdown_table(HEAD, lines(rows)))
    show(rows)


if __name__ == "__main__":
    main()
