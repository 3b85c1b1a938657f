"""Splits into training, validation and test cases: by patient, stratified, written down, never drawn by position."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from sklearn.model_selection import GroupShuffleSplit, KFold

from tomokit.errors import TomokitError, raise_problems
from tomokit.files import read_json, write_json
from tomokit.volumes import read_volume

PARTS = ("training", "validation", "test")
NNUNET_FOLDS = 5
NNUNET_METHOD = "nnU-Net's five folds by name"
INNER_VALIDATION_SHARE = 0.08  # of a fold's training patients
VOLUME_BINS = 10  # bins of label volume at most
SMALLEST_BIN = 5  # patients of a bin at least: what 6:2:2 can share out
LABEL_STRATA = {"class": "class", "list": "each label", "value": "value"}  # by kind of label; files: by volume
READERS = 4  # each holds one label in memory
Entry = Mapping[str, Any]
Strata = Mapping[str, Sequence[float]]  # case name -> what is shared out in proportion: one-hot class, 0/1 labels


class Split(NamedTuple):
    """What a split file keeps.

    Attributes:
        method: how it was drawn, a sentence.
        stratified_by: "class", "each label", "label volume", or None.
        folds: the case names of each fold's parts.
        robustness: cases of the groups set apart, which no fold trains, validates or tests on.
        left_out: other cases of those cases' patients, which belong nowhere.
    """

    method: str
    seed: int
    stratified_by: str | None
    folds: Sequence[Mapping[str, Sequence[str]]]
    robustness: Sequence[str] = ()
    left_out: Sequence[str] = ()


# Drawing


def draw_split(
    entries: Sequence[Entry],
    seed: int,
    given: Mapping[str, Sequence[Entry]] | None = None,
    strata: Strata | None = None,
) -> dict[str, list[str]]:
    """Return case names drawn 6:2:2 by patient, the same for the same seed whatever the order of `entries`.

    `given` has parts that are there already, "validation" or "test"; they stay as they are, and only the other
    part is drawn from `entries`, 6:2. Without `strata` it is stratified by class where the labels are classes.

    Raises:
        TomokitError: when there are fewer patients than parts to draw.
    """
    given = given or {}
    strata = strata or class_strata(entries)
    training, test = list(entries), list(given.get("test") or [])
    validation = list(given.get("validation") or [])
    count, least = len({str(entry["patient"]) for entry in training}), 1 + (not test) + (not validation)
    if count < least:
        raise TomokitError(f"this split needs labelled cases of at least {least} patients, got {count}; add some")
    if not test:
        training, test = hold_out(training, 0.25 if validation else 0.2, seed, strata)
    if not validation:
        training, validation = hold_out(training, 0.25, seed, strata)
    return dict(zip(PARTS, map(_names, (training, validation, test)), strict=True))


def hold_out(
    entries: Sequence[Entry], share: float, seed: int, strata: Strata | None = None
) -> tuple[list[Entry], list[Entry]]:
    """Return `(kept, held)`, where `held` has about `share` of the patients and of each stratum, drawn with `seed`.

    Raises:
        TomokitError: when there are fewer than two patients.
    """
    ordered = sorted(entries, key=lambda entry: str(entry["case"]))
    patients = [str(entry["patient"]) for entry in ordered]
    count = len(set(patients))
    if count < 2:
        raise TomokitError(f"a split needs cases of at least two patients, got {count}; add labelled cases")
    held_count = max(1, round(share * count))
    if strata is not None:
        kept, held = share_out(ordered, (count - held_count, held_count), seed, strata)
        return kept, held
    # without strata scikit-learn's draw, so that splits drawn before there were strata stay what they were
    drawn = GroupShuffleSplit(1, test_size=held_count, random_state=seed).split(ordered, groups=patients)
    kept_places, held_places = next(drawn)
    return [ordered[i] for i in sorted(kept_places)], [ordered[i] for i in sorted(held_places)]


def draw_folds(
    entries: Sequence[Entry],
    count: int,
    seed: int,
    given: Mapping[str, Sequence[Entry]] | None = None,
    strata: Strata | None = None,
) -> list[dict[str, list[str]]]:
    """Return `count` folds by patient: each case is tested on once, an inner validation part is drawn from the rest.

    Where `given` has a "test" part, every fold keeps it, and each case validates once instead; where it has a
    "validation" part, every fold keeps that.

    Raises:
        TomokitError: when there are fewer patients than folds, or both parts are given.
    """
    patients = len(_by_patient(entries))
    if count < 2 or patients < count:
        raise TomokitError(f"{count} folds can't be drawn from {patients} patients; choose 2 to {patients}")
    sizes = [patients // count + (number < patients % count) for number in range(count)]
    strata = strata or class_strata(entries) or {str(entry["case"]): () for entry in entries}
    return _complete_folds(share_out(entries, sizes, seed, strata), INNER_VALIDATION_SHARE, seed, given, strata)


def draw_nnunet_folds(
    entries: Sequence[Entry],
    validation_share: float,
    seed: int,
    given: Mapping[str, Sequence[Entry]] | None = None,
) -> list[dict[str, list[str]]]:
    """Return nnU-Net's five folds, each with an inner validation part drawn from its training.

    A patient's cases stay together; where each patient has one case, the folds are nnU-Net's own. The inner
    validation part is stratified where the labels are classes; `given` as in `draw_folds`.

    Source: nnU-Net's `generate_crossval_split` (sorted names, shuffled KFold with random state 12345).

    Raises:
        TomokitError: when there are fewer than five patients.
    """
    groups = _by_patient(entries)
    if len(groups) < NNUNET_FOLDS:
        raise TomokitError(
            f"nnU-Net's five folds need cases of at least five patients, got {len(groups)}; "
            "train without splits.json: a 6:2:2 split is then drawn"
        )
    parts = [
        [entry for i in held for entry in groups[i]]
        for _, held in KFold(NNUNET_FOLDS, shuffle=True, random_state=12345).split(groups)
    ]
    return _complete_folds(parts, validation_share, seed, given, class_strata(entries))


def share_out(entries: Sequence[Entry], sizes: Sequence[int], seed: int, strata: Strata) -> list[list[Entry]]:
    """Return the entries in parts of `sizes` patients, each stratum and the number of cases shared in proportion.

    Patients that are alike stand together in a row, in the seed's order; the row is dealt out, and patients are
    then swapped as long as that brings the parts' sums nearer to their shares. scikit-learn's StratifiedGroupKFold
    knows neither several labels per case nor parts of unequal size.
    """
    groups = _by_patient(entries)
    cases = np.array([np.sum([strata[str(entry["case"])] for entry in own], axis=0) for own in groups], float)
    # cases of each stratum, and patients who have any of it, as heavy as the one with most: else a patient with many
    # cases of a rare class would count for several with one
    sums = np.column_stack([cases, (cases > 0) * cases.max(axis=0), [len(own) for own in groups]])
    rng = np.random.default_rng(seed)
    row = rng.permutation(len(groups))
    row = np.roll(row[np.lexsort(sums[row].T[::-1])], rng.integers(len(groups)))
    part = np.empty(len(groups), int)
    part[row] = _deal(np.array(sizes), rng)
    _even_out(part, sums, np.array(sizes))
    parts = [[entry for i in np.flatnonzero(part == number) for entry in groups[i]] for number in range(len(sizes))]
    return [sorted(own, key=lambda entry: str(entry["case"])) for own in parts]


def class_strata(entries: Sequence[Entry]) -> Strata | None:
    """Return each case's class or bin of values (one-hot), or list of 0 and 1; None for files and mixed labels."""
    labels: dict[str, Any] = {str(entry["case"]): entry.get("label") for entry in entries}
    if labels and all(isinstance(label, int) for label in labels.values()):
        classes = sorted(set(labels.values()))
        return {case: [float(label == value) for value in classes] for case, label in labels.items()}
    lists = [label for label in labels.values() if isinstance(label, list)]
    if lists and len(lists) == len(labels) and len({len(label) for label in lists}) == 1:
        return {case: [float(value) for value in label] for case, label in labels.items()}
    numbers = {case: float(label) for case, label in labels.items() if type(label) in (int, float)}
    if labels and len(numbers) == len(labels):
        return volume_strata(numbers, min(max(len(numbers) // SMALLEST_BIN, 1), VOLUME_BINS))
    return None


def volume_strata(volumes_ml: Mapping[str, float], bins: int) -> Strata:
    """Return each case's bin (one-hot) of `bins` that hold about as many cases each, from the smallest volume on."""
    order = sorted(volumes_ml, key=lambda case: (volumes_ml[case], case))
    return {
        case: [float(number == own) for number in range(bins)]
        for own, cases in enumerate(np.array_split(order, bins))
        for case in cases.tolist()
    }


def limit_cases(entries: Sequence[Entry], limit: float, seed: int) -> list[str]:
    """Return the names of `limit` of the cases, stratified and nested: those of a smaller limit are the first of them.

    One case of each class (or bin of values, or list of labels) comes first, the most frequent first; then all come in
    proportion. Where labels are files, the order is drawn at random.

    Args:
        entries: the training cases.
        limit: how many, 1 or more; below 1, their share.
        seed: of the draw, which does not depend on the order of `entries`.

    Raises:
        TomokitError: when the limit is no such number, or there are fewer cases.
    """
    count = max(1, round(limit * len(entries))) if isinstance(limit, float) and 0 < limit < 1 else limit
    if isinstance(limit, bool) or count not in range(1, len(entries) + 1):
        raise TomokitError(
            f"the labelled training cases (`label_count`) must be a whole number from 1 to {len(entries)}, as many as "
            f"there are, or a share below 1; got {limit!r}"
        )
    rng = np.random.default_rng(seed)
    ordered = sorted(entries, key=lambda entry: str(entry["case"]))
    strata = class_strata(ordered) or {name: () for name in _names(ordered)}
    kinds: dict[tuple[float, ...], list[str]] = {}
    for place in rng.permutation(len(ordered)):
        name = str(ordered[place]["case"])
        kinds.setdefault(tuple(strata[name]), []).append(name)
    groups = sorted(kinds.values(), key=len, reverse=True)
    row = [group.pop() for group in groups]
    row += [groups[kind].pop() for kind in _deal(np.array([len(group) for group in groups]), rng)]
    return row[: int(count)]


def _complete_folds(
    parts: Sequence[Sequence[Entry]],
    validation_share: float,
    seed: int,
    given: Mapping[str, Sequence[Entry]] | None,
    strata: Strata | None,
) -> list[dict[str, list[str]]]:
    """Return a fold for each part, which is its test part, or its validation part where the test part is given."""
    given = {part: entries for part, entries in (given or {}).items() if entries}
    if {"validation", "test"} <= set(given):
        raise TomokitError("dataset.json gives both the validation and the test part, so that no fold is left to draw")
    folds = []
    for held in parts:
        rest = [entry for part in parts if part is not held for entry in part]
        if "test" in given:
            fold = (rest, held, given["test"])
        elif "validation" in given:
            fold = (rest, given["validation"], held)
        else:
            fold = (*hold_out(rest, validation_share, seed, strata), held)
        folds.append({part: sorted(_names(entries)) for part, entries in zip(PARTS, fold, strict=True)})
    return folds


def _deal(sizes: NDArray[np.int_], rng: np.random.Generator) -> list[int]:
    """Return the part of each place in a row: in any stretch of the row every part is about in proportion."""
    dealt = rng.permutation(len(sizes)) * 1e-9  # decides between equals
    row = []
    for place in range(1, sizes.sum() + 1):
        part = int(np.argmax(sizes * place / sizes.sum() - dealt))
        dealt[part] += 1
        row.append(part)
    return row


def _even_out(part: NDArray[np.int_], sums: NDArray[np.float64], sizes: NDArray[np.int_]) -> None:
    """Swap patients of two parts, in place, as long as the parts' sums come nearer to their shares (least squares)."""
    excess = np.array([sums[part == number].sum(0) for number in range(len(sizes))])
    excess -= np.outer(sizes / sizes.sum(), sums.sum(0))
    pairs = [(a, b) for b in range(len(sizes)) for a in range(b)]
    improved = True
    while improved:
        improved = False
        for a, b in pairs:
            i, k, gain = _best_swap(np.flatnonzero(part == a), np.flatnonzero(part == b), sums, excess[a] - excess[b])
            if gain > 1e-9:
                change = sums[k] - sums[i]
                excess[a] += change
                excess[b] -= change
                part[i], part[k] = b, a
                improved = True


def _best_swap(
    ours: NDArray[np.int_], theirs: NDArray[np.int_], sums: NDArray[np.float64], lead: NDArray[np.float64]
) -> tuple[int, int, float]:
    """Return the two patients whose swap lowers the sum of squares most, and by how much (halved)."""
    if not len(ours) or not len(theirs):
        return 0, 0, 0.0
    mine, others = sums[ours], sums[theirs]
    squares = (mine**2).sum(1)[:, None] + (others**2).sum(1)[None] - 2 * mine @ others.T
    gains = (mine @ lead)[:, None] - (others @ lead)[None] - squares
    i, k = np.unravel_index(np.argmax(gains), gains.shape)
    return int(ours[i]), int(theirs[k]), float(gains[i, k])


# The command


def make_split(
    sections: Mapping[str, Sequence[Entry]], folds: int, nnunet: bool, seed: int, groups: Sequence[str], tell: Console
) -> tuple[Split, dict[str, float]]:
    """Return a split of a data set and, where labels are files that were read, their foreground in ml by case name.

    `folds` of 1 is 6:2:2; labelled `validation` and `test` sections stay as they are. What is decided is told.

    Raises:
        TomokitError: when an option is impossible, patients are too few, or a patient stands on two sides.
    """
    if nnunet and folds not in (1, NNUNET_FOLDS):
        raise TomokitError(f"nnU-Net's folds are {NNUNET_FOLDS}, got {folds} folds; leave one of the two out")
    everything = [entry for part in PARTS for entry in sections[part]]
    kind = _kind_of_labels(everything)
    sections, robustness, left_out = set_apart(sections, groups)
    given = {part: sections[part] for part in PARTS[1:] if sections[part]}
    for part, entries in given.items():
        tell.print(f"the {part} section of dataset.json stays the {part} part: {len(entries)} cases")
    if left_out:
        tell.print(f"left out, since their patients are in the robustness set: {', '.join(left_out)}")
    volumes = measure_labels(everything, tell) if kind == "file" and not nnunet else {}
    if nnunet:
        drawn = draw_nnunet_folds(sections["training"], INNER_VALIDATION_SHARE, seed, given)
        split = Split(NNUNET_METHOD, seed, LABEL_STRATA.get(kind), drawn)
    else:
        split = _draw_stratified(sections["training"], folds, seed, given, kind, volumes)
    method = [split.method, f"{' and '.join(given)} as given" if given else ""]
    method += [f"robustness set: group {', '.join(groups)}" if groups else ""]
    split = split._replace(method="; ".join(filter(None, method)), robustness=robustness, left_out=left_out)
    _check_leaks(split, everything)
    return split, volumes


def set_apart(
    sections: Mapping[str, Sequence[Entry]], groups: Sequence[str]
) -> tuple[dict[str, list[Entry]], list[str], list[str]]:
    """Return the sections without the patients of `groups`, the names of those groups' cases, and those left out.

    Other cases of such a patient are left out: to train on them would make the robustness set easier than it is,
    and they are not of its kind.

    Raises:
        TomokitError: when no case has one of the groups.
    """
    entries = [entry for part in PARTS for entry in sections[part]]
    known = {str(entry["group"]) for entry in entries if "group" in entry}
    if unknown := [group for group in groups if group not in known]:
        there = ", ".join(sorted(known)) or "none; give entries of dataset.json the key `group`"
        raise TomokitError(f"no case has the group {', '.join(map(repr, unknown))}; the groups are: {there}")
    robust = [entry for entry in entries if str(entry.get("group")) in groups and "group" in entry]
    names, patients = set(_names(robust)), {str(entry["patient"]) for entry in robust}
    kept = {part: [entry for entry in sections[part] if str(entry["patient"]) not in patients] for part in PARTS}
    others = [entry for entry in entries if str(entry["patient"]) in patients and str(entry["case"]) not in names]
    return kept, sorted(names), sorted(_names(others))


def measure_labels(entries: Sequence[Entry], tell: Console) -> dict[str, float]:
    """Return the foreground of each case's label in ml; each file is read once, with a progress bar.

    Raises:
        TomokitError: when a label can't be read.
    """

    def measure(entry: Entry) -> float:
        array, affine = read_volume(entry["label"])
        return float(np.count_nonzero(array)) * abs(float(np.linalg.det(affine[:3, :3]))) / 1000

    with ThreadPoolExecutor(READERS) as pool:
        volumes: Iterable[float] = pool.map(measure, entries)
        if tell.is_terminal:
            volumes = track(volumes, "Reading labels", total=len(entries), console=tell, transient=True)
        return dict(zip(_names(entries), volumes, strict=True))


def print_split(split: Split, entries: Sequence[Entry], volumes_ml: Mapping[str, float], console: Console) -> None:
    """Return nothing; print a table of cases, patients and class shares or median volume of each part."""
    by_name = {str(entry["case"]): entry for entry in entries}
    table = Table(title=Text(split.method), title_justify="left")
    table.add_column("fold")
    table.add_column("part", no_wrap=True)
    table.add_column("cases", justify="right")
    table.add_column("patients", justify="right")
    known = volumes_ml or class_strata(entries)
    if known:
        valued = any(isinstance(entry.get("label"), float) for entry in entries)
        table.add_column("median foreground, ml" if volumes_ml else "values" if valued else "cases per class")
    rows = [
        (str(number) if part == PARTS[0] else "", part, fold[part])
        for number, fold in enumerate(split.folds)
        for part in PARTS
    ]
    rows += [("", "robustness", split.robustness)] if split.robustness else []
    for number, part, names in rows:
        own = [by_name[name] for name in names]
        patients = len({str(entry["patient"]) for entry in own})
        labels = [_describe_labels(own, volumes_ml)] if known else []
        table.add_row(number, part, str(len(own)), str(patients), *labels)
    console.print(table)


def _draw_stratified(
    entries: Sequence[Entry],
    folds: int,
    seed: int,
    given: Mapping[str, Sequence[Entry]],
    kind: str,
    volumes_ml: Mapping[str, float],
) -> Split:
    """Return a 6:2:2 split or folds, stratified by label volume, by class, or by each of several labels."""
    if kind == "file":
        by, bins = "label volume", len(_by_patient(entries)) // max(folds, SMALLEST_BIN)
        own = {name: volumes_ml[name] for name in _names(entries)}
        strata: Strata | None = volume_strata(own, min(max(bins, 1), VOLUME_BINS))
    else:
        by, strata = LABEL_STRATA[kind], class_strata(entries)
    if folds == 1:
        drawn, method = [draw_split(entries, seed, given, strata)], "6:2:2"
    else:
        drawn, method = draw_folds(entries, folds, seed, given, strata), f"{folds} folds"
    return Split(f"{method} by patient, stratified by {by}", seed, by, drawn)


def _kind_of_labels(entries: Sequence[Entry]) -> str:
    """Return what the labels are: "file", "class", "list" or "value"; whole numbers among others are values too.

    Raises:
        TomokitError: when they are of several kinds, or of none of these.
    """
    found = {_kind_of_label(entry["label"]) for entry in entries}
    kinds = sorted({"value"} if found == {"class", "value"} else found)
    kind = kinds[0].partition(" ")[0] if len(kinds) == 1 else ""
    if kind in ("file", "class", "list", "value"):
        return kind
    raise TomokitError(
        f"labels can't be stratified that are {' and '.join(kinds) or 'not there'}; give every entry of dataset.json "
        "a path, or a class (a whole number), or a number, or a list of 0 and 1, as many in each"
    )


def _kind_of_label(label: Any) -> str:
    """Return what one label is."""
    if isinstance(label, list):
        return f"list of {len(label)}"
    return {str: "file", int: "class", float: "value"}.get(type(label), type(label).__name__)


def _describe_labels(entries: Sequence[Entry], volumes_ml: Mapping[str, float]) -> str:
    """Return a part's median volume, or how many of its cases each class has; "–" for an empty part."""
    strata = class_strata(entries)
    if volumes_ml and entries:
        median = float(np.median([volumes_ml[name] for name in _names(entries)]))
        return str(np.format_float_positional(median, 3, fractional=False, trim="-"))
    if strata is None:
        return "–"
    if any(isinstance(entry["label"], float) for entry in entries):
        return f"median {np.median([entry['label'] for entry in entries]):.4g}"
    counts = np.sum(list(strata.values()), axis=0).astype(int).tolist()
    several = isinstance(entries[0]["label"], list)
    names = range(len(counts)) if several else sorted({entry["label"] for entry in entries})
    pairs = zip(names, counts, strict=True)
    return ", ".join(f"{name}: {count} ({count / len(entries):.0%})" for name, count in pairs)


# The file


def write_split(path: str | Path, split: Split, entries: Sequence[Entry]) -> None:
    """Return nothing; write a split file with the hash of `entries`: all labelled cases of the data set.

    An entry needs `case` and `patient`; `label` and `group` are hashed where they are there.
    """
    content: dict[str, Any] = {
        "method": split.method,
        "seed": split.seed,
        "hash": hash_entries(entries),
        "stratified_by": split.stratified_by,
        "folds": [{part: list(fold[part]) for part in PARTS} for fold in split.folds],
        "robustness": list(split.robustness),
    }
    write_json(path, content | ({"left_out": list(split.left_out)} if split.left_out else {}))


def hash_entries(entries: Sequence[Entry]) -> str:
    """Return a SHA-256 over each case's name, patient, class and group, in order of the names.

    It changes when a case is added, removed or renamed, or its patient, class or group is changed. Files are not
    read: voxels and paths may change (`runs.hash_cases` looks at the files).
    """
    rows = sorted(
        [str(entry["case"]), str(entry["patient"]), _class_text(entry.get("label")), str(entry.get("group", ""))]
        for entry in entries
    )
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


def read_split(path: str | Path, fold: int, entries: Sequence[Entry] | None = None) -> dict[str, list[str]]:
    """Return the case names of one fold of a split file: `{"training": […], "validation": […], "test": […]}`.

    With `entries`, all labelled cases of the data set, a file that keeps a hash must fit them.

    Raises:
        TomokitError: when the file is not a split file, has no such fold, was drawn for other cases than
            `entries`, or a fold holds a patient of the robustness set.
    """
    content = read_json(path)
    folds = content.get("folds") if isinstance(content, dict) else None
    if not isinstance(folds, list) or not all(isinstance(f, dict) and set(PARTS) <= set(f) for f in folds):
        raise TomokitError(f"{path} is not a split file: it needs `folds`, each with {', '.join(PARTS)}")
    lists = [(f"fold {number}: `{part}`", parts[part]) for number, parts in enumerate(folds) for part in PARTS]
    lists += [(f"`{key}`", content[key]) for key in ("robustness", "left_out") if key in content]
    problems = [
        f"{title} must be a list of case names, got {names!r}"
        for title, names in lists
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names)
    ]
    raise_problems(f"{path} is malformed; correct it or make the split again", problems)
    if not 0 <= fold < len(folds):
        raise TomokitError(f"fold {fold} is not in {path}, which has {len(folds)}: choose 0 to {len(folds) - 1}")
    if entries is not None:
        _check_hash(Path(path), content, entries)
        _check_leaks(Split("", 0, None, folds[fold : fold + 1], content.get("robustness", [])), entries)
    return {part: list(folds[fold][part]) for part in PARTS}


def check_disjoint(cases: Mapping[str, Sequence[Entry]]) -> None:
    """Raise when a patient stands on two sides of a split.

    Raises:
        TomokitError: that names every such patient with both parts.
    """
    part_of: dict[str, str] = {}
    problems = []
    for part in cases:
        for patient in sorted({str(entry["patient"]) for entry in cases[part]}):
            if patient in part_of:
                problems.append(f"patient {patient} is in {part_of[patient]} and in {part}")
            part_of.setdefault(patient, part)
    raise_problems("the split leaks: move all scans of a patient to one side", problems)


def _check_hash(path: Path, content: Mapping[str, Any], entries: Sequence[Entry]) -> None:
    """Raise when a split file keeps a hash that is not that of `entries`; it names the cases that differ."""
    kept = content.get("hash")
    if kept is None or kept == hash_entries(entries):
        return
    part_of = {name: part for fold in content["folds"] for part in PARTS for name in fold[part]}
    part_of |= {name: part for part in ("robustness", "left_out") for name in content.get(part, [])}
    there = set(_names(entries))
    problems = [f"{name} ({part_of[name]}) is in the split, not in the data" for name in sorted(set(part_of) - there)]
    problems += [f"{name} is in the data, not in the split" for name in sorted(there - set(part_of))]
    raise_problems(
        f"{path} was drawn for other cases than the data set has now; make it again with "
        f"`tomokit split DIR --out {path} --overwrite` (it was: {content.get('method')}; seed {content.get('seed')})",
        problems or ["the names are the same: a patient, class or group of a case in dataset.json was changed"],
    )


def _check_leaks(split: Split, entries: Sequence[Entry]) -> None:
    """Raise when a patient of a fold stands on two sides or in the robustness set; unknown names are passed over."""
    by_name = {str(entry["case"]): entry for entry in entries}
    for fold in split.folds:
        sides = {part: fold[part] for part in PARTS} | {"robustness": split.robustness}
        check_disjoint({side: [by_name[name] for name in names if name in by_name] for side, names in sides.items()})


def _class_text(label: Any) -> str:
    """Return a class or a list of labels as text; a path is no class."""
    return "" if label is None or isinstance(label, str) else json.dumps(label)


def _by_patient(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return each patient's entries, the patients in the order of their first case names."""
    of_patient: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: str(entry["case"])):
        of_patient.setdefault(str(entry["patient"]), []).append(entry)
    return list(of_patient.values())


def _names(entries: Sequence[Entry]) -> list[str]:
    """Return the case names in order."""
    return [str(entry["case"]) for entry in entries]
