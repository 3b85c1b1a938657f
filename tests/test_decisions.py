import csv
import itertools
import json
import math
import shutil

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import sklearn.metrics
import torch
from bundle_runs import follow, train
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer

from tomokit import phantoms
from tomokit.decisions import (
    Calibratedd,
    StandardiseTargetd,
    choose_decision,
    choose_temperature,
    choose_threshold,
    decide_classes,
    decide_labels,
    read_decision,
    target_scale,
)
from tomokit.engines.checkpoints import save
from tomokit.engines.predicting import predict_cases
from tomokit.errors import TomokitError


def draw_classes(cases, classes=3, seed=0):
    """Return logits (cases, classes), and classes drawn with the probabilities that they tell."""
    generator = np.random.default_rng(seed)
    logits = 1.5 * generator.normal(size=(cases, classes))
    return logits, (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)


def draw_labels(cases, labels=2, seed=0):
    """Return logits (cases, labels), and 0 or 1 drawn with the probabilities that they tell."""
    generator = np.random.default_rng(seed)
    logits = 1.5 * generator.normal(size=(cases, labels))
    return logits, (generator.random(logits.shape) < scipy.special.expit(logits)).astype(int)


# Temperatures


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_found_again(scale):
    logits, truth = draw_classes(4000)
    found = decide_classes(scale * logits, truth)
    assert found["temperatures"] == [pytest.approx(scale, rel=0.12)] and found["cases"] == 4000
    logits, truth = draw_labels(4000)
    found = decide_labels(scale * logits, truth, ["a", "b"])
    assert found["temperatures"] == [pytest.approx(scale, rel=0.12)] * 2


def test_with_many_cases_it_is_the_one_of_least_log_loss():
    logits, truth = draw_classes(3000)
    logits = 3 * logits
    found = decide_classes(logits, truth)

    def log_loss(temperature):
        return sklearn.metrics.log_loss(truth, scipy.special.softmax(logits / temperature, axis=1))

    best = scipy.optimize.minimize_scalar(log_loss, bounds=(0.5, 9), method="bounded")
    assert found["temperatures"][0] == pytest.approx(best.x, rel=0.02)
    assert found["log_loss"] == pytest.approx(log_loss(found["temperatures"][0]))
    assert found["plain"] == pytest.approx(log_loss(1.0))


@pytest.mark.parametrize("cases", [2, 5, 20, 98])
def test_it_is_never_worse_than_none(cases):
    for seed in range(10):
        logits, truth = draw_classes(cases, seed=seed)
        for scale in (0.2, 1, 6):
            found = decide_classes(scale * logits, truth)
            assert found["log_loss"] <= found["plain"] and 0.1 <= found["temperatures"][0] <= 10


def test_few_cases_that_are_all_right_do_not_make_certain():
    truth = np.arange(10) % 2
    logits = 3.0 * np.eye(2)[truth]
    assert 0.6 < decide_classes(logits, truth)["temperatures"][0] < 1
    many = np.arange(5000) % 2
    assert decide_classes(3.0 * np.eye(2)[many], many)["temperatures"][0] < 0.4


def test_a_network_that_is_always_certain_and_knows_nothing_stays_within_bounds():
    generator = np.random.default_rng(0)
    logits, truth = 200 * generator.normal(size=(2000, 2)), generator.integers(0, 2, 2000)
    assert decide_classes(logits, truth)["temperatures"][0] == pytest.approx(10, rel=0.01)


def test_a_loss_that_does_not_fall_leaves_the_temperature():
    assert choose_temperature(lambda temperature: abs(math.log(temperature))) == 1.0


# Thresholds


def test_a_threshold_by_hand():
    chances = np.array([0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.2])
    assert choose_threshold(np.arange(7) > 3, chances) == pytest.approx(0.05)
    mixed = np.array([0, 0, 0, 1, 0, 1, 1, 1]) == 1  # .325 and .5 are equally good
    assert choose_threshold(mixed, np.array([0.1, 0.2, 0.3, 0.35, 0.4, 0.6, 0.7, 0.8])) == pytest.approx(0.5)


def test_no_threshold_has_a_greater_youden_index():
    generator = np.random.default_rng(0)
    for _ in range(20):
        truth = np.arange(60) % 4 == 0
        chances = np.round(scipy.special.expit(generator.normal(size=60) + truth - 1), 2)  # with ties
        false_rate, true_rate, _ = sklearn.metrics.roc_curve(truth, chances)
        found = chances >= choose_threshold(truth, chances)
        assert found[truth].mean() - found[~truth].mean() == pytest.approx((true_rate - false_rate).max())


@pytest.mark.parametrize("positives", [0, 2, 8, 10])
def test_too_few_cases_of_a_kind_leave_the_threshold(positives):
    chances = np.linspace(0.6, 0.9, 10)
    assert choose_threshold(np.arange(10) >= 10 - positives, chances) == 0.5


# The transform


def write(folder, **content):
    (folder / "decision.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("kind", [torch.Tensor, MetaTensor])
def test_the_decision_is_applied(tmp_path, kind):
    logits = kind(torch.tensor([1.0, -2.0, 0.5]))
    write(tmp_path, task="classes", temperatures=[2.0])
    found = Calibratedd("pred", tmp_path)({"pred": logits, "case": "a"})
    torch.testing.assert_close(found["pred"], torch.tensor([0.5, -1.0, 0.25]).softmax(0))
    assert found.keys() == {"pred", "case"} and type(found["pred"]) is torch.Tensor
    write(tmp_path, task="labels", temperatures=[1.0, 2.0, 0.5], thresholds=[0.8, 0.2, 0.7])
    found = Calibratedd("pred", tmp_path, "labels")({"pred": logits})
    torch.testing.assert_close(found["pred"], torch.tensor([1.0, -1.0, 1.0]).sigmoid())
    assert found["pred_decided"].tolist() == [0, 1, 1]
    write(tmp_path, task="value", mean=60.0, deviation=10.0)
    found = Calibratedd("pred", tmp_path, "value")({"pred": logits[1:2]})
    assert found["pred"].tolist() == [40.0]


def test_without_a_file_nothing_is_decided(tmp_path):
    logits = torch.tensor([1.0, -2.0])
    found = Calibratedd("pred", tmp_path)({"pred": logits})["pred"]
    torch.testing.assert_close(found, logits.softmax(0))
    found = Calibratedd("pred", tmp_path, "labels")({"pred": logits})
    torch.testing.assert_close(found["pred"], logits.sigmoid())
    assert found["pred_decided"].tolist() == [1, 0]
    with pytest.raises(TomokitError, match=r"decision\.json is absent, which tells the mean.*--resume true"):
        Calibratedd("pred", tmp_path, "value")({"pred": logits[:1]})


@pytest.mark.parametrize(
    "content", [[1], {}, {"task": "labels", "temperatures": [1]}, {"task": "labels", "temperatures": "warm"}]
)
def test_a_malformed_file_is_named(tmp_path, content):
    (tmp_path / "decision.json").write_text(json.dumps(content))
    with pytest.raises(TomokitError, match=r"decision\.json is malformed"):
        read_decision(tmp_path / "decision.json", "labels")


@pytest.mark.parametrize("temperatures", [[], [0.0], [1.0, -2.0]])
def test_an_impossible_temperature_is_malformed(tmp_path, temperatures):
    write(tmp_path, task="classes", temperatures=temperatures)
    with pytest.raises(TomokitError, match=r"decision\.json is malformed"):
        read_decision(tmp_path / "decision.json", "classes")


def test_a_file_of_another_task_or_of_other_labels_is_refused(tmp_path):
    write(tmp_path, task="labels", temperatures=[1.0, 1.0], thresholds=[0.5, 0.5])
    with pytest.raises(TomokitError, match="for the task 'labels', the config's `task` is 'classes'"):
        Calibratedd("pred", tmp_path)({"pred": torch.zeros(2)})
    with pytest.raises(TomokitError, match="decides on 2 labels, the network gives 3"):
        Calibratedd("pred", tmp_path, "labels")({"pred": torch.zeros(3)})
    with pytest.raises(TomokitError, match="`task` must be one of classes, labels, value, got 'regions'"):
        Calibratedd("pred", tmp_path, "regions")


# Targets


def test_a_target_is_standardised_and_comes_back(tmp_path):
    entries = [{"case": f"c{i}", "label": value} for i, value in enumerate((50, 60.0, 70))]
    scale = target_scale(entries)
    assert scale == {"mean": 60.0, "deviation": pytest.approx(math.sqrt(200 / 3))}
    transform = StandardiseTargetd("label", scale)
    standard = [transform({"label": entry["label"], "case": "a"})["label"] for entry in entries]
    assert all(own.shape == (1,) and own.dtype == torch.float32 for own in standard)
    assert torch.cat(standard).mean().item() == pytest.approx(0, abs=1e-6)
    assert torch.cat(standard).std(correction=0).item() == pytest.approx(1)
    write(tmp_path, task="value", **scale)
    back = Calibratedd("pred", tmp_path, "value")({"pred": standard[2]})["pred"]
    assert back.tolist() == pytest.approx([70])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1.0, True], "c1 has the label True; a regression needs a number"),
        ([1.0, [0, 1]], r"c1 has the label \[0, 1\]; a regression"),
        ([2.5, 2.5], r"different targets, got only \[2.5\]"),
        ([], r"different targets, got only \[\]"),
    ],
)
def test_targets_that_can_not_be_learned(labels, message):
    with pytest.raises(TomokitError, match=message):
        target_scale([{"case": f"c{i}", "label": label} for i, label in enumerate(labels)])


# The choice


def make_evaluator(run, labels):
    """Return MONAI's evaluator of a linear network on small images, whose best weights are those of the run."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 2))
    save(network.state_dict(), run / "checkpoints" / "best.pt")
    torch.nn.init.zeros_(network[1].weight)  # the last ones, say
    images = torch.randn(len(labels), 1, 2, 2, 2)
    dataset = Dataset([{"image": image, "label": label} for image, label in zip(images, labels, strict=True)])
    loader = DataLoader(dataset, batch_size=4)
    device = torch.device("cpu")
    return SupervisedEvaluator(device=device, val_data_loader=loader, network=network, inferer=SimpleInferer()), images


NAMES = {"1": "round", "0": "long"}


def test_classes_are_decided_on_the_best_weights_outputs_of_all_cases(tmp_path):
    labels = [0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0]
    evaluator, images = make_evaluator(tmp_path, labels)
    content = choose_decision(evaluator, tmp_path, NAMES)
    logits, truth = predict_cases(evaluator)
    assert np.allclose(logits, evaluator.network(images).detach().numpy(), atol=1e-6) and np.ptp(logits) > 0.1
    assert truth.tolist() == labels
    assert content == {"task": "classes", **decide_classes(logits, truth)}
    assert json.loads((tmp_path / "decision.json").read_text()) == content
    assert read_decision(tmp_path / "decision.json", "classes").temperatures == tuple(content["temperatures"])


def test_labels_are_decided_each_in_the_order_of_the_channels(tmp_path):
    labels = [torch.tensor([i % 2, int(i % 3 == 0)]).float() for i in range(11)]
    evaluator, _ = make_evaluator(tmp_path, labels)
    content = choose_decision(evaluator, tmp_path, NAMES, "labels")
    logits, truth = predict_cases(evaluator)
    assert truth.shape == (11, 2)
    alone = [decide_labels(logits[:, [i]], truth[:, [i]], ["own"]) for i in (0, 1)]
    for key in ("temperatures", "thresholds"):
        assert content[key] == [own[key][0] for own in alone]
    assert list(content["tried"]) == ["long", "round"] and content["tried"]["round"]["cases_with"] == 4
    decision = read_decision(tmp_path / "decision.json", "labels")
    assert decision.thresholds == tuple(content["thresholds"])


def test_a_value_keeps_its_scale_without_any_case(tmp_path):
    scale = {"mean": 3.0, "deviation": 2.0}
    assert choose_decision(None, tmp_path, {"0": "age"}, "value", scale) == {"task": "value", **scale}
    assert read_decision(tmp_path / "decision.json", "value").deviation == 2
    with pytest.raises(TomokitError, match="a regression needs the `scale` of its target"):
        choose_decision(None, tmp_path, {"0": "age"}, "value")


def test_without_validation_cases_or_best_weights_nothing_is_written(tmp_path):
    evaluator, _ = make_evaluator(tmp_path, [])
    assert choose_decision(evaluator, tmp_path, NAMES) is None
    evaluator, _ = make_evaluator(tmp_path, [0] * 11)
    (tmp_path / "checkpoints" / "best.pt").unlink()
    assert choose_decision(evaluator, tmp_path, NAMES) is None
    assert not (tmp_path / "decision.json").exists()


# Real runs


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Return the folder of a small set of classes, without a split."""
    folder = tmp_path_factory.mktemp("data") / "set"
    phantoms.make_classification_set(folder, cases=26, test_cases=6, size=32, progress=False)
    (folder / "splits.json").unlink()
    return folder


def relabel(source, target, labels, make):
    """Return the path of a copy of a set whose cases have other labels, made of their numbers."""
    shutil.copytree(source, target)
    path = target / "dataset.json"
    content = json.loads(path.read_text())
    numbers = itertools.count()
    for part in ("training", "test"):
        for entry in content[part]:
            entry["label"] = make(next(numbers))
    path.write_text(json.dumps(content | {"labels": labels}))
    return str(target)


def read_table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_decides_on_its_validation_cases_and_every_stage_follows(volumes, tmp_path):
    run = train("classification", tmp_path / "run", "modes/balanced", dataset_dir=str(volumes))
    content = json.loads((run / "decision.json").read_text())
    assert content["task"] == "classes" and content["cases"] == 5
    follow("classification", run, "evaluate", rival=False)
    first = read_table(run / "cases.csv")
    write(run, task="classes", temperatures=[content["temperatures"][0] * 1000])
    follow("classification", run, "evaluate")
    assert all(float(row["p_elongated"]) == pytest.approx(0.5, abs=0.05) for row in read_table(run / "cases.csv"))
    assert any(abs(float(row["p_elongated"]) - 0.5) > 1e-3 for row in first)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["task"] == "classification" and {"auc", "ece", "brier"} <= metrics["summary"].keys()


@pytest.mark.parametrize("loss", ["focal", "soft_dice", "class_weights", "label_smoothing"])
def test_a_bundle_trains_three_classes_with_any_loss_and_mixup(loss, volumes, tmp_path):
    names = {"0": "a", "1": "b", "2": "c"}
    data = relabel(volumes, tmp_path / "set", names, lambda i: i % 3)
    layers = (f"losses/{loss}", "augmentation/mixup")
    run = train("classification", tmp_path / "run", *layers, dataset_dir=data, labels=names)
    history = json.loads((run / "validation.json").read_text())["history"]
    assert all(np.isfinite(entry["loss"]) for entry in history)
    follow("classification", run, "evaluate", rival=False, feature_models=[])
    rows = read_table(run / "cases.csv")
    assert {row["truth"] for row in rows} == set("abc")
    assert all(sum(float(row[f"p_{name}"]) for name in "abc") == pytest.approx(1, abs=1e-5) for row in rows)
    assert 0 <= json.loads((run / "metrics.json").read_text())["summary"]["auc"]["mean"] <= 1


def test_a_bundle_trains_several_labels(volumes, tmp_path):
    names = {"0": "a", "1": "b", "2": "c"}
    data = relabel(volumes, tmp_path / "set", names, lambda i: [i % 2, i // 2 % 2, i // 4 % 2])
    run = train("classification", tmp_path / "run", "modes/multi_label", dataset_dir=data, labels=names)
    assert 0 <= json.loads((run / "validation.json").read_text())["best"]["metric"] <= 1
    content = json.loads((run / "decision.json").read_text())
    assert len(content["thresholds"]) == 3
    write(run, **content | {"thresholds": [0.0, 1.0, 0.5]})
    follow("classification", run, "evaluate")
    follow("classification", run, "inference")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["task"] == "multi_label"
    assert metrics["per_class"].keys() == metrics["rivals"]["histogram"]["per_class"].keys() == set(names.values())
    assert metrics["per_class"]["a"]["sensitivity"]["mean"] == metrics["per_class"]["b"]["specificity"]["mean"] == 1
    rows, answers = read_table(run / "cases.csv"), read_table(run / "inference" / "labels.csv")
    assert [row["truth_b"] for row in rows] == ["0", "0", "1", "1", "0", "0"]
    assert [row["p_c"] for row in rows] == [row["p_c"] for row in answers]
    assert {row["decided_a"] for row in answers} == {"1"} and {row["decided_b"] for row in answers} == {"0"}


def test_a_bundle_trains_a_regression_and_answers_in_its_unit(volumes, tmp_path):
    data = relabel(volumes, tmp_path / "set", {"0": "age"}, lambda i: 1000.5 + 3 * i)
    run = train("classification", tmp_path / "run", "modes/regression", dataset_dir=data, labels={"0": "age"})
    record = json.loads((run / "validation.json").read_text())
    assert record["metric"] == "val_mse"
    assert record["best"]["metric"] == min(entry["metric"] for entry in record["history"])
    content = json.loads((run / "decision.json").read_text())
    assert content["task"] == "value" and 1000 < content["mean"] < 1060 and 0 < content["deviation"] < 30
    follow("classification", run, "evaluate")
    follow("classification", run, "inference")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["task"] == "regression" and 0 < metrics["summary"]["mae"]["mean"] < 500
    assert "histogram" in metrics["rivals"]
    rows, answers = read_table(run / "cases.csv"), read_table(run / "inference" / "value.csv")
    assert [float(row["truth"]) for row in rows] == [1000.5 + 3 * i for i in range(20, 26)]
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in answers]
