"""How long the planned training takes on this machine: a few of its own steps, run."""

import contextlib
import gc
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigParser

from tomokit.datasets import Entry
from tomokit.errors import TomokitError
from tomokit.memory import free_memory
from tomokit.planning.schedule import Timing

GPU_SHARE = 0.9  # of what is free; the rest is for whole volumes in validation and the allocator's gaps
STEPS = 24
LEAST_TIMED = 3
ENOUGH_SECONDS = 6.0
WHOLE = 1.04  # of a measured step: in training, clipping, the weights' average and logs come to it
ENDLESS = 1_000_000  # epochs: the measurement stops itself


def default_memory_gb() -> float:
    """Return what a plan may take where no memory is given, in GB: most of a GPU's free memory, or half of a CPU's."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(0)
        return GPU_SHARE * free / 1e9
    return free_memory() / 2e9


@contextlib.contextmanager
def within_memory(memory_gb: float) -> Iterator[None]:
    """Turn what torch raises where memory runs out into a text that says what to do.

    Raises:
        TomokitError: which names the memory that the plan was to keep to.
    """
    try:
        yield
    except RuntimeError as error:  # of which torch.OutOfMemoryError is one; a CPU's allocator has no kind of its own
        text = str(error.__cause__ or error).partition("\n")[0]  # the cause, where MONAI was building a component
        if not re.search(r"out of memory|can't allocate|ALLOC_FAILED", text):
            raise
        raise TomokitError(
            f"a step that was to keep to {memory_gb:.3g} GB ran out of memory ({text[:200]}); give a lower --memory, "
            "or end what else takes the device's memory"
        ) from error


def describe_device() -> dict[str, Any]:
    """Return the device that training would take, and its threads."""
    cuda = torch.cuda.is_available()
    return {"device": torch.cuda.get_device_name(0) if cuda else "cpu", "threads": torch.get_num_threads()}


def measure_training(config: Path, training: Sequence[Entry], validation: Sequence[Entry]) -> Timing:
    """Return the mean time of a step, of preparing a case, and of validating one, with a bundle's own components.

    Everything is built as training builds it, with a few of the cases, so that loading, augmentation, loss and
    optimizer are all in a step. Nothing is written.

    Args:
        config: the bundle's `train.yaml`.
        training: the training cases; two batches of them are read.
        validation: the validation cases, the first of which is read; none takes no time.
    """
    start = perf_counter()
    parser = ConfigParser()
    parser.read_config(str(config))
    few = training[: 2 * int(parser["batch_size"])]
    parser["cases::training"] = [entry["case"] for entry in few]
    parser["cases::validation"] = [entry["case"] for entry in validation[:1]]
    parser["cases::test"] = []
    for key, value in {"cache": "memory", "epochs": ENDLESS, "val_interval": ENDLESS, "num_workers": 0}.items():
        parser[key] = value
    with _quiet():
        trainer = parser.get_parsed_content("train::trainer")
        evaluator = parser.get_parsed_content("validate::evaluator")
        opened = perf_counter() - start
        step = _time_steps(trainer)
        case = _time_case(parser, few[-1])
        checked = _time_validation(evaluator) if validation else 0.0
    del parser, trainer, evaluator
    gc.collect()
    return Timing(WHOLE * step, case, checked, max(Timing._field_defaults["start"], opened - case * len(few)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back messages on what is measured; training itself gives them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _time_steps(trainer: Any) -> float:
    """Return the mean seconds of a step, augmentation of every kind in it, without the first."""
    ends: list[float] = []

    def note(engine: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ends.append(perf_counter())
        timed = len(ends) - 1
        if timed >= STEPS or (timed >= LEAST_TIMED and ends[-1] - ends[0] > ENOUGH_SECONDS):
            engine.terminate()

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    trainer.run()
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def _time_case(parser: ConfigParser, entry: Entry) -> float:
    """Return the seconds that reading and preprocessing one case take."""
    preprocessing = parser.get_parsed_content("preprocessing")
    start = perf_counter()
    preprocessing(dict(entry))
    return perf_counter() - start


def _time_validation(evaluator: Any) -> float:
    """Return the seconds of validating one case, the second time where the first was short."""
    seconds = 0.0
    for _ in range(2):
        start = perf_counter()
        evaluator.run()
        seconds = perf_counter() - start
        if seconds > ENOUGH_SECONDS / 4:
            break
    return seconds
