"""Tubes with two events along them, whose order alone is the class.

Somewhere along a tube lies a plug, and somewhere near it the tube is wide. Every volume is made with the plug below,
and the volumes of the other class are then mirrored from end to end, noise and all. So both classes have the same
slices, in the same distribution, and whoever shuffles them has lost the class: no threshold, no histogram and no
pooling over slices can tell it.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomokit.phantoms.scanner import describe, draw_contrast, lay_grid, scan
from tomokit.phantoms.sets import Phantom, check_case, check_set, draw_class, save_image, write_set
from tomokit.phantoms.shapes import Array, Canvas, Generator, pillar

ORDER_LABELS = {"0": "plug below", "1": "plug above"}
SLICES = (16, 40)  # of a volume, fewest and most
IN_PLANE_MM, SLICE_MM = 2.0, 4.0
WIDENING = 1.7  # radius of the tube where it is wide


class _Tube(NamedTuple):
    """A tube's section in each slice: distance to its lumen (X, Y, Z), and where plug and wide part lie (Z)."""

    lumen: Array
    plug: NDArray[np.bool_]
    wide: NDArray[np.bool_]


def make_order_set(
    directory: str | Path,
    *,
    cases: int = 200,
    test_cases: int = 60,
    size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Write volumes of 16 to 40 axial slices in which a plug lies below (0) or above (1) a wide part of a tube.

    An entry's `label` is the class. Slices are stored along the last axis, from feet to head. Of each two consecutive
    cases one is of each class.

    Raises:
        TomokitError: when an argument is impossible, or `directory` holds a data set already.
    """
    check_set(cases, test_cases, size, seed)

    def write(index: int, part: str) -> dict[str, Any]:
        case = make_order_case(size, seed, index)
        image = save_image(directory, part, index, case)
        return {"image": image, "label": case.truth["class"], "patient": f"patient_{index:03d}"}

    header = {
        "name": "phantom-order",
        "description": "Synthetic tubes whose class is the order of a plug and a wide part: the same slices in both",
        "modality": {"0": "CT"},
        "labels": ORDER_LABELS,
    }
    write_set(Path(directory), header, write, (cases, test_cases, seed), progress)


def make_order_case(size: int = 32, seed: int = 0, index: int = 0) -> Phantom:
    """Return case `index` in HU, image and label (size, size, slices).

    The label is 1 in the plug and 2 in the wide part of the tube. `truth["class"]` is 1 where the plug lies above.

    Raises:
        TomokitError: when `size` is below 16, or `seed` or `index` is negative.
    """
    check_case(size, seed, index)
    rng, scanner = np.random.default_rng([seed, index]).spawn(2)
    above = draw_class(seed, index)
    contrast_name, contrast = draw_contrast(scanner, "CT")
    slices = int(rng.integers(SLICES[0], SLICES[1] + 1))
    grid = lay_grid((size, size, slices), "RAS", (IN_PLANE_MM, SLICE_MM), rng.uniform([-20, -20, 0], [20, 20, 300]))
    canvas = Canvas(grid.world, 1.1 * IN_PLANE_MM, contrast, "fat", size * IN_PLANE_MM / 2)
    _paint_surroundings(rng, canvas)
    _paint_tube(canvas, _draw_tube(rng, canvas.points, slices))
    image, stored_as = scan(scanner, canvas.image, "CT", grid)
    label = canvas.label
    if above:
        image, label = np.ascontiguousarray(image[..., ::-1]), np.ascontiguousarray(label[..., ::-1])
    voxel_ml = float(grid.spacing.prod()) / 1000
    volumes = {name: float(np.sum(label == value)) * voxel_ml for value, name in ((1, "plug"), (2, "wide part"))}
    truth = describe(grid, "CT", contrast_name, stored_as) | {"class": above, "volumes_ml": volumes}
    return Phantom(image, label, grid.affine, truth)


def _paint_surroundings(rng: Generator, canvas: Canvas) -> None:
    """Paint a muscle wall, a column of bone, and two vessels as bright as the plug."""
    wall = pillar(canvas.points, (0, 0), (0.9, 0.85), 2.3)
    canvas.paint(np.abs(wall + 0.06) - 0.06, "muscle")
    canvas.paint(pillar(canvas.points, (0, -0.6), (0.14, 0.13)), "bone")
    for side in (-1, 1):
        radius = float(rng.uniform(0.06, 0.12))
        canvas.paint(pillar(canvas.points, (side * 0.6, float(rng.uniform(-0.3, 0.3))), (radius, radius)), "vessel")


def _draw_tube(rng: Generator, points: Array, slices: int) -> _Tube:
    """Draw a winding tube, a plug of 2 or 3 slices, and 2 or 3 slices above it a wide part of 2 to 4."""
    plug, gap, wide = int(rng.integers(2, 4)), int(rng.integers(2, 4)), int(rng.integers(2, 5))
    first = int(rng.integers(0, slices - plug - gap - wide + 1))
    number = np.arange(slices)
    in_plug = (number >= first) & (number < first + plug)
    in_wide = (number >= first + plug + gap) & (number < first + plug + gap + wide)
    phases = rng.uniform(0, 2 * np.pi, 2)
    x, y = 0.12 * np.sin(2 * np.pi * number / 24 + phases[:, None])
    radius = rng.uniform(0.15, 0.2) * np.where(in_wide, WIDENING, 1.0)
    return _Tube(np.hypot(points[0] - x, points[1] - y - 0.1) - radius, in_plug, in_wide)


def _paint_tube(canvas: Canvas, tube: _Tube) -> None:
    """Paint a muscular wall around fluid, the plug (label 1) and the lumen of the wide part (label 2)."""
    canvas.paint(tube.lumen - 0.06, "muscle")
    canvas.paint(tube.lumen, "fluid")
    for part, tissue, label in ((tube.plug, "vessel", 1), (tube.wide, "fluid", 2)):
        canvas.paint(np.where(part, tube.lumen, np.float32(1)), tissue, label)
