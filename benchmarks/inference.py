"""Segment whole scans: tomokit beside MONAI's and nnU-Net's ways and the bare network, in time, memory and labels.

Command: make bench NAME=inference [ONLY="ct400-25 hippocampus"] [FULL=1] [MINUTES=10] [ARGS="--device cuda"]

Plain: a CT of 400 slices with 25 classes. ONLY= picks data sets; FULL=1 takes all that are picked, or all, with each
part of the gain switched off alone. One network of a size, MONAI's DynUNet of 32 to 320 filters, trained for MINUTES
on the public CT and phantoms, serves every system. Each reads a file and writes a label map in a process of its own,
which is ended when it holds more than 20 GB; `tomokit` and `bare` are repeated in turn, the others, which take longest,
run once. nnU-Net runs where `nnunetv2` is installed, or in another environment that has it beside tomokit
(ARGS="--nnunet …/bin/python").

What is done is kept in runs/inference, process by process; a stopped benchmark goes on where it was. To repeat one,
delete its files in runs/inference/<device>/<data>/records. On a GPU: one repeat, and with MINUTES=0.5 the plain command
takes less than ten minutes.
"""

import argparse
import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import torch
from blocks import fill_blocks
from inference_data import body_path, cut_middle, hippocampus_volumes
from inference_jobs import run_job
from inference_labels import count_file_pairs, count_structures, lowest_dice, share_equal
from inference_networks import trained_run, training_seconds
from inference_systems import Job
from inference_tables import GOAL_HEAD, PART, all_found, block, goal_lines
from records import load_rows, save_rows
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from tomokit.datasets import case_name
from tomokit.engines import choose_precision
from tomokit.errors import TomokitError
from tomokit.files import read_json, write_json

NAME = "inference"
HEADLINE = "ct400-25"
VOLUMES = 100  # of the hippocampus set, in one call
WINDOW = [96, 96, 96]  # as the zoo's whole-body bundle; activations of 128³ windows alone take over 2 GB
OVERLAP = 0.25  # that bundle's
SMALL_WINDOW = [64, 64, 64]  # holds a whole hippocampus volume; and full logits of 118 classes stay below the limit
PARITY_NODES = (160, 160, 112)  # that such windows tile at this overlap
PARITY_VOLUMES = 4
RIVALS = ("monai", "monai-nearest", "nnunet")
REPEATED = ("tomokit", "bare")
# what is switched off, one at a time
PARTS: dict[str, dict[str, Any]] = {
    "whole field": {"inferer::body_crop": False},
    "float32": {"amp": False},
    "nearest": {"inferer::interpolation": "nearest"},
    "overlap 0.5": {"overlap": 0.5},
}
Records = Mapping[str, Sequence[Mapping[str, Any]]]


class Scans(NamedTuple):
    """What a data set is.

    Attributes:
        classes: of the network, background too.
        slices: of the CT; 0 for the hippocampus volumes.
    """

    classes: int
    slices: int


DATASETS = {
    "hippocampus": Scans(3, 0),
    "ct400-3": Scans(3, 400),
    "ct400-25": Scans(25, 400),
    "ct400-118": Scans(118, 400),
    "ct800-118": Scans(118, 800),
}


# ----------------------------------------------------------------------------------------------------- jobs


def make_jobs(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Job]:
    """Return what each system has to do for a data set, its data made and its network trained."""
    scans = DATASETS[name]
    kind = f"network-{scans.classes}" if scans.slices else "network-hippocampus"
    run_dir = trained_run(folder.parent / kind, scans.classes, options.minutes, options.device, not scans.slices)
    if scans.slices:
        sources = [body_path(scans.slices)]
        middle = folder / "middle.nii.gz"
        folder.mkdir(parents=True, exist_ok=True)
        part = [middle if middle.is_file() else cut_middle(sources[0], middle, PARITY_NODES)]
    else:
        sources = hippocampus_volumes(VOLUMES)
        part = sources[:PARITY_VOLUMES]
    parts = PARTS if options.full and name == HEADLINE else {}
    return list_jobs(folder, run_dir, sources, part, WINDOW if scans.slices else SMALL_WINDOW, parts, options.device)


def list_jobs(
    folder: Path,
    run_dir: Path,
    sources: Sequence[Path],
    part: Sequence[Path],
    window: list[int],
    parts: Mapping[str, dict[str, Any]],
    device: str,
) -> dict[str, Job]:
    """Return the jobs of one turn in order: `parity` looks at the files of `part`, in windows of `SMALL_WINDOW`."""

    def job(system: str, label: str = "", **more: Any) -> Job:
        files = [str(source) for source in (part if system == "parity" else sources)]
        size = SMALL_WINDOW if system == "parity" else window
        return Job(system, str(run_dir), files, str(folder / (label or system)), size, OVERLAP, device, **more)

    jobs = {system: job(system) for system in ("tomokit", "bare", *RIVALS, "parity")}
    for label, overrides in parts.items():
        if label != "float32" or choose_precision(device, True, training=False) != torch.float32:
            jobs[PART + label] = job("tomokit", label.replace(" ", "_"), overrides=overrides)
    return jobs


def take_turn(jobs: Mapping[str, Job], folder: Path, number: int, classes: int, python: Mapping[str, str]) -> bool:
    """Run the jobs of one turn that have no record yet, and return whether there were any.

    Only `tomokit` and `bare` are repeated: the others take hours. `python` names the interpreters of systems that have
    one of their own.
    """
    new = False
    for label, job in jobs.items():
        path = record_path(folder, label, number)
        if path.is_file() or (number and label not in REPEATED):
            continue
        new = True
        print(f"+ {folder.name}: {label}, turn {number + 1}", flush=True)
        batches = read_json(record_path(folder, "tomokit", number))["batches"] if label == "bare" else []
        shutil.rmtree(job.output_dir, ignore_errors=True)
        record = try_job(label, job._replace(batches=batches), python.get(label, sys.executable))
        if label == "tomokit" and "note" in record:
            raise TomokitError(
                f"tomokit did not finish on {folder.name} ({record['note']}): there is nothing to compare"
            )
        if number == 0 and "note" not in record and label not in ("bare", "parity"):
            record |= compare(job, jobs["tomokit"], classes)
        write_json(path, record)
    return new


def try_job(label: str, job: Job, python: str) -> dict[str, Any]:
    """Return a job's record; of a rival that ended with an error, a `note`."""
    try:
        return run_job(job, python)
    except TomokitError as error:
        if label not in RIVALS:
            raise
        return {"note": f"ended with an error: {error}"}


def compare(job: Job, reference: Job, classes: int) -> dict[str, Any]:
    """Return how the label maps of a job agree with the reference's, over all its scans."""
    pairs = np.zeros((classes, classes), np.int64)
    for source in job.sources:
        name = f"{case_name(source)}.nii.gz"
        pairs += count_file_pairs(Path(reference.output_dir) / name, Path(job.output_dir) / name, classes)
    return {"share": share_equal(pairs), "lowest_dice": lowest_dice(pairs), "structures": count_structures(pairs)}


def record_path(folder: Path, label: str, number: int) -> Path:
    """Return the file of a job's record."""
    return folder / "records" / f"{label.replace(', ', '-').replace(' ', '_')}-{number}.json"


def read_records(folder: Path, turns: int) -> dict[str, list[dict[str, Any]]]:
    """Return the records of each system, turn by turn, those of an earlier call too."""
    labels = ["tomokit", "bare", *RIVALS, "parity", *(PART + label for label in PARTS)]
    found = {label: [record_path(folder, label, number) for number in range(turns)] for label in labels}
    return {label: [read_json(path) for path in paths if path.is_file()] for label, paths in found.items()}


# ----------------------------------------------------------------------------------------------------- rows


def make_rows(name: str, records: Records, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a data set, of every system and metric; `about` goes into each."""
    rows: list[dict[str, Any]] = []
    for label, own in records.items():
        if label == "parity" or not own:
            continue
        common = {"system": label, "dataset": name, "ci95": None, **about, **summarise(own)}
        rows += [common | {"metric": metric} | told for metric, told in metrics_of(label, records).items()]
    return rows


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what each row of a system has: medians of the time, the highest peak, windows; or the note."""
    told: dict[str, Any] = {"n": len(records), "seconds": None, "peak_rss_gb": None}
    if note := find_note(records):
        return told | {"note": note}
    networks = [record["network_seconds"] for record in records]
    return told | {
        "seconds": statistics.median(record["seconds"] for record in records),
        "network_seconds": None if None in networks else statistics.median(networks),
        "peak_rss_gb": max(record["peak_rss_gb"] for record in records),
        "windows": sum(records[0]["batches"]),
        "windows_again": records[0].get("windows_again", 0),
        "precision": records[0]["precision"],
        **({"peak_gpu_gb": max(record["peak_gpu_gb"] for record in records)} if "peak_gpu_gb" in records[0] else {}),
    }


def find_note(records: Sequence[Mapping[str, Any]]) -> str:
    """Return why a system did not finish in one of its turns; "" where it did."""
    return next((str(record["note"]) for record in records if "note" in record), "")


def metrics_of(label: str, records: Records) -> dict[str, dict[str, Any]]:
    """Return what each metric's row of a system says, `value` among it."""
    summary = summarise(records[label])
    found = {metric: {"value": summary[metric]} for metric in ("seconds", "peak_rss_gb")}
    if label == "bare":
        return found
    found["ratio_to_bare"] = ratio(label, "bare", records)
    if label == "tomokit":
        return found | {"speedup_over_monai": ratio("monai", label, records), "agreement": parity_of(records)}
    if label in RIVALS:
        found["tomokit_is_faster_by"] = ratio(label, "tomokit", records)
    else:
        found["seconds / tomokit's"] = ratio(label, "tomokit", records)
    first = records[label][0]
    found["agreement"] = {"value": first.get("share"), "lowest_dice": first.get("lowest_dice"), "beside": "tomokit"}
    return found


def ratio(above: str, below: str, records: Records) -> dict[str, Any]:
    """Return the median over turns of one system's seconds by another's; without a value where one has none."""
    for label in (above, below):
        if note := find_note(records[label]) if records.get(label) else "not measured":
            return {"value": None, "note": f"{label}: {note}"}
    pairs = zip(records[above], records[below], strict=False)
    return {"value": statistics.median(one["seconds"] / two["seconds"] for one, two in pairs)}


def parity_of(records: Records) -> dict[str, Any]:
    """Return the agreement with MONAI's full logits, same windows and weights."""
    parity = records["parity"][0]
    if "note" in parity:
        return {"value": None, "structures": None, "note": f"full logits: {parity['note']}"}
    own, lower = parity["float32"], parity["bfloat16"]
    return {
        "value": own["share"],
        "structures": own["structures"],
        "lowest_dice": own["lowest_dice"],
        "beside": "monai, same windows and weights",
        "share_bfloat16": lower["share"],
        "lowest_dice_bfloat16": lower["lowest_dice"],
    }


def file_gb(sources: Sequence[str]) -> float:
    """Return what the voxels of scans and of their label maps take, in 10⁹ bytes, as they are stored."""
    images = [nibabel.load(source) for source in sources]
    sizes = [np.prod(image.shape, dtype=float) * (image.get_data_dtype().itemsize + 1) for image in images]
    return float(sum(sizes) / 1e9)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the tables, and whether each goal is met."""
    console = Console(width=180)
    for kind in ("systems", "parts", "parity"):
        console.print(Markdown(block(rows, kind)))
    for found in all_found(rows):
        table = Table(*GOAL_HEAD[:-1], "", title=found.hardware)
        for cells in goal_lines(found):
            table.add_row(*cells)
        console.print(table)


def bench(name: str, options: argparse.Namespace) -> None:
    """Measure a data set; its rows are written after each turn."""
    folder = Path("runs") / NAME / options.device / name
    jobs = make_jobs(name, folder, options)
    hardware = f"{os.cpu_count()} CPU cores" if options.device == "cpu" else torch.cuda.get_device_name()
    about = {"hardware": hardware, "files_gb": file_gb(jobs["tomokit"].sources)}
    about["training_seconds"] = training_seconds(Path(jobs["tomokit"].run_dir))
    for number in range(options.repeats):
        new = take_turn(jobs, folder, number, DATASETS[name].classes, {"nnunet": options.nnunet})
        rows = load_rows(NAME)
        kept = [row for row in rows if (row["dataset"], row["hardware"]) != (name, hardware)]
        if not new and len(kept) < len(rows):
            print(f"{name}, turn {number + 1}: measured already; to repeat it, delete {folder}")
            continue
        measured = make_rows(name, read_records(folder, options.repeats), about)
        save_rows(NAME, f"make bench NAME={NAME} FULL=1", kept, measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(DATASETS))
    parser.add_argument("--full", action="store_true", help="all that are picked, each part switched off too")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each network's training")
    parser.add_argument("--repeats", type=int, help="3, on a GPU 1")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--nnunet", default=sys.executable, help="the interpreter of an environment that has nnunetv2")
    options = parser.parse_args()
    options.repeats = options.repeats or (3 if options.device == "cpu" else 1)
    for name in options.only or (list(DATASETS) if options.full else [HEADLINE]):
        bench(name, options)
        fill_blocks(NAME, lambda words: block(load_rows(NAME), words[0]))
    show(load_rows(NAME))


if __name__ == "__main__":
    main()
