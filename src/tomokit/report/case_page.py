"""The page of one new scan: what a run finds in it, how sure that is, and why a human should look."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
from numpy.typing import NDArray

from tomokit.bundles import find_bundle
from tomokit.checks.ranges import find_outside, read_range
from tomokit.configs import read_config
from tomokit.errors import TomokitError
from tomokit.files import read_json, write_text
from tomokit.geometry import axis_codes, spacing_from_affine
from tomokit.held_out import BETWEEN, Promise, promise_interval, read_promise
from tomokit.inference import first_image
from tomokit.inputs import list_images
from tomokit.labels import find_lesions
from tomokit.measure import measure_structures
from tomokit.pictures import grey_range, overlay_slice, turn_to_ras
from tomokit.reading import read_scan
from tomokit.report.content import SCORED, read_table
from tomokit.report.page import render
from tomokit.report.slices import EDGE, encode, make_viewer
from tomokit.report.tables import Table

BUNDLES = {"segmentation": "segmentation", "classification": "classification"}
ERROR_RATE, RISK = 0.1, 0.05
MOST_PIECES = 10  # of a lesion, the largest, that are told one by one
UNITS = {"CT": "HU"}
Content = dict[str, Any]


def write_case_page(
    case: str | Path,
    run: str | Path,
    bundle: str | None = None,
    table: str | Path | None = None,
    out: str | Path | None = None,
) -> Path:
    """Return the page on a new scan that was written, `<run>/inference/<case>.html` or `out`.

    What the run found, a label map or a table, is kept beside it, in `<page>_files`.

    Args:
        case: a scan of any format that inference takes; a picture where the run was trained on pictures.
        run: the folder of a trained and evaluated run.
        bundle: the name or folder of the bundle that it was trained with; by default that of its task.
        table: the patient's record, where the run takes one; without it the whole record counts as missing.
        out: another file.

    Raises:
        TomokitError: when the scan or the run is absent, or the run's task has no such page.
    """
    run = Path(run)
    config = run / "configs" / "train.yaml"
    if not config.is_file() or not (run / SCORED).is_file():
        raise TomokitError(f"{run} holds no run that was trained and evaluated; give the folder of one")
    task = str(read_json(run / SCORED)["task"])
    if task not in BUNDLES:
        raise TomokitError(f"{run} is of the task {task!r}, which has no page of a single scan; use its inference.yaml")
    settings = read_config(config)
    entry = list_images([str(case)], len(settings["modality"]), pictures=task == "classification")[0]
    path = Path(out) if out is not None else run / "inference" / f"{entry['case']}.html"
    made = path.with_name(f"{path.stem}_files")
    files = [str(config), str(find_bundle(bundle or BUNDLES[task]) / "configs" / "inference.yaml")]
    given = {"input": [str(case)], "output_dir": str(made), "run_dir": str(run)}
    given |= {} if table is None else {"table": str(table)}
    monai.bundle.run(config_file=files, **given)
    make = _segmented if task == "segmentation" else _classified
    content = make(entry, settings, run, made)
    if table is not None:
        content["facts"].append(("record", Path(table).name))
    outside = read_range(run)
    if outside is not None:
        content["reasons"] = [*content["reasons"], *find_outside(outside, entry["image"])]
    write_text(path, render("case.html", name=entry["case"], run=run.resolve().name, **content))
    return path


def _segmented(entry: Mapping[str, Any], settings: Mapping[str, Any], run: Path, made: Path) -> Content:
    """Return what the page of a segmented scan shows."""
    source = next(made.glob(f"{entry['case']}.*"))
    labels = np.asarray(read_scan(source).array).astype(np.int64)
    image, affine = _read(entry)
    unit = UNITS.get(str(settings["modality"][0]).upper(), "")
    rows = measure_structures(labels, settings["labels"], affine, image, unit=unit)
    promise = read_promise(run, ERROR_RATE, RISK)
    viewer = make_viewer(entry["case"], "Filled: what was found.", image, labels, None, affine, settings["labels"])
    return {
        "tables": [_structures(rows, promise, unit)],
        "reasons": list(_doubts(rows, promise, find_lesions(settings["labels"]))),
        "viewer": viewer,
        "promised": promise is not None and _is_finite(promise),
        "facts": _facts(entry, image.shape, affine),
    }


def _structures(rows: Sequence[Mapping[str, Any]], promise: Promise | None, unit: str) -> Table:
    """Return the table of structures and lesions."""
    head = ["", "ml", "ml, promised", "longest axial, mm", "across, mm", "longest, mm", "centre, mm (R, A, S)"]
    lines = []
    for row in rows:
        whole = row["piece"] in ("", None)
        if not whole and int(row["piece"]) > MOST_PIECES:
            continue
        more = f", {row['pieces']} pieces" if whole and (row.get("pieces") or 0) > MOST_PIECES else ""
        name = row["structure"] + more if whole else f"{row['structure']}, piece {row['piece']}"
        if not row["voxels"]:
            lines.append([name, "not found", *["–"] * (len(head) - 1)])
            continue
        told = _interval(promise, row) if whole else "–"
        sizes = [f"{row[key]:.1f}" for key in ("axial_longest_mm", "axial_short_mm", "longest_diameter_mm")]
        centre = ", ".join(f"{place:.0f}" for place in row["centre_mm"])
        lines.append([name, f"{row['volume_ml']:.2f}", told, *sizes, centre, _density(row, unit)])
    note = ""
    if promise is not None and _is_finite(promise):
        held = f"{1 - promise.error_rate:.0%}"
        note = f"The interval holds the true volume in {held} of such scans, by {promise.cases} validation cases."
    return Table("Findings", [*head, f"density{f', {unit}' if unit else ''}"], lines, note)


def _is_finite(promise: Promise) -> bool:
    """Return whether the validation cases sufficed for an interval of every structure."""
    return all(map(math.isfinite, promise.reach.values()))


def _interval(promise: Promise | None, row: Mapping[str, Any]) -> str:
    """Return the volumes in ml that a structure may have, as text."""
    if promise is None or row["structure"] not in promise.reach:
        return "–"
    low, high = promise_interval(promise, row["volume_ml"], row["structure"])
    return f"{low:.2f} to {high:.2f}" if math.isfinite(high) else "too few validation cases"


def _density(row: Mapping[str, Any], unit: str) -> str:
    """Return the mean and deviation of a structure's intensities, as text."""
    mean, deviation = row.get("density_mean"), row.get("density_sd")
    return "–" if mean is None else f"{mean:.4g} ± {deviation:.3g}"


def _doubts(rows: Sequence[Mapping[str, Any]], promise: Promise | None, lesions: Sequence[str]) -> Iterator[str]:
    """Yield why a human should look at a segmented scan; that there is no lesion is no reason."""
    for row in rows:
        if row["piece"] not in ("", None):
            continue
        if not row["voxels"] and row["structure"] not in lesions:
            yield f"no {row['structure']} was found"
        if row["touches_edge"]:
            yield f"{row['structure']} reaches the edge of the scan, which may cut it off"
    if promise is None:
        yield "the run had no validation cases, so that nothing is promised of its volumes"


def _classified(entry: Mapping[str, Any], settings: Mapping[str, Any], run: Path, made: Path) -> Content:
    """Return what the page of a classified scan shows."""
    row = read_table(made / "classes.csv")[0]
    names = [key.removeprefix("p_") for key in row if key.startswith("p_")]
    promise = read_promise(run, ERROR_RATE, RISK)
    held = row["set"].split(BETWEEN) if row.get("set") else []
    lines = [[name, f"{float(row[f'p_{name}']):.3f}", "yes" if name in held else "no"] for name in names]
    note = "" if promise is None else (
        f"The classes that fit hold the true one in {1 - promise.error_rate:.0%} of such scans, by {promise.cases} "
        "validation cases."
    )  # fmt: skip
    image, affine = _read(entry)
    flat = 1 in image.shape
    reasons = [f"{row['refer']}: {', '.join(held) or 'none'}"] if row.get("refer") else []
    if promise is None:
        reasons.append("the run had no validation cases, so that nothing is promised of its answers")
    return {
        "tables": [Table(f"Answer: {row['class']}", ["class", "probability", "fits"], lines, note)],
        "reasons": reasons,
        "viewer": None if flat else make_viewer(entry["case"], "The scan.", image, None, None, affine, {}),
        "picture": _picture(entry["case"], image, affine) if flat else "",
        "promised": promise is not None,
        "facts": _facts(entry, image.shape, affine),
    }


def _picture(case: str, image: NDArray[Any], affine: NDArray[np.float64]) -> str:
    """Return an image (X, Y, Z) of one slice across an axis, as a reader sees it, as a JPEG in base64."""
    empty = np.zeros(image.shape, np.uint8)
    turned = turn_to_ras({"case": case, "affine": affine, "image": image, "truth": empty, "prediction": empty}).image
    image = np.take(turned, 0, axis=turned.shape.index(1))
    scale = 1.5 * EDGE / max(image.shape)
    size = (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))
    return encode(overlay_slice(image, np.zeros(image.shape, np.uint8), window=grey_range(image)), size)


def _read(entry: Mapping[str, Any]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return a scan's first modality (X, Y, Z) and its affine."""
    volume = read_scan(first_image(entry["image"]))
    array = np.asarray(volume.array)
    return array.reshape(array.shape[:3]) if array.ndim > 3 and array.shape[3:] == (1,) else array, volume.affine


def _facts(entry: Mapping[str, Any], shape: Sequence[int], affine: NDArray[Any]) -> list[tuple[str, str]]:
    """Return what the page tells of the scan itself."""
    spacing = " × ".join(f"{size:.3g}" for size in spacing_from_affine(affine))
    return [
        ("file", Path(first_image(entry["image"])).name),
        ("voxels", " × ".join(map(str, shape))),
        ("spacing, mm", spacing),
        ("axes", axis_codes(affine)),
    ]
