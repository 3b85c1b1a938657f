"""A run's folder, from a config that stands in for a running one."""

import os
from pathlib import Path

import pytest
import torch
import yaml

from tomokit import configs, runs
from tomokit.engines.checkpoints import save
from tomokit.errors import TomokitError

DISTRIBUTED = {"_target_": "tomokit.engines.distributed_device"}


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that starts the run `tmp_path / "run"` with a config and returns the config it keeps."""
    (tmp_path / "a.nii").touch()
    cases = {"training": [{"case": "a", "image": str(tmp_path / "a.nii"), "label": 0}], "validation": [], "test": []}
    monkeypatch.setattr(runs, "read_companions", dict)

    def begin(resume: bool = False, **config) -> dict:
        monkeypatch.setattr(configs, "running_config", lambda: {"cases": {"fold": 0}, "epochs": 2, **config})
        runs.start_training_run(tmp_path / "run", resume, cases, None)
        return yaml.safe_load((tmp_path / "run" / "configs" / "train.yaml").read_text())

    return begin


def test_what_several_processes_trained_is_for_one_afterwards(start, tmp_path):
    kept = start(device=DISTRIBUTED)["device"]
    assert kept.startswith("$") and isinstance(eval(kept[1:], {"torch": torch}), torch.device)
    save({}, tmp_path / "run" / "checkpoints" / "last.pt")
    assert start(True, device=DISTRIBUTED)["device"] == kept  # torchrun goes on with it
    assert start(True, device=kept)["device"] == kept
    with pytest.raises(TomokitError, match="`epochs` is 3, the run began with 2"):
        start(True, device=DISTRIBUTED, epochs=3)
    assert not Path(tmp_path / "run.1").exists()


@pytest.mark.parametrize("device", ["cpu", "$torch.device('cpu')", {"_target_": "torch.device", "type": "cpu"}])
def test_any_other_device_is_kept_as_it_was_given(device, start):
    assert start(device=device)["device"] == device


def test_only_the_first_process_writes(start, tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "RANK", "1")
    with pytest.raises(FileNotFoundError):
        start(device=DISTRIBUTED)
    assert not (tmp_path / "run").exists()
