"""What engines do besides the network's pass where it compares two scans: answers, measures, tables, a picture."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special
from ignite.engine import Engine, Events
from numpy.typing import NDArray

from tomokit.datasets import Entry
from tomokit.engines.checkpoints import load, weights_of
from tomokit.engines.evaluation import PICTURE, Entries, check_test_cases, tell_checkpoint, tell_scores, write_at_end
from tomokit.engines.hardware import unwrap
from tomokit.engines.predicting import predict_cases
from tomokit.engines.progress import ProgressBar
from tomokit.errors import TomokitError, raise_problems
from tomokit.files import write_json, write_table
from tomokit.geometry import grid_difference
from tomokit.inference import SCANS, list_inputs
from tomokit.pairs import (
    FILE,
    TASK,
    answer_columns,
    choose_change_threshold,
    read_threshold,
    summarise_pairs,
    truth_columns,
)
from tomokit.panels import GREY, Panel, PanelRow, draw_rows, middle_slices, signed_look
from tomokit.rivals import normalise_intensity
from tomokit.rivals.pairs import MEASURES, read_scan, score_pairs
from tomokit.runs import is_main_process, peak_memory_gb
from tomokit.volumes import read_header, stem_of, suffix_of

logger = logging.getLogger(__name__)

FIRST, SECOND = "_0000", "_0001"  # ends of the names of a pair's files
TITLES = ("first scan", "second scan", "second − first")
CONVENTION = "Middle axial slices; the patient's right is on the left. Red: brighter in the second scan. Blue: darker."


def list_pairs(inputs: str | Path | Sequence[Any]) -> list[Entry]:
    """Return an entry `{"case", "image": [first, second]}` for each pair of scans.

    Args:
        inputs: pairs of NIfTI files, `[[first, second], …]`; one pair, `[first, second]`; or a folder with files
            `<case>_0000.nii.gz` and `<case>_0001.nii.gz`.

    Raises:
        TomokitError: when a file is absent or no NIfTI file, scans are no pairs or of one name, or the scans of a pair
            lie on different grids.
    """
    entries = list_inputs(pairs_of(inputs))
    problems = []
    for entry in entries:
        first, second = (read_header(path) for path in entry["image"])
        if difference := grid_difference(first.affine, first.shape[:3], second.affine, second.shape[:3]):
            problems.append(f"{entry['case']}: {difference}")
    raise_problems(
        "the scans of a pair must lie on one grid; align and resample both alike, since the blur of one would tell",
        problems,
    )
    return entries


def pairs_of(inputs: str | Path | Sequence[Any]) -> list[Any]:
    """Return the two files of each pair that `input` names: pairs of files, one pair, or a folder of them.

    Raises:
        TomokitError: when scans are no pairs.
    """
    given: list[Any] = _pairs_in(Path(inputs)) if isinstance(inputs, str | Path) else list(inputs)
    if len(given) == 2 and all(isinstance(item, str | Path) for item in given):
        given = [given]
    raise_problems(
        "`input` must be pairs of scans, such as [[first.nii.gz, second.nii.gz]]",
        [f"{item!r} is no pair" for item in given if isinstance(item, str | Path) or len(item) != 2],
    )
    return given


def choose_pair_decision(evaluator: Any, run_dir: str | Path, rate: float = 0.05) -> dict[str, Any] | None:
    """Return what is decided on the validation pairs with the best weights, written to `<run_dir>/decision.json`.

    It is the probability above which a pair is called changed (`tomokit.pairs.choose_change_threshold`). Nothing is
    decided without an unchanged validation pair: then None is returned, and no file written.

    Args:
        evaluator: MONAI's evaluator on the validation pairs; its network gets the best weights.
        run_dir: the run's folder.
        rate: of unchanged pairs that may be called changed.

    Raises:
        TomokitError: when the rate does not lie between 0 and 1.
    """
    best = Path(run_dir) / "checkpoints" / "best.pt"
    if not is_main_process() or not best.is_file() or not len(evaluator.data_loader.dataset):
        return None
    unwrap(evaluator.network).load_state_dict(weights_of(load(best)))
    outputs, targets = predict_cases(evaluator)
    unchanged = scipy.special.expit(outputs[targets[:, 1] == 0, 1])
    if not len(unchanged):
        return None
    content = {"task": TASK, **choose_change_threshold(unchanged, rate)}
    write_json(Path(run_dir) / FILE, content)
    logger.info(
        "called changed: above %.4f, %d of %d unchanged validation pairs (%.0f %% sure that at most %g %% of others)",
        *(content["threshold"], content["called"], content["unchanged"], 100 * content["confidence"], 100 * rate),
    )
    return content


def attach_pair_table(evaluator: Any, output_dir: str | Path) -> None:
    """Write what the network says of each pair to `<output_dir>/pairs.csv` at the end, or before an error ends it.

    Args:
        evaluator: its output holds `pred` (3,) and `pred_changed`, as `PairAnswersd` makes them.
        output_dir: the folder to write to.
    """
    rows: list[dict[str, Any]] = []
    path = Path(output_dir) / "pairs.csv"
    files = {entry["case"]: entry["image"] for entry in evaluator.data_loader.dataset.data}

    def keep(engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            first, second = files[item["case"]]
            rows.append({"case": item["case"], "first": first, "second": second, **_answers(output)})

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep)
    write_at_end(evaluator, path, rows, "pairs", "pair")


def attach_pair_scores(
    evaluator: Engine,
    run_dir: str | Path,
    checkpoint: str | Path,
    cases: Mapping[str, Entries],
    rate: float = 0.05,
    rival: bool = True,
    decision_dir: str | Path | None = None,
) -> None:
    """Score the answers on each test pair; write `cases.csv`, `metrics.json`, `overlay.png` at the end.

    Args:
        evaluator: its output holds `pred` (3,) and `pred_changed`, as `PairAnswersd` makes them.
        run_dir: the run's folder.
        checkpoint: which weights are scored, told in the measures.
        cases: the split; `training` fits the rivals, `validation` gives their thresholds, `test` is scored.
        rate: of unchanged pairs that a rival may call changed, as for the network.
        rival: also score the count of tissues, and the control that sees only the resampling.
        decision_dir: the folder whose `decision.json` has the threshold of a change; None is the run's.

    Raises:
        TomokitError: when there is no test pair.
    """
    check_test_cases(cases)
    rows: list[dict[str, Any]] = []
    truths = {entry["case"]: entry for entry in cases["test"]}
    run_dir, decided = Path(run_dir), Path(decision_dir or run_dir) / FILE
    began = time.perf_counter()

    def score(engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            row = {"case": item["case"], "patient": item["patient"]}
            rows.append(row | truth_columns(truths[item["case"]]) | _answers(output))

    def finish(_: Engine) -> None:
        measures: dict[str, Any] = {"task": TASK, "checkpoint": tell_checkpoint(run_dir, checkpoint)}
        measures |= {"seconds": time.perf_counter() - began, "threshold": read_threshold(decided)}
        measures |= {**summarise_pairs(rows), "picture": PICTURE}
        _write(run_dir, rows, measures)
        draw_pairs([_picture_pair(row, truths[row["case"]]) for row in pick_pairs(rows)], run_dir / PICTURE)
        if rival:
            measures["rivals"] = {name: _score_rival(cases, name, rate) for name in MEASURES}
            _write(run_dir, rows, measures)
        tell_scores(run_dir, "pair")

    if is_main_process():
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, score)
        ProgressBar("evaluate", "pair").attach(evaluator)
        evaluator.add_event_handler(Events.COMPLETED, finish)


def pick_pairs(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows of the changed pairs most and least surely called so, then of the unchanged ones."""
    picked: list[Mapping[str, Any]] = []
    for changed in (True, False):
        own = [row for row in rows if (row["truth"] != "unchanged") == changed]
        own = sorted(own, key=lambda row: (-row["p_changed"], row["case"]))
        picked += own if len(own) < 2 else [own[0], own[-1]]
    return picked


def draw_pairs(pairs: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Return nothing; write a PNG with a row per pair: first scan, second scan, and their difference.

    A pair has "title", "first" and "second", (X, Y, Z) on one grid in any orientation, and their "affine" (voxel to
    RAS, mm). The grey of each scan runs from its own 1st to its 99th percentile, and so does what is subtracted.

    Raises:
        TomokitError: when there is no pair, the scans of a pair are not 3D of one shape, or the file can't be written.
    """
    rows = []
    for pair in pairs:
        first, second, pixel = _middle_slices(pair)
        planes, looks = (first, second, second - first), (GREY, GREY, signed_look(second - first))
        panels = [Panel(*own) for own in zip(TITLES, planes, looks, strict=True)]
        rows.append(PanelRow(pair["title"], panels, pixel))
    draw_rows(rows, path, CONVENTION)


def _answers(output: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the network says of one pair as columns of a table."""
    changed, first, amount = (float(value) for value in output["pred"])
    return answer_columns(changed, int(output["pred_changed"]), first, amount)


def _score_rival(cases: Mapping[str, Entries], name: str, rate: float) -> dict[str, Any]:
    """Return a rival's measures, as those of the network."""
    rows, decision = score_pairs(cases, name, rate)
    return {**summarise_pairs(rows), "threshold": None if decision is None else decision["threshold"]}


def _write(run_dir: Path, rows: Sequence[Mapping[str, Any]], measures: Mapping[str, Any]) -> None:
    """Write the table of pairs and the summary."""
    write_table(run_dir / "cases.csv", rows)
    write_json(run_dir / "metrics.json", {**measures, "peak_rss_gb": peak_memory_gb()})


def _pairs_in(folder: Path) -> list[list[str]]:
    """Return the pairs of files of a folder."""
    if not folder.is_dir():
        raise TomokitError(f"`input` {folder} is no folder; give one, or pairs such as [[first.nii.gz, second.nii.gz]]")
    files = [path for path in sorted(folder.iterdir()) if suffix_of(path) in SCANS and path.name[0] != "."]
    firsts = [path for path in files if stem_of(path).endswith(FIRST)]
    if not firsts:
        raise TomokitError(
            f"{folder} holds no pair of scans: its files must be called <case>{FIRST}.nii.gz and <case>{SECOND}.nii.gz"
        )
    return [[str(path), str(path.with_name(path.name.replace(f"{FIRST}.", f"{SECOND}.")))] for path in firsts]


def _picture_pair(row: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pair with its scans and, as its title, the truth and the answer."""
    first, second = (read_scan(path) for path in entry["image"])
    truth = row["truth"] if not row["truth_amount"] else f"{row['truth']} ({row['truth_amount']:+.1f} %)"
    sides = f"{row['amount']:+.1f} %, P(first is earlier) {row['p_first_is_earlier']:.2f}"
    title = f"{row['case']}: {truth}. Answer: P(changed) {row['p_changed']:.2f}, {sides}"
    return {"title": title, "first": first.array, "second": second.array, "affine": first.affine}


def _middle_slices(pair: Mapping[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[float, float]]:
    """Return the middle axial slices (H, W) of both scans, 0 to 1, and a pixel's size in mm."""
    scans = [normalise_intensity(np.asarray(pair[key])) for key in ("first", "second")]
    shapes = [scan.shape for scan in scans]
    if len(shapes[0]) != 3 or shapes[0] != shapes[1]:
        raise TomokitError(f"{pair['title']}: the scans must be 3D of one shape (X, Y, Z), got {shapes}")
    (first, second), pixel = middle_slices(scans, pair["affine"])
    return first, second, pixel
