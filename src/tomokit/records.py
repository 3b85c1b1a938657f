"""Clinical records as numbers that a network takes: which fields, of which kind, and how each is written.

A record is an entry's `clinical`: field -> number or text. None, NaN, an infinite number and the words for "missing"
say that a field is missing. A number is standardised, after its logarithm was taken where it is skewed; a category is
a 1 among 0s. What is missing, or was never seen in training, is NaN in all of a field's numbers. All that is fitted is
fitted on the training cases alone, and kept in the run's folder as plain JSON.
"""

import fnmatch
import logging
import math
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from tomokit.datasets import MISSING
from tomokit.errors import TomokitError, raise_problems
from tomokit.files import read_json, write_json

logger = logging.getLogger(__name__)

FILE = "records.json"
NUMBER, CATEGORY = "number", "category"
MOST_CATEGORIES = 20
SKEWED = 0.5  # from which skewness on the logarithm may be taken
FEWEST = 20  # values that tell a skewness
LIMIT = 5.0  # standard deviations; what lies further counts as this far, so that a wrong unit can't drown the rest
SHOWN = 5  # values in a message

Entries = Sequence[Mapping[str, Any]]
Record = Mapping[str, Any]
Kinds = dict[str, str | list[str]]  # of each field: "number", or its categories


# Which fields


def find_fields(entries: Entries, exclude: Sequence[str] = ()) -> Kinds:
    """Return the kind of each field of the training cases' records: "number", or the list of its categories.

    A field is a number where each of its known values is one, be it as text. Fields without a value, or with the same
    in all cases, say nothing and are left out; the log tells which.

    Args:
        entries: the training cases, with their `clinical`.
        exclude: patterns as the shell has them, such as `*_offset`; a field whose name fits one is left out.

    Raises:
        TomokitError: when a pattern fits no field, a field has more than 20 texts, or no field is left.
    """
    columns = _columns(entries)
    idle = [pattern for pattern in exclude if not any(fnmatch.fnmatchcase(name, pattern) for name in columns)]
    raise_problems(
        f"`exclude` must fit fields of the records, which are {', '.join(columns) or 'none'}",
        [f"no field is called like {pattern!r}" for pattern in idle],
    )
    kept = [name for name in columns if not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)]
    kinds = {name: _tell_kind(columns[name]) for name in kept}
    raise_problems(
        "these fields are no categories; leave them out with `exclude`",
        [
            f"{name} has {len(kind)} different texts, such as {kind[0]!r}; a field may have {MOST_CATEGORIES}"
            for name, kind in kinds.items()
            if isinstance(kind, list) and len(kind) > MOST_CATEGORIES
        ],
    )
    found: Kinds = {name: kind for name, kind in kinds.items() if kind}
    if not found:
        raise TomokitError(
            f"the records of the {len(entries)} training cases have no field that tells anything; give entries of "
            "dataset.json a `clinical`, and look at `exclude`"
        )
    silent = [name for name, kind in kinds.items() if not kind]
    logger.info("record: %s%s", ", ".join(found), f"; without a word: {', '.join(silent)}" if silent else "")
    return found


def check_fields(fields: Any) -> Kinds:
    """Return the kinds of fields, categories as the texts that records are compared with.

    Raises:
        TomokitError: that lists each field that is neither `number` nor a list of categories.
    """
    if not isinstance(fields, Mapping):
        raise TomokitError(
            "`fields` must give for each field of the record `number` or a list of its categories, got "
            f"{fields!r:.80}; the layer modes/all_fields.yaml takes all fields of the training cases"
        )
    kinds: Kinds = {}
    problems = []
    for name, kind in fields.items():
        if kind == NUMBER:
            kinds[str(name)] = NUMBER
            continue
        texts = [read_text(value) for value in kind] if isinstance(kind, list | tuple) else []
        if len(texts) < 2 or None in texts or len(set(texts)) < len(texts):
            problems.append(f"{name} must be `number` or a list of two categories or more, got {kind!r:.80}")
        kinds[str(name)] = [str(text) for text in texts]
    raise_problems("`fields` is wrong", problems)
    return kinds


def count_numbers(fields: Mapping[str, Any]) -> list[int]:
    """Return how many numbers each field becomes, as `FusionNetwork` takes them: one, or one for each category.

    Raises:
        TomokitError: as `check_fields`.
    """
    return [1 if kind == NUMBER else len(kind) for kind in check_fields(fields).values()]


# What is fitted


def fit_records(entries: Entries, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the fields of a record become numbers, fitted on the training cases: `{"fields": […]}`, plain JSON.

    A number has `log` (whether its logarithm is taken: where values are skewed, and all above 0), `least` (the
    smallest value seen: what lies below counts as this, where the logarithm is taken), `mean` and `sd` of what is then
    standardised. A category has its `categories`.

    Args:
        entries: the training cases, with their `clinical`.
        fields: as `find_fields` returns them, or as the config gives them.

    Raises:
        TomokitError: that lists the fields without a value, and the values that are not of their field's kind.
    """
    kinds, columns = check_fields(fields), _columns(entries)
    problems = [
        problem for name, kind in kinds.items() for problem in _value_problems(name, kind, columns.get(name, []))
    ]
    raise_problems(
        f"`fields` does not fit the records of the {len(entries)} training cases, which have "
        f"{', '.join(columns) or 'no field (see `clinical` in data/README.md)'}; correct `fields`",
        problems,
    )
    return {
        "fields": [
            {"name": name, "kind": CATEGORY, "categories": list(kind)}
            if isinstance(kind, list)
            else _fit_number(name, columns[name])
            for name, kind in kinds.items()
        ]
    }


def fields_of(records: Mapping[str, Any]) -> Kinds:
    """Return the kinds of the fields that were fitted, as `find_fields` gives them."""
    return {
        field["name"]: NUMBER if field["kind"] == NUMBER else list(field["categories"]) for field in records["fields"]
    }


def write_records(run_dir: str | Path, records: Mapping[str, Any]) -> None:
    """Write what was fitted to `<run_dir>/records.json`, and its numbers' names to the run's metadata.

    Where several processes train, the first one writes.
    """
    if int(os.environ.get("RANK", "0")) != 0:
        return
    write_json(Path(run_dir) / FILE, records)
    path = Path(run_dir) / "configs" / "metadata.json"
    if path.is_file():
        content, names = read_json(path), name_numbers(records)
        inputs = content["network_data_format"]["inputs"]
        told = inputs.pop("record", None)
        if told and names:
            channels = {str(place): name for place, name in enumerate(names)}
            inputs["record"] = told | {"num_channels": len(names), "channel_def": channels}
        write_json(path, content)


def name_numbers(records: Mapping[str, Any]) -> list[str]:
    """Return what each number of a record's vector is: a field, or a field's category."""
    names = []
    for field in records["fields"]:
        own = field["name"]
        names += [own] if field["kind"] == NUMBER else [f"{own}: {category}" for category in field["categories"]]
    return names


def read_records(run_dir: str | Path) -> dict[str, Any]:
    """Return what the training of a run fitted.

    Raises:
        TomokitError: when `<run_dir>/records.json` is absent or malformed.
    """
    path = Path(run_dir) / FILE
    if not path.is_file():
        raise TomokitError(
            f"{path} does not exist, which tells how records become numbers; training writes it: train the run, or "
            "copy the file with it"
        )
    return check_records(read_json(path), str(path))


def check_records(content: Any, source: str) -> dict[str, Any]:
    """Return what was fitted, as plain lists and numbers; `source` says where it comes from.

    Raises:
        TomokitError: that lists each problem.
    """
    fields = content.get("fields") if isinstance(content, Mapping) else None
    if not isinstance(fields, list | tuple):
        raise TomokitError(f"{source} must hold a list `fields`, got {str(content)[:80]}; copy it from the run again")
    problems = [f"field {place}: {problem}" for place, own in enumerate(fields) if (problem := _field_problem(own))]
    names = [own.get("name") for own in fields if isinstance(own, Mapping)]
    problems += [f"{name} stands {names.count(name)} times" for name in dict.fromkeys(names) if names.count(name) > 1]
    raise_problems(f"{source} is malformed; copy it from the run again, or train again", problems)
    return {"fields": [dict(own) for own in fields]}


# A record as numbers


class RecordVectord(MapTransform):
    """Turns a case's record into the key `record`: a vector (numbers,), float32, NaN where a field is missing.

    The record itself is taken out, since its gaps fit no batch. A case without one has NaN alone. Nothing in it is
    random, so that a cache keeps the vector.

    Args:
        keys: the key of the record, `clinical`.
        records: what `fit_records` or `read_records` returns.

    Raises:
        TomokitError: when there are several keys, or `records` is malformed.
    """

    def __init__(self, keys: KeysCollection, records: Mapping[str, Any]) -> None:
        super().__init__(keys)
        if len(self.keys) != 1:
            raise TomokitError(f"a case has one record, got the keys {list(self.keys)}; give one key")
        self.records = check_records(records, "`records`")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with `record` in place of the record itself."""
        result = dict(data)
        result["record"] = torch.from_numpy(encode_record(result.pop(self.keys[0], None), self.records))
        return result


def encode_record(record: Record | None, records: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the numbers of a record (numbers,), in the order of the fitted fields; NaN where a field is missing."""
    given = record or {}
    return np.array([number for field in records["fields"] for number in _encode(field, given)], np.float32)


def find_doubts(given: Mapping[str, Record], records: Mapping[str, Any]) -> list[str]:
    """Return sentences on what a network will not understand in the records of cases, by the cases' names.

    They tell of fields that no record has, of categories that training did not see, and of numbers that lie far from
    all that it saw: a unit may be wrong.
    """
    doubts = []
    for field in records["fields"]:
        name = field["name"]
        known = {case: own[name] for case, own in given.items() if not is_missing(own.get(name))}
        if not known:
            doubts.append(f"no record has a value of {name}, which counts as missing")
            continue
        odd = {case: value for case, value in known.items() if math.isnan(_encode(field, {name: value})[0])}
        if odd:
            wanted = "numbers" if field["kind"] == NUMBER else ", ".join(field["categories"])
            doubts.append(f"{name} counts as missing where it is not among {wanted}: {_show(odd)}")
        if field["kind"] == NUMBER:
            far = {case: value for case, value in known.items() if abs(_encode(field, {name: value})[0]) >= LIMIT}
            if far:
                doubts.append(f"{name} is far from all that training saw, perhaps in another unit: {_show(far)}")
    return doubts


def is_missing(value: Any) -> bool:
    """Return whether a field's value says nothing: None, a number that is not finite, or a word for it."""
    if value is None:
        return True
    try:
        return not math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return str(value).strip().lower() in MISSING


def read_number(value: Any) -> float | None:
    """Return a field's value as a number, be it written as text; None where it is missing or none."""
    if isinstance(value, bool) or is_missing(value):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def read_text(value: Any) -> str | None:
    """Return a field's value as a category's name; None where it is missing.

    Whole numbers are alike however they are written (1, 1.0, "1"), and so are true and True.
    """
    if is_missing(value):
        return None
    number = read_number(value)
    if number is not None and number.is_integer():
        return str(int(number))
    text = str(value).strip()
    return text.lower() if text.lower() in ("true", "false") else text


def _columns(entries: Entries) -> dict[str, list[Any]]:
    """Return the values of each field that a record has, in the order of the cases; None where a record lacks it."""
    given = [entry.get("clinical") or {} for entry in entries]
    names = dict.fromkeys(name for record in given for name in record)
    return {str(name): [record.get(name) for record in given] for name in names}


def _tell_kind(values: Sequence[Any]) -> str | list[str]:
    """Return "number" or the categories of a field; "" where its values do not differ."""
    known = [value for value in values if not is_missing(value)]
    numbers = [number for value in known if (number := read_number(value)) is not None]
    if len(numbers) == len(known):
        return NUMBER if len(set(numbers)) > 1 else ""
    texts = sorted({str(read_text(value)) for value in known})
    return texts if len(texts) > 1 else ""


def _value_problems(name: str, kind: str | list[str], values: Sequence[Any]) -> list[str]:
    """Return what is wrong with the training cases' values of a field."""
    known = [value for value in values if not is_missing(value)]
    if not known:
        return [f"no training case has a value of {name}; take it out"]
    if isinstance(kind, list):
        others = sorted({text for value in known if (text := read_text(value)) is not None and text not in kind})
        wrong = f"{name} has the categories {', '.join(kind)}, not"
    else:
        others = sorted({str(value) for value in known if read_number(value) is None})
        wrong = f"{name} is a number, not"
    if not others:
        return []
    more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    return [f"{wrong} {', '.join(map(repr, others[:SHOWN]))}{more}"]


def _fit_number(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """Return how a number is standardised, by its values among the training cases."""
    known = np.array([number for value in values if (number := read_number(value)) is not None])
    logarithmic = _is_skewed(known)
    scaler = StandardScaler().fit((np.log(known) if logarithmic else known)[:, None])
    fitted = {"least": float(known.min()), "mean": float(scaler.mean_[0]), "sd": float(scaler.scale_[0])}
    return {"name": name, "kind": NUMBER, "log": logarithmic, **fitted}


def _is_skewed(values: NDArray[np.float64]) -> bool:
    """Return whether values have a long tail upwards that their logarithm shortens.

    The logarithm, unlike a fitted power, does not depend on the unit, and can't run away beyond the values seen.
    """
    if len(values) < FEWEST or values.min() <= 0 or values.min() == values.max():
        return False
    own, logarithm = float(scipy.stats.skew(values)), float(scipy.stats.skew(np.log(values)))
    return own > SKEWED and abs(logarithm) < own


def _encode(field: Mapping[str, Any], record: Record) -> list[float]:
    """Return the numbers of one field of a record."""
    value = record.get(field["name"])
    if field["kind"] == CATEGORY:
        text, names = read_text(value), field["categories"]
        return [float(text == name) for name in names] if text in names else [math.nan] * len(names)
    number = read_number(value)
    if number is None:
        return [math.nan]
    if field["log"]:
        number = math.log(max(number, field["least"]))
    return [min(max((number - field["mean"]) / field["sd"], -LIMIT), LIMIT)]


def _field_problem(field: Any) -> str:
    """Return what is wrong with one fitted field; "" where nothing is."""
    if not isinstance(field, Mapping) or not isinstance(field.get("name"), str):
        return f"it has no name: {str(field)[:80]}"
    name = field["name"]
    if field.get("kind") == CATEGORY:
        names = field.get("categories")
        listed = names if isinstance(names, list | tuple) else []
        whole = all(isinstance(text, str) for text in listed) and len(set(listed)) == len(listed) > 1
        return "" if whole else f"{name} must have two different `categories` or more, got {names!r:.80}"
    if field.get("kind") != NUMBER:
        return f"{name} must be of the kind {NUMBER} or {CATEGORY}, got {field.get('kind')!r:.80}"
    if not isinstance(field.get("log"), bool):
        return f"{name} must have `log` true or false, got {field.get('log')!r:.80}"
    values = {key: field.get(key) for key in ("least", "mean", "sd")}
    plain = all(isinstance(value, int | float) and math.isfinite(value) for value in values.values())
    if plain and field["sd"] > 0 and (field["least"] > 0 or not field["log"]):
        return ""
    return f"{name} must have finite numbers, `sd` above 0, and `least` above 0 where `log` is true, got {values}"


def _show(values: Mapping[str, Any]) -> str:
    """Return the first values with their cases."""
    shown = [f"{value!r} in {case}" for case, value in list(values.items())[:SHOWN]]
    return ", ".join(shown) + (f" and {len(values) - SHOWN} more" if len(values) > SHOWN else "")
