"""What a search leaves: a table of its trials, a layer with the best settings, a picture, and a summary."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from tomokit import configs
from tomokit.files import replacing, write_json, write_table
from tomokit.runs import describe_environment
from tomokit.search.space import Parameter, describe_space, settings_of
from tomokit.search.store import Store

FEWEST_FOR_IMPORTANCE = 4
MOST_COLUMNS = 5
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"
_ENDINGS = {
    "finished": "the search is finished",
    "time": "the minutes are over",
    "elsewhere": "nothing is left to begin; other processes are still at their last trials, and will write the results",
    "interrupted": "interrupted",
}


def state_of(trial: FrozenTrial) -> str:
    """Return what became of a trial in a word."""
    if trial.user_attrs.get("lost"):
        return "interrupted"
    return {TrialState.FAIL: "failed"}.get(trial.state, trial.state.name.lower())


def count_states(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """Return how many trials there are of each state, those in the queue left out."""
    known = ("complete", "pruned", "failed", "interrupted", "running")
    found = [state_of(trial) for trial in trials]
    return {state: found.count(state) for state in known}


def shown_value(trial: FrozenTrial) -> float | None:
    """Return a trial's metric: the best of a complete one, the last of a pruned one."""
    return trial.value if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) else None


def shown_parameters(trial: FrozenTrial) -> str:
    """Return a trial's settings as text."""
    own = ["the bundle's own"] if trial.user_attrs.get("defaults") else []
    return ", ".join([*own, *(f"{name} {_short(value)}" for name, value in trial.params.items())])


def write_progress(store: Store, parameters: Sequence[Parameter], command: str, again: str) -> None:
    """Write `trials.csv`, and `best.yaml` where a trial is complete.

    `command` is what was run; `again` is the command that trains with `best.yaml`.
    """
    write_table(store.folder / "trials.csv", [_row(trial) for trial in store.trials()])
    best = store.best()
    if best is None:
        return
    metric = best.user_attrs.get("metric", "metric")
    header = (
        f"The best settings of a search: trial {best.number}, {metric} {best.value:.4f} on the inner validation.\n"
        f"\n  {again}\n\nFound by: {command}"
    )
    configs.write_config(settings_of(parameters, best.params), store.folder / "best.yaml", header)


def summarise(store: Store, parameters: Sequence[Parameter], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary, and write it to `search.json`."""
    trials, best = store.trials(), store.best()
    defaults = next((t for t in reversed(trials) if t.user_attrs.get("defaults") and t.value is not None), None)
    environment = describe_environment({})
    summary = {
        "metric": best.user_attrs.get("metric") if best else None,
        "direction": "maximize" if store.maximize else "minimize",
        "best": _describe(best),
        "defaults": _describe(defaults),
        "counts": count_states(trials),
        "trial_seconds": sum(t.user_attrs.get("seconds", 0.0) for t in trials),
        "importance": importances(store, parameters),
        "test": store.study.user_attrs.get("test"),
        "test_readings": store.study.user_attrs.get("test_readings", 0),
        "space": describe_space(parameters),
        **{key: settings[key] for key in ("epochs", "val_interval", "seed", "command", "data_hash")},
        "versions": environment["versions"] | {"optuna": optuna.__version__},
        "hardware": environment["hardware"],
        "git_revision": environment["git_revision"],
    }
    write_json(store.folder / "search.json", summary)
    return summary


def trial_table(trials: Sequence[FrozenTrial], maximize: bool) -> Table:
    """Return the finished trials as a table, the best first."""
    table = Table("trial", "parameters", "value", "state", "seconds")
    sign = -1 if maximize else 1

    def place(trial: FrozenTrial) -> tuple[bool, float]:
        return trial.state is not TrialState.COMPLETE, sign * (shown_value(trial) or 0.0)

    for trial in sorted((t for t in trials if t.state.is_finished()), key=place):
        value = shown_value(trial)
        texts = ("–" if value is None else f"{value:.4f}", state_of(trial))
        seconds = trial.user_attrs.get("seconds")
        shown = "–" if seconds is None else f"{seconds:.0f}"
        table.add_row(str(trial.number), shown_parameters(trial), *texts, shown)
    return table


def importances(store: Store, parameters: Sequence[Parameter]) -> dict[str, float]:
    """Return how much of the metric's variance each parameter explains, 0–1; empty with too few trials to tell.

    Source: Hutter et al., An efficient approach for assessing hyperparameter importance (fANOVA), ICML 2014.
    """
    names = [parameter.name for parameter in parameters]
    complete = [t for t in store.trials() if t.state is TrialState.COMPLETE and set(names) <= set(t.params)]
    if len(complete) < FEWEST_FOR_IMPORTANCE or len({t.value for t in complete}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(store.study, evaluator=evaluator, params=names)
    return {name: float(share) for name, share in found.items() if math.isfinite(share)}


def draw_search(store: Store, parameters: Sequence[Parameter], metric: str) -> None:
    """Write `search.png`: each trial's metric with the best so far, and the metric against each parameter."""
    trials = [t for t in store.trials() if t.state.is_finished() and not t.user_attrs.get("lost")]
    columns = min(MOST_COLUMNS, len(parameters))
    rows = math.ceil(len(parameters) / columns)
    figure = Figure(figsize=(12, 3.4 + 2.8 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1.2, *[1] * rows])
    _draw_history(figure.add_subplot(grid[0, :]), trials, store.maximize, metric)
    shares = importances(store, parameters)
    for place, parameter in enumerate(parameters):
        axes = figure.add_subplot(grid[1 + place // columns, place % columns])
        _draw_slice(axes, trials, parameter, shares.get(parameter.name))
        axes.set_ylabel(metric if place % columns == 0 else "")
    with replacing(store.folder / "search.png") as temporary:
        figure.savefig(temporary, format="png")


def _draw_history(axes: Axes, trials: Sequence[FrozenTrial], maximize: bool, metric: str) -> None:
    """Draw each trial's metric in order, the best so far as a line, failed trials at the bottom edge."""
    complete = [t for t in trials if t.state is TrialState.COMPLETE and t.value is not None]
    pruned = [t for t in trials if t.state is TrialState.PRUNED and t.value is not None]
    failed = [t for t in trials if t.state is TrialState.FAIL]
    axes.plot([t.number for t in complete], [_value(t) for t in complete], "o", color=BLUE, label="complete")
    if pruned:
        axes.plot([t.number for t in pruned], [_value(t) for t in pruned], "v", color=GREY, label="pruned: last value")
    if failed:
        edge = axes.get_xaxis_transform()
        axes.plot([t.number for t in failed], [0.02] * len(failed), "x", color=ORANGE, transform=edge, label="failed")
    best: list[float] = []
    for trial in complete:
        value = _value(trial)
        best.append(value if not best else (max if maximize else min)(best[-1], value))
    axes.step([t.number for t in complete], best, where="post", color=BLUE, linewidth=1, label="best so far")
    own = next((t.value for t in reversed(complete) if t.user_attrs.get("defaults")), None)
    if own is not None:
        axes.axhline(own, color=ORANGE, linestyle=":", linewidth=1.2, label="the bundle's own settings")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial", ylabel=metric, title="Inner validation, trial by trial")
    axes.legend(fontsize=8, loc="best")


def _draw_slice(axes: Axes, trials: Sequence[FrozenTrial], parameter: Parameter, share: float | None) -> None:
    """Draw the metric against one parameter."""
    for state, mark, colour in ((TrialState.PRUNED, "v", GREY), (TrialState.COMPLETE, "o", BLUE)):
        chosen = [t for t in trials if t.state is state and parameter.name in t.params and t.value is not None]
        values = [t.params[parameter.name] for t in chosen]
        if parameter.kind != "number":
            options = list(parameter.options)
            values = [options.index(value) for value in values]
        axes.plot(values, [_value(t) for t in chosen], mark, color=colour)
    if parameter.kind != "number":
        names = [_short(option) for option in parameter.options]
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif parameter.log:
        axes.set_xscale("log")
    title = parameter.name if share is None else f"{parameter.name}: importance {share:.2f}"
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=8)


def closing_lines(summary: Mapping[str, Any], folder: Path, again: str) -> list[str]:
    """Return what is told at the end: how it ended, the best, what the test says, and what to do next."""
    counts = ", ".join(f"{number} {state}" for state, number in summary["counts"].items() if number)
    lines = [f"{_ENDINGS[summary['ended']]}; trials: {counts or 'none'}; {summary['trial_seconds']:.0f} s of training"]
    best, defaults = summary["best"], summary["defaults"]
    if best is None:
        return [*lines, "no trial is complete, so there are no best settings"]
    own = "not known" if defaults is None else f"{defaults['value']:.4f}"
    lines.append(
        f"best: trial {best['trial']}, {summary['metric']} {best['value']:.4f} on the inner validation cases; "
        f"the bundle's own settings: {own}"
    )
    lines += _test_lines(summary)
    lines += [f"table, picture, summary: {folder}/trials.csv, search.png, search.json", f"train with it: {again}"]
    if summary["ended"] in ("time", "interrupted"):
        done = sum(number for state, number in summary["counts"].items() if state != "interrupted")
        lines.append(f"to go on: the same command again; to end the search here: with --trials {done}")
    return lines


def _test_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return what the test cases say of the best network."""
    test = summary["test"]
    if test is None:
        return ["the test cases were not read"]
    first, second, difference = (_with_interval(test[key]) for key in ("validation", "test", "difference"))
    numbers = test["validation"]["n"], test["test"]["n"]
    optimism = test["searched"] - test["test"]["mean"]
    lines = [
        f"trial {test['trial']} scored alike on both, {test['measure']}: validation {first}, n {numbers[0]}; "
        f"test {second}, n {numbers[1]}",
        f"validation - test: {difference}; the search's own value - test: {optimism:+.4f}",
    ]
    readings = summary["test_readings"]
    if readings > 1:
        lines.append(f"the test cases were read {readings} times in this search: their score is no longer independent")
    return lines


def _with_interval(score: Mapping[str, Any]) -> str:
    """Return a score with its 95 % interval."""
    bounds = score.get("ci95")
    return f"{score['mean']:.4f} " + (f"[{bounds[0]:.4f}, {bounds[1]:.4f}]" if bounds else "(no interval)")


def _value(trial: FrozenTrial) -> float:
    """Return a trial's metric, not a number where it has none."""
    return math.nan if trial.value is None else float(trial.value)


def _describe(trial: FrozenTrial | None) -> dict[str, Any] | None:
    """Return a trial as the summary tells it."""
    if trial is None:
        return None
    kept = {key: trial.user_attrs.get(key) for key in ("epoch", "seconds")}
    return {"trial": trial.number, "value": trial.value, "parameters": dict(trial.params), **kept}


def _row(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial as a row of the table."""
    notes = trial.user_attrs
    row = {"trial": trial.number, "state": state_of(trial), "value": shown_value(trial)}
    row |= {key: notes.get(key, "") for key in ("epoch", "seconds", "defaults", "again", "problem")}
    return row | dict(trial.params)


def _short(value: Any) -> str:
    """Return a setting in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
