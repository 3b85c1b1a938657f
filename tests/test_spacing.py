"""Resampling along each axis gives MONAI's grid and values, and comes back."""

import nibabel
import numpy as np
import pytest
import torch
from grids import oblique_affine
from monai.data import MetaTensor
from monai.transforms import Spacingd

from tomokit import spacing
from tomokit.errors import TomokitError
from tomokit.spacing import SeparableSpacingd


def volume(shape, affine, channels=1):
    values = np.random.default_rng(0).normal(size=(channels, *shape)).astype(np.float32)
    return MetaTensor(torch.from_numpy(values), affine=torch.as_tensor(affine))


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("pixdim", [(2.13, 2.13, 2.13), (0.7, 3.0, 1.4), (1.5, 1.5, 3.0), 1.13])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_grid_and_values_are_those_of_monai(codes, pixdim, mode):
    image = volume((30, 26, 22), oblique_affine(codes, (30, 26, 22)), channels=2)
    monai = Spacingd("image", pixdim, mode=mode)({"image": image})["image"]
    ours = SeparableSpacingd("image", pixdim, mode)({"image": image})["image"]
    assert ours.shape == monai.shape and ours.dtype == torch.float32
    assert torch.allclose(ours.affine, monai.affine, atol=1e-9)
    different = (ours.as_tensor() - monai.as_tensor()).abs() > 1e-4
    assert not different.any()


def test_a_volume_of_many_blocks_has_the_same_values(monkeypatch):
    image = volume((30, 26, 22), oblique_affine("LPS", (30, 26, 22)), channels=2)
    whole = SeparableSpacingd("image", (0.7, 3.0, 1.4))({"image": image})["image"]
    monkeypatch.setattr(spacing, "BLOCK_VOXELS", 5000)
    assert torch.equal(SeparableSpacingd("image", (0.7, 3.0, 1.4))({"image": image})["image"], whole)


def test_between_two_voxels_the_later_one_is_the_nearest():
    image = volume((6, 1, 1), np.diag([2.0, 1.0, 1.0, 1.0]))
    ours = SeparableSpacingd("image", (1.0, 1.0, 1.0), "nearest")({"image": image})["image"]
    assert torch.equal(ours[0, :5, 0, 0], image[0, [0, 1, 1, 2, 2], 0, 0])


def test_an_image_has_two_axes():
    image = volume((30, 26), np.diag([0.5, 0.5, 1.0]))
    monai = Spacingd("image", (0.8, 0.3), mode="bilinear")({"image": image})["image"]
    ours = SeparableSpacingd("image", (0.8, 0.3))({"image": image})["image"]
    torch.testing.assert_close(ours.as_tensor(), monai.as_tensor(), atol=1e-4, rtol=1e-4)


def test_one_slice_stays_one_slice():
    image = volume((30, 26, 1), np.diag([1.0, 1.0, 5.0, 1.0]))
    monai = Spacingd("image", (2.0, 2.0, 5.0), mode="bilinear")({"image": image})["image"]
    ours = SeparableSpacingd("image", (2.0, 2.0, 5.0))({"image": image})["image"]
    torch.testing.assert_close(ours.as_tensor(), monai.as_tensor(), atol=1e-4, rtol=1e-4)


def test_the_inverse_is_monais():
    image = volume((30, 26, 22), oblique_affine("LPS", (30, 26, 22)))
    found = []
    for transform in (Spacingd("image", (2.0, 2.0, 2.0)), SeparableSpacingd("image", (2.0, 2.0, 2.0))):
        back = transform.inverse(transform({"image": image}))["image"]
        assert back.shape == image.shape and torch.allclose(back.affine, image.affine)
        assert not back.applied_operations
        found.append(back.as_tensor())
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_a_volume_of_that_spacing_stays_as_it_is():
    image = volume((9, 8, 7), np.diag([2.0, 2.0, 2.0, 1.0]))
    ours = SeparableSpacingd(["image", "label"], (2.0, 2.0, 2.0), allow_missing_keys=True)({"image": image})
    assert torch.equal(ours["image"].as_tensor(), image.as_tensor())


def test_the_world_stays_where_it_is(write_volume):
    # a linear ramp of the world's own x, which linear interpolation keeps
    affine = oblique_affine("LPS", (30, 26, 22))
    points = nibabel.affines.apply_affine(affine, np.stack(np.indices((30, 26, 22)), -1))
    image = MetaTensor(torch.from_numpy(points[None, ..., 0].astype(np.float32)), affine=torch.as_tensor(affine))
    ours = SeparableSpacingd("image", (1.1, 0.9, 2.0))({"image": image})["image"]
    inside = nibabel.affines.apply_affine(ours.affine.numpy(), np.stack(np.indices(ours.shape[1:]), -1))[..., 0]
    assert np.abs(ours.numpy()[0] - inside)[1:-2, 1:-2, 1:-2].max() < 1e-3


def test_a_tilted_gantry_is_refused_with_the_files_name():
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[1, 2] = 0.3
    image = volume((30, 26, 22), affine)
    image.meta["filename_or_obj"] = "scan.nii.gz"
    with pytest.raises(TomokitError, match=r"scan.nii.gz: its axes are not at right angles.*resample it upright"):
        SeparableSpacingd("image", (1.0, 1.0, 2.0))({"image": image})


def test_rounded_directions_are_no_tilt():
    affine = oblique_affine("RAS", (30, 26, 22)).round(4)
    image = volume((30, 26, 22), affine)
    monai = Spacingd("image", (1.3, 0.9, 2.0), mode="bilinear")({"image": image})["image"]
    ours = SeparableSpacingd("image", (1.3, 0.9, 2.0))({"image": image})["image"]
    torch.testing.assert_close(ours.as_tensor(), monai.as_tensor(), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("options", "told"),
    [({"pixdim": (1.0, 0.0, 2.0)}, r"positive numbers in mm, got \(1.0, 0.0, 2.0\)"), ({"mode": "cubic"}, "'cubic'")],
)
def test_what_cannot_be_resampled_to_is_refused(options, told):
    with pytest.raises(TomokitError, match=told):
        SeparableSpacingd(**({"keys": "image", "pixdim": 1.0} | options))
