"""How long a planned training takes and how many steps fit: pure functions, each number with its reason."""

import math
from typing import NamedTuple

from tomokit.errors import TomokitError
from tomokit.planning.fingerprint import Fingerprint
from tomokit.planning.rules import Budget, Choice

LEAST_STEPS = {"segmentation": 600, "classification": 200}  # fewer train no network from nothing
PASSES = {"segmentation": 120, "classification": 40}  # over the training cases, what they are worth
STEPS_PER_MINUTE = 300
MARGIN = 0.92  # of the minutes; the rest is for what differs from run to run
VALIDATIONS = (10, 7, 5, 4, 3, 2)
VALIDATION_SHARE = 0.1  # of the minutes
MOST_STEPS = {False: 10_000, True: 100_000}  # by whether there is a GPU
USUAL_BATCH = {"segmentation": 2, "classification": 8}  # before the batch is chosen
CPU_STEP_SECONDS = 1.0  # where no time is set


class Timing(NamedTuple):
    """What was measured of the planned training on this machine, in seconds."""

    step: float
    case: float
    validation_case: float
    start: float = 10.0
    planning: float = 0.0


def steps_per_epoch(fingerprint: Fingerprint, batch: int) -> int:
    """Return how many batches an epoch has; the packaged loader leaves out what does not fill one, if any is full."""
    return max(1, fingerprint.cases["training"] // batch)


def least_steps(fingerprint: Fingerprint, batch: int) -> int:
    """Return how many steps a training has at the least: those that a network needs, and a whole epoch."""
    return max(LEAST_STEPS[fingerprint.task], steps_per_epoch(fingerprint, batch))


def wanted_steps(fingerprint: Fingerprint, batch: int, cuda: bool, seen: float = 1.0) -> int:
    """Return how many steps the set is worth: so many passes, more where a patch sees a part of a volume."""
    passes, least = PASSES[fingerprint.task] / math.sqrt(seen), 2 * LEAST_STEPS[fingerprint.task]
    wanted = min(MOST_STEPS[cuda], max(least, passes * fingerprint.cases["training"] / batch))
    return max(int(wanted), least_steps(fingerprint, batch))


def step_target_seconds(minutes: float | None, fingerprint: Fingerprint, reserved: float, cuda: bool) -> float | None:
    """Return how long a step may take so that enough of them fit; None where time is no bound."""
    if minutes is None:
        return None if cuda else CPU_STEP_SECONDS
    batch = USUAL_BATCH[fingerprint.task]
    steps = min(wanted_steps(fingerprint, batch, cuda), STEPS_PER_MINUTE * minutes)
    return max(0.0, 60 * MARGIN * minutes - reserved) / max(steps, 1.1 * least_steps(fingerprint, batch))


def reserved_seconds(fingerprint: Fingerprint, timing: Timing, validations: int) -> float:
    """Return the time that is not training: planning, start, check, reading, validation, the test's prediction."""
    learnt = fingerprint.cases["training"] + fingerprint.cases["validation"]
    checked = learnt + fingerprint.cases["test"]
    # what follows the network, postprocessing or temperature, is chosen on the validation cases
    passes = validations + 1
    return (
        timing.planning
        + 2 * timing.start  # of training and of prediction
        + timing.case * learnt
        + fingerprint.read_seconds * checked / 2
        + timing.validation_case * passes * fingerprint.cases["validation"]
        + (timing.case + timing.validation_case) * fingerprint.cases["test"]
    )


def choose_schedule(
    fingerprint: Fingerprint, batch: int, budget: Budget, timing: Timing, seen: float = 1.0
) -> dict[str, Choice]:
    """Return epochs and the validation interval; `seen` is the share of a volume that a patch sees.

    Raises:
        TomokitError: when the minutes are too few; it says how many would do.
    """
    per_epoch = steps_per_epoch(fingerprint, batch)
    steps, validations = wanted_steps(fingerprint, batch, budget.cuda, seen), VALIDATIONS[0]
    told = f"{steps} steps are what {fingerprint.cases['training']} training cases are worth"
    if budget.minutes is not None:
        most, validations = _steps_that_fit(fingerprint, batch, budget.minutes, timing)
        if most < steps:
            told = f"{most} steps of {timing.step:.2g} s, measured, fit into {budget.minutes:g} minutes"
        steps = min(steps, most)
    epochs = steps // per_epoch
    interval = math.ceil(epochs / validations)
    validations = math.ceil(epochs / interval)  # the last epoch is validated, whatever the interval
    if budget.minutes is not None:
        left = reserved_seconds(fingerprint, timing, validations)
        told += f", beside {left:.0f} s for planning, starts, reading, {validations} validations and prediction"
    cost = timing.validation_case * fingerprint.cases["validation"]
    return {
        "epochs": Choice(epochs, f"{told}; an epoch has {per_epoch} steps"),
        "val_interval": Choice(interval, f"{validations} validations of {cost:.2g} s each"),
    }


def _steps_that_fit(fingerprint: Fingerprint, batch: int, minutes: float, timing: Timing) -> tuple[int, int]:
    """Return how many steps fit into the minutes, and beside how many validations.

    Raises:
        TomokitError: when fewer steps fit than a network needs, or than an epoch has.
    """
    seconds, least = 60 * MARGIN * minutes, least_steps(fingerprint, batch)
    fitting = {
        count: int((seconds - reserved_seconds(fingerprint, timing, count)) / timing.step) for count in VALIDATIONS
    }
    cost = timing.validation_case * fingerprint.cases["validation"]
    for count, steps in fitting.items():
        if steps >= least and (count * cost <= VALIDATION_SHARE * 60 * minutes or count == VALIDATIONS[-1]):
            return steps, count
    needed = (least * timing.step + reserved_seconds(fingerprint, timing, VALIDATIONS[-1])) / (60 * MARGIN)
    raise TomokitError(
        f"{minutes:g} minutes are too few for {fingerprint.dataset}: reading, validation and prediction leave "
        f"{max(0, fitting[VALIDATIONS[-1]])} steps of {timing.step:.2g} s, and {least} are needed, for a network and a "
        f"whole epoch; give at least --minutes {math.ceil(needed + 0.5)}"
    )
