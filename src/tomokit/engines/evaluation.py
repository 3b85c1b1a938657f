"""What an evaluation or inference engine does besides the network's pass: measures, tables, a picture."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from ignite.engine import Engine, Events

from tomokit import rivals
from tomokit.engines.progress import ProgressBar
from tomokit.files import write_json, write_table
from tomokit.metrics import score_segmentation, summarise_classification, summarise_segmentation
from tomokit.pictures import draw_cases, pick_cases
from tomokit.runs import is_main_process, peak_memory_gb

PICTURE = "overlay.png"
Entries = Sequence[Mapping[str, Any]]


def attach_inference(evaluator: Engine, output_dir: str | Path) -> None:
    """Show progress over the cases and say where the results are."""
    ProgressBar("infer", "case").attach(evaluator)

    def tell(_: Engine) -> None:
        print(f"predictions: {output_dir}", flush=True)

    evaluator.add_event_handler(Events.COMPLETED, tell)


def attach_class_table(evaluator: Engine, output_dir: str | Path, labels: Mapping[str, str]) -> None:
    """Write each input's class probabilities to `<output_dir>/classes.csv` at the end.

    Args:
        evaluator: its output holds `pred`, the class probabilities (C,).
        output_dir: the folder to write to.
        labels: the classes, `{"0": name, …}`.
    """
    rows: list[dict[str, Any]] = []
    path = Path(output_dir) / "classes.csv"

    def keep(engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            chances = _chances(output["pred"], labels)
            likeliest = max(chances, key=lambda name: chances[name])
            rows.append({"case": item["case"], "class": likeliest.removeprefix("p_"), **chances})

    ProgressBar("infer", "case").attach(evaluator)
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep)
    evaluator.add_event_handler(Events.COMPLETED, lambda _: write_table(path, rows))
    evaluator.add_event_handler(Events.COMPLETED, lambda _: print(f"classes: {path}", flush=True))


def attach_segmentation_scores(
    evaluator: Engine, run_dir: str | Path, labels: Mapping[str, str], cases: Mapping[str, Entries], rival: bool
) -> None:
    """Score each test case on its source's own grid; write `cases.csv`, `metrics.json`, `overlay.png` at the end.

    Args:
        evaluator: its output holds `pred`, a label map (1, X, Y, Z) on the source's grid.
        run_dir: the run's folder.
        labels: the label map.
        cases: the split; `training` fits the threshold rival, `test` is scored.
        rival: also score the best thresholds, chosen on the training cases.
    """
    rows: list[dict[str, Any]] = []
    truths = {entry["case"]: entry for entry in cases["test"]}
    run_dir = Path(run_dir)
    began = time.perf_counter()

    def score(engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            truth, affine = _read(truths[item["case"]]["label"])
            prediction = np.asarray(torch.as_tensor(output["pred"]).cpu())[0]
            for row in score_segmentation(prediction, truth, labels, affine):
                rows.append({"case": item["case"], "patient": item["patient"], **row})

    def finish(_: Engine) -> None:
        seconds = time.perf_counter() - began
        measures = summarise_segmentation(rows)
        if shown := _picture_cases(rows, truths, run_dir):
            draw_cases(shown, labels, run_dir / PICTURE)
            measures["picture"] = PICTURE
        _write(run_dir, rows, {"task": "segmentation", **measures}, seconds)
        if rival:
            found = rivals.score_thresholds(cases["training"], cases["test"], labels)
            measures["rivals"] = {"threshold": summarise_segmentation(found)}
            _write(run_dir, rows, {"task": "segmentation", **measures}, seconds)

    _attach(evaluator, score, finish)


def attach_classification_scores(
    evaluator: Engine, run_dir: str | Path, labels: Mapping[str, str], cases: Mapping[str, Entries], rival: bool
) -> None:
    """Keep each test case's class probabilities; write `cases.csv` and `metrics.json` at the end.

    Args:
        evaluator: its output holds `pred`, the class probabilities (C,).
        run_dir: the run's folder.
        labels: the classes, `{"0": name, …}`.
        cases: the split; `training` fits the histogram rival, `test` is scored.
        rival: also score a logistic regression on the intensity histogram.
    """
    rows: list[dict[str, Any]] = []
    truths = {entry["case"]: entry for entry in cases["test"]}
    classes = [labels[key] for key in sorted(labels, key=int)]
    run_dir = Path(run_dir)
    began = time.perf_counter()

    def score(engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            truth = classes[truths[item["case"]]["label"]]
            row = {"case": item["case"], "patient": item["patient"], "truth": truth}
            rows.append(row | _chances(output["pred"], labels))

    def finish(_: Engine) -> None:
        seconds = time.perf_counter() - began
        measures = summarise_classification(rows, classes)
        _write(run_dir, rows, {"task": "classification", **measures}, seconds)
        if rival:
            found = rivals.score_histogram(cases["training"], cases["test"], labels)
            measures["rivals"] = {"histogram": summarise_classification(found, classes)}
            _write(run_dir, rows, {"task": "classification", **measures}, seconds)

    _attach(evaluator, score, finish)


def _chances(prediction: torch.Tensor, labels: Mapping[str, str]) -> dict[str, float]:
    """Return `{"p_<class>": probability}` of one case, in the order of the label map."""
    names = [labels[key] for key in sorted(labels, key=int)]
    return {f"p_{name}": float(chance) for name, chance in zip(names, prediction.flatten(), strict=True)}


def _attach(evaluator: Engine, score: Any, finish: Any) -> None:
    """Run `score` after each batch and `finish` at the end, in the process that writes."""
    if is_main_process():
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, score)
        ProgressBar("evaluate", "case").attach(evaluator)
        evaluator.add_event_handler(Events.COMPLETED, finish)


def _write(run_dir: Path, rows: Sequence[Mapping[str, Any]], measures: dict[str, Any], seconds: float) -> None:
    """Write the table of cases and the summary."""
    write_table(run_dir / "cases.csv", rows)
    write_json(run_dir / "metrics.json", {**measures, "seconds": seconds, "peak_rss_gb": peak_memory_gb()})


def _read(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a label file's array (X, Y, Z) in file order and its affine."""
    image = nibabel.load(path)
    return np.asanyarray(image.dataobj), image.affine


def _picture_cases(
    rows: Sequence[Mapping[str, Any]], truths: Mapping[str, Mapping[str, Any]], run_dir: Path
) -> list[dict[str, Any]]:
    """Return the worst, median and best case with their arrays, for the picture."""
    found = []
    for case in pick_cases(rows):
        entry = truths[case]
        first = entry["image"] if isinstance(entry["image"], str) else entry["image"][0]
        image, affine = _read(first)
        if min(image.shape) == 1:
            continue  # the picture cuts three planes through a volume
        scores = [row["dice"] for row in rows if row["case"] == case and row["dice"] is not None]
        found.append(
            {
                "case": case,
                "image": image,
                "affine": affine,
                "truth": _read(entry["label"])[0],
                "prediction": _read(str(run_dir / "predictions" / f"{case}.nii.gz"))[0],
                "dice": float(np.mean(scores)),
            }
        )
    return found
