"""What engines do beside the network's pass that looks for anomalies: the threshold, measures, tables, a picture."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.axes import Axes
from monai.data import DataLoader, Dataset
from numpy.typing import NDArray

from tomokit.anomalies import (
    CLEAN,
    FILE,
    SEEN,
    TASK,
    choose_threshold,
    read_threshold,
    summarise_anomalies,
    volume_score,
    voxel_precision,
)
from tomokit.engines.checkpoints import load, weights_of
from tomokit.engines.evaluation import (
    PICTURE,
    Entries,
    attach_inference,
    attach_scoring,
    check_test_cases,
    tell_checkpoint,
    tell_scores,
    write_before_errors,
    write_scores,
)
from tomokit.engines.hardware import plain, to_channels_last, unwrap
from tomokit.files import write_json, write_table
from tomokit.inference import finish_writing, write_array_behind
from tomokit.inference.grids import interpolate_back
from tomokit.panels import GREY, Panel, PanelRow, draw_rows, middle_slice
from tomokit.rivals.anomalies import score_pca
from tomokit.runs import is_main_process

logger = logging.getLogger(__name__)

SCORES = {"cmap": "magma", "vmin": 0}
TITLES = ("normal", "with an anomaly (outline)", "score")
CONVENTION = "Axial slices through the anomaly of the case with the middle score; the patient's right is on the left."
Slices = list[NDArray[np.float32]]


def choose_anomaly_threshold(
    evaluator: Any,
    normal: Entries,
    preprocessing: Callable[..., Any],
    run_dir: str | Path,
    percentile: float,
    rate: float,
) -> dict[str, Any] | None:
    """Return the score above which a volume is flagged, with the best weights; written to `<run_dir>/decision.json`.

    It is chosen on normal cases as they are (`tomokit.anomalies.choose_threshold`). Without one nothing is decided.

    Args:
        evaluator: MONAI's evaluator, whose inferer gives score maps; its network gets the best weights.
        normal: the entries of normal cases that were not trained on.
        preprocessing: what makes their images.
        run_dir: the run's folder.
        percentile: of its voxels' scores that is a volume's score.
        rate: of normal volumes that may be flagged.

    Raises:
        TomokitError: when the rate does not lie between 0 and 1.
    """
    best = Path(run_dir) / "checkpoints" / "best.pt"
    if not is_main_process() or not best.is_file() or not normal:
        return None
    network = unwrap(evaluator.network)
    network.load_state_dict(weights_of(load(best)))
    network.eval()
    scores = []
    for batch in DataLoader(Dataset(list(normal), preprocessing), batch_size=1):
        image = to_channels_last(plain(batch["image"]).to(evaluator.state.device))
        with torch.inference_mode():
            scores.append(volume_score(evaluator.inferer(image, network), percentile))
    content = {"task": TASK, "percentile": percentile, **choose_threshold(scores, rate)}
    write_json(Path(run_dir) / FILE, content)
    logger.info("flagged: above %.4f, %d of %d normal cases", *(content[k] for k in ("threshold", "flagged", "normal")))
    return content


def attach_anomaly_scores(
    evaluator: Engine,
    run_dir: str | Path,
    checkpoint: str | Path,
    cases: Mapping[str, Entries],
    percentile: float,
    preprocessing: Callable[..., Any],
    smoothing: float = 1.0,
    rival: bool = True,
) -> None:
    """Score the test cases, normal and with anomalies; write `cases.csv`, `metrics.json`, `overlay.png` at the end.

    Args:
        evaluator: on `tomokit.anomalies.TestAnomalies`; its output holds `pred`, a score map (1, X, Y[, Z]).
        run_dir: the run's folder, whose `decision.json` has the threshold.
        checkpoint: which weights are scored, told in the measures.
        cases: the split; `training` fits the rival.
        percentile: of its voxels' scores that is a volume's score.
        preprocessing: what makes the training cases' images, for the rival.
        smoothing: of the rival's scores, as of the network's.
        rival: also score a principal component analysis.

    Raises:
        TomokitError: when there is no test case.
    """
    check_test_cases(cases)
    run_dir = Path(run_dir)
    threshold = read_threshold(run_dir / FILE)
    rows: list[dict[str, Any]] = []
    pictures: dict[tuple[str, str], Slices] = {}
    clean: dict[str, NDArray[Any]] = {}
    began = time.perf_counter()

    def score(engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            scores, image = (np.asarray(torch.as_tensor(part).cpu()) for part in (output["pred"], item["image"]))
            mask, kind, case = np.asarray(item["mask"])[0], item["kind"], item["case"]
            row = {"case": case, "patient": item["patient"], "kind": kind, "score": volume_score(scores, percentile)}
            if kind == CLEAN:
                clean.clear()  # of the last case
                clean[case] = image[0]
            else:
                row["voxel_ap"] = voxel_precision(scores[0], mask)
                pictures[case, kind] = _slices([clean[case], image[0], scores[0], mask.astype(np.float32)], mask)
            rows.append(row)

    def finish(_: Engine) -> None:
        measures: dict[str, Any] = {"task": TASK, "checkpoint": tell_checkpoint(run_dir, checkpoint)}
        measures |= {"seconds": time.perf_counter() - began, "threshold": threshold, "picture": PICTURE}
        measures |= summarise_anomalies(rows, threshold)
        write_scores(run_dir, rows, measures)
        draw_anomalies(_pick(rows, pictures), run_dir / PICTURE)
        if rival:
            normal = Dataset(list(cases["training"]), preprocessing)
            found = score_pca(normal, evaluator.data_loader.dataset, percentile, smoothing)
            measures["rivals"] = {"pca": summarise_anomalies(found, None)}
            write_scores(run_dir, rows, measures)
        tell_scores(run_dir, "case")

    attach_scoring(evaluator, score, finish)


def attach_anomaly_table(
    evaluator: Any, output_dir: str | Path, run_dir: str | Path, percentile: float, write: bool = True
) -> None:
    """Write a score per voxel of each scan, and `anomalies.csv` at the end, or before an error ends it.

    `<case>_score.nii.gz` lies on the scan's own grid; 0 is where nothing was looked at. A row of the table has the
    volume's score, the threshold and whether it is flagged, and the highest score with its place (RAS, mm).

    Args:
        evaluator: its output holds `pred`, a score map (1, X, Y[, Z]) on the preprocessed image's grid.
        output_dir: the folder to write to.
        run_dir: of the run, whose `decision.json` has the threshold.
        percentile: of its voxels' scores that is a volume's score.
        write: whether score maps are written.

    Raises:
        TomokitError: when a result would be written over its source, or `decision.json` is malformed.
    """
    threshold = read_threshold(Path(run_dir) / FILE)
    rows: list[dict[str, Any]] = []
    path = Path(output_dir) / "anomalies.csv"

    def keep(engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            scores, image = np.asarray(torch.as_tensor(output["pred"]).cpu()), item["image"]
            row = {"case": item["case"], "score": volume_score(scores, percentile), "threshold": threshold}
            row["flagged"] = None if threshold is None else int(row["score"] > threshold)
            rows.append(row | _highest(scores[0], np.asarray(image.affine, float)))
            if write:
                shape = tuple(int(size) for size in np.asarray(image.meta["spatial_shape"]))
                found = interpolate_back(scores[0], image.affine, shape, image.meta["original_affine"])
                write_array_behind(found, image, Path(output_dir), f"{item['case']}_score")

    def finish(_: Engine) -> None:
        finish_writing()
        write_table(path, rows)
        print(f"anomalies: {path}", flush=True)

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep)
    evaluator.add_event_handler(Events.COMPLETED, finish)
    write_before_errors(evaluator, path, rows, "case")
    attach_inference(evaluator, output_dir, write="", run_dir=run_dir)


def draw_anomalies(found: Mapping[str, Slices], path: str | Path) -> None:
    """Return nothing; write a PNG with a row per kind: the normal slice, the same with an anomaly, and its scores."""
    rows = []
    for kind, (normal, altered, scores, mask) in found.items():
        planes = [middle_slice(plane) for plane in (normal, altered, scores)]
        outline = partial(_outline, mask=middle_slice(mask))
        panels = [Panel(*own) for own in zip(TITLES, planes, (GREY, GREY, SCORES), (None, outline, None), strict=True)]
        rows.append(PanelRow(f"{kind} (seen in training)" if kind in SEEN else kind, panels))
    draw_rows(rows, path, CONVENTION)


def _outline(ax: Axes, mask: NDArray[Any]) -> None:
    """Draw the edge of a mask (H, W)."""
    ax.contour(mask, [0.5], colors="red", linewidths=0.8)


def _slices(volumes: Sequence[NDArray[Any]], mask: NDArray[np.bool_]) -> Slices:
    """Return each volume's axial slice (X, Y) that shows most of the mask."""
    flat = [volume if volume.ndim == 3 else volume[..., None] for volume in volumes]
    place = int(np.reshape(mask, flat[0].shape).sum((0, 1)).argmax())
    return [np.asarray(volume[:, :, place], np.float32) for volume in flat]


def _pick(rows: Sequence[Mapping[str, Any]], pictures: Mapping[tuple[str, str], Slices]) -> dict[str, Slices]:
    """Return of each kind the slices of the case with the middle score."""
    picked = {}
    for kind in dict.fromkeys(kind for _, kind in pictures):
        own = sorted((row["score"], row["case"]) for row in rows if row["kind"] == kind)
        picked[kind] = pictures[own[len(own) // 2][1], kind]
    return picked


def _highest(scores: NDArray[Any], affine: NDArray[np.float64]) -> dict[str, float]:
    """Return the highest score of a map (X, Y[, Z]) and its place in mm."""
    place = np.unravel_index(int(scores.argmax()), scores.shape)
    world = affine @ [*place, *[0] * (3 - scores.ndim), 1]
    axes = zip(("x_mm", "y_mm", "z_mm"), world[:3], strict=True)
    return {"highest": float(scores[place]), **{name: round(float(value), 2) for name, value in axes}}
