"""Deterministic CT and MRI phantoms with known truth, as data sets in the Decathlon's layout.

The anatomy is analytic (ellipsoids and tubes, bent by a smooth deformation) and is sampled on each case's own
grid: spacing, orientation and obliqueness differ, the patient lies the same way in world coordinates. CT and
MRI of the same seed and index show the same patient on the same grid.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.progress import track
from scipy import ndimage

from tomokit.errors import TomokitError
from tomokit.files import replacing, write_json
from tomokit.splits import Split, write_split

MODALITIES = ("CT", "MRI")
SEGMENTATION_LABELS = {"0": "background", "1": "liver", "2": "spleen", "3": "lesion"}
CLASSIFICATION_LABELS = {"0": "compact", "1": "elongated"}
NOMINAL_SPACING_MM = 2.5
ELONGATION = 4.0  # long over short axis of an elongated lesion
MINIMUM_SIZE = 16
# Axis codes of the stored grids; RAS is listed twice, as the most frequent one.
ORIENTATIONS = ("RAS", "RAS", "LPS", "LAS", "RPS", "LPI", "PSR", "ASL")

Array = NDArray[np.floating[Any]]
Generator = np.random.Generator
Contrast = dict[str, float]
Move = Callable[[NDArray[np.float64]], NDArray[np.float64]]

TISSUES = ("air", "fat", "muscle", "bone", "marrow", "lung", "liver", "spleen", "fluid", "vessel")
CT_HU = (-1000.0, -100.0, 82.0, 420.0, 230.0, -820.0, 86.0, 94.0, 28.0, 125.0)
CT_SPREAD_HU = (0.0, 8.0, 7.0, 60.0, 30.0, 20.0, 7.0, 7.0, 6.0, 12.0)  # between patients
# T1-weighted, fat-saturated T2-weighted, and late contrast-enhanced fat-saturated T1-weighted.
MR_SIGNAL = {
    "T1": (0.0, 1.0, 0.62, 0.1, 0.5, 0.06, 0.64, 0.54, 0.33, 0.5),
    "T2": (0.0, 0.2, 0.4, 0.06, 0.25, 0.05, 0.42, 0.52, 0.9, 0.3),
    "T1c": (0.0, 0.3, 0.68, 0.1, 0.3, 0.05, 0.7, 0.76, 0.3, 0.98),
}


class Phantom(NamedTuple):
    """One case: `image` and `label` (X, Y, Z) in the file's own axes, `affine` (4, 4) to RAS+ mm.

    `truth` says what the case holds: always `modality`, `contrast`, `spacing_mm`, `orientation` (axis codes),
    `oblique_degrees`, `stored_as` (the file's dtype), `volumes_ml` per label name, and `lesions`, a list of
    `centre_mm` (RAS+), `semi_axes_mm` and `volume_ml` (analytic); for classification also `class`.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]
    truth: dict[str, Any]


class _Grid(NamedTuple):
    """Where the voxels are: `world` (3, X, Y, Z) in RAS+ mm from the grid's centre."""

    world: Array
    affine: NDArray[np.float64]
    spacing: NDArray[np.float64]
    orientation: str
    oblique_degrees: float


class _Canvas:
    """Tissues painted over one another, each with a soft edge about one voxel wide: its partial volume.

    Distances are signed, negative inside, in units of half the nominal field of view.
    """

    def __init__(self, points_mm: Array, edge_mm: float, contrast: Contrast, background: str) -> None:
        self.unit_mm = points_mm.shape[-1] * NOMINAL_SPACING_MM / 2
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
    _check_arguments(modality, cases, test_cases, size, seed)

    def write(index: int, part: str) -> dict[str, Any]:
        case = make_segmentation_case(modality, size, seed, index)
        image, label = f"images{part}/case_{index:03d}.nii.gz", f"labels{part}/case_{index:03d}.nii.gz"
        _save(Path(directory) / image, case.image.astype(case.truth["stored_as"]), case.affine)
        _save(Path(directory) / label, case.label, case.affine)
        return {"image": image, "label": label, "patient": f"patient_{index:03d}"}

    header = {
        "name": f"phantom-{modality.lower()}",
        "description": "Synthetic abdomens with liver, spleen, liver lesions and unlabelled look-alikes",
        "modality": {"0": modality},
        "labels": SEGMENTATION_LABELS,
    }
    _write_set(Path(directory), header, write, (cases, test_cases, seed), progress)


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
    _check_arguments(modality, cases, test_cases, size, seed)

    def write(index: int, part: str) -> dict[str, Any]:
        case = make_classification_case(modality, size, seed, index)
        image = f"images{part}/case_{index:03d}.nii.gz"
        _save(Path(directory) / image, case.image.astype(case.truth["stored_as"]), case.affine)
        return {"image": image, "label": case.truth["class"], "patient": f"patient_{index:03d}"}

    header = {
        "name": f"phantom-{modality.lower()}-classes",
        "description": "Synthetic organs with one lesion, compact or elongated, alike in volume and intensity",
        "modality": {"0": modality},
        "labels": CLASSIFICATION_LABELS,
    }
    _write_set(Path(directory), header, write, (cases, test_cases, seed), progress)


def make_segmentation_case(modality: str = "CT", size: int = 64, seed: int = 0, index: int = 0) -> Phantom:
    """Return case `index` of the segmentation set in memory, image and label (size, size, size).

    CT is in HU, MRI in the arbitrary units of its own case. The labels are those of `SEGMENTATION_LABELS`; a
    lesion lies wholly inside the liver and is cut out of it, as in `truth["volumes_ml"]`.

    Raises:
        TomokitError: when `modality` is unknown, `size` is below 16, or `seed` or `index` is negative.
    """
    _check_case(modality, size, seed, index)
    rng, scanner = np.random.default_rng([seed, index]).spawn(2)
    contrast_name, contrast = _draw_contrast(scanner, modality)
    grid = _draw_grid(rng, size)
    points, to_world = _place_patient(rng, grid, size)
    canvas = _Canvas(points, 1.1 * float(grid.spacing.mean()), contrast, "air")
    warped = _deform(rng, canvas.points)
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
    image, stored_as = _scan(scanner, canvas.image, modality, grid)
    truth = _describe(grid, modality, contrast_name, stored_as)
    truth |= {"volumes_ml": volumes, "lesions": [_move(lesion, to_world) for lesion in lesions]}
    return Phantom(image, canvas.label, grid.affine, truth)


def make_classification_case(modality: str = "CT", size: int = 32, seed: int = 0, index: int = 0) -> Phantom:
    """Return case `index` of the classification set in memory, image and label (size, size, size).

    The label is 1 in the lesion, to check where a classifier looks; `truth["class"]` is 0 (compact) or 1
    (elongated). Units are those of `make_segmentation_case`.

    Raises:
        TomokitError: when `modality` is unknown, `size` is below 16, or `seed` or `index` is negative.
    """
    _check_case(modality, size, seed, index)
    rng, scanner = np.random.default_rng([seed, index]).spawn(2)
    # A seeded coin for each two cases keeps the classes balanced, whatever the number of cases.
    elongated = int(np.random.default_rng([seed, index // 2, 1]).integers(2)) ^ (index % 2)
    contrast_name, contrast = _draw_contrast(scanner, modality)
    grid = _draw_grid(rng, size)
    points, to_world = _place_patient(rng, grid, size)
    canvas = _Canvas(points, 1.1 * float(grid.spacing.mean()), contrast, "muscle")
    lesion = _paint_organ(rng, canvas, bool(elongated))
    image, stored_as = _scan(scanner, canvas.image, modality, grid)
    truth = _describe(grid, modality, contrast_name, stored_as)
    truth |= {"class": elongated, "volumes_ml": {"lesion": lesion["volume_ml"]}}
    truth |= {"lesions": [_move(lesion, to_world)]}
    return Phantom(image, canvas.label, grid.affine, truth)


# Arguments and files


def _check_case(modality: str, size: int, seed: int, index: int) -> None:
    if modality not in MODALITIES:
        raise TomokitError(f"unknown modality {modality!r}; choose one of {', '.join(MODALITIES)}")
    if size < MINIMUM_SIZE:
        raise TomokitError(f"size must be at least {MINIMUM_SIZE} voxels, got {size}")
    if seed < 0 or index < 0:
        raise TomokitError(f"seed and index must not be negative, got seed {seed} and index {index}")


def _check_arguments(modality: str, cases: int, test_cases: int, size: int, seed: int) -> None:
    _check_case(modality, size, seed, 0)
    if test_cases < 1:
        raise TomokitError(f"test_cases must be at least 1, got {test_cases}")
    if cases < test_cases + 2:
        raise TomokitError(
            "cases counts all cases and must exceed test_cases by at least 2, one to train and one to validate "
            f"on; got cases {cases} and test_cases {test_cases}"
        )


def _write_set(
    directory: Path,
    header: dict[str, Any],
    write: Callable[[int, str], dict[str, Any]],
    counts: tuple[int, int, int],
    progress: bool,
) -> None:
    """Write the cases, splits.json and, last, dataset.json: an interrupted set is never taken for whole."""
    cases, test_cases, seed = counts
    if (directory / "dataset.json").exists():
        raise TomokitError(f"{directory} holds a data set already; delete it or choose another folder")
    numbers: Iterable[int] = range(cases)
    if progress:
        numbers = track(numbers, description=f"Making {header['name']}", total=cases)
    training_cases = cases - test_cases
    entries = [write(index, "Tr" if index < training_cases else "Ts") for index in numbers]
    training, test = entries[:training_cases], entries[training_cases:]
    write_split(directory / "splits.json", _split(training, test, seed), [e | {"case": _name(e)} for e in entries])
    sizes = {"tensorImageSize": "3D", "numTraining": len(training), "numTest": len(test)}
    write_json(directory / "dataset.json", header | sizes | {"training": training, "test": test})


def _split(training: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]], seed: int) -> Split:
    """Return one fold; about 1/8 of the training cases, of each class where there are any, validate."""
    rng = np.random.default_rng(seed)
    groups: dict[Any, list[str]] = {}
    for entry in training:
        groups.setdefault(entry["label"] if isinstance(entry["label"], int) else None, []).append(_name(entry))
    validation: set[str] = set()
    for _, names in sorted(groups.items(), key=lambda item: str(item[0])):
        if len(names) > 1:  # the only case of its class is needed for training
            chosen = rng.permutation(len(names))[: max(1, round(len(names) / 8))]
            validation.update(names[position] for position in chosen)
    fold = {
        "training": [_name(entry) for entry in training if _name(entry) not in validation],
        "validation": sorted(validation),
        "test": [_name(entry) for entry in test],
    }
    method = "one case per patient; the last cases test; 1/8 of the others (of each class) drawn to validate"
    return Split(method, seed, "class" if None not in groups else None, [fold])


def _name(entry: dict[str, Any]) -> str:
    return Path(entry["image"]).name.removesuffix(".nii.gz")


def _save(path: Path, volume: NDArray[Any], affine: NDArray[np.float64]) -> None:
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    with replacing(path) as temporary:
        nib.save(image, temporary)


def _describe(grid: _Grid, modality: str, contrast: str, stored_as: str) -> dict[str, Any]:
    return {
        "modality": modality,
        "contrast": contrast,
        "spacing_mm": grid.spacing.tolist(),
        "orientation": grid.orientation,
        "oblique_degrees": grid.oblique_degrees,
        "stored_as": stored_as,
    }


# The scanner: grid, contrast, noise


def _draw_grid(rng: Generator, size: int) -> _Grid:
    """Draw spacing, axis order, obliqueness and origin; `world` is told from the grid's centre."""
    orientation = str(rng.choice(ORIENTATIONS))
    in_plane, slices = rng.uniform(2.3, 2.7), rng.uniform(2.5, 3.5)
    spacing = np.array([slices if code in "SI" else in_plane for code in orientation])
    directions = np.zeros((3, 3))
    for axis, code in enumerate(orientation):
        world_axis = next(number for number, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        directions[world_axis, axis] = 1 if code in "RAS" else -1
    degrees = float(rng.uniform(2, 8)) if rng.random() < 0.4 else 0.0
    linear = _rotation(rng.normal(size=3), degrees) @ directions * spacing
    isocentre = rng.uniform([-20, -20, -300], [20, 20, 300])
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = isocentre - linear @ np.full(3, (size - 1) / 2)
    offsets = np.arange(size) - (size - 1) / 2
    i, j, k = (offsets.reshape(shape) for shape in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)))
    world = np.stack([row[0] * i + row[1] * j + row[2] * k for row in linear]).astype(np.float32)
    return _Grid(world, affine, spacing, orientation, degrees)


def _rotation(axis: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """Return the (3, 3) rotation about `axis` by Rodrigues' formula."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _place_patient(rng: Generator, grid: _Grid, size: int) -> tuple[Array, Move]:
    """Return the voxels' places in the patient's own frame (3, X, Y, Z) in mm, and the way back to world."""
    turn = _rotation(rng.normal(size=3), float(rng.uniform(0, 5)))
    shift = rng.uniform(-0.025, 0.025, 3) * size * NOMINAL_SPACING_MM
    points = np.einsum(
        "ji,jxyz->ixyz", turn.astype(np.float32), grid.world - shift.astype(np.float32)[:, None, None, None]
    )
    middle = grid.affine[:3, :3] @ np.full(3, (size - 1) / 2) + grid.affine[:3, 3]
    return points, lambda place: turn @ place + shift + middle


def _deform(rng: Generator, points: Array) -> Array:
    """Bend the (unit) coordinates by a few long waves and scale the patient by some percent."""
    bent = points * rng.uniform(0.95, 1.04, 3).astype(np.float32).reshape(3, 1, 1, 1)
    for _ in range(3):
        wave = rng.normal(size=3) * 2.6
        phase = np.tensordot(wave.astype(np.float32), points, 1) + rng.uniform(0, 2 * np.pi)
        bent += rng.normal(size=3).astype(np.float32).reshape(3, 1, 1, 1) * 0.016 * np.sin(phase)
    return bent


def _draw_contrast(rng: Generator, modality: str) -> tuple[str, Contrast]:
    """Return the contrast's name and each tissue's own intensity: HU in CT, relative signal in MRI."""
    if modality == "CT":
        values = rng.normal(CT_HU, CT_SPREAD_HU)
        return "portal venous", dict(zip(TISSUES, values.tolist(), strict=True))
    name = str(rng.choice(list(MR_SIGNAL)))
    values = np.asarray(MR_SIGNAL[name]) * rng.uniform(0.93, 1.07, len(TISSUES))
    return name, dict(zip(TISSUES, values.tolist(), strict=True))


def _scan(rng: Generator, image: Array, modality: str, grid: _Grid) -> tuple[Array, str]:
    """Add shading and noise as the scanner does, and return the image with the dtype it is stored as."""
    extent = np.float32(np.abs(grid.world).max())
    shading = _smooth_field(rng, grid.world / extent)
    if modality == "CT":
        noise = _correlated_noise(rng, image.shape) * rng.uniform(10, 16)
        return np.clip(np.rint(image + 5 * shading + noise), -1024, 3071), "int16"
    level = rng.uniform(0.03, 0.05) * float(image.max())
    signal = image * np.exp(0.3 * shading)
    noisy = np.hypot(signal + level * _correlated_noise(rng, image.shape), level * _correlated_noise(rng, image.shape))
    scaled = noisy * float(np.exp(rng.uniform(np.log(200), np.log(4000))) / noisy.max())
    if rng.random() < 0.5:
        return np.rint(scaled), "int16"
    return scaled, "float32"


def _correlated_noise(rng: Generator, shape: tuple[int, ...]) -> Array:
    """Return noise of standard deviation 1 whose neighbouring voxels are alike, as after reconstruction."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), 0.55, mode="wrap")
    return noise / noise.std()


def _smooth_field(rng: Generator, points: Array) -> Array:
    """Return a field of slow waves within about -1 and 1."""
    field = np.zeros(points.shape[1:], np.float32)
    for _ in range(3):
        wave = rng.uniform(-2.2, 2.2, 3).astype(np.float32)
        field += np.sin(np.tensordot(wave, points, 1) + rng.uniform(0, 2 * np.pi))
    return field / 2


# Shapes: signed distances, negative inside, in the unit of the coordinates


def _ellipsoid(points: Array, centre: ArrayLike, radii: ArrayLike) -> Array:
    """Return the distance to an ellipsoid, exact to first order at its surface."""
    offset = points - np.asarray(centre, np.float32).reshape(3, 1, 1, 1)
    scale = 1 / np.asarray(radii, np.float32)
    tiny = np.float32(1e-8)  # keeps the very centre inside, where both sums vanish
    square = np.einsum("ixyz,ixyz,i->xyz", offset, offset, scale**2) + tiny
    slope = np.einsum("ixyz,ixyz,i->xyz", offset, offset, scale**4) + tiny * scale.max() ** 2
    return (square - np.sqrt(square)) / np.sqrt(slope)


def _pillar(points: Array, centre: Sequence[float], radii: Sequence[float], power: float = 2.0) -> Array:
    """Return the distance to an upright column of (super)elliptic section, close to exact at its surface."""
    x = np.abs(points[0] - centre[0]) / radii[0]
    y = np.abs(points[1] - centre[1]) / radii[1]
    level = np.hypot(x, y) if power == 2 else (x**power + y**power) ** (1 / power)
    return (level - 1) * min(radii)


def _join(first: Array, second: Array, blend: float = 0.08) -> Array:
    """Return the union of two shapes with a rounded seam."""
    overlap = np.maximum(blend - np.abs(first - second), 0) / blend
    return np.minimum(first, second) - overlap**2 * blend / 4


# The patient


def _paint_trunk(rng: Generator, canvas: _Canvas, points: Array) -> Array:
    """Paint skin fat, muscle wall, skeleton, lungs and vessels; return the distance to the cavity."""
    width, depth = rng.uniform(0.76, 0.82), rng.uniform(0.66, 0.72)
    rim, wall = rng.uniform(0.05, 0.08), rng.uniform(0.1, 0.12)
    canvas.paint(_pillar(points, (0, 0), (width, depth), 2.3), "fat")
    canvas.paint(_pillar(points, (0, 0), (width - rim, depth - rim), 2.3), "muscle")
    cavity = _pillar(points, (0, 0.02), (width - rim - wall, depth - rim - wall), 2.2)
    canvas.paint(cavity, "fat")
    _paint_skeleton(rng, canvas, points, cavity + wall / 2)
    dome = rng.uniform(0.72, 0.78) - points[2] - 0.45 * (points[0] ** 2 + points[1] ** 2)
    canvas.paint(np.maximum(dome, cavity + 0.03), "lung")
    for x, y, radius in ((-0.07, -0.24, 0.065), (0.1, -0.2, 0.06)):
        canvas.paint(_pillar(points, (x, y), (radius, radius)), "vessel")
    return cavity


def _paint_skeleton(rng: Generator, canvas: _Canvas, points: Array, from_wall: Array) -> None:
    """Paint ribs along the middle of the muscle wall, vertebrae with discs, and the muscles beside them."""
    angle = np.abs(np.arctan2(points[0], points[1]))  # 0 at the front, so that the ribs fall forwards
    turn = np.cos((points[2] + 0.13 * angle + rng.uniform(0, 1)) * (2 * np.pi / 0.32))
    ribs = np.maximum(np.abs(from_wall) - 0.025, (0.55 - turn) * 0.06)
    canvas.paint(np.maximum(ribs, -0.05 - points[2]), "bone")
    for side in (-1, 1):
        canvas.paint(_pillar(points, (side * 0.2, -0.42), (0.14, 0.16)), "muscle")
    vertebra = _pillar(points, (0, -0.4), (0.15, 0.13), 2.6)
    disc = (0.82 - np.cos((points[2] + rng.uniform(0, 1)) * (2 * np.pi / 0.36))) * 0.06
    canvas.paint(np.maximum(vertebra, -disc), "marrow")
    canvas.paint(np.maximum(vertebra, disc), "muscle")
    canvas.paint(_pillar(points, (0, -0.57), (0.05, 0.04)), "fluid")
    canvas.paint(_pillar(points, (0, -0.64), (0.03, 0.05)), "bone")


def _paint_look_alikes(rng: Generator, canvas: _Canvas, points: Array, cavity: Array) -> None:
    """Paint what looks like a labelled structure: kidneys, and a stomach and bowel filled with fluid."""
    _paint_bowel(rng, canvas, points, cavity)
    stomach = np.array([-0.3, 0.26, 0.32]) + rng.uniform(-0.03, 0.03, 3)
    _paint_hollow(canvas, np.maximum(_ellipsoid(points, stomach, (0.22, 0.18, 0.26)), cavity + 0.03))
    for side in (-1, 1):
        for height in (-0.3, -0.72):
            centre = np.array([side * 0.38, 0.12, height]) + rng.uniform(-0.06, 0.06, 3)
            loop = _ellipsoid(points, centre, rng.uniform(0.15, 0.21, 3))
            _paint_hollow(canvas, np.maximum(loop, cavity + 0.03))
    for side, alike in ((-1, "spleen"), (1, "liver")):
        centre = np.array([side * 0.4, -0.22, -0.3]) + rng.uniform(-0.03, 0.03, 3)
        canvas.paint(_ellipsoid(points, centre, (0.17, 0.18, 0.31)), "fat")
        canvas.paint(_ellipsoid(points, centre, (0.13, 0.15, 0.27)), alike)
        pelvis = _ellipsoid(points, centre - np.array([side * 0.08, -0.02, 0]), (0.06, 0.05, 0.11))
        canvas.paint(pelvis, "fluid")


def _paint_bowel(rng: Generator, canvas: _Canvas, points: Array, cavity: Array) -> None:
    """Paint winding loops in the front of the lower abdomen: the thick parts of a gyroid surface."""
    wave = rng.uniform(9.5, 11.5)
    x, y, z = (wave * points[axis] + rng.uniform(0, 2 * np.pi) for axis in range(3))
    gyroid = np.sin(x) * np.cos(y) + np.sin(y) * np.cos(z) + np.sin(z) * np.cos(x)
    loops = (0.35 - gyroid) / (1.3 * wave)
    for limit in (points[2] - rng.uniform(-0.02, 0.06), -0.1 - points[1], cavity + 0.05):
        loops = np.maximum(loops, limit)
    _paint_hollow(canvas, loops)


def _paint_hollow(canvas: _Canvas, inside: Array) -> None:
    """Paint a thin muscular wall around fluid."""
    canvas.paint(inside, "muscle")
    canvas.paint(inside + 0.035, "fluid")


def _paint_liver_and_spleen(rng: Generator, canvas: _Canvas, points: Array, cavity: Array) -> Array:
    """Paint both organs, with a film of fat around them; return the distance to the liver."""
    jitter = rng.uniform(-0.03, 0.03, 3)
    size = rng.uniform(0.93, 1.07)
    film = cavity + 0.025
    right = _ellipsoid(points, np.array([0.3, 0.03, 0.22]) + jitter, np.array([0.37, 0.42, 0.44]) * size)
    left = _ellipsoid(points, np.array([0.0, 0.25, 0.36]) + jitter, np.array([0.3, 0.2, 0.2]) * size)
    spine = _pillar(points, (0, -0.4), (0.3, 0.26))
    liver = np.maximum(np.maximum(_join(right, left), film), -spine)
    centre = np.array([-0.43, -0.16, 0.32]) + rng.uniform(-0.03, 0.03, 3)
    spleen = _ellipsoid(points, centre, np.array([0.17, 0.27, 0.3]) * rng.uniform(0.93, 1.1))
    hilum = _ellipsoid(points, centre + np.array([0.2, 0.08, 0]), (0.13, 0.16, 0.2))
    spleen = np.maximum(np.maximum(spleen, film), -hilum)
    for value, (organ, distance) in enumerate((("liver", liver), ("spleen", spleen)), start=1):
        canvas.paint(distance - 0.02, "fat")
        canvas.paint(distance, organ, value)
    return liver


def _paint_lesions(rng: Generator, canvas: _Canvas, grid: _Grid, liver: Array) -> list[dict[str, Any]]:
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
        distance = _ellipsoid(canvas.points, centre, semi_axes)
        canvas.paint(distance, "fluid", 3)
        free &= distance > canvas.edge
        lesions.append(_tell_lesion(centre * canvas.unit_mm, semi_axes * canvas.unit_mm))
    return lesions


def _move(lesion: dict[str, Any], to_world: Move) -> dict[str, Any]:
    """Return the lesion with its centre in world coordinates."""
    return lesion | {"centre_mm": to_world(lesion["centre_mm"]).tolist()}


def _tell_lesion(centre_mm: NDArray[np.float64], semi_axes_mm: NDArray[np.float64]) -> dict[str, Any]:
    volume_ml = 4 / 3 * np.pi * float(np.prod(semi_axes_mm)) / 1000
    return {"centre_mm": centre_mm, "semi_axes_mm": semi_axes_mm.tolist(), "volume_ml": volume_ml}


def _paint_organ(rng: Generator, canvas: _Canvas, elongated: bool) -> dict[str, Any]:
    """Paint an organ in fat within muscle, its vessels and cysts, and a lesion; return the lesion's truth."""
    points = _deform(rng, canvas.points)
    organ = _ellipsoid(points, rng.uniform(-0.04, 0.04, 3), rng.uniform(0.8, 0.9, 3))
    canvas.paint(organ - 0.1, "fat")
    canvas.paint(organ, "liver")
    for _ in range(3):
        turned = np.tensordot(_any_rotation(rng), points, 1)
        vessel = _pillar(turned, rng.uniform(-0.4, 0.4, 2).tolist(), (0.05, 0.05))
        canvas.paint(np.maximum(vessel, organ + 0.05), "vessel")
    for _ in range(int(rng.integers(2, 7))):
        place = rng.normal(size=3)
        place *= rng.uniform(0.55, 0.75) / np.linalg.norm(place)
        canvas.paint(_ellipsoid(points, place, np.full(3, rng.uniform(0.08, 0.14))), "fluid")
    aspect = np.array([1, 1, ELONGATION]) if elongated else np.ones(3)
    semi_axes = rng.uniform(0.23, 0.3) * aspect / np.prod(aspect) ** (1 / 3)
    centre = rng.uniform(-0.1, 0.1, 3)
    offset = canvas.points - centre.astype(np.float32).reshape(3, 1, 1, 1)
    canvas.paint(_ellipsoid(np.tensordot(_any_rotation(rng), offset, 1), (0, 0, 0), semi_axes), "fluid", 1)
    return _tell_lesion(centre * canvas.unit_mm, semi_axes * canvas.unit_mm)


def _any_rotation(rng: Generator) -> NDArray[np.float32]:
    return _rotation(rng.normal(size=3), float(rng.uniform(0, 180))).astype(np.float32)
