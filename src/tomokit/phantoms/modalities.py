"""One body in two modalities, each on its own grid: T1 of 1 mm, and FLAIR in slices of 3 mm.

T1 shows how large a lesion's core is, FLAIR how far the oedema about it reaches, and neither shows the other. The
outcome is 1 with probability 1 / (1 + exp(-1.587 (u + v))), where `u` and `v` are normal (clipped at ±2.5), the core's
radius is 5 exp(0.16 u) mm and the oedema's 11 exp(0.16 v) mm in a field of view of 48 mm. So the best possible AUC is
about .87 from both modalities and .75 from one.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from tomokit.phantoms.records import OUTCOME_LABELS, draw_factor, spread_factor
from tomokit.phantoms.scanner import BRAIN_SIGNAL, ORIENTATIONS, Grid, describe, in_frame, lay_grid, scan
from tomokit.phantoms.sets import check_case, check_set, save, write_set
from tomokit.phantoms.shapes import Canvas, Contrast, Generator, deform, ellipsoid, rotation

WEIGHT = 1.587  # log-odds for a deviation of either factor
SLICE_MM = {"T1": 1.0, "FLAIR": 3.0}
RADII_MM, GROWTH = (5.0, 11.0), 0.16  # of core and oedema, at a size of 48


class MultiModal(NamedTuple):
    """One body in T1 and FLAIR, each with its own `affine` (4, 4) to RAS+ mm, and what it holds.

    `truth` has `class` (the outcome), `t1_factor` and `flair_factor`, `centre_mm` of the lesion (RAS+),
    `volumes_ml` of core and oedema (analytic; the oedema without the core), and for each modality what a `Phantom`'s
    truth says of its scan.
    """

    images: dict[str, NDArray[np.float32]]
    affines: dict[str, NDArray[np.float64]]
    truth: dict[str, Any]


class _Pose(NamedTuple):
    """How a body lies in world coordinates, told from the centre of the T1's grid."""

    turn: NDArray[np.float64]
    shift: NDArray[np.float64]


def make_modalities_set(
    directory: str | Path,
    *,
    cases: int = 400,
    test_cases: int = 160,
    size: int = 48,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Write bodies in T1 (size³ voxels of 1 mm) and FLAIR (slices of 3 mm), each on its own grid, into `directory`.

    An entry's `image` is the list of both, `label` the outcome (0 or 1), and `t1_factor` and `flair_factor` what they
    show, for `best_probability_of_modalities`. Both are there for every case; leave one out in training and use.

    Raises:
        TomokitError: when an argument is impossible, or `directory` holds a data set already.
    """
    check_set(cases, test_cases, size, seed)

    def write(index: int, part: str) -> dict[str, Any]:
        case = make_modalities_case(size, seed, index)
        paths = [f"images{part}/case_{index:03d}_{number:04d}.nii.gz" for number in range(len(SLICE_MM))]
        for path, name in zip(paths, SLICE_MM, strict=True):
            stored = case.images[name].astype(case.truth[name]["stored_as"])
            save(Path(directory) / path, stored, case.affines[name])
        factors = {name: case.truth[name] for name in ("t1_factor", "flair_factor")}
        return {"image": paths, "label": case.truth["class"], "patient": f"patient_{index:03d}"} | factors

    header = {
        "name": "phantom-modalities",
        "description": "Synthetic lesions in T1 and FLAIR of unequal sampling, each of which tells the outcome in part",
        "modality": dict(zip(("0", "1"), SLICE_MM, strict=True)),
        "labels": OUTCOME_LABELS,
    }
    write_set(Path(directory), header, write, (cases, test_cases, seed), progress)


def make_modalities_case(size: int = 48, seed: int = 0, index: int = 0) -> MultiModal:
    """Return body `index`: T1 (size, size, size), and FLAIR with a third of that along its slices' axis.

    Raises:
        TomokitError: when `size` is below 16, or `seed` or `index` is negative.
    """
    check_case(size, seed, index)
    rng, scanner, factors = np.random.default_rng([seed, index, 5]).spawn(3)
    shown = {name: draw_factor(factors) for name in SLICE_MM}
    outcome = int(factors.random() < expit(WEIGHT * sum(shown.values())))
    pose = _Pose(rotation(rng.normal(size=3), float(rng.uniform(0, 8))), rng.uniform(-1.5, 1.5, 3) * size / 48)
    isocentre = rng.uniform([-20, -20, 0], [20, 20, 300])
    body_seed = int(rng.integers(2**32))
    radii_mm = [mm * math.exp(GROWTH * u) * size / 48 for mm, u in zip(RADII_MM, shown.values(), strict=True)]
    images: dict[str, NDArray[np.float32]] = {}
    affines: dict[str, NDArray[np.float64]] = {}
    truth: dict[str, Any] = {}
    for name in SLICE_MM:
        away = np.zeros(3) if name == "T1" else rng.uniform(-1.5, 1.5, 3)
        grid = _draw_grid(rng, size, name, isocentre + away)
        points = in_frame(grid.world, pose.turn, pose.shift - away)
        signal = {tissue: value * float(scanner.uniform(0.97, 1.03)) for tissue, value in BRAIN_SIGNAL[name].items()}
        canvas = Canvas(points, 1.1 * float(grid.spacing.mean()), _match(name, signal), "white", size / 2)
        middle_mm = _paint_body(np.random.default_rng(body_seed), canvas, radii_mm)
        image, stored_as = scan(scanner, canvas.image, "MRI", grid)
        images[name], affines[name] = image, grid.affine
        truth[name] = describe(grid, "MRI", name, stored_as)
    core, oedema = (4 / 3 * math.pi * radius**3 / 1000 for radius in radii_mm)
    truth |= {"class": outcome, "t1_factor": shown["T1"], "flair_factor": shown["FLAIR"]}
    truth |= {"centre_mm": (pose.turn @ middle_mm + pose.shift + isocentre).tolist()}
    truth |= {"volumes_ml": {"core": core, "oedema": max(0.0, oedema - core)}}
    return MultiModal(images, affines, truth)


def best_probability_of_modalities(t1_factor: float | None, flair_factor: float | None) -> float:
    """Return the probability of outcome 1 given what the modalities show; None for one that is not there."""
    (u, u_weights), (v, v_weights) = spread_factor(t1_factor), spread_factor(flair_factor)
    return float(u_weights @ expit(WEIGHT * (u[:, None] + v)) @ v_weights)


def _draw_grid(rng: Generator, size: int, name: str, centre: NDArray[np.float64]) -> Grid:
    """Draw axis order and tilt of one modality's grid; its slices lie along the axis coded S or I."""
    orientation = str(rng.choice(ORIENTATIONS))
    slices = math.ceil(size / SLICE_MM[name])
    shape = [slices if code in "SI" else size for code in orientation]
    return lay_grid(shape, orientation, (1.0, SLICE_MM[name]), centre, rng.normal(size=3), float(rng.uniform(0, 6)))


def _match(name: str, signal: Contrast) -> Contrast:
    """Return the signal with each pair of tissues that a modality can't tell apart made the same again."""
    if name == "T1":
        return signal | {"oedema": signal["white"]}
    return signal | {"oedema": signal["core"]}


def _paint_body(rng: Generator, canvas: Canvas, radii_mm: list[float]) -> NDArray[np.float64]:
    """Paint grey folds and fluid about white matter, and in it the oedema and the core; return their centre in mm."""
    points = deform(rng, canvas.points)
    wave = rng.uniform(7.5, 9.5)
    x, y, z = (wave * points[axis] + rng.uniform(0, 2 * np.pi) for axis in range(3))
    folds = np.sin(x) * np.cos(y) + np.sin(y) * np.cos(z) + np.sin(z) * np.cos(x)
    inner = ellipsoid(points, (0, 0, 0), rng.uniform(0.78, 0.84, 3))  # white matter alone lies within
    canvas.paint(np.maximum((0.1 - folds) / (1.3 * wave), -inner), "grey")
    canvas.paint(np.maximum((0.9 - folds) / (1.3 * wave), -inner - 0.03), "fluid")
    middle = rng.uniform(-0.05, 0.05, 3)
    core, oedema = (radius / canvas.unit_mm for radius in radii_mm)
    canvas.paint(ellipsoid(canvas.points, middle, np.full(3, oedema)), "oedema")
    canvas.paint(ellipsoid(canvas.points, middle, np.full(3, core)), "core", 1)
    return middle * canvas.unit_mm
