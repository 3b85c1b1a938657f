"""The rivals of a classification or regression: scored on the same cases, and compared with the network there."""

from collections.abc import Mapping, Sequence
from typing import Any

from tomokit import rivals
from tomokit.statistics import delong

Entries = Sequence[Mapping[str, Any]]
Rows = Sequence[Mapping[str, Any]]
FEWEST = 2  # cases with a label, and without, of which a curve has a variance


def score_rivals(
    task: str,
    cases: Mapping[str, Entries],
    labels: Mapping[str, str],
    histogram: bool,
    models: Sequence[str] = (),
    mask_above: float | None = None,
    records: Mapping[str, Any] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each rival on the test cases, by the rival's name.

    Args:
        task: "classes", "labels" or "value".
        cases: the split; `training` fits the rivals, `test` is scored.
        labels: the classes or labels, `{"0": name, …}`.
        histogram: whether there is a linear model of the intensity histogram.
        models: of classes, which of `tomokit.rivals.score_feature_models` there are; other tasks have none of them.
        mask_above: as there.
        records: of a fusion, what `tomokit.records.fit_records` returns: then, beside the histogram, there is a linear
            model of the record alone.

    Raises:
        TomokitError: as the rivals do.
    """
    found = {"histogram": _score_histogram(task, cases, labels)} if histogram else {}
    if histogram and records is not None and records["fields"] and task != "labels":
        found["record"] = rivals.score_record(cases["training"], cases["test"], labels, records, task)
    if task == "classes" and models:
        found |= rivals.score_feature_models(cases["training"], cases["test"], labels, models, mask_above)
    return found


def compare_rows(task: str, rows: Rows, others: Rows, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return how the AUC of `rows` differs from that of `others` on the same cases, for each class or label.

    `{name: {"difference", "ci95": [low, high], "p", "verdict", "n"}}`; the verdict says what `rows` are beside the
    others: "better", "worse", or "tie" where p is 0.05 or more. Of two classes the last one is compared, of more each
    with the rest. Of a patient with several cases the first one counts, since DeLong's test takes cases as
    independent. What fewer than two patients have, or lack, is left out; a value has no AUC.

    Args:
        task: "classes", "labels" or "value".
        rows: the network's table of cases, with a `p_<name>` each.
        others: the rival's, of the same cases.
        names: the classes or labels.
    """
    if task == "value":
        return {}
    theirs = {row["case"]: row for row in others}
    by_patient: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        by_patient.setdefault(str(row["patient"]), row)
    first = list(by_patient.values())
    compared = names[-1:] if task == "classes" and len(names) == 2 else names
    result = {}
    for name in compared:
        truth = [row["truth"] == name if task == "classes" else row[f"truth_{name}"] == 1 for row in first]
        if min(sum(truth), len(truth) - sum(truth)) < FEWEST:
            continue
        ours = [float(row[f"p_{name}"]) for row in first]
        other = [float(theirs[row["case"]][f"p_{name}"]) for row in first]
        found = delong(truth, ours, other)
        told = {"difference": found.difference, "ci95": [found.low, found.high], "p": found.p}
        result[name] = told | {"verdict": found.verdict, "n": len(first)}
    return result


def _score_histogram(task: str, cases: Mapping[str, Entries], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the rows of the histogram's linear model for a task."""
    if task == "labels":
        return rivals.score_histogram_labels(cases["training"], cases["test"], labels)
    if task == "value":
        return rivals.score_histogram_value(cases["training"], cases["test"])
    return rivals.score_histogram(cases["training"], cases["test"], labels)
