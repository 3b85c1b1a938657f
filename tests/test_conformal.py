"""Conformal sets and intervals: against closed forms, and their promise on drawn cases."""

import math

import numpy as np
import pytest
import scipy.stats

from tomokit.conformal import (
    Curve,
    area_under_risk,
    choose_referral,
    conformal_quantile,
    fit_label_sets,
    fit_volume_interval,
    label_sets,
    risk_coverage,
    upper_bound,
    volume_interval,
    volume_scale,
)
from tomokit.errors import TomokitError


@pytest.mark.parametrize(
    ("count", "error_rate", "rank"), [(9, 0.1, 9), (10, 0.1, 10), (19, 0.1, 18), (99, 0.1, 90), (19, 0.05, 19)]
)
def test_the_quantile_is_the_score_of_that_rank(count, error_rate, rank):
    scores = np.random.default_rng(0).permutation(count) + 1.0
    assert conformal_quantile(scores, error_rate) == rank


@pytest.mark.parametrize(("count", "error_rate"), [(8, 0.1), (18, 0.05), (1, 0.4)])
def test_too_few_cases_promise_nothing(count, error_rate):
    assert conformal_quantile(np.ones(count), error_rate) == math.inf


def test_the_quantile_is_numpys_of_that_method():
    scores = np.random.default_rng(1).normal(size=57)
    level = math.ceil(58 * 0.8) / 57
    assert conformal_quantile(scores, 0.2) == pytest.approx(
        np.quantile(scores, level, method="inverted_cdf"), abs=1e-12
    )


def test_coverage_follows_the_closed_form():
    # of distinct scores the chance to be covered, given the calibration cases, is Beta(k, n + 1 - k)
    generator = np.random.default_rng(2)
    covered = []
    for _ in range(4000):
        quantile = conformal_quantile(generator.uniform(size=29), 0.1)
        covered.append(quantile)  # of a uniform score, the chance to lie below
    assert np.mean(covered) == pytest.approx(27 / 30, abs=0.004)
    assert scipy.stats.kstest(covered, scipy.stats.beta(27, 3).cdf).pvalue > 0.001


@pytest.mark.parametrize("error_rate", [0, 1, -0.1, 1.5])
def test_an_impossible_error_rate_is_refused(error_rate):
    with pytest.raises(TomokitError, match=f"`error_rate` must lie between 0 and 1, such as 0.1, got {error_rate}"):
        conformal_quantile([1.0], error_rate)


@pytest.mark.parametrize("scores", [[], [[1.0]], [math.nan, 1.0]])
def test_scores_that_are_none_are_refused(scores):
    with pytest.raises(TomokitError, match="a row of scores that are numbers"):
        conformal_quantile(scores, 0.1)


def test_a_set_holds_what_reaches_the_least_probability():
    # nine cases whose true class has these probabilities: the least of all is needed at an error rate of 0.1
    own = np.linspace(0.55, 0.95, 9)
    chances = np.stack([own, 1 - own], axis=1)
    least = fit_label_sets(chances, np.zeros(9, int), 0.1)
    assert least == pytest.approx(0.55)
    assert label_sets([[0.55, 0.45], [0.56, 0.44], [0.2, 0.8], [0.54, 0.46]], least).tolist() == [
        [True, False],
        [True, False],
        [False, True],
        [False, False],
    ]


def test_sets_of_too_few_cases_hold_every_class():
    least = fit_label_sets([[1.0, 0.0]] * 8, [0] * 8, 0.1)
    assert label_sets([[1.0, 0.0]], least).all()


def test_sets_hold_the_truth_as_often_as_promised():
    generator = np.random.default_rng(3)
    held = []
    for _ in range(300):
        chances = generator.dirichlet(np.ones(3), size=600)
        truth = np.array([generator.choice(3, p=own) for own in chances])
        least = fit_label_sets(chances[:300], truth[:300], 0.1)
        held.append(label_sets(chances[300:], least)[np.arange(300), truth[300:]].mean())
    assert np.mean(held) == pytest.approx(0.9017, abs=0.006)


@pytest.mark.parametrize(
    ("chances", "truth", "told"),
    [
        ([0.5], [0], r"got \(1,\) and \(1,\)"),
        ([[0.5, 0.5]], [0, 1], r"got \(1, 2\) and \(2,\)"),
        ([[1, 0]], [2], "2 to 2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(chances, truth, told):
    with pytest.raises(TomokitError, match=told):
        fit_label_sets(chances, truth, 0.1)


def test_the_interval_grows_with_the_surface():
    assert volume_scale(8 - 0.01) / volume_scale(1 - 0.01) == pytest.approx(4)
    predicted = np.full(19, 1.0)
    reach = fit_volume_interval(predicted, predicted + np.arange(19) / 100, 0.1)
    assert reach * volume_scale(1.0) == pytest.approx(0.17)  # the 18th of 19
    assert volume_interval(1.0, reach) == pytest.approx((0.83, 1.17))
    assert volume_interval(0.0, 1.0)[0] == 0
    assert volume_interval(3.0, math.inf) == (0, math.inf)


@pytest.mark.parametrize(
    ("predicted", "truth", "told"),
    [([1.0], [1.0, 2.0], r"\(1,\) and \(2,\)"), ([-1.0], [1.0], "predicted .* got -1.0")],
)
def test_volumes_that_do_not_fit_are_refused(predicted, truth, told):
    with pytest.raises(TomokitError, match=told):
        fit_volume_interval(predicted, truth, 0.1)


def test_the_risk_of_the_most_certain_cases():
    curve = risk_coverage([0.9, 0.8, 0.7, 0.6], [0, 1, 0, 1])
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert curve.risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert area_under_risk(curve) == pytest.approx(1 / 3)


def test_cases_of_one_certainty_are_answered_together():
    curve = risk_coverage([0.5, 0.5, 0.9], [1, 0, 0])
    assert curve.coverage == pytest.approx([1 / 3, 1, 1])
    assert curve.risk == pytest.approx([0, 1 / 3, 1 / 3])
    assert isinstance(curve, Curve)


def test_the_upper_bound_is_the_binomials():
    # the share at which so few errors have a chance of 5 %
    bound = upper_bound(2, 50)
    assert scipy.stats.binom.cdf(2, 50, bound) == pytest.approx(0.05, abs=1e-9)
    assert upper_bound(5, 5) == 1


def test_59_right_answers_show_a_risk_of_five_percent():
    certainty = np.linspace(1, 0, 59)
    assert choose_referral(certainty, np.zeros(59), 0.05) == 0
    assert choose_referral(certainty[:58], np.zeros(58), 0.05) == math.inf


def test_what_is_less_certain_than_the_first_failure_is_referred():
    wrong = np.concatenate([np.zeros(80), np.ones(20)])
    certainty = np.linspace(1, 0.01, 100)
    least = choose_referral(certainty, wrong, 0.05)
    answered = int((certainty >= least).sum())
    assert upper_bound(int(wrong[:answered].sum()), answered) <= 0.05
    assert upper_bound(int(wrong[: answered + 1].sum()), answered + 1) > 0.05
    tied = np.where(certainty > 0.2, certainty, 0.2)
    assert choose_referral(tied, wrong, 0.05) > 0.2  # all of the tied ones would be answered


def test_the_risk_is_kept_as_often_as_promised():
    generator = np.random.default_rng(4)
    broken = []
    for _ in range(600):
        certainty = generator.uniform(size=400)
        wrong = generator.uniform(size=400) < (1 - certainty) / 2
        least = choose_referral(certainty, wrong, 0.1)
        # the risk of what is answered, in closed form: half of the mean of 1 - certainty above the least
        broken.append(least <= 1 and (1 - least) / 4 > 0.1)
    assert np.mean(broken) <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / 600)


@pytest.mark.parametrize("risk", [0, 1])
def test_an_impossible_risk_is_refused(risk):
    with pytest.raises(TomokitError, match=f"`risk` must lie between 0 and 1, such as 0.1, got {risk}"):
        choose_referral([1.0], [0], risk)


@pytest.mark.parametrize(("certainty", "wrong"), [([], []), ([0.5], [0, 1])])
def test_cases_that_do_not_fit_are_refused(certainty, wrong):
    with pytest.raises(TomokitError, match="each case needs a certainty and whether it was wrong"):
        risk_coverage(certainty, wrong)
