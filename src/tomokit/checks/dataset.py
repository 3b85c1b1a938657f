"""The whole check of a data set: each case once, in parallel and in bounded memory, then the cases side by side."""

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from rich.console import Console
from rich.progress import track

from tomokit.checks.cases import Case, Expected, examine_case, images_of_entry
from tomokit.checks.findings import KINDS, Finding
from tomokit.checks.pairs import Fold, compare_pairs
from tomokit.checks.sets import compare_cases
from tomokit.datasets import Entry, case_name, find_dataset, read_description, read_entries
from tomokit.errors import TomokitError
from tomokit.files import read_json
from tomokit.splits import PARTS, read_split
from tomokit.volumes import SUFFIXES, suffix_of

CLEAN, FAULTY, UNUSABLE = 0, 1, 2
CHANGED_ENTRIES = ("orphan", "label_outside_map")  # what makes a split stale is told as what it is
MEMORY_SHARE = 0.5  # of the free memory, for all cases in work at a time


class Report(NamedTuple):
    """What a check found: the set's name, labels and cases, and the findings, grave ones first."""

    name: str
    labels: Mapping[str, str]
    cases: Sequence[Case]
    findings: Sequence[Finding]

    @property
    def exit_code(self) -> int:
        """Return 0 when there are no errors, 1 when there are, 2 when no case can be used at all."""
        if any(finding.kind == "unusable" for finding in self.findings):
            return UNUSABLE
        return FAULTY if any(finding.severity == "error" for finding in self.findings) else CLEAN

    def as_json(self) -> dict[str, Any]:
        """Return what the JSON file holds."""
        return {"cases": len(self.cases), "findings": [finding.as_row() for finding in self.findings]}


def check_dataset(dataset_dir: str | Path, progress: bool = True) -> Report:
    """Return every fault found in a data set, given by its folder or name; nothing is changed.

    Headers and voxels of each file are read once. A set that can't be used gives a report with one finding of
    the kind "unusable" rather than an exception.
    """
    name = Path(dataset_dir).name
    try:
        folder = find_dataset(dataset_dir)
        content = read_description(folder)
        entries = _label_sections(read_entries(folder, labelled=False), content)
    except TomokitError as error:
        return Report(name, {}, [], [Finding(None, "unusable", str(error))])
    labels = content.get("labels", {})
    modality = tuple(content["modality"]) if "modality" in content else None
    classed = any(not isinstance(entry.get("label", ""), str) for entry in entries)  # a label map needs one grid
    values = frozenset(map(int, labels)) if labels else None
    expected = Expected(values, modality, own_grids=None if classed else False)
    cases = _examine(entries, expected, progress)
    findings = [finding for case in cases for finding in case.findings]
    orphans = _orphans(folder, entries)
    findings += orphans
    if not any(case.is_readable for case in cases):
        findings.append(Finding(None, "unusable", f"none of {len(cases)} cases could be read"))
    else:
        findings += _compare(folder, entries, cases, labels, orphans)
    return Report(str(content.get("name", folder.name)), labels, cases, sorted(findings, key=_order))


def _label_sections(entries: Sequence[Entry], content: Mapping[str, Any]) -> list[Entry]:
    """Return the entries with the section of dataset.json that each stands in."""
    section = {
        case_name(item if isinstance(item, str) else item["image"]): part
        for part in PARTS
        for item in content.get(part, [])
    }
    return [{**entry, "section": section[entry["case"]]} for entry in entries]


def _examine(entries: Sequence[Entry], expected: Expected, progress: bool) -> list[Case]:
    """Return the examined cases in order, read by as many threads as there are cores."""
    gate = _MemoryGate(int(psutil.virtual_memory().available * MEMORY_SHARE))

    def examine(entry: Entry) -> Case:
        return examine_case(entry, expected, hold=gate.hold)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        results: Iterator[Case] = pool.map(examine, entries)
        console = Console(stderr=True)
        return list(
            track(
                results,
                "Checking",
                len(entries),
                console=console,
                transient=True,
                disable=not (progress and console.is_terminal),
                update_period=0.5,
            )
        )


class _MemoryGate:
    """Lets threads in as long as what they need together stays below a limit; one alone always enters."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.changed = threading.Condition()

    @contextmanager
    def hold(self, needed: int) -> Iterator[None]:
        """Wait until there is room for `needed` bytes, and keep them for the block."""
        with self.changed:
            self.changed.wait_for(lambda: self.held == 0 or self.held + needed <= self.limit)
            self.held += needed
        try:
            yield
        finally:
            with self.changed:
                self.held -= needed
                self.changed.notify_all()


def _orphans(folder: Path, entries: Sequence[Entry]) -> list[Finding]:
    """Return a finding for each volume in the folder that dataset.json does not list, by case name."""
    listed = {Path(path).resolve() for entry in entries for path in images_of_entry(entry)}
    lost: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and suffix_of(path) in SUFFIXES and path.resolve() not in listed:
            lost.setdefault(case_name(str(path)), []).append(path.relative_to(folder).as_posix())
    return [Finding(case, "orphan", f"not in dataset.json: {', '.join(files)}") for case, files in lost.items()]


def _compare(
    folder: Path, entries: Sequence[Entry], cases: Sequence[Case], labels: Mapping[str, str], orphans: Sequence[Finding]
) -> list[Finding]:
    """Return what shows only beside the other cases; what follows from another finding is not told again."""
    folds, stale = _read_folds(folder, entries)
    pairs = list(compare_pairs(cases, folds))
    leaks = any(finding.kind == "patient_leak" for finding in pairs)
    explained = {finding.case for finding in pairs if finding.kind != "patient_leak"}
    lost = {finding.case for finding in orphans}
    alone = [
        finding
        for finding in compare_cases(cases, labels)
        if not (finding.kind == "label_does_not_fit" and finding.case in explained)
        and not (finding.kind == "orphan" and finding.case in lost)
    ]
    told = [*orphans, *alone, *(finding for case in cases for finding in case.findings)]
    changed = leaks or any(finding.kind in CHANGED_ENTRIES for finding in told)
    return ([] if changed else stale) + pairs + alone


def _read_folds(folder: Path, entries: Sequence[Entry]) -> tuple[list[Fold], list[Finding]]:
    """Return the parts of each fold, from splits.json or else dataset.json's sections, and what is wrong with them."""
    path = folder / "splits.json"
    folds: list[Fold]
    if not path.is_file():
        folds = [{part: [entry["case"] for entry in entries if entry["section"] == part] for part in PARTS}]
        return folds, []
    try:
        content = read_json(path)
        folds = [dict(read_split(path, fold)) for fold in range(len(content["folds"]))]
    except (TomokitError, TypeError, KeyError) as error:
        return [], [Finding(None, "stale_split", str(error))]
    robustness = content.get("robustness", [])
    folds = [{**fold, "robustness": robustness} for fold in folds]
    labelled = [entry for entry in entries if "label" in entry]
    known = {entry["case"] for entry in labelled}
    named = {name for fold in folds for names in fold.values() for name in names}
    if named - known:
        return folds, [Finding(None, "stale_split", f"splits.json names {_few(named - known)}, no labelled case")]
    lost = known - named - set(content.get("left_out", []))
    if lost and "hash" in content:
        return folds, [Finding(None, "stale_split", f"splits.json has no place for {_few(lost)}")]
    try:
        read_split(path, 0, labelled)
    except TomokitError as error:
        return folds, [Finding(None, "stale_split", " ".join(str(error).split()))]
    return folds, []


def _few(names: Iterable[str]) -> str:
    """Return the first names in order."""
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (" …" if len(ordered) > 5 else "")


def _order(finding: Finding) -> tuple[bool, int, bool, str]:
    """Return the sorting key: errors first, then by kind in the order of `KINDS`, then by case."""
    return (
        finding.severity != "error",
        list(KINDS).index(finding.kind),
        finding.case is not None,
        finding.case or "",
    )
