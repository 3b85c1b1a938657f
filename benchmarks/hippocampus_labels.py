"""Find five labels of hippocampus crops from the image alone, beside a rival that sees crop size and histogram.

Command: make bench NAME=hippocampus_labels

A label is 1 where a measure of the manual mask is above its median over the training cases: total volume, anterior
share, length, width (left to right), contrast to the surroundings. The masks make the labels and nothing else. Crops
differ in size, which could tell the labels: each is put at the centre of one grid, whose margin is filled with
intensities drawn from the crop itself. Fold 0 of the published folds; a sixth of its training cases validate; the test
part is scored once.
"""

import argparse
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from blocks import fill_blocks, markdown_table, show_interval
from commands import bundle_run
from nibabel.affines import apply_affine
from numpy.typing import ArrayLike, NDArray
from records import save_rows
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tomokit.bundles import find_bundle
from tomokit.catalogue import get_dataset
from tomokit.datasets import read_entries
from tomokit.ensembles import read_rows
from tomokit.errors import TomokitError
from tomokit.files import read_json, write_json
from tomokit.measure import measure_intensity, measure_shape
from tomokit.metrics import area_under_curve, summarise_labels
from tomokit.rivals import normalise_intensity
from tomokit.rivals.histogram import histogram_edges, measure_histogram
from tomokit.splits import Split, hold_out, read_split, write_split
from tomokit.statistics import bootstrap_statistic
from tomokit.volumes import read_volume, write_volume

NAME = "hippocampus_labels"
SOURCE = "hippocampus"
LABELS = ("volume", "anterior share", "length", "width", "contrast")
ANTERIOR = 1  # its value in the masks; the posterior part's is 2
GRID = (48, 64, 48)  # holds the largest crop, 43 × 59 × 47 voxels of 1 mm
VALIDATION_SHARE = 1 / 6
GOAL = 0.80
HEAD = ["label", "network, AUC [95 %]", "crop size and histogram, AUC [95 %]"]
Entry = Mapping[str, Any]


# --------------------------------------------------------------------------------------------------- the set


def measure_labels(image: ArrayLike, mask: ArrayLike, affine: ArrayLike) -> dict[str, float]:
    """Return the five measures of a case: an image and its mask of two parts (X, Y, Z), and their affine."""
    parts = np.asarray(mask)
    whole = parts > 0
    shape = measure_shape(whole, affine)
    found = (
        shape["volume_ml"],
        float(np.count_nonzero(parts == ANTERIOR) / np.count_nonzero(whole)),
        shape["longest_diameter_mm"],
        shape["extent_x_mm"],
        # scanners scale as they like: contrast as a part of the image's own range
        measure_intensity(normalise_intensity(np.asarray(image)), whole)["intensity_contrast"],
    )
    return dict(zip(LABELS, found, strict=True))


def label_cases(measures: Mapping[str, Mapping[str, float]], training: Sequence[str]) -> dict[str, list[int]]:
    """Return 0 or 1 for each label of each case: 1 above the median of the training cases."""
    medians = {name: statistics.median(measures[case][name] for case in training) for name in LABELS}
    return {case: [int(found[name] > medians[name]) for name in LABELS] for case, found in measures.items()}


def put_on_grid(
    image: ArrayLike, affine: NDArray[np.float64], seed: int, grid: Sequence[int] = GRID
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return a crop at the centre of a grid, its margin filled with voxels drawn from the crop, and the grid's affine.

    Raises:
        TomokitError: when the crop is larger than the grid.
    """
    crop = np.asarray(image, dtype=np.float32)
    if any(edge > room for edge, room in zip(crop.shape, grid, strict=True)):
        raise TomokitError(f"a crop of {crop.shape} voxels does not fit on the grid of {tuple(grid)}; enlarge GRID")
    starts = [(room - edge) // 2 for edge, room in zip(crop.shape, grid, strict=True)]
    result = np.random.default_rng(seed).choice(crop.ravel(), size=tuple(grid))
    result[tuple(slice(start, start + edge) for start, edge in zip(starts, crop.shape, strict=True))] = crop
    moved = np.array(affine, dtype=float)
    moved[:3, 3] = apply_affine(affine, [-start for start in starts])
    return result, moved


def make_set(folder: Path, source: Path) -> None:
    """Write the labelled set, its images on one grid, with fold 0 of the published folds as its split."""
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    entries = {entry["case"]: entry for entry in read_entries(source)}
    fold = read_split(source / "splits.json", 0)
    training = sorted(fold["training"] + fold["validation"])
    measures = {}
    for number, (case, entry) in enumerate(sorted(entries.items())):
        image, affine = read_volume(entry["image"])
        measures[case] = measure_labels(image, read_volume(entry["label"]).array, affine)
        write_volume(partial / "images" / f"{case}.nii.gz", *put_on_grid(image, affine, number))
    labels = label_cases(measures, training)
    made = [{"image": f"images/{case}.nii.gz", "label": labels[case]} for case in sorted(entries)]
    names = {str(number): name for number, name in enumerate(LABELS)}
    known = [{"case": case, "patient": case, "label": labels[case]} for case in sorted(entries)]
    kept, held = hold_out([entry for entry in known if entry["case"] in training], VALIDATION_SHARE, 0, _strata(known))
    parts = {"training": [e["case"] for e in kept], "validation": [e["case"] for e in held], "test": fold["test"]}
    method = "fold 0 of the published folds; a sixth of its training cases, of each label alike, validate"
    write_split(partial / "splits.json", Split(method, 0, "each label", [parts]), known)
    about = {"name": NAME, "description": "hippocampus crops on one grid, with labels made from their masks"}
    write_json(partial / "dataset.json", about | {"modality": {"0": "MRI"}, "labels": names, "training": made})
    partial.rename(folder)


def _strata(entries: Sequence[Entry]) -> dict[str, list[float]]:
    """Return the labels of each case as what is shared out in proportion."""
    return {entry["case"]: [float(flag) for flag in entry["label"]] for entry in entries}


# ------------------------------------------------------------------------------------------------- the rival


def score_sizes(training: Sequence[Entry], test: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return a row per test case of logistic regressions that see the crop's size in voxels and its histogram.

    Args:
        training: entries with the path of the crop as `image` and 0 or 1 for each label as `label`.
        test: likewise.
    """
    edges = histogram_edges(training)
    tables = [np.stack([_sizes(entry, edges) for entry in part]) for part in (training, test)]
    truth = np.array([entry["label"] for entry in training])
    models = [make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(tables[0], own) for own in truth.T]
    chances = np.stack([model.predict_proba(tables[1])[:, 1] for model in models], axis=1)
    rows = []
    for entry, own in zip(test, chances.tolist(), strict=True):
        row: dict[str, Any] = {"case": entry["case"], "patient": entry["patient"]}
        for name, flag, chance in zip(LABELS, entry["label"], own, strict=True):
            row |= {f"truth_{name}": flag, f"p_{name}": chance}
        rows.append(row)
    return rows


def _sizes(entry: Entry, edges: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return a crop's edges in voxels and its histogram."""
    return np.concatenate([read_volume(entry["image"]).array.shape, measure_histogram(entry, edges)])


# ------------------------------------------------------------------------------------------------------ rows


def train_and_score(data: Path, run_dir: Path) -> float:
    """Return the seconds of training and scoring the network; a stopped training is gone on with."""
    configs = find_bundle("classification") / "configs"
    files = [configs / f"{name}.yaml" for name in ("train", f"data/{NAME}", "modes/multi_label")]
    if not (run_dir / "seconds.json").is_file():
        resumed = (run_dir / "checkpoints" / "last.pt").is_file()
        given = {"dataset_dir": data.resolve(), "run_dir": run_dir, "resume": str(resumed).lower()}
        seconds = bundle_run(files, given)
        if resumed:  # what went before is known without the program's start
            seconds = max(seconds, read_json(run_dir / "validation.json")["seconds"])
        evaluate = [run_dir / "configs" / "train.yaml", configs / "evaluate.yaml"]
        seconds += bundle_run(evaluate, {"rival": "false"})
        write_json(run_dir / "seconds.json", {"seconds": seconds})
    return float(read_json(run_dir / "seconds.json")["seconds"])


def macro_area(truth: NDArray[Any], chances: NDArray[Any]) -> float:
    """Return the mean of the labels' AUCs (cases, labels)."""
    return float(np.mean([area_under_curve(truth[:, i], chances[:, i]) for i in range(truth.shape[1])]))


def measured_rows(network: Sequence[Entry], rival: Sequence[Entry], common: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the network and its rival: each label's AUC, their mean, and the difference of the means."""
    rows = []
    halves = dict.fromkeys(LABELS, 0.5)  # no AUC depends on them
    nothing = {"seconds": None, "peak_rss_gb": None}
    for system, table, more in (("resnet", network, common), ("crop size and histogram", rival, nothing)):
        summary = summarise_labels(table, LABELS, halves)
        found = {"auc": summary["summary"]["auc"]}
        found |= {f"auc {name}": summary["per_class"][name]["auc"] for name in LABELS}
        for metric, score in found.items():
            names = {"system": system, "dataset": NAME, "metric": metric, "value": score["mean"]}
            rows.append(names | {"ci95": score["ci95"], "n": score["n"]} | dict(more))
    order = [{row["case"]: row for row in table} for table in (network, rival)]
    cases = sorted(order[0])
    truth = np.array([[order[0][case][f"truth_{name}"] == 1 for name in LABELS] for case in cases])
    ours, theirs = (np.array([[own[case][f"p_{name}"] for name in LABELS] for case in cases]) for own in order)
    mean, low, high, n = bootstrap_statistic(_difference, [truth, ours, theirs], cases)
    names = {"system": "resnet", "dataset": NAME, "metric": "auc - rival's", "value": mean}
    return [*rows, names | {"ci95": [low, high], "n": n} | dict(common)]


def _difference(truth: NDArray[Any], ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Return our mean AUC over the labels less theirs."""
    return macro_area(truth, ours) - macro_area(truth, theirs)


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the table: a line per label, and the mean."""
    by_name = {(row["system"], row["metric"]): row for row in rows}
    titles = {f"auc {name}": name for name in LABELS} | {"auc": "mean"}
    systems = ("resnet", "crop size and histogram")
    return [[title, *(show_interval(by_name[system, key]) for system in systems)] for key, title in titles.items()]


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table, and whether the goal is met."""
    console = Console(width=120)
    table = Table(*HEAD)
    for cells in lines(rows):
        table.add_row(*cells)
    console.print(table)
    own = next(row for row in rows if (row["system"], row["metric"]) == ("resnet", "auc"))
    against = next(row for row in rows if row["metric"] == "auc - rival's")
    console.print(f"network − rival, mean AUC: {show_interval(against, 3, '+')}", markup=False)
    met = "met" if own["value"] >= GOAL else "missed"
    console.print(f"mean AUC {own['value']:.3f} in {own['seconds'] / 60:.1f} minutes, goal ≥ {GOAL:.2f}: {met}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the same; there is one part")
    parser.parse_args()
    source = get_dataset(SOURCE, source=os.environ.get("TOMOKIT_MIRROR"))
    data, run_dir = Path("runs") / NAME / "set", Path("runs") / NAME / "run"
    if not (data / "dataset.json").is_file():
        make_set(data, source)
    seconds = train_and_score(data, run_dir)
    labels = {entry["case"]: entry["label"] for entry in read_entries(data)}
    crops = {entry["case"]: entry | {"label": labels[entry["case"]]} for entry in read_entries(source)}
    fold = read_split(data / "splits.json", 0)
    training = [crops[case] for case in [*fold["training"], *fold["validation"]]]
    rival = score_sizes(training, [crops[case] for case in fold["test"]])
    trained, scored = (read_json(run_dir / name) for name in ("validation.json", "metrics.json"))
    common = {"seconds": seconds, "peak_rss_gb": max(trained["peak_rss_gb"], scored["peak_rss_gb"])}
    common |= {"parameters": trained["parameters"], "epochs": trained["epochs"]}
    measured = measured_rows(read_rows(run_dir / "cases.csv"), rival, common)
    rows = save_rows(NAME, f"make bench NAME={NAME}", [], measured)
    fill_blocks(NAME, lambda _: markdown_table(HEAD, lines(rows)))
    show(rows)


if __name__ == "__main__":
    main()
