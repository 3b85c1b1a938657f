"""What a network is used on: the scans of each case, a modality of which may be absent, and its record."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tomokit.datasets import Entry
from tomokit.errors import TomokitError, raise_problems
from tomokit.files import read_json
from tomokit.importers.tables import read_table
from tomokit.importers.trees import group_channels
from tomokit.inference import SCANS, list_inputs
from tomokit.inference.scans import name_input
from tomokit.records import find_doubts
from tomokit.volumes import PICTURES, stem_of, suffix_of

logger = logging.getLogger(__name__)

CASE = "case"
SHOWN = 5
Image = str | list[str | None]


def list_images(inputs: Any, channels: int = 1, own_grids: bool = False, pictures: bool = False) -> list[Entry]:
    """Return an entry `{"case", "image"}` for each case.

    Args:
        inputs: a scan, a folder of them, or a list of files. Of several modalities, a case is a list of files, with
            None for an absent one, or the files `a_0000.nii.gz`, `a_0001.nii.gz`, … of a folder.
        channels: the number of modalities.
        own_grids: whether a modality may be absent.
        pictures: whether PNG and JPEG files, a slice each, are scans too. A label map can't be written for them.

    Raises:
        TomokitError: when a file is absent or no scan, a case has not its modalities, or two have one name.
    """
    suffixes = (*SCANS, *PICTURES) if pictures else SCANS
    cases = list_inputs(inputs, suffixes) if channels == 1 else _list_modalities(inputs, channels)
    _check_images(cases, channels, own_grids)
    return cases


def list_cases(
    inputs: Any,
    records: Mapping[str, Any],
    table: str | Path | None = None,
    channels: int = 1,
    own_grids: bool = False,
) -> list[Entry]:
    """Return an entry `{"case", "image", "clinical"}` for each case; what a network won't understand is logged.

    Args:
        inputs: what `list_images` takes, or entries of a data set, whose records stay theirs.
        records: what `tomokit.records.read_records` returns.
        table: a CSV or TSV file with a row per case and a column per field, or a JSON object, case -> record. Cases go
            by the column `case`, or else the first one. Without a table, or a row in it, all fields are missing.
        channels: the number of modalities.
        own_grids: whether a modality may be absent.

    Raises:
        TomokitError: when a file is absent or no scan, a case has not its modalities, two have one name, or the table
            is malformed or names no case.
    """
    if not isinstance(inputs, str | Path) and inputs and all(isinstance(item, Mapping) for item in inputs):
        cases = [{key: item[key] for key in (CASE, "image", "clinical") if key in item} for item in inputs]
        _check_images(cases, channels, own_grids)
    else:
        cases = list_images(inputs, channels, own_grids)
    if records["fields"]:
        _attach_records(cases, None if table is None else read_records_of(table))
        given = {str(case[CASE]): case["clinical"] for case in cases if case.get("clinical")}
        for doubt in find_doubts(given, records) if given else []:
            logger.warning("%s", doubt)
    return cases


def read_records_of(table: str | Path) -> dict[str, dict[str, Any]]:
    """Return the record of each case in a table, by the case's name.

    Raises:
        TomokitError: when the file is absent or malformed, or names a case twice.
    """
    path = Path(table)
    if path.suffix.lower() == ".json":
        content = read_json(path)
        if not isinstance(content, dict) or not all(isinstance(own, dict) for own in content.values()):
            raise TomokitError(f'{path} must hold an object of records by case, {{"case_1": {{"age": 61}}}}')
        return content
    found = read_table(path)
    column = CASE if CASE in found.columns else found.columns[0]
    counts = Counter(row[column] for row in found.rows)
    raise_problems(
        f"{path} must name each case once in its column {column!r}",
        [f"{case or 'no case'} stands in {count} rows" for case, count in counts.items() if count > 1 or not case],
    )
    return {row[column]: {name: value for name, value in row.items() if name != column} for row in found.rows}


def _list_modalities(inputs: Any, channels: int) -> list[Entry]:
    """Return an entry for each case of several modalities, whose files are there."""
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    images = [image for item in given for image in _images_of(item, channels)]
    present = [[path for path in image if path is not None] for image in images]
    if not images or not all(present):
        raise TomokitError(
            f"a case has no scan in {', '.join(map(str, given))}; name files case_0000.nii.gz, case_0001.nii.gz, or "
            "list those of each case"
        )
    for paths in present:
        list_inputs([paths])  # tells which is absent, or no NIfTI
    cases: list[Entry] = [{CASE: name_input(image), "image": image} for image in images]
    counts = Counter(str(case[CASE]) for case in cases)
    raise_problems(
        "cases of one name would overwrite each other's result; rename their files",
        [f"{case} stands {count} times" for case, count in counts.items() if count > 1],
    )
    return cases


def _images_of(item: Any, channels: int) -> list[list[str | None]]:
    """Return the modalities of the cases that one input is: a folder, or the list of a case's files."""
    if not isinstance(item, str | Path):
        return [[None if path is None else str(path) for path in item]]
    if Path(item).is_dir():
        return _group(Path(item), channels)
    raise TomokitError(f"{item} is no folder, and a case has {channels} modalities; give a list of their files")


def _group(folder: Path, channels: int) -> list[list[str | None]]:
    """Return the files of each case of a folder in the order of the modalities, None for one that is not there."""
    files = {stem_of(path.name): str(path) for path in sorted(folder.iterdir()) if _is_scan(path)}
    numbers = group_channels(files)
    if numbers is None or any(max(own) >= channels for own in numbers.values()):
        raise TomokitError(
            f"the scans in {folder} must be called case_0000 to case_{channels - 1:04d}, by the number of their "
            f"modality; they are {', '.join(list(files)[:SHOWN])}"
        )
    return [[files.get(f"{case}_{number:04d}") for number in range(channels)] for case in numbers]


def _is_scan(path: Path) -> bool:
    """Return whether a file is a scan that is not hidden."""
    return suffix_of(path) in SCANS and not path.name.startswith(".")


def _check_images(cases: Sequence[Entry], channels: int, own_grids: bool) -> None:
    """Raise when a case has more or fewer modalities than the network takes, or lacks one that it needs."""
    problems = []
    for case in cases:
        image: Image = case["image"]
        paths = [image] if isinstance(image, str) else image
        if len(paths) != channels:
            problems.append(f"{case[CASE]} has {len(paths)} modalities, the network takes {channels}")
        elif None in paths and not own_grids:
            problems.append(
                f"{case[CASE]} lacks a modality, which only a fusion trained with modes/modalities.yaml bears"
            )
    raise_problems("these cases do not fit the network", problems)


def _attach_records(cases: Sequence[Entry], given: Mapping[str, Mapping[str, Any]] | None) -> None:
    """Give the cases the records of a table, and log which have none.

    Raises:
        TomokitError: when the table names no case.
    """
    for case in cases if given is not None else []:
        case["clinical"] = (given or {}).get(str(case[CASE]))
    without = [str(case[CASE]) for case in cases if not case.get("clinical")]
    if given is not None and len(without) == len(cases):
        raise TomokitError(
            f"the table has no record of any case, such as {without[0]}; it names {', '.join(list(given)[:SHOWN])}"
        )
    if without:
        shown = ", ".join(without[:SHOWN]) + (" …" if len(without) > SHOWN else "")
        logger.warning("no record of %d of %d cases, all their fields are missing: %s", len(without), len(cases), shown)
