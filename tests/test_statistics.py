import math

import numpy as np
import pytest
import scipy.stats

from tomokit.errors import TomokitError
from tomokit.statistics import Interval, bootstrap_mean, bootstrap_statistic


def mean(values):
    return float(np.mean(values))


def test_interval_of_normal_values_is_the_textbook_one():
    values = scipy.stats.norm.ppf((np.arange(200) + 0.5) / 200)
    half = 1.96 * values.std() / math.sqrt(200)
    interval = bootstrap_mean(values, range(200))
    assert interval.mean == pytest.approx(0, abs=1e-12)
    assert interval.low == pytest.approx(-half, abs=0.01)
    assert interval.high == pytest.approx(half, abs=0.01)
    assert interval.n_patients == 200


def test_two_patients_give_the_range_of_their_values():
    assert bootstrap_mean([0.2, 0.8], ["a", "b"]) == Interval(0.5, 0.2, 0.8, 2)


def test_scans_of_one_patient_do_not_count_as_independent():
    values, patients = np.tile([0.1, 0.5, 0.6, 0.9], 10), np.tile(["a", "b", "c", "d"], 10)
    by_patient, by_scan = bootstrap_mean(values, patients), bootstrap_mean(values, range(40))
    assert by_patient == pytest.approx(bootstrap_mean([0.1, 0.5, 0.6, 0.9], list("abcd")))
    assert by_patient.high - by_patient.low > 2 * (by_scan.high - by_scan.low)


def test_the_mean_weighs_cases_not_patients():
    assert bootstrap_mean([1.0, 1.0, 0.0], ["a", "a", "b"]).mean == pytest.approx(2 / 3)


def test_one_patient_has_no_interval():
    assert bootstrap_mean([0.2, 0.4], ["a", "a"]) == pytest.approx(Interval(0.3, None, None, 1))
    assert bootstrap_statistic(mean, [[0.2, 0.4]], ["a", "a"]) == pytest.approx(Interval(0.3, None, None, 1))


def test_equal_values_have_an_interval_of_no_width():
    assert bootstrap_mean([0.7] * 3, ["a", "b", "c"]) == Interval(0.7, 0.7, 0.7, 3)


def test_order_of_cases_and_seed():
    values, patients = np.random.default_rng(0).random(30), np.arange(30) // 2
    turned = np.random.default_rng(1).permutation(30)
    assert bootstrap_mean(values, patients) == bootstrap_mean(values, patients)
    assert bootstrap_mean(values, patients) == pytest.approx(bootstrap_mean(values[turned], patients[turned]))
    assert bootstrap_mean(values, patients, seed=1) != bootstrap_mean(values, patients)


def test_more_confidence_is_a_wider_interval():
    values = np.random.default_rng(0).random(30)
    narrow, wide = (bootstrap_mean(values, range(30), confidence=c) for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_mean_and_statistic_agree():
    values, patients = np.random.default_rng(0).random(40), np.arange(40) // 3
    expected = bootstrap_mean(values, patients)
    assert bootstrap_statistic(mean, [values], patients, resamples=9999) == pytest.approx(expected, abs=0.005)


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    draws = [bootstrap_mean(generator.normal(size=40), range(40), resamples=499) for _ in range(200)]
    assert 0.88 <= np.mean([draw.low <= 0 <= draw.high for draw in draws]) <= 0.99


def test_undefined_resamples_are_skipped():
    def mean_with_the_greatest(values):  # undefined in (7/8)^8 = 34 % of the resamples
        return mean(values) if 7 in values else math.nan

    defined = bootstrap_statistic(mean, [np.arange(8)], range(8))
    skipped = bootstrap_statistic(mean_with_the_greatest, [np.arange(8)], range(8))
    assert skipped.mean == defined.mean == 3.5
    assert defined.low < skipped.low < skipped.high < 7


def test_mostly_undefined_has_no_interval():
    def rare(values):
        return 1.0 if len(set(values)) == 8 else math.nan

    assert bootstrap_statistic(rare, [np.arange(8)], range(8), resamples=100) == Interval(1.0, None, None, 8)


def test_undefined_over_all_cases():
    assert bootstrap_statistic(lambda _: math.nan, [[1, 2]], "ab") == Interval(None, None, None, 2)


@pytest.mark.parametrize(
    ("values", "patients", "message"),
    [
        ([], [], "no values to summarise, got an empty list"),
        ([1.0, 2.0], ["a"], "got 2 values and 1 patients"),
    ],
)
def test_wrong_lengths(values, patients, message):
    with pytest.raises(TomokitError, match=message):
        bootstrap_mean(values, patients)
    with pytest.raises(TomokitError, match=message):
        bootstrap_statistic(mean, [values], patients)


def test_values_that_are_not_finite():
    with pytest.raises(TomokitError, match="got nan for patient p2"):
        bootstrap_mean([0.1, math.nan], ["p1", "p2"])


def test_statistic_without_arrays():
    with pytest.raises(TomokitError, match="at least one array, got none"):
        bootstrap_statistic(mean, [], ["a"])
