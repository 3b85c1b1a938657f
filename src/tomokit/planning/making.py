"""The plan: read the set, choose, measure, choose again with what was measured, write the bundle."""

import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from tomokit.datasets import Entry, misread, select_cases
from tomokit.errors import TomokitError, raise_problems
from tomokit.planning.fingerprint import Fingerprint, name_in_config, read_fingerprint
from tomokit.planning.images import choose_image
from tomokit.planning.measuring import default_memory_gb, describe_device, measure_training, within_memory
from tomokit.planning.network import image_gmacs, step_gmacs
from tomokit.planning.rules import (
    Budget,
    Choice,
    Geometry,
    choose_flips,
    choose_foreground_share,
    choose_geometry,
    choose_intensity,
    choose_learning_rate,
    choose_overlap,
    choose_partial,
    covered,
    explain_network,
    plain,
)
from tomokit.planning.schedule import Timing, choose_schedule, reserved_seconds, step_target_seconds
from tomokit.planning.writing import check_target, put_in_place, read_packaged, write_bundle

ROUNDS = 5
FEW_VALIDATIONS = 5
MUON_RATE, ADAMW_RATE = 0.01, 0.003  # of the segmentation and the classification bundle's optimizer
CLOSE = 0.85  # of the time a step may take: near enough
FIRST_GMACS_PER_SECOND = 35.0  # a guess for one thread, corrected by the first measurement


@dataclass(frozen=True)
class Plan:
    """A written plan: its bundle, the fingerprint, each number with its reason, and where an earlier plan went."""

    bundle: Path
    fingerprint: Fingerprint
    choices: Mapping[str, Choice]
    moved: Path | None = None


def make_plan(
    dataset_dir: str | Path,
    out: str | Path,
    memory_gb: float | None = None,
    minutes: float | None = None,
    split: str = "splits.json",
    fold: int = 0,
    seed: int = 0,
) -> Plan:
    """Return a plan for a data set, written as a bundle; an earlier plan there is moved aside.

    Args:
        dataset_dir: a data set's folder or name.
        out: the bundle's folder.
        memory_gb: what a training step may take (default: most of what is free on the GPU, or half of what is free).
        minutes: for everything from the files to the last prediction on this machine; None sets no limit.
        split: the split file.
        fold: the fold whose training and validation cases are read.
        seed: draws the split where there is none, and the voxels that are looked at.

    Raises:
        TomokitError: when the data can't be used, `out` holds something else or has a name that make or a config
            can't take, or memory or minutes are too few.
    """
    out = Path(out) if Path(out).name.strip(".") else Path(out).resolve()  # the bundle takes its name from the folder
    began = perf_counter()
    _check_budget(memory_gb, minutes)
    _check_names(dataset_dir, out, split)
    check_target(out)
    parts = select_cases(dataset_dir, split, fold, seed)
    with _shown() as progress:
        reading = progress.add_task("reading cases", total=None)
        fingerprint = read_fingerprint(
            dataset_dir,
            split,
            fold,
            seed,
            lambda done, total: progress.update(reading, completed=done, total=total),
        )
        memory = default_memory_gb() if memory_gb is None else memory_gb
        budget = Budget(memory, torch.cuda.is_available(), minutes)
        given = {"split": str(split), "fold": fold, "seed": seed}
        staged = out.with_name(f".partial-{out.name}")
        measuring = progress.add_task("measuring steps", total=ROUNDS)
        try:
            fingerprint, choices = _settle(
                fingerprint, budget, parts, given, (staged, out), lambda: progress.advance(measuring), began
            )
            moved = put_in_place(staged, out)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return Plan(out, fingerprint, choices, moved)


def print_plan(plan: Plan) -> None:
    """Print each number of a plan with its reason, and the next command; each row is a line where no terminal is."""
    console = Console(highlight=False, markup=False)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("key", style="bold", no_wrap=True)
    table.add_column("value", overflow="fold", ratio=2)
    table.add_column("reason", overflow="fold", ratio=3, style="dim")
    for key, choice in plan.choices.items():
        if console.is_terminal:
            table.add_row(key.removeprefix("network_def::"), _short(choice.value), choice.reason)
        else:
            console.print(f"{key}: {_short(choice.value)}  # {choice.reason}", soft_wrap=True)
    if console.is_terminal:
        console.print(table)
    if plan.moved:
        console.print(f"an earlier plan was moved to {plan.moved}", soft_wrap=True)
    console.print(f"next: make train BUNDLE={plan.bundle}", soft_wrap=True)


def _settle(
    fingerprint: Fingerprint,
    budget: Budget,
    parts: Mapping[str, list[Entry]],
    given: Mapping[str, Any],
    places: tuple[Path, Path],
    advance: Callable[[], None],
    began: float,
) -> tuple[Fingerprint, dict[str, Choice]]:
    """Return the fingerprint with its timing, and the choices, once planned and measured steps agree."""
    timing = Timing(0.0, 2 * fingerprint.read_seconds, 1.0)
    speed = FIRST_GMACS_PER_SECOND * torch.get_num_threads() * (100 if budget.cuda else 1)
    choices: dict[str, Choice] = {}
    for _ in range(ROUNDS):
        timing = _with_planning(timing, began)
        reserved = reserved_seconds(fingerprint, timing, FEW_VALIDATIONS)
        target = step_target_seconds(budget.minutes, fingerprint, reserved, budget.cuda)
        before = choices
        choices, gmacs, seen = _choose(fingerprint, budget._replace(gmacs=None if target is None else target * speed))
        if _sizes(choices) == _sizes(before):
            break  # as measured
        write_bundle(places, fingerprint, choices, given)
        with within_memory(budget.memory_gb):
            timing = measure_training(places[0] / "configs" / "train.yaml", parts["training"], parts["validation"])
        advance()
        if target is None or CLOSE * target <= timing.step <= target:
            break
        speed = gmacs / timing.step
    fingerprint, timing = replace(fingerprint, timing=_tell(timing)), _with_planning(timing, began)
    schedule = choose_schedule(fingerprint, int(choices["batch_size"].value), budget, timing, seen)
    choices |= schedule
    write_bundle(places, fingerprint, choices, given)
    return fingerprint, choices


def _with_planning(timing: Timing, began: float) -> Timing:
    """Return the timing with what the plan itself has taken so far, the program's start too."""
    return timing._replace(planning=timing.start + perf_counter() - began)


def _sizes(choices: Mapping[str, Choice]) -> list[Any]:
    """Return what of a plan decides the time of a step."""
    keys = ("spacing", "patch_size", "image_size", "batch_size", "filters", "network_def::network::block_inplanes")
    return [choices[key].value for key in keys if key in choices]


def _choose(fingerprint: Fingerprint, budget: Budget) -> tuple[dict[str, Choice], float, float]:
    """Return all numbers but the schedule's, a step's 10⁹ multiplications, and the share of a volume it sees."""
    intensity = {"intensity": choose_intensity(fingerprint)}
    if fingerprint.task == "classification":
        chosen = choose_image(fingerprint, budget)
        width = chosen["network_def::network::block_inplanes"].value
        work = image_gmacs(chosen["image_size"].value, chosen["batch_size"].value, width[0])
        others = {"flip_axes": choose_flips(fingerprint), "learning_rate": choose_learning_rate(width, ADAMW_RATE)}
        return {**chosen, **intensity, **others}, work, 1.0
    geometry = choose_geometry(fingerprint, budget)
    sizes = len(fingerprint.modality), len(fingerprint.labels)
    work = step_gmacs(geometry.patch_size.value, geometry.stages, geometry.batch_size.value, *sizes)
    return {**_segmentation(fingerprint, geometry, budget), **intensity}, work, covered(fingerprint, geometry)


def _segmentation(fingerprint: Fingerprint, geometry: Geometry, budget: Budget) -> dict[str, Choice]:
    """Return the numbers of a segmentation plan by their keys in the config."""
    return {
        "spacing": geometry.spacing,
        "patch_size": geometry.patch_size,
        "minimum_size": Choice(geometry.patch_size.value, "the patch: smaller volumes are padded to it"),
        "batch_size": geometry.batch_size,
        **explain_network(geometry.stages, budget.cuda),
        "flip_axes": choose_flips(fingerprint),
        "foreground_share": choose_foreground_share(fingerprint),
        "overlap": choose_overlap(fingerprint, geometry),
        "learning_rate": choose_learning_rate(geometry.stages.filters, MUON_RATE),
        **choose_partial(
            fingerprint, read_packaged(fingerprint.task), read_packaged(fingerprint.task, "modes/partly_labelled")
        ),
    }


def _check_budget(memory_gb: float | None, minutes: float | None) -> None:
    """Raise when the memory or the minutes are no positive number."""
    for name, value in (("--memory", memory_gb), ("--minutes", minutes)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise TomokitError(f"{name} must be a positive number, got {value}")


def _check_names(dataset_dir: str | Path, out: Path, split: str | Path) -> None:
    """Raise when the config can't hold the name of the data set or the split, or make and a shell not that of `out`."""
    given = {"the data set": name_in_config(dataset_dir), "--split": str(split)}
    problems = [f"{name} {text!r}: {told}; rename it" for name, text in given.items() if (told := misread(text))]
    if strange := sorted(set(re.findall(r"[^\w@%+=:,./-]", str(out)))):
        problems.append(
            f"--out {str(out)!r} holds {' '.join(map(repr, strange))}, which make or a shell would not take"
        )
    raise_problems("a plan can't be made with these names", problems)


def _shown() -> Progress:
    """Return a progress display for a terminal; elsewhere it shows nothing."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _short(value: Any) -> str:
    """Return a value as text for the table."""
    value = plain(value)
    if isinstance(value, dict):
        return ", ".join(f"{key.strip('_')} {_short(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(map(_short, value)) + "]"
    return str(value)


def _tell(timing: Timing) -> dict[str, Any]:
    """Return what was measured as the fingerprint keeps it."""
    seconds = {
        "seconds_per_step": timing.step,
        "seconds_per_case": timing.case,
        "seconds_per_validation_case": timing.validation_case,
    }
    return {**{key: float(f"{value:.4g}") for key, value in seconds.items()}, **describe_device()}
