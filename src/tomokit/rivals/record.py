"""A linear model of the clinical record alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline

from tomokit.errors import TomokitError
from tomokit.records import encode_record
from tomokit.rivals.cases import class_names, identify, probability_rows, training_targets
from tomokit.rivals.histogram_tasks import PENALTIES


def score_record(
    training_entries: Sequence[Mapping[str, Any]],
    test_entries: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
    records: Mapping[str, Any],
    task: str = "classes",
) -> list[dict[str, Any]]:
    """Return a row per test case of a regression on the record: logistic for classes, with a ridge for a value.

    It sees what the network sees: each field's numbers, 0 where it is missing, and which are missing. Rows are
    `{"case", "patient", "truth", "p_<class>" …}`, or `{"case", "patient", "truth", "prediction"}` for a value.

    Args:
        training_entries: hold `case`, `clinical` and `label`, a class or a number.
        test_entries: likewise.
        labels: dataset.json's, `{"0": "well", …}`.
        records: what `tomokit.records.fit_records` returns.
        task: "classes" or "value".

    Raises:
        TomokitError: when the record has no field, the task is another, there is no training case or they are all of
            one class, or a label is no class.
    """
    if task not in ("classes", "value") or not records["fields"]:
        fields = [field["name"] for field in records["fields"]]
        raise TomokitError(f"the record's rival needs fields, and classes or a value; got {fields} and {task!r}")
    if not training_entries:
        raise TomokitError("the record's rival needs training cases, got none")
    table, test = (_encode(entries, records) for entries in (training_entries, test_entries))
    imputer = SimpleImputer(strategy="constant", fill_value=0.0, add_indicator=True, keep_empty_features=True)
    if task == "value":
        model = make_pipeline(imputer, RidgeCV(alphas=PENALTIES))
        model.fit(table, [float(entry["label"]) for entry in training_entries])
        return [
            identify(entry) | {"truth": float(entry["label"]), "prediction": float(value)}
            for entry, value in zip(test_entries, model.predict(test), strict=True)
        ]
    names = class_names(labels, [*training_entries, *test_entries])
    model = make_pipeline(imputer, LogisticRegression(max_iter=2000))
    model.fit(table, training_targets(training_entries, names))
    return probability_rows(model, test_entries, test, names)


def _encode(entries: Sequence[Mapping[str, Any]], records: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return the numbers of each entry's record (entries, numbers)."""
    return np.array([encode_record(entry.get("clinical"), records) for entry in entries], float)
