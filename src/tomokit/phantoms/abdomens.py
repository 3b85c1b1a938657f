"""Abdomens with a liver, a spleen and liver lesions, labelled, among unlabelled look-alikes."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from tomokit.phantoms.lesions import move, tell_lesion
from tomokit.phantoms.scanner import (
    NOMINAL_SPACING_MM,
    Grid,
    describe,
    draw_contrast,
    draw_grid,
    place_patient,
    scan,
)
from tomokit.phantoms.sets import Phantom, check_case, check_modality, check_set, save, write_set
from tomokit.phantoms.shapes import Array, Canvas, Generator, deform, ellipsoid, join, pillar

SEGMENTATION_LABELS = {"0": "background", "1": "liver", "2": "spleen", "3": "lesion"}


def make_segmentation_set(
    directory: str | Path,
    modality: str = "CT",
    *,
    cases: int = 40,
    test_cases: int = 8,
    size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Write abdominal phantoms with a liver, a spleen and liver lesions, labelled, into `directory`.

    Muscle and kidneys share the intensity of liver and spleen, and fluid-filled bowel that of the lesions,
    without a label. Volumes are `size`³ voxels of about 2.5 mm, so smaller ones hold smaller bodies. `cases`
    counts all cases, the last `test_cases` of which are for testing. Arrays depend on `seed`, `size` and the
    case's number alone.

    Raises:
        TomokitError: when an argument is impossible, or `directory` holds a data set already.
    """
    check_modality(modality)
    check_set(cases, test_cases, size, seed)

    def write(index: int, part: str) -> dict[str, Any]:
        case = make_segmentation_case(modality, size, seed, index)
        image, label = f"images{part}/case_{index:03d}.nii.gz", f"labels{part}/case_{index:03d}.nii.gz"
        save(Path(directory) / image, case.image.astype(case.truth["stored_as"]), case.affine)
        save(Path(directory) / label, case.label, case.affine)
        return {"image": image, "label": label, "patient": f"patient_{index:03d}"}

    header = {
        "name": f"phantom-{modality.lower()}",
        "description": "Synthetic abdomens with liver, spleen, liver lesions and unlabelled look-alikes",
        "modality": {"0": modality},
        "labels": SEGMENTATION_LABELS,
    }
    write_set(Path(directory), header, write, (cases, test_cases, seed), progress)


def make_segmentation_case(modality: str = "CT", size: int = 64, seed: int = 0, index: int = 0) -> Phantom:
    """Return case `index` of the segmentation set in memory, image and label (size, size, size).

    CT is in HU, MRI in the arbitrary units of its own case. The labels are those of `SEGMENTATION_LABELS`; a
    lesion lies wholly inside the liver and is cut out of it, as in `truth["volumes_ml"]`.

    Raises:
        TomokitError: when `modality` is unknown, `size` is below 16, or `seed` or `index` is negative.
    """
    check_modality(modality)
    check_case(size, seed, index)
    rng, scanner = np.random.default_rng([seed, index]).spawn(2)
    contrast_name, contrast = draw_contrast(scanner, modality)
    grid = draw_grid(rng, size)
    points, to_world = place_patient(rng, grid, size)
    canvas = Canvas(points, 1.1 * float(grid.spacing.mean()), contrast, "air", size * NOMINAL_SPACING_MM / 2)
    warped = deform(rng, canvas.points)
    cavity = _paint_trunk(rng, canvas, warped)
    _paint_look_alikes(rng, canvas, warped, cavity)
    liver = _paint_liver_and_spleen(rng, canvas, warped, cavity)
    lesions = _paint_lesions(rng, canvas, grid, liver)
    voxel_ml = float(grid.spacing.prod()) / 1000
    volumes = {
        SEGMENTATION_LABELS[str(value)]: float(canvas.fractions[value].sum(dtype=np.float64)) * voxel_ml
        for value in (1, 2)
    }
    volumes["lesion"] = sum(lesion["volume_ml"] for lesion in lesions)
    image, stored_as = scan(scanner, canvas.image, modality, grid)
    truth = describe(grid, modality, contrast_name, stored_as)
    truth |= {"volumes_ml": volumes, "lesions": [move(lesion, to_world) for lesion in lesions]}
    return Phantom(image, canvas.label, grid.affine, truth)


def _paint_trunk(rng: Generator, canvas: Canvas, points: Array) -> Array:
    """Paint skin fat, muscle wall, skeleton, lungs and vessels; return the distance to the cavity."""
    width, depth = rng.uniform(0.76, 0.82), rng.uniform(0.66, 0.72)
    rim, wall = rng.uniform(0.05, 0.08), rng.uniform(0.1, 0.12)
    canvas.paint(pillar(points, (0, 0), (width, depth), 2.3), "fat")
    canvas.paint(pillar(points, (0, 0), (width - rim, depth - rim), 2.3), "muscle")
    cavity = pillar(points, (0, 0.02), (width - rim - wall, depth - rim - wall), 2.2)
    canvas.paint(cavity, "fat")
    _paint_skeleton(rng, canvas, points, cavity + wall / 2)
    dome = rng.uniform(0.72, 0.78) - points[2] - 0.45 * (points[0] ** 2 + points[1] ** 2)
    canvas.paint(np.maximum(dome, cavity + 0.03), "lung")
    for x, y, radius in ((-0.07, -0.24, 0.065), (0.1, -0.2, 0.06)):
        canvas.paint(pillar(points, (x, y), (radius, radius)), "vessel")
    return cavity


def _paint_skeleton(rng: Generator, canvas: Canvas, points: Array, from_wall: Array) -> None:
    """Paint ribs along the middle of the muscle wall, vertebrae with discs, and the muscles beside them."""
    angle = np.abs(np.arctan2(points[0], points[1]))  # 0 at the front, so that the ribs fall forwards
    turn = np.cos((points[2] + 0.13 * angle + rng.uniform(0, 1)) * (2 * np.pi / 0.32))
    ribs = np.maximum(np.abs(from_wall) - 0.025, (0.55 - turn) * 0.06)
    canvas.paint(np.maximum(ribs, -0.05 - points[2]), "bone")
    for side in (-1, 1):
        canvas.paint(pillar(points, (side * 0.2, -0.42), (0.14, 0.16)), "muscle")
    vertebra = pillar(points, (0, -0.4), (0.15, 0.13), 2.6)
    disc = (0.82 - np.cos((points[2] + rng.uniform(0, 1)) * (2 * np.pi / 0.36))) * 0.06
    canvas.paint(np.maximum(vertebra, -disc), "marrow")
    canvas.paint(np.maximum(vertebra, disc), "muscle")
    canvas.paint(pillar(points, (0, -0.57), (0.05, 0.04)), "fluid")
    canvas.paint(pillar(points, (0, -0.64), (0.03, 0.05)), "bone")


def _paint_look_alikes(rng: Generator, canvas: Canvas, points: Array, cavity: Array) -> None:
    """Paint what looks like a labelled structure: kidneys, and a stomach and bowel filled with fluid."""
    _paint_bowel(rng, canvas, points, cavity)
    stomach = np.array([-0.3, 0.26, 0.32]) + rng.uniform(-0.03, 0.03, 3)
    _paint_hollow(canvas, np.maximum(ellipsoid(points, stomach, (0.22, 0.18, 0.26)), cavity + 0.03))
    for side in (-1, 1):
        for height in (-0.3, -0.72):
            centre = np.array([side * 0.38, 0.12, height]) + rng.uniform(-0.06, 0.06, 3)
            loop = ellipsoid(points, centre, rng.uniform(0.15, 0.21, 3))
            _paint_hollow(canvas, np.maximum(loop, cavity + 0.03))
    for side, alike in ((-1, "spleen"), (1, "liver")):
        centre = np.array([side * 0.4, -0.22, -0.3]) + rng.uniform(-0.03, 0.03, 3)
        canvas.paint(ellipsoid(points, centre, (0.17, 0.18, 0.31)), "fat")
        canvas.paint(ellipsoid(points, centre, (0.13, 0.15, 0.27)), alike)
        pelvis = ellipsoid(points, centre - np.array([side * 0.08, -0.02, 0]), (0.06, 0.05, 0.11))
        canvas.paint(pelvis, "fluid")


def _paint_bowel(rng: Generator, canvas: Canvas, points: Array, cavity: Array) -> None:
    """Paint winding loops in the front of the lower abdomen: the thick parts of a gyroid surface."""
    wave = rng.uniform(9.5, 11.5)
    x, y, z = (wave * points[axis] + rng.uniform(0, 2 * np.pi) for axis in range(3))
    gyroid = np.sin(x) * np.cos(y) + np.sin(y) * np.cos(z) + np.sin(z) * np.cos(x)
    loops = (0.35 - gyroid) / (1.3 * wave)
    for limit in (points[2] - rng.uniform(-0.02, 0.06), -0.1 - points[1], cavity + 0.05):
        loops = np.maximum(loops, limit)
    _paint_hollow(canvas, loops)


def _paint_hollow(canvas: Canvas, inside: Array) -> None:
    """Paint a thin muscular wall around fluid."""
    canvas.paint(inside, "muscle")
    canvas.paint(inside + 0.035, "fluid")


def _paint_liver_and_spleen(rng: Generator, canvas: Canvas, points: Array, cavity: Array) -> Array:
    """Paint both organs, with a film of fat around them; return the distance to the liver."""
    jitter = rng.uniform(-0.03, 0.03, 3)
    size = rng.uniform(0.93, 1.07)
    film = cavity + 0.025
    right = ellipsoid(points, np.array([0.3, 0.03, 0.22]) + jitter, np.array([0.37, 0.42, 0.44]) * size)
    left = ellipsoid(points, np.array([0.0, 0.25, 0.36]) + jitter, np.array([0.3, 0.2, 0.2]) * size)
    spine = pillar(points, (0, -0.4), (0.3, 0.26))
    liver = np.maximum(np.maximum(join(right, left), film), -spine)
    centre = np.array([-0.43, -0.16, 0.32]) + rng.uniform(-0.03, 0.03, 3)
    spleen = ellipsoid(points, centre, np.array([0.17, 0.27, 0.3]) * rng.uniform(0.93, 1.1))
    hilum = ellipsoid(points, centre + np.array([0.2, 0.08, 0]), (0.13, 0.16, 0.2))
    spleen = np.maximum(np.maximum(spleen, film), -hilum)
    for value, (organ, distance) in enumerate((("liver", liver), ("spleen", spleen)), start=1):
        canvas.paint(distance - 0.02, "fat")
        canvas.paint(distance, organ, value)
    return liver


def _paint_lesions(rng: Generator, canvas: Canvas, grid: Grid, liver: Array) -> list[dict[str, Any]]:
    """Paint one to three ellipsoids wholly inside the liver, apart from each other; return their truth."""
    voxel = 2 / 64  # radii are told for 64 voxels an axis
    free = (liver < -canvas.edge) & (canvas.label == 1)
    lesions: list[dict[str, Any]] = []
    for _ in range(int(rng.integers(1, 4))):
        padded = np.pad(free, 1)
        room = ndimage.distance_transform_edt(padded, sampling=grid.spacing / canvas.unit_mm)[1:-1, 1:-1, 1:-1]
        radius = min(rng.uniform(4.2, 6.6) * voxel, float(room.max()))
        if lesions and radius < 4 * voxel:
            break
        place = rng.choice(np.flatnonzero(room >= radius))
        centre = canvas.points.reshape(3, -1)[:, place].astype(np.float64)
        semi_axes = radius * np.append(1.0, rng.uniform(0.8, 1.0, 2))[rng.permutation(3)]
        distance = ellipsoid(canvas.points, centre, semi_axes)
        canvas.paint(distance, "fluid", 3)
        free &= distance > canvas.edge
        lesions.append(tell_lesion(centre * canvas.unit_mm, semi_axes * canvas.unit_mm))
    return lesions
