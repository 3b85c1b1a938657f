"""Steps per second of a bundle's training loop, beside MONAI's stock loop and the bare network, measured in turn.

The stock loop gets the same network in torch's own memory order, as `network.to(device)` leaves it. A bare step is the
forward and backward pass of a batch that is at hand, and the optimizer's step; a bare pass is without the latter.
"""

import contextlib
import copy
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from stock import stock_trainer
from training import bare_pass, time_call

from tomokit.engines.hardware import unwrap
from tomokit.runs import peak_memory_gb

ROUNDS = 8
CHUNK = 10  # steps of each loop in turn


@contextlib.contextmanager
def bundle_workflow(files: Sequence[str | Path], overrides: Mapping[str, Any]) -> Iterator[ConfigWorkflow]:
    """Give a bundle's workflow as `run` would start it, for more epochs than are measured, without validation."""
    with tempfile.TemporaryDirectory() as folder:
        many = {"epochs": 1000, "val_interval": 1000}
        workflow = ConfigWorkflow([str(file) for file in files], run_dir=f"{folder}/run", **overrides, **many)
        workflow.initialize()
        yield workflow


def time_steps(trainer: Any, count: int) -> list[float]:
    """Return the seconds of each of the first `count` whole steps of a trainer."""
    seconds: list[float] = []
    last = time.perf_counter()

    def note(engine: Engine) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
        if len(seconds) == count:
            engine.terminate()

    with trainer.add_event_handler(Events.ITERATION_COMPLETED, note):
        trainer.run()
    return seconds


def compare_loops(config: Path) -> list[dict[str, Any]]:
    """Return rows of the bundle's loop, the stock loop and the bare network on the same network, cases and batch."""
    with bundle_workflow([config], {}) as workflow:
        content = workflow.parser.get_parsed_content
        trainer, patch, batch = content("train::trainer"), content("patch_size"), content("batch_size")
        network = copy.deepcopy(unwrap(trainer.network)).to(memory_format=torch.contiguous_format)
        times = _in_turn(trainer, stock_trainer(network, content("cases")["training"], patch, batch))
    ours = times["bundle"]
    rows = []
    for name, seconds in times.items():
        ratios = [other / own for own, other in zip(ours, seconds, strict=True)]
        row = {"system": name, "metric": "steps per second", "value": 1 / statistics.median(seconds), "ci95": None}
        row |= {"n": len(seconds) * CHUNK, "seconds": None, "peak_rss_gb": peak_memory_gb()}
        rows.append(row)
        rows.append(row | {"metric": "seconds per step / bundle's", "value": statistics.median(ratios)})
    return rows


def _in_turn(trainer: Any, stock: Any) -> dict[str, list[float]]:
    """Return the seconds per step of each loop, a value per round; the first round warms up."""
    times: dict[str, list[float]] = {"bundle": [], "stock MONAI": [], "bare step": [], "bare pass": []}
    began = time.perf_counter()

    def alternate(engine: Any) -> None:
        nonlocal began
        if engine.state.iteration % CHUNK:
            return
        times["bundle"].append((time.perf_counter() - began) / CHUNK)
        stock.state.max_epochs = None  # a run that was ended begins again
        times["stock MONAI"].append(statistics.mean(time_steps(stock, CHUNK + 1)[1:]))  # the first draws the order
        image, label = engine.state.output["image"], engine.state.output["label"]
        passes, steps = [], []
        for _ in range(CHUNK):
            passes.append(time_call(lambda: bare_pass(trainer, image, label)))
            steps.append(passes[-1] + time_call(trainer.optimizer.step))
        times["bare pass"].append(statistics.mean(passes))
        times["bare step"].append(statistics.mean(steps))
        if len(times["bundle"]) == ROUNDS + 1:
            engine.terminate()
        began = time.perf_counter()

    trainer.add_event_handler(Events.ITERATION_COMPLETED, alternate)
    trainer.run()
    return {name: seconds[1:] for name, seconds in times.items()}
