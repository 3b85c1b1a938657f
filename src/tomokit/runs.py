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

from tomokit import configs
from tomokit.checks import write_range
from tomokit.errors import TomokitError, raise_problems
from tomokit.files import read_json, write_json, write_text

logger = logging.getLogger(__name__)

FREE_KEYS = {
    "resume",
    "device",
    "num_workers",
    "cache",
    "bundle_root",
    "dataset_dir",
    "run_dir",
    "output_dir",
    "patience",
}
COMPANIONS = ("metadata.json", "logging.conf")
DISTRIBUTED = "tomokit.engines.distributed_device"
ONE_DEVICE = "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')"
HASHED_BYTES = 1 << 20
LEARNED = ("clinical", "slice_labels", "change")  # beside the label, of entries in which a bundle keeps them


def start_training_run(
    run_dir: str | Path,
    resume: bool,
    cases: Mapping[str, Sequence[Mapping[str, Any]]],
    trainer: object,
    **settings: Any,
) -> None:
    """Make the run's folder, an earlier one moved aside: configs with the case lists, `environment.json`, `range.json`.

    With `resume` an earlier run of that name is kept and gone on with, if it began with the same config and data.

    Args:
        run_dir: the run's folder.
        resume: go on with the run that is there.
        cases: the split, written into the config.
        trainer: not used; the config names it here so that all that can fail in building it has been built
            before an earlier run is moved aside.
        settings: what `environment.json` shall tell besides: seed, precision, determinism.

    Raises:
        TomokitError: when the folder holds something else than a run, can't be written, or holds a run that
            began with another config or other data.
    """
    if not is_main_process():
        return
    run_dir = Path(run_dir).resolve() if str(run_dir) in (".", "..") else Path(run_dir)
    config = configs.running_config()
    companions = read_companions()
    names = {part: [str(entry["case"]) for entry in entries] for part, entries in cases.items()}
    config["cases"] = {**config["cases"], **names}
    config["resume"] = False
    device = config.get("device")
    if isinstance(device, Mapping) and device.get("_target_") == DISTRIBUTED:
        config["device"] = ONE_DEVICE  # what several processes trained, one evaluates and uses
    environment = describe_environment(cases) | _plain(settings)
    if resume and (run_dir / "checkpoints" / "last.pt").is_file():
        environment = _continue_run(run_dir, config, environment)
    elif resume:
        logger.info("nothing to resume in %s: starting from the beginning", run_dir)
    elif run_dir.exists():
        _move_aside(run_dir)
    write_stage_config(run_dir, "train", config, companions)
    write_json(run_dir / "environment.json", environment)
    if "modality" in config:
        write_range(run_dir, cases["training"], config["modality"])


def start_stage(run_dir: str | Path, stage: str) -> None:
    """Write `configs/<stage>.yaml` of an existing run, as merged and run.

    Raises:
        TomokitError: when there is no such run; it says how to train one.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "checkpoints").is_dir():
        raise TomokitError(f"{run_dir} holds no trained run; train it first, or give the run's folder as run_dir")
    if is_main_process():
        write_stage_config(run_dir, stage, configs.running_config(), read_companions())


def read_companions() -> dict[str, str]:
    """Return the texts of the running config's `metadata.json` and `logging.conf`, by file name."""
    folder = configs.config_folder()
    return {name: (folder / name).read_text(encoding="utf-8") for name in COMPANIONS if (folder / name).is_file()}


def write_stage_config(run_dir: Path, stage: str, config: Mapping[str, Any], companions: Mapping[str, str]) -> None:
    """Write a merged config with its metadata and logging files beside it, so that it runs again."""
    folder = run_dir / "configs"
    path = folder / f"{stage}.yaml"
    header = f"Merged and run on {_now()}. Again: python -m monai.bundle run --config_file {path}"
    configs.write_config(dict(config), path, header)
    for name, text in companions.items():
        write_text(folder / name, text)
    if "metadata.json" in companions:
        _fit_metadata(folder / "metadata.json", config)


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
    """Return a SHA-256 over every case's name, label, record and files (size and first MiB), in order of the names."""
    digest = hashlib.sha256()
    for entry in sorted(chain.from_iterable(cases.values()), key=lambda entry: str(entry["case"])):
        images = [entry["image"]] if isinstance(entry["image"], str) else entry["image"]
        label = entry.get("label", "")
        digest.update(f"{entry['case']} {label if not isinstance(label, str) else ''}".encode())
        for key in LEARNED:
            if entry.get(key):
                digest.update(json.dumps(entry[key], sort_keys=True, default=str).encode())
        further = [entry[key] for key in ("label", "mask") if isinstance(entry.get(key), str)]
        for path in [*images, *further]:
            if path is None:
                digest.update(b"absent")
                continue
            with Path(path).open("rb") as file:
                digest.update(str(os.fstat(file.fileno()).st_size).encode())
                digest.update(file.read(HASHED_BYTES))
    return digest.hexdigest()


def describe_determinism(deterministic: bool, device: str | torch.device) -> str:
    """Return which level of determinism holds, a sentence."""
    if not deterministic:
        return "seeded: the same random draws, but kernels may round differently from run to run"
    if torch.device(device).type == "cpu":
        return f"bitwise: the same weights on this kind of machine with {torch.get_num_threads()} threads"
    return "deterministic kernels where CUDA has them; the others warn"


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
    """Rename an earlier run's folder to the first free `<name>.<n>`; a folder of anything else stays.

    Raises:
        TomokitError: when the folder is not empty and holds no run.
    """
    if not any(run_dir.iterdir()):
        return
    if not any((run_dir / name).exists() for name in ("configs/train.yaml", "checkpoints")):
        raise TomokitError(f"{run_dir} holds something else than a run; give another `run_dir`")
    number = 1
    while (target := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
        number += 1
    run_dir.rename(target)
    logger.info("an earlier run was moved to %s", target)


def _continue_run(run_dir: Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the environment of a run that goes on; what a kill left half written is removed.

    Raises:
        TomokitError: when the run began with another config or other data; it names each difference.
    """
    own = run_dir / "configs" / "train.yaml"
    before, now = _plain(configs.read_config(own)), _plain(config)
    problems = [
        f"`{key}` is {now.get(key)!r}, the run began with {before.get(key)!r}"
        for key in sorted((set(before) | set(now)) - FREE_KEYS)
        if before.get(key) != now.get(key)
    ]
    started = read_json(run_dir / "environment.json")
    if started["data_hash"] != environment["data_hash"]:
        problems.append("the cases' files are not those the run began with")
    raise_problems(
        f"{run_dir} can't be resumed with another config or other data; give another `run_dir`, or resume with\n"
        f"  python -m monai.bundle run --config_file {own} --resume true",
        problems,
    )
    for path in run_dir.rglob(".partial-*"):
        path.unlink()
    keys = ("started", "command", "versions", "hardware", "git_revision")
    return started | {"resumed": [*started.get("resumed", []), {key: environment[key] for key in keys}]}


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config or settings as JSON knows them: tuples as lists, other objects as text."""
    return dict(json.loads(json.dumps(content, default=str)))


def _fit_metadata(path: Path, config: Mapping[str, Any]) -> None:
    """Make the run's metadata tell the run's own label map and modality."""
    content = read_json(path)
    tensors = content["network_data_format"]
    if "labels" in config and "structures" not in config:
        tensors["outputs"]["pred"] |= {"num_channels": len(config["labels"]), "channel_def": dict(config["labels"])}
    if "modality" in config:
        kinds = input_kinds(config)
        channels = {str(number): kind for number, kind in enumerate(kinds)}
        own = {"num_channels": len(kinds), "modality": ", ".join(kinds), "channel_def": channels}
        tensors["inputs"]["image"] |= own | ({} if kinds == ["CT"] else {"format": "magnitude"})
    write_json(path, content)


def input_kinds(config: Mapping[str, Any]) -> list[str]:
    """Return the modality of each channel that a network takes; in a registration one may stand for both scans."""
    kinds = [str(kind) for kind in config.get("modality", [])]
    return kinds * 2 if "structures" in config and len(kinds) == 1 else kinds


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
