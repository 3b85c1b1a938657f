"""What a source holds, told by its files' content, and which importer it needs."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tomokit.dicom.headers import BARE, DICOM_SUFFIXES
from tomokit.errors import TomokitError
from tomokit.files import read_json
from tomokit.importers.records import count_of
from tomokit.volumes import ITK, NIFTI, PICTURES, suffix_of

TABLES = (".csv", ".tsv")
PLAIN = (
    ".txt",
    ".md",
    ".json",
    ".xml",
    ".pdf",
    ".html",
    ".xlsx",
    ".xls",
    ".zip",
    ".gz",
    ".raw",
    ".zraw",
    ".py",
    ".yaml",
)
KINDS = {"dicom": "DICOM file", "volumes": "volume", "archives": ".npz archive"}
SHOWN_FOLDERS = 6


@dataclass
class Contents:
    """The files of a source by kind, each list in order.

    Attributes:
        root: the source's folder.
        given: the source, a folder or a file.
    """

    root: Path
    given: Path
    dicom: list[Path] = field(default_factory=list)
    volumes: list[Path] = field(default_factory=list)
    archives: list[Path] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    @property
    def files(self) -> list[Path]:
        """All files."""
        return [
            *self.dicom, *self.volumes, *self.archives, *self.pictures, *self.tables, *self.others
        ]  # fmt: skip


def scan(source: Path) -> Contents:
    """Return what lies in a folder and the folders below it, or the one file given; hidden files are passed over.

    Raises:
        TomokitError: when the source does not exist.
    """
    if not source.exists():
        raise TomokitError(f"{source} does not exist; give a folder or a file with scans")
    contents = Contents(source if source.is_dir() else source.parent, source)
    for path in _walk(source) if source.is_dir() else [source]:
        getattr(contents, _kind(path)).append(path)
    return contents


def detect(contents: Contents) -> str:
    """Return which importer a source needs: nnunet, decathlon, dicom, volumes, archives, pictures or tables.

    Raises:
        TomokitError: when the source mixes kinds, holds several data sets, or has nothing to import.
    """
    if described := _described(contents):
        return described
    present = [kind for kind in KINDS if getattr(contents, kind)]
    if len(present) > 1:
        raise TomokitError(_tell_mixture(contents, present))
    if present == ["dicom"] and contents.given.is_file():
        raise TomokitError(f"{contents.given} is one DICOM file; give its folder, which is read series by series")
    if present:
        return present[0]
    if contents.pictures:
        return "pictures"
    if contents.given.is_file() and contents.tables:
        return "tables"
    if len(contents.tables) == 1:
        return "tables"
    suffixes = Counter(path.suffix.lower() or "no suffix" for path in contents.files)
    held = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(SHOWN_FOLDERS)) or "no file"
    raise TomokitError(
        f"{contents.given} has nothing to import (it holds {held}); known are DICOM, "
        f"{', '.join((*NIFTI, *ITK, *PICTURES))}, MedMNIST's .npz, and CSV tables that name such files"
    )


def _walk(folder: Path) -> list[Path]:
    """Return every file below a folder, in order, without hidden ones and what macOS adds to archives."""
    found = []
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        found += [Path(parent) / name for name in sorted(names) if not name.startswith(".")]
    return sorted(found)


def _refuse(error: OSError) -> None:
    """Raise for a folder that can't be read: nothing is left out without a word."""
    raise TomokitError(
        f"{error.filename} can't be read: {error.strerror}; give yourself the right to read it, or import the rest"
    ) from error


def _kind(path: Path) -> str:
    """Return the list of `Contents` that a file belongs to."""
    suffix = suffix_of(path)
    if suffix:
        return "pictures" if suffix in PICTURES else "volumes"
    ending = path.suffix.lower()
    if ending == ".npz":
        return "archives"
    if ending in TABLES:
        return "tables"
    return "dicom" if _is_dicom(path, ending) else "others"


def _is_dicom(path: Path, ending: str) -> bool:
    """Return whether a file is DICOM by its suffix, the mark at byte 128, or a first element without a preamble."""
    if path.name.upper() == "DICOMDIR" or ending in PLAIN:
        return False
    if ending in DICOM_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            head = file.read(132)
            return head[128:] == b"DICM" or BARE.match(head) is not None
    except OSError:
        return False


def _described(contents: Contents) -> str | None:
    """Return the kind that a `dataset.json` in the source's own folder tells, or None where there is none.

    Raises:
        TomokitError: when only folders below have one: they are data sets of their own.
    """
    if not contents.given.is_dir():
        return None
    path = contents.root / "dataset.json"
    if not path.is_file():
        below = sorted({other.parent for other in contents.others if other.name == "dataset.json"})
        if below:
            names = ", ".join(str(folder) for folder in below[:SHOWN_FOLDERS])
            raise TomokitError(f"{contents.given} holds {count_of(len(below), 'data set')}; give one of them: {names}")
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        return None
    if "channel_names" in content:
        return "nnunet"
    training = content.get("training")
    if isinstance(training, list):
        return "nnunet" if _lacks_channels(contents.root, training) else "decathlon"
    return "nnunet" if (contents.root / "imagesTr").is_dir() else None


def _lacks_channels(root: Path, training: list[object]) -> bool:
    """Return whether the first listed image is there only as `…_0000.nii.gz`, as in nnU-Net's first version."""
    image = training[0].get("image") if training and isinstance(training[0], dict) else None
    if not isinstance(image, str) or (root / image).exists():
        return False
    suffix = suffix_of(image)
    return bool(suffix) and (root / (image[: -len(suffix)] + "_0000" + suffix)).is_file()


def _tell_mixture(contents: Contents, present: list[str]) -> str:
    """Return the text that refuses a folder with several kinds, with the folders that have one."""
    lines = []
    of_folder: dict[Path, set[str]] = {}
    for kind in present:
        paths = getattr(contents, kind)
        folders = Counter(_top(path, contents.root) for path in paths)
        where = ", ".join(f"{folder} ({count})" for folder, count in folders.most_common(SHOWN_FOLDERS))
        lines.append(f"  - {count_of(len(paths), KINDS[kind])}: {where}")
        for folder in folders:
            of_folder.setdefault(folder, set()).add(kind)
    single = [str(folder) for folder, kinds in sorted(of_folder.items()) if len(kinds) == 1 and folder != contents.root]
    advice = f"give one of: {', '.join(single)}" if single else "move each kind to a folder of its own"
    if contents.root in of_folder and single:
        advice += "; to take what lies in the folder itself, give its files, or move them to a folder of their own"
    return "\n".join([f"{contents.given} mixes kinds, and one import takes one; {advice}", *lines])


def _top(path: Path, root: Path) -> Path:
    """Return the folder directly below `root` that holds a file, or `root` itself."""
    parts = path.relative_to(root).parts
    return root / parts[0] if len(parts) > 1 else root
