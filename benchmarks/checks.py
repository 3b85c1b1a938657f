"""How fast `tomokit check` is, and which share of the faults that only statistics show it finds.

Each fault is planted in one case at a time, in memory, among the sound others of its set.

Command: make bench NAME=checks [ONLY=hippocampus]
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from records import load_rows, save_rows
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import ndimage

from tomokit.checks import check_dataset
from tomokit.checks.cases import Case, describe_image
from tomokit.checks.fit import measure_fit
from tomokit.checks.pairs import NEARLY_SAME, correlate
from tomokit.checks.sets import compare_cases
from tomokit.datasets import data_root
from tomokit.runs import peak_memory_gb
from tomokit.volumes import read_volume

SETS = ("phantom-ct", "phantom-mri", "hippocampus")
PAGE = Path(__file__).parents[1] / "docs" / "findings.md"
MARKS = ("<!-- checks -->", "<!-- end -->")
NAMES = {
    "tomokit check": "whole check",
    "label sound": "sound label, flagged",
    "different patients": "highest correlation of different patients",
}
PLACED = {"left_right_swap", "label_does_not_fit"}
Array = np.ndarray[Any, Any]


def to_bytes(image: Array) -> Array:
    """Return an image scaled to 0–255."""
    low, high = np.percentile(image, [1, 99])
    return (np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8)


LABEL_FAULTS: dict[str, Callable[[Array, Array], Array]] = {
    "sound": lambda own, other: own,
    "mirrored left to right": lambda own, other: own[::-1],
    "mirrored front to back": lambda own, other: own[:, ::-1],
    "moved by 3 voxels": lambda own, other: np.roll(own, 3, 1),
    "of another patient": lambda own, other: fit_into(own.shape, other),
}
COPIES: dict[str, Callable[[Array], Array]] = {
    "rescaled to 8 bits": to_bytes,
    "mirrored": lambda image: image[:, ::-1],
    "resampled to 4/5": lambda image: ndimage.zoom(image.astype(np.float32), 0.8, order=1),
    "noise of 5 %": lambda image: image + np.random.default_rng(0).normal(0, 0.05 * np.ptp(image), image.shape),
}


def fit_into(shape: tuple[int, ...], array: Array) -> Array:
    """Return an array cut and filled with zeros to a shape."""
    result = np.zeros(shape, array.dtype)
    part = tuple(slice(0, min(pair)) for pair in zip(shape, array.shape, strict=True))
    result[part] = array[part]
    return result


def load(case: Case) -> tuple[Array, Array]:
    """Return image and label of a case, turned to RAS."""
    image = read_volume(case.entry["image"])
    turn = io_orientation(image.affine)
    label = read_volume(case.entry["label"]).array
    return apply_orientation(image.array, turn), apply_orientation(label, turn)


def found_share(cases: Sequence[Case], labels: dict[str, str], change: Callable[[Array, Array], Array]) -> float:
    """Return the share of cases that are flagged once their label is changed."""
    hits = 0
    for number, case in enumerate(track(cases, "Planting", transient=True)):
        image, label = load(case)
        _, other = load(cases[(number + 1) % len(cases)])
        planted = replace(case, fit=measure_fit(image, change(label, other)), findings=[])
        among = [planted if one is case else one for one in cases]
        hits += any(f.case == case.name and f.kind in PLACED for f in compare_cases(among, labels))
    return hits / len(cases)


def measure(name: str) -> list[dict[str, Any]]:
    """Return the rows of one data set."""
    began = time.perf_counter()
    report = check_dataset(data_root() / name)
    row = {"dataset": name, "ci95": None, "n": len(report.cases), "seconds": time.perf_counter() - began}
    row["peak_rss_gb"] = peak_memory_gb()
    rows = [{"system": "tomokit check", "metric": "seconds", "value": row["seconds"], **row}]
    cases = [case for case in report.cases if case.is_sound]
    for fault, change in LABEL_FAULTS.items():
        share = found_share(cases, dict(report.labels), change)
        rows.append({"system": f"label {fault}", "metric": "flagged share", "value": share, **row})
    own = np.stack([case.descriptors[0] for case in cases])
    highest = float((correlate(own) - 2 * np.eye(len(own))).max())
    rows.append({"system": "different patients", "metric": "highest correlation", "value": highest, **row})
    for kind, change in COPIES.items():
        found = 0
        for case in track(cases, "Copying", transient=True):
            copy = describe_image(change(load(case)[0]))
            found += correlate(np.concatenate([own, copy[None]]))[cases.index(case), -1] > NEARLY_SAME
        rows.append({"system": f"copy, {kind}", "metric": "found share", "value": found / len(cases), **row})
    return rows


def fill_docs(rows: Sequence[dict[str, Any]]) -> None:
    """Write the shares into the block of the page about findings."""
    systems = list(dict.fromkeys(row["system"] for row in rows))
    sets = list(dict.fromkeys(row["dataset"] for row in rows))
    values = {(row["system"], row["dataset"]): row["value"] for row in rows}
    lines = [f"| | {' | '.join(sets)} |", f"|---|{'---|' * len(sets)}"]
    for system in systems:
        shown = ["–" if (system, name) not in values else tell(system, values[system, name]) for name in sets]
        lines.append(f"| {NAMES.get(system, f'{system}, found')} | {' | '.join(shown)} |")
    text = PAGE.read_text(encoding="utf-8")
    begin, end = text.index(MARKS[0]) + len(MARKS[0]), text.index(MARKS[1])
    PAGE.write_text(text[:begin] + "\n" + "\n".join(lines) + "\n" + text[end:], encoding="utf-8")


def tell(system: str, value: float) -> str:
    """Return a value as the page shows it."""
    if system == "tomokit check":
        return f"{value:.1f} s"
    return f"{value:.2f}" if system == "different patients" else f"{value:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SETS)
    parser.add_argument("--full", action="store_true", help="the same: there is no shorter one")
    only = parser.parse_args().only
    names = [name for name in SETS if (only or name) == name and (data_root() / name / "dataset.json").is_file()]
    rows = load_rows("checks")
    for name in names:
        kept = [row for row in rows if row["dataset"] != name]
        rows = save_rows("checks", "make bench NAME=checks", kept, measure(name))
    fill_docs(rows)
    table = Table("set", "system", "metric", "value")
    for row in rows:
        table.add_row(row["dataset"], row["system"], row["metric"], f"{row['value']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
