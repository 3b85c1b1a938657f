"""The scores of kinds of patients and scans: of a data set's groups, of clinical fields, of sizes."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tomokit.datasets import find_dataset, read_entries
from tomokit.errors import TomokitError

logger = logging.getLogger(__name__)

MOST_VALUES = 6  # of a field that tells kinds; one of more values, as an age, is none
FEWEST_PATIENTS = 5  # of a kind that is scored
SIZES = ("smallest third", "middle third", "largest third")
Rows = Sequence[Mapping[str, Any]]
Groups = dict[str, dict[str, str]]


def read_subgroups(dataset_dir: str | Path, cases: Sequence[str]) -> Groups:
    """Return what kind each case is of, `{"group" or a clinical field: {case: kind}}`, as the data set tells it.

    Fields that tell kinds are texts or truths, of at most six; those of which all cases have one kind tell nothing.
    A case without a value is of none. Where the data set is not there, a line says that no kinds are known.
    """
    try:
        entries = read_entries(find_dataset(dataset_dir))
    except TomokitError as error:
        logger.warning("no kinds of cases are scored by themselves: %s", error)
        return {}
    wanted = set(cases)
    told: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry["case"] not in wanted:
            continue
        for field, value in {"group": entry.get("group"), **(entry.get("clinical") or {})}.items():
            if value is not None and value != "":
                told.setdefault(field, {})[entry["case"]] = value
    return {field: {case: str(value) for case, value in own.items()} for field, own in told.items() if _tells(own)}


def _tells(values: Mapping[str, Any]) -> bool:
    """Return whether values are kinds, and more than one."""
    kinds = all(isinstance(value, str | bool) for value in values.values())
    return kinds and 1 < len(set(values.values())) <= MOST_VALUES


def group_by_size(sizes: Mapping[str, float]) -> dict[str, str]:
    """Return the third of the sizes that each case's lies in, `{case: "smallest third", …}`; none of fewer than 3."""
    if len(sizes) < len(SIZES):
        return {}
    order = sorted(sizes, key=lambda case: (sizes[case], case))
    parts = np.array_split(np.array(order, dtype=object), len(SIZES))
    return {str(case): name for name, part in zip(SIZES, parts, strict=True) for case in part}


def summarise_subgroups(
    rows: Rows, groups: Mapping[str, Mapping[str, str]], summarise: Callable[[Rows], Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the summary of each kind's rows, `{field: {kind: {"n": patients, "cases", "summary"}}}`.

    Rows carry "case" and "patient". Of fewer than five patients "summary" is None: such a kind is named, not scored.

    Args:
        rows: of all cases.
        groups: as `read_subgroups` returns them.
        summarise: what makes the scores of rows, by their names.
    """
    found: dict[str, dict[str, Any]] = {}
    for field, kind_of in groups.items():
        for kind in sorted(set(kind_of.values()), key=_order):
            own = [row for row in rows if kind_of.get(row["case"]) == kind]
            patients = {str(row["patient"]) for row in own}
            summary = summarise(own) if len(patients) >= FEWEST_PATIENTS else None
            told = {"n": len(patients), "cases": len({row["case"] for row in own}), "summary": summary}
            found.setdefault(field, {})[kind] = told
    return found


def _order(kind: str) -> tuple[int, str]:
    """Return the place of a kind: sizes from the smallest on, others by name."""
    return (SIZES.index(kind) if kind in SIZES else 0), kind
