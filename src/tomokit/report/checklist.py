"""What a report on a model should tell, and what of it this run tells; the rest is named as open."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from tomokit.report.content import Finished

INNER = ("network", "encoder", "image_network")  # of a network that pads, drops or joins what another one gives


class Item(NamedTuple):
    """A point of the checklist: its part, what it asks, the answer ("" where it is open), and what to do then."""

    part: str
    asks: str
    answer: str
    remedy: str


def checklist(run: Finished) -> list[Item]:
    """Return every point, answered from the run's files where they tell it.

    Source: in our own words after Tejani et al., Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024
        update, Radiology: Artificial Intelligence 6 (2024); Collins et al., TRIPOD+AI, BMJ 385 (2024).
    """
    return [Item(part, asks, answer(run), remedy) for part, asks, answer, remedy in _POINTS]


def _open(_: Finished) -> str:
    """Return nothing: no run can tell it."""
    return ""


def _part(run: Finished) -> str:
    cases = run.config.get("cases", {})
    counts = {name: len(cases.get(name, [])) for name in ("training", "validation", "test")}
    return f"{counts['training']} training, {counts['validation']} validation, {counts['test']} test cases"


def _disjoint(run: Finished) -> str:
    return f"by patient, from {run.config.get('split', 'lists')}, fold {run.config.get('fold', 0)}" if run.rows else ""


def _model(run: Finished) -> str:
    part, names = run.config.get("network_def"), []
    while isinstance(part, Mapping):
        names.append(str(part.get("_target_", "")))
        part = next((part[key] for key in INNER if key in part), None)
        if isinstance(part, str):
            part = run.config.get(part.removeprefix("@"))
    return " in ".join(reversed(names))


def _start(run: Finished) -> str:
    text = f"seed {run.config['seed']}" if "seed" in run.config else ""
    return text + (f", weights of {run.config['pretrained']}" if run.config.get("pretrained") else ", random weights")


def _training(run: Finished) -> str:
    seconds, epochs = run.validation.get("seconds"), run.validation.get("epochs")
    rate, batch = run.config.get("learning_rate"), run.config.get("batch_size")
    return "" if seconds is None else f"{epochs} epochs in {seconds / 60:.1f} min, rate {rate}, {batch} a batch"


def _choice(run: Finished) -> str:
    best = run.validation.get("best") or {}
    return (
        f"epoch {best['epoch']} by {run.validation.get('metric')} on the validation cases" if best.get("epoch") else ""
    )


def _software(run: Finished) -> str:
    versions = run.environment.get("versions", {})
    return ", ".join(f"{name} {versions[name]}" for name in ("tomokit", "monai", "torch") if name in versions)


def _intervals(run: Finished) -> str:
    return "95 % intervals by patient beside every score" if run.metrics.get("summary") else ""


def _rivals(run: Finished) -> str:
    rivals = run.metrics.get("rivals") or {}
    return f"beside {', '.join(rivals)}" if rivals else ""


def _calibration(run: Finished) -> str:
    summary = run.metrics.get("summary", {})
    if "ece" in summary and summary["ece"]["mean"] is not None:
        return f"calibration error {summary['ece']['mean']:.3f}"
    return ""


def _promises(run: Finished) -> str:
    told = run.metrics.get("promises")
    return f"conformal, at {1 - told['error_rate']:.0%}; kept as often as the table tells" if told else ""


def _subgroups(run: Finished) -> str:
    return ", ".join(run.metrics.get("subgroups") or {})


def _explained(run: Finished) -> str:
    return str(run.explanations.get("method", "")) if run.explanations else ""


def _failures(run: Finished) -> str:
    return "the worst case is shown, every case is in the strip" if run.rows else ""


def _hash(run: Finished) -> str:
    return str(run.environment.get("data_hash", ""))


Point = tuple[str, str, Callable[[Finished], str], str]
_POINTS: tuple[Point, ...] = (
    ("Study", "Is it told whether the data were gathered forwards or backwards in time?", _open, "say it in the paper"),
    ("Study", "What is the model for, who uses it, on whom?", _open, "state the intended use"),
    ("Data", "Where do the scans come from, when, and under whose approval?", _open, "name source, dates and approval"),
    ("Data", "Which scans were taken in, which left out, and why?", _open, "give a flow chart of patients"),
    ("Data", "Which very data were used?", _hash, "train again: the run has no hash of its data"),
    ("Data", "How were patients' names removed?", _open, "describe the de-identification"),
    ("Data", "How many cases, and how were they parted?", _part, "train with a split"),
    ("Data", "At which level are the parts disjoint?", _disjoint, "evaluate the run"),
    ("Data", "Was the number of cases planned?", _open, "justify the sample size"),
    ("Data", "Who are the patients: age, sex, disease, scanner?", _open, "add a table of patients"),
    ("Truth", "Who annotated, how, with which experience?", _open, "describe the reference standard"),
    ("Truth", "How far do annotators differ?", _open, "have some cases annotated twice"),
    ("Model", "Which network, exactly?", _model, "train from a config"),
    ("Model", "With which weights and seed did it begin?", _start, "set `seed`"),
    ("Model", "How was it trained?", _training, "train by epochs, or describe how the network was joined"),
    ("Model", "How was the final model chosen?", _choice, "keep validation cases"),
    ("Model", "Which software, in which versions?", _software, "train again: the run has no environment.json"),
    ("Scores", "Does every score have an interval?", _intervals, "evaluate the run"),
    ("Scores", "Is it compared with simpler methods on the same cases?", _rivals, "evaluate with `rival: true`"),
    ("Scores", "Do probabilities come true?", _calibration, "of a classifier, evaluate; label maps have none"),
    ("Scores", "What is promised of a single new case?", _promises, "train with validation cases, then evaluate"),
    (
        "Scores",
        "How do the scores differ between kinds of patients?",
        _subgroups,
        "give `group` or `clinical` in dataset.json",
    ),
    ("Scores", "Was it tested on scans of another place?", _open, "evaluate on an external set"),
    ("Scores", "Where does it fail?", _failures, "evaluate the run"),
    ("Use", "What did the network look at?", _explained, "of a classifier, `make explain`"),
    ("Use", "What limits its use?", _open, "state the limits"),
    ("Use", "Are code, weights and data to be had?", _open, "`tomokit release`, and say where"),
    ("Use", "Who paid, and what part did they have?", _open, "name funding and interests"),
)
