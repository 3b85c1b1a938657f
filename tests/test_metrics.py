import json

import numpy as np
import pytest
import sklearn.metrics
import torch
from monai.metrics import DiceMetric, compute_dice
from monai.networks.utils import one_hot

from tomokit.errors import TomokitError
from tomokit.metrics import (
    area_under_curve,
    mean_dice_by_case,
    score_segmentation,
    summarise_classification,
    summarise_segmentation,
)

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
    assert mean_dice_by_case(dice_rows({"a": {"liver": None}})) == {}


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
    for entry in summary.values():
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
