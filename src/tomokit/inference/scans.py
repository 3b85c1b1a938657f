"""Which scans an inference is given."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tomokit.datasets import Entry, case_name
from tomokit.dicom import find_series
from tomokit.errors import TomokitError, raise_problems
from tomokit.volumes import ITK, NIFTI, suffix_of

SCANS = (*NIFTI, *ITK)


def list_inputs(
    inputs: str | Path | Sequence[str | Path | Sequence[str]], suffixes: Sequence[str] = SCANS
) -> list[Entry]:
    """Return an entry `{"case", "image"}` for each scan: NIfTI, MetaImage or NRRD files, a folder's, or DICOM folders.

    A folder without such files is looked through for DICOM; each folder in it that holds a series is a case. An element
    that is itself a list is one case of several modalities, in the order of the network's channels. `suffixes` are of
    the files that are scans.

    Raises:
        TomokitError: when a path is absent or no scan, a folder holds none, or two cases have one name.
    """
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    images: list[str | list[str]] = []
    for item in given:
        if not isinstance(item, str | Path):
            images.append([_check_input(Path(path), suffixes) for path in item])
        elif Path(item).is_dir():
            images += _scans_in(Path(item), suffixes)
        else:
            images.append(_check_input(Path(item), suffixes))
    if not images:
        raise TomokitError(f"no scan ({', '.join(suffixes)}, DICOM) in {', '.join(map(str, given))}")
    entries = [{"case": name_input(image), "image": image} for image in images]
    counts = Counter(entry["case"] for entry in entries)
    raise_problems(
        "inputs of one file name would overwrite each other's result; rename them",
        [f"{case} stands {count} times" for case, count in counts.items() if count > 1],
    )
    return entries


def first_image(image: str | Sequence[str]) -> str:
    """Return the file whose grid stands for the case: the modalities of a case share one."""
    return image if isinstance(image, str) else image[0]


def name_input(image: str | Sequence[str | None]) -> str:
    """Return the case's name, by its first modality that is there: of a DICOM folder its whole name, dots and all."""
    first = image if isinstance(image, str) else next(path for path in image if path is not None)
    return Path(first).name if Path(first).is_dir() else case_name(image)


def _scans_in(folder: Path, suffixes: Sequence[str]) -> list[str]:
    """Return the scans of a folder: its files, or else the folders of its DICOM series."""
    files = [str(file) for file in sorted(folder.iterdir()) if suffix_of(file) in suffixes and file.name[0] != "."]
    if files:
        return files
    series, _ = find_series(folder)
    return sorted({str(one.files[0].parent) for one in series})


def _check_input(path: Path, suffixes: Sequence[str]) -> str:
    """Return the path as text when it is a scan that exists, or a folder, which may be one of DICOM."""
    if path.is_dir():
        return str(path)
    if not path.is_file():
        raise TomokitError(f"input {path} does not exist; give a scan or a folder of them")
    if suffix_of(path) not in suffixes:
        raise TomokitError(f"input {path} is no scan ({', '.join(suffixes)}, a DICOM folder); convert it first")
    return str(path)
