"""What every importer hands to the one writer: cases, where their voxels come from, and what stays behind."""

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

from tomokit.errors import TomokitError
from tomokit.volumes import Volume, read_volume

FOLDERS = {"training": "Tr", "validation": "Val", "test": "Ts"}  # imagesTr, labelsVal, …
SHOWN_NAMES = 10
LONGEST_NAME = 100


@dataclass(frozen=True)
class Source:
    """Where an image or a label comes from.

    Attributes:
        name: how the report calls it.
        read: returns its voxels, (X, Y, Z), or (X, Y, Z, C) which becomes C channels.
        path: the file, where the image is one file of its own; such a file can be copied.
    """

    name: str
    read: Callable[[], Volume]
    path: Path | None = None


@dataclass
class Case:
    """One entry of a data set to be.

    Attributes:
        name: the case's name; the writer makes it safe and unique.
        images: one source per channel, or one source whose array holds all channels.
        label: a source of a label map, a class, a list of 0 and 1, or None.
        folders: the source's folders that name the case or its site.
        keys: the names by which a table or a label file may call the case; those with a suffix are its files.
    """

    name: str
    images: list[Source]
    label: Source | int | list[int] | None = None
    section: str = "training"
    patient: str | None = None
    clinical: dict[str, float | str | None] | None = None
    group: str | None = None
    folders: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


@dataclass
class Plan:
    """What an importer found in a source.

    Attributes:
        kind: the source's layout, for the report.
        labels: value -> name as the source tells it; of label maps, classes, or places in a list of 0 and 1.
        structure: the name of the only structure, where the label files' names tell it.
        ignored: label values that stay as they are and get no name.
        modality: the kind of each channel, or empty when unknown.
        values_untold: label files hold more values than `labels` tells.
        told: lines for the report.
        noted: what to say -> the cases that it is true of.
        left: reason -> names of what is left out for it.
        used: files that need no further mention.
    """

    kind: str
    cases: list[Case] = field(default_factory=list)
    labels: dict[int, str] | None = None
    structure: str | None = None
    ignored: set[int] = field(default_factory=set)
    modality: list[str] = field(default_factory=list)
    values_untold: bool = False
    told: list[str] = field(default_factory=list)
    noted: dict[str, list[str]] = field(default_factory=dict)
    left: dict[str, list[str]] = field(default_factory=dict)
    used: set[Path] = field(default_factory=set)

    def note(self, text: str, name: str) -> None:
        """Note something that the report says of a case."""
        self.noted.setdefault(text, []).append(name)

    def leave(self, reason: str, name: str, *files: Path) -> None:
        """Note that `name` is left out for `reason`, and that its files have thereby been spoken of."""
        self.left.setdefault(reason, []).append(name)
        self.used.update(files)


def file_source(path: Path) -> Source:
    """Return the source of a volume in a file of its own."""
    return Source(path.name, partial(read_volume, path), path)


def name_cases(cases: Iterable[Case]) -> None:
    """Give each case a name that is a safe file name and unlike every other's, whatever the letters' case."""
    taken: set[str] = set()
    for case in cases:
        base = name = safe_name(case.name)
        number = 2
        while name.lower() in taken:
            name = f"{base}_{number}"
            number += 1
        taken.add(name.lower())
        case.name = name


def safe_name(text: str) -> str:
    """Return `text` as a file name of letters, digits, `_`, `-` and `.`, never hidden, never empty."""
    kept = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", text)).strip("._-")
    return kept[:LONGEST_NAME].rstrip("._-") or "case"


def path_inside(root: Path, text: str, where: str) -> Path:
    """Return the path that a table or a JSON file names, which must lie in the source's folder.

    Raises:
        TomokitError: when the path leads out of `root`.
    """
    given = text.strip().replace("\\", "/")
    folder = os.path.normpath(root.absolute())
    path = Path(os.path.normpath(Path(folder) / given))
    if "\0" in given or PureWindowsPath(given).drive or not path.is_relative_to(folder):
        raise TomokitError(f"{where} names {text!r}, outside {root}; write paths relative to that folder, without ../")
    return root / path.relative_to(folder)


def words(text: str) -> list[str]:
    """Return the words of a name in lower case: "imagesTr" has images and tr, "LesionSeg-T1" lesion, seg and t1."""
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text).lower()
    split = re.sub(r"^(images?|labels?)(tr|ts|val)$", r"\1_\2", split)
    return [word for word in re.split(r"[\W_]+", split) if word]


def list_lines(grouped: dict[str, list[str]]) -> list[str]:
    """Return one line per reason, with the first ten names and the count of the rest."""
    return [f"{reason}: {shorten(names)}" for reason, names in grouped.items()]


def shorten(names: Sequence[str], most: int = SHOWN_NAMES) -> str:
    """Return the first names with the count of the rest: "a, b … and 7 more"."""
    more = f" … and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def count_of(number: int, noun: str) -> str:
    """Return "1 case" or "2 cases"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def check_strings(content: Any, what: str) -> dict[int, str]:
    """Return the channels or labels of a `dataset.json` as number -> name, whichever way round they stand.

    Raises:
        TomokitError: when `content` is no mapping between whole numbers and names.
    """
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        content = dict(enumerate(content))
    if isinstance(content, dict) and content:
        pairs = [(key, value) if str(key).isdecimal() else (value, key) for key, value in content.items()]
        if all(str(number).isdecimal() and isinstance(name, str) and name for number, name in pairs):
            return dict(sorted((int(number), name) for number, name in pairs))
    raise TomokitError(f'{what} must be like {{"0": "name"}}, got {content!r}; correct it')
