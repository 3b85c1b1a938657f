"""The tables of a page: scores with intervals, rivals, comparisons, kinds of cases, promises, what was run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tomokit.errors import TomokitError
from tomokit.report.content import Finished, number
from tomokit.report.terminal import BY_AUC, COMPARED
from tomokit.statistics import compare_means, coverage_note, delong, rank_methods

# how scores are called; one that is not here is called by its key
TITLES = {
    "dice": "Dice",
    "nsd": "NSD",
    "hd95_mm": "HD95, mm",
    "auc": "AUC",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score",
    "ece": "calibration error",
    "f1": "F1",
    "mae": "mean absolute error",
    "mse": "mean squared error",
    "rmse": "root mean squared error",
    "bias": "mean error",
    "r2": "R²",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "order_accuracy": "order right",
    "change_auc": "AUC of change",
    "false_positive_rate": "unchanged called changed",
    "amount_mae": "error of the amount, %",
    "amount_bias": "bias of the amount, %",
    "amount_correlation": "correlation of the amount",
    "covered": "truth inside",
    "set_size": "classes in a set",
    "answered": "answered, not referred",
    "wrong_answers": "wrong among the answered",
    "width": "width of the interval",
    "width_ml": "width of the interval, ml",
    "difference_ml": "volume bias, ml",
    "sensitivity_at_90": "sensitivity at specificity .90",
    "sensitivity_at_95": "sensitivity at specificity .95",
    "false_positives": "invented per case",
    "random_insertion": "insertion, random order",
    "random_deletion": "deletion, random order",
    "hit": "maximum inside the mask",
    "energy": "part inside the mask",
    "psnr": "PSNR, dB",
    "restored": "share of the error undone",
    "error": "mean absolute error, restored",
    "error_distorted": "mean absolute error, distorted",
    "psnr_db": "PSNR restored, dB",
    "psnr_distorted_db": "PSNR distorted, dB",
    "ssim": "SSIM",
    "seconds": "seconds per volume",
}
COUNTS = {
    "absent_in_both": "rightly empty",
    "empty_truth": "without it in truth",
    "missed": "missed",
    "invented": "invented",
    "positives": "cases with it",
}
PRIMARY = {
    "segmentation": "dice",
    "classification": "auc",
    "multi_label": "auc",
    "regression": "mae",
    "pairs": "order_accuracy",
    "enhancement": "psnr",
    "pretraining": "restored",
    "anomaly": "auroc",
}


class Table(NamedTuple):
    """A table of texts: its title, the heads of the columns, the rows, and a note below."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


def all_tables(runs: Sequence[Finished]) -> Iterator[Table]:
    """Yield the tables of several runs side by side, or of one."""
    yield _overall(runs)
    if len(runs) > 1:
        yield from _differences(runs)
    for run in runs:
        of = f", {run.name}" if len(runs) > 1 else ""
        yield from _own(run, of)


def title_of(key: str) -> str:
    """Return what a score is called."""
    return TITLES.get(key, key.replace("_", " "))


def is_entry(value: Any) -> bool:
    """Return whether something of `metrics.json` is a score with its interval."""
    return isinstance(value, Mapping) and "mean" in value and "ci95" in value


def show(entry: Mapping[str, Any] | None, sign: str = "") -> str:
    """Return a score with its 95 % interval as text, a dash where it is undefined or was not measured."""
    if not entry or entry.get("mean") is None:
        return "–"
    text = _digits(entry["mean"], sign)
    low_high = entry.get("ci95")
    return f"{text} [{_digits(low_high[0], sign)}, {_digits(low_high[1], sign)}]" if low_high else text


def _digits(value: float, sign: str = "") -> str:
    """Return a number with three digits behind the point, fewer where it is large."""
    return f"{value:{sign}.3f}" if abs(value) < 10 else f"{value:{sign}.1f}"


def _own(run: Finished, of: str) -> Iterator[Table]:
    """Yield the tables that each run has for itself; `of` names it where there are several."""
    makers = (_per_class, _rivals, _comparisons, _promises, _lesions, _slices)
    yield from (table._replace(title=table.title + of) for maker in makers if (table := maker(run)) is not None)
    for table in _subgroups(run):
        yield table._replace(title=table.title + of)


def _overall(runs: Sequence[Finished]) -> Table:
    """Return the scores over all test cases, a column a run."""
    keys = dict.fromkeys(key for run in runs for key, value in run.metrics["summary"].items() if is_entry(value))
    rows = [[title_of(key), *(show(run.metrics["summary"].get(key)) for run in runs)] for key in keys]
    patients = [
        max((entry["n"] for entry in run.metrics["summary"].values() if is_entry(entry)), default=0) for run in runs
    ]
    rows.append(["patients", *map(str, patients)])
    note = f"95 % intervals from the bootstrap by patient. {coverage_note(min(patients))}".strip()
    return Table("Scores on the test cases", ["", *(run.name for run in runs)], rows, note)


def _per_class(run: Finished) -> Table | None:
    """Return the scores of each structure, class or label."""
    scores = run.metrics["per_class"]
    keys = list(dict.fromkeys(key for own in scores.values() for key, value in own.items() if is_entry(value)))
    counts = [key for key in COUNTS if any(own.get(key) is not None for own in scores.values())]
    if not keys:
        return None
    limits = any("limits_ml" in own for own in scores.values())
    rows = [
        [name, *(show(own.get(key)) for key in keys), *([_limits(own)] if limits else [])]
        + [str(own.get(key, "–")) for key in counts]
        for name, own in scores.items()
    ]
    head = ["", *map(title_of, keys), *(["95 % of cases, ml"] if limits else []), *(COUNTS[key] for key in counts)]
    absent = run.metrics.get("absent_classes")
    note = f"No score of {', '.join(absent)}: the test cases have none, or nothing else." if absent else ""
    return Table("Each by itself", head, rows, note)


def _limits(scores: Mapping[str, Any]) -> str:
    """Return the limits of agreement of a structure's volumes as text."""
    ends = scores.get("limits_ml")
    return "–" if ends is None else f"{_digits(ends[0], '+')} to {_digits(ends[1], '+')}"


def _rivals(run: Finished) -> Table | None:
    """Return the run's scores beside its rivals'."""
    rivals = run.metrics.get("rivals") or {}
    if not rivals:
        return None
    places = [("", key) for key, value in run.metrics["summary"].items() if is_entry(value)]
    primary = PRIMARY.get(run.task, "")
    places += [(name, primary) for name, own in run.metrics["per_class"].items() if is_entry(own.get(primary))]

    def entry(metrics: Mapping[str, Any], name: str, key: str) -> Mapping[str, Any] | None:
        block = metrics["per_class"].get(name, {}) if name else metrics["summary"]
        return block.get(key)

    rows = [
        [f"{title_of(key)}{', ' if name else ''}{name}", show(entry(run.metrics, name, key))]
        + [show(entry(rival, name, key)) for rival in rivals.values()]
        for name, key in places
        if any(entry(rival, name, key) for rival in rivals.values())
    ]
    return Table(
        "Beside simple methods", ["", run.name, *rivals], rows, "The rivals were fitted on the training cases."
    )


def _comparisons(run: Finished) -> Table | None:
    """Return the tests against the rivals."""
    _, score, test = COMPARED.get(run.task, BY_AUC)
    rows = [
        [rival, name, _difference(found["difference"], found["ci95"]), _p(found["p"]), str(found["verdict"])]
        for rival, classes in (run.metrics.get("comparisons") or {}).items()
        for name, found in (classes or {}).items()
    ]
    head = ["rival", "of", f"{score}, network − rival", "p", "the network is"]
    note = f"{test[0].upper()}{test[1:]}, on the same cases."
    return Table("Is the difference more than chance?", head, rows, note) if rows else None


def _promises(run: Finished) -> Table | None:
    """Return how promises to new cases were kept on the test cases."""
    told = run.metrics.get("promises")
    if not told:
        return None
    blocks = told.get("per_class") or {"": told}
    keys = list(dict.fromkeys(key for own in blocks.values() for key, value in own.items() if is_entry(value)))
    rows = [[name or "all", *(show(own.get(key)) for key in keys)] for name, own in blocks.items()]
    note = (
        f"Promised: the truth inside in {1 - told['error_rate']:.0%} of cases, by {told['calibration_cases']} "
        "validation cases, which also chose the epoch, so that a little less is to be expected."
    )
    if any("covered" in own and not {"width", "width_ml", "set_size"} & own.keys() for own in blocks.values()):
        note += " Where no width is told, these are too few: the interval is endless, so that it must hold the truth."
    if "risk" in told:
        note += f" Referred to a human is what can't be answered with at most {told['risk']:.0%} wrong."
    return Table("What is promised of new cases, and was it kept?", ["", *map(title_of, keys)], rows, note)


def _lesions(run: Finished) -> Table | None:
    """Return how lesions were detected."""
    lesions = run.metrics.get("lesions") or {}
    keys = list(dict.fromkeys(key for own in lesions.values() for key, value in own.items() if is_entry(value)))
    if not keys:
        return None
    rows = [[name, *(show(own.get(key)) for key in keys)] for name, own in lesions.items()]
    return Table("Lesions, one by one", ["", *map(title_of, keys)], rows)


def _slices(run: Finished) -> Table | None:
    """Return the scores of single slices."""
    scores = {key: value for key, value in (run.metrics.get("slices") or {}).items() if is_entry(value)}
    rows = [[title_of(key), show(value)] for key, value in scores.items()]
    return Table("Slices", ["", run.name], rows) if rows else None


def _subgroups(run: Finished) -> Iterator[Table]:
    """Yield a table for each field that tells kinds of cases."""
    for field, kinds in (run.metrics.get("subgroups") or {}).items():
        known = [own["summary"] for own in kinds.values() if own["summary"]]
        keys = [key for key, value in (known[0] if known else {}).items() if is_entry(value)]
        rows = [
            [kind, str(own["n"]), str(own["cases"]), *(show((own["summary"] or {}).get(key)) for key in keys)]
            for kind, own in kinds.items()
        ]
        note = "" if len(known) == len(kinds) else "Kinds of fewer than five patients are named, not scored."
        yield Table(f"By {field}", ["", "patients", "cases", *map(title_of, keys)], rows, note)


def _differences(runs: Sequence[Finished]) -> Iterator[Table]:
    """Yield how each further run differs from the first on the cases that both scored.

    Raises:
        TomokitError: when the runs are of several tasks.
    """
    first, *others = runs
    if tasks := {run.task for run in runs} - {first.task}:
        raise TomokitError(
            f"runs side by side must be of one task, got {first.task} and {', '.join(tasks)}; make a page of each"
        )
    if first.task == "segmentation":
        yield _dice_differences(first, others)
        if len(runs) > 2:
            yield from _ranking(runs)
    elif first.task == "classification":
        yield _auc_differences(first, others)


def _dice_differences(first: Finished, others: Sequence[Finished]) -> Table:
    """Return the paired differences of mean Dice by case."""
    rows = []
    own = _case_scores(first)
    for other in others:
        theirs = _case_scores(other)
        shared = [case for case in own if case in theirs]
        if not shared:
            rows.append([other.name, "0", "–", "–", "no case in common"])
            continue
        ours, others_scores = ([scores[case][1] for case in shared] for scores in (own, theirs))
        found = compare_means(ours, others_scores, [own[case][0] for case in shared])
        told = _difference(found.difference, [found.low, found.high])
        rows.append([other.name, str(len(shared)), told, _p(found.p), found.verdict])
    head = ["beside", "cases", f"mean Dice, {first.name} − it", "p", f"{first.name} is"]
    note = "Paired bootstrap by patient; p by Wilcoxon's signed ranks, of each patient's mean."
    return Table("Is the difference more than chance?", head, rows, note)


def _ranking(runs: Sequence[Finished]) -> Iterator[Table]:
    """Yield the runs by their mean Dice on the cases that all of them scored, where there are such."""
    scores = {run.name: _case_scores(run) for run in runs}
    shared = [case for case in scores[runs[0].name] if all(case in own for own in scores.values())]
    if not shared or len(scores) < len(runs):
        return
    patients = [scores[runs[0].name][case][0] for case in shared]
    found = rank_methods({name: [own[case][1] for case in shared] for name, own in scores.items()}, patients)
    rows = [[name, f"{own.mean:g}", f"{own.low:g} to {own.high:g}" if own.low else "–"] for name, own in found.items()]
    yield Table("Ranking", ["run", "rank", "95 %"], rows, f"By the mean Dice of {len(shared)} cases that all scored.")


def _auc_differences(first: Finished, others: Sequence[Finished]) -> Table:
    """Return DeLong's test of the last class, of two; else of each class."""
    rows = []
    names = first.classes[-1:] if len(first.classes) == 2 else first.classes
    for other in others:
        theirs = {row["case"]: row for row in other.rows}
        shared = [row for row in first.rows if row["case"] in theirs]
        for name in names:
            truth = [row["truth"] == name for row in shared]
            if min(sum(truth), len(truth) - sum(truth)) < 2:
                rows.append([other.name, name, str(len(shared)), "–", "–", "too few cases in common"])
                continue
            scores = [[float(row[f"p_{name}"]) for row in own] for own in (shared, [theirs[r["case"]] for r in shared])]
            found = delong(truth, *scores)
            told = _difference(found.difference, [found.low, found.high])
            rows.append([other.name, name, str(len(shared)), told, _p(found.p), found.verdict])
    head = ["beside", "of", "cases", f"AUC, {first.name} − it", "p", f"{first.name} is"]
    return Table("Is the difference more than chance?", head, rows, "DeLong's test on the cases that both scored.")


def _case_scores(run: Finished) -> dict[str, tuple[str, float]]:
    """Return the patient and the mean Dice of each case."""
    found: dict[str, tuple[str, list[float]]] = {}
    for row in run.rows:
        if (dice := number(row.get("dice"))) is not None:
            found.setdefault(row["case"], (row["patient"], []))[1].append(dice)
    return {case: (patient, sum(values) / len(values)) for case, (patient, values) in found.items()}


def _difference(value: float, ends: Sequence[float]) -> str:
    """Return a difference with its interval."""
    return f"{value:+.3f} [{ends[0]:+.3f}, {ends[1]:+.3f}]"


def _p(value: float) -> str:
    """Return a p as text."""
    return f"{value:.3f}" if value >= 0.001 else "< .001"


def facts(run: Finished) -> list[tuple[str, str]]:
    """Return what was run, as names and texts."""
    environment, validation, cases = run.environment, run.validation, run.config.get("cases", {})
    hardware = environment.get("hardware", {})
    gpus = hardware.get("gpus")
    machine = f"{hardware.get('cores', '?')} cores of {hardware.get('processor', 'unknown')}"
    versions = environment.get("versions", {})
    told = {
        "task": run.task,
        "scored weights": run.metrics.get("checkpoint"),
        "cases": ", ".join(f"{len(cases.get(part, []))} {part}" for part in ("training", "validation", "test")),
        "data hash": environment.get("data_hash"),
        "seed": run.config.get("seed"),
        "determinism": environment.get("determinism"),
        "trained": _training_time(validation),
        "began": environment.get("started"),
        "machine": machine + (f", {', '.join(gpus)}" if gpus else ""),
        "peak memory of the evaluation": _with_unit(run.metrics.get("peak_rss_gb"), "GB"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "source": environment.get("git_revision"),
        "command": environment.get("command"),
    }
    return [(name, str(value)) for name, value in told.items() if value not in (None, "")]


def _training_time(validation: Mapping[str, Any]) -> str:
    """Return how long was trained."""
    seconds, epochs = validation.get("seconds"), validation.get("epochs")
    return "" if seconds is None else f"{seconds / 60:.1f} min, {epochs} epochs"


def _with_unit(value: float | None, unit: str) -> str:
    """Return a number with its unit, nothing where there is none."""
    return "" if value is None else f"{value:.2f} {unit}"
