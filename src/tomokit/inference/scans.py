"""Which files an inference is given."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tomokit.datasets import Entry, case_name
from tomokit.errors import TomokitError, raise_problems

NIFTI = (".nii", ".nii.gz")


def list_inputs(inputs: str | Path | Sequence[str | Path | Sequence[str]]) -> list[Entry]:
    """Return an entry `{"case", "image"}` for each NIfTI file: one path, several, or a folder's.

    An element that is itself a list is one case of several modalities, in the order of the network's channels.

    Raises:
        TomokitError: when a path is absent or no NIfTI file, a folder holds none, or two files have one name.
    """
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    images: list[str | list[str]] = []
    for item in given:
        if not isinstance(item, str | Path):
            images.append([_check_input(Path(path)) for path in item])
        elif Path(item).is_dir():
            files = sorted(Path(item).iterdir())
            images += [str(file) for file in files if file.name.endswith(NIFTI) and file.name[0] != "."]
        else:
            images.append(_check_input(Path(item)))
    if not images:
        raise TomokitError(f"no NIfTI file (.nii, .nii.gz) in {', '.join(map(str, given))}")
    entries = [{"case": case_name(image), "image": image} for image in images]
    counts = Counter(entry["case"] for entry in entries)
    raise_problems(
        "inputs of one file name would overwrite each other's result; rename them",
        [f"{case} stands {count} times" for case, count in counts.items() if count > 1],
    )
    return entries


def first_image(image: str | Sequence[str]) -> str:
    """Return the file whose grid stands for the case: the modalities of a case share one."""
    return image if isinstance(image, str) else image[0]


def _check_input(path: Path) -> str:
    """Return the path as text when it is a NIfTI file that exists."""
    if not path.is_file():
        raise TomokitError(f"input {path} does not exist; give a NIfTI file or a folder of them")
    if not path.name.endswith(NIFTI):
        raise TomokitError(f"input {path} is not NIfTI (.nii, .nii.gz); convert it first")
    return str(path)
