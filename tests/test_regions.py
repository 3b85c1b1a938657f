import json
import math
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import SMALL_UNET, follow, train
from monai.data import MetaTensor
from monai.transforms import ConvertToMultiChannelBasedOnBratsClasses

from tomokit import phantoms
from tomokit.errors import TomokitError
from tomokit.regions import (
    HideUnknownd,
    MarkUnlabelledd,
    RegionsFromLabelsd,
    region_values,
    unlabelled_classes,
)

BRATS = {"whole": [1, 2, 3], "core": [1, 3], "enhancing": [3]}


def label_map(shape=(6, 5, 4), labels=4):
    return torch.from_numpy(np.random.default_rng(0).integers(0, labels, (1, *shape))).float()


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5)])
@pytest.mark.parametrize("kind", [torch.Tensor, MetaTensor])
def test_painted_regions_give_the_label_map_again(shape, kind):
    truth = kind(label_map(shape))
    regions = RegionsFromLabelsd("label", BRATS)({"label": truth})["label"]
    assert regions.shape == (3, *shape) and regions.dtype == torch.float32
    back = torch.zeros_like(truth)
    for region, value in zip(regions, region_values(BRATS), strict=True):
        back = back.masked_fill(region[None] > 0, value)
    assert torch.equal(torch.as_tensor(back), torch.as_tensor(truth))


def test_regions_are_those_of_monai():
    truth = label_map()
    monai = ConvertToMultiChannelBasedOnBratsClasses()(torch.where(truth == 3, 4, truth)[0])  # core, whole, enhancing
    found = RegionsFromLabelsd("label", BRATS)({"label": truth})["label"]
    assert torch.equal(found[[1, 0, 2]], monai.float())


def test_a_region_paints_the_label_that_no_later_one_has():
    assert region_values(BRATS) == [2, 1, 3]


def test_an_order_that_hides_a_label_is_refused():
    with pytest.raises(TomokitError, match=r"'whole' must have exactly one label .* it has \[1, 2\]"):
        region_values({"whole": [1, 2, 3], "enhancing": [3]})
    with pytest.raises(TomokitError, match=r"'core' must have exactly one label .* it has \[\]"):
        region_values({"core": [1, 3], "whole": [1, 2, 3]})


@pytest.mark.parametrize(
    ("regions", "message"),
    [({}, "`regions` is empty"), ({"all": []}, r"'all' .* \[\]"), ({"air": [0, 1]}, r"'air' .* \[0, 1\]")],
)
def test_regions_of_nothing_are_refused(regions, message):
    with pytest.raises(TomokitError, match=message):
        RegionsFromLabelsd("label", regions)


def test_marked_label_maps_tell_what_nobody_looked_for():
    truth = label_map()
    truth[truth == 3] = 0
    marked = MarkUnlabelledd("label", 6)({"label": truth, "labelled": [1, 2], "case": "a"})
    assert "labelled" not in marked
    assert set(marked["label"].unique().tolist()) == {-(2**3 + 2**4 + 2**5), 1, 2}
    assert torch.equal(marked["label"] > 0, truth > 0)
    both = torch.stack([marked["label"], truth])
    assert unlabelled_classes(both, 6).tolist() == [[False] * 3 + [True] * 3, [False] * 6]
    assert torch.equal(MarkUnlabelledd("label", 6)({"label": truth})["label"], truth)
    zero = MarkUnlabelledd("label", 3)({"label": truth, "labelled": [0, 1, 2]})["label"]
    assert torch.equal(zero, truth)


def test_the_greatest_code_is_exact_in_float32():
    marked = MarkUnlabelledd("label", 24)({"label": torch.zeros(1, 2, 2), "labelled": [1]})["label"]
    assert marked.dtype == torch.float32
    assert unlabelled_classes(marked[None], 24)[0].tolist() == [False, False] + [True] * 22


def test_an_unsigned_label_map_without_background_has_no_code():
    whole = torch.full((1, 1, 2, 2), 3, dtype=torch.uint8)
    assert unlabelled_classes(whole, 4)[0].tolist() == [False] * 4


def test_what_does_not_fit_its_list_is_refused():
    truth = label_map()
    with pytest.raises(TomokitError, match="at most 24 classes, got 25"):
        MarkUnlabelledd("label", 25)
    mark = MarkUnlabelledd("label", 4)
    with pytest.raises(TomokitError, match=r"`labelled` of case_7 must list some of .* got \[2, 9\]"):
        mark({"label": truth, "labelled": [2, 9], "case": "case_7"})
    with pytest.raises(TomokitError, match=r"must list some of .* got \[\]"):
        mark({"label": truth, "labelled": []})
    with pytest.raises(TomokitError, match=r"case_7 holds one of the labels \[2\], which its `labelled` \[1, 3\]"):
        mark({"label": truth, "labelled": [1, 3], "case": "case_7"})


@pytest.mark.parametrize("kind", [torch.Tensor, MetaTensor])
def test_what_the_truth_does_not_know_is_hidden_from_metrics(kind):
    truth = torch.tensor([1.0, 0, 0, 255, 255, 0]).reshape(1, 6, 1, 1)
    truth = MarkUnlabelledd("label", 4)({"label": kind(truth), "labelled": [1, 2]})["label"]
    predicted = kind(torch.tensor([1.0, 3, 2, 1, 0, 0]).reshape(1, 6, 1, 1))
    found = HideUnknownd("pred", 4, ignore_label=255)({"pred": predicted, "label": truth})
    assert found["label"].flatten().tolist() == [1, 0, 0, 0, 0, 0]
    assert found["pred"].flatten().tolist() == [1, 0, 2, 0, 0, 0]
    plain = HideUnknownd("pred", 4)({"pred": predicted, "label": label_map((6, 1, 1))})
    assert torch.equal(torch.as_tensor(plain["pred"]), torch.as_tensor(predicted))


def test_what_the_truth_does_not_know_is_hidden_in_regions():
    truth = torch.tensor([1.0, 0, 255, 2]).reshape(1, 4, 1, 1)
    truth = MarkUnlabelledd("label", 4)({"label": truth, "labelled": [1, 2]})["label"]
    hide = RegionsFromLabelsd("label", {"both": [1, 2], "one": [1], "three": [1, 3]}, "pred", ignore_label=255)
    found = hide({"pred": torch.ones(3, 4, 1, 1), "label": truth})
    assert found["label"][..., 0, 0].tolist() == [[1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert found["pred"][..., 0, 0].tolist() == [[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 0, 0]]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    phantoms.make_segmentation_set(folder, cases=4, test_cases=1, size=32, progress=False)
    return folder


PLAIN = {"train::augmentation": {"_target_": "Compose", "transforms": []}, "epochs": 1, "patch_size": [16, 16, 16]}


def test_a_bundle_trains_regions_and_writes_one_label_map(data, tmp_path):
    network = SMALL_UNET | {"out_channels": "$len(@regions)"}
    run = tmp_path / "run"
    train("segmentation", run, "modes/regions", dataset_dir=str(data), network_def=network, **PLAIN)
    follow("segmentation", run, "evaluate", rival=False)
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics["per_class"]) == {"liver", "spleen", "lesion"}
    assert 0 <= json.loads((run / "validation.json").read_text())["best"]["metric"] <= 1
    labels = np.asanyarray(nibabel.load(run / "predictions" / "case_003.nii.gz").dataobj)
    assert labels.shape == np.asanyarray(nibabel.load(data / "labelsTs" / "case_003.nii.gz").dataobj).shape
    assert set(np.unique(labels)) <= {0, 1, 2, 3} and len(np.unique(labels)) > 1


def test_a_bundle_trains_on_partly_labelled_cases(data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    description = json.loads((copy / "dataset.json").read_text())
    for entry in description["training"][::2]:
        entry["labelled"] = [2]
        path = copy / entry["label"]
        image = nibabel.load(path)
        labels = np.asanyarray(image.dataobj)
        nibabel.save(nibabel.Nifti1Image(np.where(labels == 2, labels, 0), image.affine, image.header), path)
    (copy / "dataset.json").write_text(json.dumps(description))
    run = tmp_path / "run"
    train("segmentation", run, "modes/partly_labelled", dataset_dir=str(copy), network_def=SMALL_UNET, **PLAIN)
    record = json.loads((run / "validation.json").read_text())
    assert math.isfinite(record["history"][0]["loss"]) and 0 <= record["best"]["metric"] <= 1


@pytest.mark.parametrize("mode", ["ignore_label", "regions"])
def test_a_bundle_ignores_what_nobody_labelled(mode, data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    for path in copy.glob("labels*/*"):
        image = nibabel.load(path)
        labels = np.asanyarray(image.dataobj).copy()
        labels[:8] = 255
        nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), image.affine), path)
    network = SMALL_UNET | ({"out_channels": "$len(@regions)"} if mode == "regions" else {})
    options = PLAIN | {"dataset_dir": str(copy), "network_def": network, "ignore_label": 255}
    run = train("segmentation", tmp_path / "run", f"modes/{mode}", **options)
    record = json.loads((run / "validation.json").read_text())
    assert math.isfinite(record["history"][0]["loss"]) and 0 <= record["best"]["metric"] <= 1
    follow("segmentation", run, "evaluate", rival=False)
    assert json.loads((run / "metrics.json").read_text())["summary"]["dice"]["cases"] == 1
