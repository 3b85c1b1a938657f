"""What validation cases promise of new ones, and whether it was kept."""

import math

import numpy as np
import pytest

from tomokit.errors import TomokitError
from tomokit.files import read_json, write_json
from tomokit.held_out import (
    FILE,
    Promise,
    keep_classes,
    keep_values,
    keep_volumes,
    promise_classes,
    promise_interval,
    read_promise,
    score_classes,
    score_intervals,
)

NAMES = ["benign", "malignant"]


def certain_cases(count, errors=0):
    """Return probabilities (cases, 2) from .5 to 1 of the first class, and classes of which the first are wrong."""
    own = np.linspace(0.5, 1, count)
    truth = np.zeros(count, int)
    truth[:errors] = 1
    return np.stack([own, 1 - own], axis=1), truth


def test_a_run_without_validation_cases_promises_nothing(tmp_path):
    assert read_promise(tmp_path, 0.1, 0.05) is None


def test_classes_are_promised_by_the_kept_answers(tmp_path):
    keep_classes(tmp_path, *certain_cases(99))
    promise = read_promise(tmp_path, 0.1, 0.05)
    assert (promise.task, promise.cases, promise.error_rate, promise.risk) == ("classes", 99, 0.1, 0.05)
    assert promise.least == pytest.approx(0.5 + 9 / 98 / 2)  # the tenth lowest
    assert promise.answered == pytest.approx(0.5)  # none was wrong


def test_fewer_errors_allowed_make_larger_sets(tmp_path):
    keep_classes(tmp_path, *certain_cases(99))
    assert read_promise(tmp_path, 0.05, 0.05).least < read_promise(tmp_path, 0.2, 0.05).least


@pytest.mark.parametrize(
    ("chance", "told"),
    [
        (0.95, {"set": "benign", "refer": ""}),
        (0.85, {"set": "benign", "refer": "too uncertain"}),
        (0.6, {"set": "benign|malignant", "refer": "several classes fit"}),
    ],
)
def test_a_case_is_told_its_classes_and_why_a_human_should_look(chance, told):
    promise = Promise("classes", 99, 0.1, 0.05, least=0.3, answered=0.9)
    assert promise_classes(promise, {"benign": chance, "malignant": 1 - chance}) == told


def test_a_case_may_fit_no_class():
    promise = Promise("classes", 99, 0.1, 0.05, least=0.7, answered=0.9)
    assert promise_classes(promise, {"benign": 0.6, "malignant": 0.4}) == {"set": "", "refer": "no class fits"}


def test_a_kept_promise_is_counted():
    rows = [
        {"patient": "a", "truth": "benign", "p_benign": 0.9, "p_malignant": 0.1, "set": "benign", "refer": ""},
        {"patient": "b", "truth": "malignant", "p_benign": 0.8, "p_malignant": 0.2, "set": "benign", "refer": ""},
        {
            "patient": "c",
            "truth": "malignant",
            "p_benign": 0.6,
            "p_malignant": 0.4,
            "set": "benign|malignant",
            "refer": "x",
        },
        {"patient": "d", "truth": "benign", "p_benign": 0.3, "p_malignant": 0.7, "set": "", "refer": "x"},
    ]
    found = score_classes(Promise("classes", 99, 0.1, 0.05), rows, NAMES)
    assert {key: found[key]["mean"] for key in ("covered", "set_size", "answered", "wrong_answers")} == {
        "covered": 0.5,
        "set_size": 1,
        "answered": 0.5,
        "wrong_answers": 0.5,
    }
    assert found["covered"]["cases"] == 4 and found["wrong_answers"]["cases"] == 2
    assert found["curve"]["coverage"] == [0.25, 0.5, 0.75, 1]
    assert found["curve"]["risk"] == pytest.approx([0, 1 / 2, 2 / 3, 3 / 4])
    assert (found["error_rate"], found["calibration_cases"], found["risk"]) == (0.1, 99, 0.05)


def test_where_all_is_referred_no_answer_is_scored():
    row = {"patient": "a", "truth": "benign", "p_benign": 0.9, "p_malignant": 0.1, "set": "benign", "refer": "x"}
    assert score_classes(Promise("classes", 9, 0.1, 0.05), [row], NAMES)["wrong_answers"]["mean"] is None


def test_a_value_has_an_interval(tmp_path):
    keep_values(tmp_path, np.arange(19.0), np.arange(19.0) + np.arange(19) / 10)
    promise = read_promise(tmp_path, 0.1, 0.05)
    assert promise_interval(promise, 10.0) == pytest.approx((8.3, 11.7))
    rows = [{"patient": "a", "truth": 9, "low": 8, "high": 12}, {"patient": "b", "truth": 20, "low": 16, "high": 18}]
    found = score_intervals(promise, rows, "truth")
    assert found["covered"]["mean"] == 0.5 and found["width"]["mean"] == 3


def test_a_structure_has_an_interval_in_ml(tmp_path):
    truth = np.full(19, 2.0)
    keep_volumes(tmp_path, {"liver": (truth.tolist(), (truth + np.arange(19) / 10).tolist()), "cyst": ([1.0], [1.0])})
    promise = read_promise(tmp_path, 0.1, 0.05)
    assert promise.cases == 19
    assert promise_interval(promise, 2.0, "liver") == pytest.approx((0.3, 3.7))
    assert promise_interval(promise, 2.0, "cyst") == (0, math.inf)  # of one case
    with pytest.raises(TomokitError, match="promises nothing of 'spleen', only of liver, cyst"):
        promise_interval(promise, 2.0, "spleen")


def test_each_structure_is_scored_by_itself():
    promise = Promise("segmentation", 19, 0.1, 0.05, reach={"liver": 1.0, "cyst": math.inf})
    rows = [
        {"patient": "a", "class": "liver", "truth_ml": 2, "low_ml": 1, "high_ml": 3},
        {"patient": "b", "class": "liver", "truth_ml": 5, "low_ml": 1, "high_ml": 4},
        {"patient": "a", "class": "cyst", "truth_ml": 2, "low_ml": 0, "high_ml": math.inf},
    ]
    found = score_intervals(promise, rows, "truth_ml", "_ml")["per_class"]
    assert found["liver"]["covered"]["mean"] == 0.5 and found["liver"]["width_ml"]["mean"] == 2.5
    assert found["cyst"]["covered"]["mean"] == 1 and "width_ml" not in found["cyst"]


@pytest.mark.parametrize(
    "content", [{}, {"task": "labels"}, {"task": "classes", "probabilities": [], "truth": []}, [1]]
)
def test_a_malformed_file_is_named(tmp_path, content):
    write_json(tmp_path / FILE, content)
    with pytest.raises(TomokitError, match=f"{FILE} is malformed"):
        read_promise(tmp_path, 0.1, 0.05)


@pytest.mark.parametrize(("error_rate", "risk", "name"), [(0, 0.05, "error_rate"), (0.1, 1.5, "risk")])
def test_impossible_shares_are_refused_before_a_run(tmp_path, error_rate, risk, name):
    with pytest.raises(TomokitError, match=f"`{name}` must lie between 0 and 1"):
        read_promise(tmp_path, error_rate, risk)


def test_no_name_of_a_case_is_kept(tmp_path):
    keep_classes(tmp_path, *certain_cases(9))
    assert set(read_json(tmp_path / FILE)) == {"task", "probabilities", "truth"}
