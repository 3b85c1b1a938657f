"""Shapes as signed distances, negative inside, in the unit of the coordinates; and the canvas they are painted on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating[Any]]
Generator = np.random.Generator
Contrast = dict[str, float]


class Canvas:
    """Tissues painted over one another, each with a soft edge about one voxel wide: its partial volume.

    Distances are signed, negative inside, in units of `unit_mm`.

    Args:
        points_mm: the voxels' places in the patient's own frame, (3, X, Y, Z).
        edge_mm: width of the soft edge.
        contrast: each tissue's intensity.
        background: the tissue that fills the canvas.
        unit_mm: half the nominal field of view.
    """

    def __init__(self, points_mm: Array, edge_mm: float, contrast: Contrast, background: str, unit_mm: float) -> None:
        self.unit_mm = unit_mm
        self.points = points_mm / self.unit_mm
        self.edge = edge_mm / self.unit_mm
        self.contrast = contrast
        self.image = np.full(self.points.shape[1:], contrast[background], np.float32)
        self.label = np.zeros(self.points.shape[1:], np.uint8)
        self.fractions: dict[int, Array] = {}

    def paint(self, distance: Array, tissue: str, label: int = 0) -> None:
        """Cover the inside of a shape with `tissue` and, where given, a label."""
        fraction = np.clip(0.5 - distance / self.edge, 0, 1)
        self.image += fraction * (self.contrast[tissue] - self.image)
        for known in self.fractions:
            self.fractions[known] = self.fractions[known] * (1 - fraction)
        if label:
            self.fractions[label] = self.fractions.get(label, 0) + fraction
        self.label[fraction > 0.5] = label


def ellipsoid(points: Array, centre: ArrayLike, radii: ArrayLike) -> Array:
    """Return the distance to an ellipsoid, exact to first order at its surface."""
    offset = points - np.asarray(centre, np.float32).reshape(3, 1, 1, 1)
    scale = 1 / np.asarray(radii, np.float32)
    tiny = np.float32(1e-8)  # keeps the very centre inside, where both sums vanish
    square = np.einsum("ixyz,ixyz,i->xyz", offset, offset, scale**2) + tiny
    slope = np.einsum("ixyz,ixyz,i->xyz", offset, offset, scale**4) + tiny * scale.max() ** 2
    return (square - np.sqrt(square)) / np.sqrt(slope)


def pillar(points: Array, centre: Sequence[float], radii: Sequence[float], power: float = 2.0) -> Array:
    """Return the distance to an upright column of (super)elliptic section, close to exact at its surface."""
    x = np.abs(points[0] - centre[0]) / radii[0]
    y = np.abs(points[1] - centre[1]) / radii[1]
    level = np.hypot(x, y) if power == 2 else (x**power + y**power) ** (1 / power)
    return (level - 1) * min(radii)


def join(first: Array, second: Array, blend: float = 0.08) -> Array:
    """Return the union of two shapes with a rounded seam."""
    overlap = np.maximum(blend - np.abs(first - second), 0) / blend
    return np.minimum(first, second) - overlap**2 * blend / 4


def deform(rng: Generator, points: Array) -> Array:
    """Return the (unit) coordinates bent by a few long waves, and the patient scaled by some percent."""
    bent = points * rng.uniform(0.95, 1.04, 3).astype(np.float32).reshape(3, 1, 1, 1)
    for _ in range(3):
        wave = rng.normal(size=3) * 2.6
        phase = np.tensordot(wave.astype(np.float32), points, 1) + rng.uniform(0, 2 * np.pi)
        bent += rng.normal(size=3).astype(np.float32).reshape(3, 1, 1, 1) * 0.016 * np.sin(phase)
    return bent


def rotation(axis: ArrayLike, degrees: float) -> NDArray[np.float64]:
    """Return the (3, 3) rotation about `axis` by Rodrigues' formula."""
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def any_rotation(rng: Generator) -> NDArray[np.float32]:
    """Return a rotation (3, 3) about any axis by up to 180 degrees."""
    return rotation(rng.normal(size=3), float(rng.uniform(0, 180))).astype(np.float32)
