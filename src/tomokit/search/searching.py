"""The search itself: trial after trial, until they are done or the time is over."""

import contextlib
import math
import shlex
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna import Trial
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.status import Status

from tomokit.bundles import list_bundles
from tomokit.errors import TomokitError, raise_problems
from tomokit.files import read_json
from tomokit.search import results
from tomokit.search.plan import Plan, compare_settings, fit_epochs, make_plan
from tomokit.search.scoring import score_network
from tomokit.search.space import settings_of
from tomokit.search.store import JOURNAL, Store
from tomokit.search.trials import Outcome, run_training

RESERVE = 0.1  # of the minutes, for scoring the best network
SLACK = 0.9  # of a trial's share of the time, since a machine's speed is not that even
USUAL_TRIALS = 12  # that shall fit the minutes where no number is asked for


class Clock:
    """The time that a call may take: the `end` of all and the `last` moment of training, None without a bound."""

    def __init__(self, minutes: float | None, reserve: float) -> None:
        began = time.monotonic()
        self.minutes = minutes
        self.end = None if minutes is None else began + 60 * minutes
        self.last = None if minutes is None else began + 60 * minutes * (1 - reserve)

    def left(self) -> float:
        """Return the seconds left to train."""
        return math.inf if self.last is None else self.last - time.monotonic()


def search(
    bundle: str | Path,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    epochs: int | None = None,
    space: str | Path | None = None,
    layers: Sequence[str | Path] = (),
    overrides: Mapping[str, Any] | None = None,
    run_dir: str | Path | None = None,
    seed: int = 0,
    test: bool = True,
    console: Console | None = None,
) -> dict[str, Any]:
    """Return the summary of a search for the best settings by inner validation, with `ended`: how this call ended.

    Several processes, also on machines that share the folder, may search at once; a call on a search that is
    there goes on with it. `ended` is "finished", "time", "elsewhere" (other processes are at the last trials) or
    "interrupted".

    Args:
        bundle: its name or folder.
        trials: of the whole search, all calls together.
        minutes: this call's wall time, all included.
        epochs: of each trial; None fits them to the minutes, or takes the bundle's own without minutes.
        space: a YAML file with the key `search`; None is `_layers/search.yaml`.
        layers: files, or names of the bundle's or the common layers, merged onto train.yaml.
        overrides: config ids and values, as for `run`.
        run_dir: the search's folder; None is `runs/search-<bundle>`.
        seed: with the trial's number it decides what is drawn.
        test: score the best network on the test cases once the search has ended.
        console: where it is told.

    Raises:
        TomokitError: when the space, config or data are wrong, the bundle's own settings fail to train, or the
            folder holds something else, or a search of other settings.
    """
    _check_numbers({"trials": trials, "minutes": minutes, "epochs": epochs})
    console = console or Console(highlight=False)
    clock = Clock(minutes, RESERVE if test else 0.0)
    plan = make_plan(bundle, space, layers, overrides or {})
    folder = Path(run_dir) if run_dir is not None else Path("runs") / f"search-{plan.bundle.resolve().name}"
    if folder.exists() and any(folder.iterdir()) and not (folder / JOURNAL).exists():
        raise TomokitError(f"{folder} holds something else than a search; give another folder")
    with _terminating(), Store(folder, plan.greater_is_better) as store:
        ended, settings = "interrupted", None
        try:
            settings = _agree(store, plan, epochs, trials, seed, clock, console)
            ended = _work(store, plan, settings, trials, clock, console)
            if test and (ended == "finished" or (ended == "time" and trials is None)):
                _score(store, plan, clock, console)
        except KeyboardInterrupt:
            ended = "interrupted"
        return _finish(store, plan, settings, ended, console)


def _check_numbers(given: Mapping[str, float | None]) -> None:
    """Raise when nothing bounds the search, or a number is not above 0."""
    if given["trials"] is None and given["minutes"] is None:
        raise TomokitError("a search needs an end, got neither: give --trials, --minutes, or both")
    numbers = {name: value for name, value in given.items() if value is not None}
    wrong = [f"{name} must be above 0, got {value!r}" for name, value in numbers.items() if value <= 0]
    raise_problems("the search can't start:", wrong)


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """Let a request to end the process (SIGTERM, as a cluster sends it) end it as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---------------------------------------------------------------------------------------- what all share


def _agree(
    store: Store, plan: Plan, epochs: int | None, trials: int | None, seed: int, clock: Clock, console: Console
) -> dict[str, Any]:
    """Return the settings that the search began with, or new ones, which one process makes for all."""
    wanted = plan.settings(seed)
    while not (store.study.user_attrs.get("settings") or store.claim("setup")):
        time.sleep(0.5)
    began = store.study.user_attrs.get("settings")
    if began:
        compare_settings(store.folder, began, wanted | ({} if epochs is None else {"epochs": epochs}))
        return dict(began)
    if epochs is None and clock.minutes is None:
        epochs = int(plan.config["epochs"])
    number = epochs or _probe(store, plan, trials or USUAL_TRIALS, clock, console)
    command = shlex.join(["tomokit", *sys.argv[1:]])
    settings = wanted | {"epochs": number, "val_interval": plan.interval(number), "command": command}
    store.study.set_user_attr("settings", settings)
    return settings


def _probe(store: Store, plan: Plan, trials: int, clock: Clock, console: Console) -> int:
    """Return how many epochs a trial may have, from the time that one epoch takes.

    Raises:
        TomokitError: when the bundle can't train an epoch, or not in the time.
    """
    run = store.folder / "probe"
    console.print("measuring an epoch …", highlight=False)
    files = plan.files_of_trial(store.folder / "probe.yaml", run, 1, {})
    outcome = run_training(files, store.folder / "probe.log", lambda epoch, value: False, clock.last)
    if outcome.state != "done":
        why = "one epoch takes longer than the minutes" if outcome.state == "late" else outcome.problem
        raise TomokitError(f"the bundle's own settings can't be trained: {why} (see {store.folder / 'probe.log'})")
    shutil.rmtree(run)
    times = outcome.times | {"start": outcome.seconds - outcome.times["epoch"] - outcome.times["validation"]}
    epochs = fit_epochs(plan, times, SLACK * clock.left() / trials)
    own = int(plan.config["epochs"])
    console.print(
        f"an epoch takes {times['epoch']:.1f} s, a validation {times['validation']:.1f} s, a start "
        f"{times['start']:.1f} s: "
        f"{trials} trials of {epochs} epochs (the bundle's own: {own}) fit {clock.minutes:g} minutes",
        highlight=False,
    )
    return epochs


# ---------------------------------------------------------------------------------------- trials


def _work(
    store: Store, plan: Plan, settings: Mapping[str, Any], trials: int | None, clock: Clock, console: Console
) -> str:
    """Run trials, and return how it ended."""
    console.print(f"searched: {', '.join(parameter.name for parameter in plan.parameters)}", highlight=False)
    for parameter in (p for p in plan.parameters if not p.inside):
        console.print(f"`{parameter.name}`: the bundle's own {parameter.default!r} is outside the space")
    while True:
        usual = statistics.median(store.seconds() or [0.0])
        if clock.left() <= usual:
            console.print(f"{max(clock.left(), 0):.0f} s are left to train, a trial takes {usual:.0f} s")
            return "time"
        turn = store.next_trial(plan.parameters, trials, settings["seed"])
        if turn is None:
            return "elsewhere" if store.running() else "finished"
        trial, drawn = turn
        try:
            with console.status(f"trial {trial.number}") as status:
                outcome = _train(store, plan, settings, trial, drawn, clock, status)
        except KeyboardInterrupt:
            store.put_back(trial.number, "stopped by the user")
            raise
        finished = _close(store, trial, outcome)
        _tell(store, finished, console)
        again = training_command(plan, store.folder / "best.yaml")
        results.write_progress(store, plan.parameters, settings["command"], again)
        if finished.user_attrs.get("defaults") and results.state_of(finished) == "failed":
            problem = finished.user_attrs["problem"]
            raise TomokitError(f"the bundle's own settings can't be trained: {problem} (trial {trial.number})")


def _train(
    store: Store,
    plan: Plan,
    settings: Mapping[str, Any],
    trial: Trial,
    drawn: Mapping[str, Any],
    clock: Clock,
    status: Status,
) -> Outcome:
    """Return the outcome of a trial's training, which stops when the pruner says so."""
    folder = store.folder / "trials"
    last = settings["epochs"]
    spared = bool(trial.user_attrs.get("defaults"))  # all others are compared with it

    def report(epoch: int, value: float) -> bool:
        status.update(f"trial {trial.number}: epoch {epoch} of {last}, {value:.3f}")
        if store.trials()[trial.number].state is not TrialState.RUNNING:
            return True  # this process slept so long that another gave the trial up
        if math.isfinite(value):
            trial.report(value, epoch)
        return not spared and epoch < last and trial.should_prune()

    layer = folder / f"{trial.number}.yaml"
    run = folder / str(trial.number)
    files = plan.files_of_trial(layer, run, settings["epochs"], settings_of(plan.parameters, drawn))
    return run_training(files, folder / f"{trial.number}.log", report, clock.last)


def _close(store: Store, trial: Trial, outcome: Outcome) -> FrozenTrial:
    """Tell the study what became of a trial, and return it."""
    number = trial.number
    values = {epoch: value for epoch, value in outcome.values.items() if math.isfinite(value)}
    pick = max if store.maximize else min
    best = pick(values, key=lambda epoch: values[epoch], default=None)
    run = store.folder / "trials" / str(number)
    record = run / "validation.json"
    (run / "checkpoints" / "last.pt").unlink(missing_ok=True)  # most of a trial's bytes; no trial is resumed
    store.note(number, "seconds", round(outcome.seconds, 1))
    if record.is_file():
        store.note(number, "metric", read_json(record)["metric"])
    if outcome.state == "late":
        store.put_back(number, "the minutes were over")
    elif outcome.state == "stopped" and values:
        store.study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
    elif outcome.state == "done" and best is not None:
        store.note(number, "epoch", best)
        store.study.tell(number, values[best], skip_if_finished=True)
    else:
        store.note(number, "problem", outcome.problem or f"no validation has a number: {list(outcome.values.values())}")
        store.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
    return store.trials()[number]


def _tell(store: Store, trial: FrozenTrial, console: Console) -> None:
    """Print a trial's line."""
    best = store.best()
    value = results.shown_value(trial)
    shown = "–" if value is None else f"{value:.4f}"
    if best is not None and best.number == trial.number:
        shown += " (best so far)"
    state = results.state_of(trial)
    seconds = trial.user_attrs.get("seconds", 0.0)
    why = f": {trial.user_attrs['problem']}" if trial.user_attrs.get("problem") else ""
    line = f"trial {trial.number}: {shown}  {results.shown_parameters(trial)}  {state}, {seconds:.0f} s{why}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


# ---------------------------------------------------------------------------------------- the end


def _score(store: Store, plan: Plan, clock: Clock, console: Console) -> None:
    """Score the best trial's network on the test cases, unless it was, and keep the outcome in the study."""
    best = store.best()
    done = store.study.user_attrs.get("test")
    evaluate = plan.bundle / "configs" / "evaluate.yaml"
    if best is None or (done and done.get("trial") == best.number) or not store.claim("scoring"):
        return
    if not plan.cases["test"] or not evaluate.is_file():
        console.print(f"no test: {'the split has no test case' if evaluate.is_file() else f'there is no {evaluate}'}")
        return
    run = store.folder / "trials" / str(best.number)
    parts = {part: plan.names(part) for part in ("validation", "test")}
    folder = store.folder / "evaluation"
    with console.status("scoring the best network on the test cases"):
        try:
            scores = score_network(run, evaluate, parts, best.user_attrs["metric"], folder, clock.end)
        except TomokitError as error:
            console.print(f"not scored: {error}", markup=False, soft_wrap=True)
            return
    store.study.set_user_attr("test_readings", store.study.user_attrs.get("test_readings", 0) + 1)
    store.study.set_user_attr("test", {"trial": best.number, "searched": best.value, **scores})


def _finish(
    store: Store, plan: Plan, settings: Mapping[str, Any] | None, ended: str, console: Console
) -> dict[str, Any]:
    """Write and print what was found, and return it."""
    if settings is None:
        return {"ended": ended, "best": None}
    again = training_command(plan, store.folder / "best.yaml")
    results.write_progress(store, plan.parameters, settings["command"], again)
    summary = results.summarise(store, plan.parameters, settings) | {"ended": ended}
    results.draw_search(store, plan.parameters, summary["metric"] or "metric")
    console.print(results.trial_table(store.trials(), store.maximize))
    for line in results.closing_lines(summary, store.folder, again):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return summary


def training_command(plan: Plan, best: Path) -> str:
    """Return the command that trains the bundle in full with a layer."""
    with contextlib.suppress(ValueError):
        best = best.relative_to(Path.cwd())
    layers = [*plan.files[1:], str(best)]
    given = [word for key, value in plan.overrides.items() for word in (f"--{key}", str(value))]
    if plan.bundle.resolve() == list_bundles().get(plan.bundle.name) and Path("Makefile").is_file():
        words = ["make", "train", f"BUNDLE={plan.bundle.name}", f"LAYERS={' '.join(layers)}"]
        return shlex.join([*words, *([f"ARGS={shlex.join(given)}"] if given else [])])
    files = ",".join(f"'{file}'" for file in [plan.files[0], *layers])
    return " ".join(["python -m monai.bundle run --config_file", f'"[{files}]"', *map(shlex.quote, given)])
