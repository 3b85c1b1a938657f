import json

import numpy as np
import pytest
import scipy.stats
import sklearn.calibration
import sklearn.metrics
import torch
from monai.metrics import DiceMetric, compute_dice
from monai.networks.utils import one_hot

from tomokit.errors import TomokitError
from tomokit.metrics import (
    LABEL_MEASURES,
    VALUE_MEASURES,
    area_under_curve,
    average_precision,
    calibration_error,
    mean_by_case,
    precision_recall_points,
    reliability_points,
    roc_points,
    score_segmentation,
    sensitivity_at,
    summarise_classification,
    summarise_labels,
    summarise_regression,
    summarise_segmentation,
    summarise_task,
)
from tomokit.metrics.curves import middle_ranks

LABELS = {"0": "background", "1": "liver", "2": "spleen", "3": "lesion"}
AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])  # 0.02 ml a voxel


def cubes():
    """Return truth and prediction of a 4³ liver shifted by one voxel, a spleen in the truth, no lesion."""
    truth, prediction = np.zeros((2, 10, 10, 10), dtype=np.uint8)
    truth[2:6, 2:6, 2:6] = 1
    prediction[3:7, 2:6, 2:6] = 1
    truth[8, 8, :5] = 2
    return prediction, truth


def dice_rows(scores, patients=None, **more):
    """Return rows from {case: {class: dice}}, each case its own patient unless said."""
    return [
        {"case": case, "patient": (patients or {}).get(case, case), "class": name, "dice": dice, **more}
        for case, by_class in scores.items()
        for name, dice in by_class.items()
    ]


def class_rows(truth, scores, classes, patients=None):
    patients = range(len(truth)) if patients is None else patients
    return [
        {"case": f"case_{i}", "patient": str(patient), "truth": classes[t]}
        | {f"p_{name}": p for name, p in zip(classes, row, strict=True)}
        for i, (t, row, patient) in enumerate(zip(truth, scores, patients, strict=True))
    ]


def random_classification(n_cases, n_classes, seed=0):
    generator = np.random.default_rng(seed)
    truth = np.arange(n_cases) % n_classes
    logits = generator.normal(size=(n_cases, n_classes)) + 1.2 * np.eye(n_classes)[truth]
    scores = np.exp(logits)
    return truth, scores / scores.sum(axis=1, keepdims=True)


def test_cubes_of_known_overlap_and_volume():
    rows = score_segmentation(*cubes(), LABELS, AFFINE)
    assert rows == [
        {"class": "liver", "dice": 0.75, "truth_ml": pytest.approx(1.28), "predicted_ml": pytest.approx(1.28)},
        {"class": "spleen", "dice": 0.0, "truth_ml": pytest.approx(0.1), "predicted_ml": 0.0},
        {"class": "lesion", "dice": None, "truth_ml": 0.0, "predicted_ml": 0.0},
    ]
    json.dumps(rows)


def test_a_truth_scores_one_against_itself_and_dice_is_symmetric():
    prediction, truth = cubes()
    assert [row["dice"] for row in score_segmentation(truth, truth, LABELS, AFFINE)] == [1.0, 1.0, None]
    forth = score_segmentation(prediction, truth, LABELS, AFFINE)
    back = score_segmentation(truth, prediction, LABELS, AFFINE)
    assert [row["dice"] for row in forth] == [row["dice"] for row in back]


def test_whole_numbers_in_a_float_array_and_images_are_fine():
    prediction, truth = cubes()
    expected = score_segmentation(prediction, truth, LABELS, AFFINE)
    assert score_segmentation(torch.tensor(prediction).float(), truth.astype(float), LABELS, AFFINE) == expected
    assert score_segmentation(prediction[3], truth[3], LABELS, AFFINE)[0]["dice"] == 1.0


def test_dice_is_monais():
    generator = np.random.default_rng(0)
    prediction, truth = generator.integers(0, 4, size=(2, 12, 13, 14))
    mine = [row["dice"] for row in score_segmentation(prediction, truth, LABELS, AFFINE)]
    channels = [one_hot(torch.tensor(array)[None, None], 4) for array in (prediction, truth)]
    assert mine == pytest.approx(compute_dice(*channels, include_background=False)[0].tolist())
    mean = DiceMetric(include_background=False)
    mean(*channels)
    assert np.mean(mine) == pytest.approx(mean.aggregate().item())


@pytest.mark.parametrize(("value", "text"), [(4, r"\[4.0\]"), (-1, r"\[-1.0\]"), (0.5, r"\[0.5\]"), (np.nan, "nan")])
@pytest.mark.parametrize("which", ["prediction", "truth"])
def test_values_outside_the_label_map(which, value, text):
    arrays = dict(zip(("prediction", "truth"), (a.astype(float) for a in cubes()), strict=True))
    arrays[which][0, 0, 0] = value
    with pytest.raises(TomokitError, match=f"the {which} holds values outside the label map.*{text}"):
        score_segmentation(**arrays, labels=LABELS, affine=AFFINE)


def test_other_shapes():
    prediction, truth = cubes()
    with pytest.raises(TomokitError, match=r"\(9, 10, 10\) and truth \(10, 10, 10\)"):
        score_segmentation(prediction[1:], truth, LABELS, AFFINE)


def test_summary_is_the_mean_of_each_cases_mean():
    scores = {"a": {"liver": 1.0, "lesion": 0.0}, "b": {"liver": 0.8, "lesion": None}}
    summary = summarise_segmentation(dice_rows(scores))
    assert summary["summary"]["dice"] == {
        "mean": pytest.approx(0.65),
        "ci95": pytest.approx([0.5, 0.8]),
        "n": 2,
        "cases": 2,
    }
    assert summary["per_class"]["liver"]["dice"]["mean"] == pytest.approx(0.9)
    assert summary["per_class"]["lesion"] == {
        "dice": {"mean": 0.0, "ci95": None, "n": 1, "cases": 1},
        "absent_in_both": 1,
        "empty_truth": None,
    }
    json.dumps(summary, allow_nan=False)


def test_empty_truths_are_counted():
    rows = dice_rows({"a": {"lesion": None}, "b": {"lesion": 0.0}}, truth_ml=0.0)
    rows += dice_rows({"c": {"lesion": 0.5}}, truth_ml=3.0)
    lesion = summarise_segmentation(rows)["per_class"]["lesion"]
    assert (lesion["empty_truth"], lesion["absent_in_both"], lesion["dice"]["cases"]) == (2, 1, 2)


def test_a_structure_that_no_case_has():
    summary = summarise_segmentation(dice_rows({"a": {"liver": None}}))
    nothing = {"mean": None, "ci95": None, "n": 0, "cases": 0}
    assert summary["summary"]["dice"] == summary["per_class"]["liver"]["dice"] == nothing
    assert mean_by_case(dice_rows({"a": {"liver": None}})) == {}


def test_follow_up_scans_count_as_one_patient():
    scores = {case: {"liver": dice} for case, dice in zip("abcd", (0.1, 0.2, 0.8, 0.9), strict=True)}
    dice = summarise_segmentation(dice_rows(scores, {"a": "p", "b": "p", "c": "q", "d": "q"}))["summary"]["dice"]
    assert dice == {"mean": 0.5, "ci95": pytest.approx([0.15, 0.85]), "n": 2, "cases": 4}


def test_order_of_rows_does_not_matter():
    rows = dice_rows({f"case_{i}": {"liver": i / 9, "spleen": 1 - i / 20} for i in range(10)})
    forth, back = summarise_segmentation(rows), summarise_segmentation(rows[::-1])
    assert forth["summary"]["dice"]["mean"] == pytest.approx(back["summary"]["dice"]["mean"])
    assert forth["summary"]["dice"]["ci95"] == pytest.approx(back["summary"]["dice"]["ci95"])


def test_no_rows():
    with pytest.raises(TomokitError, match="got 0 rows"):
        summarise_segmentation([])
    with pytest.raises(TomokitError, match="got 0 rows"):
        summarise_classification([], ["a", "b"])
    with pytest.raises(TomokitError, match="no classified cases to summarise, got 0 rows"):
        summarise_labels([], ["a", "b"])
    with pytest.raises(TomokitError, match="no predicted cases to summarise, got 0 rows"):
        summarise_regression([])


def test_known_areas_under_the_curve():
    truth = np.array([0, 0, 1, 1])
    assert area_under_curve(truth, np.array([0.1, 0.2, 0.3, 0.4])) == 1
    assert area_under_curve(truth, np.array([0.4, 0.3, 0.2, 0.1])) == 0
    assert area_under_curve(truth, np.full(4, 0.5)) == 0.5
    assert area_under_curve(truth, np.array([0.1, 0.3, 0.2, 0.4])) == 0.75
    assert np.isnan(area_under_curve(np.ones(4), np.arange(4)))


def test_area_is_scikit_learns_with_ties():
    generator = np.random.default_rng(0)
    for _ in range(20):
        truth, score = np.arange(50) % 3 == 0, generator.integers(0, 8, size=50)
        assert area_under_curve(truth, score) == pytest.approx(sklearn.metrics.roc_auc_score(truth, score))


def test_ranks_are_scipys():
    generator = np.random.default_rng(0)
    for numbers in (generator.random(40), generator.integers(0, 8, size=50), np.zeros(3), np.array([])):
        np.testing.assert_array_equal(middle_ranks(numbers), scipy.stats.rankdata(numbers))
    assert np.isnan(middle_ranks(np.array([1.0, np.nan, 2.0]))).all()


def test_two_classes_against_scikit_learn():
    truth, scores = random_classification(60, 2)
    result = summarise_classification(class_rows(truth, scores, ["benign", "malignant"]), ["benign", "malignant"])
    summary, guess = result["summary"], scores.argmax(axis=1)
    assert summary["auc"]["mean"] == pytest.approx(sklearn.metrics.roc_auc_score(truth, scores[:, 1]))
    assert summary["accuracy"]["mean"] == pytest.approx(sklearn.metrics.accuracy_score(truth, guess))
    balanced = sklearn.metrics.balanced_accuracy_score(truth, guess)
    assert summary["balanced_accuracy"]["mean"] == pytest.approx(balanced)
    recall = sklearn.metrics.recall_score(truth, guess, average=None)
    assert [entry["sensitivity"]["mean"] for entry in result["per_class"].values()] == pytest.approx(recall)
    assert summary["brier"]["mean"] == pytest.approx(sklearn.metrics.brier_score_loss(truth, scores[:, 1]))
    assert summary["ece"]["mean"] == calibration_error(guess == truth, scores.max(axis=1))
    for entry in (summary[name] for name in ("auc", "accuracy", "balanced_accuracy", "brier")):
        assert entry["ci95"][0] < entry["mean"] < entry["ci95"][1]
        assert (entry["n"], entry["cases"]) == (60, 60)
    assert result["absent_classes"] == []
    json.dumps(result, allow_nan=False)


def test_several_classes_against_scikit_learn():
    truth, scores = random_classification(60, 4)
    result = summarise_classification(class_rows(truth, scores, list("abcd")), list("abcd"))
    expected = sklearn.metrics.roc_auc_score(truth, scores, multi_class="ovr", average="macro")
    assert result["summary"]["auc"]["mean"] == pytest.approx(expected)
    own = sklearn.metrics.roc_auc_score(truth == 2, scores[:, 2])
    assert result["per_class"]["c"]["auc"]["mean"] == pytest.approx(own)


def test_the_last_of_two_classes_is_the_positive_and_auc_needs_no_threshold():
    rows = class_rows([0, 0, 1, 1], [[0.99, 0.01], [0.98, 0.02], [0.97, 0.03], [0.96, 0.04]], ["no", "yes"])
    summary = summarise_classification(rows, ["no", "yes"])["summary"]
    assert (summary["auc"]["mean"], summary["accuracy"]["mean"]) == (1.0, 0.5)


def test_case_order_does_not_matter_and_patients_are_kept_together():
    truth, scores = random_classification(40, 2)
    rows = class_rows(truth, scores, ["no", "yes"], patients=np.arange(40) // 4)
    forth, back = (summarise_classification(r, ["no", "yes"])["summary"]["auc"] for r in (rows, rows[::-1]))
    assert forth["mean"] == pytest.approx(back["mean"])
    assert forth["n"] == 10


def test_a_class_without_cases_is_named():
    truth, scores = random_classification(30, 3)
    rows = [row for row in class_rows(truth, scores, list("abc")) if row["truth"] != "c"]
    result = summarise_classification(rows, list("abc"))
    assert result["absent_classes"] == ["c"]
    assert result["per_class"]["c"]["sensitivity"]["mean"] is result["per_class"]["c"]["auc"]["mean"] is None
    means = [result["per_class"][name]["auc"]["mean"] for name in "ab"]
    assert result["summary"]["auc"]["mean"] == pytest.approx(np.mean(means))


@pytest.mark.parametrize("only", [0, 1])
def test_two_classes_with_cases_of_one_have_no_auc(only):
    rows = class_rows([only] * 4, [[0.4, 0.6]] * 4, ["no", "yes"])
    summary = summarise_classification(rows, ["no", "yes"])["summary"]
    assert summary["auc"] == {"mean": None, "ci95": None, "n": 4, "cases": 4}
    assert summary["balanced_accuracy"]["mean"] == only


def test_every_wrong_row_is_listed():
    rows = class_rows([0, 1], [[0.4, 0.6], [0.1, 1.9]], ["no", "yes"])
    rows[0]["truth"] = "perhaps"
    del rows[1]["p_no"]
    with pytest.raises(TomokitError) as caught:
        summarise_classification(rows, ["no", "yes"])
    for part in ("'perhaps' of case case_0", "case_1 has no column p_no", "must lie in 0–1, got 1.9"):
        assert part in str(caught.value)


@pytest.mark.parametrize("classes", [["no"], ["no", "no"]])
def test_too_few_classes(classes):
    with pytest.raises(TomokitError, match=r"different classes are needed, got \['no'"):
        summarise_classification(class_rows([0], [[1.0]], ["no"]), classes)


def test_half_of_the_brier_score_of_several_classes():
    truth, scores = random_classification(30, 3)
    rows = class_rows(truth, scores, list("abc"), patients=[0] * 30)
    result = summarise_classification(rows, list("abc"))
    expected = np.mean([sum((score - (truth[i] == j)) ** 2 for j, score in enumerate(scores[i])) for i in range(30)])
    assert result["summary"]["brier"]["mean"] == pytest.approx(expected / 2)
    wrong = class_rows([0, 1], [[0.0, 1.0], [1.0, 0.0]], ["no", "yes"], patients=[0, 0])
    assert summarise_classification(wrong, ["no", "yes"])["summary"]["brier"]["mean"] == 1


def test_known_average_precisions():
    truth = np.array([0, 0, 1, 1])
    assert average_precision(truth, np.array([0.1, 0.2, 0.3, 0.4])) == 1
    assert average_precision(truth, np.full(4, 0.5)) == 0.5
    assert average_precision(truth, np.array([0.1, 0.35, 0.3, 0.4])) == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(average_precision(np.zeros(4), np.arange(4)))


def test_average_precision_is_scikit_learns_with_ties():
    generator = np.random.default_rng(0)
    for levels in (3, 8, 1000):
        truth, score = np.arange(50) % 3 == 0, generator.integers(0, levels, size=50)
        expected = sklearn.metrics.average_precision_score(truth, score)
        assert average_precision(truth, score) == pytest.approx(expected)


def told(*groups):
    """Return outcomes and probabilities of groups of ten cases, each given by its probability and how many came."""
    outcomes = np.concatenate([np.arange(10) < came for _, came in groups])
    return outcomes, np.repeat([chance for chance, _ in groups], 10)


def test_known_calibration_errors():
    assert calibration_error(*told((0.6, 6), (0.8, 8))) == pytest.approx(0)
    assert calibration_error(*told((0.9, 6))) == pytest.approx(0.3)
    assert calibration_error(*told((0.6, 8), (0.8, 6))) == pytest.approx(0.2)  # opposite errors don't cancel out
    assert calibration_error(*told((0.6, 6), (0.8, 6))) == pytest.approx(0.1)
    assert calibration_error(np.array([True]), np.array([0.7])) == pytest.approx(0.3)


def test_calibration_error_is_that_of_scikit_learns_curve_of_equal_bins():
    generator = np.random.default_rng(0)
    chances = generator.random(1000)  # 10 bins of 100
    outcomes = generator.random(1000) < chances**2
    shares, means = sklearn.calibration.calibration_curve(outcomes, chances, n_bins=10, strategy="quantile")
    assert calibration_error(outcomes, chances) == pytest.approx(np.mean(np.abs(shares - means)))
    turned = generator.permutation(1000)
    assert calibration_error(outcomes[turned], chances[turned]) == pytest.approx(calibration_error(outcomes, chances))


@pytest.mark.parametrize(("cases", "noise"), [(100, 0.1), (300, 0.07), (4000, 0.03)])
def test_true_probabilities_seem_little_wrong_and_overconfident_ones_more(cases, noise):
    generator = np.random.default_rng(cases)
    truth_error, bold_error = [], []
    for _ in range(20):
        logits = 1.5 * generator.normal(size=cases)
        outcomes = generator.random(cases) < 1 / (1 + np.exp(-logits))
        for errors, scale in ((truth_error, 1), (bold_error, 4)):
            errors.append(calibration_error(outcomes, 1 / (1 + np.exp(-scale * logits))))
    assert np.mean(truth_error) < noise
    assert np.mean(bold_error) > 0.1 and min(bold_error) > np.mean(truth_error)


def label_rows(truth, chances, names, decided=None, patients=None):
    """Return rows of several labels per case, from arrays (cases, labels)."""
    patients = range(len(truth)) if patients is None else patients
    decided = chances >= 0.5 if decided is None else decided
    rows = []
    for i, patient in enumerate(patients):
        row = {"case": f"case_{i}", "patient": str(patient)}
        for j, name in enumerate(names):
            row |= {f"truth_{name}": int(truth[i, j]), f"p_{name}": chances[i, j]}
            row |= {f"decided_{name}": int(decided[i, j])}
        rows.append(row)
    return rows


def random_labels(cases=40, labels=3, seed=0):
    generator = np.random.default_rng(seed)
    truth = np.stack([np.arange(cases) % (2 + j) == 0 for j in range(labels)], axis=1)
    return truth, 1 / (1 + np.exp(-(generator.normal(size=truth.shape) + 1.5 * truth - 0.7)))


def test_several_labels_against_scikit_learn():
    truth, chances = random_labels()
    result = summarise_labels(label_rows(truth, chances, "abc", patients=np.arange(40) // 2), "abc")
    expected = {name: [] for name in LABEL_MEASURES}
    for own, chance in zip(truth.T, chances.T, strict=True):
        found = chance >= 0.5
        expected["auc"].append(sklearn.metrics.roc_auc_score(own, chance))
        expected["average_precision"].append(sklearn.metrics.average_precision_score(own, chance))
        expected["sensitivity"].append(sklearn.metrics.recall_score(own, found))
        expected["specificity"].append(sklearn.metrics.recall_score(~own, ~found))
        expected["precision"].append(sklearn.metrics.precision_score(own, found))
        expected["f1"].append(sklearn.metrics.f1_score(own, found))
        expected["brier"].append(sklearn.metrics.brier_score_loss(own, chance))
        expected["ece"].append(calibration_error(own, chance))
    for name, values in expected.items():
        assert [result["per_class"][label][name]["mean"] for label in "abc"] == pytest.approx(values)
        assert result["summary"][name]["mean"] == pytest.approx(np.mean(values))
        assert (result["summary"][name]["n"], result["summary"][name]["cases"]) == (20, 40)
    low, high = result["summary"]["auc"]["ci95"]
    assert low < result["summary"]["auc"]["mean"] < high
    assert [result["per_class"][label]["positives"] for label in "abc"] == truth.sum(axis=0).tolist()
    assert result["absent_classes"] == []
    json.dumps(result, allow_nan=False)


def test_thresholds_decide_in_place_of_the_rows():
    truth, chances = random_labels(cases=24, labels=2)  # of one patient: no resamples to wait for
    rows = label_rows(truth, chances, "ab", chances >= [0.3, 0.6], patients=[0] * 24)
    assert summarise_labels(rows, "ab") == summarise_labels(rows, "ab", {"a": 0.3, "b": 0.6})
    everything = summarise_labels(rows, "ab", {"a": 0.0, "b": 1.01})["per_class"]
    assert [everything["a"][name]["mean"] for name in ("sensitivity", "specificity")] == [1, 0]
    assert [everything["b"][name]["mean"] for name in ("sensitivity", "specificity", "f1")] == [0, 1, 0]


def test_a_label_of_no_case_is_named_and_left_out_of_the_means():
    truth, chances = random_labels(cases=20, labels=2)
    truth[:, 1] = False
    result = summarise_labels(label_rows(truth, chances, "ab", patients=[0] * 20), "ab")
    assert result["absent_classes"] == ["b"]
    own = result["per_class"]["b"]
    assert [own[name]["mean"] for name in ("auc", "average_precision", "sensitivity")] == [None] * 3
    assert own["positives"] == 0 and own["specificity"]["mean"] is not None
    assert {name: result["summary"][name]["mean"] for name in LABEL_MEASURES} == {
        name: result["per_class"]["a"][name]["mean"] for name in LABEL_MEASURES
    }
    truth[:, 0] = True
    result = summarise_labels(label_rows(truth, chances, "ab", patients=[0] * 20), "ab")
    assert result["absent_classes"] == ["a", "b"] and result["summary"]["auc"]["mean"] is None


def test_every_wrong_row_of_labels_is_listed():
    truth, chances = random_labels(cases=3, labels=2)
    rows = label_rows(truth, chances, "ab", patients=[0] * len(truth))
    rows[0] |= {"truth_a": 2, "p_b": 1.5}
    del rows[1]["decided_a"]
    with pytest.raises(TomokitError) as caught:
        summarise_labels(rows, "ab")
    for part in (
        "truth_a of case case_0 must be 0 or 1, got 2",
        "p_b of case case_0 must lie in 0–1, got 1.5",
        "case_1 has no column decided_a",
    ):
        assert part in str(caught.value)
    with pytest.raises(TomokitError, match=r"none is given for \['b'\]"):
        summarise_labels(rows, "ab", {"a": 0.5})
    with pytest.raises(TomokitError, match=r"different labels are needed, got \['a', 'a'\]"):
        summarise_labels(rows, "aa")


def value_rows(truth, prediction, patients=None):
    patients = range(len(truth)) if patients is None else patients
    return [
        {"case": f"case_{i}", "patient": str(patient), "truth": true, "prediction": predicted}
        for i, (patient, true, predicted) in enumerate(zip(patients, truth, prediction, strict=True))
    ]


def test_values_that_are_two_too_great():
    truth = np.array([1.0, 2.0, 4.0, 7.0])
    summary = summarise_regression(value_rows(truth, truth + 2))["summary"]
    expected = {"mae": 2, "rmse": 2, "mse": 4, "bias": 2, "pearson": 1, "spearman": 1, "r2": 1 - 4 / truth.var()}
    assert {name: entry["mean"] for name, entry in summary.items()} == pytest.approx(expected)
    assert summary["mae"]["ci95"] == pytest.approx([2, 2])


def test_values_against_scikit_learn_and_scipy():
    generator = np.random.default_rng(0)
    truth = generator.normal(60, 10, 40)
    prediction = 0.6 * truth + 20 + generator.normal(0, 5, 40)
    result = summarise_regression(value_rows(truth, prediction, np.arange(40) // 2))
    expected = {
        "mae": sklearn.metrics.mean_absolute_error(truth, prediction),
        "rmse": sklearn.metrics.root_mean_squared_error(truth, prediction),
        "mse": sklearn.metrics.mean_squared_error(truth, prediction),
        "r2": sklearn.metrics.r2_score(truth, prediction),
        "pearson": scipy.stats.pearsonr(truth, prediction).statistic,
        "spearman": scipy.stats.spearmanr(truth, prediction).statistic,
        "bias": np.mean(prediction - truth),
    }
    assert list(result["summary"]) == list(VALUE_MEASURES) and result["per_class"] == {}
    assert {name: entry["mean"] for name, entry in result["summary"].items()} == pytest.approx(expected)
    for entry in result["summary"].values():
        assert entry["ci95"][0] < entry["mean"] < entry["ci95"][1] and (entry["n"], entry["cases"]) == (20, 40)
    json.dumps(result, allow_nan=False)


def test_values_that_do_not_vary_have_no_correlation():
    summary = summarise_regression(value_rows([3.0, 3.0], [1.0, 2.0], [0, 0]))["summary"]
    assert [summary[name]["mean"] for name in ("r2", "pearson", "spearman")] == [None] * 3
    assert summary["mae"]["mean"] == 1.5
    constant = summarise_regression(value_rows([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], [0, 0, 0]))["summary"]
    assert constant["r2"]["mean"] == 0 and constant["pearson"]["mean"] is None


def test_every_wrong_row_of_values_is_listed():
    rows = value_rows([1.0, float("nan")], [1.0, 2.0])
    del rows[0]["prediction"]
    with pytest.raises(TomokitError) as caught:
        summarise_regression(rows)
    for part in ("case_0 has no column prediction", "truth of case case_1 must be a finite number, got nan"):
        assert part in str(caught.value)


def test_a_task_has_its_summary():
    truth, chances = random_labels(cases=12, labels=2)
    rows = label_rows(truth, chances, "ab", patients=[0] * len(truth))
    assert summarise_task("labels", rows, "ab") == summarise_labels(rows, "ab")
    values = value_rows([1.0, 2.0, 4.0], [1.5, 2.0, 3.0], patients=[0] * 3)
    assert summarise_task("value", values, []) == summarise_regression(values)
    classes = class_rows([0, 1, 1], [[0.9, 0.1], [0.4, 0.6], [0.6, 0.4]], "ab", patients=[0] * 3)
    assert summarise_task("classes", classes, "ab") == summarise_classification(classes, "ab")
    with pytest.raises(TomokitError, match="`task` must be one of classes, labels, value, got 'regions'"):
        summarise_task("regions", rows, "ab")


def test_each_class_against_the_rest_is_scikit_learns():
    generator = np.random.default_rng(3)
    truth = np.arange(60) % 3
    scores = generator.dirichlet(np.ones(3), 60) + 0.7 * np.eye(3)[truth]
    scores /= scores.sum(axis=1, keepdims=True)
    rows = [
        {"case": str(i), "patient": str(i), "truth": "abc"[truth[i]]}
        | {f"p_{n}": scores[i, k] for k, n in enumerate("abc")}
        for i, own in enumerate(scores)
    ]
    found = summarise_classification(rows, "abc")
    answers = scores.argmax(axis=1)
    assert found["confusion"] == sklearn.metrics.confusion_matrix(truth, answers).tolist()
    for k, name in enumerate("abc"):
        own, decided = truth == k, answers == k
        false, true, _ = sklearn.metrics.roc_curve(own, scores[:, k], drop_intermediate=False)
        expected = {
            "average_precision": sklearn.metrics.average_precision_score(own, scores[:, k]),
            "precision": sklearn.metrics.precision_score(own, decided),
            "specificity": sklearn.metrics.recall_score(~own, ~decided),
            "f1": sklearn.metrics.f1_score(own, decided),
            "sensitivity_at_90": true[false <= 0.1 + 1e-9].max(),
            "sensitivity_at_95": true[false <= 0.05 + 1e-9].max(),
        }
        assert {key: found["per_class"][name][key]["mean"] for key in expected} == pytest.approx(expected, abs=1e-9)


def test_a_class_that_is_never_called_has_no_precision():
    rows = [{"case": str(i), "patient": str(i), "truth": "ab"[i % 2], "p_a": 0.9, "p_b": 0.1} for i in range(8)]
    own = summarise_classification(rows, "ab")["per_class"]["b"]
    assert own["precision"]["mean"] is None and own["f1"]["mean"] == 0 and own["specificity"]["mean"] == 1


def test_sensitivity_at_a_specificity_by_hand():
    truth = np.array([False] * 10 + [True] * 4)
    score = np.array([*range(10), 8.5, 9, 9.5, 3])
    # one of ten negatives may reach the cut, which lies above 8
    assert sensitivity_at(truth, score, 0.9) == 3 / 4
    assert sensitivity_at(truth, score, 0.95) == 1 / 4  # above 9
    assert np.isnan(sensitivity_at(truth[:10], score[:10], 0.9))


@pytest.mark.parametrize("levels", [4, 1000])
def test_points_of_curves_are_scikit_learns_with_ties(levels):
    generator = np.random.default_rng(levels)
    truth, score = np.arange(60) % 3 == 0, generator.integers(0, levels, 60) / levels
    found = roc_points(truth, score)
    false, true, thresholds = sklearn.metrics.roc_curve(truth, score, drop_intermediate=False)
    for own, theirs in zip(found, (thresholds, false, true), strict=True):
        assert own.tolist() == pytest.approx(theirs.tolist(), abs=1e-12)
    assert np.trapezoid(found.sensitivity, found.false_positive_rate) == pytest.approx(area_under_curve(truth, score))
    found = precision_recall_points(truth, score)
    precision, recall, thresholds = sklearn.metrics.precision_recall_curve(truth, score)
    for own, theirs in zip(found, (thresholds, recall[:-1], precision[:-1]), strict=True):
        # theirs ends with a point at no recall, and drops lower thresholds once all are found
        assert own[-len(theirs) :][::-1].tolist() == pytest.approx(theirs.tolist(), abs=1e-12)


def test_points_of_a_reliability_diagram():
    outcomes, chances = told((0.6, 8), (0.8, 6))
    found = reliability_points(outcomes, chances)
    assert [own.tolist() for own in found] == [pytest.approx([0.6, 0.8]), pytest.approx([0.8, 0.6]), [10, 10]]
    generator = np.random.default_rng(0)
    chances = generator.random(1000)
    outcomes = generator.random(1000) < chances**2
    found = reliability_points(outcomes, chances)
    shares, means = sklearn.calibration.calibration_curve(outcomes, chances, n_bins=10, strategy="quantile")
    assert found.shares == pytest.approx(shares) and found.chances == pytest.approx(means)
    assert found.counts.tolist() == [100] * 10
    gap = np.abs(found.shares - found.chances) @ found.counts / 1000
    assert gap == pytest.approx(calibration_error(outcomes, chances))


def test_curves_need_cases():
    ones, scores = np.ones(3, bool), np.arange(3.0)
    with pytest.raises(TomokitError, match="both kinds of cases, got 3 positive, 0 negative"):
        roc_points(ones, scores)
    with pytest.raises(TomokitError, match="both kinds of cases, got 0 positive, 3 negative"):
        roc_points(~ones, scores)
    with pytest.raises(TomokitError, match="needs a positive, got 0 in 3 cases"):
        precision_recall_points(~ones, scores)
    with pytest.raises(TomokitError, match="needs a case, got 0"):
        reliability_points(ones[:0], scores[:0])
