"""The page of one run, or of several side by side: one file that opens without a network."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from numpy.typing import NDArray

from tomokit.errors import TomokitError
from tomokit.files import write_text
from tomokit.inference import first_image
from tomokit.pictures import pick_cases
from tomokit.report.charts import all_charts
from tomokit.report.checklist import checklist
from tomokit.report.content import Finished, number, read_finished, test_entries
from tomokit.report.slices import Viewer, make_viewer
from tomokit.report.tables import all_tables, facts, is_entry, show, title_of
from tomokit.volumes import read_volume

FILE = "report.html"
KINDS = ("worst", "median", "best")
Rows = Sequence[Mapping[str, Any]]


def write_report(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Return the page that was written: of one run to `<run>/report.html`, of several side by side to the first's.

    Args:
        runs: the folders of trained and evaluated runs of one task.
        out: another file.

    Raises:
        TomokitError: when no run is given, a folder holds none, or runs are of several tasks.
    """
    if not runs:
        raise TomokitError("no run to report, got an empty list; give the folder of a trained run")
    found = [read_finished(folder) for folder in runs]
    path = Path(out) if out is not None else found[0].folder / FILE
    tables = list(all_tables(found))
    parts = [
        {
            "name": run.name,
            "facts": facts(run),
            "charts": [chart._replace(svg=Markup(chart.svg)) for chart in all_charts(run)],
            "viewers": list(show_cases(run)),
            "missing": "" if test_entries(run) else _no_pictures(run),
            "explanations": _explanations(run),
            "checklist": checklist(run),
            "config": run.text,
        }
        for run in found
    ]
    write_text(path, render("report.html", title=" beside ".join(run.name for run in found), tables=tables, runs=parts))
    return path


def render(template: str, **content: Any) -> str:
    """Return a page of a template."""
    environment = Environment(loader=PackageLoader("tomokit"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**content)


def show_cases(run: Finished) -> Iterator[Viewer]:
    """Yield the slices of the worst, the median and the best test case, of those whose files are here."""
    entries = test_entries(run)
    picked = _pick_segmented(run) if run.task == "segmentation" else _pick_classified(run)
    for kind, case, told in picked:
        if case not in entries:
            continue
        image, affine = _read(first_image(entries[case]["image"]))
        if image.ndim != 3 or min(image.shape) < 2:
            continue  # there are no three planes
        prediction, truth = None, None
        if run.task == "segmentation":
            truth = _read_labels(Path(entries[case]["label"]), image.shape)
            prediction = _read_labels(run.folder / "predictions" / f"{case}.nii.gz", image.shape)
        yield make_viewer(f"{kind}: {case}", told, image, prediction, truth, affine, run.config.get("labels", {}))


def _pick_segmented(run: Finished) -> Iterator[tuple[str, str, str]]:
    """Yield kind, name and Dice of the cases that are shown."""
    rows: list[dict[str, Any]] = [{**row, "dice": number(row["dice"])} for row in run.rows]
    names = pick_cases(rows) if rows else []
    kinds = KINDS if len(names) == 3 else ("worst", "best")
    for kind, name in zip(kinds, names, strict=False):
        own = [f"{row['class']} {row['dice']:.3f}" for row in rows if row["case"] == name and row["dice"] is not None]
        yield kind, name, "Dice: " + ", ".join(own)


def _pick_classified(run: Finished) -> Iterator[tuple[str, str, str]]:
    """Yield kind, name and answer of the case most surely wrong, the least certain, and the most surely right."""
    if run.task != "classification" or not run.rows:
        return
    order = sorted(run.rows, key=lambda row: float(row[f"p_{row['truth']}"]))
    least = min(order, key=lambda row: max(float(row[f"p_{name}"]) for name in run.classes))
    shown: dict[str, str] = {}
    for kind, row in (("farthest from the truth", order[0]), ("least certain", least), ("nearest", order[-1])):
        if row["case"] not in shown:
            shown[row["case"]] = kind
            told = ", ".join(f"{name} {float(row[f'p_{name}']):.3f}" for name in run.classes)
            yield kind, row["case"], f"truth: {row['truth']}; probabilities: {told}"


def _explanations(run: Finished) -> dict[str, Any]:
    """Return what the page tells of explanations: names with texts, and the picture in base64 where there is one."""
    if not run.explanations:
        return {}
    picture = run.folder / "explanations" / "explanations.png"
    told = {"method": str(run.explanations.get("method", ""))}
    told |= {title_of(key): show(value) for key, value in run.explanations.items() if is_entry(value)}
    told |= {"randomised weights": str((run.explanations.get("randomisation") or {}).get("verdict", "not checked"))}
    return {"told": told, "picture": encode_file(picture) if picture.is_file() else ""}


def encode_file(path: Path) -> str:
    """Return a file in base64."""
    return base64.b64encode(path.read_bytes()).decode()


def _no_pictures(run: Finished) -> str:
    """Return why there are no pictures of cases."""
    return f"The data set {run.config.get('dataset_dir')} is not here, so that no case is shown."


def _read(path: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return a volume's array (X, Y, Z) and its affine; a last axis of one is left out."""
    volume = read_volume(path)
    array = np.asarray(volume.array)
    return (array[..., 0] if array.ndim == 4 and array.shape[-1] == 1 else array), np.asarray(volume.affine)


def _read_labels(path: Path, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """Return a label map on an image's grid; None where it is absent or of another shape."""
    if not path.is_file():
        return None
    labels, _ = _read(str(path))
    return labels.astype(np.int64) if labels.shape == shape else None
