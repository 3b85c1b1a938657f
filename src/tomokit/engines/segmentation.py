"""The scores of a segmentation: of each case, structure and lesion, their volumes' intervals, a picture."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from ignite.engine import Engine
from numpy.typing import NDArray

from tomokit import rivals
from tomokit.datasets import has_image
from tomokit.engines.evaluation import (
    PICTURE,
    Entries,
    attach_scoring,
    check_test_cases,
    tell_checkpoint,
    tell_scores,
    write_scores,
)
from tomokit.errors import TomokitError
from tomokit.files import write_table
from tomokit.geometry import voxel_volume_ml
from tomokit.held_out import Promise, promise_interval, read_promise, score_intervals
from tomokit.inference import finish_writing, first_image
from tomokit.labels import find_lesions, foreground
from tomokit.metrics import (
    check_tolerance,
    score_lesions,
    score_segmentation,
    summarise_cases,
    summarise_lesions,
    summarise_segmentation,
)
from tomokit.pictures import draw_cases, pick_cases
from tomokit.subgroups import group_by_size, read_subgroups, summarise_subgroups

Rows = list[dict[str, Any]]


def attach_segmentation_scores(
    evaluator: Engine,
    run_dir: str | Path,
    output_dir: str | Path,
    checkpoint: str | Path,
    labels: Mapping[str, str],
    cases: Mapping[str, Entries],
    rival: bool,
    ignore_label: int | None = None,
    tolerance_mm: float = 1.0,
    lesions: Sequence[str] | None = None,
    error_rate: float = 0.1,
    dataset_dir: str | Path | None = None,
) -> None:
    """Score each test case on its source's own grid; write `cases.csv`, `metrics.json`, `overlay.png` at the end.

    Where labels are lesions, `lesions.csv` has a row for each of them, and of each that was invented.

    Args:
        evaluator: its output holds `pred`, a label map (1, X, Y, Z) on the source's grid.
        run_dir: the run's folder.
        output_dir: where the predictions are written.
        checkpoint: which weights are scored, told in the measures.
        labels: the label map.
        cases: the split; `training` fits the threshold rival, `test` is scored.
        rival: also score the best thresholds, chosen on the training cases; without their images there are none.
        ignore_label: the label of voxels that nobody labelled, which are not scored.
        tolerance_mm: how far a surface may lie away and still be right, for the NSD.
        lesions: labels whose pieces are scored one by one; None takes those that name lesions.
        error_rate: the share of intervals of volumes that may miss the truth, by the run's validation cases.
        dataset_dir: the data set that tells the kinds of cases, which are scored by themselves; None scores none.

    Raises:
        TomokitError: when there is no test case, a lesion is no label, or the tolerance or error rate is impossible.
    """
    check_test_cases(cases)
    check_tolerance(tolerance_mm)
    wanted = check_lesions(lesions, labels)
    run_dir = Path(run_dir)
    promise = read_promise(run_dir, error_rate, error_rate)
    rows: Rows = []
    found_lesions: Rows = []
    truths = {entry["case"]: entry for entry in cases["test"]}
    began = time.perf_counter()

    def score(engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            prediction = np.asarray(torch.as_tensor(output["pred"]).cpu())[0]
            own, pieces = _score_case(truths[item["case"]], prediction, labels, ignore_label, tolerance_mm, wanted)
            common = {"case": item["case"], "patient": item["patient"]}
            rows.extend({**common, **row, **_promised(promise, row)} for row in own)
            found_lesions.extend({**common, **piece} for piece in pieces)

    def finish(_: Engine) -> None:
        finish_writing()
        measures: dict[str, Any] = {"task": "segmentation", "checkpoint": tell_checkpoint(run_dir, checkpoint)}
        measures |= {"seconds": time.perf_counter() - began, **summarise_segmentation(rows)}
        measures["tolerance_mm"] = tolerance_mm
        measures |= _summarise_more(rows, found_lesions, wanted, promise, dataset_dir)
        _write_lesions(run_dir / "lesions.csv", found_lesions)
        write_scores(run_dir, rows, measures)
        if shown := _picture_cases(rows, truths, Path(output_dir)):
            draw_cases(shown, labels, run_dir / PICTURE)
            measures["picture"] = PICTURE
        if rival and all(map(has_image, cases["training"])):
            found = rivals.score_thresholds(cases["training"], cases["test"], labels)
            measures["rivals"] = {"threshold": summarise_segmentation(found)}
        write_scores(run_dir, rows, measures)
        tell_scores(run_dir, "case")

    attach_scoring(evaluator, score, finish)


def _write_lesions(path: Path, rows: Rows) -> None:
    """Write the table of lesions; without one there is none, nor that of an earlier evaluation."""
    if rows:
        write_table(path, rows)
    else:
        path.unlink(missing_ok=True)


def _score_case(
    entry: Mapping[str, Any],
    prediction: NDArray[Any],
    labels: Mapping[str, str],
    ignore_label: int | None,
    tolerance_mm: float,
    lesions: Sequence[str],
) -> tuple[Rows, Rows]:
    """Return the rows of a case's structures that somebody annotated, and of its lesions."""
    truth, affine = read_array(entry["label"])
    if ignore_label is not None:
        prediction, truth = (np.where(truth == ignore_label, 0, part) for part in (prediction, truth))
    known = _annotated(entry, labels)
    scored = score_segmentation(prediction, truth, labels, affine, tolerance_mm)
    pieces = [
        {"class": name, **piece}
        for value, name in known.items()
        if name in lesions
        for piece in score_lesions(prediction == value, truth == value, voxel_volume_ml(affine))
    ]
    return [row for row in scored if row["class"] in known.values()], pieces


def check_lesions(lesions: Sequence[str] | None, labels: Mapping[str, str]) -> list[str]:
    """Return the labels whose pieces are scored one by one: those that are named, or else those that name lesions.

    Raises:
        TomokitError: when one that is named is no label.
    """
    if lesions is None:
        return find_lesions(labels)
    names = list(foreground(labels).values())
    unknown = [name for name in lesions if name not in names]
    if unknown:
        raise TomokitError(f"`lesions` names {unknown}, which are not of the labels {names}")
    return list(lesions)


def _annotated(entry: Mapping[str, Any], labels: Mapping[str, str]) -> dict[int, str]:
    """Return the structures that somebody annotated in a case, by their values."""
    labelled = entry.get("labelled", foreground(labels))
    return {value: name for value, name in foreground(labels).items() if value in labelled}


def _promised(promise: Promise | None, row: Mapping[str, Any]) -> dict[str, float]:
    """Return the interval of a structure's volume as columns of the table of cases; none where none is promised."""
    if promise is None or row["class"] not in promise.reach:
        return {}
    low, high = promise_interval(promise, row["predicted_ml"], row["class"])
    return {"low_ml": low, "high_ml": high}


def _summarise_more(
    rows: Rows, lesions: Rows, wanted: Sequence[str], promise: Promise | None, dataset_dir: str | Path | None
) -> dict[str, Any]:
    """Return what `metrics.json` tells of lesions, kept promises and kinds of cases."""
    more: dict[str, Any] = {}
    for name in wanted:
        patients = {row["case"]: str(row["patient"]) for row in rows if row["class"] == name}
        if patients:
            own = [row for row in lesions if row["class"] == name]
            more.setdefault("lesions", {})[name] = summarise_lesions(own, patients)
    if promise is not None and all("low_ml" in row for row in rows):
        more["promises"] = score_intervals(promise, rows, "truth_ml", "_ml")
    groups = read_subgroups(dataset_dir, [row["case"] for row in rows]) if dataset_dir else {}
    sizes: dict[str, float] = {}
    for row in rows:
        sizes[row["case"]] = sizes.get(row["case"], 0.0) + row["truth_ml"]
    groups |= {"labelled volume": third} if (third := group_by_size(sizes)) else {}
    more["subgroups"] = summarise_subgroups(rows, groups, summarise_cases)
    return more


def read_array(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a file's array (X, Y, Z) in file order and its affine; a last axis of one is left out."""
    image = nibabel.squeeze_image(nibabel.load(path))
    return np.asanyarray(image.dataobj), image.affine


def _picture_cases(
    rows: Sequence[Mapping[str, Any]], truths: Mapping[str, Mapping[str, Any]], output_dir: Path
) -> list[dict[str, Any]]:
    """Return the worst, median and best case with their arrays, for the picture."""
    found = []
    for case in pick_cases(rows):
        entry = truths[case]
        image, affine = read_array(first_image(entry["image"]))
        if min(image.shape) == 1:
            continue  # the picture cuts three planes through a volume
        scores = [row["dice"] for row in rows if row["case"] == case and row["dice"] is not None]
        found.append(
            {
                "case": case,
                "image": image,
                "affine": affine,
                "truth": read_array(entry["label"])[0],
                "prediction": read_array(str(output_dir / f"{case}.nii.gz"))[0],
                "dice": float(np.mean(scores)),
            }
        )
    return found
