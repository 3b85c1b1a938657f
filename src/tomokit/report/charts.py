"""The charts of a page, as SVG: learning curves, a strip of all cases, ROC, calibration, confusion, agreement, risk."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from tomokit.pictures import COLOURS
from tomokit.report.content import Finished, number

SIZE = (4.6, 3.2)  # inches
MOST_DRAWN = 4000  # points as lines of SVG; more become pixels
MOST_SERIES = len(COLOURS)  # structures or classes with a colour of their own
BINS = 10  # of a reliability diagram, of as many cases each
LEAST_PER_BIN = 5
MOST_IN_CELLS = 12  # classes whose confusion is told in numbers


class Chart(NamedTuple):
    """A chart: its title, the SVG, and what it says in words for those who can't see it."""

    title: str
    svg: str
    told: str


def all_charts(run: Finished) -> Iterator[Chart]:
    """Yield the charts that a run's task has."""
    if chart := learning_curve(run):
        yield chart
    makers = {
        "segmentation": (strip, agreement),
        "classification": (roc, precision_recall, reliability, confusion, risk),
        "multi_label": (roc, precision_recall),
        "regression": (scatter,),
    }
    for make in makers.get(run.task, ()):
        if run.rows and (found := make(run)):
            yield found


def learning_curve(run: Finished) -> Chart | None:
    """Return the loss of each epoch, and the metric of each validation."""
    history = run.validation.get("history") or []
    if not history:
        return None

    def draw(axes: Axes) -> None:
        losses = [(entry["epoch"], entry["loss"]) for entry in history if entry.get("loss") is not None]
        scores = [(entry["epoch"], entry["metric"]) for entry in history if entry.get("metric") is not None]
        axes.plot(*zip(*losses, strict=True), color=COLOURS[6], label="loss")
        axes.set(xlabel="epoch", ylabel="training loss")
        if scores:
            other = axes.twinx()
            other.plot(*zip(*scores, strict=True), "o-", ms=3, color=COLOURS[5], label="validation")
            other.set_ylabel(str(run.validation.get("metric", "validation")), color=COLOURS[5])
            other.spines["top"].set_visible(False)
        if best := (run.validation.get("best") or {}).get("epoch"):
            axes.axvline(best, color="grey", lw=0.8, ls=":")

    return make_chart(
        "Learning", draw, "The loss of each epoch, the validation's metric, dotted the epoch that was kept."
    )


def strip(run: Finished) -> Chart | None:
    """Return every case's Dice as a point, a row a structure, with the mean and its interval."""
    values = {name: [number(row["dice"]) for row in run.rows if row["class"] == name] for name in run.classes}

    def draw(axes: Axes) -> None:
        generator = np.random.default_rng(0)
        for place, (name, own) in enumerate(values.items()):
            known = [value for value in own if value is not None]
            heights = place + generator.uniform(-0.28, 0.28, len(known))
            axes.plot(
                known,
                heights,
                ".",
                ms=3 if len(known) > 200 else 6,
                alpha=0.5,
                color=COLOURS[1],
                rasterized=len(run.rows) > MOST_DRAWN,
            )
            _mark_mean(axes, run.metrics["per_class"][name]["dice"], place)
        axes.set(yticks=range(len(values)), yticklabels=list(values), xlabel="Dice", xlim=(-0.02, 1.02))
        axes.invert_yaxis()

    worst = min((value for own in values.values() for value in own if value is not None), default=None)
    told = "Each point is a case; the bar is the mean with its 95 % interval."
    told += f" The lowest Dice is {worst:.3f}." if worst is not None else ""
    return make_chart("Every case", draw, told, (SIZE[0], max(SIZE[1] / 2, 0.9 + 0.28 * len(values))))


def agreement(run: Finished) -> Chart | None:
    """Return the differences of predicted and true volumes against their means, with the limits of agreement."""
    if not run.rows or "truth_ml" not in run.rows[0]:
        return None
    shown = run.classes[:MOST_SERIES]

    def draw(axes: Axes) -> None:
        for name, colour in zip(shown, COLOURS, strict=False):
            pairs = [(float(row["predicted_ml"]), float(row["truth_ml"])) for row in run.rows if row["class"] == name]
            if not pairs:
                continue
            predicted, truth = np.array(pairs).T
            middle, difference = (predicted + truth) / 2, predicted - truth
            axes.plot(middle, difference, ".", ms=4, alpha=0.6, color=colour, label=name, rasterized=len(pairs) > 1000)
            reach = 1.96 * difference.std(ddof=1) if len(pairs) > 1 else 0.0
            for value, style in (
                (difference.mean(), "-"),
                (difference.mean() - reach, ":"),
                (difference.mean() + reach, ":"),
            ):
                axes.plot([middle.min(), middle.max()], [value, value], style, lw=1, color=colour)
        axes.axhline(0, color="grey", lw=0.6)
        axes.set(xlabel="mean of both volumes, ml", ylabel="predicted − true, ml")
        axes.legend(fontsize=7, frameon=False)

    told = "Bland and Altman's plot: lines are the mean difference, dotted the 95 % limits of agreement."
    if len(run.classes) > len(shown):
        told += f" The first {len(shown)} of {len(run.classes)} structures."
    return make_chart("Measured volumes", draw, told)


def roc(run: Finished) -> Chart | None:
    """Return the ROC curve of each class or label."""
    return _curves(
        run, "ROC", _draw_roc, ("1 − specificity", "sensitivity"), "ROC curves, each class against the rest."
    )


def precision_recall(run: Finished) -> Chart | None:
    """Return precision against recall of each class or label."""
    told = "Precision against recall, each class against the rest."
    return _curves(run, "Precision and recall", _draw_precision, ("recall", "precision"), told)


def _draw_roc(axes: Axes, truth: list[bool], chances: list[float], **style: Any) -> None:
    """Draw one ROC curve."""
    false, true, _ = roc_curve(truth, chances)
    axes.plot(false, true, drawstyle="steps-post", **style)


def _draw_precision(axes: Axes, truth: list[bool], chances: list[float], **style: Any) -> None:
    """Draw one curve of precision and recall."""
    precision, recall, _ = precision_recall_curve(truth, chances)
    axes.plot(recall, precision, drawstyle="steps-pre", **style)


def _curves(
    run: Finished, title: str, draw_one: Callable[..., None], axis_names: tuple[str, str], told: str
) -> Chart | None:
    """Return a chart with a curve for each class or label of which there are cases with and without."""
    names = run.classes[-1:] if run.task == "classification" and len(run.classes) == 2 else run.classes
    known = []
    for name in names:
        truth = [row["truth"] == name if "truth" in row else row[f"truth_{name}"] == "1" for row in run.rows]
        if any(truth) and not all(truth):
            known.append((name, truth, [float(row[f"p_{name}"]) for row in run.rows]))
    if not known:
        return None

    def draw(axes: Axes) -> None:
        for (name, truth, chances), colour in zip(known[:MOST_SERIES], COLOURS, strict=False):
            draw_one(axes, truth, chances, color=colour, label=name, lw=1.4)
        axes.set(xlabel=axis_names[0], ylabel=axis_names[1], xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.legend(fontsize=7, frameon=False)

    return make_chart(title, draw, told)


def reliability(run: Finished) -> Chart | None:
    """Return how often the likeliest class is right, against its probability."""
    chances = np.array([[float(row[f"p_{name}"]) for name in run.classes] for row in run.rows])
    truth = [run.classes.index(row["truth"]) for row in run.rows]
    right = chances.argmax(axis=1) == truth
    bins = max(1, min(BINS, len(truth) // LEAST_PER_BIN))
    shares, means = calibration_curve(right, chances.max(axis=1), n_bins=bins, strategy="quantile")

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="grey", lw=0.8, ls=":")
        axes.plot(means, shares, "o-", ms=4, color=COLOURS[6])
        axes.set(xlabel="probability of the likeliest class", ylabel="share that is right")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))

    told = f"Reliability: {len(means)} groups of as many cases each; on the dotted line probabilities come true."
    return make_chart("Calibration", draw, told)


def confusion(run: Finished) -> Chart | None:
    """Return the confusion matrix of the likeliest classes."""
    names = run.classes
    answers = [max(names, key=lambda name, row=row: float(row[f"p_{name}"])) for row in run.rows]  # type: ignore[misc]
    table = confusion_matrix([row["truth"] for row in run.rows], answers, labels=names)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)

    def draw(axes: Axes) -> None:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for place, count in np.ndenumerate(table) if len(names) <= MOST_IN_CELLS else ():
            colour = "white" if shares[place] > 0.6 else "black"
            axes.text(place[1], place[0], str(count), ha="center", va="center", color=colour, fontsize=9)
        axes.set(
            xticks=range(len(names)), yticks=range(len(names)), yticklabels=names, xlabel="answered", ylabel="truth"
        )
        axes.set_xticklabels(names, rotation=30 if len(names) > 3 else 0, ha="right" if len(names) > 3 else "center")

    return make_chart(
        "Confusion", draw, "Rows are the true classes, columns the likeliest; cells are numbers of cases."
    )


def risk(run: Finished) -> Chart | None:
    """Return the share of wrong answers against the share of cases that are answered."""
    curve: Mapping[str, Sequence[float]] = (run.metrics.get("promises") or {}).get("curve") or {}
    if not curve:
        return None
    promised = run.metrics["promises"].get("risk")

    def draw(axes: Axes) -> None:
        axes.plot(curve["coverage"], curve["risk"], color=COLOURS[6], drawstyle="steps-post")
        if promised is not None:
            axes.axhline(promised, color=COLOURS[5], lw=0.8, ls=":")
        axes.set(xlabel="share answered, most certain first", ylabel="share wrong among them", xlim=(0, 1.02))
        axes.set_ylim(bottom=-0.01)

    return make_chart("Risk and coverage", draw, "How many answers are wrong if only the most certain are given.")


def scatter(run: Finished) -> Chart | None:
    """Return predicted against true values."""
    truth, predicted = (np.array([float(row[key]) for row in run.rows]) for key in ("truth", "prediction"))

    def draw(axes: Axes) -> None:
        ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
        axes.plot(ends, ends, color="grey", lw=0.8, ls=":")
        axes.plot(truth, predicted, ".", alpha=0.6, color=COLOURS[6], rasterized=len(truth) > MOST_DRAWN)
        axes.set(xlabel="true value", ylabel="predicted value")

    return make_chart("Predicted and true", draw, "Each point is a case; on the dotted line both are equal.")


def _mark_mean(axes: Axes, entry: Mapping[str, Any], place: float) -> None:
    """Draw a mean with its interval across a strip."""
    if entry["mean"] is None:
        return
    low, high = entry.get("ci95") or (entry["mean"], entry["mean"])
    axes.plot([low, high], [place, place], color="black", lw=2.2, solid_capstyle="butt")
    axes.plot(entry["mean"], place, "|", color="black", ms=13, mew=1.8)


def make_chart(title: str, draw: Callable[[Axes], None], told: str, size: tuple[float, float] = SIZE) -> Chart:
    """Return a chart that `draw` draws; its letters are drawn too, so that it looks alike everywhere."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.spines["top"].set_visible(False)
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, dpi=150, metadata={"Date": None})
    return Chart(title, file.getvalue()[file.getvalue().index("<svg") :], told)
