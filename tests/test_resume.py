"""Killed at any moment and resumed, a run ends as if nothing had happened; whatever else ends it says so in a line."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from bundle_runs import SMALL_UNET, config

from tomokit import phantoms

KILLS = 3
OPTIONS = {
    "network_def": SMALL_UNET,
    "patch_size": [16, 16, 16],
    "minimum_size": [32, 32, 32],
    "epochs": 24,
    "val_interval": 2,
    "dropout": 0.2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data") / "volumes"
    phantoms.make_segmentation_set(folder, cases=12, test_cases=1, size=32, progress=False)
    return str(folder)


def start(run_dir: Path, data: str, **more) -> subprocess.Popen[str]:
    """Start a training as a program of its own."""
    options = OPTIONS | {"run_dir": str(run_dir), "dataset_dir": data} | more
    arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", *config("segmentation", "train")]
    return subprocess.Popen(command + arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a file or folder exists or the process has ended."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)


def test_three_kills_at_random_moments_change_no_bit(data, tmp_path):
    whole = start(tmp_path / "whole", data)
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output
    moments = random.Random(11)
    reached = []
    run = tmp_path / "killed"
    for kill in range(KILLS):
        process = start(run, data, resume="true")
        wait_for(run / ("checkpoints/last.pt" if kill == KILLS - 1 else "tensorboard"), process)
        time.sleep(moments.uniform(0.2, 2.0))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed: train longer"
        last = run / "checkpoints" / "last.pt"
        reached.append(torch.load(last, weights_only=True)["epoch"] if last.exists() else 0)
    final = start(run, data, resume="true")
    output, _ = final.communicate(timeout=300)
    assert final.returncode == 0, output
    assert reached == sorted(reached) and reached[-1] > 0, reached
    a, b = (torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True) for name in ("whole", "killed"))
    assert equal(a["network"], b["network"])
    assert equal(a["optimizer"]["state"], b["optimizer"]["state"])
    assert a["best"]["metric"] == b["best"]["metric"] and equal(a["best"]["network"], b["best"]["network"])
    assert [entry["loss"] for entry in a["history"]] == [entry["loss"] for entry in b["history"]]
    best = (torch.load(tmp_path / name / "checkpoints" / "best.pt", weights_only=True) for name in ("whole", "killed"))
    assert equal(*best)
    assert not list(run.rglob(".partial*"))


def equal(a, b) -> bool:
    """Return whether two nests of tensors and numbers are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return a == b


def test_an_interruption_by_the_user_is_one_line_and_resumable(data, tmp_path):
    process = start(tmp_path / "run", data, epochs=500)
    wait_for(tmp_path / "run" / "checkpoints" / "last.pt", process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in output
    lines = [line for line in output.splitlines() if "interrupted in epoch" in line]
    assert len(lines) == 1 and "of 500; go on with --resume true" in lines[0]
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["epoch"] > 0


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX")
def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(data, tmp_path):
    limited = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY)); "
        "sys.argv[0] = 'monai.bundle'; runpy.run_module('monai.bundle', run_name='__main__', alter_sys=True)"
    )
    options = OPTIONS | {"run_dir": str(tmp_path / "run"), "dataset_dir": data}
    arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    command = [sys.executable, "-c", limited, "run", "--config_file", *config("segmentation", "train"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if "can't write" in line]
    assert len(errors) == 1 and "--resume true" in errors[0], done.stderr[-2000:]
    assert "Traceback" not in done.stderr
