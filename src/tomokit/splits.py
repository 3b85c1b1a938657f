"""Splits into training, validation and test cases: by patient, written down, never drawn by position."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sklearn.model_selection import GroupShuffleSplit, KFold

from tomokit.errors import TomokitError, raise_problems
from tomokit.files import read_json

PARTS = ("training", "validation", "test")
NNUNET_FOLDS = 5
Entry = Mapping[str, Any]


def draw_split(
    entries: Sequence[Entry], seed: int, given: Mapping[str, Sequence[Entry]] | None = None
) -> dict[str, list[str]]:
    """Return case names drawn 6:2:2 by patient, the same for the same seed whatever the order of `entries`.

    `given` has parts that are there already, "validation" or "test"; they stay as they are, and only the other
    part is drawn from `entries`, 6:2.

    Raises:
        TomokitError: when there are fewer patients than parts to draw.
    """
    given = given or {}
    training, test = list(entries), list(given.get("test") or [])
    validation = list(given.get("validation") or [])
    if not test:
        training, test = hold_out(training, 0.25 if validation else 0.2, seed)
    if not validation:
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
    """Return nnU-Net's five folds, each with an inner validation part drawn from its training.

    A patient's cases stay together; where each patient has one case, the folds are nnU-Net's own.

    Source: nnU-Net's `generate_crossval_split` (sorted names, shuffled KFold with random state 12345).

    Raises:
        TomokitError: when there are fewer than five patients.
    """
    of_patient: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: str(entry["case"])):
        of_patient.setdefault(str(entry["patient"]), []).append(entry)
    groups = list(of_patient.values())  # in the order of each patient's first case name
    if len(groups) < NNUNET_FOLDS:
        raise TomokitError(
            f"nnU-Net's five folds need cases of at least five patients, got {len(groups)}; "
            "train without splits.json: a 6:2:2 split is then drawn"
        )
    folds = []
    for rest, held in KFold(NNUNET_FOLDS, shuffle=True, random_state=12345).split(groups):
        training, validation = hold_out([entry for i in rest for entry in groups[i]], validation_share, seed)
        test = sorted(name for i in held for name in _names(groups[i]))
        folds.append({"training": _names(training), "validation": _names(validation), "test": test})
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
    problems = [
        f"fold {index}: `{part}` must be a list of case names, got {names!r}"
        for index, parts in enumerate(folds)
        for part, names in ((part, parts[part]) for part in PARTS)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names)
    ]
    raise_problems(f"{path} is malformed; correct it or make the split again", problems)
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
