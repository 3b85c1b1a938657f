"""What an evaluation or inference engine does besides the network's pass: measures, tables, a picture."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from tomokit import rivals
from tomokit.checks import find_outside, read_range
from tomokit.engines.checkpoints import find_checkpoint
from tomokit.engines.comparison import compare_rows, score_rivals
from tomokit.engines.progress import ProgressBar
from tomokit.errors import TomokitError
from tomokit.files import read_json, write_json, write_table
from tomokit.held_out import Promise, promise_classes, promise_interval, read_promise, score_classes, score_intervals
from tomokit.inference import WritePredictiond, finish_writing, first_image
from tomokit.memory import keep_freed_memory
from tomokit.metrics import TASKS, check_task, summarise_task
from tomokit.runs import is_main_process, peak_memory_gb
from tomokit.subgroups import read_subgroups, summarise_subgroups

logger = logging.getLogger(__name__)

PICTURE = "overlay.png"
Entries = Sequence[Mapping[str, Any]]


def attach_inference(
    evaluator: Any, output_dir: str | Path, write: str = "", run_dir: str | Path | None = None
) -> None:
    """Show progress over the cases and say where the results are, and which scans are unlike the training cases.

    Args:
        evaluator: its data set's entries have `case` and `image`.
        output_dir: the folder of the results.
        write: the key of label maps that are to be written there; "" where the postprocessing writes them.
        run_dir: of the run, whose `range.json` the scans are compared with; None compares none.

    Raises:
        TomokitError: when a result would be written over its source, or `range.json` is malformed.
    """
    evaluator.network.eval()  # once; MONAI's evaluator does, and undoes it, with each batch
    entries = evaluator.data_loader.dataset.data
    if len(entries) > 1:  # the next scan is read ahead, which takes more than what is kept
        keep_freed_memory()
    for entry in entries:
        source = Path(first_image(entry["image"]))
        if source.parent.resolve() == Path(output_dir).resolve():
            raise TomokitError(f"output_dir {output_dir} holds the input {source.name}; give another `output_dir`")
    if write:
        writer = WritePredictiond(write, output_dir)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, _write_outputs, writer)
    if run_dir is not None:
        warn_outside(evaluator, run_dir)
    ProgressBar("infer", "case").attach(evaluator)

    def tell(_: Engine) -> None:
        finish_writing()
        print(f"predictions: {output_dir}", flush=True)

    evaluator.add_event_handler(Events.COMPLETED, tell)


def _write_outputs(engine: Any, writer: WritePredictiond) -> None:
    """Write the label map of each case of a batch."""
    for item, output in zip(engine.state.batch, engine.state.output, strict=True):
        writer({**output, "case": item["case"], "image": item["image"]})


def warn_outside(evaluator: Any, run_dir: str | Path) -> None:
    """Log a warning for each scan that lies outside the range of a run's training cases, and in what.

    Runs of earlier versions, whose range is not known, warn of nothing.

    Args:
        evaluator: its data set's entries have `case` and `image`.
        run_dir: the run's folder.

    Raises:
        TomokitError: when `range.json` is malformed.
    """
    known = read_range(run_dir)
    if known is None:
        return
    images = {entry["case"]: entry["image"] for entry in evaluator.data_loader.dataset.data}

    def warn(engine: Any) -> None:
        for item in engine.state.batch:
            if outside := find_outside(known, images[item["case"]]):
                logger.warning("%s is unlike the training cases: %s", item["case"], "; ".join(outside))

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, warn)


def attach_class_table(
    evaluator: Engine,
    output_dir: str | Path,
    labels: Mapping[str, str],
    task: str = "classes",
    run_dir: str | Path | None = None,
    error_rate: float = 0.1,
    risk: float = 0.05,
) -> None:
    """Write what the network says of each input to `<output_dir>/<task>.csv` at the end, or before an error ends it.

    `classes.csv` has the likeliest class and each one's probability; `labels.csv` of several labels the probability
    of each and whether it is decided to be there (0 or 1); `value.csv` the predicted value. What the run's validation
    cases promise stands beside: of classes the `set` that holds the true one and why a human should `refer` to the
    scan, of a value its interval, `low` to `high`.

    Args:
        evaluator: its output holds `pred`, probabilities (C,) or a value (1,), and of labels `pred_decided` (C,).
        output_dir: the folder to write to.
        labels: the classes or labels, `{"0": name, …}`.
        task: "classes", "labels" or "value".
        run_dir: of the run, whose promise is told, and with whose `range.json` scans are compared; None does neither.
        error_rate: the share of sets and intervals that may miss the truth.
        risk: the share of answers that may be wrong where no human is asked.

    Raises:
        TomokitError: when there is no such task, or a share does not lie between 0 and 1.
    """
    check_task(task)
    promise = read_promise(run_dir, error_rate, risk) if run_dir is not None else None
    if run_dir is not None:
        warn_outside(evaluator, run_dir)
    rows: list[dict[str, Any]] = []
    path, names = Path(output_dir) / f"{task}.csv", _names(labels)

    def keep(engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            answers = _answers(task, output, names)
            row = {"case": item["case"]}
            if task == "classes":
                row["class"] = max(names, key=lambda name: answers[f"p_{name}"])
            rows.append(row | answers | tell_promise(promise, answers, names))

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep)
    write_at_end(evaluator, path, rows, task, "case")


def write_at_end(evaluator: Engine, path: Path, rows: list[dict[str, Any]], told: str, unit: str) -> None:
    """Show the progress, and write the rows that a handler gathers when all is done, or before an error ends it.

    Args:
        evaluator: the engine.
        path: of the table.
        rows: to which a handler adds each case's.
        told: what the table is called.
        unit: what a row is of, such as `case`.
    """

    def finish(_: Engine) -> None:
        write_table(path, rows)
        print(f"{told}: {path}", flush=True)

    evaluator.add_event_handler(Events.COMPLETED, finish)
    write_before_errors(evaluator, path, rows, unit)
    ProgressBar("infer", unit).attach(evaluator)  # which raises the error again, so it comes last


def write_before_errors(evaluator: Engine, path: Path, rows: list[dict[str, Any]], unit: str) -> None:
    """Write the rows that a handler gathers when an error ends the evaluation.

    It stands before `write_at_end` of another table, whose progress bar raises the error again.

    Args:
        evaluator: the engine.
        path: of the table.
        rows: to which a handler adds.
        unit: what a row is of, such as `case`.
    """

    def keep_rows(_: Engine, error: Exception) -> None:
        if rows:
            write_table(path, rows)
            logger.error("%s holds the %d %ss before %s", path, len(rows), unit, type(error).__name__)

    evaluator.add_event_handler(Events.EXCEPTION_RAISED, keep_rows)


def attach_classification_scores(
    evaluator: Engine,
    run_dir: str | Path,
    checkpoint: str | Path,
    labels: Mapping[str, str],
    cases: Mapping[str, Entries],
    rival: bool,
    task: str = "classes",
    feature_models: Sequence[str] = (),
    mask_above: float | None = None,
    records: Mapping[str, Any] | None = None,
    error_rate: float = 0.1,
    risk: float = 0.05,
    dataset_dir: str | Path | None = None,
) -> None:
    """Keep what the network says of each test case; write `cases.csv` and `metrics.json` at the end.

    Args:
        evaluator: its output holds `pred`: the probabilities (C,) of classes or of labels, or a value (1,); beside
            those of labels `pred_decided` (C,), 0 or 1, without which 0.5 decides.
        run_dir: the run's folder.
        checkpoint: which weights are scored, told in the measures.
        labels: the classes or labels, `{"0": name, …}`.
        cases: the split; `training` fits the rivals, `test` is scored.
        rival: also score a linear model of the intensity histogram.
        task: "classes", "labels" (several per case) or "value" (a regression).
        feature_models: of classes, the rivals that see measures of size, shape and intensity alone: of "threshold",
            "logistic", "tree" and "perceptron".
        mask_above: the images are masks themselves: voxels above this value are the structure that is measured.
        records: of a fusion, how its records become numbers: also score a linear model of the record alone.
        error_rate: the share of label sets and intervals that may miss the truth, by the run's validation cases.
        risk: the share of answers that may be wrong where no human is asked.
        dataset_dir: the data set that tells the kinds of cases, which are scored by themselves; None scores none.

    Raises:
        TomokitError: when there is no test case, no such task, no such rival, or a share is impossible.
    """
    check_test_cases(cases)
    check_task(task)
    for model in feature_models:
        rivals.make_classifier(model)  # an unknown one is told now, not after the network has run
    promise = read_promise(run_dir, error_rate, risk)
    rows: list[dict[str, Any]] = []
    truths = {entry["case"]: entry for entry in cases["test"]}
    names = _names(labels)
    run_dir = Path(run_dir)
    began = time.perf_counter()

    def score(engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            row = {"case": item["case"], "patient": item["patient"]}
            row |= _truths(task, truths[item["case"]]["label"], names)
            answers = _answers(task, output, names)
            rows.append(row | answers | tell_promise(promise, answers, names))

    def summarise_kind(own: Sequence[Mapping[str, Any]]) -> Any:
        return summarise_task(task, own, names)["summary"]

    def finish(_: Engine) -> None:
        measures: dict[str, Any] = {"task": TASKS[task], "checkpoint": tell_checkpoint(run_dir, checkpoint)}
        measures |= {"seconds": time.perf_counter() - began, **summarise_task(task, rows, names)}
        if promise:
            kept = score_classes(promise, rows, names) if task == "classes" else score_intervals(promise, rows, "truth")
            measures["promises"] = kept
        if groups := read_subgroups(dataset_dir, list(truths)) if dataset_dir else {}:
            measures["subgroups"] = summarise_subgroups(rows, groups, summarise_kind)
        write_scores(run_dir, rows, measures)
        if found := score_rivals(task, cases, labels, rival, feature_models, mask_above, records):
            measures["rivals"] = {name: summarise_task(task, own, names) for name, own in found.items()}
            measures["comparisons"] = {name: compare_rows(task, rows, own, names) for name, own in found.items()}
            write_scores(run_dir, rows, measures)
        tell_scores(run_dir, "case")

    attach_scoring(evaluator, score, finish)


def tell_scores(run_dir: Path, unit: str) -> None:
    """Say where the scores of an evaluation are, and those of each case or pair."""
    print(f"scores: {run_dir / 'metrics.json'}, each {unit}: {run_dir / 'cases.csv'}", flush=True)


def check_test_cases(cases: Mapping[str, Entries]) -> None:
    """Raise when the split has no test case.

    Raises:
        TomokitError: which says where the test cases come from.
    """
    if not cases["test"]:
        raise TomokitError("the run's split has no test case to score; give `split` a file whose fold lists some")


def tell_checkpoint(run_dir: Path, checkpoint: str | Path) -> str:
    """Return the scored checkpoint's file name, with its epoch where the run knows it."""
    path = find_checkpoint(run_dir, checkpoint)
    record = read_json(run_dir / "validation.json") if (run_dir / "validation.json").is_file() else {}
    epochs = {"best": (record.get("best") or {}).get("epoch"), "last": record.get("epochs")}
    epoch = epochs.get(path.stem) if path.parent == run_dir / "checkpoints" else None
    return path.name if epoch is None else f"{path.name}, epoch {epoch}"


def _names(labels: Mapping[str, str]) -> list[str]:
    """Return the names of the classes or labels in the order of the network's channels."""
    return [labels[key] for key in sorted(labels, key=int)]


def _truths(task: str, label: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the truth of one case as columns of the table of cases."""
    if task == "labels":
        return {f"truth_{name}": int(flag) for name, flag in zip(names, label, strict=True)}
    return {"truth": float(label) if task == "value" else names[label]}


def _answers(task: str, output: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, Any]:
    """Return what the network says of one case as columns of the table of cases."""
    values = [float(value) for value in output["pred"].flatten()]
    if task == "value":
        return {"prediction": values[0]}
    answers: dict[str, Any] = {f"p_{name}": value for name, value in zip(names, values, strict=True)}
    if task == "labels":
        decided = output["pred_decided"] if "pred_decided" in output else output["pred"] >= 0.5
        answers |= {f"decided_{name}": int(flag) for name, flag in zip(names, decided.flatten(), strict=True)}
    return answers


def tell_promise(promise: Promise | None, answers: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return what a run promises of a case as columns of a table; none where it promises nothing."""
    if promise is None:
        return {}
    if promise.task == "value":
        low, high = promise_interval(promise, answers["prediction"])
        return {"low": low, "high": high}
    return dict(promise_classes(promise, {name: answers[f"p_{name}"] for name in names}))


def attach_scoring(evaluator: Engine, score: Any, finish: Any) -> None:
    """Run `score` after each batch and `finish` at the end, in the process that writes."""
    if is_main_process():
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, score)
        ProgressBar("evaluate", "case").attach(evaluator)
        evaluator.add_event_handler(Events.COMPLETED, finish)


def write_scores(run_dir: Path, rows: Sequence[Mapping[str, Any]], measures: Mapping[str, Any]) -> None:
    """Write the table of cases and the summary."""
    write_table(run_dir / "cases.csv", rows)
    write_json(run_dir / "metrics.json", {**measures, "peak_rss_gb": peak_memory_gb()})
