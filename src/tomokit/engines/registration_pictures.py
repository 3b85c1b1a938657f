"""The picture of an evaluated registration: both scans, the moved one, what is left, and how space is bent."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray

from tomokit.errors import TomokitError
from tomokit.files import replacing
from tomokit.geometry import spacing_from_affine

TITLES = ("fixed", "moving, centred", "moved", "moved − fixed", "displacement")
CONVENTION = (
    "Middle axial slices of the fixed scan; the patient's right is on the left. Red: brighter in the moved scan; blue: "
    "darker. Displacement: a regular grid, as the moving scan is looked at."
)
ROW_INCHES, WIDTH_INCHES, DPI = 2.5, 11.0, 130
LINES = 16  # of the drawn grid along the longer edge
GREY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1}
SIGNED: dict[str, Any] = {"cmap": "bwr", "vmin": -0.6, "vmax": 0.6}


def draw_registrations(pairs: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Return nothing; write a PNG with a row per pair: fixed, moving, moved, their difference, the displacement.

    A pair has "title"; "fixed", "moving" and "moved", (X, Y, Z) from 0 to 1 on the fixed scan's grid; "displacement"
    (3, X, Y, Z) in mm (RAS); and "affine" (voxel to RAS, mm).

    Raises:
        TomokitError: when there is no pair, or the file can't be written.
    """
    if not pairs:
        raise TomokitError(f"no pairs to draw in {path}, got an empty list")
    figure = Figure(figsize=(WIDTH_INCHES, ROW_INCHES * len(pairs) + 0.5), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subfigures(len(pairs), 1, squeeze=False)[:, 0]
    for row, pair in zip(rows, pairs, strict=True):
        row.suptitle(pair["title"], x=0.01, ha="left", fontsize=9, fontweight="bold")
        _draw_pair(row.subplots(1, len(TITLES)), pair)
    figure.supxlabel(CONVENTION, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_pair(axes: Sequence[Axes], pair: Mapping[str, Any]) -> None:
    """Draw the slices of one pair."""
    turn = io_orientation(pair["affine"])
    width, height, _ = np.array(spacing_from_affine(pair["affine"]))[np.argsort(turn[:, 0])]
    fixed, moving, moved = (_middle(pair[key], turn) for key in ("fixed", "moving", "moved"))
    shown = (fixed, GREY), (moving, GREY), (moved, GREY), (moved - fixed, SIGNED)
    for ax, (plane, look) in zip(axes, shown, strict=False):
        ax.imshow(plane, aspect=float(height / width), **look)
    axes[-1].imshow(fixed, aspect=float(height / width), alpha=0.4, **GREY)
    _draw_grid(
        axes[-1], _middle(pair["displacement"][0], turn) / width, _middle(pair["displacement"][1], turn) / height
    )
    for ax, title in zip(axes, TITLES, strict=True):
        ax.set_xlabel(title, fontsize=8)
        ax.set(xticks=[], yticks=[])


def _middle(volume: NDArray[Any], turn: NDArray[Any]) -> NDArray[Any]:
    """Return the middle axial slice (H, W) of a volume, the front up and the patient's right on the left."""
    turned = apply_orientation(volume, turn)
    return turned[:, :, turned.shape[2] // 2][::-1, ::-1].T


def _draw_grid(ax: Axes, right: NDArray[Any], front: NDArray[Any]) -> None:
    """Draw a regular grid's lines where the displacement takes them, to the right and the front in pixels (H, W)."""
    rows, columns = np.mgrid[: right.shape[0], : right.shape[1]].astype(float)
    rows, columns = rows - front, columns - right  # on the picture the front is up, and the right on the left
    step = max(1, max(right.shape) // LINES)
    for x, y in ((columns[::step].T, rows[::step].T), (columns[:, ::step], rows[:, ::step])):
        ax.plot(x, y, color="tab:green", linewidth=0.6)
