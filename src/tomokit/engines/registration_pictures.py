"""The picture of an evaluated registration: both scans, the moved one, what is left, and how space is bent."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from tomokit.panels import GREY, Panel, PanelRow, draw_rows, middle_slices

TITLES = ("fixed", "moving, centred", "moved", "moved − fixed", "displacement")
CONVENTION = (
    "Middle axial slices of the fixed scan; the patient's right is on the left. Red: brighter in the moved scan; blue: "
    "darker. Displacement: a regular grid, as the moving scan is looked at."
)
LINES = 16  # of the drawn grid along the longer edge
SIGNED: dict[str, Any] = {"cmap": "bwr", "vmin": -0.6, "vmax": 0.6}


def draw_registrations(pairs: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Return nothing; write a PNG with a row per pair: fixed, moving, moved, their difference, the displacement.

    A pair has "title"; "fixed", "moving" and "moved", (X, Y, Z) from 0 to 1 on the fixed scan's grid; "displacement"
    (3, X, Y, Z) in mm (RAS); and "affine" (voxel to RAS, mm).

    Raises:
        TomokitError: when there is no pair, or the file can't be written.
    """
    draw_rows([_pair_row(pair) for pair in pairs], path, CONVENTION)


def _pair_row(pair: Mapping[str, Any]) -> PanelRow:
    """Return the slices of one pair."""
    volumes = [*(pair[key] for key in ("fixed", "moving", "moved")), *pair["displacement"][:2]]
    (fixed, moving, moved, right, front), pixel = middle_slices(volumes, pair["affine"])
    lines = partial(_draw_grid, right=right / pixel[0], front=front / pixel[1])
    planes = fixed, moving, moved, moved - fixed, fixed
    looks = GREY, GREY, GREY, SIGNED, {**GREY, "alpha": 0.4}
    panels = [Panel(*own) for own in zip(TITLES, planes, looks, (None, None, None, None, lines), strict=True)]
    return PanelRow(pair["title"], panels, pixel)


def _draw_grid(ax: Axes, right: NDArray[Any], front: NDArray[Any]) -> None:
    """Draw a regular grid's lines where the displacement takes them, to the right and the front in pixels (H, W)."""
    rows, columns = np.mgrid[: right.shape[0], : right.shape[1]].astype(float)
    rows, columns = rows - front, columns - right  # on the picture the front is up, and the right on the left
    step = max(1, max(right.shape) // LINES)
    for x, y in ((columns[::step].T, rows[::step].T), (columns[:, ::step], rows[:, ::step])):
        ax.plot(x, y, color="tab:green", linewidth=0.6)
