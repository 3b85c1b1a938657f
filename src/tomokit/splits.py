"""Splits into training, validation and test cases: by patient, written down, never drawn by position."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import GroupShuffleSplit, KFold

from tomokit.errors import TomokitError, raise_problems
from tomokit.files import read_json

PARTS = ("training", "validation", "test")
Entry = Mapping[str, Any]


def draw_split(entries: Sequence[Entry], seed: int) -> dict[str, list[str]]:
    """Return case names drawn 6:2:2 by patient, the same for the same seed whatever the order of `entries`.

    Raises:
        TomokitError: when there are fewer than three patients.
    """
    training, test = hold_out(entries, 0.2, seed)
    training, validation = hold_out(training, 0.25, seed)
    return dict(zip(PARTS, map(_names, (training, validation, test)), strict=True))


def hold_out(entries: Sequence[Entry], share: float, seed: int) -> tuple[list[Entry], list[Entry]]:
    """Return `(kept, held)`, where `held` has about `share` of the patients, drawn with `seed`.

    Raises:
        TomokitError: when there are fewer than two patients.
    """
    ordered = sorted(entries, key=lambda entry: str(entry["case"]))
    patients = [str(entry["patient"]) for entry in ordered]
    count = len(set(patients))
    if count < 2:
        raise TomokitError(f"a split needs cases of at least two patients, got {count}; add labelled cases")
    held_count = max(1, round(share * count))
    kept, held = next(GroupShuffleSplit(1, test_size=held_count, random_state=seed).split(ordered, groups=patients))
    return [ordered[i] for i in sorted(kept)], [ordered[i] for i in sorted(held)]


def draw_nnunet_folds(entries: Sequence[Entry], validation_share: float, seed: int) -> list[dict[str, list[str]]]:
    """Return nnU-Net's five folds by case name, each with an inner validation part drawn from its training.

    Source: nnU-Net's `generate_crossval_split` (sorted names, shuffled KFold with random state 12345).
    """
    by_name = {str(entry["case"]): entry for entry in entries}
    names = np.array(sorted(by_name))
    folds = []
    for rest, test in KFold(5, shuffle=True, random_state=12345).split(names):
        training, validation = hold_out([by_name[name] for name in names[rest]], validation_share, seed)
        folds.append({"training": _names(training), "validation": _names(validation), "test": names[test].tolist()})
    return folds


def read_split(path: str | Path, fold: int) -> dict[str, list[str]]:
    """Return the case names of one fold of a split file: `{"training": […], "validation": […], "test": […]}`.

    Raises:
        TomokitError: when the file is not a split file or has no such fold.
    """
    content = read_json(path)
    folds = content.get("folds") if isinstance(content, dict) else None
    if not isinstance(folds, list) or not all(isinstance(f, dict) and set(PARTS) <= set(f) for f in folds):
        raise TomokitError(f"{path} is not a split file: it needs `folds`, each with {', '.join(PARTS)}")
    if not 0 <= fold < len(folds):
        raise TomokitError(f"fold {fold} is not in {path}, which has {len(folds)}: choose 0 to {len(folds) - 1}")
    return {part: list(folds[fold][part]) for part in PARTS}


def check_disjoint(cases: Mapping[str, Sequence[Entry]]) -> None:
    """Raise when a patient stands on two sides of a split.

    Raises:
        TomokitError: that names every such patient with both parts.
    """
    part_of: dict[str, str] = {}
    problems = []
    for part in PARTS:
        for patient in sorted({str(entry["patient"]) for entry in cases[part]}):
            if patient in part_of:
                problems.append(f"patient {patient} is in {part_of[patient]} and in {part}")
            part_of.setdefault(patient, part)
    raise_problems("the split leaks: move all scans of a patient to one side", problems)


def _names(entries: Sequence[Entry]) -> list[str]:
    """Return the case names in order."""
    return [str(entry["case"]) for entry in entries]
