"""Time a training step of the U-Net in its variants, in turn: precision, norm, deterministic mode, optimizer.

Beside it a pass of inference in float32 and bfloat16, of three networks.

Command: make bench NAME=precision
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet, SegResNet
from records import save_rows
from rich.console import Console
from rich.table import Table

from tomokit.engines import place_network
from tomokit.networks import LeanUNet

ROUNDS, WARM = 8, 2
SHAPE = (2, 1, 40, 56, 40)
INSTANCE = ("instance", {"affine": True})
BASE: dict[str, Any] = {"dtype": torch.float32, "norm": INSTANCE, "deterministic": False, "fill": False, "fused": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "group norm": {"norm": ("group", {"num_groups": 8})},
    "batch norm": {"norm": "batch"},
    "deterministic": {"deterministic": True},
    "deterministic, memory filled": {"deterministic": True, "fill": True},
    "AdamW not fused": {"fused": False},
}

NNUNET = {"kernel_size": [3] * 6, "strides": [1, 2, 2, 2, 2, 2], "upsample_kernel_size": [2] * 5}
LEAN = {"kernel_size": [3] * 4, "strides": [1, 2, 2, 2], "heads": 1, "dropout": 0.0}
CLASSES, PASSES = 25, 3
# of inference: how each is made, and its window's edge
INFERRED: dict[str, tuple[Callable[[], torch.nn.Module], int]] = {
    "DynUNet 32–320": (lambda: DynUNet(3, 1, CLASSES, filters=[32, 64, 128, 256, 320, 320], **NNUNET), 96),
    "LeanUNet 16–128": (lambda: LeanUNet(3, 1, CLASSES, filters=[16, 32, 64, 128], **LEAN), 96),
    "SegResNet 16": (lambda: SegResNet(init_filters=16, in_channels=1, out_channels=CLASSES), 64),
}


def time_passes(name: str) -> dict[str, float]:
    """Return the median seconds of a network's pass over a window, by precision, in turn, one to warm up."""
    make, edge = INFERRED[name]
    network = place_network(make(), "cpu").eval()
    window = torch.randn(1, 1, edge, edge, edge).contiguous(memory_format=torch.channels_last_3d)
    times: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for _ in range(PASSES + 1):
        for precision, seconds in times.items():
            dtype = getattr(torch, precision)
            with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                began = time.perf_counter()
                network(window)
            seconds.append(time.perf_counter() - began)
    return {precision: statistics.median(seconds[1:]) for precision, seconds in times.items()}


def make_step(settings: dict[str, Any]) -> Callable[[], tuple[float, float]]:
    """Return a function that takes one step and returns the seconds of its pass and of its optimizer."""
    sizes = {"kernel_size": [3] * 4, "strides": [1, 2, 2, 2], "upsample_kernel_size": [2] * 3}
    filters = {"filters": [16, 32, 64, 128], "res_block": False}
    network = place_network(DynUNet(3, 1, 3, norm_name=settings["norm"], **sizes, **filters), "cpu")
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=settings["fused"])
    loss = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
    image = torch.randn(SHAPE).contiguous(memory_format=torch.channels_last_3d)
    label = torch.randint(0, 3, (SHAPE[0], 1, *SHAPE[2:]))

    def step() -> tuple[float, float]:
        torch.use_deterministic_algorithms(settings["deterministic"])
        torch.utils.deterministic.fill_uninitialized_memory = settings["fill"]
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", settings["dtype"], enabled=settings["dtype"] != torch.float32):
            prediction = network(image)
        loss(prediction.float(), label).backward()
        passed = time.perf_counter()
        optimizer.step()
        return passed - began, time.perf_counter() - passed

    return step


def main() -> None:
    steps = {name: make_step(BASE | changes) for name, changes in VARIANTS.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(ROUNDS + WARM):
        for name, step in steps.items():
            times[name].append(step())
    rows = []
    for name, values in times.items():
        whole = statistics.median(sum(pair) for pair in values[WARM:])
        optimizer = statistics.median(pair[1] for pair in values[WARM:])
        row = {"system": name, "dataset": "random", "metric": "step / float32", "ci95": None, "n": ROUNDS}
        rows.append(row | {"seconds": whole, "optimizer_seconds": optimizer, "peak_rss_gb": None})
    table = Table("variant", "step (s)", "optimizer (ms)", "step / float32")
    for row in rows:
        row["value"] = row["seconds"] / rows[0]["seconds"]
        milliseconds = f"{1000 * row['optimizer_seconds']:.1f}"
        table.add_row(row["system"], f"{row['seconds']:.3f}", milliseconds, f"{row['value']:.2f}")
    passes = Table("network", "float32 (s)", "bfloat16 (s)", "bfloat16 / float32")
    for name in INFERRED:
        seconds = time_passes(name)
        share = seconds["bfloat16"] / seconds["float32"]
        passes.add_row(name, f"{seconds['float32']:.2f}", f"{seconds['bfloat16']:.2f}", f"{share:.2f}")
        common = {"dataset": "random", "metric": "pass / float32", "ci95": None, "n": PASSES, "peak_rss_gb": None}
        rows += [
            common | {"system": f"{name}, {precision}", "value": taken / seconds["float32"], "seconds": taken}
            for precision, taken in seconds.items()
        ]
    save_rows("precision", "make bench NAME=precision", [], rows)
    Console().print(table, passes)


if __name__ == "__main__":
    main()
