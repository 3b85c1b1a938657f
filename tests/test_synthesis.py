import json
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from bundle_runs import SMALL_UNET, follow, train, weights
from monai.data import MetaTensor
from monai.transforms import Compose

from tomokit import phantoms
from tomokit.augmentation import (
    BatchImagesFromLabelsd,
    BatchNormalizeIntensityd,
    BatchRandBiasFieldd,
    BatchRandSpatiald,
    FixedDraws,
)
from tomokit.augmentation.synthesis import draw_regions
from tomokit.datasets import has_image, read_entries, select_cases
from tomokit.errors import TomokitError


def labels(batch=2, size=(20, 18, 16)):
    """Return label maps with two touching structures of many voxels each."""
    result = torch.zeros(batch, 1, *size)
    result[:, :, 3:10, 4:14, 3:12] = 1
    result[:, :, 10:16, 4:14, 3:12] = 2
    return result


def synthesis(**options):
    given = {"keys": "image", "label_key": "label", "num_classes": 3, "alike_prob": 0.0} | options
    return BatchImagesFromLabelsd(**given)


def make(transform, label, channels=1, seed=0):
    torch.manual_seed(seed)
    image = torch.zeros(len(label), channels, *label.shape[2:])
    return transform({"image": image, "label": label})


# ------------------------------------------------------------------------------------------- known truth


def test_without_spread_every_structure_has_one_value_and_the_rest_as_many_as_regions():
    label = labels()
    image = make(synthesis(regions=(3, 3), std_range=(0, 0)), label, channels=2)["image"]
    for sample, own in zip(image, label, strict=True):
        for channel in sample:
            assert [len(channel[own[0] == value].unique()) for value in (1, 2)] == [1, 1]
            assert len(channel[own[0] == 0].unique()) == 3
            assert 0 <= channel.min() < channel.max() <= 1
    assert not torch.equal(image[0, 0], image[0, 1])  # each channel has its own contrast


def test_means_and_deviations_are_as_drawn():
    label = torch.ones(1, 1, 40, 40, 40)
    torch.manual_seed(3)
    transform = synthesis(num_classes=2, regions=(1, 1), region_size=(8, 8), std_range=(0.05, 0.15))
    image = transform({"image": torch.zeros(1, 1, 40, 40, 40), "label": label})["image"]
    torch.manual_seed(3)  # the same draws, in their order
    torch.randint(1, 2, ()), torch.rand(1), draw_regions((40, 40, 40), 1, 8.0)
    mean, deviation = torch.rand(2, 1, 2)[:, 0, 0]
    assert image.mean().item() == pytest.approx(mean.item(), abs=0.002)
    assert image.std().item() == pytest.approx(0.05 + 0.1 * deviation.item(), rel=0.01)


def test_a_structure_is_as_often_brighter_as_darker_than_the_one_beside_it():
    label = labels(1, (16, 14, 12))
    transform = synthesis(std_range=(0, 0))
    torch.manual_seed(0)
    images = [transform({"image": torch.zeros(1, 1, 16, 14, 12), "label": label})["image"] for _ in range(200)]
    brighter = sum(bool(image[label == 1].mean() > image[label == 2].mean()) for image in images)
    assert 70 < brighter < 130  # four standard errors


@pytest.mark.parametrize(("prob", "alike"), [(1.0, True), (0.0, False)])
def test_structures_are_alike_where_drawn(prob, alike):
    image = make(synthesis(std_range=(0, 0), alike_prob=prob), labels())["image"]
    assert bool((image[0, 0, 5, 6, 5] == image[0, 0, 12, 6, 5]).item()) is alike


def test_values_beyond_the_labels_count_as_background():
    label = labels(1)
    label[:, :, 17:] = 255
    image = make(synthesis(regions=(1, 1), std_range=(0, 0)), label)["image"]
    assert image[0, 0, 18, 0, 0] == image[0, 0, 0, 0, 0]


def test_regions_are_few_connected_pieces_of_the_size_asked_for():
    counts = []
    for distance in (4.0, 16.0):
        torch.manual_seed(0)
        regions = draw_regions((48, 48, 48), 4, distance).numpy()
        assert set(np.unique(regions)) == {0, 1, 2, 3}
        counts.append(sum(scipy.ndimage.label(regions == value)[1] for value in range(4)))
    assert counts[1] < counts[0] / 4 and counts[1] < 20  # white noise has thousands


def test_image_and_label_stay_aligned_after_a_change_of_place():
    label = labels()
    place = BatchRandSpatiald("label", mode="nearest", rotate_prob=1.0, rotate_range=0.5, scale_prob=1.0)
    torch.manual_seed(0)
    data = {"image": torch.zeros(2, 1, 20, 18, 16), "label": label}
    result = Compose([place, synthesis(regions=(1, 1), std_range=(0, 0))])(data)
    assert not torch.equal(result["label"], label)
    for image, own in zip(result["image"], result["label"], strict=True):
        values = [image[own == value].unique() for value in range(3)]
        assert [len(value) for value in values] == [1, 1, 1]


# -------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("size", [(20, 18, 16), (20, 18), (9, 7, 1)])
def test_seeds_decide_and_the_labels_stay(size):
    label = (torch.rand(3, 1, *size) > 0.5).float()
    results = [make(synthesis(num_classes=2), label, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(results[0]["image"], results[1]["image"])
    assert not torch.equal(results[0]["image"], results[2]["image"])
    assert results[0]["image"].shape == (3, 1, *size) and results[0]["label"] is label


def test_a_batch_is_made_as_its_samples_are_one_after_the_other():
    label = labels(3)
    together = make(synthesis(), label)["image"]
    torch.manual_seed(0)
    one_by_one = [synthesis()({"image": torch.zeros(1, 1, 20, 18, 16), "label": own[None]})["image"] for own in label]
    assert torch.equal(together, torch.cat(one_by_one))


def test_normalised_channels_have_mean_0_and_deviation_1():
    torch.manual_seed(0)
    image = torch.rand(2, 2, 8, 9, 7) * 5 + 3
    image[1, 1] = 4.0
    result = BatchNormalizeIntensityd("image")({"image": image})["image"]
    expected = (image - image.mean((2, 3, 4), keepdim=True)) / image.std((2, 3, 4), correction=0, keepdim=True)
    torch.testing.assert_close(result[0], expected[0])
    assert torch.equal(result[1, 1], torch.zeros(8, 9, 7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2, the background and a structure, got 1"),
        ({"regions": (0, 4)}, r"regions must be two numbers from 1, the lower one first, got \(0, 4\)"),
        ({"region_size": (0.5, 4)}, r"region_size must be two numbers from 1, the lower one first, got \(0.5, 4\)"),
        ({"std_range": (0.2, 0.1)}, r"std_range must be two numbers from 0, the lower one first, got \(0.2, 0.1\)"),
        ({"alike_prob": 1.5}, "alike_prob must lie in 0–1, got 1.5"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(TomokitError, match=message):
        synthesis(**options)


def test_a_label_map_of_another_shape_is_refused():
    with pytest.raises(TomokitError, match=r"got \(2, 1, 20, 18, 16\) in 'label' and \(2, 1, 9, 9, 9\) in 'image'"):
        synthesis()({"image": torch.zeros(2, 1, 9, 9, 9), "label": labels()})


# ------------------------------------------------------------------------------------------- fixed draws


def test_fixed_draws_follow_seed_and_case_and_leave_the_generator():
    case = {"case": "a", "image": MetaTensor(torch.rand(1, 8, 9, 7), affine=torch.diag(torch.tensor([2.0, 1, 1, 1])))}
    change, seen = BatchRandBiasFieldd("image", prob=1.0), []
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = (FixedDraws(change, seed=1)(case)["image"] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    other = FixedDraws(change, seed=1)(case | {"case": "b"})["image"]
    reseeded = FixedDraws(change, seed=2)(case)["image"]
    FixedDraws(lambda batch: seen.append({type(value) for value in batch.values()}) or batch)(case)
    assert seen == [{torch.Tensor}]  # as in training, where batches are plain
    assert torch.equal(first, again) and first.shape == (1, 8, 9, 7) and torch.equal(first.affine, case["image"].affine)
    assert not any(torch.equal(first, changed) for changed in (other, reseeded, case["image"]))


# ---------------------------------------------------------------------------------------------- the layer


def test_cases_without_images_name_their_label_maps(tmp_path):
    phantoms.make_segmentation_set(tmp_path / "set", cases=6, test_cases=2, size=16, progress=False)
    cases = select_cases(tmp_path / "set", "splits.json", 0, without_images=True)
    assert all(entry["image"] == entry["label"] for part in ("training", "validation") for entry in cases[part])
    assert not has_image(cases["training"][0]) and has_image(cases["test"][0])
    several = {"image": ["a", "b"], "label": "c"}
    assert has_image(several) and not has_image(several | {"image": ["c", "c"]})


def test_a_case_without_a_label_map_can_give_no_image(tmp_path):
    phantoms.make_classification_set(tmp_path / "set", cases=12, test_cases=2, size=16, progress=False)
    with pytest.raises(TomokitError, match=r"case_\d+ of .* has no label map to make an image from, its label is [01]"):
        select_cases(tmp_path / "set", "splits.json", 0, without_images=True)


def test_a_segmentation_is_trained_where_the_images_are_absent(tmp_path):
    folder = tmp_path / "set"
    phantoms.make_segmentation_set(folder, cases=8, test_cases=2, size=32, progress=False)
    test = {entry["image"] for entry in read_entries(folder, ["test"])}
    removed = [entry["image"] for entry in read_entries(folder) if entry["image"] not in test]
    for path in removed:
        Path(path).unlink()
    assert len(removed) == 6
    options = {"dataset_dir": str(folder), "patch_size": [16, 16, 16], "network_def": SMALL_UNET}
    run = train("segmentation", tmp_path / "run", "modes/synthetic", **options)
    before = weights(run)
    follow("segmentation", run, "evaluate")
    measures = json.loads((run / "metrics.json").read_text())
    assert 0 <= measures["summary"]["dice"]["mean"] <= 1 and "rivals" not in measures
    assert json.loads((run / "range.json").read_text())["intensity"] == [None]  # that of label maps would mislead
    again = train("segmentation", tmp_path / "again", "modes/synthetic", **options)
    assert all(torch.equal(before[key], value) for key, value in weights(again).items())
