"""Detection of lesions, on pieces whose fate is known."""

import numpy as np
import pytest
from monai.metrics import compute_froc_curve_data

from tomokit.errors import TomokitError
from tomokit.metrics import froc, mean_sensitivity, score_lesions, summarise_lesions


def test_each_lesion_is_found_missed_or_invented():
    truth, prediction = np.zeros((2, 12, 12, 4), bool)
    truth[1:3, 1:3, 1] = True  # found, by one of its voxels
    truth[3, 3, 2] = True  # touches it at a corner
    prediction[2, 2, 1] = prediction[3, 2, 1] = True
    truth[8, 8] = True  # missed
    prediction[10:12, 0, 0] = True  # invented
    rows = score_lesions(prediction, truth, 0.5)
    assert rows == [{"status": "found", "ml": 2.5}, {"status": "missed", "ml": 2.0}, {"status": "invented", "ml": 1.0}]
    assert score_lesions(np.zeros((3, 3, 3)), np.zeros((3, 3, 3)), 1) == []
    assert score_lesions(prediction[::-1, :, ::-1], truth[::-1, :, ::-1], 0.5)[-1] == rows[-1]


def test_a_test_set_is_summed_up():
    rows = [{"case": "a", "status": told} for told in ("found", "found", "missed", "invented")]
    rows += [{"case": "b", "status": "found"}]
    found = summarise_lesions(rows, {"a": "p", "b": "q", "c": "r", "d": "r"})
    assert (
        found["sensitivity"]["mean"] == 3 / 4 and found["precision"]["mean"] == 3 / 4 and found["f1"]["mean"] == 3 / 4
    )
    assert found["false_positives"]["mean"] == 1 / 4 and found["false_positives"]["cases"] == 4
    assert found["sensitivity"]["n"] == 3
    assert (found["lesions"], found["found"], found["missed"], found["invented"]) == (4, 3, 1, 1)


def test_without_lesions_there_is_no_sensitivity():
    found = summarise_lesions([], {"a": "p"})
    assert found["sensitivity"]["mean"] is None and found["false_positives"]["mean"] == 0
    assert summarise_lesions([{"case": "a", "status": "invented"}], {"a": "p"})["precision"]["mean"] == 0


def test_froc_by_hand():
    curve = froc([0.9, 0.8, 0.7, 0.6, 0.5], ["x", "", "x", "y", ""], count=3, cases=2)
    assert curve.thresholds.tolist() == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert curve.false_positives.tolist() == [0, 0.5, 0.5, 0.5, 1]
    assert curve.sensitivity == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    # 1/3 at 1/8 and 1/4, 2/3 from 1/2 on
    assert mean_sensitivity(curve) == pytest.approx((2 * 1 / 3 + 5 * 2 / 3) / 7)


def test_froc_is_monais():
    generator = np.random.default_rng(0)
    found, invented = generator.integers(0, 30, 20) / 30, generator.integers(0, 30, 25) / 30
    again = found / 2  # lesser pieces of the same lesions change nothing but the thresholds
    scores, names = [*found, *again, *invented], [*map(str, range(20)), *map(str, range(20)), *[""] * 25]
    curve = froc(scores, names, count=24, cases=4)
    false, sensitivity = compute_froc_curve_data(invented, found, 24, 4)
    for threshold, one, two in zip(sorted({*found, *invented})[1:], false, sensitivity, strict=False):
        place = curve.thresholds.tolist().index(threshold)
        assert (curve.false_positives[place], curve.sensitivity[place]) == pytest.approx((one, two))
    assert curve.false_positives[-1] == 25 / 4 and curve.sensitivity[-1] == 20 / 24


def test_froc_of_nothing_but_inventions():
    assert mean_sensitivity(froc([0.5], [""], count=1, cases=1)) == 0


def test_wrong_input_is_told():
    with pytest.raises(TomokitError, match=r"\(2, 2, 2\) and truth \(2, 2\)"):
        score_lesions(np.zeros((2, 2, 2)), np.zeros((2, 2)), 1)
    with pytest.raises(TomokitError, match="got 0 rows"):
        summarise_lesions([], {})
    for given in (([0.5], ["x"], 0, 1), ([0.5], ["x"], 1, 0), ([0.5], [], 1, 1)):
        with pytest.raises(TomokitError, match=f"got {given[2]} lesions, {given[3]} cases"):
            froc(*given)
