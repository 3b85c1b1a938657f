"""Pictures with a row per case and a column per image: what was given, what became of it, what differs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import ArrayLike, NDArray

from tomokit.errors import TomokitError
from tomokit.files import replacing
from tomokit.geometry import spacing_from_affine

PANEL_INCHES, ROW_INCHES, DPI = 2.4, 2.7, 130
GREY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1}


class Panel(NamedTuple):
    """An image of a row.

    Attributes:
        title: that stands below it.
        plane: (H, W), as it is seen: of an image what `middle_slice` gives.
        look: how values become colours: arguments of Matplotlib's `imshow`.
        mark: draws over it.
    """

    title: str
    plane: NDArray[Any]
    look: Mapping[str, Any] = GREY
    mark: Callable[[Axes], None] | None = None


class PanelRow(NamedTuple):
    """A row of a picture.

    Attributes:
        title: that stands above it.
        panels: its images, from left to right.
        pixel: the width and the height of a pixel, in one unit.
    """

    title: str
    panels: Sequence[Panel]
    pixel: tuple[float, float] = (1.0, 1.0)


def middle_slice(image: NDArray[Any]) -> NDArray[Any]:
    """Return what is seen of an image (X, Y[, Z]) turned to RAS: (rows, columns), the front up, the right on the left.

    Of a volume it is the axial slice in the middle.
    """
    plane = image if image.ndim == 2 else image[..., image.shape[2] // 2]
    return plane[::-1, ::-1].T


def middle_slices(volumes: Sequence[NDArray[Any]], affine: ArrayLike) -> tuple[list[NDArray[Any]], tuple[float, float]]:
    """Return what is seen of volumes (X, Y, Z) of one grid, and the width and height of a pixel in mm.

    Args:
        volumes: in any orientation.
        affine: (4, 4) from their voxel index to world (RAS, mm).
    """
    turn = io_orientation(affine)
    width, height, _ = np.array(spacing_from_affine(affine))[np.argsort(turn[:, 0])]
    return [middle_slice(apply_orientation(volume, turn)) for volume in volumes], (float(width), float(height))


def signed_look(difference: NDArray[Any]) -> dict[str, Any]:
    """Return how a difference is shown: red above 0, blue below, as far as most of it goes."""
    largest = max(float(np.percentile(np.abs(difference), 99)), 1e-6)
    return {"cmap": "bwr", "vmin": -largest, "vmax": largest}


def draw_rows(rows: Sequence[PanelRow], path: str | Path, convention: str) -> None:
    """Write a PNG of rows of images.

    Args:
        rows: at least one.
        path: of the file.
        convention: which sides are where, and what the colours mean; it stands at the foot.

    Raises:
        TomokitError: when there is no row, or the file can't be written.
    """
    if not rows:
        raise TomokitError(f"nothing to draw in {path}, got an empty list")
    size = PANEL_INCHES * max(len(row.panels) for row in rows), ROW_INCHES * len(rows) + 0.5
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for part, row in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        part.suptitle(row.title, x=0.01, ha="left", fontsize=9, fontweight="bold")
        width, height = row.pixel
        for ax, panel in zip(part.subplots(1, len(row.panels), squeeze=False)[0], row.panels, strict=True):
            ax.imshow(panel.plane, aspect=height / width, **panel.look)
            if panel.mark is not None:
                panel.mark(ax)
            ax.set_xlabel(panel.title, fontsize=8)
            ax.set(xticks=[], yticks=[])
    figure.supxlabel(convention, fontsize=8, wrap=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
