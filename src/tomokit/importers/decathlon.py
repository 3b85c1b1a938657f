"""Folders in the Medical Segmentation Decathlon's layout: a `dataset.json` that lists images and labels."""

import math
from pathlib import Path
from typing import Any

from tomokit.errors import TomokitError, raise_problems
from tomokit.files import read_json
from tomokit.importers.records import FOLDERS, Case, Plan, check_strings, file_source, path_inside
from tomokit.volumes import stem_of


def plan_decathlon(root: Path) -> Plan:
    """Return the cases that `dataset.json` lists; 4D images give a channel per place along their last axis.

    Raises:
        TomokitError: that lists every malformed entry and every path that leads out of the folder.
    """
    content = read_json(root / "dataset.json")
    plan = Plan("Decathlon layout", used={root / "dataset.json"})
    problems: list[str] = []
    names: dict[str, dict[int, str]] = {"modality": {}, "labels": {}}
    for key in [key for key in names if key in content]:
        given = [content[key]] if key == "modality" and isinstance(content[key], str) else content[key]
        try:
            names[key] = check_strings(given, f"`{key}`")
        except TomokitError as error:
            problems.append(str(error))
    plan.modality, plan.labels = list(names["modality"].values()), names["labels"] or None
    for section in FOLDERS:
        items = content.get(section) or []
        if not isinstance(items, list):
            problems.append(f"`{section}` must be a list of entries, got {items!r}")
            continue
        for index, item in enumerate(items):
            try:
                plan.cases.append(_case(root, section, {"image": item} if isinstance(item, str) else item))
            except TomokitError as error:
                problems.append(f"`{section}` entry {index}: {error}")
    kinds = {type(case.label) for case in plan.cases if case.label is not None}
    if len(kinds) > 1:
        problems.append("some labels are paths, some classes, or some lists of 0 and 1; a data set has one kind")
    raise_problems(f"{root / 'dataset.json'}: correct these values", problems)
    return plan


def _case(root: Path, section: str, item: Any) -> Case:
    """Return the case of one entry.

    Raises:
        TomokitError: when the entry is malformed or leads out of the folder.
    """
    images = item.get("image") if isinstance(item, dict) else None
    paths = [images] if isinstance(images, str) else images
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
        raise TomokitError(f"`image` must be a path or a list of paths, got {images!r}")
    label, clinical = item.get("label"), item.get("clinical")
    if not isinstance(clinical, dict | None):
        raise TomokitError(f'`clinical` must be like {{"age": 61.0}}, got {clinical!r}')
    if not isinstance(label, str | int | None) and not (isinstance(label, list) and set(label) <= {0, 1}):
        raise TomokitError(f"`label` must be a path, a class, or a list of 0 and 1, got {label!r}")
    files = [path_inside(root, path, "`image`") for path in paths]
    name = stem_of(files[0]).removesuffix("_0000") if len(files) > 1 else stem_of(files[0])
    return Case(
        name,
        [file_source(file) for file in files],
        file_source(path_inside(root, label, "`label`")) if isinstance(label, str) else label,
        section,
        str(item["patient"]) if item.get("patient") not in (None, "") else None,
        {name: _finite(value) for name, value in (clinical or {}).items()},
        str(item["group"]) if item.get("group") not in (None, "") else None,
        keys=(name, *paths),
    )


def _finite(value: Any) -> Any:
    """Return a clinical value for JSON, which knows no NaN and no infinity: None, and the text "inf" or "-inf"."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)
