"""Slices through a case in three planes, as pictures that a page holds itself."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from PIL import Image

from tomokit.labels import foreground
from tomokit.pictures import VIEWS, Volume, colour_of, grey_range, overlay_slice, turn_to_ras

MOST_SLICES = 24  # of a plane
MARGIN = 0.15  # of the structures' extent, before and behind
EDGE = 320  # pixels of a picture's longer side, at most
QUALITY = 82


class Plane(NamedTuple):
    """Slices across one axis.

    Attributes:
        name: axial, coronal or sagittal.
        letters: the patient's directions on the left, right, top and bottom.
        pictures: in base64, from the feet, the back or the left on.
        places_mm: of the slices along the axis, from its first voxel's centre.
        start: the slice that is shown first.
        width: on the page, in pixels.
        height: on the page, in pixels.
    """

    name: str
    letters: str
    pictures: list[str]
    places_mm: list[float]
    start: int
    width: int
    height: int


class Viewer(NamedTuple):
    """A case's planes, with a title, a line about it, and the colours of its structures."""

    title: str
    told: str
    planes: list[Plane]
    legend: list[tuple[str, str]]


def make_viewer(
    title: str,
    told: str,
    image: NDArray[Any],
    prediction: NDArray[Any] | None,
    truth: NDArray[Any] | None,
    affine: NDArray[Any],
    labels: Mapping[str, str],
) -> Viewer:
    """Return the pictures of a case; image and label maps (X, Y, Z) lie on the grid of `affine` (RAS mm).

    Without a prediction the slices are plain and spread over the whole image, else over what is predicted and true.
    """
    empty = np.zeros(image.shape, np.uint8)
    arrays = {"image": image, "prediction": empty if prediction is None else prediction}
    volume = turn_to_ras({"case": title, "affine": affine, "truth": empty if truth is None else truth, **arrays})
    window = grey_range(volume.image)
    planes = [_make_plane(volume, across, *view, window) for view, across in zip(VIEWS, (2, 1, 0), strict=True)]
    shown = {int(value) for array in (volume.prediction, volume.truth) for value in np.unique(array)}
    names = foreground(labels).items() if shown - {0} else ()
    legend = [(name, colour_of(value)) for value, name in names if value in shown]
    return Viewer(title, told, planes, legend)


def _make_plane(volume: Volume, across: int, name: str, letters: str, window: tuple[float, float]) -> Plane:
    """Return the slices of a volume across one axis."""
    found = (volume.prediction > 0) | (volume.truth > 0)
    places = choose_slices(found, across)
    pictures = []
    width_mm, height_mm = (volume.spacing[axis] * found.shape[axis] for axis in range(3) if axis != across)
    scale = EDGE / max(width_mm, height_mm)
    width, height = max(1, round(width_mm * scale)), max(1, round(height_mm * scale))
    for place in places:
        finer = max(1, EDGE // max(found.shape))  # outlines are a pixel wide, so pixels must be small
        grey = np.take(volume.image, place, axis=across).astype(np.float32)
        grey = scipy.ndimage.zoom(grey, finer, order=1, mode="nearest", grid_mode=True)
        filled, lines = (_enlarge(np.take(array, place, axis=across), finer) for array in volume[1:3][::-1])
        pictures.append(encode(overlay_slice(grey, filled, lines, window), (width, height)))
    shown = volume.truth > 0 if volume.truth.any() else found
    counts = [int(np.take(shown, place, axis=across).sum()) for place in places]
    most = int(np.argmax(counts)) if found.any() else len(places) // 2
    millimetres = [round(place * volume.spacing[across], 1) for place in places]
    return Plane(name, letters, pictures, millimetres, most, width, height)


def _enlarge(labels: NDArray[Any], times: int) -> NDArray[Any]:
    """Return a slice of labels with each pixel that many times along both axes."""
    return labels.repeat(times, axis=0).repeat(times, axis=1)


def choose_slices(found: NDArray[np.bool_], across: int) -> Sequence[int]:
    """Return the places of at most 24 slices (X, Y, Z) across an axis, even over what is found, or over all."""
    size = found.shape[across]
    here = np.flatnonzero(found.any(axis=tuple(axis for axis in range(3) if axis != across)))
    first, last = (int(here[0]), int(here[-1])) if len(here) else (0, size - 1)
    reach = round(MARGIN * (last - first + 1)) if len(here) else 0
    first, last = max(0, first - reach), min(size - 1, last + reach)
    count = min(MOST_SLICES, last - first + 1)
    return [int(place) for place in np.linspace(first, last, count).round()]


def encode(picture: NDArray[np.uint8], size: tuple[int, int]) -> str:
    """Return an RGB picture (H, W, 3) as a JPEG of that width and height, in base64."""
    file = io.BytesIO()
    Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR).save(file, "JPEG", quality=QUALITY)
    return base64.b64encode(file.getvalue()).decode()
