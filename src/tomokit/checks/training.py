"""What must hold before training starts: files, geometry, label values and patch size, all cases at once."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tomokit.checks.cases import Expected, examine_case
from tomokit.checks.findings import KINDS
from tomokit.checks.ranges import note_case
from tomokit.datasets import find_dataset, read_description
from tomokit.errors import raise_problems
from tomokit.geometry import axis_codes, spacing_from_affine
from tomokit.labels import check_label_map

READERS = 4  # each holds a label and an image in memory


def check_cases(
    cases: Mapping[str, Sequence[Mapping[str, Any]]],
    dataset_dir: str | Path,
    labels: Mapping[str, str] | None,
    modality: Sequence[str],
    spacing: Sequence[float] | None = None,
    patch_size: Sequence[int] | None = None,
    minimum_size: Sequence[int] | None = None,
    ignore_label: int | None = None,
    partly_labelled: bool = False,
    task: str | None = None,
    mask_above: float | None = None,
    own_grids: bool = False,
) -> None:
    """Raise one error with every problem of every case: unreadable, mismatched, NaN, wrong labels, too small.

    Args:
        cases: `{"training": entries, …}` as `datasets.select_cases` returns them.
        dataset_dir: the data set's folder or name, whose `dataset.json` must tell the same labels and modality.
        labels: the label map; a label file's values, or an entry's class, must be among its keys. None where labels, if
            there are any, are not what is learned: they need not be those of a map.
        modality: the kind of each channel, such as `["CT"]`.
        spacing: the network's voxel size in mm along x, y, z (RAS); None leaves the source's.
        patch_size: the training crop in voxels at that spacing.
        minimum_size: smaller volumes are padded to this size in voxels before they are cropped.
        ignore_label: the label of voxels that nobody labelled, allowed beside the label map's.
        partly_labelled: whether cases may tell, as `labelled`, that some classes were not annotated.
        task: of a classification, "classes", "labels" or "value"; None for segmentation.
        mask_above: of a classification, whose images are masks themselves: voxels above this value are the structure.
        own_grids: whether the modalities of a case may lie on grids of their own, or be absent.

    Raises:
        TomokitError: that names each case, its problem and what to do.
    """
    values = None  # a value has no label map: its one name tells the target
    if labels is not None and task != "value":
        values = frozenset(check_label_map(labels)) | (frozenset() if ignore_label is None else {ignore_label})
    expected = Expected(values, tuple(modality), own_grids)
    entries = list(chain.from_iterable(cases.values()))
    with ThreadPoolExecutor(max_workers=READERS) as pool:
        found = pool.map(lambda entry: check_case(entry, expected, spacing, patch_size, minimum_size), entries)
        problems = describe_mismatch(dataset_dir, labels, modality) + list(chain.from_iterable(found))
    if labels is not None and not partly_labelled:
        problems += [problem for entry in entries for problem in _unused_marks(entry, labels)]
    problems += [problem for entry in entries for problem in _kind_problems(entry, task)]
    problems += _mask_problems(entries, mask_above)
    if not own_grids:
        problems += [problem for entry in entries for problem in _absent_images(entry)]
    raise_problems(f"{len(problems)} problems in the data; mend or remove these cases, then start again", problems)


def _unused_marks(entry: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    """Return a sentence when a case tells of classes that were not annotated, which would be taken for background."""
    missing = sorted({int(value) for value in labels} - {0} - set(entry.get("labelled", map(int, labels))))
    if not missing:
        return []
    return [
        f"{entry['case']}: its entry's `labelled` leaves out {missing}, which would be taken for background; add the "
        "layer modes/partly_labelled.yaml, or plan the set anew"
    ]


def _absent_images(entry: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each modality that a case lacks, where all are needed."""
    images = [] if isinstance(entry["image"], str) else entry["image"]
    return [
        f"{entry['case']}: its image {place} is absent (null); leave the case out, or train the bundle fusion with "
        "modes/modalities.yaml, which does without"
        for place, path in enumerate(images)
        if path is None
    ]


def _kind_problems(entry: Mapping[str, Any], task: str | None) -> list[str]:
    """Return a sentence when a case's label is of another kind than the task's."""
    if task is None or "label" not in entry:  # unlabelled images are checked too
        return []
    label = entry["label"]
    kind = {int: "classes", list: "labels", float: "value"}.get(type(label))
    if kind in ({"classes", "value"} if task == "value" else {task}):
        return []
    wanted = {"classes": "a class, a whole number,", "labels": "a list of 0 and 1", "value": "a number"}[task]
    return [
        f"{entry['case']}: `label` must be {wanted} where `task` is {task}, got {label!r}; correct dataset.json, or "
        "put the right layer of modes/ behind train.yaml: multi_label, regression, or none of them for classes"
    ]


def _mask_problems(entries: Sequence[Mapping[str, Any]], mask_above: float | None) -> list[str]:
    """Return a sentence when the cases are not all measured alike: in a mask of their own, or above a value."""
    masked = [entry["case"] for entry in entries if entry.get("mask")]
    if not masked:
        return []
    if mask_above is not None:
        return [
            f"{masked[0]}: its entry has a `mask`, and mask_above ({mask_above}) says that images are masks; "
            "set it to null, or take the masks out of dataset.json"
        ]
    return [
        f"{entry['case']}: its entry has no `mask`, that of {masked[0]} has one; give all cases one, or none"
        for entry in entries
        if not entry.get("mask")
    ]


def describe_mismatch(dataset_dir: str | Path, labels: Mapping[str, str] | None, modality: Sequence[str]) -> list[str]:
    """Return what `dataset.json` says otherwise than the config: a label's name, or the kind of a channel.

    Without labels only the channels are compared. Upper and lower case are alike, and what `dataset.json` leaves out is
    not compared.

    Raises:
        TomokitError: when `dataset.json` is absent or malformed.
    """
    content = read_description(find_dataset(dataset_dir))
    own = {str(value): name for value, name in (labels or {}).items()}
    told = own if labels is None else content.get("labels", own)
    kinds = content.get("modality", modality)
    problems = []
    if {value: name.lower() for value, name in told.items()} != {value: name.lower() for value, name in own.items()}:
        problems.append(f"dataset.json has the labels {told}, the config {own}; set the key `labels`")
    if [kind.lower() for kind in kinds] != [kind.lower() for kind in modality]:
        problems.append(
            f"dataset.json has the modality {list(kinds)}, the config {list(modality)}; set the key `modality`, and "
            "`intensity` to suit it (a window in HU for CT, NormalizeIntensityd for MRI)"
        )
    return problems


def check_case(
    entry: Mapping[str, Any],
    expected: Expected,
    spacing: Sequence[float] | None = None,
    patch_size: Sequence[int] | None = None,
    minimum_size: Sequence[int] | None = None,
) -> list[str]:
    """Return what is wrong with one case, a sentence each that starts with the case's name; warnings are left out."""
    case = examine_case(entry, expected, measured=False)
    note_case(case)
    problems = [
        f"{finding.evidence}; {KINDS[finding.kind].remedy}" for finding in case.findings if finding.severity == "error"
    ]
    if case.header is not None:
        problems += _patch_problems(case.header.shape, case.header.affine, spacing, patch_size, minimum_size)
    return [f"{case.name}: {problem}" for problem in problems]


def _patch_problems(
    shape: Sequence[int],
    affine: np.ndarray,
    spacing: Sequence[float] | None,
    patch_size: Sequence[int] | None,
    minimum_size: Sequence[int] | None,
) -> list[str]:
    """Return a sentence when the training crop is larger than the volume at the network's spacing."""
    if patch_size is None:
        return []
    size = size_at_spacing(shape, affine, spacing)
    padded = tuple(max(a, b) for a, b in zip(size, minimum_size or size, strict=True))
    if all(patch <= length for patch, length in zip(patch_size, padded, strict=True)):
        return []
    return [
        f"patch_size {tuple(patch_size)} is larger than the volume, {padded} voxels at the network's spacing; "
        f"set patch_size to at most {padded}, or minimum_size to pad small volumes"
    ]


def size_at_spacing(shape: Sequence[int], affine: np.ndarray, spacing: Sequence[float] | None) -> tuple[int, ...]:
    """Return the size in voxels along x, y, z (RAS) of a volume brought to `spacing` in mm."""
    world_axis = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    order = np.argsort([world_axis[code] for code in axis_codes(affine)])
    lengths = np.asarray(shape[:3], dtype=float)[order]
    if spacing is not None:
        # the first and last voxel centres stay: the extent between them is kept
        own = np.asarray(spacing_from_affine(affine))[order]
        lengths = (lengths - 1) * own / np.asarray(spacing) + 1
    return tuple(int(length) for length in np.maximum(np.round(lengths), 1))
