"""Whether maps of a classifier's answers point to the lesion, on phantoms whose lesions are known to the voxel.

Command: make bench NAME=pointing [ONLY="phantom-bleeds"] [FULL=1]

A classifier of the bundle is trained with its own numbers (a finished run is used again: delete runs/pointing to train
anew), and its test cases are explained in each way. Counted are cases with a lesion that the network gets right. Beside
the maps stand the share of the body that the lesion takes, which is what a random place hits, and the body's centre.
The plain run takes lesions near the middle of an organ, where a map that always points to the centre is hard to beat;
FULL=1 also takes bleeds beside the middle of a head.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
from blocks import fill_blocks, markdown_table, show_interval
from commands import bundle_run
from numpy.typing import NDArray
from records import Row, load_rows, save_rows
from rich.console import Console
from rich.table import Table

from tomokit.bundles import find_bundle
from tomokit.catalogue import get_dataset
from tomokit.explain import EXTENT, near_mask, pointing_hit
from tomokit.files import read_json
from tomokit.geometry import spacing_from_affine
from tomokit.phantoms import Phantom, make_bleed_case, make_classification_case
from tomokit.statistics import bootstrap_mean
from tomokit.volumes import read_volume

NAME = "pointing"
FOLDER = Path("runs") / NAME
AIR_HU = -500.0
TOLERANCE_MM = 5.0
CHANCE, CENTRE = "any place in the body", "the body's centre"
HEAD = ["map", "hits [95 %]", f"within {TOLERANCE_MM:g} mm", "share of the map in the lesion"]
HEAD += ["insertion (random)", "deletion (random)", "correlation with untrained"]


class Data(NamedTuple):
    """A set of phantoms: how a case is made again, and the layer with its numbers."""

    make: Any
    layers: tuple[str, ...]


class Way(NamedTuple):
    """A way to make maps: what `modes/explain` gets."""

    method: str
    extent: int = EXTENT


DATASETS = {
    "phantom-ct-classes": Data(make_classification_case, ()),
    "phantom-bleeds": Data(make_bleed_case, ("data/phantom-bleeds",)),
}
WAYS = {
    "Grad-CAM": Way("gradcam"),
    "Grad-CAM, a layer of 4 voxels or more": Way("gradcam", 4),
    "Grad-CAM, of 2 or more": Way("gradcam", 2),
    "Grad-CAM++, of 4 or more": Way("gradcam++", 4),
    "occlusion": Way("occlusion", 2),
}


def make_again(dataset: str, case: str) -> Phantom:
    """Return the phantom that a case of a set was written from, as its number says."""
    return DATASETS[dataset].make(index=int(case.removeprefix("case_")))


def find_body(image: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the body (X, Y, Z) in a CT: the largest connected part that is no air, its holes filled."""
    parts, count = scipy.ndimage.label(image > AIR_HU)
    if count == 0:
        return np.ones(image.shape, dtype=bool)
    return scipy.ndimage.binary_fill_holes(parts == np.bincount(parts.ravel())[1:].argmax() + 1)


def centre_of(body: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return a map that is 1 at the voxel nearest to a body's centre of mass, 0 elsewhere."""
    heat = np.zeros(body.shape, dtype=np.float32)
    heat[tuple(np.round(scipy.ndimage.center_of_mass(body)).astype(int))] = 1
    return heat


def point(heat: NDArray[Any], mask: NDArray[Any], spacing: Sequence[float]) -> dict[str, float]:
    """Return whether a map points into a lesion, or near it, and the share of its sum in it."""
    found = pointing_hit(heat, mask)
    near = pointing_hit(heat, mask, spacing, TOLERANCE_MM)
    return {"hit": found.hit, "near": near.hit, "energy": found.energy}


def rivals_of(phantom: Phantom) -> dict[str, dict[str, float]]:
    """Return what a random place in the body, and its centre, hit in one case."""
    spacing, body = spacing_from_affine(phantom.affine), find_body(phantom.image)
    shares = [float(near_mask(phantom.label, spacing, away)[body].mean()) for away in (0.0, TOLERANCE_MM)]
    chance = {"hit": shares[0], "near": shares[1], "energy": shares[0]}
    return {CHANCE: chance, CENTRE: point(centre_of(body), phantom.label, spacing)}


def score_cases(dataset: str, folder: Path) -> tuple[dict[str, dict[str, list[float]]], list[str]]:
    """Return the scores of an explained run's maps and of what they are compared with, and the cases they are of.

    `{"map" or a rival: {score: of each case}}`; cases without a lesion, and those the network gets wrong, are left out.

    Args:
        dataset: the name of the set.
        folder: with `explanations.csv` and the maps.
    """
    with (folder / "explanations.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["class"] == row["truth"]]
    found: dict[str, dict[str, list[float]]] = {"map": {}, CHANCE: {}, CENTRE: {}}
    cases = []
    for row in rows:
        phantom = make_again(dataset, row["case"])
        if not phantom.label.any():
            continue
        heat = read_volume(folder / f"{row['case']}.nii.gz").array
        areas = {key: float(row[key]) for key in ("insertion", "deletion", "random_insertion", "random_deletion")}
        own = {"map": point(heat, phantom.label, spacing_from_affine(phantom.affine)) | areas} | rivals_of(phantom)
        cases.append(row["case"])
        for system, scores in own.items():
            for metric, value in scores.items():
                found[system].setdefault(metric, []).append(value)
    return found, cases


def make_rows(dataset: str, system: str, scores: Mapping[str, Sequence[float]], more: Mapping[str, Any]) -> list[Row]:
    """Return a row for each score: its mean over the cases with its interval."""
    rows = []
    for metric, values in scores.items():
        found = bootstrap_mean(values, range(len(values)))
        names = {"system": system, "dataset": dataset, "metric": metric, "value": found.mean}
        rows.append(names | {"ci95": [found.low, found.high], "n": len(values)} | dict(more))
    return rows


def measure(dataset: str) -> list[Row]:
    """Return the rows of all ways on one set."""
    get_dataset(dataset)
    configs, run_dir = find_bundle("classification") / "configs", FOLDER / dataset
    if not (run_dir / "decision.json").is_file():  # the last that a training writes
        layers = [configs / f"{layer}.yaml" for layer in DATASETS[dataset].layers]
        bundle_run([configs / "train.yaml", *layers], {"dataset_dir": dataset, "run_dir": run_dir})
    rows: list[Row] = []
    for system, way in WAYS.items():
        folder = run_dir / f"{way.method}_{way.extent}"
        options = {"method": way.method, "extent": way.extent, "explained": 10**6, "output_dir": folder}
        seconds = bundle_run([run_dir / "configs" / "train.yaml", configs / "modes" / "explain.yaml"], options)
        scores, _ = score_cases(dataset, folder)
        check = read_json(folder / "explanations.json")["randomisation"]
        more = {"seconds": seconds, "correlation": check["correlations"][-1], "verdict": check["verdict"]}
        rows += make_rows(dataset, system, scores["map"], more)
    for system in (CHANCE, CENTRE):
        rows += make_rows(dataset, system, scores[system], {"seconds": None})
    return rows


def lines(rows: Sequence[Row], dataset: str) -> list[list[str]]:
    """Return the cells of a set's table, a line for each way, the chance and the centre."""
    own = {(row["system"], row["metric"]): row for row in rows if row["dataset"] == dataset}
    found = []
    for system in (*WAYS, CENTRE, CHANCE):
        if (system, "hit") not in own:
            continue
        cells = [system, show_interval(own[system, "hit"], 2)]
        cells += [f"{own[system, metric]['value']:.2f}" for metric in ("near", "energy")]
        for name in ("insertion", "deletion"):
            pair = [own.get((system, metric)) for metric in (name, f"random_{name}")]
            cells.append("" if None in pair else f"{pair[0]['value']:.3f} ({pair[1]['value']:.3f})")
        correlation = own[system, "hit"].get("correlation")
        found.append([*cells, "" if correlation is None else f"{correlation:.2f}"])
    return found


def show(rows: Sequence[Row]) -> None:
    """Print a table for each set, and which maps hit more than the centre does, beyond chance."""
    console = Console(width=150)
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        table = Table(*HEAD, title=dataset)
        for cells in lines(rows, dataset):
            table.add_row(*cells)
        console.print(table)
        hits = {row["system"]: row for row in rows if (row["dataset"], row["metric"]) == (dataset, "hit")}
        for system in WAYS:
            above = hits[system]["ci95"][0] > hits[CHANCE]["value"]
            console.print(
                f"{system}: {'above' if above else 'not shown to be above'} chance; {hits[system]['verdict']}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(DATASETS))
    parser.add_argument("--full", action="store_true", help="all sets")
    options = parser.parse_args()
    chosen = options.only or (list(DATASETS) if options.full else list(DATASETS)[:1])
    rows = load_rows(NAME)
    for dataset in chosen:
        kept = [row for row in rows if row["dataset"] != dataset]
        rows = save_rows(NAME, f"make bench NAME={NAME}", kept, measure(dataset))
        fill_blocks(NAME, lambda words, rows=rows: markdown_table(HEAD, lines(rows, words[0])))
    show(rows)


if __name__ == "__main__":
    main()
