"""What spoils a scan: known amounts of noise, blur, thickness and motion, in their units."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage, stats

from tomokit.augmentation import BatchRandGaussianNoised
from tomokit.degradation import (
    BatchRandBlurd,
    BatchRandEmptyBackgroundd,
    BatchRandGhostsd,
    BatchRandLowDosed,
    BatchRandMissingSlicesd,
    BatchRandMotiond,
    BatchRandRicianNoised,
    BatchRandThickSlicesd,
    DegradeCased,
    NoteSpacingd,
    case_seed,
    list_degraded,
)
from tomokit.degradation.acquisition import move
from tomokit.degradation.resolution import FWHM, thick_matrix
from tomokit.errors import TomokitError

KEY = {"keys": "image"}
EVERY = [
    BatchRandRicianNoised(**KEY),
    BatchRandLowDosed(**KEY),
    BatchRandBlurd(**KEY),
    BatchRandEmptyBackgroundd(**KEY, prob=1.0),
    BatchRandThickSlicesd(**KEY),
    BatchRandMissingSlicesd(**KEY),
    BatchRandMotiond(**KEY),
    BatchRandGhostsd(**KEY),
]


def make_batch(shape=(2, 1, 16, 20, 12), spacing=(1.0, 1.0, 1.0), value=None):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)) if value is None else torch.full(shape, value)
    return {"image": image, "spacing": torch.tensor([spacing] * shape[0])[:, : len(shape) - 2]}


@pytest.mark.parametrize("change", EVERY, ids=[type(change).__name__ for change in EVERY])
@pytest.mark.parametrize("shape", [(3, 2, 16, 20, 12), (3, 1, 17, 15)])
def test_each_keeps_shape_and_input_and_follows_the_seed(change, shape):
    if len(shape) == 4 and isinstance(change, BatchRandThickSlicesd | BatchRandMissingSlicesd):
        change = type(change)(**KEY, **({"axes": [1]} if isinstance(change, BatchRandThickSlicesd) else {"axis": 1}))
    batch = make_batch(shape)
    before = batch["image"].clone()
    torch.manual_seed(1)
    one = change(batch)["image"]
    torch.manual_seed(1)
    assert torch.equal(one, change(batch)["image"])
    assert one.shape == before.shape and one.dtype == before.dtype and one.isfinite().all()
    assert torch.equal(batch["image"], before) and not torch.equal(one, before)


@pytest.mark.parametrize("change", EVERY, ids=[type(change).__name__ for change in EVERY])
def test_a_sample_that_is_not_drawn_keeps_every_bit(change):
    never = type(change)(**KEY, prob=0.0)
    batch = make_batch()
    assert torch.equal(never(batch)["image"], batch["image"])


def test_rician_noise_has_the_moments_of_a_rice_distribution():
    change = BatchRandRicianNoised(**KEY, sigma_range=[0.1, 0.1])
    for value in (0.0, 0.2, 0.8):
        found = change(make_batch((1, 1, 40, 40, 40), value=value))["image"]
        mean, variance = stats.rice.stats(value / 0.1, scale=0.1)
        assert found.mean().item() == pytest.approx(mean, abs=0.002)
        assert found.var().item() == pytest.approx(variance, rel=0.03)
        assert found.min() >= 0


def test_the_variance_goes_with_one_over_the_dose():
    for dose in (0.5, 0.1):
        change = BatchRandLowDosed(**KEY, dose_range=[dose, dose], sigma=0.02)
        found = change(make_batch((1, 1, 32, 32, 32), value=0.5))["image"]
        assert found.var().item() + 0.02**2 == pytest.approx(0.02**2 / dose, rel=0.02)  # with the noise that is there
    whole = BatchRandLowDosed(**KEY, dose_range=[1, 1])(make_batch(value=0.5))["image"]
    assert torch.equal(whole, torch.full_like(whole, 0.5))


def test_a_point_is_blurred_to_the_width_in_mm_on_any_grid():
    for spacing in ((1.0, 1.0, 1.0), (1.0, 2.0, 0.5)):
        batch = make_batch((1, 1, 31, 31, 31), spacing, 0.0)
        batch["image"][0, 0, 15, 15, 15] = 1
        found = BatchRandBlurd(**KEY, fwhm_mm_range=[5.0, 5.0])(batch)["image"][0, 0].numpy()
        expected = ndimage.gaussian_filter(batch["image"][0, 0].numpy(), 5 / FWHM / np.array(spacing), truncate=4)
        assert np.allclose(found, expected, atol=2e-4)


def test_thick_slices_are_means_of_their_voxels():
    matrix = thick_matrix(6, 2, torch.zeros(1))
    assert torch.allclose(matrix[0], torch.tensor([1, 1, 1, 0, 0, 0]) / 3)
    assert torch.allclose(matrix[5], torch.tensor([0, 0, 0, 1, 1, 1]) / 3)
    assert torch.allclose(matrix.sum(1), torch.ones(6))
    assert torch.equal(thick_matrix(5, 5, torch.zeros(1)), torch.eye(5))
    # half a voxel belongs to each of two slices
    assert torch.allclose(thick_matrix(3, 2, torch.zeros(1))[0], torch.tensor([2, 1, 0]) / 3)


def test_slices_are_as_thick_as_told_and_along_their_axis_alone():
    batch = make_batch((1, 1, 4, 5, 12), (1.0, 1.0, 2.0))
    found = BatchRandThickSlicesd(**KEY, slice_mm_range=[8.0, 8.0])(batch)["image"][0, 0]
    middles = torch.stack([batch["image"][0, 0, ..., first : first + 4].mean(-1) for first in (0, 4, 8)], -1)
    assert torch.allclose(found[..., 0], middles[..., 0], atol=1e-6)  # beyond the first slice's middle
    assert torch.allclose(
        (found[..., 5] + found[..., 6]) / 2, middles[..., 1] * 0.875 + middles[..., [0, 2]].mean(-1) / 8
    )
    coarse = BatchRandThickSlicesd(**KEY, slice_mm_range=[100.0, 100.0], axes=[0, 1, 2])(batch)["image"]
    assert torch.allclose(coarse, batch["image"].mean().expand_as(coarse), atol=1e-6)


def test_missing_slices_are_empty_in_all_channels():
    change = BatchRandMissingSlicesd(**KEY, share_range=[0.3, 0.3])
    batch = make_batch((4, 2, 6, 6, 50))
    found = change(batch)["image"]
    empty = (found == 0).all(dim=(2, 3))
    assert torch.equal(empty[:, 0], empty[:, 1])
    assert 0.2 < empty.float().mean() < 0.4
    kept = ~empty[:, :, None, None].expand_as(found)
    assert torch.equal(found[kept], batch["image"][kept])


@pytest.mark.parametrize("shape", [(40, 2, 16, 20, 12), (40, 1, 16, 20)])
def test_an_empty_background_lies_beyond_a_plane_in_all_keys(shape):
    batch = {"image": torch.rand(shape) + 1, "label": torch.rand(shape[0], 1, *shape[2:]) + 1, "spacing": None}
    found = BatchRandEmptyBackgroundd(keys=["image", "label"], prob=0.5)(batch)
    assert batch["image"].min() >= 1  # the given batch is not changed
    empty = found["image"] == 0
    torch.testing.assert_close(empty, (found["label"] == 0).expand_as(empty))
    torch.testing.assert_close(found["image"][~empty], batch["image"][~empty])
    parts = empty[:, 0].flatten(1).float().mean(1)
    assert 10 <= (parts > 0).sum() <= 30 and parts.max() < 0.95
    drawn = empty[parts.argmax(), 0]
    for part in (drawn.nonzero(), (~drawn).nonzero()):  # both convex: a plane parts them
        middles = part[torch.randint(len(part), (500,))] + part[torch.randint(len(part), (500,))]
        middles = middles[(middles % 2 == 0).all(1)] // 2
        assert len(middles) > 20 and (drawn[tuple(middles.T)] == drawn[tuple(part[0])]).all()


def test_a_patient_who_lay_elsewhere_all_the_time_is_moved():
    batch = make_batch((1, 1, 16, 20, 12))
    shifts = torch.zeros(1, 1, 20, 3)
    shifts[..., 0], shifts[..., 2] = 2, -1
    found = move(batch["image"], shifts, axis=1)
    assert torch.allclose(found, batch["image"].roll((2, -1), (2, 4)), atol=1e-5)


def test_motion_of_nothing_is_none_and_keeps_the_brightness():
    batch = make_batch()
    assert torch.allclose(BatchRandMotiond(**KEY, shift_mm_range=[0, 0])(batch)["image"], batch["image"], atol=1e-5)
    batch["image"] = torch.from_numpy(ndimage.gaussian_filter(batch["image"].numpy(), (0, 0, 2, 2, 2)))
    moved = BatchRandMotiond(**KEY, shift_mm_range=[2, 2])(batch)["image"]
    assert moved.mean().item() == pytest.approx(batch["image"].mean().item(), rel=0.01)
    assert not torch.allclose(moved, batch["image"], atol=0.01)


def test_motion_is_told_in_mm():
    torch.manual_seed(0)
    one = BatchRandMotiond(**KEY, shift_mm_range=[2, 2])(make_batch(spacing=(1.0, 1.0, 1.0)))["image"]
    torch.manual_seed(0)
    two = BatchRandMotiond(**KEY, shift_mm_range=[6, 6])(make_batch(spacing=(3.0, 3.0, 3.0)))["image"]
    assert torch.allclose(one, two, atol=1e-5)


def test_ghosts_lie_a_part_of_the_image_away():
    batch = make_batch((1, 1, 8, 40, 8), value=0.0)
    batch["image"][..., 20, :] = 1
    found = BatchRandGhostsd(**KEY, strength_range=[0.4, 0.4], period=4)(batch)["image"][0, 0, 0, :, 0]
    assert set(found.topk(4).indices.tolist()) == {0, 10, 20, 30}  # a fourth of 40 apart
    assert found[20] == pytest.approx(0.9, abs=1e-5) and found[10] == pytest.approx(0.1, abs=1e-5)


def test_a_case_is_degraded_alike_each_time_by_its_number():
    assert case_seed("hippocampus_017") == 17 and case_seed("no number") != case_seed("none")
    change = DegradeCased("image", BatchRandGaussianNoised("image", prob=1.0, std_range=[0.05, 0.05]))
    image = MetaTensor(torch.full((1, 30, 30, 30), 0.5), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    state = torch.get_rng_state()
    one, two = (change({"image": image, "case": "a_7"}) for _ in range(2))
    assert torch.equal(one["image"], two["image"]) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one["label"], image) and torch.equal(one["image"].affine, image.affine)
    assert (one["image"] - image).std().item() == pytest.approx(0.05, rel=0.02)
    assert not torch.equal(one["image"], change({"image": image, "case": "a_8"})["image"])


def test_a_case_names_its_degradation():
    entries = list_degraded([{"case": "a_1"}, {"case": "a_2"}], {"weak": 1, "strong": 2})
    assert [(entry["degradation"], entry["case"]) for entry in entries] == [
        ("weak", "a_1"),
        ("weak", "a_2"),
        ("strong", "a_1"),
        ("strong", "a_2"),
    ]
    noise = {name: BatchRandGaussianNoised("image", prob=1.0, std_range=[s, s]) for name, s in (("a", 0.1), ("b", 0.2))}
    change = DegradeCased("image", noise)
    image = torch.zeros(1, 20, 20, 20)
    found = [change({"image": image, "case": "x", "degradation": name})["image"].std().item() for name in "ab"]
    assert found == pytest.approx([0.1, 0.2], rel=0.05)
    with pytest.raises(TomokitError, match="x is to be degraded by 'c', which is none of a, b"):
        change({"image": image, "case": "x", "degradation": "c"})
    with pytest.raises(TomokitError, match="`tests` names no degradation"):
        list_degraded(entries, {})


def test_the_spacing_is_noted_and_asked_for():
    image = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    assert NoteSpacingd("image")({"image": image})["spacing"].tolist() == [2, 3, 4]
    with pytest.raises(TomokitError, match="case_3 has no grid"):
        NoteSpacingd("image")({"image": torch.zeros(1, 4, 4, 4), "case": "case_3"})
    with pytest.raises(TomokitError, match=r"BatchRandBlurd is told in mm, and the batch has no `spacing`"):
        BatchRandBlurd("image")({"image": torch.zeros(1, 1, 4, 4, 4)})


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (BatchRandRicianNoised, {"sigma_range": [-0.1, 0.1]}, r"sigma_range must be .* got \(-0.1, 0.1\)"),
        (BatchRandLowDosed, {"dose_range": [0, 0.5]}, r"dose_range must be .* got \(0, 0.5\)"),
        (BatchRandLowDosed, {"sigma": -1}, "sigma must be at least 0, got -1"),
        (BatchRandBlurd, {"fwhm_mm_range": [3, 1]}, r"fwhm_mm_range must be .* got \(3, 1\)"),
        (BatchRandThickSlicesd, {"slice_mm_range": [0, 1]}, r"slice_mm_range must be .* got \(0, 1\)"),
        (BatchRandThickSlicesd, {"axes": [3]}, r"axes must be .* got \[3\]"),
        (BatchRandMissingSlicesd, {"share_range": [0, 2]}, r"share_range must be .* got \(0, 2\)"),
        (BatchRandMissingSlicesd, {"axis": 4}, "axis must be 0, 1 or 2, got 4"),
        (BatchRandMotiond, {"moves": 0}, "moves must be at least 1, got 0"),
        (BatchRandMotiond, {"axis": -1}, "axis must be 0, 1 or 2, got -1"),
        (BatchRandGhostsd, {"period": 1}, "period must be at least 2 lines, got 1"),
        (BatchRandGhostsd, {"strength_range": [0, 1.5]}, r"strength_range must be .* got \(0, 1.5\)"),
        (BatchRandGhostsd, {"prob": 2}, "prob must lie in 0–1, got 2"),
    ],
)
def test_an_impossible_argument_is_told(change, arguments, message):
    with pytest.raises(TomokitError, match=message):
        change("image", **arguments)
