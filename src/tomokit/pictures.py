"""Pictures of segmentations: single slices, a sheet of the worst, median and best case; of maps, of counts.


Every picture of a case follows the radiological convention: the patient's right is on the left of the image, the front
at the top of axial slices, the head at the top of the others.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import scipy.ndimage
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import ArrayLike, NDArray

from tomokit.errors import TomokitError
from tomokit.files import replacing
from tomokit.geometry import check_affine, spacing_from_affine
from tomokit.labels import foreground
from tomokit.metrics import Row, mean_by_case

# Okabe and Ito, Color Universal Design (2008), without black, brightest first so that they show on grey
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
OPACITY = 0.45
EDGE_PIXELS = 400  # grid for outlines: as fine as a view is printed
VIEWS = (("axial", "RLAP"), ("coronal", "RLSI"), ("sagittal", "APSI"))  # name; left, right, top, bottom
ROW_INCHES, WIDTH_INCHES, DPI = 2.9, 8.0, 130
RADIOLOGICAL = "Radiological convention: the patient's right (R) is on the left of axial and coronal views.\n"
CONVENTION = RADIOLOGICAL + "Filled: prediction. Lines: truth."
HEAT, HEAT_OPACITY = "viridis", 0.7  # for all kinds of colour vision, and in grey; opacity of a map's maximum
COUNT_COLOURS = "cividis"  # dark to bright without red and green
CELL_INCHES, TABLE_INCHES, COUNT_DPI = (0.85, 0.55), 9.0, 100
MOST_WRITTEN = 20  # rows or columns; the numbers of more would not be legible


class Volume(NamedTuple):
    """A case turned to RAS: image, truth and prediction (X, Y, Z), and the spacing in mm."""

    image: NDArray[Any]
    truth: NDArray[Any]
    prediction: NDArray[Any]
    spacing: tuple[float, float, float]


def pick_cases(rows: Sequence[Row]) -> list[str]:
    """Return the names of the worst, the median and the best case by mean Dice; fewer when there are fewer.

    Rows carry "case", "class" and "dice"; a case without any scored structure is left out.
    """
    means = mean_by_case(rows)
    names = sorted(means, key=lambda case: (means[case], case))
    positions = [0, (len(names) - 1) // 2, len(names) - 1] if len(names) > 2 else range(len(names))
    return [names[i] for i in positions]


def overlay_slice(
    image: ArrayLike,
    prediction: ArrayLike,
    truth: ArrayLike | None = None,
    window: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """Return an RGB picture (H, W, 3) of one axial slice, the prediction filled and the truth outlined.

    All are (X, Y), x to the patient's right and y to the front; H is along y and W along x. The grey image
    runs over `window`, lowest and highest value, or from its 1st to its 99th percentile; structure k has the same
    colour in every picture (seven colours, then again). Coronal (X, Z) and sagittal slices (Y, Z) come out with the
    head at the top, sagittal ones with the front on the left.

    Raises:
        TomokitError: when the arrays are not 2D or their shapes differ.
    Source: Okabe and Ito, Color Universal Design (2008).
    """
    arrays = [np.asarray(array) for array in (image, prediction, truth) if array is not None]
    shapes = [array.shape for array in arrays]
    if len(shapes[0]) != 2 or len(set(shapes)) > 1:
        raise TomokitError(f"a slice needs 2D arrays of one shape (X, Y), got {shapes}")
    planes = [array[::-1, ::-1].T for array in arrays]
    low, high = window or grey_range(planes[0])
    grey = np.clip((planes[0].astype(float) - low) / (high - low), 0, 1)
    picture = np.repeat(grey[..., None], 3, axis=2)
    _paint(picture, planes[1], OPACITY)
    if truth is not None:
        _paint(picture, _outlines(planes[2]), 1.0)
    return np.round(picture * 255).astype(np.uint8)


def draw_cases(
    cases: Sequence[Mapping[str, Any]], labels: Mapping[str, str] | Mapping[int, str], path: str | Path
) -> None:
    """Return nothing; write a PNG with a row per case and its axial, coronal and sagittal view.

    A case has "case" (name), "dice" (0–1 or None), "image", "truth" and "prediction" (X, Y, Z) in any
    orientation, and their "affine" (voxel to RAS, mm). Views pass through the middle of the largest connected
    structure of the truth, or of the prediction where the truth is empty. Pixels have the right proportions
    in mm.

    Raises:
        TomokitError: when there is no case, arrays of a case are not 3D of one shape, or the file can't be
        written.
    """
    if not cases:
        raise TomokitError(f"no cases to draw in {path}, got an empty list")
    volumes = [turn_to_ras(case) for case in cases]
    figure = Figure(figsize=(WIDTH_INCHES, ROW_INCHES * len(cases) + 0.9), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.03)  # type: ignore[union-attr,call-arg]
    rows = figure.subplots(len(cases), 3, squeeze=False)
    for axes, case, volume in zip(rows, cases, volumes, strict=True):
        _draw_row(list(axes), volume)
        dice = "not scored" if case["dice"] is None else f"Dice {case['dice']:.3f}"
        axes[0].set_title(f"{case['case']}: {dice}", loc="left", fontsize=9, fontweight="bold")
    figure.supxlabel(CONVENTION, fontsize=8)
    shown = {int(value) for volume in volumes for array in volume[1:3] for value in np.unique(array)}
    names = {value: name for value, name in foreground(labels).items() if value in shown}
    handles = [Patch(color=colour_of(value), label=name) for value, name in names.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def draw_counts(
    counts: ArrayLike, shares: ArrayLike, rows: Sequence[str], columns: Sequence[str], axes: tuple[str, str]
) -> NDArray[np.uint8]:
    """Return an RGB picture (H, W, 3) of a table of counts, each with its share, brighter where it is greater.

    Args:
        counts: (R, C), whole numbers.
        shares: (R, C), 0–1; NaN where there is none.
        rows: R names.
        columns: C names.
        axes: what the columns and the rows are.

    Raises:
        TomokitError: when the shapes and the names differ in number.
    Source: Nuñez et al., Optimizing colormaps with consideration for color vision deficiency, PLOS ONE 13 (2018).
    """
    numbers, parts = np.asarray(counts), np.asarray(shares)
    if not numbers.shape == parts.shape == (len(rows), len(columns)):
        told = f"{numbers.shape}, {parts.shape}, {len(rows)} rows and {len(columns)} columns"
        raise TomokitError(f"a table's counts, shares and names must be of one shape, got {told}")
    width, height = (min(cell * n, TABLE_INCHES) for cell, n in zip(CELL_INCHES, numbers.shape[::-1], strict=True))
    figure = Figure(figsize=(width + 1.6, height + 1.3), dpi=COUNT_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    ax = figure.subplots()
    ax.imshow(parts, cmap=COUNT_COLOURS, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for (row, column), count in np.ndenumerate(numbers) if max(numbers.shape) <= MOST_WRITTEN else ():
        share = parts[row, column]
        text = f"{count}" if np.isnan(share) else f"{count}\n{share:.0%}"
        ax.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if share < 0.5 else "black")
    ax.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=8)
    ax.set_yticks(range(len(rows)), rows, fontsize=8)
    ax.set_xlabel(axes[0])
    ax.set_ylabel(axes[1])
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def draw_maps(cases: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Return nothing; write a PNG with a row per case: its axial, coronal and sagittal view with a map over it.

    A case has "case" (its heading), "image", "prediction" (the map, 0–1) and "truth" (a mask, outlined, or 0
    everywhere), (X, Y, Z) in any orientation, and their "affine" (voxel to RAS, mm). Views pass through the middle of
    the map's largest maximum. What is 0 in the map is clear.

    Raises:
        TomokitError: when there is no case, arrays of a case are not 3D of one shape, or the file can't be written.
    """
    if not cases:
        raise TomokitError(f"no maps to draw in {path}, got an empty list")
    figure = Figure(figsize=(WIDTH_INCHES, ROW_INCHES * len(cases) + 0.9), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(cases), 3, squeeze=False)
    for axes, case in zip(rows, cases, strict=True):
        _draw_map(list(axes), turn_to_ras(case))
        axes[0].set_title(case["case"], loc="left", fontsize=9, fontweight="bold")
    bar = figure.colorbar(ScalarMappable(cmap=HEAT), ax=rows, shrink=min(1, 1.5 / len(cases)), aspect=30)
    bar.set_label("part in the answer", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.supxlabel(RADIOLOGICAL + "Colour: the map. Lines: the case's mask.", fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def turn_to_ras(case: Mapping[str, Any]) -> Volume:
    """Return a case with its index axes turned to the nearest of x right, y front, z head."""
    affine = check_affine(case["affine"])
    arrays = [np.asarray(case[key]) for key in ("image", "truth", "prediction")]
    shapes = [array.shape for array in arrays]
    if len(shapes[0]) != 3 or len(set(shapes)) > 1:
        raise TomokitError(f"case {case['case']} needs 3D arrays of one shape (X, Y, Z), got {shapes}")
    turn = nibabel.orientations.io_orientation(affine)
    image, truth, prediction = (nibabel.orientations.apply_orientation(array, turn) for array in arrays)
    spacing = np.array(spacing_from_affine(affine))[np.argsort(turn[:, 0])]
    return Volume(image, truth, prediction, (float(spacing[0]), float(spacing[1]), float(spacing[2])))


def _draw_row(axes: Sequence[Axes], volume: Volume) -> None:
    """Draw the three views of one case."""
    low, high = grey_range(volume.image)
    middle = _middle(volume.truth if volume.truth.any() else volume.prediction)
    for ax, (name, letters), across in zip(axes, VIEWS, (2, 1, 0), strict=True):
        image, truth, prediction = (np.take(array, middle[across], axis=across)[::-1, ::-1].T for array in volume[:3])
        width_mm, height_mm = (size for axis, size in enumerate(volume.spacing) if axis != across)
        ax.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=height_mm / width_mm)
        ax.imshow(_fill(prediction), aspect=height_mm / width_mm, interpolation="nearest")
        for value in np.unique(truth[truth > 0]):
            _draw_edge(ax, truth == value, colour_of(int(value)))
        ax.set_xlabel(name, fontsize=8)
        ax.set(xticks=[], yticks=[])
        _mark_directions(ax, letters)


def _draw_map(axes: Sequence[Axes], volume: Volume) -> None:
    """Draw the three views of one case with its map."""
    low, high = grey_range(volume.image)
    middle = _middle(volume.prediction == volume.prediction.max())
    for ax, (name, letters), across in zip(axes, VIEWS, (2, 1, 0), strict=True):
        image, mask, heat = (np.take(array, middle[across], axis=across)[::-1, ::-1].T for array in volume[:3])
        width_mm, height_mm = (size for axis, size in enumerate(volume.spacing) if axis != across)
        ax.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=height_mm / width_mm)
        colours = colormaps[HEAT](heat)
        colours[..., 3] = HEAT_OPACITY * heat
        ax.imshow(colours, aspect=height_mm / width_mm)
        if (mask > 0).any():
            _draw_edge(ax, mask > 0, COLOURS[5])  # on grey and on all of the map's colours
        ax.set_xlabel(name, fontsize=8)
        ax.set(xticks=[], yticks=[])
        _mark_directions(ax, letters)


def _draw_edge(ax: Axes, mask: NDArray[Any], colour: str) -> None:
    """Draw the edge of a mask (H, W) along its pixels' sides, not slanted between their centres."""
    height, width = mask.shape
    finer = max(1, EDGE_PIXELS // max(height, width))
    fine = np.kron(np.pad(mask, 1).astype(np.uint8), np.ones((finer, finer), dtype=np.uint8))
    y = (np.arange(fine.shape[0]) + 0.5) / finer - 1.5
    x = (np.arange(fine.shape[1]) + 0.5) / finer - 1.5
    ax.contour(x, y, fine, levels=[0.5], colors=[colour], linewidths=1.1)
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _mark_directions(ax: Axes, letters: str) -> None:
    """Write the patient's directions at the left, right, top and bottom edge of a view."""
    halo = [Stroke(linewidth=2, foreground="black"), Normal()]
    places = ((0.04, 0.5), (0.96, 0.5), (0.5, 0.96), (0.5, 0.04))
    for letter, (x, y) in zip(letters, places, strict=True):
        text = ax.text(x, y, letter, transform=ax.transAxes, ha="center", va="center", fontsize=8)
        text.set(color="white", path_effects=halo)


def _middle(label_map: NDArray[Any]) -> tuple[int, int, int]:
    """Return the voxel of the largest connected foreground nearest to its centre, or the grid's centre."""
    parts, n_parts = scipy.ndimage.label(label_map > 0)
    if n_parts == 0:
        x, y, z = (size // 2 for size in label_map.shape)
        return x, y, z
    largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
    voxels = np.argwhere(parts == largest)
    x, y, z = voxels[((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return int(x), int(y), int(z)


def grey_range(image: NDArray[Any]) -> tuple[float, float]:
    """Return the 1st and 99th percentile of an image, kept apart where it is constant."""
    step = max(1, image.size // 1_000_000)
    low, high = np.percentile(image.ravel()[::step].astype(float), [1, 99])
    return float(low), float(high if high > low else low + 1)


def _fill(label_map: NDArray[Any]) -> NDArray[np.float64]:
    """Return an RGBA picture of a label map (H, W), clear where it is background."""
    picture = np.zeros((*label_map.shape, 4))
    for value in np.unique(label_map[label_map > 0]):
        picture[label_map == value] = (*to_rgb(colour_of(int(value))), OPACITY)
    return picture


def _paint(picture: NDArray[np.float64], label_map: NDArray[Any], opacity: float) -> None:
    """Blend a label map's colours into an RGB picture (H, W, 3) in place."""
    for value in np.unique(label_map[label_map > 0]):
        here = label_map == value
        picture[here] = (1 - opacity) * picture[here] + opacity * np.array(to_rgb(colour_of(int(value))))


def _outlines(label_map: NDArray[Any]) -> NDArray[Any]:
    """Return the label map with only each structure's outermost pixels kept."""
    kept = np.zeros_like(label_map)
    for value in np.unique(label_map[label_map > 0]):
        here = label_map == value
        kept[here & ~scipy.ndimage.binary_erosion(here)] = value
    return kept


def colour_of(value: int) -> str:
    """Return the colour of a structure."""
    return COLOURS[(value - 1) % len(COLOURS)]
