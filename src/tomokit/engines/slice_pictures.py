"""A picture of what a network says along the slices of some volumes, each beside its most suspicious slice."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.data import MetaTensor
from torch import Tensor

from tomokit.engines.hardware import plain
from tomokit.errors import TomokitError
from tomokit.files import replacing
from tomokit.pictures import COLOURS, DPI, OPACITY, VIEWS, WIDTH_INCHES

ENDS = ("left to right", "back to front", "feet to head")  # of slices along x, y and z
ROW_INCHES = 2.0
SHOWN = 4
Rows = Sequence[Mapping[str, Any]]


def finding_of(row: Mapping[str, Any], names: Sequence[str]) -> float:
    """Return the probability of a slice's row that it shows any class but the first, which is "nothing found"."""
    return 1 - float(row[f"p_{names[0]}"])


def shows_finding(row: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Return whether a slice is known to show another class than the first."""
    return row.get("truth", names[0]) != names[0]


def pick_volumes(rows: Rows, names: Sequence[str]) -> list[str]:
    """Return the names of at most four volumes worth a look, by the probability of their most suspicious slice.

    Where slices are known to show a finding: of the volumes with one the least, the middle and the most suspicious,
    and of the others the most suspicious. Elsewhere the four most suspicious.

    Args:
        rows: of slices, each with "case", "p_<class>", and "truth" where it is known.
        names: the classes, the first of them "nothing found".
    """
    top: dict[str, float] = {}
    for row in rows:
        top[row["case"]] = max(top.get(row["case"], 0.0), finding_of(row, names))
    ordered = sorted(top, key=lambda case: (top[case], case))
    found = {row["case"] for row in rows if shows_finding(row, names)}
    if not found:
        return ordered[: -SHOWN - 1 : -1]
    with_it = [case for case in ordered if case in found]
    without = [case for case in ordered if case not in found]
    places = sorted({0, (len(with_it) - 1) // 2, len(with_it) - 1})
    return [*(with_it[place] for place in places), *without[-1:]]


def draw_slices(volumes: Sequence[tuple[Rows, Tensor]], names: Sequence[str], path: str | Path, axis: int = -1) -> None:
    """Write a PNG, a row for each volume: the probability of a finding along its slices, and the most suspicious one.

    Slices that are known to show a finding are shaded. The slice is shown in the radiological convention.

    Args:
        volumes: the rows of each volume's slices in their order, and its image (C, X, Y, Z), turned to RAS.
        names: the classes, the first of them "nothing found".
        path: of the picture.
        axis: of (X, Y, Z), along which the slices lie.

    Raises:
        TomokitError: when there is no volume, or the file can't be written.
    """
    if not volumes:
        raise TomokitError(f"no volumes to draw in {path}, got an empty list")
    figure = Figure(figsize=(WIDTH_INCHES, ROW_INCHES * len(volumes) + 0.5), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(volumes), 2, squeeze=False, width_ratios=(2.2, 1))
    for (left, right), (rows, image) in zip(grid, volumes, strict=True):
        top = int(np.argmax([finding_of(row, names) for row in rows]))
        _draw_course(left, rows, names, top)
        _draw_slice(right, image, top, axis % 3)
    grid[-1][0].set_xlabel(f"slice, from {ENDS[axis % 3]}; shaded: known to show it", fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_course(ax: Axes, rows: Rows, names: Sequence[str], top: int) -> None:
    """Draw the probabilities of one volume's slices."""
    for row in rows:
        if shows_finding(row, names):
            ax.axvspan(row["slice"] - 0.5, row["slice"] + 0.5, color=COLOURS[1], alpha=OPACITY, linewidth=0)
    numbers = [row["slice"] for row in rows]
    ax.plot(numbers, [finding_of(row, names) for row in rows], color=COLOURS[5], marker=".", linewidth=1.2)
    ax.axvline(numbers[top], color="grey", linestyle=":", linewidth=1)
    what = f"p {names[1]}" if len(names) == 2 else f"p not {names[0]}"
    ax.set(xlim=(numbers[0] - 0.5, numbers[-1] + 0.5), ylim=(-0.03, 1.03))
    ax.set_ylabel(what, fontsize=8)
    ax.set_title(rows[0]["case"], loc="left", fontsize=9, fontweight="bold")
    ax.tick_params(labelsize=7)


def _draw_slice(ax: Axes, image: Tensor, number: int, axis: int) -> None:
    """Draw one slice of an image (C, X, Y, Z), its pixels in the right proportions in mm."""
    spacing = [float(edge) for edge in image.pixdim] if isinstance(image, MetaTensor) else [1.0, 1.0, 1.0]
    width_mm, height_mm = (edge for place, edge in enumerate(spacing) if place != axis)
    volume = plain(torch.as_tensor(image)).cpu().numpy()[0]
    low, high = np.percentile(volume, [1, 99])
    picture = np.take(volume, number, axis=axis)[::-1, ::-1].T
    ax.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=height_mm / width_mm)
    left, right, upper, lower = list(VIEWS[2 - axis][1])
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"slice {number}", fontsize=8)
    ax.set_xlabel(f"left {left}, right {right}, top {upper}, bottom {lower}", fontsize=6)
