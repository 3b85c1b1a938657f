"""The measures as a network's input: those of the files, kept by a cache, and the regression of them."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureTyped, LoadImaged, Orientationd, RandGaussianNoised
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch import nn

from tomokit.caching import cached_dataset, hash_transforms
from tomokit.errors import TomokitError
from tomokit.measure import measure_shape
from tomokit.networks import MeasuresAdded, fit_measures
from tomokit.rivals import feature_table, make_classifier
from tomokit.transforms import MeasureFeaturesd

OBLIQUE = np.array([[0, -1.2, 0.1, 20], [0.9, 0, 0.2, 7], [-0.1, 0.1, -2.0, 30], [0, 0, 0, 1]])


@pytest.fixture
def entries(tmp_path):
    """Return 5 cases with an image of 0 and 1 of drawn size, on a grid whose axes are turned."""
    rng, made = np.random.default_rng(0), []
    for number in range(5):
        sizes, volume = rng.integers(3, 9, 3), np.zeros((12, 13, 10), np.float32)
        volume[1 : 1 + sizes[0], 2 : 2 + sizes[1], 1 : 1 + sizes[2]] = 1
        volume[4, 5, :] = 1
        path = str(tmp_path / f"case_{number}.nii")
        nib.save(nib.Nifti1Image(volume, OBLIQUE), path)
        made.append({"case": f"case_{number}", "image": path, "mask": path, "label": number % 2})
    return made


def load(keys, *steps):
    reading = LoadImaged(keys, reader="NibabelReader", ensure_channel_first=True)
    return Compose([reading, Orientationd(keys, axcodes="RAS", labels=None), *steps])


def without_masks(entries):
    return [{key: entry[key] for key in entry if key != "mask"} for entry in entries]


def test_the_transform_and_the_table_measure_alike(entries):
    for given, keys, settings in (
        (without_masks(entries), ["image"], {"mask_above": 0.5}),
        (without_masks(entries), ["image"], {}),
        (entries, ["image", "mask"], {"mask_key": "mask"}),
    ):
        names, table = feature_table(given, settings.get("mask_above"))
        measure = MeasureFeaturesd("image", **settings)
        assert measure.names == names
        items = [load(keys, measure)(entry) for entry in given]
        for item, row in zip(items, table, strict=True):
            assert type(item["features"]) is torch.Tensor and item["features"].dtype == torch.float32
            np.testing.assert_allclose(item["features"].numpy(), row, rtol=1e-4, atol=1e-4)
            assert item["image"].shape[0] == 1 and item["case"].startswith("case_")


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_cache_keeps_the_features(entries, tmp_path, cache):
    given = without_masks(entries)
    transform = load(["image"], MeasureFeaturesd("image", mask_above=0.5), RandGaussianNoised("image", prob=1.0))
    plain = [transform(entry)["features"] for entry in given]
    for _ in range(2):
        dataset = cached_dataset(given, transform, cache, tmp_path / "cache")
        for number, expected in enumerate(plain):
            assert torch.equal(dataset[number]["features"], expected)


def test_a_cache_tells_other_settings_apart():
    made = [
        MeasureFeaturesd("image"),
        MeasureFeaturesd("image", mask_above=0),
        MeasureFeaturesd("image", mask_above=1),
        MeasureFeaturesd("image", mask_key="mask"),
    ]
    assert len({hash_transforms(Compose([transform])) for transform in made}) == len(made)
    assert hash_transforms(Compose([made[0]])) == hash_transforms(Compose([MeasureFeaturesd("image")]))


def test_a_flat_image_is_one_slice():
    flat = torch.zeros(1, 20, 30)
    flat[:, 4:14, 5:25] = 1
    found = MeasureFeaturesd("image", mask_above=0.5)({"image": MetaTensor(flat, affine=torch.eye(3))})["features"]
    expected = measure_shape(flat[0, :, :, None].numpy() > 0.5, np.eye(4))
    assert found.tolist() == pytest.approx([expected[name] for name in list(expected)[:-3]], rel=1e-5, abs=1e-6)


# Errors


def test_one_key_is_measured():
    with pytest.raises(TomokitError, match=r"got the keys \['image', 'label'\]"):
        MeasureFeaturesd(["image", "label"])


def test_an_image_without_a_grid_is_named(entries):
    transform = MeasureFeaturesd("image", mask_above=0.5)
    with pytest.raises(TomokitError, match=r"case_9 has no grid to measure on; put MeasureFeaturesd before"):
        transform({"image": torch.zeros(1, 4, 4, 4), "case": "case_9"})
    plain = load(["image"], EnsureTyped("image", track_meta=False))(entries[0])
    with pytest.raises(TomokitError, match="case_0 has no grid"):
        transform(plain)


def test_what_can_not_be_measured_is_named():
    image = MetaTensor(torch.full((1, 4, 4, 4), torch.nan), affine=torch.eye(4))
    with pytest.raises(TomokitError, match="case_9: the image has 64 intensities that are not finite"):
        MeasureFeaturesd("image")({"image": image, "case": "case_9"})


def test_a_case_without_the_mask_that_others_have_is_named(entries):
    item = load(["image"])(without_masks(entries)[0])
    with pytest.raises(TomokitError, match=r"case_0 has no `mask` to measure in \(key `mask_key`\)"):
        MeasureFeaturesd("image", mask_key="mask")(item)


# The network that takes them


def test_classes_get_the_logits_of_the_rivals_regression(entries):
    given = without_masks(entries)
    _, table = feature_table(given, 0.5)
    classes = np.array([entry["label"] for entry in given])
    for targets in (classes, np.arange(len(given)) % 3):  # of two classes and of three
        labelled = [{**entry, "label": int(label)} for entry, label in zip(given, targets, strict=True)]
        network = MeasuresAdded(nn.Flatten(), table.shape[1], int(targets.max()) + 1)
        fit_measures(network, labelled, 0.5)
        expected = make_classifier("logistic").fit(table, targets).predict_proba(table)
        found = measured_logits(network, table).softmax(1)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)
    varies = np.ptp(table, axis=0) > 1e-6
    assert varies.any() and not varies.all()  # each is of one piece
    loaded = MeasuresAdded(nn.Flatten(), table.shape[1], 3)
    loaded.load_state_dict(network.state_dict())
    torch.testing.assert_close(measured_logits(loaded, table), measured_logits(network, table))


def measured_logits(network, table):
    nothing = torch.zeros(len(table), len(network.bias))
    return 2 * network.eval()(nothing, torch.from_numpy(table).float())


def test_labels_get_a_regression_each_and_a_value_a_ridge(entries):
    given = without_masks(entries)
    _, table = feature_table(given, 0.5)
    flags = np.array([[place % 2, place < 3] for place in range(len(given))], int)
    labelled = [{**entry, "label": own.tolist()} for entry, own in zip(given, flags, strict=True)]
    network = MeasuresAdded(nn.Flatten(), table.shape[1], 2)
    fit_measures(network, labelled, 0.5, "labels")
    expected = [make_classifier("logistic").fit(table, own).predict_proba(table)[:, 1] for own in flags.T]
    np.testing.assert_allclose(measured_logits(network, table).sigmoid().numpy(), np.transpose(expected), atol=1e-3)
    ages = 50.0 + 3 * np.arange(len(given))
    network = MeasuresAdded(nn.Flatten(), table.shape[1], 1)
    fit_measures(network, [{**entry, "label": age} for entry, age in zip(given, ages, strict=True)], 0.5, "value")
    standardised = StandardScaler().fit_transform(ages[:, None])[:, 0]
    expected = Ridge().fit(StandardScaler().fit_transform(table), standardised)
    found = measured_logits(network, table)[:, 0].numpy()
    np.testing.assert_allclose(found, expected.predict(StandardScaler().fit_transform(table)), atol=1e-3)


def test_a_network_with_measures_learns_alone_and_answers_with_both():
    network, logits = MeasuresAdded(nn.Flatten(), 3, 2), torch.randn(4, 2)
    image = logits.view(4, 1, 2, 1, 1)
    network.weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    network.bias.copy_(torch.tensor([7.0, 0.0]))
    network.mean.fill_(1)
    network.deviation.fill_(2)
    measures = torch.tensor([[1.0, 3.0, 5.0]]).expand(4, 3)
    assert torch.equal(network.train()(image, measures), logits)
    assert not list(network.parameters())
    both = (logits + torch.tensor([7.0, 3.0])) / 2
    torch.testing.assert_close(network.eval()(image, measures), both)
    torch.testing.assert_close(torch.jit.script(network)(image, measures), both)


def test_what_no_regression_can_be_fitted_to_is_named(entries):
    given = without_masks(entries)
    count = feature_table(given, 0.5)[1].shape[1]
    with pytest.raises(TomokitError, match="fitted to the class 2: all training cases have it, or none has; leave"):
        fit_measures(MeasuresAdded(nn.Flatten(), count, 3), given, 0.5)
    labelled = [{**entry, "label": [place % 2, 1]} for place, entry in enumerate(given)]
    with pytest.raises(TomokitError, match="fitted to the label 1: all training cases have it"):
        fit_measures(MeasuresAdded(nn.Flatten(), count, 2), labelled, 0.5, "labels")
    with pytest.raises(TomokitError, match="task"):
        fit_measures(MeasuresAdded(nn.Flatten(), count, 2), given, 0.5, "survival")


def test_other_measures_than_the_networks_are_refused(entries):
    network = MeasuresAdded(nn.Flatten(), 3, 2)
    with pytest.raises(TomokitError, match=r"a case must have 3 measures, got shape \(4, 5\)"):
        network(torch.zeros(4, 2), torch.zeros(4, 5))
    with pytest.raises(TomokitError, match="measures, the network takes 3; set `mask_key: mask`"):
        fit_measures(network, entries)
