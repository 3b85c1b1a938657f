"""What a data set is like, in numbers: sizes, spacings, intensities, structures of the cases a fold learns from.

Axes are x, y, z of the RAS order: every volume is counted as it lies after orientation.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from scipy import ndimage

from tomokit.datasets import Entry, find_dataset, read_description, select_cases
from tomokit.errors import TomokitError, raise_problems
from tomokit.geometry import voxel_volume_ml
from tomokit.labels import check_label_map, foreground, lateral_names
from tomokit.volumes import read_volume

READERS = 2  # threads, each of which holds one volume
SHOWN_VALUES = 5  # of a label map, in a message
SAMPLES = 5000  # voxels of each case and channel from which intensities are told
ZERO_SHARE = 0.25  # of the voxels: more exact zeros than this are a background that was cut away


@dataclass(frozen=True)
class Spread:
    """How a length differs between cases, one number per axis."""

    min: tuple[float, ...]
    p10: tuple[float, ...]
    median: tuple[float, ...]
    p90: tuple[float, ...]
    max: tuple[float, ...]


@dataclass(frozen=True)
class Intensity:
    """Intensities of one channel; each case counts alike, whatever its size."""

    mean: float
    sd: float
    p0_5: float
    p99_5: float


@dataclass(frozen=True)
class Structure:
    """One structure of the label map over the cases that have it.

    Attributes:
        value: its voxel value.
        name: its name.
        cases: how many cases have it.
        median_ml: its volume in a case.
        smallest_ml: the least volume of a case that has it.
        share: its median share of a volume's voxels.
        pieces: its median number of connected pieces.
        piece_ml: the median volume of one piece.
        offset: where its centre lies along each axis, -0.5 (left, back, feet) to 0.5, the median.
        upper_share: the share of cases in which that centre lies in the upper half (right, front, head).
    """

    value: int
    name: str
    cases: int
    median_ml: float
    smallest_ml: float
    share: float
    pieces: float
    piece_ml: float
    offset: tuple[float, ...]
    upper_share: tuple[float, ...]


@dataclass(frozen=True)
class Fingerprint:
    """What the rules of the plan need to know of a data set; `fingerprint.json` holds it.

    Attributes:
        dataset: the name or folder, as a config takes it.
        task: "segmentation" or "classification".
        modality: the kind of each channel.
        labels: the label map, or the classes.
        cases: how many cases each part of the fold has; those of the test are counted, never read.
        shape: voxels per axis as stored.
        spacing: mm per axis as stored.
        extent_mm: shape times spacing.
        inside: of each channel, intensities within the structures; of all voxels for a classification.
        everywhere: of each channel, intensities of all voxels.
        zero_share: of each channel, the share of voxels that are exactly 0.
        structures: the structures, none for a classification.
        lateral: names of structures or classes that tell left from right.
        partly_labelled: cases in which not all structures were annotated.
        class_counts: cases of each class, for a classification.
        read_seconds: time to read one case, all its files.
        per_case: shape, spacing, volumes and pieces of each case.
        timing: what was measured of the planned training on this machine.
    """

    dataset: str
    task: str
    modality: tuple[str, ...]
    labels: Mapping[str, str]
    cases: Mapping[str, int]
    shape: Spread
    spacing: Spread
    extent_mm: Spread
    inside: tuple[Intensity, ...]
    everywhere: tuple[Intensity, ...]
    zero_share: tuple[float, ...]
    structures: tuple[Structure, ...] = ()
    lateral: tuple[str, ...] = ()
    partly_labelled: int = 0
    class_counts: Mapping[str, int] = field(default_factory=dict)
    read_seconds: float = 0.0
    per_case: tuple[Mapping[str, Any], ...] = ()
    timing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def anisotropy(self) -> float:
        """Return the longest over the shortest edge of the median voxel."""
        return max(self.spacing.median) / min(self.spacing.median)


class _Facts(NamedTuple):
    """What one case tells; `unknown` are voxel values that no name fits; samples are one array per channel."""

    case: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    structures: dict[int, dict[str, Any]]
    unknown: list[float]
    inside: list[NDArray[np.float32]]
    everywhere: list[NDArray[np.float32]]
    zero_share: list[float]
    seconds: float


def read_fingerprint(
    dataset_dir: str | Path,
    split: str = "splits.json",
    fold: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Fingerprint:
    """Return the fingerprint of the training and validation cases of a fold; no test case is opened.

    Each file is read once, by two threads that hold a volume each. `progress` is told how many cases are done,
    and of how many.

    Raises:
        TomokitError: when the data set, its split or its labels can't be used, a file can't be read, or no training
            case holds a structure or a class.
    """
    folder = find_dataset(dataset_dir)
    content = read_description(folder)
    parts = select_cases(dataset_dir, split, fold, seed)
    entries = [*parts["training"], *parts["validation"]]
    task = _task_of(entries, content, folder)
    labels = check_label_map(content["labels"])
    names = foreground(labels) if task == "segmentation" else {}

    def read(numbered: tuple[int, Entry]) -> _Facts:
        return _read_case(numbered[1], names, np.random.default_rng([seed, numbered[0]]))

    facts: list[_Facts] = []
    with ThreadPoolExecutor(READERS) as pool:
        for found in pool.map(read, enumerate(entries)):
            facts.append(found)
            progress(len(facts), len(entries))
    _check_channels(facts, content["modality"], folder)
    held = [set(fact.structures) if names else {entry["label"]} for fact, entry in zip(facts, entries, strict=True)]
    _check_values(facts, held, labels, folder)
    _check_trained(names or labels, held[: len(parts["training"])], held)
    return Fingerprint(
        dataset=name_in_config(dataset_dir),
        task=task,
        modality=tuple(content["modality"]),
        labels={str(value): name for value, name in labels.items()},
        cases={part: len(found) for part, found in parts.items()},
        lateral=tuple(lateral_names(labels)),
        partly_labelled=sum(len(_annotated(entry, names)) < len(names) for entry in entries),
        class_counts={} if names else {name: held.count({value}) for value, name in labels.items()},
        **_summarise(facts, names),
    )


def name_in_config(dataset_dir: str | Path) -> str:
    """Return a data set as a plan's config names it: by its absolute folder, or by its name under `data_root()`.

    Raises:
        TomokitError: when there is none.
    """
    folder = find_dataset(dataset_dir)
    return str(folder) if (Path(dataset_dir).expanduser() / "dataset.json").is_file() else str(dataset_dir)


def _task_of(entries: Sequence[Entry], content: Mapping[str, Any], folder: Path) -> str:
    """Return "segmentation" where labels are files, "classification" where they are classes.

    Raises:
        TomokitError: when they are neither or both, or `dataset.json` lacks the labels or the modality.
    """
    problems = [
        f"`{key}` is missing; write {example}"
        for key, example in (("labels", '{"0": "background", "1": "liver"}'), ("modality", '{"0": "CT"}'))
        if key not in content
    ]
    kinds = {type(entry["label"]) for entry in entries}
    if kinds not in ({str}, {int}):
        told = ", ".join(sorted(kind.__name__ for kind in kinds))
        problems.append(f"`label` must be a file in all cases or a class in all cases, got {told}; plan these by hand")
    raise_problems(f"{folder / 'dataset.json'} can't be planned", problems)
    return "segmentation" if kinds == {str} else "classification"


def _read_case(entry: Entry, names: Mapping[int, str], rng: np.random.Generator) -> _Facts:
    """Return what one case tells; its label map and one channel at a time are in memory."""
    start = perf_counter()
    structures: dict[int, dict[str, Any]] = {}
    unknown: list[float] = []
    inside: NDArray[np.intp] | None = None
    label_shape: tuple[int, ...] = ()
    if names:
        label, affine, unknown = _read_label(entry, max(names))
        label_shape = label.shape
        structures = _measure_structures(label, voxel_volume_ml(affine), _annotated(entry, names))
        inside = _draw(np.flatnonzero(label), rng)
        del label
    images = [entry["image"]] if isinstance(entry["image"], str) else entry["image"]
    if None in images:
        raise TomokitError(
            f"{entry['case']}: a modality is absent (null in `image`), which a plan can't use; leave the case out"
        )
    samples: list[tuple[NDArray[np.float32], NDArray[np.float32], float]] = []
    for path in images:
        image, affine = _read_oriented(path, entry["case"])
        if names and image.shape[:3] != label_shape:
            raise TomokitError(
                f"{entry['case']}: the image has {image.shape[:3]} voxels, its label {label_shape}; "
                "`tomokit check` tells more"
            )
        channels = image[..., None] if image.ndim == 3 else image
        samples += [_sample(channels[..., number], inside, rng) for number in range(channels.shape[3])]
    spacing = tuple(round(float(size), 4) for size in voxel_sizes(affine))
    within, everywhere, zeros = (list(column) for column in zip(*samples, strict=True))
    seconds = perf_counter() - start
    return _Facts(entry["case"], image.shape[:3], spacing, structures, unknown, within, everywhere, zeros, seconds)


def _read_label(entry: Entry, greatest: int) -> tuple[NDArray[np.int32], NDArray[np.float64], list[float]]:
    """Return a label map turned to RAS, its affine, and which values it holds that are not 0 to `greatest`, now 0."""
    label, affine = _read_oriented(entry["label"], entry["case"])
    if label.shape[3:] not in ((), (1,)):
        raise TomokitError(
            f"{entry['case']}: its label has {label.shape[3]} channels, shape {label.shape}; store one label map "
            "(X, Y, Z) with a value for each structure"
        )
    label = label.reshape(label.shape[:3])
    known = (label >= 0) & (label <= greatest)
    if label.dtype.kind == "f":
        known &= np.floor(label) == label
    unknown = [] if known.all() else [float(value) for value in np.unique(label[~known])]
    return np.where(known, label, 0).astype(np.int32), affine, unknown


def _read_oriented(path: str, case: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return a volume turned to RAS and its affine; the array is a view of what was read."""
    volume = read_volume(path)
    if volume.array.ndim not in (3, 4):
        raise TomokitError(
            f"{case}: {path} has the shape {volume.array.shape}, which is neither (X, Y, Z) nor (X, Y, Z, channels); "
            "store a volume, a single slice as (X, Y, 1)"
        )
    turn = io_orientation(volume.affine)
    array = apply_orientation(volume.array, turn)
    return array, volume.affine @ inv_ornt_aff(turn, volume.array.shape[:3])


def _annotated(entry: Entry, names: Mapping[int, str]) -> list[int]:
    """Return the values that were annotated in a case: those of its key `labelled`, or all."""
    return [value for value in names if value in entry.get("labelled", names)]


def _measure_structures(label: NDArray[np.int32], voxel_ml: float, values: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return volume, pieces and place of each structure that a label map holds."""
    boxes = ndimage.find_objects(label)
    found = {}
    for value in values:
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is None:
            continue
        mask = label[box] == value
        voxels, (_, pieces) = int(mask.sum()), ndimage.label(mask, np.ones((3, 3, 3)))
        centre = [
            (part.start + float(mask.sum(axis=tuple({0, 1, 2} - {axis})) @ np.arange(size)) / voxels + 0.5) / length
            for axis, (part, size, length) in enumerate(zip(box, mask.shape, label.shape, strict=True))
        ]
        found[value] = {
            "ml": voxels * voxel_ml,
            "share": voxels / label.size,
            "pieces": pieces,
            "offset": [place - 0.5 for place in centre],
        }
    return found


def _sample(
    image: NDArray[Any], inside: NDArray[np.intp] | None, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Return intensities within the structures (anywhere, where there are none), anywhere, and the share of zeros."""
    anywhere = rng.integers(0, image.size, SAMPLES)
    picked = [
        image[np.unravel_index(places, image.shape)].astype(np.float32)
        for places in (anywhere if inside is None else inside, anywhere)
    ]
    within, everywhere = (values[np.isfinite(values)] for values in picked)
    return within, everywhere, float((picked[1] == 0).mean())


def _draw(places: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
    """Return at most `SAMPLES` of the places, drawn with `rng`."""
    return places if len(places) <= SAMPLES else places[rng.integers(0, len(places), SAMPLES)]


def _check_channels(facts: Sequence[_Facts], modality: Sequence[str], folder: Path) -> None:
    """Raise when a case has another number of channels than the set names."""
    raise_problems(
        f"{folder / 'dataset.json'} names {len(modality)} channels ({', '.join(modality)}); correct `modality`",
        [f"{fact.case} has {len(fact.inside)}" for fact in facts if len(fact.inside) != len(modality)],
    )


def _check_values(facts: Sequence[_Facts], held: Sequence[set[int]], labels: Mapping[int, str], folder: Path) -> None:
    """Raise when a label map holds a value, or a case is of a class, that the set does not name."""
    problems = []
    for fact, own in zip(facts, held, strict=True):
        if values := [*fact.unknown, *(value for value in own if value not in labels)]:
            told = ", ".join(f"{value:g}" for value in values[:SHOWN_VALUES])
            problems.append(f"{fact.case} has {told}{', …' if len(values) > SHOWN_VALUES else ''}")
    heading = (
        f"`labels` of {folder / 'dataset.json'} names {', '.join(map(str, labels))} alone; correct it, or the cases"
    )
    if any(fact.unknown for fact in facts):
        heading += (
            ". If such a value marks voxels that nobody labelled (255, say), plan a copy of the set in which they are "
            f"0, and train that plan with --dataset_dir {folder} --ignore_label 255"
        )
    raise_problems(heading, problems)


def _check_trained(names: Mapping[int, str], training: Sequence[set[int]], everywhere: Sequence[set[int]]) -> None:
    """Raise when no training case holds a structure, or is of a class."""
    learnt, known = set().union(*training), set().union(*everywhere)
    raise_problems(
        "no training case holds these structures or classes; correct `labels`, or draw another split",
        [
            f"{name} ({value}), {'which validation cases hold' if value in known else 'nor does a validation case'}"
            for value, name in names.items()
            if value not in learnt
        ],
    )


def _summarise(facts: Sequence[_Facts], names: Mapping[int, str]) -> dict[str, Any]:
    """Return the fields of the fingerprint that are taken over all cases."""
    shapes = np.array([fact.shape for fact in facts], float)
    spacings = np.array([fact.spacing for fact in facts])
    channels = range(len(facts[0].inside))
    return {
        "shape": _spread(shapes),
        "spacing": _spread(spacings),
        "extent_mm": _spread(shapes * spacings),
        "inside": tuple(_intensity([fact.inside[channel] for fact in facts]) for channel in channels),
        "everywhere": tuple(_intensity([fact.everywhere[channel] for fact in facts]) for channel in channels),
        "zero_share": tuple(_round(np.median([fact.zero_share[channel] for fact in facts])) for channel in channels),
        "structures": tuple(_join(value, name, facts) for value, name in names.items()),
        "read_seconds": _round(np.median([fact.seconds for fact in facts])),
        "per_case": tuple(_tell_case(fact, names) for fact in facts),
    }


def _tell_case(fact: _Facts, names: Mapping[int, str]) -> dict[str, Any]:
    """Return one case's line in the fingerprint."""
    return {
        "case": fact.case,
        "shape": list(fact.shape),
        "spacing": list(fact.spacing),
        "ml": {names[value]: _round(found["ml"]) for value, found in fact.structures.items()},
        "pieces": {names[value]: found["pieces"] for value, found in fact.structures.items()},
    }


def _join(value: int, name: str, facts: Sequence[_Facts]) -> Structure:
    """Return one structure over the cases that have it, of which there is one at least."""
    found = [fact.structures[value] for fact in facts if value in fact.structures]
    volumes = [item["ml"] for item in found]
    offsets = np.array([item["offset"] for item in found])
    return Structure(
        value=value,
        name=name,
        cases=len(found),
        median_ml=_round(np.median(volumes)),
        smallest_ml=_round(min(volumes)),
        share=_round(np.median([item["share"] for item in found])),
        pieces=_round(np.median([item["pieces"] for item in found])),
        piece_ml=_round(np.median([item["ml"] / item["pieces"] for item in found])),
        offset=_rounded(np.median(offsets, axis=0)),
        upper_share=_rounded((offsets > 0).mean(axis=0)),
    )


def _intensity(samples: Sequence[NDArray[np.float32]]) -> Intensity:
    """Return the intensities of one channel, each case with as many voxels as the others (with replacement)."""
    rng = np.random.default_rng(0)
    even = [case if len(case) == SAMPLES else rng.choice(case, SAMPLES) for case in samples if len(case)]
    if not even:
        raise TomokitError("no case has a finite voxel in its structures; `tomokit check` tells which are damaged")
    values = np.concatenate(even).astype(np.float64)
    low, high = np.percentile(values, (0.5, 99.5))
    return Intensity(_round(values.mean()), _round(values.std()), _round(low), _round(high))


def _spread(values: NDArray[np.float64]) -> Spread:
    """Return how (cases, axes) values spread."""
    levels = np.percentile(values, (0, 10, 50, 90, 100), axis=0)
    return Spread(*(_rounded(level) for level in levels))


def _rounded(values: NDArray[Any]) -> tuple[float, ...]:
    """Return numbers that read well."""
    return tuple(_round(value) for value in values)


def _round(value: Any) -> float:
    """Return a number to five significant digits."""
    return float(f"{float(value):.5g}")
