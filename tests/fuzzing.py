"""Damage files of every format and read them: a clear error or a clean read, never a crash, a hang, or much memory.

Command: make fuzz [COUNT=400]

The files are read one after another in a process of their own, so that a crash or a hang is seen and its file named.
"""

import argparse
import json
import queue
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FORMATS = ("nii", "nii.gz", "mha", "mhd", "nrrd", "nhdr", "png", "jpg", "dcm", "npz", "json", "csv")
SECONDS = 30  # for one file, far more than any needs
MEMORY_GB = 1.0  # of the process; the sound files are below 1 MB
SHAPE = (20, 18, 12)


def write_sound(name: str, folder: Path) -> Path:
    """Write a sound file of a format, with what belongs to it, into an empty folder; return the file to damage."""
    import SimpleITK as sitk
    from PIL import Image

    from tomokit.volumes import write_volume

    array = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    path = folder / f"scan.{name}"
    if name in ("nii", "nii.gz"):
        write_volume(path, array, np.diag([1.0, 1, 2, 1]))
    elif name in ("mha", "mhd", "nrrd", "nhdr"):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    elif name in ("png", "jpg"):
        Image.fromarray(array[..., 0].astype(np.uint8)).save(path)
    elif name == "dcm":
        path = write_series(folder, array)
    elif name == "npz":
        parts = {f"{part}_images": array[:, None].astype(np.uint8) for part in ("train", "val", "test")}
        parts |= {f"{part}_labels": np.arange(len(array))[:, None] % 2 for part in ("train", "val", "test")}
        np.savez_compressed(path, **parts)
    elif name == "json":
        path = write_set(folder, array)
    else:
        path = write_table(folder, array)
    return path


def write_series(folder: Path, array: np.ndarray) -> Path:
    """Write a CT series of six slices; return the third."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian

    series = "1.2.826.0.1.3680043.8.498.1"
    for number in range(6):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        meta.MediaStorageSOPInstanceUID = f"{series}.{number}"
        data = pydicom.Dataset()
        data.file_meta = meta
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.StudyInstanceUID, data.PatientID, data.Modality = series, series, "p1", "CT"
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 2.0 * number], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness, data.InstanceNumber = [1, 1], 2, number
        data.Rows, data.Columns = array.shape[1], array.shape[0]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = np.ascontiguousarray(array[..., number].T).tobytes()
        data.save_as(folder / f"slice{number}.dcm", enforce_file_format=True)
    return folder / "slice2.dcm"


def write_set(folder: Path, array: np.ndarray) -> Path:
    """Write a data set of six cases; return its dataset.json."""
    from tomokit.volumes import write_volume

    entries = []
    for number in range(6):
        noisy = array + np.random.default_rng(number).integers(0, 400, SHAPE).astype(np.int16)
        write_volume(folder / "imagesTr" / f"c{number}.nii.gz", noisy, np.eye(4))
        write_volume(folder / "labelsTr" / f"c{number}.nii.gz", (array > 0).astype(np.uint8), np.eye(4))
        entry = {"image": f"imagesTr/c{number}.nii.gz", "label": f"labelsTr/c{number}.nii.gz"}
        entries.append(entry | {"patient": f"p{number}", "clinical": {"age": 50.0 + number}})
    content = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "a"}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "dataset.json"


def write_table(folder: Path, array: np.ndarray) -> Path:
    """Write pictures and a table about them; return the table."""
    from PIL import Image

    rows = ["image,patient_id,class,age"]
    for number in range(6):
        Image.fromarray(array[..., number].astype(np.uint8)).save(folder / f"x{number}.png")
        rows.append(f"x{number},p{number},{number % 2},{40 + number}")
    (folder / "data.csv").write_text("\n".join(rows) + "\n")
    return folder / "data.csv"


def damage(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Return a kind of damage and a file's content damaged by it."""
    kind = str(rng.choice(["truncated", "bits", "magic", "header", "numbers", "empty", "zeros", "doubled"]))
    raw = bytearray(content)
    if kind == "truncated":
        raw = raw[: int(rng.integers(1, len(raw)))]
    elif kind == "bits":
        for place in rng.integers(0, len(raw), 1 + int(rng.integers(20))):
            raw[place] ^= 1 << int(rng.integers(8))
    elif kind == "magic":
        raw[:8] = rng.bytes(8)
    elif kind == "header":
        for place in rng.integers(0, min(len(raw), 400), 1 + int(rng.integers(12))):
            raw[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))]))
    elif kind == "numbers":
        place = int(rng.integers(0, max(1, min(len(raw), 400) - 8)))
        raw[place : place + 8] = struct.pack("<q", int(rng.choice([-1, 2**31 - 1, 2**62, 0])))
    elif kind == "empty":
        raw = bytearray()
    elif kind == "zeros":
        start = int(rng.integers(len(raw)))
        raw[start : start + 512] = bytes(min(512, len(raw) - start))
    else:
        raw = raw + raw
    return kind, bytes(raw)


def absurd_text(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Return a text header or table in which one number or word is replaced by an absurd one."""
    words = content.split(b" ")
    absurd = [b"-1", b"0", b"99999999999", b"1e308", b"nan", b"", b"../../x", b"\xff\xfe", b"[" * 5000, b"null"]
    words[int(rng.integers(len(words)))] = absurd[int(rng.integers(len(absurd)))]
    return "absurd", b" ".join(words)


def write_damaged(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write `count` damaged files over all formats, each in a folder of its own; return them."""
    rng = np.random.default_rng(seed)
    sound = {}
    for name in FORMATS:
        (folder / "sound" / name).mkdir(parents=True)
        sound[name] = write_sound(name, folder / "sound" / name)
    damaged = []
    for number in range(count):
        name = FORMATS[number % len(FORMATS)]
        content = sound[name].read_bytes()
        is_text = name in ("mha", "mhd", "nrrd", "nhdr", "json", "csv")
        kind, content = absurd_text(content, rng) if is_text and rng.random() < 0.4 else damage(content, rng)
        target = folder / f"{number:04d}-{name}-{kind}"
        shutil.copytree(sound[name].parent, target)
        (target / sound[name].name).write_bytes(content)
        damaged.append(target / sound[name].name)
    return damaged


def exercise(path: Path) -> str:
    """Return how the tool took a damaged file: what it read, or its error; anything else is raised."""
    from tomokit.checks import check_dataset
    from tomokit.dicom import find_series, read_series
    from tomokit.errors import TomokitError
    from tomokit.importers import import_dataset
    from tomokit.volumes import read_volume

    suffix = path.suffix.lstrip(".")
    try:
        if suffix == "dcm":
            series, faults = find_series(path.parent)
            shapes = [read_series(one).array.shape for one in series]
            return f"read {shapes}, {len(faults)} faults"
        if suffix == "json":
            report = check_dataset(path.parent, progress=False)
            return f"checked {len(report.cases)} cases, {len(report.findings)} findings"
        if suffix in ("npz", "csv"):
            target = path.parent.with_name(f"{path.parent.name}.out")
            import_dataset(path if suffix == "npz" else path.parent, target)
            return "imported"
        return f"read {read_volume(path).array.shape}"
    except TomokitError as error:
        if not str(error).strip():
            raise RuntimeError("an error without a text") from error
        return f"error: {' '.join(str(error).split())[:160]}"


def peak_memory_gb() -> float:
    """Return the most memory this program has held, in GiB; not what the program that started it held."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def read_all(paths: list[Path]) -> None:
    """Print a line for each file: its number, the seconds, the most memory so far in GiB, and how it was taken."""
    for number, path in enumerate(paths):
        began = time.perf_counter()
        try:
            outcome = exercise(path)
        except Exception as error:
            outcome = f"FAILED {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        peak = peak_memory_gb()
        print(f"@{number}\t{time.perf_counter() - began:.3f}\t{peak:.3f}\t{outcome}", flush=True)


def fuzz(folder: Path, count: int, seed: int = 0) -> Iterator[tuple[Path, str]]:
    """Yield each damaged file with how it was taken; "FAILED …" for a crash, a hang, too much memory, or a bug."""
    paths = write_damaged(folder, count, seed)
    (folder / "list.txt").write_text("\n".join(map(str, paths)))
    start = 0
    while start < len(paths):
        command = [sys.executable, __file__, "--read", str(folder / "list.txt"), "--start", str(start)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=lambda p=process, q=lines: [*map(q.put, p.stdout), q.put(None)], daemon=True).start()
        for path in paths[start:]:
            outcome = next_outcome(lines)
            start += 1
            yield path, outcome
            if outcome.startswith("FAILED the process"):
                break
        process.kill()
        process.wait()


def next_outcome(lines: "queue.Queue[str | None]") -> str:
    """Return how the next file was taken, from the reading process's lines."""
    while True:
        try:
            line = lines.get(timeout=SECONDS * 2)
        except queue.Empty:
            return "FAILED the process hangs"
        if line is None:
            return "FAILED the process died"
        if line.startswith("@"):
            _, seconds, peak, outcome = line.rstrip("\n").split("\t", 3)
            if float(seconds) > SECONDS or float(peak) > MEMORY_GB:
                return f"FAILED took {seconds} s and {peak} GiB: {outcome}"
            return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        read_all([Path(line) for line in arguments.read.read_text().splitlines()][arguments.start :])
        return
    counts: Counter[str] = Counter()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for path, outcome in fuzz(Path(folder), arguments.count, arguments.seed):
            print(f"{path.parent.name:26} {outcome}")
            counts[outcome.split()[0].rstrip(":")] += 1
            failed += [path.parent.name] if outcome.startswith("FAILED") else []
    print(f"{sum(counts.values())} files: " + ", ".join(f"{count} {word}" for word, count in counts.most_common()))
    raise SystemExit(f"FAILED: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
