"""A network beside its rivals on the same cases."""

import numpy as np
import pytest
from test_rivals_features import draw, save

from tomokit.engines.comparison import compare_rows, score_rivals
from tomokit.rivals import score_feature_models, score_histogram, score_histogram_labels, score_histogram_value
from tomokit.statistics import delong

NAMES = ("normal", "long")
TRUTH = [1, 1, 1, 0, 0, 0]
OURS = [0.9, 0.8, 0.4, 0.7, 0.3, 0.2]
THEIRS = [0.6, 0.9, 0.5, 0.7, 0.1, 0.55]


def class_rows(chances, truth=TRUTH, patients=None):
    patients = patients or [f"p{i}" for i in range(len(chances))]
    return [
        {"case": f"c{i}", "patient": patient, "truth": NAMES[label], "p_normal": 1 - chance, "p_long": chance}
        for i, (chance, label, patient) in enumerate(zip(chances, truth, patients, strict=True))
    ]


def test_two_classes_are_compared_once_by_delongs_test():
    found = compare_rows("classes", class_rows(OURS), class_rows(THEIRS), NAMES)
    expected = delong(TRUTH, OURS, THEIRS)
    assert list(found) == ["long"]
    assert found["long"] == {
        "difference": pytest.approx(expected.difference),
        "ci95": [pytest.approx(expected.low), pytest.approx(expected.high)],
        "p": pytest.approx(expected.p),
        "verdict": "tie",
        "n": 6,
    }
    assert compare_rows("classes", class_rows(OURS), class_rows(OURS), NAMES)["long"]["p"] == 1


def test_the_order_of_the_rivals_rows_does_not_count():
    forth = compare_rows("classes", class_rows(OURS), class_rows(THEIRS), NAMES)
    assert compare_rows("classes", class_rows(OURS), class_rows(THEIRS)[::-1], NAMES) == forth


def test_a_patient_counts_once():
    patients = ["a", "b", "c", "d", "e", "f", "a", "d"]
    ours, theirs = (class_rows([*own, 0.0, 1.0], [*TRUTH, 1, 0], patients) for own in (OURS, THEIRS))
    assert compare_rows("classes", ours, theirs, NAMES) == compare_rows(
        "classes", class_rows(OURS), class_rows(THEIRS), NAMES
    )


def test_several_classes_and_labels_are_compared_each():
    names = ["a", "b", "c"]

    def rows(seed):
        chances = np.random.default_rng(seed).dirichlet([1, 1, 1], 9)
        told = [dict(zip(("p_a", "p_b", "p_c"), own.tolist(), strict=True)) for own in chances]
        return [{"case": i, "patient": i, "truth": names[i % 3], **own} for i, own in enumerate(told)]

    found = compare_rows("classes", rows(1), rows(2), names)
    assert list(found) == names
    pair = ([row["p_b"] for row in rows(seed)] for seed in (1, 2))
    assert found["b"]["difference"] == pytest.approx(delong([i % 3 == 1 for i in range(9)], *pair).difference)
    flags = [{"truth_a": i % 2, "truth_b": int(i % 3 == 0), "truth_c": int(i == 4)} for i in range(9)]  # one case has c
    labelled = [[row | own for row, own in zip(rows(seed), flags, strict=True)] for seed in (1, 2)]
    found = compare_rows("labels", *labelled, names)
    assert list(found) == ["a", "b"] and found["a"]["n"] == 9


def test_a_value_has_no_curve():
    assert compare_rows("value", [{"case": "a"}], [{"case": "a"}], ["age"]) == {}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Return 12 training and 6 test cases whose images are masks, long ones of class 1."""
    folder, rng, made = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0), []
    for number in range(18):
        image = save(folder / f"case_{number:02d}.nii", draw(2 if number % 2 else 1, rng))
        made.append({"case": f"case_{number:02d}", "image": image, "label": number % 2})
    return {"training": made[:12], "test": made[12:]}


def test_each_rival_that_is_asked_for_is_scored(cases):
    labels = {"0": "round", "1": "long"}
    given = (cases["training"], cases["test"])
    found = score_rivals("classes", cases, labels, True, ["threshold", "tree"], 0)
    assert found == {
        "histogram": score_histogram(*given, labels),
        **score_feature_models(*given, labels, ["threshold", "tree"], 0),
    }
    assert score_rivals("classes", cases, labels, False) == {}
    assert list(score_rivals("classes", cases, labels, False, ["logistic"], 0)) == ["logistic"]


def test_other_tasks_have_the_histogram_alone(cases):
    for task, change, score in (
        ("labels", lambda label: [label, 1 - label], score_histogram_labels),
        ("value", lambda label: 1.5 + label, None),
    ):
        own = {part: [entry | {"label": change(entry["label"])} for entry in cases[part]] for part in cases}
        labels = {"0": "round", "1": "long"}
        found = score_rivals(task, own, labels, True, ["logistic"], 0)
        expected = score(own["training"], own["test"], labels) if score else score_histogram_value(*own.values())
        assert found == {"histogram": expected}
        assert score_rivals(task, own, labels, False, ["logistic"], 0) == {}
