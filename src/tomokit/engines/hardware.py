"""What depends on the machine: seeds and determinism, precision, memory format, processes."""

import logging
import os
import random
from collections.abc import Callable, Sequence, Sized
from typing import Any

import numpy as np
import torch
from monai.data import DistributedSampler as UnevenSampler
from monai.data import MetaTensor
from monai.data.utils import set_rnd
from monai.engines import PrepareBatch as MonaiPrepareBatch
from monai.utils import set_determinism
from torch import Tensor, nn
from torch.utils.data import Dataset, DistributedSampler, Sampler, SequentialSampler

from tomokit.errors import TomokitError
from tomokit.runs import describe_determinism

logger = logging.getLogger(__name__)


def set_seed(seed: int, deterministic: bool, device: str | torch.device) -> str:
    """Seed every random generator, set the deterministic mode, and return the level that holds, a sentence.

    On a CPU the deterministic mode gives bit-identical weights for the same number of threads. On CUDA some
    3D kernels (adaptive pooling, trilinear upsampling backward) have no deterministic form: those warn.
    """
    cuda = torch.device(device).type == "cuda"
    if deterministic and cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    set_determinism(seed)
    # as `torch.use_deterministic_algorithms`, which takes a second to import the compiler
    torch.set_deterministic_debug_mode(("warn" if cuda else "error") if deterministic else "default")
    if deterministic:
        # a debugging aid that costs 10 % of a step; torch's stubs lack it
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    level = describe_determinism(deterministic, device)
    logger.info("determinism: %s", level)
    return level


def seed_epoch(seed: int, epoch: int, dataset: object) -> None:
    """Seed everything random in one epoch from `seed` and `epoch` alone, so that a resumed run draws the same."""
    rank = int(os.environ.get("RANK", "0"))
    state = int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)
    set_rnd(dataset, seed=state)


def choose_precision(device: str | torch.device, amp: bool, training: bool = True) -> torch.dtype:
    """Return the dtype of the network's arithmetic: bfloat16 or float16 where the hardware has it, else float32.

    With AVX-512 and its bf16 a CPU infers in bfloat16. It trains so with matrix units (AMX), or if it is AMD's: there a
    training step takes half of float32's time, where on an Intel Xeon without AMX it took 1.4 times as long
    (docs/experiments.md).
    """
    kind = torch.device(device).type
    if not amp:
        return torch.float32
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    units = torch.cpu.get_capabilities() if kind == "cpu" else {}
    vectors = units.get("avx512_bf16", False) and (not training or units["cpu_name"].startswith("AMD"))
    return torch.bfloat16 if vectors or units.get("amx_bf16", False) else torch.float32


def distributed_device() -> torch.device:
    """Return this process's device under `torchrun`, with the process group set up: a GPU each, or the CPU.

    Raises:
        TomokitError: when it was not started by `torchrun`.
    """
    if "LOCAL_RANK" not in os.environ:
        raise TomokitError(
            "multi_gpu.yaml needs one process per device; start it with `torchrun --nproc_per_node N -m`"
        )
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if cuda else "gloo")
    return device


def place_network(network: nn.Module, device: str | torch.device) -> nn.Module:
    """Return the network on its device in channels-last order, joined with the other processes' where there are."""
    volumes = any(isinstance(module, nn.Conv3d) for module in network.modules())
    order = torch.channels_last_3d if volumes else torch.channels_last
    network.to(device, memory_format=order)  # type: ignore[call-overload]  # torch's stubs lack this form
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        on_gpu = torch.device(device).type == "cuda"
        return nn.parallel.DistributedDataParallel(network, device_ids=[device] if on_gpu else None)
    return network


def unwrap(network: nn.Module) -> nn.Module:
    """Return the network itself, out of its distributed wrapper."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def make_sampler(dataset: Dataset, seed: int) -> DistributedSampler:
    """Return a sampler whose order follows from `seed` and the epoch alone; each process draws its own share."""
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    count = torch.distributed.get_world_size() if joined else 1
    rank = torch.distributed.get_rank() if joined else 0
    return DistributedSampler(dataset, num_replicas=count, rank=rank, shuffle=True, seed=seed)


def make_validation_sampler(dataset: Sized) -> Sampler:
    """Return a sampler of all cases in their order; each process draws its own share, no case twice.

    With fewer cases than processes each draws all of them: a process without a case would leave the others waiting,
    and the mean over the cases is the same.
    """
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    count = torch.distributed.get_world_size() if joined else 1
    if not 1 < count <= len(dataset):
        return SequentialSampler(dataset)
    rank = torch.distributed.get_rank()
    return UnevenSampler(dataset, even_divisible=False, num_replicas=count, rank=rank, shuffle=False)


class PrepareBatch(MonaiPrepareBatch):
    """Gives a batch's image and label as plain tensors on the device, augmented there, the image channels-last.

    Plain tensors, since each operation on MONAI's `MetaTensor` costs a Python call.

    Args:
        augmentation: a transform of the whole batch, `{"image": (B, C, X, Y[, Z]), "label": …}`, or None.
        extra: keys of what the network takes beside the image, in the order of its arguments, such as `["record"]`.
        context: keys of what the augmentation alone is told, such as `["spacing"]`.

    Raises:
        TomokitError: when a batch lacks one of `extra`.
    """

    def __init__(
        self,
        augmentation: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
        extra: Sequence[str] = (),
        context: Sequence[str] = (),
    ) -> None:
        self.augmentation = augmentation
        self.extra = tuple(extra)
        self.context = tuple(context)

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Return `(image, label)`, (B, C, X, Y[, Z]) and (B, 1, X, Y[, Z]) or (B,); then, if any, `(extra, {})`."""
        lacking = [key for key in self.extra if key not in batchdata]
        if lacking:
            raise TomokitError(f"the network takes {lacking} of a case, which the preprocessing does not make")
        batch: dict[str, Tensor] = {
            key: plain(torch.as_tensor(batchdata[key])).to(device, non_blocking=non_blocking, **kwargs)
            for key in ("image", "label", *self.extra, *self.context)
            if key in batchdata
        }
        if self.augmentation is not None:
            batch = self.augmentation(batch)
        prepared = to_channels_last(batch["image"]), batch.get("label")
        return (*prepared, tuple(batch[key] for key in self.extra), {}) if self.extra else prepared


def plain(tensor: Tensor) -> Tensor:
    """Return the tensor without MONAI's metadata; the values are shared."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def to_channels_last(image: Tensor) -> Tensor:
    """Return (B, C, X, Y[, Z]) in channels-last memory order; other shapes as they are."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return image.contiguous(memory_format=formats[image.ndim]) if image.ndim in formats else image
