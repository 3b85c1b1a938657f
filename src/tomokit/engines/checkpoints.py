"""Checkpoints: everything a training run needs to go on, and the plain weights that are used afterwards."""

import copy
import io
import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tomokit.configs import read_config
from tomokit.engines.hardware import unwrap
from tomokit.errors import TomokitError
from tomokit.files import replacing
from tomokit.memory import free_memory, lacks_memory

logger = logging.getLogger(__name__)


class WeightAverage:
    """A moving average of a network's weights: after step n, `decay` (at most n/(n + 9)) of what it was.

    The smaller decay of the first steps keeps the random start out of short trainings. torch's `AveragedModel` copies
    its count to the device, and sorts all weights anew, at each step.

    Args:
        network: whose weights are averaged; its buffers are taken as they are.
        decay: 0–1, both excluded.

    Raises:
        TomokitError: when `decay` is out of its range.
    Source: Polyak and Juditsky, SIAM J. Control Optim. 30 (1992); Tarvainen and Valpola, NeurIPS 2017.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise TomokitError(f"weight_averaging must be at least 0 and below 1, got {decay}; 0 averages nothing")
        self.module = copy.deepcopy(network)
        self.decay = decay
        self.count = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take the network's present weights into the average."""
        share = max(9 / (self.count + 9), 1 - self.decay)
        torch._foreach_lerp_(list(self.module.parameters()), list(network.parameters()), share)
        for own, other in zip(self.module.buffers(), network.buffers(), strict=True):
            own.copy_(other)
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights and the number of steps."""
        return {"module": self.module.state_dict(), "count": self.count}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.module.load_state_dict(content["module"])
        self.count = content["count"]


@dataclass
class TrainingState:
    """All that changes while a network is trained, as one thing that is saved and restored.

    `best_epoch` is 0 until a validation has run. `history` has an entry per epoch: `{"epoch", "loss",
    "learning_rate", "seconds", "seconds_per_step"}` and, where it was validated, `"metric"`. `average` holds the
    moving average of the weights, where one is kept: it is what is validated and used afterwards.
    """

    trainer: Any
    lr_scheduler: Any
    average: WeightAverage | None = None
    best_epoch: int = 0
    best_metric: float | None = None
    best_weights: dict[str, torch.Tensor] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def network(self) -> nn.Module:
        """The network itself, without a distributed wrapper."""
        return unwrap(self.trainer.network)

    @property
    def result(self) -> nn.Module:
        """The network that is validated and used afterwards: the average where there is one."""
        return self.network if self.average is None else self.average.module

    def first_best_epoch(self) -> int:
        """Return the first epoch that was as good as the best one; 0 until a validation has run."""
        if self.best_metric is None:
            return 0
        return next(entry["epoch"] for entry in self.history if entry.get("metric") == self.best_metric)

    def validations_since_best(self) -> int:
        """Return how many validations brought nothing better: the early-stopping count."""
        first = self.first_best_epoch()
        return sum("metric" in entry and entry["epoch"] > first for entry in self.history)

    def keep_best(self, metric: float) -> None:
        """Take the result's present weights, by value, as the best ones."""
        self.best_epoch = self.trainer.state.epoch
        self.best_metric = metric
        self.best_weights = copy.deepcopy(self.result.state_dict())

    def content(self) -> dict[str, Any]:
        """Return everything as tensors, numbers, strings, lists and dicts, which `weights_only` loads."""
        scaler = self.trainer.scaler
        return {
            "epoch": self.trainer.state.epoch,
            "iteration": self.trainer.state.iteration,
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "best": {"epoch": self.best_epoch, "metric": self.best_metric, "network": self.best_weights},
            "history": self.history,
            "companions": {name: part.state_dict() for name, part in self._companions().items()},
        }

    def _companions(self) -> dict[str, Any]:
        """Return what the trainer trains beside the network, such as a discriminator and its optimizer."""
        return dict(getattr(self.trainer, "companions", {}))

    def restore(self, content: dict[str, Any]) -> None:
        """Take everything back from `content`, as it was at the end of the saved epoch."""
        self.network.load_state_dict(content["network"])
        if self.average is not None:
            self.average.load_state_dict(content["average"])
        self.trainer.optimizer.load_state_dict(content["optimizer"])
        self.lr_scheduler.load_state_dict(content["lr_scheduler"])
        for name, part in self._companions().items():
            part.load_state_dict(content["companions"][name])
        self.trainer.state.epoch = content["epoch"]
        self.trainer.state.iteration = content["iteration"]
        best = content["best"]
        self.best_epoch, self.best_metric, self.best_weights = best["epoch"], best["metric"], best["network"]
        self.history = content["history"]


def save(content: Any, path: str | Path) -> None:
    """Write tensors and plain values with `torch.save`, whole or not at all."""
    buffer = io.BytesIO()  # torch.save to a file hides the system's reason for a failed write
    torch.save(content, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return a checkpoint's content, read with `weights_only=True`.

    Raises:
        TomokitError: when the file is absent, damaged, or holds more than tensors and plain values, or the memory does
            not suffice for it.
    """
    path = Path(path)
    if not path.is_file():
        raise TomokitError(f"no checkpoint {path}; train the run first, or give another `checkpoint`")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, MemoryError, EOFError, OSError, pickle.UnpicklingError) as error:
        if lacks_memory(error):
            free = f"{free_memory() / 1e9:.2g} GB"
            raise TomokitError(
                f"the free memory ({free}) does not suffice to load {path} ({path.stat().st_size / 1e9:.2g} GB); close "
                "other programs, or raise the limit"
            ) from error
        raise TomokitError(f"{path} is no checkpoint of weights: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise TomokitError(f"{path} holds a {type(content).__name__}, not a network's weights")
    return content


def find_checkpoint(run_dir: str | Path, checkpoint: str | Path) -> Path:
    """Return the file that `checkpoint` means: `best` or `last` of the run, or a file's path.

    `best` is by the inner validation; of a run without validation cases it is `last`, its only one.

    Raises:
        TomokitError: when there is no such file; it names the ones there are.
    """
    folder = Path(run_dir) / "checkpoints"
    path = folder / f"{checkpoint}.pt" if str(checkpoint) in ("best", "last") else Path(checkpoint)
    if str(checkpoint) == "best" and not path.is_file() and _has_no_validation(Path(run_dir)):
        path = folder / "last.pt"
    if not path.is_file():
        there = ", ".join(name for name in ("best", "last") if (folder / f"{name}.pt").is_file()) or "none"
        raise TomokitError(f"no checkpoint {path}; set `checkpoint` to a file, best or last (this run has: {there})")
    return path


def _has_no_validation(run_dir: Path) -> bool:
    """Return whether the run's own config keeps no case for validation."""
    path = run_dir / "configs" / "train.yaml"
    return path.is_file() and read_config(path).get("cases", {}).get("validation") == []


def weights_of(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights to use from a checkpoint's content: of a training state, MONAI's too, or plain weights."""
    if isinstance(content.get("average"), dict):
        return dict(content["average"]["module"])
    held = [content[key] for key in ("network", "net", "model") if isinstance(content.get(key), dict)]
    return dict(held[0]) if held else content


def load_weights(network: nn.Module, run_dir: str | Path, checkpoint: str | Path) -> Path:
    """Load the weights that `checkpoint` means into the network and return their file.

    Raises:
        TomokitError: when the file is absent, or its weights do not fit the network; it counts what differs.
    """
    path = find_checkpoint(run_dir, checkpoint)
    content = load(path)
    weights = weights_of(content)
    own = unwrap(network).state_dict()
    missing = [key for key in own if key not in weights]
    extra = [key for key in weights if key not in own]
    other = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if missing or extra or other:
        examples = ", ".join([*missing, *extra, *other][:3])
        raise TomokitError(
            f"the weights of {path} are of another network: {len(missing)} missing, {len(extra)} unknown, "
            f"{len(other)} of another shape ({examples}); use the config the run was trained with"
        )
    unwrap(network).load_state_dict(weights)
    chosen = (
        ", the last: no validation case chose an epoch" if (str(checkpoint), path.name) == ("best", "last.pt") else ""
    )
    logger.info("weights: %s%s", path, chosen)
    return path


def list_differences(run_dir: Path, cases: Mapping[str, Sequence[Mapping[str, Any]]], network: nn.Module) -> list[str]:
    """Return how a trained run's cases and network differ from those of a training that begins; nothing where not.

    Args:
        run_dir: the run's folder, with its `configs/train.yaml`.
        cases: the split of the training that begins.
        network: its network, which the run's best weights must fit.

    Raises:
        TomokitError: when the run has no weights.
    """
    own = read_config(run_dir / "configs" / "train.yaml")["cases"]
    found = [
        f"it has {len(own[part])} {part} cases, others than the {len(cases[part])} of this training"
        for part in ("training", "validation")
        if set(own[part]) != {entry["case"] for entry in cases[part]}
    ]
    weights = weights_of(load(find_checkpoint(run_dir, "best")))
    shapes = {key: value.shape for key, value in unwrap(network).state_dict().items()}
    if {key: value.shape for key, value in weights.items()} != shapes:
        found.append("its network is another one")
    return found
