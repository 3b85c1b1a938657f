"""Data sets in the Medical Segmentation Decathlon's layout: found by name or folder, read, brought in."""

import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tomokit.errors import TomokitError, raise_problems
from tomokit.files import read_json
from tomokit.splits import PARTS, check_disjoint, class_strata, draw_split, limit_cases, read_split
from tomokit.volumes import stem_of

logger = logging.getLogger(__name__)

Entry = dict[str, Any]
KEPT = ("case", "patient", "image", "mask")  # keys of an entry that tell nothing of its label
GIVEN = (*KEPT, "label", "labelled", "change")  # keys of an entry that transforms get; of others there may be anything
MISSING = frozenset(("", "na", "n/a", "nan", "null", "-", "."))  # texts of a record, or a table, that say nothing
READ_AS = {"$": "Python code", "@": "a reference", "%": "a macro"}  # by MONAI's configs, where a text begins so


def data_root() -> Path:
    """Return the folder of all data sets: `$TOMOKIT_DATA`, or `data/sets` in the checkout or here."""
    if configured := os.environ.get("TOMOKIT_DATA"):
        return Path(configured)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "bundles").is_dir() and (folder / "data").is_dir():
            return folder / "data" / "sets"
    return here / "data" / "sets"


def find_dataset(dataset_dir: str | Path) -> Path:
    """Return the folder of a data set given by its folder or by its name under `data_root()`.

    Raises:
        TomokitError: when there is none with a `dataset.json`; it says how to get one.
    """
    for folder in (Path(dataset_dir).expanduser(), data_root() / dataset_dir):
        if (folder / "dataset.json").is_file():
            return folder.resolve()
    if "::" in str(dataset_dir):
        raise TomokitError(
            f"no data set {str(dataset_dir)!r}: MONAI's configs read # as ::, so the folder's path can't hold a #; "
            "rename the folder"
        )
    raise TomokitError(
        f"no data set {str(dataset_dir)!r}: neither that folder nor {data_root() / dataset_dir} has a dataset.json; "
        f"get it with `tomokit data get {dataset_dir}` if `tomokit data list` names it, else with "
        f"`tomokit data get {dataset_dir} --from FOLDER`, or give a folder that holds a dataset.json"
    )


def read_description(folder: Path) -> dict[str, Any]:
    """Return the content of `folder/dataset.json`, its types checked.

    `labels`, where given, is `{"0": name, …}`; `modality`, where given as a mapping or one string, becomes a
    list in the order of the channels.

    Raises:
        TomokitError: that names the file and every key with a value of the wrong type, or with a name that MONAI's
            configs would read as something else.
    """
    path = folder / "dataset.json"
    content = read_json(path)
    if not isinstance(content, dict):
        raise TomokitError(f"{path} must hold an object with `labels` and `training`")
    problems = [] if "labels" not in content else _labels_problems(content["labels"])
    problems += [] if "modality" not in content else _modality_problems(content["modality"])
    for section in PARTS:
        problems += _section_problems(section, content.get(section, []))
    raise_problems(f"{path} is malformed; correct these values", problems)
    checked = dict(content)
    if "labels" in content:
        checked["labels"] = {str(int(value)): name for value, name in content["labels"].items()}
    if "modality" in content:
        checked["modality"] = _list_modality(content["modality"])
    return checked


def read_entries(folder: Path, sections: Sequence[str] = PARTS, labelled: bool = True) -> list[Entry]:
    """Return the entries of `folder/dataset.json`, with absolute paths and a case name and patient each.

    An entry is `{"case", "patient", "image", "label", …}`; `image` is a path or a list of paths, one per
    modality (None for one that is absent); `label` is a path, a class, a number (the target of a regression), or a
    list of 0 and 1. Entries without a label are left out, unless `labelled` is False; they then have no key `label`.
    `mask`, where given, is the path of the structure's mask on the image's grid.

    Raises:
        TomokitError: when `dataset.json` is malformed, lists no such case, or names a case twice.
    """
    by_section = _read_sections(folder, labelled)
    entries = [entry for section in sections for entry in by_section.get(section, [])]
    if not entries:
        kind = "labelled case" if labelled else "case"
        raise TomokitError(
            f"{folder / 'dataset.json'} lists no {kind}; give `training` entries with `image` and `label`"
        )
    seen: dict[str, int] = {}
    for entry in entries:
        seen[entry["case"]] = seen.get(entry["case"], 0) + 1
    raise_problems(
        f"{folder / 'dataset.json'} has cases of the same name; give each image its own file name",
        [f"{case} stands {count} times" for case, count in seen.items() if count > 1],
    )
    return entries


def read_sections(folder: Path) -> dict[str, list[Entry]]:
    """Return the labelled entries of each section of `folder/dataset.json`, an entry as `read_entries` gives it.

    Raises:
        TomokitError: as `read_entries`.
    """
    read_entries(folder)
    return _read_sections(folder)


def select_cases(
    dataset_dir: str | Path,
    split: str | Path,
    fold: int,
    seed: int = 0,
    training: Sequence[str] | None = None,
    validation: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
    join_validation: bool = False,
    keep: Sequence[str] = (),
    limit: float | None = None,
    labelled: bool = True,
) -> dict[str, list[Entry]]:
    """Return `{"training": entries, "validation": entries, "test": entries}`, disjoint by patient.

    The parts come from the three name lists when they are given (a finished run's config has them), else from
    `split`: a file in the data set's folder or anywhere else, of which `fold` is taken. Where the data set
    has no such file and `split` is the default `splits.json`, a 6:2:2 split by patient is drawn with `seed`;
    labelled `validation` and `test` sections of its `dataset.json` then stay as they are. With `join_validation`
    the validation cases are trained on too, by a fixed schedule, since none is left to choose an epoch by. Of an
    entry's other keys (`clinical`, `slice_labels`, one of your own) those in `keep` stay: gaps, and what is not in
    every entry, fit no plain batch. With `limit` only so many of the split's training cases are trained on
    (`splits.limit_cases`, drawn with `seed`); lists that are given were drawn already. Where nothing is learned from
    labels, `labelled` False takes the entries without one too.

    Raises:
        TomokitError: when the data set, the split or a named case is absent, a patient is on two sides, there are
            fewer training cases than `limit`, or the split file keeps the hash of other cases.
    """
    folder = find_dataset(dataset_dir)
    entries = read_entries(folder, labelled=labelled)
    if training is not None and validation is not None and test is not None:
        names = dict(zip(PARTS, map(list, (training, validation, test)), strict=True))
        limit = None
    else:
        names = _names_of_split(folder, split, fold, seed, entries, labelled)
    by_name = {entry["case"]: entry for entry in entries}
    unknown = [f"{name} ({part})" for part in PARTS for name in names[part] if name not in by_name]
    raise_problems(f"the split names cases that {folder} does not have; make the split again", unknown)
    if limit is not None:
        names["training"] = limit_cases([by_name[name] for name in names["training"]], limit, seed)
    given = {*GIVEN, *keep}
    plain = {name: {key: entry[key] for key in entry if key in given} for name, entry in by_name.items()}
    if join_validation:
        names = {"training": [*names["training"], *names["validation"]], "validation": [], "test": names["test"]}
    cases = {part: [plain[name] for name in names[part]] for part in PARTS}
    if not cases["training"]:
        raise TomokitError(f"the split {split} (fold {fold}) of {folder} has no training case")
    check_disjoint(cases)
    return cases


def select_unlabelled(
    dataset_dir: str | Path, split: str | Path, fold: int, seed: int, cases: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[Entry]:
    """Return entries without a label that may be trained on: `{"case", "patient", "image"}`, and `mask` where given.

    They are the training cases of the split that `cases` leaves out, as a `limit` does, whose labels are hidden, and
    entries of the `training` section of `dataset.json` without a label. Patients of the validation and test cases, and
    of what the split sets apart, are left out. The arguments are those of `select_cases`, and what it returned.

    Raises:
        TomokitError: when there is none, and as `select_cases`.
    """
    folder = find_dataset(dataset_dir)
    entries = read_entries(folder)
    hidden = set(_names_of_split(folder, split, fold, seed, entries)["training"])
    bare = [entry for entry in read_entries(folder, ["training"], labelled=False) if "label" not in entry]
    taken = {entry["case"] for part in cases.values() for entry in part}
    barred = {entry["patient"] for part in ("validation", "test") for entry in cases[part]}
    barred |= {entry["patient"] for entry in entries if entry["case"] not in hidden | taken}  # a robustness set's too
    found = [
        {key: entry[key] for key in KEPT if key in entry}
        for entry in [*(entry for entry in entries if entry["case"] in hidden), *bare]
        if entry["case"] not in taken and entry["patient"] not in barred
    ]
    if not found:
        raise TomokitError(
            f"no unlabelled case in {folder}: all {len(cases['training'])} training cases are labelled; set "
            "`label_count` (layer few_labels), or list images without a label in `training` of dataset.json"
        )
    logger.info("%d unlabelled training cases beside %d labelled ones", len(found), len(cases["training"]))
    return found


def unlabelled(entries: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """Return entries whose `label` is renamed `truth`, so that no transform reads it before the network ran."""
    return [{("truth" if key == "label" else key): value for key, value in entry.items()} for entry in entries]


def case_name(image: str | Sequence[str | None]) -> str:
    """Return the case's name: the first image's file name without its suffixes, nor the number of its channel.

    Of several modalities the first one that is there gives the name.
    """
    if isinstance(image, str):
        return stem_of(image)
    place, path = next((place, path) for place, path in enumerate(image) if path is not None)
    return stem_of(path).removesuffix(f"_{place:04d}")


def misread(name: str) -> str:
    """Return how MONAI's configs would read a name that is no plain text to them; "" where they take it as it is."""
    if name[:1] in READ_AS:
        return f"a config would read it as {READ_AS[name[0]]}"
    return f"a config would read it as {name.replace('#', '::')!r}" if "#" in name else ""


def _name_problems(key: str, names: Iterable[str]) -> list[str]:
    """Return which names MONAI's configs, where they are going to stand, would read as something else."""
    return [f"{key} {name!r}: {found}; rename it" for name in names if (found := misread(name))]


def _labels_problems(labels: Any) -> list[str]:
    """Return what is wrong with `labels`, which must be value -> name."""
    if not isinstance(labels, dict) or not labels:
        return [f'`labels` must be an object {{"0": "background", "1": "name"}}, got {labels!r}']
    if any(not key.isdecimal() for key in labels) and all(str(value).isdecimal() for value in labels.values()):
        swapped = {str(value): name for name, value in labels.items()}
        return [f"`labels` must be value -> name, got nnU-Net's name -> value {labels!r}; swap them: {swapped!r}"]
    problems = [
        f'`labels` must have a whole number as key and a name as value, got {key!r}: {name!r}; write "1": "name"'
        for key, name in labels.items()
        if not key.isdecimal() or not isinstance(name, str)
    ]
    return problems or _name_problems("`labels`", labels.values())


def _modality_problems(modality: Any) -> list[str]:
    """Return what is wrong with `modality`: `{"0": "CT", …}`, a list of kinds, or one kind."""
    if isinstance(modality, dict) and not all(key.isdecimal() for key in modality):
        return [f'`modality` must have the numbers of the channels as keys, got {modality!r}; write {{"0": "CT"}}']
    kinds = _list_modality(modality) if isinstance(modality, dict | list | str) else []
    if kinds and all(isinstance(kind, str) and kind for kind in kinds):
        return _name_problems("`modality`", kinds)
    return [f'`modality` must name the kind of each channel, as in {{"0": "CT"}} or ["CT"], got {modality!r}']


def _list_modality(modality: dict[str, str] | list[str] | str) -> list[str]:
    """Return the kind of each channel in the order of the channels."""
    if isinstance(modality, dict):
        return [modality[key] for key in sorted(modality, key=int)]
    return [modality] if isinstance(modality, str) else modality


def _section_problems(section: str, items: Any) -> list[str]:
    """Return what is wrong with the entries of a section."""
    if not isinstance(items, list):
        return [f"`{section}` must be a list of entries, got {items!r}"]
    # text alone is one of the Decathlon's unlabelled test images
    return [
        f"`{section}` entry {index}: {problem}"
        for index, item in enumerate(items)
        if not isinstance(item, str)
        for problem in _entry_problems(item)
    ]


def _entry_problems(item: Any) -> list[str]:
    """Return what is wrong with one entry."""
    if not isinstance(item, dict):
        return [f"must be an object with `image` and `label`, got {item!r}"]
    problems = []
    if _is_image(item.get("image")):
        problems += _name_problems("`image` gives the case the name", [case_name(item["image"])])
    else:
        got = repr(item["image"]) if "image" in item else "none"
        problems.append(f"`image` must be a path or a list of paths, got {got}")
    if "label" in item and item["label"] in (None, ""):
        problems.append(f"`label` must be a path or a class, got {item['label']!r}; leave the key out if there is none")
    if "label" in item and not _is_label(item["label"]):
        problems.append(f"`label` must be a path, a class, a number, or a list of 0 and 1, got {item['label']!r}")
    if "mask" in item and not _is_path(item["mask"]):
        problems.append(f"`mask` must be a path, got {item['mask']!r}; leave the key out if there is none")
    if "clinical" in item and not isinstance(item["clinical"], dict | None):
        problems.append(f"`clinical` must be an object of fields, got {item['clinical']!r}")
    if "patient" in item and (not isinstance(item["patient"], str | int) or item["patient"] == ""):
        problems.append(f"`patient` must be a name or a number, got {item['patient']!r}; leave the key out if unknown")
    return problems


def _is_image(image: Any) -> bool:
    """Return whether `image` is a path or a list of paths, of which some but not all may be None."""
    paths = [image] if isinstance(image, str) else image
    if not isinstance(paths, list) or all(path is None for path in paths):
        return False
    return all(path is None or _is_path(path) for path in paths)


def _is_path(path: Any) -> bool:
    """Return whether a value can be a file's path."""
    return isinstance(path, str) and bool(path) and "\0" not in path


def _is_label(label: Any) -> bool:
    """Return whether a value is a path, a class, a number, or a list of 0 and 1; what is empty is told elsewhere."""
    if isinstance(label, list):
        return bool(label) and all(isinstance(value, int) and not isinstance(value, bool) for value in label)
    if isinstance(label, bool | float):  # JSON's true is no class, and NaN and Infinity are no target
        return isinstance(label, float) and math.isfinite(label)
    return label in (None, "") or isinstance(label, int) or _is_path(label)


def _read_sections(folder: Path, labelled: bool = True) -> dict[str, list[Entry]]:
    """Return the entries of each section of `folder/dataset.json`, those without a label too if so asked."""
    content = read_description(folder)
    items = {
        section: [{"image": item} if isinstance(item, str) else item for item in content.get(section, [])]
        for section in PARTS
    }
    return {
        section: [
            _resolve(folder, item) for item in items[section] if "image" in item and ("label" in item or not labelled)
        ]
        for section in PARTS
    }


def _resolve(folder: Path, item: Mapping[str, Any]) -> Entry:
    """Return one entry with absolute paths, its case name and its patient."""
    case = case_name(item["image"])
    image = item["image"]
    entry = {
        **item,
        "case": case,
        "patient": str(item.get("patient", case)),
        "image": str(folder / image) if isinstance(image, str) else [path and str(folder / path) for path in image],
    }
    for key in ("label", "mask"):
        if isinstance(item.get(key), str):
            entry[key] = str(folder / item[key])
    return entry


def _names_of_split(
    folder: Path, split: str | Path, fold: int, seed: int, entries: Sequence[Entry], labelled: bool = True
) -> dict[str, list[str]]:
    """Return the case names of each part, read from the split file or drawn where there is none."""
    for path in (folder / split, Path(split)):
        if path.is_file():
            return read_split(path, fold, entries)
    if str(split) != "splits.json":
        raise TomokitError(f"no split file {str(split)!r}, neither in {folder} nor from here")
    given = _read_sections(folder, labelled)
    training = given.pop("training")
    kept = " and ".join(part for part in given if given[part]) or "nothing"
    how = "6:2:2 by patient and label" if class_strata(training) else "6:2:2 by patient"
    logger.info("%s has no splits.json: %s, drawn with seed %d; %s kept", folder, how, seed, kept)
    return draw_split(training, seed, given)


def images_of(entries: Sequence[Mapping[str, Any]]) -> list[str | list[str]]:
    """Return the image, or the images of several modalities, of each entry."""
    return [entry["image"] for entry in entries]
