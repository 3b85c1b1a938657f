"""Phantoms as data sets: arguments checked, files written, cases split."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from tomokit.datasets import case_name
from tomokit.errors import TomokitError
from tomokit.files import replacing, write_json
from tomokit.phantoms.scanner import MODALITIES
from tomokit.splits import Split, write_split

MINIMUM_SIZE = 16


class Phantom(NamedTuple):
    """One case: `image` and `label` (X, Y, Z) in the file's own axes, `affine` (4, 4) to RAS+ mm.

    `truth` says what the case holds: always `modality`, `contrast`, `spacing_mm`, `orientation` (axis codes),
    `oblique_degrees`, `stored_as` (the file's dtype), `volumes_ml` per label name, and `lesions`, a list of
    `centre_mm` (RAS+), `semi_axes_mm` and `volume_ml` (analytic), where the kind of phantom has lesions; `class`
    where cases have one; and what the function that makes the case adds.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]
    truth: dict[str, Any]


def check_modality(modality: str) -> None:
    """Raise when a modality is none of `MODALITIES`.

    Raises:
        TomokitError: that names them.
    """
    if modality not in MODALITIES:
        raise TomokitError(f"unknown modality {modality!r}; choose one of {', '.join(MODALITIES)}")


def check_case(size: int, seed: int, index: int) -> None:
    """Raise when a case is impossible.

    Raises:
        TomokitError: when `size` is below 16, or `seed` or `index` is negative.
    """
    if size < MINIMUM_SIZE:
        raise TomokitError(f"size must be at least {MINIMUM_SIZE} voxels, got {size}")
    if seed < 0 or index < 0:
        raise TomokitError(f"seed and index must not be negative, got seed {seed} and index {index}")


def check_set(cases: int, test_cases: int, size: int, seed: int) -> None:
    """Raise when a set is impossible.

    Raises:
        TomokitError: as `check_case`, or when there is no test case, or fewer than two others.
    """
    check_case(size, seed, 0)
    if test_cases < 1:
        raise TomokitError(f"test_cases must be at least 1, got {test_cases}")
    if cases < test_cases + 2:
        raise TomokitError(
            "cases counts all cases and must exceed test_cases by at least 2, one to train and one to validate "
            f"on; got cases {cases} and test_cases {test_cases}"
        )


def check_free(directory: Path) -> None:
    """Raise when a folder holds a data set.

    Raises:
        TomokitError: that names the folder.
    """
    if (directory / "dataset.json").exists():
        raise TomokitError(f"{directory} holds a data set already; delete it or choose another folder")


def draw_class(seed: int, index: int) -> int:
    """Return class 0 or 1; of each two consecutive cases one is of each class."""
    # A seeded coin for each two cases keeps the classes balanced, whatever the number of cases.
    return int(np.random.default_rng([seed, index // 2, 1]).integers(2)) ^ (index % 2)


def write_set(
    directory: Path,
    header: Mapping[str, Any],
    write: Callable[[int, str], dict[str, Any]],
    counts: tuple[int, int, int],
    progress: bool,
) -> None:
    """Write the cases, splits.json and, last, dataset.json: an interrupted set is never taken for whole.

    Args:
        directory: of the set.
        header: of dataset.json; it has a `name`.
        write: writes case `index` into the folders of part "Tr" or "Ts", and returns its entry.
        counts: all cases, those to test on (the last ones), and the seed of the split.
        progress: whether a bar is shown.

    Raises:
        TomokitError: when `directory` holds a data set already.
    """
    cases, test_cases, seed = counts
    check_free(directory)
    training_cases = cases - test_cases
    numbers = show_progress(range(cases), str(header["name"]), progress)
    entries = [write(index, "Tr" if index < training_cases else "Ts") for index in numbers]
    training, test = entries[:training_cases], entries[training_cases:]
    write_split(directory / "splits.json", _split(training, test, seed), [e | {"case": _name(e)} for e in entries])
    sizes = {"tensorImageSize": "3D", "numTraining": len(training), "numTest": len(test)}
    write_json(directory / "dataset.json", dict(header) | sizes | {"training": training, "test": test})


def show_progress(items: Sequence[Any], name: str, progress: bool) -> Iterable[Any]:
    """Return the items, with a bar on the terminal if so asked."""
    return track(items, description=f"Making {name}", total=len(items)) if progress else items


def save_image(directory: str | Path, part: str, index: int, case: Phantom) -> str:
    """Write the image of case `index` and return its path within the set."""
    name = f"images{part}/case_{index:03d}.nii.gz"
    save(Path(directory) / name, case.image.astype(case.truth["stored_as"]), case.affine)
    return name


def save(path: Path, volume: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write a volume as NIfTI, with its affine as sform and qform."""
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    with replacing(path) as temporary:
        nib.save(image, temporary)


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


def _name(entry: Mapping[str, Any]) -> str:
    return case_name(entry["image"])
