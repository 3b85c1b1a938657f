import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from tomokit.errors import TomokitError
from tomokit.metrics import area_under_curve
from tomokit.statistics import (
    COVERAGE,
    FEW,
    Interval,
    auc_variance,
    bootstrap_mean,
    bootstrap_statistic,
    bootstrap_statistics,
    compare_means,
    coverage_note,
    delong,
    rank_methods,
)


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


def test_several_statistics_are_each_as_alone():
    def both(values):
        return [mean(values), float(np.median(values)), math.nan]

    values, patients = np.random.default_rng(0).random(30), np.arange(30) // 2
    first, second, undefined = bootstrap_statistics(both, [values], patients, resamples=200)
    assert first == bootstrap_statistic(mean, [values], patients, resamples=200)
    assert second == bootstrap_statistic(lambda own: float(np.median(own)), [values], patients, resamples=200)
    assert undefined == Interval(None, None, None, 15)
    assert bootstrap_statistics(both, [[0.2, 0.4]], ["a", "a"])[0] == pytest.approx(Interval(0.3, None, None, 1))


# Of three positives and three negatives. The first score puts .4 below one negative, the second puts .6, .9 and .5
# above two, three and one of them; written down, every share is a multiple of 1/3.
TRUTH = [1, 1, 1, 0, 0, 0]
SCORES_A = [0.9, 0.8, 0.4, 0.7, 0.3, 0.2]
SCORES_B = [0.6, 0.9, 0.5, 0.7, 0.1, 0.55]


def areas_by_definition(truth, *scores):
    """Return the AUC of each score, the covariance of all, from each pair of a positive and a negative."""
    truth = np.asarray(truth, bool)
    wins = [
        (own[truth][:, None] > own[~truth]) + 0.5 * (own[truth][:, None] == own[~truth])
        for own in map(np.asarray, scores)
    ]
    by_positive, by_negative = (np.stack([win.mean(axis) for win in wins]) for axis in (1, 0))
    covariance = np.cov(by_positive) / by_positive.shape[1] + np.cov(by_negative) / by_negative.shape[1]
    return [win.mean() for win in wins], covariance


def test_delong_by_hand():
    assert auc_variance(TRUTH, SCORES_A) == pytest.approx(2 / 81)
    assert auc_variance(TRUTH, SCORES_B) == pytest.approx(2 / 27)
    found = delong(TRUTH, SCORES_A, SCORES_B)
    assert found.difference == pytest.approx(8 / 9 - 2 / 3)
    assert found.p == pytest.approx(math.erfc(1))  # the difference is √2 of its deviation √2/9
    assert found.low == pytest.approx(2 / 9 - 1.959964 * math.sqrt(2) / 9, abs=1e-6)
    assert found.high == pytest.approx(2 / 9 + 1.959964 * math.sqrt(2) / 9, abs=1e-6)
    assert found.verdict == "tie"


@pytest.mark.parametrize("levels", [5, 1000])
def test_delong_is_its_definition_with_and_without_ties(levels):
    generator = np.random.default_rng(levels)
    for _ in range(5):
        truth = np.arange(60) % 3 == 0
        a, b = (generator.integers(0, levels, 60) + truth * levels // 3 for _ in range(2))
        areas, covariance = areas_by_definition(truth, a, b)
        found = delong(truth, a, b)
        assert found.difference == pytest.approx(areas[0] - areas[1])
        assert auc_variance(truth, a) == pytest.approx(covariance[0, 0])
        deviation = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
        assert found.p == pytest.approx(2 * scipy.stats.norm.sf(abs(found.difference) / deviation))


def make_scores(generator, cases=300, noise=(1.0, 1.4)):
    truth = np.arange(cases) % 2 == 0
    common = truth + 0.7 * generator.normal(size=cases)
    return truth, *(common + own * generator.normal(size=cases) for own in noise)


def test_delong_is_the_bootstraps_deviation():
    generator = np.random.default_rng(0)
    truth, a, b = make_scores(generator)
    found = delong(truth, a, b)
    kinds = np.flatnonzero(truth), np.flatnonzero(~truth)
    drawn = []
    for _ in range(500):
        chosen = np.concatenate([generator.choice(own, len(own)) for own in kinds])
        one, two = (area_under_curve(truth[chosen], own[chosen]) for own in (a, b))
        drawn.append(one - two)
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(np.std(drawn), rel=0.15)


def test_delong_turned_round_and_in_other_units():
    truth, a, b = make_scores(np.random.default_rng(1))
    forth, back = delong(truth, a, b), delong(truth, b, a)
    assert back == pytest.approx((-forth.difference, -forth.high, -forth.low, forth.p))
    assert delong(truth, np.exp(3 * a) - 7, b) == pytest.approx(forth)
    wider = delong(truth, a, b, confidence=0.99)
    assert wider.low < forth.low and wider.high > forth.high and wider.p == forth.p


def test_verdicts():
    truth, a, b = make_scores(np.random.default_rng(2), noise=(0.1, 3.0))
    assert (delong(truth, a, b).verdict, delong(truth, b, a).verdict) == ("better", "worse")
    assert delong(truth, a, a) == (0.0, 0.0, 0.0, 1.0) and delong(truth, a, a).verdict == "tie"
    perfect = np.where(truth, 1.0, 0.0)
    assert delong(truth, perfect, -perfect) == (1.0, 1.0, 1.0, 0.0)


def test_equal_scores_are_told_apart_as_seldom_as_the_level_says():
    generator = np.random.default_rng(3)
    verdicts = [delong(*make_scores(generator, 80, (1.0, 1.0))).verdict for _ in range(300)]
    assert 0.01 <= np.mean([verdict != "tie" for verdict in verdicts]) <= 0.1


@pytest.mark.parametrize(
    ("truth", "scores", "message"),
    [
        ([1, 1, 0], [0.1, 0.2, 0.3], "got 2 positive and 1 negative"),
        ([0, 0, 0], [0.1, 0.2, 0.3], "got 0 positive and 3 negative"),
        ([1, 1, 0], [0.1, 0.2], r"got shapes \(3,\) and \(2,\)"),
        ([0, 2, 0, 2], [1, 2, 3, 4], r"must be 0 or 1, got \[0, 2\]"),
        ([0, 1, 0, 1], [1, math.nan, 3, 4], "got nan in place 1"),
    ],
)
def test_what_has_no_curve(truth, scores, message):
    with pytest.raises(TomokitError, match=message):
        auc_variance(truth, scores)
    with pytest.raises(TomokitError, match=message):
        delong(truth, scores, scores)


def test_several_trainings_stand_for_the_mean_of_their_curves():
    truth, a, b = make_scores(np.random.default_rng(4))
    c = make_scores(np.random.default_rng(4), noise=(1.0, 2.0))[2]
    alone = delong(truth, a, b)
    assert delong(truth, np.column_stack([a, a]), b[:, None]) == pytest.approx(alone)
    found = delong(truth, np.column_stack([a, c]), b)
    assert found.difference == pytest.approx((alone.difference + delong(truth, c, b).difference) / 2)
    _, covariance = areas_by_definition(truth, a, c, b)
    weights = np.array([0.5, 0.5, -1.0])
    assert (found.high - found.low) / 2 / 1.959964 == pytest.approx(math.sqrt(weights @ covariance @ weights), rel=1e-5)
    with pytest.raises(TomokitError, match=r"got shapes \(3,\) and \(2,\)"):
        delong([1, 1, 0], [[0.1, 0.3], [0.2, 0.4]], [0.1, 0.2])


def test_two_runs_are_compared_case_by_case():
    generator = np.random.default_rng(5)
    common, gain = generator.random(40), 0.02 + 0.02 * generator.normal(size=40)
    found = compare_means(common + gain, common, range(40))
    assert found.difference == pytest.approx(gain.mean())
    alone = bootstrap_mean(gain, range(40))
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))
    assert found.p == pytest.approx(scipy.stats.wilcoxon(gain).pvalue) and found.verdict == "better"
    back = compare_means(common, common + gain, range(40))
    assert back.difference == pytest.approx(-found.difference) and back.verdict == "worse"


def test_a_patients_scans_are_one_difference():
    scores = np.array([0.3, 0.5, 0.1, 0.2, 0.4, 0.7])
    patients = list("aabbcc")
    # the patients' means are .4, .15 and .55: three of one sign have p 2 / 2³
    assert compare_means(scores, np.zeros(6), patients).p == pytest.approx(0.25)
    assert compare_means(scores, np.zeros(6), range(6)).p == pytest.approx(2 / 2**6)


def test_equal_runs_and_one_patient_are_ties():
    assert compare_means([0.2, 0.4], [0.2, 0.4], "ab") == (0, 0, 0, 1)
    assert compare_means([0.2, 0.4], [0.1, 0.1], "aa") == pytest.approx((0.2, 0.2, 0.2, 1))
    with pytest.raises(TomokitError, match=r"the same cases, got \(2,\) and \(3,\) scores"):
        compare_means([0.2, 0.4], [0.1, 0.1, 0.1], "ab")


def test_methods_are_ranked_with_how_sure_that_is():
    generator = np.random.default_rng(6)
    base = generator.random(60)
    scores = {"worst": base - 1, "alike": base + 0.01 * generator.normal(size=60), "best": base + 1}
    scores["twin"] = scores["alike"]
    found = rank_methods(scores, range(60), resamples=200)
    assert list(found) == ["best", "alike", "twin", "worst"]
    assert found["best"] == (1, 1, 1, 60) and found["worst"] == (4, 4, 4, 60)
    assert found["alike"] == found["twin"] == (2.5, 2.5, 2.5, 60)  # equal ones share their ranks
    turned = rank_methods(scores, range(60), more_is_better=False, resamples=200)
    assert turned["worst"].mean == 1 and turned["best"].mean == 4


def test_close_methods_have_wide_ranks_and_patients_stay_together():
    scores = {"a": [1.0, 1, 0, 0, 1], "b": [0.0, 0, 1, 1, 0]}
    found = rank_methods(scores, range(5))
    assert found["a"] == (1, 1, 2, 5) and found["b"] == (2, 1, 2, 5)
    assert rank_methods(scores, ["p"] * 5)["a"] == (1, None, None, 1)
    # with the last three of one patient each resample holds all of them or none
    assert rank_methods({"a": [0, 0, 0, 2, 2.0], "b": [1, 1, 1, 0, 0.0]}, list("ppppp"))["a"].mean == 1


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"a": [0.1, 0.2]}, r"needs two methods or more, got \['a'\]"),
        ({"a": [0.1, 0.2], "b": [0.1]}, "of each of 2 cases, b has 1 scores, 0 of them not finite"),
        ({"a": [0.1, math.nan], "b": [0.1, 0.2]}, "of each of 2 cases, a has 2 scores, 1 of them not finite"),
        ({"a": [], "b": []}, "of each of 2 cases, a has 0 scores"),
    ],
)
def test_what_has_no_ranking(scores, message):
    with pytest.raises(TomokitError, match=message):
        rank_methods(scores, ["p", "q"])


def test_what_is_said_of_few_patients_was_measured():
    path = Path(__file__).parents[1] / "benchmarks" / "results" / "intervals.json"
    rows = [row for row in json.loads(path.read_text())["rows"] if row["system"] == "dice"]
    measured = {row["patients"]: row["value"] for row in rows if row["patients"] < FEW}
    assert measured == pytest.approx(COVERAGE)
    assert all(abs(row["value"] - 0.95) < 0.015 for row in rows if row["patients"] >= FEW)


def test_few_patients_are_told_how_far_their_intervals_fall_short():
    assert coverage_note(100) == ""
    assert coverage_note(99).startswith("Of 50 patients such intervals held the truth in 94.")
    assert coverage_note(49).startswith("Of 20 patients")
    assert coverage_note(8).startswith("Even of 20 patients such intervals held the truth in 92.")
