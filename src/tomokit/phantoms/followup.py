"""Two scans of one patient, between which a structure has changed its volume by a known share, or has not.

Both scans are made from one image by a flow: each place moves for one unit of time with a smooth velocity. Where the
structure changes, the velocity leads away from a place within it (or towards it), and its scale is solved for so that
the flow's Jacobian, integrated over the structure, is the wanted volume; half of the change is put into either scan, in
opposite directions. Where nothing changes, the velocity is the curl of a smooth potential, as fast within the structure
as that of a change, and keeps every volume. Each scan is turned and shifted a little, resampled once, and gets its own
bias field and noise. So there is nothing but the structure's volume to tell the pairs apart.

A velocity is a sum of terms `exp(-q / 2) slope r`, with `r` the place from the term's centre in mm and
`q = r' reach r`. Its divergence is known in closed form; it vanishes where `slope` is the cross product with a vector,
times `reach`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.optimize import brentq

from tomokit.datasets import Entry, find_dataset, read_description, read_sections
from tomokit.errors import TomokitError
from tomokit.files import read_json, write_json
from tomokit.geometry import check_affine
from tomokit.phantoms.scanner import BRAIN_SIGNAL, lay_grid, smooth_field
from tomokit.phantoms.sets import check_case, check_free, check_set, save, show_progress, write_set
from tomokit.phantoms.shapes import Canvas, Generator, any_rotation, deform, ellipsoid, rotation
from tomokit.splits import PARTS, Split, read_split, write_split
from tomokit.volumes import read_volume

FOLLOWUP_LABELS = {"0": "unchanged", "1": "smaller", "2": "larger"}
LARGEST_CHANGE = 0.3
SWIRLS = 3  # terms of a flow that keeps volumes
MOST_TURN, MOST_SHIFT = 2.0, 0.7  # of a scan: degrees, and voxels of the finest axis along each axis of the world
BIAS, NOISE = 0.05, 0.02  # of the bias field's logarithm, and of the range from the 1st to the 99th percentile
STORED_MAXIMUM = 4000.0
Points = NDArray[np.float64]
Scan = NDArray[np.float32]


class Flow(NamedTuple):
    """A smooth velocity, in mm per unit of time: `centres` (K, 3), `slopes` (K, 3, 3), `reach` (3, 3) in 1/mm²."""

    centres: NDArray[np.float64]
    slopes: NDArray[np.float64]
    reach: NDArray[np.float64]


class Warp(NamedTuple):
    """How a scan comes from the image: a flow, then a turn (3, 3) and a shift (3,) in mm about the grid's centre.

    `growth` is the volume of the structure in the scan over that in the image.
    """

    flow: Flow
    turn: NDArray[np.float64]
    shift: NDArray[np.float64]
    growth: float


class FollowUp(NamedTuple):
    """Two scans (X, Y, Z) of one patient on one grid, the structure before it was warped, and the grid's `affine`.

    `truth` has `class` (of `FOLLOWUP_LABELS`), `change` (volume in the second scan over that in the first, less 1) and
    `volume_ml` (of the structure before it was warped).
    """

    scans: tuple[Scan, Scan]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]
    truth: dict[str, Any]


def simulate_pair(
    image: ArrayLike,
    label: ArrayLike,
    affine: ArrayLike,
    change: float,
    rng: Generator,
    strength: float = 0.03,
) -> tuple[Scan, Scan, float]:
    """Return two scans of a patient and the change of the structure's volume from the first to the second.

    Args:
        image: (X, Y, Z), an MR image; its values may have any unit, 0 is no signal.
        label: (X, Y, Z), not 0 in the structure.
        affine: (4, 4), from voxel to world in mm.
        change: wanted, -0.3 to 0.3; 0 for a pair that keeps the volume. What comes back is the integral of the
            Jacobian, which equals it to within 1e-9.
        rng: of everything random.
        strength: above 0, up to 0.3; where nothing changes, the structure moves as far as for a change by this share.

    Raises:
        TomokitError: when image and label are not one volume each on one grid, the label is empty, or `change` or
            `strength` is out of its range.
    """
    volume, structure = _check_volumes(image, label)
    _check_change(change, strength)
    matrix = check_affine(affine)
    warps = draw_warps(structure, matrix, change, rng, strength)
    low, high = np.percentile(volume, (1, 99))
    first, second = (_scan(warp_volume(volume, matrix, warp), matrix, float(high - low), rng) for warp in warps)
    return first, second, round(warps[1].growth / warps[0].growth - 1, 9) + 0.0  # 0, not -0


def make_followup_set(
    directory: str | Path,
    *,
    cases: int = 240,
    test_cases: int = 80,
    size: int = 40,
    seed: int = 0,
    change: tuple[float, float] = (0.03, 0.2),
    progress: bool = True,
) -> None:
    """Write pairs of scans of phantoms, size³ voxels of 1 mm, into `directory`.

    An entry's `image` is the list of both scans, which lie on one grid; `change` is the true change of the structure's
    volume from the first to the second (-0.05 is a loss of 5 %); `label` is 0 where nothing changed, 1 where the
    structure became smaller, 2 where it became larger. Of each four consecutive cases two are unchanged and one is of
    each other class.

    Args:
        directory: of the set.
        cases: all cases.
        test_cases: the last ones, to test on.
        size: voxels along each axis.
        seed: of everything random.
        change: least and greatest size of a change, above 0 and up to 0.3.
        progress: whether a bar is shown.

    Raises:
        TomokitError: when an argument is impossible, or `directory` holds a data set already.
    """
    check_set(cases, test_cases, size, seed)
    _check_range(*change)

    def write(index: int, part: str) -> dict[str, Any]:
        case = make_followup_case(size, seed, index, change)
        paths = _save_pair(Path(directory), f"images{part}/case_{index:03d}", case.scans, case.affine)
        return _tell_pair(paths, case.truth["class"], case.truth["change"], f"patient_{index:03d}")

    header = {"name": "phantom-followup", "description": "Synthetic pairs of scans with a known change of volume"}
    write_set(Path(directory), header | _header("MRI"), write, (cases, test_cases, seed), progress)


def make_followup_case(
    size: int = 40, seed: int = 0, index: int = 0, change: tuple[float, float] = (0.03, 0.2)
) -> FollowUp:
    """Return pair `index` of the set in memory, two scans and a label of (size, size, size).

    Raises:
        TomokitError: when `size` is below 16, `seed` or `index` is negative, or `change` is no range above 0
            and up to 0.3.
    """
    check_case(size, seed, index)
    _check_range(*change)
    rng, pair = np.random.default_rng([seed, index, 7]).spawn(2)
    canvas, affine = _draw_head(rng, size)
    kind, wanted, strength = _draw_change(seed, index, change)
    first, second, true_change = simulate_pair(canvas.image, canvas.label, affine, wanted, pair, strength)
    volume_ml = float(canvas.label.sum()) * abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    truth = {"class": kind, "change": true_change, "volume_ml": volume_ml}
    return FollowUp((first, second), canvas.label, affine, truth)


def simulate_followup_set(
    directory: str | Path,
    source: str | Path,
    *,
    pairs: int = 1,
    change: tuple[float, float] = (0.03, 0.03),
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Write pairs of scans simulated from a labelled data set, such as hippocampus, into `directory`.

    The structure is all that a label marks; of several modalities the first is used. Entries are those of
    `make_followup_set`, with the patients of the source; its split is kept, so that a patient's pairs stay on one side.

    Args:
        directory: of the new set.
        source: a data set's folder or name.
        pairs: of each case.
        change: least and greatest size of a change, above 0 and up to 0.3.
        seed: of everything random.
        progress: whether a bar is shown.

    Raises:
        TomokitError: when an argument is impossible, the source has classes for labels or an empty label, or
            `directory` holds a data set already.
    """
    _check_range(*change)
    if pairs < 1:
        raise TomokitError(f"pairs must be at least 1 for each case, got {pairs}")
    target, folder = Path(directory), find_dataset(source)
    check_free(target)
    sections = read_sections(folder)
    jobs = [(part, entry, pair) for part in PARTS for entry in sections[part] for pair in range(pairs)]
    name = f"{folder.name}-followup"
    written: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    pairs_of: dict[str, list[str]] = {}
    for index, (part, entry, pair) in enumerate(show_progress(jobs, name, progress)):
        own = f"{entry['case']}_{pair}"
        written[part].append(_simulate_entry(target, entry, own, _draw_change(seed, index, change), (seed, index)))
        pairs_of.setdefault(str(entry["case"]), []).append(own)
    _keep_split(folder, target, pairs_of, [entry for part in PARTS for entry in written[part]])
    header = {"name": name, "description": f"Pairs simulated from {folder.name}, with a known change of volume"}
    modality = read_description(folder).get("modality", ["MRI"])[0]
    counts = {"numTraining": len(written["training"]), "numTest": len(written["test"])}
    sizes = {"tensorImageSize": "3D"} | counts
    write_json(target / "dataset.json", header | _header(modality) | sizes | {k: v for k, v in written.items() if v})


# Warps


def draw_warps(
    structure: NDArray[np.bool_], affine: NDArray[np.float64], change: float, rng: Generator, strength: float
) -> tuple[Warp, Warp]:
    """Return the warps of both scans; arguments are those of `simulate_pair`."""
    inside = _places(structure.shape, affine)[:, structure.ravel()]
    # the variance of a place within a voxel keeps a structure of one slice from being flat
    spread = np.cov(inside, bias=True) + affine[:3, :3] @ affine[:3, :3].T / 12
    middle = inside.mean(axis=1)
    centre = middle + np.linalg.cholesky(spread) @ rng.normal(0, 0.3, 3)
    reach = np.asarray(np.linalg.inv(spread), np.float64) / rng.uniform(1.8, 2.4) ** 2
    ratio = math.sqrt(1 + (change or strength))
    second = _solve(centre, reach, inside, ratio)
    if change:
        first = _solve(centre, reach, inside, 1 / ratio)
    else:
        second = _draw_swirl(rng, middle, spread, inside, speed(second, inside))
        first = _scaled(second, -1.0)
    return _draw_warp(first, inside, affine, rng), _draw_warp(second, inside, affine, rng)


def warp_volume(volume: NDArray[Any], affine: NDArray[np.float64], warp: Warp) -> Scan:
    """Return a volume (X, Y, Z) warped, resampled once by cubic splines; mirrored beyond its edges."""
    linear = affine[:3, :3]
    places = warp.turn @ _places(volume.shape, affine) + warp.shift[:, None]
    sources = np.linalg.solve(linear, flow_points(_scaled(warp.flow, -1.0), places))
    sources += _middle(volume.shape)[:, None]
    coefficients = ndimage.spline_filter(volume.astype(np.float64), order=3, mode="mirror")
    warped = ndimage.map_coordinates(coefficients, sources, np.float32, order=3, mode="mirror", prefilter=False)
    return warped.reshape(volume.shape)


def flow_points(flow: Flow, points: Points) -> Points:
    """Return where points (3, N) in mm come to in one unit of time, by the midpoint rule.

    A change of some percent moves points by a hundredth of the flow's length, so that one step errs by less than 1e-5
    of a voxel.
    """
    return points + velocity(flow, points + velocity(flow, points) / 2)


def velocity(flow: Flow, points: Points) -> Points:
    """Return the velocity (3, N) at points (3, N) in mm."""
    total = np.zeros_like(points)
    for centre, slope in zip(flow.centres, flow.slopes, strict=True):
        away = points - centre[:, None]
        total += np.exp(-0.5 * np.einsum("in,in->n", away, flow.reach @ away)) * (slope @ away)
    return total


def divergence(flow: Flow, points: Points) -> NDArray[np.float64]:
    """Return the divergence of the velocity (N,) at points (3, N) in mm."""
    total = np.zeros(points.shape[1])
    for centre, slope in zip(flow.centres, flow.slopes, strict=True):
        away = points - centre[:, None]
        pulled = flow.reach @ away
        weight = np.exp(-0.5 * np.einsum("in,in->n", away, pulled))
        total += weight * (np.trace(slope) - np.einsum("in,in->n", pulled, slope @ away))
    return total


def growth_of(flow: Flow, inside: Points) -> float:
    """Return the volume of a structure after the flow over that before: the mean Jacobian over its voxels.

    The Jacobian of a flow is the exponential of the divergence along a point's path; here that of its midpoint.
    """
    return float(np.exp(divergence(flow, inside + velocity(flow, inside) / 2)).mean())


def speed(flow: Flow, inside: Points) -> float:
    """Return the root mean square of the velocity over a structure."""
    return float(np.sqrt((velocity(flow, inside) ** 2).sum(axis=0).mean()))


def _solve(centre: NDArray[np.float64], reach: NDArray[np.float64], inside: Points, factor: float) -> Flow:
    """Return the flow away from `centre`, or towards it, that makes the structure's volume `factor` times as large."""
    unit = Flow(centre[None], np.eye(3)[None], reach)
    guess = math.log(factor) / float(divergence(unit, inside).mean())
    low, high = sorted((0.0, 3 * guess))
    return _scaled(unit, brentq(lambda scale: math.log(growth_of(_scaled(unit, scale), inside) / factor), low, high))


def _draw_swirl(
    rng: Generator, middle: NDArray[np.float64], spread: NDArray[np.float64], inside: Points, fast: float
) -> Flow:
    """Return a flow without divergence whose speed over the structure is `fast`: the curl of a few smooth bumps."""
    centres = middle + rng.normal(0, 0.7, (SWIRLS, 3)) @ np.linalg.cholesky(spread).T
    reach = np.asarray(np.linalg.inv(spread), np.float64) / 1.2**2
    slopes = np.stack([np.cross(np.eye(3), axis) @ reach for axis in rng.normal(size=(SWIRLS, 3))])
    flow = Flow(centres, slopes, reach)
    return _scaled(flow, fast / speed(flow, inside))


def _draw_warp(flow: Flow, inside: Points, affine: NDArray[np.float64], rng: Generator) -> Warp:
    turn = rotation(rng.normal(size=3), float(rng.uniform(0, MOST_TURN)))
    shift = rng.uniform(-MOST_SHIFT, MOST_SHIFT, 3) * float(voxel_sizes(affine).min())
    return Warp(flow, turn, shift, growth_of(flow, inside))


def _scaled(flow: Flow, scale: float) -> Flow:
    return flow._replace(slopes=flow.slopes * scale)


def _middle(shape: Sequence[int]) -> NDArray[np.float64]:
    return (np.array(shape) - 1) / 2


def _places(shape: Sequence[int], affine: NDArray[np.float64]) -> Points:
    """Return the voxels' places (3, N) in mm from the grid's centre."""
    offsets = np.indices(shape, np.float64).reshape(3, -1) - _middle(shape)[:, None]
    return affine[:3, :3] @ offsets


def _scan(warped: Scan, affine: NDArray[np.float64], spread: float, rng: Generator) -> Scan:
    """Return a warped image with a bias field and noise of its own."""
    places = _places(warped.shape, affine)
    field = smooth_field(rng, (places / np.abs(places).max()).reshape(3, *warped.shape))
    noise = spread * NOISE * rng.uniform(0.8, 1.2) * rng.standard_normal(warped.shape)
    return (warped * np.exp(BIAS * field) + noise).astype(np.float32)


# Phantoms


def _draw_change(seed: int, index: int, change: tuple[float, float]) -> tuple[int, float, float]:
    """Return the class of a pair, its change (0 where unchanged), and the size of a change as it would be drawn."""
    signs = np.random.default_rng([seed, index // 4, 1]).permutation([0, 0, -1, 1])
    sign = int(signs[index % 4])
    strength = float(np.random.default_rng([seed, index, 3]).uniform(*change))
    return {0: 0, -1: 1, 1: 2}[sign], sign * strength, strength


def _draw_head(rng: Generator, size: int) -> tuple[Canvas, NDArray[np.float64]]:
    """Paint a grey structure (label 1) in white matter, and about it, up to the edges, fluid and more of its grey."""
    grid = lay_grid((size,) * 3, "RAS", (1.0, 1.0), rng.uniform([-20, -20, 0], [20, 20, 300]))
    signal = {tissue: value * float(rng.uniform(0.97, 1.03)) for tissue, value in BRAIN_SIGNAL["T1"].items()}
    canvas = Canvas(grid.world, 1.2, signal, "white", size / 2)
    points = np.tensordot(any_rotation(rng), deform(rng, canvas.points), 1)
    for tissue, count in (("fluid", 6), ("grey", 12)):
        for _ in range(count):
            place = rng.normal(size=3)
            place *= rng.uniform(0.85, 1.15) / np.linalg.norm(place)
            canvas.paint(ellipsoid(points, place, rng.uniform(0.25, 0.45, 3)), tissue)
    structure = ellipsoid(points, rng.uniform(-0.05, 0.05, 3), np.array([0.32, 0.6, 0.32]) * rng.uniform(0.85, 1.15, 3))
    canvas.paint(structure - 0.1, "white")
    canvas.paint(structure, "grey", 1)
    return canvas, grid.affine


# Files


def _header(modality: str) -> dict[str, Any]:
    return {"modality": {"0": modality, "1": modality}, "labels": FOLLOWUP_LABELS}


def _tell_pair(paths: list[str], kind: int, change: float, patient: str) -> dict[str, Any]:
    return {"image": paths, "label": kind, "change": change, "patient": patient}


def _save_pair(directory: Path, stem: str, scans: tuple[Scan, Scan], affine: NDArray[np.float64]) -> list[str]:
    """Write both scans as integers on one scale and return their paths within the set."""
    scale = STORED_MAXIMUM / max(float(np.abs(scan).max()) for scan in scans)
    paths = [f"{stem}_{number:04d}.nii.gz" for number in range(2)]
    for path, scan in zip(paths, scans, strict=True):
        save(directory / path, np.rint(scan * scale).astype(np.int16), affine)
    return paths


def _simulate_entry(
    target: Path, entry: Entry, name: str, drawn: tuple[int, float, float], key: tuple[int, int]
) -> dict[str, Any]:
    """Write one pair of a case of the source, and return its entry."""
    if not isinstance(entry["label"], str):
        raise TomokitError(
            f"{entry['case']} has the label {entry['label']!r}; pairs are simulated from label maps: give each case one"
        )
    image = entry["image"] if isinstance(entry["image"], str) else entry["image"][0]
    volume, label = read_volume(image), read_volume(entry["label"])
    kind, wanted, strength = drawn
    rng = np.random.default_rng([*key, 7])
    try:
        first, second, change = simulate_pair(volume.array, label.array, volume.affine, wanted, rng, strength)
    except TomokitError as error:
        raise TomokitError(f"{entry['case']}: {error}") from error
    paths = _save_pair(target, f"imagesTr/{name}", (first, second), volume.affine)
    return _tell_pair(paths, kind, change, str(entry["patient"]))


def _keep_split(
    folder: Path, target: Path, pairs_of: Mapping[str, list[str]], entries: Sequence[dict[str, Any]]
) -> None:
    """Write the source's split with each case's pairs in its place; a source without one leaves none."""
    path = folder / "splits.json"
    if not path.is_file():
        return
    read_split(path, 0)  # a malformed file is told of
    content = read_json(path)

    def follow(names: Sequence[str]) -> list[str]:
        return [pair for name in names for pair in pairs_of.get(name, [])]

    folds = [read_split(path, number) for number in range(len(content["folds"]))]
    split = Split(
        f"{content.get('method', 'given')}; a case's pairs stand where it stood",
        content.get("seed", 0),
        None,
        [{part: follow(fold[part]) for part in PARTS} for fold in folds],
        follow(content.get("robustness", [])),
        follow(content.get("left_out", [])),
    )
    names = [name for own in pairs_of.values() for name in own]
    write_split(target / "splits.json", split, [e | {"case": n} for e, n in zip(entries, names, strict=True)])


def _check_volumes(image: ArrayLike, label: ArrayLike) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the image and where its label is not 0."""
    volume, marked = np.asarray(image), np.asarray(label)
    if volume.ndim != 3 or volume.shape != marked.shape:
        raise TomokitError(
            f"image and label must be one volume (X, Y, Z) each, of one shape; got {volume.shape} and {marked.shape}"
        )
    structure = marked != 0
    if not structure.any():
        raise TomokitError("the label marks no voxel: there is no structure to change")
    return volume, structure


def _check_change(change: float, strength: float) -> None:
    """Raise when a change, or what stands for it in an unchanged pair, is impossible."""
    if not abs(change) <= LARGEST_CHANGE or not 0 < strength <= LARGEST_CHANGE:
        raise TomokitError(
            f"a change must be from -{LARGEST_CHANGE} to {LARGEST_CHANGE} and a strength above 0 and up to "
            f"{LARGEST_CHANGE}, got change {change} and strength {strength}"
        )


def _check_range(least: float, greatest: float) -> None:
    """Raise when the range of the sizes of changes is impossible."""
    if not 0 < least <= greatest <= LARGEST_CHANGE:
        raise TomokitError(
            f"change must be the least and the greatest size of a change, above 0 and up to {LARGEST_CHANGE}; got "
            f"{least} and {greatest}"
        )
