"""Organs with one lesion, compact or elongated."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomokit.phantoms.scanner import (
    NOMINAL_SPACING_MM,
    Move,
    describe,
    draw_contrast,
    draw_grid,
    place_patient,
    scan,
)
from tomokit.phantoms.sets import Phantom, check_case, check_modality, check_set, draw_class, save_image, write_set
from tomokit.phantoms.shapes import Canvas, Generator, any_rotation, deform, ellipsoid, pillar

CLASSIFICATION_LABELS = {"0": "compact", "1": "elongated"}
ELONGATION = 4.0  # long over short axis of an elongated lesion


def make_classification_set(
    directory: str | Path,
    modality: str = "CT",
    *,
    cases: int = 160,
    test_cases: int = 40,
    size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Write phantoms of one organ whose lesion is compact (class 0) or elongated (class 1) into `directory`.

    Volume and intensity of the lesion are drawn alike for both classes, so that only its shape tells them
    apart; an entry's `label` is the class. Of each two consecutive cases one is of each class.

    Raises:
        TomokitError: when an argument is impossible, or `directory` holds a data set already.
    """
    check_modality(modality)
    check_set(cases, test_cases, size, seed)

    def write(index: int, part: str) -> dict[str, Any]:
        case = make_classification_case(modality, size, seed, index)
        image = save_image(directory, part, index, case)
        return {"image": image, "label": case.truth["class"], "patient": f"patient_{index:03d}"}

    header = {
        "name": f"phantom-{modality.lower()}-classes",
        "description": "Synthetic organs with one lesion, compact or elongated, alike in volume and intensity",
        "modality": {"0": modality},
        "labels": CLASSIFICATION_LABELS,
    }
    write_set(Path(directory), header, write, (cases, test_cases, seed), progress)


def make_classification_case(modality: str = "CT", size: int = 32, seed: int = 0, index: int = 0) -> Phantom:
    """Return case `index` of the classification set in memory, image and label (size, size, size).

    The label is 1 in the lesion, to check where a classifier looks; `truth["class"]` is 0 (compact) or 1
    (elongated). Units are those of `make_segmentation_case`.

    Raises:
        TomokitError: when `modality` is unknown, `size` is below 16, or `seed` or `index` is negative.
    """
    check_modality(modality)
    check_case(size, seed, index)
    rng, scanner = np.random.default_rng([seed, index]).spawn(2)
    elongated = draw_class(seed, index)
    contrast_name, contrast = draw_contrast(scanner, modality)
    grid = draw_grid(rng, size)
    points, to_world = place_patient(rng, grid, size)
    canvas = Canvas(points, 1.1 * float(grid.spacing.mean()), contrast, "muscle", size * NOMINAL_SPACING_MM / 2)
    paint_organ(rng, canvas)
    aspect = np.array([1, 1, ELONGATION]) if elongated else np.ones(3)
    semi_axes = rng.uniform(0.23, 0.3) * aspect / np.prod(aspect) ** (1 / 3)
    lesion = paint_lesion(rng, canvas, semi_axes)
    image, stored_as = scan(scanner, canvas.image, modality, grid)
    truth = describe(grid, modality, contrast_name, stored_as)
    truth |= {"class": elongated, "volumes_ml": {"lesion": lesion["volume_ml"]}}
    truth |= {"lesions": [move(lesion, to_world)]}
    return Phantom(image, canvas.label, grid.affine, truth)


def move(lesion: dict[str, Any], to_world: Move) -> dict[str, Any]:
    """Return the lesion with its centre in world coordinates."""
    return lesion | {"centre_mm": to_world(lesion["centre_mm"]).tolist()}


def tell_lesion(centre_mm: NDArray[np.float64], semi_axes_mm: NDArray[np.float64]) -> dict[str, Any]:
    """Return what the truth says of a lesion: its place, semi-axes and analytic volume."""
    volume_ml = 4 / 3 * np.pi * float(np.prod(semi_axes_mm)) / 1000
    return {"centre_mm": centre_mm, "semi_axes_mm": semi_axes_mm.tolist(), "volume_ml": volume_ml}


def paint_organ(rng: Generator, canvas: Canvas) -> None:
    """Paint an organ in fat within muscle, its vessels and cysts."""
    points = deform(rng, canvas.points)
    organ = ellipsoid(points, rng.uniform(-0.04, 0.04, 3), rng.uniform(0.8, 0.9, 3))
    canvas.paint(organ - 0.1, "fat")
    canvas.paint(organ, "liver")
    for _ in range(3):
        turned = np.tensordot(any_rotation(rng), points, 1)
        vessel = pillar(turned, rng.uniform(-0.4, 0.4, 2).tolist(), (0.05, 0.05))
        canvas.paint(np.maximum(vessel, organ + 0.05), "vessel")
    for _ in range(int(rng.integers(2, 7))):
        place = rng.normal(size=3)
        place *= rng.uniform(0.55, 0.75) / np.linalg.norm(place)
        canvas.paint(ellipsoid(points, place, np.full(3, rng.uniform(0.08, 0.14))), "fluid")


def paint_lesion(rng: Generator, canvas: Canvas, semi_axes: NDArray[np.float64]) -> dict[str, Any]:
    """Paint a lesion (label 1) near the canvas's centre, turned any way; return its truth."""
    centre = rng.uniform(-0.1, 0.1, 3)
    offset = canvas.points - centre.astype(np.float32).reshape(3, 1, 1, 1)
    canvas.paint(ellipsoid(np.tensordot(any_rotation(rng), offset, 1), (0, 0, 0), semi_axes), "fluid", 1)
    return tell_lesion(centre * canvas.unit_mm, semi_axes * canvas.unit_mm)
