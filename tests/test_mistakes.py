"""Eight mistakes of common tutorials: ours passes each guard, and a copy with the mistake planted does not."""

import copy
import math
import types
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from bundle_runs import config, train

from tomokit import phantoms
from tomokit.config_rules import Source, flip_findings, merge, plane_findings
from tomokit.engines.checkpoints import TrainingState
from tomokit.metrics import score_segmentation, summarise_classification
from tomokit.splits import draw_split

CLASSES = ["benign", "malignant"]


def classified(chances, truth):
    """Return rows of cases whose second class has these probabilities."""
    return [
        {"case": f"c{i}", "patient": f"p{i}", "truth": CLASSES[flag], "p_benign": 1 - chance, "p_malignant": chance}
        for i, (chance, flag) in enumerate(zip(chances, truth, strict=True))
    ]


def caught(guard, mistaken):
    """Return whether a guard fails on something mistaken."""
    try:
        guard(mistaken)
    except AssertionError:
        return True
    return False


# 1: precision is not the mean of what was predicted


def guard_precision(precision):
    rows = classified([0.9, 0.8, 0.7, 0.6, 0.2, 0.1], [1, 1, 1, 0, 1, 0])
    assert precision(rows) == pytest.approx(3 / 4)


def own_precision(rows):
    return summarise_classification(rows, CLASSES)["per_class"]["malignant"]["precision"]["mean"]


def test_precision_is_of_what_was_called_positive():
    guard_precision(own_precision)
    assert caught(guard_precision, lambda rows: np.mean([row["p_malignant"] >= 0.5 for row in rows]))


# 2: the binary cross-entropy of logits takes logits


def guard_loss(loss):
    logits, truth = torch.tensor([[3.0, -2.0]]), torch.tensor([[1.0, 1.0]])
    expected = (math.log1p(math.exp(-3)) + math.log1p(math.exp(2))) / 2
    assert float(loss(logits, truth)) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_labels_takes_logits():
    mode = yaml.safe_load(Path(config("classification", "modes/multi_label")[0]).read_text())
    name = mode["train::loss"]["_target_"].rpartition(".")[2]
    guard_loss(getattr(torch.nn, name)())
    assert caught(guard_loss, lambda logits, truth: torch.nn.BCELoss()(logits.clamp(0, 1), truth))
    assert caught(guard_loss, lambda logits, truth: torch.nn.BCEWithLogitsLoss()(logits.sigmoid(), truth))


# 3: the AUC is of probabilities, not of decided classes


def guard_auc(auc):
    assert auc(classified([0.1, 0.3, 0.4, 0.45, 0.6, 0.9], [0, 0, 0, 1, 1, 1])) == 1


def test_the_auc_is_of_probabilities():
    def own(rows):
        return summarise_classification(rows, CLASSES)["summary"]["auc"]["mean"]

    def of_classes(rows):
        return own(
            classified([float(row["p_malignant"] >= 0.5) for row in rows], [r["truth"] == "malignant" for r in rows])
        )

    guard_auc(own)
    assert caught(guard_auc, of_classes)


# 4: the best weights are kept by value


class Reference(TrainingState):
    """A copy of what keeps the best weights, with the mistake: they are those of the running network."""

    def keep_best(self, metric):
        self.best_epoch, self.best_metric = self.trainer.state.epoch, metric
        self.best_weights = self.result.state_dict()


def guard_best(kind):
    network = torch.nn.Linear(1, 1, bias=False)
    trainer = types.SimpleNamespace(network=network, state=types.SimpleNamespace(epoch=1))
    state = kind(trainer, None)
    with torch.no_grad():
        network.weight.fill_(1)
        state.keep_best(0.9)
        network.weight.fill_(2)
    assert float(state.best_weights["weight"]) == 1


def test_the_best_weights_are_not_the_last():
    guard_best(TrainingState)
    assert caught(guard_best, Reference)


# 5: a split is shuffled, stratified and by patient


def guard_split(split):
    entries = [{"case": f"c{i:02}", "patient": f"p{i // 2:02}", "label": int(i >= 30)} for i in range(40)]
    parts = split(entries)
    patients = [{entry["patient"] for entry in entries if entry["case"] in part} for part in parts]
    assert not (patients[0] & patients[1] or patients[0] & patients[2] or patients[1] & patients[2])
    for part in parts:
        assert 0 < sum(entry["label"] for entry in entries if entry["case"] in part) < len(part)


def own_split(entries):
    found = draw_split(entries, seed=0)
    return [found[part] for part in ("training", "validation", "test")]


def sliced(entries, order):
    names = [entries[place]["case"] for place in order]
    return [names[:24], names[24:32], names[32:]]


def test_a_split_is_by_patient_and_shuffled():
    guard_split(own_split)
    assert caught(guard_split, lambda entries: sliced(entries, range(40)))
    assert caught(guard_split, lambda entries: sliced(entries, np.random.default_rng(0).permutation(40)))


# 6: a network of planes is not run on a volume


def guard_planes(find):
    planted = {"image_size": [32, 32, 32], "network_def": {"_target_": "DenseNet121", "spatial_dims": 2}}
    assert len(find(planted)) == 1
    padded = planted | {"network_def": {"_target_": "Padded", "network": planted["network_def"]}}
    assert len(find(padded)) == 1
    for size, dimensions in (([32, 32, 32], 3), ([32, 32], 2), ([32, 32], "$len(@image_size)")):
        assert not find({"image_size": size, "network_def": {"_target_": "A", "spatial_dims": dimensions}})
    assert not find({"image_size": [32, 32, 32], "network_def": {"_target_": "A"}})


def test_a_network_of_planes_is_not_run_on_volumes():
    guard_planes(lambda found: plane_findings(found, merge([Source("train.yaml", found)])))
    assert caught(guard_planes, lambda found: [])


def test_a_training_of_such_a_network_is_refused():
    planes = {"_target_": "DenseNet121", "spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    with pytest.raises(RuntimeError) as error:
        train("classification", Path("nowhere"), network_def=planes)
    told = "`network_def` has `spatial_dims` 2, but `image_size` [32, 32, 32] has 3 numbers; set `spatial_dims` to 3"
    assert told in str(error.value.__cause__)


# 7: the label is read


def guard_label(score):
    truth, prediction = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    truth[:2], prediction[:2] = 1, 1
    other = truth[::-1].copy()
    assert score(prediction, truth) == 1
    assert score(prediction, other) == 0


def own_dice(prediction, truth):
    return score_segmentation(prediction, truth, {"0": "background", "1": "liver"}, np.eye(4))[0]["dice"]


def test_the_label_is_read():
    guard_label(own_dice)
    assert caught(guard_label, lambda prediction, truth: own_dice(prediction, prediction))


def test_training_and_evaluation_read_the_label_files(tmp_path):
    folder = tmp_path / "set"
    phantoms.make_segmentation_set(folder, "CT", cases=6, test_cases=2, size=32)
    label = sorted(folder.glob("labels*/*.nii.gz"))[0]
    image = nibabel.load(label)
    nibabel.save(nibabel.Nifti1Image(np.full(image.shape, 9, np.uint8), image.affine), label)
    with pytest.raises(RuntimeError) as error:
        train("segmentation", tmp_path / "run", dataset_dir=str(folder))
    assert "9" in str(error.value.__cause__) and label.name.removesuffix(".nii.gz") in str(error.value.__cause__)


# 8: structures of one side are not mirrored


def guard_flips(find):
    labels = {"0": "background", "1": "left kidney", "2": "right kidney"}
    flip = {"_target_": "RandFlipd", "keys": ["image", "label"], "spatial_axis": 0}
    planted = {"labels": labels, "augmentation": {"transforms": [flip]}}
    assert len(find(planted)) == 1
    clean = copy.deepcopy(planted)
    clean["augmentation"]["transforms"][0]["spatial_axis"] = 1
    assert not find(clean)


def test_labels_of_one_side_are_not_mirrored():
    guard_flips(lambda found: flip_findings(found, merge([Source("train.yaml", found)])))
    assert caught(guard_flips, lambda found: [])
