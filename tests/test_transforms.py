import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ClassesToIndicesd, RandCropByLabelClassesd
from scipy import ndimage

from tomokit.errors import TomokitError
from tomokit.transforms import DepthMapd, OneHotClassd, RandPatchByLabelClassesd, class_ratios


@pytest.mark.parametrize("value", [2, torch.tensor(2), 2.0])
def test_a_class_becomes_a_one_hot_vector(value):
    result = OneHotClassd("label", 4)({"label": value, "case": "a"})
    assert result["label"].tolist() == [0, 0, 1, 0] and result["case"] == "a"


@pytest.mark.parametrize(
    ("shape", "size", "smaller"), [((9, 12, 7), (4, 5, 7), False), ((11, 8), (3, -1), False), ((3, 12), (5, 5), True)]
)
def test_patches_are_those_of_monais_crop_as_plain_tensors_of_their_own(shape, size, smaller):
    torch.manual_seed(0)
    case = {"image": torch.rand(2, *shape), "label": torch.randint(0, 3, (1, *shape)), "case": "a"}
    case = ClassesToIndicesd("label", num_classes=3)(case)
    names = {"keys": ["image", "label"], "label_key": "label", "indices_key": "label_cls_indices", "num_classes": 3}
    settings = names | {"spatial_size": size, "num_samples": 3, "ratios": [1, 2, 2], "allow_smaller": smaller}
    ours, theirs = (kind(**settings) for kind in (RandPatchByLabelClassesd, RandCropByLabelClassesd))
    before = case["image"].clone()
    for seed in range(8):
        pairs = zip(*(crop.set_random_state(seed)(case) for crop in (ours, theirs)), strict=True)
        for patch, expected in pairs:
            assert patch.keys() == expected.keys() and patch["case"] == "a"
            for key in ("image", "label"):  # MONAI's are MetaTensors
                assert type(patch[key]) is torch.Tensor and torch.equal(patch[key], expected[key].as_tensor())
            patch["image"].zero_()
    assert torch.equal(case["image"], before)


def test_a_case_without_a_class_to_centre_on_is_named():
    case = {"image": torch.zeros(1, 4, 4), "label": torch.zeros(1, 4, 4), "case": "case_9"}
    case = ClassesToIndicesd("label", num_classes=2)(case)
    names = {"keys": ["image", "label"], "label_key": "label", "indices_key": "label_cls_indices", "num_classes": 2}
    with pytest.raises(TomokitError, match="case_9 has no voxel of a class"):
        RandPatchByLabelClassesd(**names, spatial_size=(2, 2), ratios=[0, 1])(case)


def test_the_foregrounds_share_is_divided_among_the_structures():
    assert class_ratios({"0": "background", "1": "liver", "2": "tumour"}, 0.5) == [0.5, 0.25, 0.25]
    assert class_ratios({"0": "background", "1": "liver"}, 1) == [0, 1]


def test_a_share_out_of_range_is_named():
    with pytest.raises(TomokitError, match=r"0–1, got 1\.5"):
        class_ratios({"0": "background", "1": "liver"}, 1.5)


# Depth


def test_the_depth_of_a_box_is_the_distance_from_its_outside():
    mask = torch.zeros(1, 9, 9, 12)
    mask[0, 2:7, 1:8, 3:9] = 255  # 5 × 7 × 6 voxels
    found = DepthMapd("image", above=127)({"image": mask, "case": "a"})["image"]
    assert found.dtype == torch.float32 and found.shape == mask.shape
    assert torch.equal(found > 0, mask > 127)
    assert found[0, 2, 4, 5] == 1 and found[0, 4, 4, 5] == 3 and found[0, 4, 4, 3] == 1 and found[0, 3, 4, 5] == 2


def test_depth_is_in_mm_and_of_each_channel():
    mask = torch.zeros(2, 7, 7, 7)
    mask[0, 1:6, 1:6, 1:6] = 1
    image = MetaTensor(mask, affine=torch.diag(torch.tensor([2.0, 1.0, 0.5, 1.0])))
    found = DepthMapd("image")({"image": image})["image"]
    assert isinstance(found, MetaTensor) and torch.equal(found.affine, image.affine)
    assert found[0, 3, 3, 3] == 1.5 and found[0, 3, 3, 1] == 0.5  # three voxels of 0.5 mm along the last axis
    assert not found[1].any()


@pytest.mark.parametrize("shape", [(9, 11, 7), (8, 13)])
def test_depth_is_measured_to_the_nearest_voxel_outside_wherever_the_mask_lies(shape):
    generator = np.random.default_rng(0)
    for low in range(-2, 6):  # boxes with holes, cut by the edge of the image or within it
        mask = np.zeros((1, *shape), bool)
        mask[(0, *(slice(max(low, 0), low + 6) for _ in shape))] = True
        mask &= generator.random(mask.shape) < 0.9
        found = DepthMapd("image")({"image": torch.from_numpy(mask)})["image"]
        assert np.array_equal(found[0].numpy(), ndimage.distance_transform_edt(mask[0]).astype(np.float32))


def test_an_empty_mask_has_no_depth():
    assert not DepthMapd("image")({"image": torch.zeros(1, 3, 4, 5)})["image"].any()


def test_what_has_no_outside_has_no_depth():
    assert torch.equal(DepthMapd("image")({"image": torch.ones(1, 3, 4)})["image"], torch.ones(1, 3, 4))
