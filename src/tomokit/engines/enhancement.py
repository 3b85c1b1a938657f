"""The scores of enhanced images: of each case and degradation, beside filters; a picture."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray

from tomokit.degradation.cases import KIND
from tomokit.engines.evaluation import (
    PICTURE,
    Entries,
    attach_scoring,
    check_test_cases,
    tell_checkpoint,
    tell_scores,
    write_scores,
)
from tomokit.engines.hardware import plain
from tomokit.errors import TomokitError
from tomokit.inference import finish_writing
from tomokit.intensity import unit_range
from tomokit.metrics import mean_entry, psnr, ssim
from tomokit.metrics.images import WINDOW
from tomokit.panels import GREY, Panel, PanelRow, draw_rows, middle_slices, signed_look
from tomokit.rivals.denoising import apply_filter, check_filters, choose_strength
from tomokit.statistics import compare_means

Rows = list[dict[str, Any]]
Image = NDArray[np.float32]
TASK = "enhancement"
DEGRADED = "degraded"  # the image as it is given, beside which everything stands
METRICS = ("psnr", "ssim", "seconds")
CHOSEN_ON = 4  # cases for the strength of a filter: it is one number, and changes little from case to case
MOST_PSNR = 100.0  # dB, of an image that equals the clean one: its PSNR is infinite
CONVENTION = (
    "Middle axial slices; the patient's right is on the left. Red: brighter than the clean image. Blue: darker."
)
TITLES = ("clean", "degraded", "enhanced", "enhanced − clean")


def attach_enhancement_scores(
    evaluator: Engine,
    run_dir: str | Path,
    checkpoint: str | Path,
    cases: Mapping[str, Entries],
    tests: Mapping[str, Any],
    preprocessing: Any,
    rivals: Sequence[str] = (),
) -> None:
    """Score each test case in each degradation; write `cases.csv`, `metrics.json`, `overlay.png` at the end.

    Everything is scored as a share of the clean image's range, clipped to 0–1, with a peak of 1.

    Args:
        evaluator: its output holds `image` (degraded) and `label` (clean), as shares of the range, and `pred` in the
            source's units, each (1, X, Y[, Z]).
        run_dir: the run's folder.
        checkpoint: which weights are scored, told in the measures.
        cases: the split; a few of `validation` (of `training` where there is none) choose the filters' strengths.
        tests: the degradations by name, as `DegradeCased` takes them.
        preprocessing: of a case, up to its degradation.
        rivals: filters to score beside the network: of "gaussian", "tv" and "nlm".

    Raises:
        TomokitError: when there is no test case, or no such filter.
    """
    check_test_cases(cases)
    check_filters(rivals)
    run_dir = Path(run_dir)
    chosen: dict[tuple[str, str], float] = {}
    rows: Rows = []
    shown: dict[str, dict[str, Any]] = {}
    began = time.perf_counter()
    pass_began = began

    def start(_: Engine) -> None:
        nonlocal pass_began, chosen
        if rivals and not chosen:
            chosen = choose_strengths(rivals, cases["validation"] or cases["training"], tests, preprocessing)
        pass_began = time.perf_counter()

    def score(engine: Any) -> None:
        seconds = (time.perf_counter() - pass_began) / len(engine.state.output)
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            images = unit_images(output)
            strengths = {name: strength for (kind, name), strength in chosen.items() if kind == item[KIND]}
            rows.append(_row(item, images, seconds, strengths))
            if item[KIND] not in shown:
                title = f"{item['case']}, {item[KIND]}: {rows[-1]['psnr_degraded']:.1f} to {rows[-1]['psnr']:.1f} dB"
                affine = np.asarray(torch.as_tensor(output["image"].affine), float)
                shown[item[KIND]] = {**images, "title": title, "affine": affine}

    def finish(_: Engine) -> None:
        finish_writing()
        measures: dict[str, Any] = {"task": TASK, "checkpoint": tell_checkpoint(run_dir, checkpoint)}
        measures |= {"seconds": time.perf_counter() - began, **summarise_enhancement(rows, rivals)}
        measures["strengths"] = {f"{name}, {kind}": strength for (kind, name), strength in chosen.items()}
        if all(image["clean"].ndim == 3 for image in shown.values()):
            draw_enhanced(list(shown.values()), run_dir / PICTURE)
            measures["picture"] = PICTURE
        write_scores(run_dir, rows, measures)
        tell_scores(run_dir, "case")

    evaluator.add_event_handler(Events.ITERATION_STARTED, start)
    attach_scoring(evaluator, score, finish)


def unit_images(output: Mapping[str, Any]) -> dict[str, Image]:
    """Return an output's `clean`, `degraded`, `enhanced` image (X, Y[, Z]), shares of the range, clipped to 0–1.

    `given` is the degraded one unclipped, as the network and the filters get it.
    """
    low, high = unit_range(output["image"])[0]
    enhanced = (_array(output["pred"]).astype(np.float64) - low) / max(high - low, 1e-6)
    images = {"clean": _array(output["label"]), "degraded": _array(output["image"]), "enhanced": enhanced}
    return {name: image.clip(0, 1).astype(np.float32) for name, image in images.items()} | {
        "given": _array(output["image"])
    }


def choose_strengths(
    rivals: Sequence[str], entries: Entries, tests: Mapping[str, Any], preprocessing: Any
) -> dict[tuple[str, str], float]:
    """Return, by degradation and filter, the strength that is best on a few cases.

    Args:
        rivals: names of filters.
        entries: the cases to choose on, of which the first few are taken.
        tests: the degradations by name.
        preprocessing: of a case, with its degradation.
    """
    found: dict[tuple[str, str], float] = {}
    for kind in tests:
        pairs = []
        for entry in entries[:CHOSEN_ON]:
            item = preprocessing({**entry, KIND: kind})
            pairs.append((_array(item["image"]), _array(item["label"]).clip(0, 1)))
        found |= {(kind, name): choose_strength(name, pairs) for name in rivals}
    return found


def summarise_enhancement(rows: Sequence[Mapping[str, Any]], rivals: Sequence[str]) -> dict[str, Any]:
    """Return the means with their intervals, by degradation, of the network, the given image and the rivals.

    `comparisons` has the difference in PSNR between the network and each of them, paired by case.

    Args:
        rows: of `cases.csv`.
        rivals: the names of the filters in them.
    """
    kinds = list(dict.fromkeys(row[KIND] for row in rows))
    own = {kind: [row for row in rows if row[KIND] == kind] for kind in kinds}

    def entries(ending: str, chosen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        patients = [str(row["patient"]) for row in chosen]
        keys = [metric for metric in METRICS if all(row.get(metric + ending) is not None for row in chosen)]
        return {metric: mean_entry([row[metric + ending] for row in chosen], patients) for metric in keys}

    def block(ending: str) -> dict[str, Any]:
        return {"summary": entries(ending, rows), "per_class": {kind: entries(ending, own[kind]) for kind in kinds}}

    others = [DEGRADED, *rivals]
    return {
        **block(""),
        "rivals": {name: block(f"_{name}") for name in others},
        "comparisons": {name: {kind: _compare(own[kind], name) for kind in kinds} for name in others},
    }


def _compare(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Return how the network's PSNR differs from another system's on the same cases."""
    patients = [str(row["patient"]) for row in rows]
    found = compare_means([row["psnr"] for row in rows], [row[f"psnr_{name}"] for row in rows], patients)
    told = {"difference": found.difference, "ci95": [found.low, found.high], "p": found.p, "verdict": found.verdict}
    return told | {"n": len(set(patients))}


def _row(
    item: Mapping[str, Any], images: Mapping[str, Image], seconds: float, strengths: Mapping[str, float]
) -> dict[str, Any]:
    """Return a case's row: of the network, the given image and the filters."""
    clean = images["clean"]
    row = {"case": item["case"], "patient": item["patient"], KIND: item[KIND]}
    row |= _scores(images["enhanced"], clean, "") | {"seconds": seconds}
    row |= _scores(images["degraded"], clean, f"_{DEGRADED}")
    for name, strength in strengths.items():
        began = time.perf_counter()
        filtered = apply_filter(name, images["given"], strength)
        taken = time.perf_counter() - began
        row |= _scores(filtered.clip(0, 1), clean, f"_{name}") | {f"seconds_{name}": taken}
    return row


def _scores(image: Image, clean: Image, ending: str) -> dict[str, float | None]:
    """Return the scores of an image; an image smaller than the similarity's window has none."""
    likeness = ssim(image, clean, 1.0) if min(clean.shape) >= WINDOW else None
    return {f"psnr{ending}": min(psnr(image, clean, 1.0), MOST_PSNR), f"ssim{ending}": likeness}


def _array(image: Any) -> Image:
    """Return the first channel of an image (C, X, Y[, Z])."""
    return np.asarray(plain(torch.as_tensor(image)).cpu()[0], np.float32)


def draw_enhanced(images: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Return nothing; write a PNG with a row per image: clean, degraded, enhanced, and what is left of the difference.

    An image has "title", "clean", "degraded" and "enhanced", (X, Y, Z) as shares of the range, and its "affine".

    Raises:
        TomokitError: when there is none, an image is not 3D, or the file can't be written.
    """
    rows = []
    for image in images:
        planes, pixel = _middle_slices(image)
        left = planes[2] - planes[0]
        looks = [GREY] * 3 + [signed_look(planes[1] - planes[0])]
        panels = [Panel(*own) for own in zip(TITLES, [*planes, left], looks, strict=True)]
        rows.append(PanelRow(image["title"], panels, pixel))
    draw_rows(rows, path, CONVENTION)


def _middle_slices(image: Mapping[str, Any]) -> tuple[list[Image], tuple[float, float]]:
    """Return the middle axial slices (H, W), clean, degraded, enhanced, and a pixel's size in mm."""
    volumes = [np.asarray(image[name]) for name in ("clean", "degraded", "enhanced")]
    if volumes[0].ndim != 3:
        raise TomokitError(f"{image['title']}: the images must be 3D, got {volumes[0].shape}")
    return middle_slices(volumes, image["affine"])
