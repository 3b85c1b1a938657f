"""What a check found, for people: lines in the terminal, and a page with a picture of every case."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from tomokit.checks.cases import Case, View
from tomokit.checks.dataset import Report
from tomokit.checks.findings import KINDS, Finding
from tomokit.files import write_text
from tomokit.geometry import spacing_from_affine
from tomokit.pictures import COLOURS, overlay_slice

SHOWN_CASES = 4
COLOUR_OF = {"error": "red", "warning": "yellow"}
CHART_INCHES = (4.2, 2.3)
BINS = 30
FRAME = 160  # pixels


def print_report(report: Report, console: Console | None = None) -> None:
    """Print each kind of finding once, with how often, the first cases, and the remedy; then the sum."""
    console = console or Console(highlight=False)
    for kind, findings in _by_kind(report.findings).items():
        severity = KINDS[kind].severity
        head = Text.assemble((severity, f"bold {COLOUR_OF[severity]}"), " ", (kind, "bold"))
        console.print(head.append(f" × {len(findings)}" if len(findings) > 1 else ""))
        for finding in findings[:SHOWN_CASES]:
            shown = f"{finding.case}: {finding.evidence}" if finding.case else finding.evidence
            _print_indented(console, shown)
        if len(findings) > SHOWN_CASES:
            names = list(dict.fromkeys(finding.case or "the set" for finding in findings[SHOWN_CASES:]))
            _print_indented(console, f"… and {len(findings) - SHOWN_CASES} more: {_shorten(names)}")
        _print_indented(console, f"→ {KINDS[kind].remedy}")
    console.print(Text(summarise(report), style="bold"))


def _print_indented(console: Console, text: str) -> None:
    """Print a text with a margin, wrapped on a terminal and in one line elsewhere."""
    if console.is_terminal:
        console.print(Padding(Text(text), (0, 0, 0, 4)))
    else:
        console.print(f"    {text}", soft_wrap=True, markup=False)


def summarise(report: Report) -> str:
    """Return one line: how many cases, errors and warnings."""
    errors = sum(finding.severity == "error" for finding in report.findings)
    warnings = len(report.findings) - errors
    flagged = len({finding.case for finding in report.findings} - {None})
    if not report.findings:
        return f"{report.name}: {_count(len(report.cases), 'case')}, nothing found"
    return (
        f"{report.name}: {_count(len(report.cases), 'case')}, {_count(errors, 'error')} and "
        f"{_count(warnings, 'warning')} in {_count(flagged, 'case')}"
    )


def write_page(report: Report, path: str | Path) -> None:
    """Write a self-contained HTML page: the findings, histograms, and a slice of every case, flagged ones first.

    Raises:
        TomokitError: when the file can't be written.
    """
    environment = Environment(loader=PackageLoader("tomokit"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    of_case = _by_case(report.findings)
    cases = sorted(report.cases, key=lambda case: _gravity(of_case.get(case.name, [])))
    legend = [(name, COLOURS[(int(value) - 1) % len(COLOURS)]) for value, name in report.labels.items() if value != "0"]
    drawn = any(case.regions is not None for case in report.cases)
    page = environment.get_template("check.html").render(
        name=report.name,
        summary=summarise(report),
        kinds=[(kind, KINDS[kind], findings) for kind, findings in _by_kind(report.findings).items()],
        charts=[Markup(chart) for chart in _charts(report)],
        legend=legend if drawn else [],
        cards=[_card(case, of_case.get(case.name, []), report.labels) for case in cases],
    )
    write_text(path, page)


def _by_kind(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """Return the findings of each kind, in order of appearance."""
    grouped: dict[str, list[Finding]] = {}
    for finding in findings:
        grouped.setdefault(finding.kind, []).append(finding)
    return grouped


def _by_case(findings: Sequence[Finding]) -> dict[str | None, list[Finding]]:
    """Return the findings of each case."""
    grouped: dict[str | None, list[Finding]] = {}
    for finding in findings:
        grouped.setdefault(finding.case, []).append(finding)
    return grouped


def _gravity(findings: Sequence[Finding]) -> tuple[int, int]:
    """Return the sorting key of a case: errors first, then warnings, then the clean ones."""
    errors = sum(finding.severity == "error" for finding in findings)
    return -errors, errors - len(findings)


def _shorten(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(names[:SHOWN_CASES]) + (" …" if len(names) > SHOWN_CASES else "")


def _count(number: int, noun: str) -> str:
    """Return a number with its noun in the singular or plural."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _card(case: Case, findings: Sequence[Finding], labels: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page shows of one case."""
    told = []
    if case.header is not None:
        told.append(" × ".join(map(str, case.header.shape[:3])))
        told.append(" × ".join(f"{size:.3g}" for size in spacing_from_affine(case.header.affine)) + " mm")
    label = case.entry.get("label")
    if isinstance(label, int):
        told.append(labels.get(str(label), f"class {label}"))
    elif isinstance(label, float):
        told.append(f"{label:g}")
    elif isinstance(label, list):
        told.append(", ".join(labels.get(str(i), str(i)) for i, flag in enumerate(label) if flag) or "none")
    width, height = _pixels(case.view) if case.view else (0, 0)
    severity = "error" if any(finding.severity == "error" for finding in findings) else "warning"
    return {
        "name": case.name,
        "told": " · ".join(told),
        "findings": findings,
        "severity": severity if findings else "",
        "picture": _picture(case.view) if case.view else None,
        "width": width,
        "height": height,
    }


def _picture(view: View) -> str:
    """Return a slice with its label as a PNG in base64."""
    label = np.zeros_like(view.image) if view.label is None else view.label
    picture = overlay_slice(view.image, np.zeros_like(label), label)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _pixels(view: View) -> tuple[int, int]:
    """Return width and height on the page, in the proportions that the slice has in mm."""
    columns, rows = view.image.shape
    width, height = columns * view.pixel_mm[0], rows * view.pixel_mm[1]
    scale = FRAME / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _charts(report: Report) -> Iterator[str]:
    """Yield a histogram each of spacing, size, intensity and class volume, as SVG."""
    headers = [case.header for case in report.cases if case.header is not None]
    spacings = np.array([spacing_from_affine(header.affine) for header in headers])
    sizes = np.array([header.shape[:3] for header in headers])
    if headers:
        yield _draw("Spacing along the file's axes", "mm", {axis: spacings[:, i] for i, axis in enumerate("xyz")})
        yield _draw("Size along the file's axes", "voxels", {axis: sizes[:, i] for i, axis in enumerate("xyz")})
    channels: dict[str, list[float]] = {}
    for case in report.cases:
        for number, channel in enumerate(case.channels):
            if channel is not None:
                channels.setdefault(f"image {number}", []).append(channel.high - channel.low)
    if channels:
        yield _draw("Intensity, 99th − 1st percentile", "", {k: np.array(v) for k, v in channels.items()})
    volumes: dict[str, list[float]] = {}
    for case in report.cases:
        for value, region in (case.regions or {}).items():
            volumes.setdefault(report.labels.get(str(value), str(value)), []).append(region.volume_ml)
    if volumes:
        most = dict(sorted(volumes.items(), key=lambda item: -float(np.median(item[1])))[: len(COLOURS)])
        yield _draw("Volume of each structure", "ml", {name: np.array(values) for name, values in most.items()})


def _draw(title: str, unit: str, series: Mapping[str, NDArray[Any]]) -> str:
    """Return a histogram of several series as SVG; decades on the axis where values span more than two."""
    values = np.concatenate([np.asarray(one, float) for one in series.values()])
    positive = values[values > 0]
    wide = positive.size == values.size and values.max() > 100 * values.min()
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-6 * max(abs(high), 1):
        low, high = low - 0.5, high + 0.5
    edges = np.geomspace(low, high, BINS + 1) if wide else np.linspace(low, high, BINS + 1)
    figure = Figure(figsize=CHART_INCHES, layout="constrained")
    axes = figure.subplots()
    for (name, one), colour in zip(series.items(), COLOURS, strict=False):
        axes.hist(one, edges.tolist(), histtype="stepfilled", alpha=0.55, color=colour, edgecolor=colour, label=name)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=title, xlabel=unit, ylabel="cases", xscale="log" if wide else "linear")
    axes.title.set_fontsize(10)
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True)
    return text.getvalue()[text.getvalue().index("<svg") :]
