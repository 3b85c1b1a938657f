"""The measures as a network's input: those of the files, kept by a cache."""

import numpy as np
import pytest
import torch
from measured_cases import make_cases, without_masks
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureTyped, LoadImaged, Orientationd, RandGaussianNoised

from tomokit.caching import cached_dataset, hash_transforms
from tomokit.errors import TomokitError
from tomokit.measure import measure_shape
from tomokit.rivals import feature_table
from tomokit.transforms import MeasureFeaturesd


@pytest.fixture
def entries(tmp_path):
    return make_cases(tmp_path)


def load(keys, *steps):
    reading = LoadImaged(keys, reader="NibabelReader", ensure_channel_first=True)
    return Compose([reading, Orientationd(keys, axcodes="RAS", labels=None), *steps])


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
