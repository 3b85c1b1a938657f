"""Time a step of training against the bare network's forward and backward pass on the same batch, in turn.

Command: make bench NAME=training [ONLY=resnet] [FULL=1]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from records import load_rows, save_rows
from rich.console import Console
from rich.table import Table

from tomokit.bundles import find_bundle
from tomokit.catalogue import get_dataset
from tomokit.runs import peak_memory_gb

SYSTEMS = {
    "unet": ("segmentation", (), "phantom-ct"),
    "resnet": ("classification", (), "phantom-ct-classes"),
}
LIMIT = 1.1


def build(bundle: str, layers: tuple[str, ...], dataset: str, run_dir: str) -> Any:
    """Return a bundle's trainer as `run` would start it, for more epochs than are measured, without validation."""
    configs = find_bundle(bundle) / "configs"
    files = [str(configs / "train.yaml"), *(str(configs / f"{layer}.yaml") for layer in layers)]
    overrides = {"dataset_dir": str(get_dataset(dataset)), "epochs": 1000, "val_interval": 1000}
    workflow = ConfigWorkflow(files, run_dir=run_dir, **overrides)
    workflow.initialize()
    return workflow.parser.get_parsed_content("train::trainer")


def bare_pass(trainer: Any, image: torch.Tensor, label: torch.Tensor) -> None:
    """Run the network, its loss and the backward pass, in the trainer's own precision and memory order."""
    trainer.network.train()
    trainer.optimizer.zero_grad(set_to_none=True)
    prediction = trainer.inferer(image, trainer.network)
    trainer.loss_function(prediction, label).backward()


def time_call(call: Callable[[], None]) -> float:
    """Return the seconds one call takes, the device's queue emptied."""
    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(bundle: str, layers: tuple[str, ...], dataset: str, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of whole steps (from one batch's end to the next one's) and of bare passes, in turn.

    A whole step is everything between two steps of the running engine: reading and augmenting the batch,
    forward, loss, backward, clipping, optimizer, schedule and every handler. After each one, a bare pass on
    that very batch is timed, and its time is taken out of the next step.
    """
    times: dict[str, list[float]] = {"step": [], "bare": []}
    folder = tempfile.TemporaryDirectory()
    trainer = build(bundle, layers, dataset, f"{folder.name}/run")
    last = time.perf_counter()

    def interleave(engine: Any) -> None:
        nonlocal last
        times["step"].append(time.perf_counter() - last)
        image, label = engine.state.output["image"], engine.state.output["label"]
        times["bare"].append(time_call(lambda: bare_pass(trainer, image, label)))
        if len(times["step"]) == rounds:
            engine.terminate()
        last = time.perf_counter()

    trainer.add_event_handler(Events.ITERATION_COMPLETED, interleave)
    trainer.run()
    folder.cleanup()
    warm = rounds // 5
    return {name: values[warm:] for name, values in times.items()}


def bench(names: list[str], rounds: int) -> list[dict[str, Any]]:
    """Return a row per system and metric: the median ratio with its quartiles, and both medians in seconds."""
    rows = []
    for name in names:
        bundle, layers, dataset = SYSTEMS[name]
        times = measure(bundle, layers, dataset, rounds)
        step, bare = (statistics.median(times[key]) for key in ("step", "bare"))
        quartiles = statistics.quantiles([a / b for a, b in zip(times["step"], times["bare"], strict=True)])
        common = {"system": name, "dataset": dataset, "n": len(times["step"]), "peak_rss_gb": peak_memory_gb()}
        rows.append(common | {"metric": "step / bare pass", "value": step / bare, "ci95": None, "seconds": step})
        rows[-1] |= {"bare_seconds": bare, "ratio_quartiles": quartiles}
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    table = Table("system", "data", "step (s)", "bare pass (s)", "ratio", f"goal ≤ {LIMIT}")
    for row in rows:
        ratio = row["value"]
        texts = f"{row['seconds']:.3f}", f"{row['bare_seconds']:.3f}", f"{ratio:.3f}"
        table.add_row(row["system"], row["dataset"], *texts, "met" if ratio <= LIMIT else "missed")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(SYSTEMS))
    parser.add_argument("--full", action="store_true", help="all systems, not the U-Net alone")
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    chosen = options.only or (list(SYSTEMS) if options.full else ["unet"])
    rows = bench(chosen, options.rounds)
    kept = [row for row in load_rows("training") if row["system"] not in chosen]
    show(save_rows("training", "make bench NAME=training FULL=1", kept, rows))


if __name__ == "__main__":
    main()
