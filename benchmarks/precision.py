"""Time a training step of the U-Net in its variants, in turn: precision, norm, deterministic mode, optimizer.

Command: make bench NAME=precision
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet
from records import save_rows
from rich.console import Console
from rich.table import Table

from tomokit.engines import place_network

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
    save_rows("precision", "make bench NAME=precision", [], rows)
    Console().print(table)


if __name__ == "__main__":
    main()
