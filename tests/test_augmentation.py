"""Batched changes against MONAI's and scipy's of single samples, and against known truth."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from monai.transforms import AdjustContrast, Affine, Compose, Flip, GaussianSmooth

from tomokit.augmentation import (
    BatchRandBiasFieldd,
    BatchRandBrightnessd,
    BatchRandContrastd,
    BatchRandFlipd,
    BatchRandGammad,
    BatchRandGaussianNoised,
    BatchRandGaussianSmoothd,
    BatchRandLowResolutiond,
    BatchRandSpatiald,
)
from tomokit.augmentation.intensity import change_gamma, coarsen, smooth, stretch
from tomokit.augmentation.spatial import rotation_matrices, sampling_grid
from tomokit.errors import TomokitError

KEYS = ["image", "label"]
MODES = ["bilinear", "nearest"]
ALL = [
    BatchRandSpatiald(KEYS, MODES, rotate_prob=1, scale_prob=1, translate_range=2, translate_prob=1, elastic_prob=1),
    BatchRandFlipd(KEYS, [0, 1]),
    BatchRandGaussianNoised("image", 1),
    BatchRandGaussianSmoothd("image", 1),
    BatchRandBrightnessd("image", 1),
    BatchRandContrastd("image", 1),
    BatchRandGammad("image", 1),
    BatchRandLowResolutiond("image", 1),
    BatchRandBiasFieldd("image", 1),
]
NAMES = [type(transform).__name__ for transform in ALL]


def smooth_batch(batch=3, size=(12, 16, 10), channels=2):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, channels, *size, generator=generator)
    image = smooth(noise, torch.full((batch,), 1.5), 5) * 5
    return {"image": image, "label": (image[:, :1] > 0.2).float() * 3}


@pytest.mark.parametrize("transform", ALL, ids=NAMES)
@pytest.mark.parametrize("size", [(12, 16, 10), (12, 16)])
def test_shapes_types_and_inputs_stay_and_the_draws_follow_the_seed(transform, size):
    batch = smooth_batch(size=size)
    before = {key: value.clone() for key, value in batch.items()}
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(transform(batch))
    for key in KEYS:
        assert torch.equal(batch[key], before[key])
        assert results[0][key].shape == batch[key].shape and results[0][key].dtype == batch[key].dtype
        assert torch.equal(results[0][key], results[1][key])
    assert not torch.equal(results[0]["image"], results[2]["image"])
    assert results[0]["image"].isfinite().all()
    assert set(results[0]["label"].unique().tolist()) <= {0.0, 3.0}


@pytest.mark.parametrize("transform", ALL[1:], ids=NAMES[1:])
def test_samples_that_are_not_drawn_keep_every_bit(transform):
    own = type(transform)
    half = own(KEYS, [0], 0.5) if own is BatchRandFlipd else own("image", 0.5)
    torch.manual_seed(3)
    batch, counts = smooth_batch(8), []
    for _ in range(20):
        result = half(batch)
        same = [torch.equal(a, b) for a, b in zip(result["image"], batch["image"], strict=True)]
        counts.append(sum(same))
    assert 0 < sum(counts) < 160 and abs(sum(counts) / 160 - 0.5) < 0.15


@pytest.mark.parametrize("transform", ALL, ids=NAMES)
def test_with_probability_0_the_batch_itself_comes_back(transform):
    own = type(transform)
    if own is BatchRandSpatiald:
        never = own(KEYS, MODES, rotate_prob=0, scale_prob=0)
    else:
        never = own(KEYS, [0], 0) if own is BatchRandFlipd else own("image", 0)
    batch = smooth_batch()
    assert never(batch)["image"] is batch["image"]


def resample(image, matrices, offsets, **changes):
    settings = {"mode": "bilinear", "padding_mode": "zeros"} | changes
    places = sampling_grid(matrices, offsets, image.shape[2:], image.shape[2:], image.device)
    return torch.nn.functional.grid_sample(image, places, align_corners=False, **settings)


def test_a_shift_by_whole_voxels_moves_voxels():
    image = smooth_batch(1)["image"]
    moved = resample(image, torch.eye(3)[None], torch.tensor([[2.0, 0.0, -1.0]]))
    torch.testing.assert_close(moved[:, :, :-2, :, 1:], image[:, :, 2:, :, :-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_quarter_turn_is_the_arrays(axis):
    image = torch.randn(1, 1, 8, 8, 8)
    angles = torch.zeros(1, 3)
    angles[0, axis] = math.pi / 2
    planes = [(3, 4), (4, 2), (2, 3)][axis]
    turned = resample(image, rotation_matrices(angles), torch.zeros(1, 3))
    torch.testing.assert_close(turned, torch.rot90(image, -1, planes), atol=1e-4, rtol=0)


def test_rotation_and_scale_are_monais_affine():
    image = smooth_batch(1, (12, 12, 12), 1)["image"]
    angles = (0.3, -0.2, 0.5)
    theirs = Affine(rotate_params=angles, scale_params=(1.2, 1.2, 1.2), padding_mode="zeros", image_only=True)(image[0])
    # MONAI turns about z first; ours about x
    single = [rotation_matrices(torch.eye(3)[axis : axis + 1] * angles[axis])[0] for axis in range(3)]
    whole = single[0] @ single[1] @ single[2] * 1.2
    ours = resample(image, whole[None], torch.zeros(1, 3))
    torch.testing.assert_close(ours[0], theirs.as_tensor(), atol=1e-3, rtol=0)


def test_a_sphere_in_mm_stays_one_under_rotation_on_anisotropic_voxels():
    spacing = (1.0, 1.0, 3.0)
    axes = [torch.arange(n) - (n - 1) / 2 for n in (32, 32, 12)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    distance = (x**2 + y**2 + (3 * z) ** 2).sqrt()
    ball = torch.sigmoid(10 - distance)[None, None]
    turn = BatchRandSpatiald("image", rotate_prob=1, rotate_range=1.0, scale_prob=0, spacing=spacing)
    sheared = BatchRandSpatiald("image", rotate_prob=1, rotate_range=1.0, scale_prob=0)
    errors = []
    for transform in (turn, sheared):
        torch.manual_seed(0)
        errors.append((transform({"image": ball})["image"] - ball).abs().max().item())
    assert errors[0] < 0.2 < errors[1]


def test_image_and_label_move_together():
    torch.manual_seed(0)
    batch = smooth_batch(6, (24, 24, 24), 1)
    moved = ALL[0](batch)
    thresholded = moved["image"] > 0.2
    agree = (thresholded == (moved["label"] > 0)).float().mean()
    assert agree > 0.93 and (moved["label"] != batch["label"]).float().mean() > 0.1


def test_a_larger_scale_enlarges():
    ball = torch.zeros(1, 1, 20, 20, 20)
    ball[..., 8:12, 8:12, 8:12] = 1
    twice = BatchRandSpatiald("image", "nearest", rotate_prob=0, scale_prob=1, scale_range=(2, 2))({"image": ball})
    assert twice["image"].sum() == 8 * ball.sum()


def test_labels_up_to_16_bits_stay_exact():
    label = torch.randint(0, 65535, (2, 1, 9, 9, 9), dtype=torch.int32)
    moved = BatchRandSpatiald("label", "nearest", rotate_prob=1, scale_prob=1)({"label": label})["label"]
    assert moved.dtype == torch.int32 and set(moved.unique().tolist()) <= set(label.unique().tolist())


def test_a_smaller_result_is_the_centre_of_the_source():
    image = smooth_batch(2)["image"]
    centre = BatchRandSpatiald("image", rotate_prob=0, scale_prob=0, spatial_size=(8, 8, 6))({"image": image})["image"]
    torch.testing.assert_close(centre, image[:, :, 2:10, 4:12, 2:8], atol=1e-4, rtol=0)


def test_an_elastic_deformation_has_the_size_that_was_asked_for():
    torch.manual_seed(0)
    ramp = torch.arange(64.0).reshape(1, 1, 64, 1, 1).expand(8, 1, 64, 32, 32).contiguous()
    elastic = BatchRandSpatiald("image", rotate_prob=0, scale_prob=0, elastic_prob=1, elastic_magnitude=(2, 2))
    moved = elastic({"image": ramp})["image"] - ramp
    inner = moved[:, :, 10:-10]
    assert 0.8 < inner.std() < 2.0 and inner.mean().abs() < 0.5
    assert (inner[:, :, 1:] - inner[:, :, :-1]).abs().max() < 1  # no fold


def test_flips_are_monais():
    batch = smooth_batch(2)
    flipped = BatchRandFlipd(KEYS, [0, 2], prob=1)(batch)
    for key in KEYS:
        expected = torch.stack([Flip((0, 2))(sample) for sample in batch[key]])
        assert torch.equal(flipped[key], expected.as_subclass(torch.Tensor))
    assert BatchRandFlipd(KEYS, [], prob=1)(batch)["image"] is batch["image"]
    assert torch.equal(BatchRandFlipd(KEYS, 1, prob=1)(batch)["label"], batch["label"].flip(3))


def test_smoothing_is_scipys_for_each_sample():
    image = torch.randn(2, 2, 14, 12, 16)
    ours = smooth(image, torch.tensor([0.6, 1.1]), 5)
    for sample, sigma in ((0, 0.6), (1, 1.1)):
        theirs = scipy.ndimage.gaussian_filter(image[sample, 1].numpy(), sigma, mode="nearest", radius=5)
        np.testing.assert_allclose(ours[sample, 1], theirs, atol=1e-5)


def test_smoothing_is_monais_within():
    image = smooth_batch(1, (24, 24, 24), 1)["image"]
    theirs = GaussianSmooth(1.0, approx="sampled")(image[0])
    ours = smooth(image, torch.tensor([1.0]), 4)[0]
    torch.testing.assert_close(ours[:, 5:-5, 5:-5, 5:-5], theirs[:, 5:-5, 5:-5, 5:-5], atol=2e-3, rtol=0)


def test_gamma_is_monais():
    image = smooth_batch(2, channels=1)["image"]
    ours = change_gamma(image, torch.tensor([0.7, 1.6]).reshape(2, 1, 1, 1, 1))
    for sample, gamma in ((0, 0.7), (1, 1.6)):
        theirs = AdjustContrast(gamma, retain_stats=True)(image[sample])
        torch.testing.assert_close(ours[sample], theirs, atol=1e-4, rtol=1e-3)


def test_contrast_keeps_mean_and_range_and_stretches():
    image = smooth_batch(1, channels=2)["image"]
    more = stretch(image, torch.tensor([[1.2, 0.5]]).reshape(1, 2, 1, 1, 1))
    assert more.max() <= image.max() and more[:, 0].std() > image[:, 0].std()
    torch.testing.assert_close(more[:, 1].std(), image[:, 1].std() * 0.5)
    torch.testing.assert_close(more[:, 1].mean(), image[:, 1].mean())


def test_a_coarser_grid_is_torchs_interpolation_and_zoom_1_changes_nothing():
    image = smooth_batch(1)["image"]
    torch.testing.assert_close(coarsen(image, 1.0), image)
    assert (coarsen(image, 0.5) - image).abs().max() > 0.01


def test_noise_has_the_deviation_that_was_asked_for_and_brightness_its_factor():
    flat = {"image": torch.ones(1, 1, 40, 40, 40)}
    noisy = BatchRandGaussianNoised("image", 1, (0.3, 0.3))(flat)["image"]
    assert noisy.std().item() == pytest.approx(0.3, rel=0.02)
    torch.testing.assert_close(BatchRandBrightnessd("image", 1, (1.1, 1.1))(flat)["image"], flat["image"] * 1.1)


def test_a_bias_field_is_smooth_positive_and_the_same_for_all_channels():
    torch.manual_seed(0)
    flat = {"image": torch.ones(2, 2, 24, 24, 24)}
    field = BatchRandBiasFieldd("image", 1, (0.3, 0.3))(flat)["image"]
    assert (field > 0).all() and torch.equal(field[:, 0], field[:, 1])
    assert (field[:, :, 1:] - field[:, :, :-1]).abs().max() < 0.5 * (field.max() - field.min())


def test_a_list_of_them_is_one_monai_compose_and_a_batch_is_its_samples():
    batch = smooth_batch(1)
    chain = Compose(ALL)
    torch.manual_seed(0)
    first = chain(batch)
    torch.manual_seed(0)
    assert torch.equal(chain({key: value.clone() for key, value in batch.items()})["image"], first["image"])
    image = smooth_batch(3)["image"]
    sigmas = torch.tensor([0.5, 0.9, 1.4])
    whole = smooth(image, sigmas, 4)
    for number in range(3):
        torch.testing.assert_close(
            whole[number : number + 1], smooth(image[number : number + 1], sigmas[number][None], 4)
        )


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: BatchRandGaussianNoised("image", 1.5), r"prob must lie in 0–1, got 1\.5"),
        (lambda: BatchRandGaussianNoised("image", 0.5, (0.3, 0.1)), r"std_range .* got \(0\.3, 0\.1\)"),
        (lambda: BatchRandGaussianSmoothd("image", 0.5, (-1, 1)), r"sigma_range .*at least 0\.001.*got \(-1, 1\)"),
        (lambda: BatchRandSpatiald("image", "cubic"), "mode must be one of bilinear, nearest, got 'cubic'"),
        (lambda: BatchRandSpatiald("image", scale_range=(0, 1)), r"scale_range .* got \(0, 1\)"),
        (lambda: BatchRandFlipd("image", [0], 2), "prob must lie in 0–1, got 2"),
        (lambda: BatchRandGammad("image", invert_prob=-1), "invert_prob must lie in 0–1, got -1"),
    ],
)
def test_a_value_out_of_range_is_named(make, told):
    with pytest.raises(TomokitError, match=told):
        make()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_on_a_gpu_changes_without_waiting_for_it():
    batch = {key: value.cuda() for key, value in smooth_batch().items()}
    Compose(ALL)(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        Compose(ALL)(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
