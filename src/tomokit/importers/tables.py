"""Tables beside scans: classes, several labels, patients, groups and clinical columns by case."""

import csv
import difflib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from tomokit.datasets import MISSING
from tomokit.errors import TomokitError, raise_problems
from tomokit.importers.records import Case, Plan, Source, count_of, file_source, path_inside, shorten, words
from tomokit.importers.trees import LABEL_WORDS
from tomokit.volumes import stem_of, suffix_of

PATIENT_COLUMNS = frozenset(words("patientid patient subject subjectid participantid participant pid"))
LEAST_MATCH = 0.9
MOST_CLASSES = 50
MOST_TEXTS = 50
SHOWN_VALUES = 5
YES_NO = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "no": 0, "yes": 1}
Row = dict[str, str]


class Table(NamedTuple):
    """A table as text: `rows` of column -> value, where a missing value is ""."""

    path: Path
    columns: list[str]
    rows: list[Row]


class Columns(NamedTuple):
    """What the user says of a table's columns."""

    labels: Sequence[str] = ()
    events: Sequence[str] = ()
    patient: str | None = None
    group: str | None = None

    def named(self) -> list[str]:
        """Return every column that is named."""
        return [*self.labels, *self.events, *(name for name in (self.patient, self.group) if name)]


def read_table(path: Path) -> Table:
    """Return a CSV or TSV file, separated by comma, semicolon or tab, with its first line as the columns' names.

    Raises:
        TomokitError: when it is absent, not UTF-8, has no row, a column twice, or a row of another length.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        lines = list(csv.reader(text.splitlines(), delimiter=max("\t;,", key=first.count)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TomokitError(f"{path} can't be read as a table ({error}); save it as CSV in UTF-8") from error
    lines = [line for line in lines if any(field.strip() for field in line)]
    if len(lines) < 2:
        raise TomokitError(f"{path} has no row; give a table with a line of column names and a row per image")
    columns = [name.strip() for name in lines[0]]
    problems = [f"the column {name!r} stands {count} times" for name, count in Counter(columns).items() if count > 1]
    problems += [
        f"row {number} has {len(line)} values, where there are {len(columns)} columns"
        for number, line in enumerate(lines[1:], 1)
        if len(line) != len(columns)
    ]
    raise_problems(f"{path} is malformed; correct it", problems)
    rows = [dict(zip(columns, map(_present, line), strict=True)) for line in lines[1:]]
    return Table(path, columns, rows)


def plan_table(table: Table, root: Path, columns: Columns) -> Plan:
    """Return the cases of a table on its own, whose columns hold paths of images and of label files below `root`.

    Raises:
        TomokitError: when no column holds paths, or a path leads out of the folder.
    """
    held = [name for name in table.columns if _holds_paths(table, name)]
    labels = [name for name in held if name in columns.labels or set(words(name)) & LABEL_WORDS]
    images = [name for name in held if name not in labels]
    if not images or len(labels) > 1:
        raise TomokitError(
            f"{table.path}: the columns {held} hold paths of volumes, of which {labels} are labels; give at least one "
            "column with images and at most one with labels"
        )
    plan = Plan("table of paths", used={table.path})
    problems: list[str] = []
    for number, row in enumerate(table.rows, 1):
        where = f"{table.path.name} row {number}"
        try:
            found = [path_inside(root, row[name], where) for name in images + labels if row[name]]
        except TomokitError as error:
            problems.append(str(error))
            continue
        absent = [row[name] or f"no {name}" for name in images if not row[name]]
        absent += [str(path.relative_to(root)) for path in found if not path.is_file()]
        if absent:
            plan.leave("rows whose files do not exist", f"row {number} ({', '.join(absent)})", *found)
            continue
        label = file_source(found[len(images)]) if len(found) > len(images) else None
        sources = [file_source(path) for path in found[: len(images)]]
        plan.cases.append(Case(stem_of(found[0]), sources, label, keys=(row[images[0]],)))
    raise_problems(f"{table.path} names files outside its folder", problems)
    plan.modality = images if len(images) > 1 else []
    plan.told.append(f"images from {', '.join(images)}; label files from {', '.join(labels) or 'no column'}")
    return plan


def attach_table(plan: Plan, table: Table, columns: Columns, required: bool = True) -> None:
    """Give the cases what a table tells of them: patient, group, label, clinical values.

    Args:
        required: raise when no column names the images, else say that the table was not used.

    Raises:
        TomokitError: when a named column is absent or unfit for what it should tell, no column names 9 of 10
            images, or an image has several rows.
    """
    _check_columns(table, columns)
    matches = {name: _match(plan.cases, table, name) for name in table.columns}
    best = max(table.columns, key=lambda name: len(matches[name]))
    if len(matches[best]) < LEAST_MATCH * len(plan.cases):
        counts = sorted(((len(found), name) for name, found in matches.items()), reverse=True)[:SHOWN_VALUES]
        told = ", ".join(f"{name} ({count} of {len(plan.cases)})" for count, name in counts)
        example = plan.cases[0].keys[:2] or (plan.cases[0].name,)
        text = f"{table.path}: no column names the images (such as {' or '.join(example)}); the nearest are {told}"
        if required:
            raise TomokitError(f"{text}; give a table whose column has their names")
        plan.leave("tables that fit no image", text, table.path)
        return
    row_of = _one_row_each(plan.cases, table, best, matches[best])
    patient = columns.patient or next((name for name in table.columns if _plain(name) in PATIENT_COLUMNS), None)
    told = f", patients from {patient}" if patient else ""
    plan.told.append(
        f"table {table.path.name}: {best} names {len(row_of)} of {count_of(len(plan.cases), 'image')}{told}"
    )
    for case in plan.cases:
        if case.name not in row_of:
            plan.note("images without a row in the table", case.name)
        row = row_of.get(case.name, {})
        case.patient = row.get(patient or "") or case.patient
        case.group = row.get(columns.group or "") or case.group
    plan.used.add(table.path)
    _attach_labels(plan, table, columns, row_of)
    taken = {best, patient, *columns.named()}
    _attach_clinical(
        plan, table, [name for name in table.columns if name not in taken and not _holds_paths(table, name)], row_of
    )


def _present(text: str) -> str:
    """Return a value, or "" for every way to write that it is missing."""
    text = text.strip()
    return "" if text.lower() in MISSING else text


def _plain(name: str) -> str:
    """Return a column's name in lower case, letters and digits only."""
    return "".join(filter(str.isalnum, name.lower()))


def _check_columns(table: Table, columns: Columns) -> None:
    """Raise when a column that the user names is not in the table."""
    problems = []
    for name in columns.named():
        if name not in table.columns:
            near = difflib.get_close_matches(name, table.columns, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(table.columns)}"
            problems.append(f"no column {name!r}; {hint}")
    raise_problems(f"{table.path} lacks columns", problems)


def _holds_paths(table: Table, column: str) -> bool:
    """Return whether nearly all values of a column are names of volumes or pictures."""
    values = [row[column] for row in table.rows if row[column]]
    return bool(values) and sum(bool(suffix_of(value)) for value in values) >= LEAST_MATCH * len(values)


# Rows of cases


def _match(cases: Sequence[Case], table: Table, column: str) -> dict[int, list[Row]]:
    """Return the rows of each case (by its place) whose value in `column` is one of the case's names."""
    rows: dict[str, list[Row]] = {}
    for row in table.rows:
        value = row[column].replace("\\", "/").removeprefix("./")
        for key in {value, stem_of(value) if suffix_of(value) else value, PurePath(value).name} - {""}:
            rows.setdefault(key, []).append(row)
    found = {}
    for place, case in enumerate(cases):
        keys = (case.name, *case.keys, *case.folders, *([case.patient] if case.patient else []))
        if fitting := next((rows[key] for key in keys if key in rows), None):
            found[place] = fitting
    return found


def _one_row_each(cases: Sequence[Case], table: Table, column: str, found: dict[int, list[Row]]) -> dict[str, Row]:
    """Return case name -> row.

    Raises:
        TomokitError: when an image has several rows that differ.
    """
    problems = [
        f"{cases[place].name} has {len(rows)} rows that differ"
        for place, rows in found.items()
        if any(row != rows[0] for row in rows)
    ]
    raise_problems(f"{table.path}: the column {column} must name each image once; keep one row per image", problems)
    return {cases[place].name: rows[0] for place, rows in found.items()}


# Labels


def _attach_labels(plan: Plan, table: Table, columns: Columns, row_of: dict[str, Row]) -> None:
    """Give the cases a class from one column, or a list of 0 and 1 from several."""
    asked = [*columns.labels, *columns.events]
    if not asked or (len(asked) == 1 and _holds_paths(table, asked[0])):
        return
    rows = [row_of[case.name] for case in plan.cases if case.name in row_of]
    read = _binary if len(asked) > 1 else _classes
    numbers = {name: read(table, name, rows) for name in columns.labels}
    numbers |= {name: {value: int(value != "") for value in {row[name] for row in rows}} for name in columns.events}
    for case in plan.cases:
        if isinstance(case.label, Source):
            plan.leave(f"label files, since {', '.join(asked)} gives the labels", case.label.name)
        row = row_of.get(case.name, {})
        known = [numbers[name][row[name]] for name in asked if row.get(name) in numbers[name]]
        case.label = None if len(known) < len(asked) else known if len(asked) > 1 else known[0]
        if case.label is None:
            plan.note(f"images without a value of {', '.join(asked)}, kept without a label", case.name)
    if len(asked) > 1:
        plan.labels = dict(enumerate(asked))
    elif columns.events:
        plan.labels = {0: f"no {asked[0]}", 1: asked[0]}
    else:
        plan.labels = {number: value for value, number in numbers[asked[0]].items()}
    plan.told.append(f"labels from {', '.join(asked)}")


def _classes(table: Table, column: str, rows: Sequence[Row]) -> dict[str, int]:
    """Return value -> class, numbered in order.

    Raises:
        TomokitError: when there are fewer than 2 or more than 50 values.
    """
    values = sorted({row[column] for row in rows} - {""}, key=_order)
    if not 2 <= len(values) <= MOST_CLASSES:
        shown = ", ".join(values[:SHOWN_VALUES])
        raise TomokitError(
            f"{table.path}: the column {column} has {count_of(len(values), 'value')} ({shown}), and classes need 2 to "
            f"{MOST_CLASSES}; name another column, or --event {column} to tell filled from empty"
        )
    return {value: number for number, value in enumerate(values)}


def _binary(table: Table, column: str, rows: Sequence[Row]) -> dict[str, int]:
    """Return value -> 0 or 1.

    Raises:
        TomokitError: when a value is neither.
    """
    values = sorted({row[column] for row in rows} - {""})
    if other := [value for value in values if value.lower() not in YES_NO]:
        raise TomokitError(
            f"{table.path}: the column {column} has the values {', '.join(other[:SHOWN_VALUES])}; with several --label "
            "each column must hold 0 and 1"
        )
    return {value: YES_NO[value.lower()] for value in values}


def _order(value: str) -> tuple[bool, float, str]:
    """Return a key that sorts numbers by size, before texts by letter."""
    number = _number(value)
    return (number is None, number if number is not None else 0.0, value)


# Clinical values


def _attach_clinical(plan: Plan, table: Table, names: Sequence[str], row_of: dict[str, Row]) -> None:
    """Give the cases their clinical values: numbers, texts of few kinds, None where missing."""
    if not names or not row_of:
        return
    kept = []
    for name in names:
        values = [row[name] for row in row_of.values() if row[name]]
        texts = {value for value in values if _number(value) is None}
        if texts and len(set(values)) > MOST_TEXTS:
            example = min(texts)[:40]
            plan.leave(f"columns with more than {MOST_TEXTS} different texts", f"{name} (such as {example!r})")
        else:
            kept.append((name, bool(texts)))
    for case in plan.cases:
        if row := row_of.get(case.name):
            case.clinical = {name: _clinical(row[name], as_text) for name, as_text in kept}
    if kept:
        numbers = [name for name, as_text in kept if not as_text]
        texts_kept = [name for name, as_text in kept if as_text]
        plan.told.append(
            f"clinical columns: {len(numbers)} with numbers ({shorten(numbers) or 'none'}), "
            f"{len(texts_kept)} with texts ({shorten(texts_kept) or 'none'})"
        )


def _clinical(value: str, as_text: bool) -> float | str | None:
    """Return a value for JSON, which knows no infinity: "inf" and "-inf" stay text, so that the check shows them."""
    number = _number(value)
    if not value:
        return None
    if as_text or number is None:
        return value
    return number if math.isfinite(number) else str(number)


def _number(value: str) -> float | None:
    """Return a text as a number, or None when it is none."""
    try:
        number = float(value)
    except ValueError:
        return None
    return None if math.isnan(number) else number
