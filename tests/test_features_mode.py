"""Real small runs of networks with measures joined, and of the rivals beside a network."""

import csv
import json
import shutil

import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import config, follow, layer, train, weights
from monai.bundle import ConfigParser
from sklearn.metrics import roc_auc_score

from tomokit import phantoms
from tomokit.datasets import select_cases
from tomokit.errors import TomokitError
from tomokit.measure import feature_names
from tomokit.rivals import feature_table

SMALL = {"image_size": [16, 16, 16]}
NO_RIVALS = {"rival": False, "feature_models": []}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    phantoms.make_classification_set(folder, cases=24, test_cases=6, size=16, progress=False)
    return folder


@pytest.fixture(scope="module")
def earlier(volumes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "earlier"
    return train("classification", folder, dataset_dir=str(volumes), epochs=1, **SMALL)


def read_table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def find_cause(error):
    while error is not None and not isinstance(error, TomokitError):
        error = error.__cause__ or error.__context__
    assert error is not None, "no TomokitError in the chain"
    return str(error)


def validation_auc(run):
    """Return the AUC of a run's best weights on its validation cases, one by one."""
    parser = ConfigParser()
    parser.read_config(str(run / "configs" / "train.yaml"))
    network = parser.get_parsed_content("network").eval()
    network.load_state_dict(weights(run, "best"))
    items = list(parser.get_parsed_content("validate::dataset"))
    with torch.no_grad():
        logits = [network(item["image"].as_tensor()[None], item["features"][None])[0] for item in items]
    return roc_auc_score([item["label"] for item in items], [float(own[1] - own[0]) for own in logits])


def test_measures_are_joined_to_a_trained_network_in_every_stage(volumes, earlier, tmp_path):
    given = {"dataset_dir": str(volumes), "pretrained": str(earlier)}
    run = train("classification", tmp_path / "run", "modes/features", **given, **SMALL)
    training = select_cases(volumes, "splits.json", 0)["training"]
    _, table = feature_table(training)
    kept, before = weights(run, "best"), weights(earlier, "best")
    np.testing.assert_allclose(kept["mean"], table.mean(axis=0), rtol=1e-4, atol=1e-5)
    assert kept["fc.weight"].shape == (2, table.shape[1])
    assert all(torch.equal(kept[f"network.{name}"], value) for name, value in before.items())
    record = json.loads((run / "validation.json").read_text())
    assert record["metric"] == "val_auc" and record["epochs"] == 0
    assert record["best"]["metric"] == pytest.approx(validation_auc(run))
    assert json.loads((run / "decision.json").read_text())["task"] == "classes"
    follow("classification", run, "evaluate", pretrained=str(earlier), **NO_RIVALS)  # as `make train evaluate` gives it
    follow("classification", run, "inference", dataset_dir="nowhere", input=str(volumes / "imagesTs"))
    rows, answers = read_table(run / "cases.csv"), read_table(run / "inference" / "classes.csv")
    assert sorted(row["p_elongated"] for row in rows) == sorted(row["p_elongated"] for row in answers)
    assert "rivals" not in json.loads((run / "metrics.json").read_text())


def test_no_run_or_one_of_another_network_is_refused(volumes, earlier, tmp_path):
    given = {"dataset_dir": str(volumes), "pretrained": str(earlier)}
    with pytest.raises(RuntimeError) as caught:
        train("classification", tmp_path / "run", "networks/cnn", "modes/features", **given, **SMALL)
    assert f"measures can't be joined to {earlier}; use its split" in find_cause(caught.value)
    assert "its network is another one" in find_cause(caught.value)
    assert not (tmp_path / "run").exists()
    given["pretrained"] = str(tmp_path / "nowhere")
    with pytest.raises(RuntimeError) as caught:
        train("classification", tmp_path / "run", "modes/features", **given, **SMALL)
    assert f"no run in {tmp_path / 'nowhere'} to join measures to" in find_cause(caught.value)


def test_a_run_that_learned_from_other_cases_is_refused(volumes, earlier, tmp_path):
    given = {"dataset_dir": str(volumes), "pretrained": str(earlier), "label_count": 8}
    with pytest.raises(RuntimeError) as caught:
        train("classification", tmp_path / "run", "modes/features", files=(layer("few_labels"),), **given, **SMALL)
    assert "training cases, others than the 8 of this training" in find_cause(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [None, "cnn", "densenet", "inception", "resnet10", "senet", "sequence", "vit"])
def test_any_network_takes_the_measures(name, volumes):
    layers = [*([] if name is None else [f"networks/{name}"]), "modes/features"]
    parser = ConfigParser()
    parser.read_config(config("classification", "train", *layers))
    for key, value in {"dataset_dir": str(volumes), "mask_above": 60, **SMALL}.items():
        parser[key] = value
    network = parser.get_parsed_content("network").eval()
    names = parser.get_parsed_content("measures").names
    assert names == feature_names(masked=False, mask_above=60)
    torch.nn.init.constant_(network.fc.weight, 2)
    image, features = torch.randn(2, 1, 16, 16, 16), torch.randn(2, len(names))
    with torch.no_grad():
        both, alone = network(image, features), network(image, torch.zeros_like(features))
    assert both.shape == (2, 2)
    torch.testing.assert_close(both - alone, features.sum(1, keepdim=True).expand(2, 2), rtol=1e-3, atol=1e-3)


def test_masks_of_the_cases_are_measured_in(volumes, earlier, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(volumes, folder)
    content = json.loads((folder / "dataset.json").read_text())
    for entry in [*content["training"], *content["test"]]:
        image = nibabel.load(folder / entry["image"])
        mask = (image.get_fdata() > np.median(image.get_fdata())).astype(np.uint8)
        entry["mask"] = entry["image"].replace("images", "masks")
        (folder / entry["mask"]).parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(mask, image.affine), folder / entry["mask"])
    (folder / "dataset.json").write_text(json.dumps(content))
    options = {"dataset_dir": str(folder), "mask_key": "mask", "pretrained": str(earlier)}
    run = train("classification", tmp_path / "run", "modes/features", **options, **SMALL)
    assert weights(run, "best")["mean"].shape == (len(feature_names(masked=True)),)
    follow("classification", run, "evaluate", rival=False, feature_models=["logistic"])
    assert list(json.loads((run / "metrics.json").read_text())["rivals"]) == ["logistic"]
    with pytest.raises(RuntimeError) as caught:
        follow("classification", run, "inference")
    assert "has no `mask` to measure in" in find_cause(caught.value)


def test_a_value_has_measures_joined_in_its_own_unit(volumes, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(volumes, folder)
    content = json.loads((folder / "dataset.json").read_text())
    for number, entry in enumerate([*content["training"], *content["test"]]):
        entry["label"] = 40.0 + number
    content["labels"] = {"0": "age"}
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "splits.json").unlink()  # it was drawn by the classes
    given = {"dataset_dir": str(folder), "labels": {"0": "age"}, "epochs": 1, **SMALL}
    trained = train("classification", tmp_path / "trained", "modes/regression", **given)
    layers, given["pretrained"] = ("modes/regression", "modes/features"), str(trained)
    run = train("classification", tmp_path / "run", *layers, **given)
    assert json.loads((run / "validation.json").read_text())["metric"] == "val_mse"
    follow("classification", run, "evaluate", **NO_RIVALS)
    answers = [float(row["prediction"]) for row in read_table(run / "cases.csv")]
    assert 20 < min(answers) < max(answers) < 90


def test_an_evaluation_scores_and_compares_every_rival(earlier):
    assert torch.load(earlier / "checkpoints" / "last.pt", weights_only=True)["average"]["count"] > 0
    follow("classification", earlier, "evaluate")
    measures = json.loads((earlier / "metrics.json").read_text())
    names = ["histogram", "threshold", "logistic", "tree", "perceptron"]
    assert list(measures["rivals"]) == list(measures["comparisons"]) == names
    for name in names:
        found = measures["comparisons"][name]["elongated"]
        areas = [own["summary"]["auc"]["mean"] for own in (measures, measures["rivals"][name])]
        assert found["difference"] == pytest.approx(areas[0] - areas[1])
        assert found["verdict"] in ("better", "tie", "worse")
    with pytest.raises(RuntimeError) as caught:
        follow("classification", earlier, "evaluate", feature_models=["forest"])
    assert "got 'forest'" in find_cause(caught.value)
