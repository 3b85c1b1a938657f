"""Heads in CT, some with a small bleed on a few slices, as sequences of axial slices.

What is as bright as blood is not rare: the falx and the venous sinus are, in every head and of a thickness that varies
by more voxels than a bleed has, and so are the edge of the skull and the rims of calcified specks, where bone shares a
voxel with brain. A bleed is a compact blob beside the midline, so it takes a look at shape and place to see it.
"""

from pathlib import Path
from typing import Any

import numpy as np

from tomokit.phantoms.scanner import Grid, describe, lay_grid, place_patient, scan
from tomokit.phantoms.sets import Phantom, check_case, check_set, draw_class, save_image, write_set
from tomokit.phantoms.shapes import Array, Canvas, Contrast, Generator, deform, ellipsoid, pillar

BLEED_LABELS = {"0": "no bleed", "1": "bleed"}
SLICES = (16, 40)  # of a head, fewest and most
HALF_FIELD_MM = 100.0
NOISE_HU = (4.0, 6.0)
AXIAL = ("RAS", "LAS", "LPS", "RPS")  # slices along the last axis, from feet to head
# Tissue: mean, and standard deviation between patients. `dense` is that of falx and sinus.
HEAD_HU = {
    "air": (-1000.0, 0.0),
    "scalp": (10.0, 15.0),
    "bone": (850.0, 100.0),
    "brain": (33.0, 2.0),
    "csf": (8.0, 2.0),
    "dense": (62.0, 4.0),
    "blood": (64.0, 4.0),
    "calcium": (260.0, 60.0),
}


def make_bleed_set(
    directory: str | Path,
    *,
    cases: int = 400,
    test_cases: int = 80,
    size: int = 48,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Write heads of 16 to 40 axial slices, with a bleed (class 1) or without (class 0), into `directory`.

    An entry's `label` is the class; its `slice_labels` say of each axial slice, from feet to head, whether it shows
    the bleed (0 or 1): to score by, or to train on where a layer says so. Slices are stored along the last axis, from
    feet to head. Of each two consecutive cases one is of each class.

    Raises:
        TomokitError: when an argument is impossible, or `directory` holds a data set already.
    """
    check_set(cases, test_cases, size, seed)

    def write(index: int, part: str) -> dict[str, Any]:
        case = make_bleed_case(size, seed, index)
        entry = {"image": save_image(directory, part, index, case), "label": case.truth["class"]}
        return entry | {"slice_labels": case.truth["slice_labels"], "patient": f"patient_{index:03d}"}

    header = {
        "name": "phantom-bleeds",
        "description": "Synthetic heads, some with a small bleed on a few slices, and look-alikes in all",
        "modality": {"0": "CT"},
        "labels": BLEED_LABELS,
    }
    write_set(Path(directory), header, write, (cases, test_cases, seed), progress)


def make_bleed_case(size: int = 48, seed: int = 0, index: int = 0) -> Phantom:
    """Return head `index` in HU, image and label (size, size, slices), a field of view of about 200 mm.

    The label is 1 in the bleed. `truth` has also `class` (1 with a bleed) and `slice_labels` (slices), 1 where a slice
    has a voxel of the bleed.

    Raises:
        TomokitError: when `size` is below 16, or `seed` or `index` is negative.
    """
    check_case(size, seed, index)
    rng, scanner = np.random.default_rng([seed, index]).spawn(2)
    bleeding = draw_class(seed, index)
    contrast = _draw_head_contrast(scanner)
    grid = _draw_head_grid(rng, size)
    points, _ = place_patient(rng, grid, size, 2 * HALF_FIELD_MM / size)
    canvas = Canvas(points, 1.1 * float(grid.spacing[:2].mean()), contrast, "air", HALF_FIELD_MM)
    warped = deform(rng, canvas.points)
    brain = _paint_head(rng, canvas, warped)
    _paint_specks(rng, canvas, warped, brain)
    volumes = {}
    if bleeding:
        _paint_bleed(rng, canvas, warped, brain)
        volumes["bleed"] = float(canvas.fractions[1].sum(dtype=np.float64) * grid.spacing.prod()) / 1000
    image, stored_as = scan(scanner, canvas.image, "CT", grid, NOISE_HU)
    truth = describe(grid, "CT", "without contrast agent", stored_as)
    windows = (canvas.label == 1).any(axis=(0, 1)).astype(int).tolist()
    truth |= {"class": bleeding, "slice_labels": windows, "volumes_ml": volumes}
    return Phantom(image, canvas.label, grid.affine, truth)


def _draw_head_contrast(rng: Generator) -> Contrast:
    return {tissue: float(rng.normal(*values)) for tissue, values in HEAD_HU.items()}


def _draw_head_grid(rng: Generator, size: int) -> Grid:
    """Draw how many slices cover a head of 120 to 150 mm; a scan is never tilted, the head in it is."""
    orientation = str(rng.choice(AXIAL))
    slices = int(rng.integers(SLICES[0], SLICES[1] + 1))
    spacing_mm = 2 * HALF_FIELD_MM / size * rng.uniform(0.95, 1.05), rng.uniform(120, 150) / slices
    return lay_grid((size, size, slices), orientation, spacing_mm, rng.uniform([-20, -20, 0], [20, 20, 300]))


def _paint_head(rng: Generator, canvas: Canvas, points: Array) -> Array:
    """Paint scalp, skull, brain, ventricles, falx and sinus; return the distance to the brain."""
    centre, radii = np.array([0, 0, -0.1]), np.array([0.74, 0.9, 0.95]) * rng.uniform(0.97, 1.03, 3)
    canvas.paint(ellipsoid(points, centre, radii), "scalp")
    canvas.paint(ellipsoid(points, centre, radii - 0.04), "bone")
    brain = ellipsoid(points, centre, radii - 0.04 - rng.uniform(0.06, 0.1))
    canvas.paint(brain, "brain")
    for side in (-1, 1):
        middle = np.array([side * 0.1, 0, 0.05]) + rng.uniform(-0.02, 0.02, 3)
        canvas.paint(ellipsoid(points, middle, rng.uniform((0.04, 0.2, 0.12), (0.07, 0.28, 0.18))), "csf")
    # both vary by more voxels than a bleed has
    falx = np.maximum(np.abs(points[0]) - rng.uniform(0.008, 0.04), rng.uniform(-0.2, 0.1) - points[2])
    canvas.paint(np.maximum(falx, brain), "dense")
    width, depth = rng.uniform(0.05, 0.16), rng.uniform(0.03, 0.1)
    sinus = np.maximum(np.maximum(np.abs(points[0]) - width, points[1] + 0.2), np.abs(brain + depth / 2) - depth / 2)
    canvas.paint(sinus, "dense")
    return brain


def _paint_specks(rng: Generator, canvas: Canvas, points: Array, brain: Array) -> None:
    """Paint up to five calcified specks about a voxel wide, which a slice shows as bright dots with a softer rim."""
    for _ in range(int(rng.integers(0, 6))):
        place = rng.normal(size=3)
        place *= rng.uniform(0.15, 0.5) / np.linalg.norm(place)
        speck = ellipsoid(points, place, rng.uniform(0.025, 0.055, 3))
        canvas.paint(np.maximum(speck, brain + 0.02), "calcium")


def _paint_bleed(rng: Generator, canvas: Canvas, points: Array, brain: Array) -> None:
    """Paint a bleed (label 1) of 18 to 26 mm beside the midline, with flat ends: a slice shows it or does not."""
    x = float(rng.choice((-1, 1)) * rng.uniform(0.22, 0.32))
    y, z = float(rng.uniform(-0.35, 0.35)), float(rng.uniform(-0.35, 0.25))
    radii = rng.uniform(0.09, 0.13, 2).tolist()
    height = float(rng.uniform(0.08, 0.14))
    column = pillar(points, (x, y), radii)
    # three times as steep as the sides: hardly a slice is half in
    ends = 3 * (np.abs(points[2] - z) - height)
    canvas.paint(np.maximum(np.maximum(column, ends), brain + 0.02), "blood", 1)
