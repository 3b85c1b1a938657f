"""A run is a folder: its configs, environment, checkpoints, measures and predictions."""

import datetime
import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import torch
from monai.bundle import ConfigParser

from tomokit import configs
from tomokit.errors import TomokitError
from tomokit.files import read_json, write_json, write_text

logger = logging.getLogger(__name__)

LOCATION_KEYS = {"resume", "device", "num_workers", "bundle_root", "cases"}
HASHED_BYTES = 1 << 20


def start_training_run(
    run_dir: str | Path,
    resume: bool,
    cases: Mapping[str, Sequence[Mapping[str, Any]]],
    seed: int,
    deterministic: bool,
    precision: torch.dtype,
) -> None:
    """Make the run's folder: `configs/` with the case lists, `environment.json`; an earlier run is moved aside.

    With `resume` an earlier run of that name is kept and gone on with; what its config says otherwise is told.

    Raises:
        TomokitError: when the folder can't be written.
    """
    if not is_main_process():
        return
    run_dir = Path(run_dir)
    if run_dir.exists() and not resume:
        _move_aside(run_dir)
    config = configs.running_config()
    names = {part: [str(entry["case"]) for entry in entries] for part, entries in cases.items()}
    config["cases"] = {**config["cases"], **names}
    config["resume"] = False
    if resume:
        _tell_changes(run_dir / "configs" / "train.yaml", config)
    write_stage_config(run_dir, "train", config)
    environment = describe_environment(cases)
    write_json(
        run_dir / "environment.json",
        {**environment, "seed": seed, "deterministic": deterministic, "precision": str(precision).split(".")[-1]},
    )


def start_stage(run_dir: str | Path, stage: str) -> None:
    """Write `configs/<stage>.yaml` of an existing run, as merged and run.

    Raises:
        TomokitError: when there is no such run; it says how to train one.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "checkpoints").is_dir():
        raise TomokitError(f"{run_dir} holds no trained run; train it first, or give the run's folder as run_dir")
    if is_main_process():
        write_stage_config(run_dir, stage, configs.running_config())


def write_stage_config(run_dir: Path, stage: str, config: Mapping[str, Any]) -> None:
    """Write a merged config with `metadata.json` and `logging.conf` beside it, so that it runs again."""
    folder = run_dir / "configs"
    path = folder / f"{stage}.yaml"
    header = f"Merged and run on {_now()}. Again: python -m monai.bundle run --config_file {path}"
    configs.write_config(dict(config), path, header)
    source = Path(configs.find_bundle_root()) / "configs"
    if source.resolve() == folder.resolve():
        return
    for name in ("metadata.json", "logging.conf"):
        if (source / name).is_file():
            write_text(folder / name, (source / name).read_text(encoding="utf-8"))
    if "labels" in config and (folder / "metadata.json").is_file():
        _fit_metadata(folder / "metadata.json", config["labels"])


def describe_environment(cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return versions, hardware, git revision, command line and the hash of the cases' files."""
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    names = ("tomokit", "monai", "torch", "pytorch-ignite", "numpy", "nibabel", "SimpleITK", "scikit-learn", "scipy")
    return {
        "started": _now(),
        "command": " ".join(sys.argv),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in names}},
        "hardware": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
            "gpus": cuda,
            "system": platform.platform(),
        },
        "git_revision": _git_revision(),
        "data_hash": hash_cases(cases),
        "cases": {part: len(entries) for part, entries in cases.items()},
    }


def hash_cases(cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return a SHA-256 over every case's name, class, and files (size and first MiB), in order of the names."""
    digest = hashlib.sha256()
    for entry in sorted(chain.from_iterable(cases.values()), key=lambda entry: str(entry["case"])):
        images = [entry["image"]] if isinstance(entry["image"], str) else entry["image"]
        digest.update(f"{entry['case']} {entry['label'] if not isinstance(entry['label'], str) else ''}".encode())
        for path in [*images, *([entry["label"]] if isinstance(entry["label"], str) else [])]:
            with Path(path).open("rb") as file:
                digest.update(str(os.fstat(file.fileno()).st_size).encode())
                digest.update(file.read(HASHED_BYTES))
    return digest.hexdigest()


def peak_memory_gb() -> float:
    """Return the most memory this process has held so far, in GiB."""
    if sys.platform == "win32":
        return round(psutil.Process().memory_info().peak_wset / 2**30, 3)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)


def is_main_process() -> bool:
    """Return whether this process writes the files: the first one of a distributed run, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def _move_aside(run_dir: Path) -> None:
    """Rename an earlier run's folder to the first free `<name>.<n>`."""
    number = 1
    while (target := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
        number += 1
    run_dir.rename(target)
    logger.info("an earlier run was moved to %s", target)


def _tell_changes(path: Path, config: Mapping[str, Any]) -> None:
    """Log each top-level key whose value is not the one the run began with."""
    if not path.is_file():
        return
    before = ConfigParser.load_config_file(path)
    for key in sorted((set(before) | set(config)) - LOCATION_KEYS):
        if before.get(key) != config.get(key):
            logger.warning(
                "resuming with another `%s`: %r, the run began with %r", key, config.get(key), before.get(key)
            )


def _fit_metadata(path: Path, labels: Mapping[str, str]) -> None:
    """Make the run's metadata tell the run's own label map."""
    content = read_json(path)
    prediction = content["network_data_format"]["outputs"]["pred"]
    prediction["num_channels"] = len(labels)
    prediction["channel_def"] = dict(labels)
    write_json(path, content)


def _processor() -> str:
    """Return the processor's name as the system gives it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git_revision() -> str | None:
    """Return the revision of the checkout tomokit runs from, or None when it is installed without one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _now() -> str:
    """Return the time with its zone, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def read_record(run_dir: str | Path, name: str) -> dict[str, Any]:
    """Return the content of a run's JSON file such as `metrics.json`, or {} when it is not there yet."""
    path = Path(run_dir) / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
