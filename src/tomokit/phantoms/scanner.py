"""The scanner: where the voxels lie, what the tissues' intensities are, shading and noise."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from tomokit.phantoms.shapes import Array, Contrast, Generator, rotation

MODALITIES = ("CT", "MRI")
NOMINAL_SPACING_MM = 2.5
# Axis codes of the stored grids; RAS is listed twice, as the most frequent one.
ORIENTATIONS = ("RAS", "RAS", "LPS", "LAS", "RPS", "LPI", "PSR", "ASL")
BODY_NOISE_HU = (10.0, 16.0)  # standard deviation, its range between cases

TISSUES = ("air", "fat", "muscle", "bone", "marrow", "lung", "liver", "spleen", "fluid", "vessel")
CT_HU = (-1000.0, -100.0, 82.0, 420.0, 230.0, -820.0, 86.0, 94.0, 28.0, 125.0)
CT_SPREAD_HU = (0.0, 8.0, 7.0, 60.0, 30.0, 20.0, 7.0, 7.0, 6.0, 12.0)  # between patients
# T1-weighted, fat-saturated T2-weighted, and late contrast-enhanced fat-saturated T1-weighted.
MR_SIGNAL = {
    "T1": (0.0, 1.0, 0.62, 0.1, 0.5, 0.06, 0.64, 0.54, 0.33, 0.5),
    "T2": (0.0, 0.2, 0.4, 0.06, 0.25, 0.05, 0.42, 0.52, 0.9, 0.3),
    "T1c": (0.0, 0.3, 0.68, 0.1, 0.3, 0.05, 0.7, 0.76, 0.3, 0.98),
}
# Brain: a lesion's core is as dark as fluid in T1, and in FLAIR it can't be told from the oedema around it, which T1
# does not show.
BRAIN_SIGNAL: dict[str, Contrast] = {
    "T1": {"white": 1.0, "grey": 0.72, "fluid": 0.4, "core": 0.4, "oedema": 1.0},
    "FLAIR": {"white": 0.5, "grey": 0.62, "fluid": 0.12, "core": 0.95, "oedema": 0.95},
}

Move = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class Grid(NamedTuple):
    """Where the voxels are: `world` (3, X, Y, Z) in RAS+ mm from the grid's centre."""

    world: Array
    affine: NDArray[np.float64]
    spacing: NDArray[np.float64]
    orientation: str
    oblique_degrees: float


def draw_grid(rng: Generator, size: int) -> Grid:
    """Return a grid of `size`³ voxels with drawn spacing, axis order, obliqueness and origin."""
    orientation = str(rng.choice(ORIENTATIONS))
    spacing_mm = rng.uniform(2.3, 2.7), rng.uniform(2.5, 3.5)
    degrees = float(rng.uniform(2, 8)) if rng.random() < 0.4 else 0.0
    axis = rng.normal(size=3)
    isocentre = rng.uniform([-20, -20, -300], [20, 20, 300])
    return lay_grid((size,) * 3, orientation, spacing_mm, isocentre, axis, degrees)


def lay_grid(
    shape: Sequence[int],
    orientation: str,
    spacing_mm: tuple[float, float],
    isocentre: NDArray[np.float64],
    axis: ArrayLike = (0, 0, 1),
    degrees: float = 0.0,
) -> Grid:
    """Return a grid about `isocentre`, turned about `axis`.

    Args:
        shape: (X, Y, Z), along the index axes.
        orientation: axis codes, such as "RAS", before it is turned.
        spacing_mm: within a slice, and from slice to slice (along the axis coded S or I).
        isocentre: world coordinates of the grid's centre.
        axis: any vector but zero.
        degrees: of the turn.
    """
    in_plane, slices = spacing_mm
    spacing = np.array([slices if code in "SI" else in_plane for code in orientation])
    directions = np.zeros((3, 3))
    for number, code in enumerate(orientation):
        world_axis = next(place for place, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        directions[world_axis, number] = 1 if code in "RAS" else -1
    linear = rotation(axis, degrees) @ directions * spacing
    middle = (np.array(shape) - 1) / 2
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = isocentre - linear @ middle
    offsets = np.ogrid[: shape[0], : shape[1], : shape[2]]
    i, j, k = (places - half for places, half in zip(offsets, middle, strict=True))
    world = np.stack([row[0] * i + row[1] * j + row[2] * k for row in linear]).astype(np.float32)
    return Grid(world, affine, spacing, orientation, degrees)


def place_patient(rng: Generator, grid: Grid, size: int, spacing_mm: float = NOMINAL_SPACING_MM) -> tuple[Array, Move]:
    """Return the voxels' places in the patient's own frame (3, X, Y, Z) in mm, and the way back to world.

    The patient is turned by up to 5 degrees and shifted by up to 2.5 % of `size` times `spacing_mm`.
    """
    turn = rotation(rng.normal(size=3), float(rng.uniform(0, 5)))
    shift = rng.uniform(-0.025, 0.025, 3) * size * spacing_mm
    middle = grid.affine[:3, :3] @ ((np.array(grid.world.shape[1:]) - 1) / 2) + grid.affine[:3, 3]
    return in_frame(grid.world, turn, shift), lambda place: turn @ place + shift + middle


def in_frame(world: Array, turn: NDArray[np.float64], shift: NDArray[np.float64]) -> Array:
    """Return places (3, X, Y, Z) as told in a frame that is turned and shifted."""
    return np.einsum("ji,jxyz->ixyz", turn.astype(np.float32), world - shift.astype(np.float32)[:, None, None, None])


def draw_contrast(rng: Generator, modality: str) -> tuple[str, Contrast]:
    """Return the contrast's name and each tissue's own intensity: HU in CT, relative signal in MRI."""
    if modality == "CT":
        values = rng.normal(CT_HU, CT_SPREAD_HU)
        return "portal venous", dict(zip(TISSUES, values.tolist(), strict=True))
    name = str(rng.choice(list(MR_SIGNAL)))
    values = np.asarray(MR_SIGNAL[name]) * rng.uniform(0.93, 1.07, len(TISSUES))
    return name, dict(zip(TISSUES, values.tolist(), strict=True))


def scan(
    rng: Generator, image: Array, modality: str, grid: Grid, noise_hu: tuple[float, float] = BODY_NOISE_HU
) -> tuple[Array, str]:
    """Return the image with shading and noise as of the scanner, and the dtype it is stored as."""
    extent = np.float32(np.abs(grid.world).max())
    shading = smooth_field(rng, grid.world / extent)
    if modality == "CT":
        noise = correlated_noise(rng, image.shape) * rng.uniform(*noise_hu)
        return np.clip(np.rint(image + 5 * shading + noise), -1024, 3071), "int16"
    level = rng.uniform(0.03, 0.05) * float(image.max())
    signal = image * np.exp(0.3 * shading)
    noisy = np.hypot(signal + level * correlated_noise(rng, image.shape), level * correlated_noise(rng, image.shape))
    scaled = noisy * float(np.exp(rng.uniform(np.log(200), np.log(4000))) / noisy.max())
    if rng.random() < 0.5:
        return np.rint(scaled), "int16"
    return scaled, "float32"


def correlated_noise(rng: Generator, shape: tuple[int, ...]) -> Array:
    """Return noise of standard deviation 1 whose neighbouring voxels are alike, as after reconstruction."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), 0.55, mode="wrap")
    return noise / noise.std()


def smooth_field(rng: Generator, points: Array) -> Array:
    """Return a field of slow waves within about -1 and 1."""
    field = np.zeros(points.shape[1:], np.float32)
    for _ in range(3):
        wave = rng.uniform(-2.2, 2.2, 3).astype(np.float32)
        field += np.sin(np.tensordot(wave, points, 1) + rng.uniform(0, 2 * np.pi))
    return field / 2


def describe(grid: Grid, modality: str, contrast: str, stored_as: str) -> dict[str, Any]:
    """Return what a phantom's `truth` says of the scan."""
    return {
        "modality": modality,
        "contrast": contrast,
        "spacing_mm": grid.spacing.tolist(),
        "orientation": grid.orientation,
        "oblique_degrees": grid.oblique_degrees,
        "stored_as": stored_as,
    }
