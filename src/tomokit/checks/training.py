"""What must hold before training starts: files, geometry, label values and patch size, all cases at once."""

import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from tomokit.datasets import find_dataset, read_description
from tomokit.errors import TomokitError, raise_problems
from tomokit.geometry import axis_codes, check_affine, grid_difference, spacing_from_affine
from tomokit.labels import check_label_map

Volume = tuple[np.ndarray, np.ndarray]  # array as stored, affine 4x4 to world RAS in mm
Grid = tuple[tuple[int, ...], np.ndarray]  # shape (X, Y, Z) or (X, Y, Z, 1), affine; the voxels are let go
READERS = 4  # each holds one volume in memory


def check_cases(
    cases: Mapping[str, Sequence[Mapping[str, Any]]],
    dataset_dir: str | Path,
    labels: Mapping[str, str],
    modality: Sequence[str],
    spacing: Sequence[float] | None = None,
    patch_size: Sequence[int] | None = None,
    minimum_size: Sequence[int] | None = None,
) -> None:
    """Raise one error with every problem of every case: unreadable, mismatched, NaN, wrong labels, too small.

    Args:
        cases: `{"training": entries, …}` as `datasets.select_cases` returns them.
        dataset_dir: the data set's folder or name, whose `dataset.json` must tell the same labels and modality.
        labels: the label map; a label file's values, or an entry's class, must be among its keys.
        modality: the kind of each channel, such as `["CT"]`.
        spacing: the network's voxel size in mm along x, y, z (RAS); None leaves the source's.
        patch_size: the training crop in voxels at that spacing.
        minimum_size: smaller volumes are padded to this size in voxels before they are cropped.

    Raises:
        TomokitError: that names each case, its problem and what to do.
    """
    values = set(check_label_map(labels))
    entries = list(chain.from_iterable(cases.values()))
    with ThreadPoolExecutor(max_workers=READERS) as pool:
        found = pool.map(lambda entry: check_case(entry, values, spacing, patch_size, minimum_size, modality), entries)
        problems = describe_mismatch(dataset_dir, labels, modality) + list(chain.from_iterable(found))
    raise_problems(f"{len(problems)} problems in the data; mend or remove these cases, then start again", problems)


def describe_mismatch(dataset_dir: str | Path, labels: Mapping[str, str], modality: Sequence[str]) -> list[str]:
    """Return what `dataset.json` says otherwise than the config: a label's name, or the kind of a channel.

    Names are compared without upper and lower case; what `dataset.json` leaves out is not compared.

    Raises:
        TomokitError: when `dataset.json` is absent or malformed.
    """
    content = read_description(find_dataset(dataset_dir))
    own = {str(value): name for value, name in labels.items()}
    told = content.get("labels", own)
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
    values: set[int],
    spacing: Sequence[float] | None = None,
    patch_size: Sequence[int] | None = None,
    minimum_size: Sequence[int] | None = None,
    modality: Sequence[str] | None = None,
) -> list[str]:
    """Return what is wrong with one case, a sentence each that starts with the case's name."""
    problems: list[str] = []
    paths = [entry["image"]] if isinstance(entry["image"], str) else list(entry["image"])
    if modality is not None and len(paths) != len(modality):
        problems.append(
            f"files under image: {len(paths)}, kinds in modality: {len(modality)} {list(modality)}; "
            "list one file per kind in dataset.json, or correct the key `modality`"
        )
    grids = [_read_image(path, problems) for path in paths]
    axes = sorted({len(grid[0]) for grid in grids if grid is not None})
    if len(axes) > 1:
        problems.append(f"its images have {axes[0]} and {axes[1]} axes; store all of them with three")
    first = grids[0]
    if first is not None:
        for path, grid in zip(paths[1:], grids[1:], strict=True):
            problems += _grid_problems(paths[0], first, path, grid)
        problems += _patch_problems(first, spacing, patch_size, minimum_size)
    problems += _label_problems(entry, values, paths[0], first)
    return [f"{entry['case']}: {problem}" for problem in problems]


def _read(path: str, problems: list[str]) -> Volume | None:
    """Return the array and affine of a NIfTI file, or None with the reason added to `problems`."""
    if not Path(path).is_file():
        problems.append(f"{path} does not exist; correct dataset.json or restore the file")
        return None
    try:
        image = nibabel.load(path)
        affine = check_affine(image.affine)
        array = np.asanyarray(image.dataobj)
    except (ImageFileError, OSError, EOFError, ValueError, HeaderDataError, zlib.error) as error:
        problems.append(f"{path} can't be read ({type(error).__name__}: {error}); restore or remove the file")
        return None
    except TomokitError as error:
        problems.append(f"{path}: {error}")
        return None
    if array.dtype.kind not in "biuf":
        problems.append(
            f"{path} has voxels of the type {array.dtype}, not one number each; store grey values or labels"
        )
        return None
    return array, affine


def _read_image(path: str, problems: list[str]) -> Grid | None:
    """Return an image's grid, or None with the reason added to `problems`; NaN is a problem too."""
    volume = _read(path, problems)
    if volume is None:
        return None
    array, affine = volume
    if array.ndim != 3 and (array.ndim != 4 or array.shape[3] != 1):
        remedy = "split it into one file per channel and list them under image" if array.ndim > 3 else "store it as 3D"
        problems.append(f"{path} is {array.ndim}D with shape {array.shape}; {remedy}")
        return None
    count = array.size - int(np.count_nonzero(np.isfinite(array))) if array.dtype.kind == "f" else 0
    if count:
        problems.append(f"{Path(path).name} has {count} voxels that are NaN or infinite; replace them")
    return array.shape, affine


def _grid_problems(first_path: str, first: Grid, path: str, other: Grid | None) -> list[str]:
    """Return a sentence when two files of one case do not lie on the same grid."""
    if other is None:
        return []
    difference = grid_difference(first[1], first[0][:3], other[1], other[0][:3])
    if difference is None:
        return []
    return [f"{Path(first_path).name} and {Path(path).name} differ: {difference}; resample one onto the other"]


def _label_problems(entry: Mapping[str, Any], values: set[int], image_path: str, image: Grid | None) -> list[str]:
    """Return what is wrong with the entry's label: a class outside the map, or a file that does not fit."""
    path = entry["label"]
    if not isinstance(path, str):
        known = isinstance(path, int) and path in values
        return [] if known else [f"class {path!r} is not in the label map {sorted(values)}"]
    problems: list[str] = []
    label = _read(path, problems)
    if label is None:
        return problems
    array, affine = label
    if array.ndim != 3:
        return [f"{path} is {array.ndim}D with shape {array.shape}; store labels as one 3D volume"]
    problems += _value_problems(path, array, values)
    if image is not None:
        problems += _grid_problems(image_path, image, path, (array.shape, affine))
    return problems


def _value_problems(path: str, array: np.ndarray, values: set[int]) -> list[str]:
    """Return a sentence when a label file has values that are not in the label map, as the loader reads them."""
    # the loader makes float32 of all; then one-hot coding cuts decimals off, and 0.9999 becomes background
    found = np.unique(array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array)
    outside = sorted(set(found.tolist()) - values)
    if not outside:
        return []
    whole = all(float(value).is_integer() for value in outside)
    remedy = "correct the file or the key `labels`" if whole else "round them and store integers"
    shown = ", ".join(repr(value) for value in outside[:5])
    return [f"{Path(path).name} has values outside the label map {sorted(values)}: {shown}; {remedy}"]


def _patch_problems(
    image: Grid,
    spacing: Sequence[float] | None,
    patch_size: Sequence[int] | None,
    minimum_size: Sequence[int] | None,
) -> list[str]:
    """Return a sentence when the training crop is larger than the volume at the network's spacing."""
    if patch_size is None:
        return []
    size = size_at_spacing(image[0], image[1], spacing)
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
