"""Plan sets that differ in spacing, size, modality and classes, and train the plans with no hand edit.

Command: make bench NAME=planning [ONLY=ct] [FULL=1] [MINUTES=5]

Plain: the CT phantoms. FULL=1: also anisotropic MRI phantoms of one structure, and small ones of two channels.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from records import load_rows, save_rows
from rich.console import Console
from rich.table import Table

from tomokit import phantoms
from tomokit.files import read_json, write_json

FOLDER = Path("runs") / "planning"
GOAL = 0.85
Change = Callable[[NDArray[Any]], NDArray[Any]]


def make_ct(folder: Path) -> None:
    """Make CT phantoms: 64³ voxels of 2.5 mm, three structures."""
    phantoms.make_segmentation_set(folder, "CT")


def make_mri(folder: Path) -> None:
    """Make anisotropic MRI phantoms: 80 × 80 × 40 voxels of 2.5 × 2.5 × 5 mm, the liver with its lesions alone."""
    phantoms.make_segmentation_set(folder, "MRI", cases=30, size=80)
    for path in sorted(folder.glob("images*/*")):
        rewrite(path, lambda volume: volume.reshape(80, 80, 40, 2).mean(-1), 2)
    for path in sorted(folder.glob("labels*/*")):
        rewrite(path, lambda volume: np.isin(volume[:, :, ::2], (1, 3)).astype(np.uint8), 2)
    description = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", description | {"labels": {"0": "background", "1": "liver"}})


def make_two_channels(folder: Path) -> None:
    """Make small phantoms of two channels, CT and MRI of the same bodies: 48³ voxels of 2.5 mm, three structures."""
    phantoms.make_segmentation_set(folder, "CT", cases=30, size=48)
    other = folder.with_name(f"{folder.name}-mri")
    phantoms.make_segmentation_set(other, "MRI", cases=30, size=48)
    description = read_json(folder / "dataset.json")
    for part in ("training", "validation", "test"):
        for entry in description.get(part, []):
            entry["image"] = [entry["image"], str((other / entry["image"]).resolve())]
            labels = [nibabel.load(place / entry["label"]).get_fdata() for place in (folder, other)]
            assert np.array_equal(*labels), "the phantoms of two modalities must be of the same bodies"
    write_json(folder / "dataset.json", description | {"modality": {"0": "CT", "1": "MRI"}})


def rewrite(path: Path, change: Change, factor: int) -> None:
    """Replace a volume by a changed one whose third axis has voxels `factor` times as long, its corner in place."""
    image = nibabel.load(path)
    values = change(np.asanyarray(image.dataobj))
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (factor - 1) / 2
    affine[:3, 2] *= factor
    nibabel.save(nibabel.Nifti1Image(values.astype(image.get_data_dtype()), affine), path)


SETS = {"ct": make_ct, "mri": make_mri, "two-channels": make_two_channels}


def run(*command: str | Path) -> None:
    """Run a command and show it."""
    print("+", *command, flush=True)
    subprocess.run([str(word) for word in command], check=True)


def measure(name: str, minutes: float) -> list[dict[str, Any]]:
    """Return the rows of one set: made, planned for the minutes, trained and scored."""
    folder, bundle = FOLDER / name, FOLDER / f"{name}-plan"
    if not folder.exists():
        SETS[name](folder)
    shutil.rmtree(bundle, ignore_errors=True)
    began = time.perf_counter()
    tomokit = Path(sys.executable).with_name("tomokit")
    run(tomokit, "plan", folder.resolve(), "--out", bundle, "--minutes", f"{minutes:g}")
    run("make", "train", f"BUNDLE={bundle}", f"RUN=planning/{name}-run")
    run("make", "evaluate", f"BUNDLE={bundle}", f"RUN=planning/{name}-run", "ARGS=--rival false")
    seconds = time.perf_counter() - began
    measures = read_json(FOLDER / f"{name}-run" / "metrics.json")
    plan = read_json(bundle / "plan.json")
    score = measures["summary"]["dice"]
    row = {"system": "planned unet", "dataset": f"phantoms, {name}", "metric": "dice", "value": score["mean"]}
    row |= {"ci95": score["ci95"], "n": score["n"], "seconds": seconds, "peak_rss_gb": measures["peak_rss_gb"]}
    return [row | {"plan": plan}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(SETS))
    parser.add_argument("--full", action="store_true", help="all sets")
    parser.add_argument("--minutes", type=float, default=5.0)
    options = parser.parse_args()
    rows = load_rows("planning")
    for name in options.only or (list(SETS) if options.full else ["ct"]):
        kept = [row for row in rows if row["dataset"] != f"phantoms, {name}"]
        rows = save_rows("planning", "make bench NAME=planning FULL=1", kept, measure(name, options.minutes))
    table = Table("set", "dice [95 %]", "minutes", f"goal ≥ {GOAL}")
    for row in rows:
        interval = f"{row['value']:.3f} [{row['ci95'][0]:.3f}, {row['ci95'][1]:.3f}]"
        met = "met" if row["value"] >= GOAL and row["seconds"] <= 60 * options.minutes else "missed"
        table.add_row(row["dataset"], interval, f"{row['seconds'] / 60:.1f}", met)
    Console().print(table)


if __name__ == "__main__":
    main()
