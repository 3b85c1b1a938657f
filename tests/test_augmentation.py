"""Batched changes against known truth, and against MONAI's, torch's and scipy's of single samples."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from monai.transforms import AdjustContrast, Affine, Compose, Flip, GaussianSmooth
from torch.nn import functional

from tomokit.augmentation import (
    BatchRandBiasFieldd,
    BatchRandBrightnessd,
    BatchRandContrastd,
    BatchRandFlipd,
    BatchRandGammad,
    BatchRandGaussianNoised,
    BatchRandGaussianSmoothd,
    BatchRandLowResolutiond,
    BatchRandShiftIntensityd,
    BatchRandSpatiald,
)
from tomokit.augmentation.draws import draw_factors
from tomokit.augmentation.intensity import apply_bias, change_contrast, change_gamma, lower_resolution, smooth
from tomokit.augmentation.separable import spline_matrix, spline_points
from tomokit.augmentation.spatial import affine_matrices, resample, rotation_matrices, sampling_grid
from tomokit.errors import TomokitError

KEYS, MODES = ["image", "label"], ["bilinear", "nearest"]
OFF = {"rotate_prob": 0, "scale_prob": 0}
INTENSITY = [
    BatchRandBiasFieldd,
    BatchRandBrightnessd,
    BatchRandContrastd,
    BatchRandGammad,
    BatchRandGaussianNoised,
    BatchRandGaussianSmoothd,
    BatchRandLowResolutiond,
    BatchRandShiftIntensityd,
]
ALL = [BatchRandSpatiald, BatchRandFlipd, *INTENSITY]


def make(kind, prob=1.0):
    """Return a transform of this kind for image and label where it takes both, with this probability."""
    if kind is BatchRandSpatiald:
        return kind(KEYS, MODES, rotate_prob=prob, scale_prob=0, elastic_prob=0)
    return kind(KEYS, [0, 1], prob) if kind is BatchRandFlipd else kind("image", prob)


def strong():
    return BatchRandSpatiald(
        KEYS, MODES, rotate_prob=1, scale_prob=1, translate_prob=1, translate_range=2, elastic_prob=1
    )


def smooth_batch(batch=3, size=(12, 16, 10), channels=2):
    noise = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))
    image = smooth(noise, torch.full((batch, channels), 1.5)) * 5
    return {"image": image, "label": (image[:, :1] > 0.2).to(torch.uint8) * 3}


def moved(image, matrices=None, shifts=None, mode="bilinear", padding_mode="zeros", **deformed):
    dims = image.ndim - 2
    matrices = torch.eye(dims).repeat(len(image), 1, 1) if matrices is None else matrices
    shifts = torch.zeros(len(image), dims) if shifts is None else shifts
    return resample(
        image, sampling_grid(matrices, shifts, image.shape[2:], image.shape[2:], **deformed), mode, padding_mode
    )


# --------------------------------------------------------------------------------- what holds for all


@pytest.mark.parametrize("kind", [*ALL, strong], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("size", [(12, 16, 10), (12, 16), (9, 7, 1)])
@pytest.mark.parametrize("batch", [1, 3])
def test_shape_type_and_input_stay_and_the_draws_follow_the_seed(kind, size, batch):
    transform = strong() if kind is strong else make(kind)
    data = smooth_batch(batch, size)
    before = {key: value.clone() for key, value in data.items()}
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(transform(data))
    for key in KEYS:
        assert torch.equal(data[key], before[key])
        assert results[0][key].shape == data[key].shape and results[0][key].dtype == data[key].dtype
        assert torch.equal(results[0][key], results[1][key])
        assert type(results[0][key]) is torch.Tensor
    assert kind is BatchRandFlipd or not torch.equal(results[0]["image"], results[2]["image"])
    assert results[0]["image"].isfinite().all() and set(results[0]["label"].unique().tolist()) <= {0, 3}


@pytest.mark.parametrize("kind", ALL)
def test_each_sample_is_drawn_for_by_itself_and_the_others_keep_every_bit(kind):
    data, transform, counts = smooth_batch(8, (6, 8, 6)), make(kind, 0.3), []
    torch.manual_seed(0)
    for _ in range(50):
        result = transform(data)["image"]
        counts.append(sum(not torch.equal(*pair) for pair in zip(result, data["image"], strict=True)))
    # two axes to flip along are two chances; 400 samples, so five standard errors are 0.12
    assert sum(counts) / 400 == pytest.approx(0.51 if kind is BatchRandFlipd else 0.3, abs=0.12)
    assert sum(0 < count < 8 for count in counts) > 35  # 47 expected


@pytest.mark.parametrize("kind", ALL)
def test_without_a_draw_the_tensors_themselves_come_back(kind):
    data = smooth_batch()
    result = make(kind, 0)(data)
    assert all(result[key] is data[key] for key in KEYS)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_an_image_of_another_precision_changes_as_in_single_precision(kind, dtype):
    image = smooth_batch()["image"].to(dtype)
    results = []
    for data in (image, image.double().float()):
        torch.manual_seed(0)
        results.append(make(kind)({"image": data, "label": torch.ones_like(data[:, :1])})["image"])
    assert results[0].dtype == dtype
    if kind is not BatchRandGaussianNoised or dtype != torch.float64:  # torch draws double noise otherwise
        torch.testing.assert_close(results[0].float(), results[1], atol=0.05, rtol=0.01)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("prob", [1, 0.5])
def test_channels_last_order_is_kept(kind, prob):
    data = {key: value.contiguous(memory_format=torch.channels_last_3d) for key, value in smooth_batch(6).items()}
    torch.manual_seed(0)
    result = make(kind, prob)(data)
    assert not torch.equal(result["image"], data["image"])
    assert result["image"].stride() == data["image"].stride() != data["image"].contiguous().stride()


@pytest.mark.parametrize("kind", ALL)
def test_the_next_draw_does_not_depend_on_the_batch_s_values(kind):
    after = []
    for data in (smooth_batch(), {key: torch.zeros_like(value) for key, value in smooth_batch().items()}):
        torch.manual_seed(0)
        make(kind, 0.5)(data)
        after.append(torch.rand(1).item())
    assert after[0] == after[1]


def test_a_list_of_them_is_one_monai_compose():
    chain, data = Compose([make(kind) for kind in ALL]), smooth_batch()
    torch.manual_seed(0)
    first = chain(data)
    torch.manual_seed(0)
    step = data
    for kind in ALL:
        step = make(kind)(step)
    assert all(torch.equal(first[key], step[key]) for key in KEYS)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_never_waited_for_and_gives_what_the_cpu_gives():
    chain = Compose([make(kind, 0.5) for kind in ALL if kind is not BatchRandGaussianNoised] + [strong()])
    data = smooth_batch(6)
    on_gpu = {key: value.cuda() for key, value in data.items()}
    BatchRandGaussianNoised("image", 0.5)(on_gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.manual_seed(0)
        result = chain(BatchRandGaussianNoised("image", 0)(on_gpu))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.manual_seed(0)
    expected = chain(BatchRandGaussianNoised("image", 0)(data))
    torch.testing.assert_close(result["image"].cpu(), expected["image"], atol=1e-3, rtol=1e-3)
    assert (result["label"].cpu() == expected["label"]).float().mean() > 0.999


# --------------------------------------------------------------------------------------------- place


def test_a_shift_by_whole_voxels_moves_voxels():
    image = smooth_batch(1)["image"]
    shift = torch.tensor([[2.0, 0.0, -1.0]])
    torch.testing.assert_close(moved(image, shifts=shift)[:, :, 2:, :, :-1], image[:, :, :-2, :, 1:], atol=1e-4, rtol=0)
    label = torch.randint(0, 65536, (1, 1, 12, 16, 10)).float()
    assert torch.equal(moved(label, None, shift, "nearest")[:, :, 2:, :, :-1], label[:, :, :-2, :, 1:])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_quarter_turn_is_the_arrays(axis):
    image, angles = torch.randn(1, 1, 8, 8, 8), torch.zeros(1, 3)
    angles[0, axis] = math.pi / 2
    planes = [(3, 4), (4, 2), (2, 3)][axis]
    expected = torch.rot90(image, -1, planes)
    torch.testing.assert_close(moved(image, rotation_matrices(angles)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_rotation_and_scale_are_monais_affine(dims, mode):
    image = smooth_batch(2, (12, 15, 10)[:dims], 2)["image"]
    angles = torch.tensor([[0.3, -0.2, 0.5], [-0.4, 0.1, 0.2]])[:, : 2 * dims - 3]
    scales = torch.tensor([1.25, 0.8])
    ours = moved(image, affine_matrices(angles, scales), mode=mode)
    for number in range(2):
        theirs = Affine(
            rotate_params=angles[number].tolist(),
            scale_params=[1 / scales[number].item()] * dims,
            padding_mode="zeros",
            mode=mode,
            image_only=True,
        )(image[number])
        different = (ours[number] - theirs.as_tensor()).abs() > 1e-3
        assert different.float().mean() < (1e-6 if mode == "bilinear" else 0.01)  # a place halfway may go either way


def test_a_sphere_in_mm_stays_one_under_rotation_of_unequal_voxels():
    spacing, size = (1.0, 1.5, 3.0), (40, 28, 14)
    places = [(torch.arange(n) - (n - 1) / 2) * edge for n, edge in zip(size, spacing, strict=True)]
    x, y, z = torch.meshgrid(*places, indexing="ij")
    ball = torch.sigmoid((10 - (x**2 + y**2 + z**2).sqrt()) / 3)[None, None]
    angles = torch.tensor([[0.7, -0.5, 0.9]])
    right = moved(ball, affine_matrices(angles, torch.ones(1), spacing))
    sheared = moved(ball, affine_matrices(angles, torch.ones(1)))
    assert (right - ball).abs().max() < 0.05 and (sheared - ball).abs().max() > 0.3


def test_a_rotation_about_one_axis_leaves_the_others():
    slices = torch.arange(10.0).expand(2, 1, 12, 12, 10).contiguous()
    torch.manual_seed(0)
    turn = BatchRandSpatiald("image", rotate_prob=1, rotate_range=[0, 0, 3.14], scale_prob=0)
    torch.testing.assert_close(turn({"image": slices})["image"], slices, atol=1e-4, rtol=0)
    data = smooth_batch()
    assert not torch.equal(turn({"image": data["image"]})["image"], data["image"])


def test_a_larger_scale_enlarges():
    cube = torch.zeros(1, 1, 20, 20, 20)
    cube[..., 8:12, 8:12, 8:12] = 1
    twice = BatchRandSpatiald("image", "nearest", rotate_prob=0, scale_prob=1, scale_range=(2, 2))({"image": cube})
    assert twice["image"].sum() == 8 * cube.sum()


def test_image_and_label_move_together():
    torch.manual_seed(0)
    x, y, z = torch.meshgrid(*[torch.arange(float(n)) for n in (24, 20, 16)], indexing="ij")
    image = ((0.4 * x).sin() + (0.3 * y + 1).sin() + (0.5 * z).cos()).repeat(6, 1, 1, 1, 1)
    data = {"image": image, "label": (image > 0).float()}
    result = strong()(data)
    # the nearest voxel is within half a voxel along each axis, so its value within half a step along each
    uncertain = sum(image.diff(dim=axis).abs().max() / 2 for axis in (2, 3, 4))
    certain = result["image"].abs() > uncertain
    assert certain.float().mean() > 0.4
    assert torch.equal(result["image"][certain] > 0, result["label"][certain] > 0)
    assert (result["label"] != data["label"]).float().mean() > 0.1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float64])
def test_label_values_stay_exact(dtype):
    label = torch.randint(0, {torch.uint8: 256, torch.int16: 32768}.get(dtype, 65536), (2, 1, 9, 9, 9)).to(dtype)
    turned = BatchRandSpatiald("label", "nearest", rotate_prob=1)({"label": label})["label"]
    assert turned.dtype == dtype and set(turned.unique().tolist()) <= set(label.unique().tolist())
    assert not torch.equal(turned, label)


@pytest.mark.parametrize("zero", [{"rotate_range": 0, "scale_range": (1, 1), "elastic_magnitude": (0, 0)}])
def test_changes_of_no_size_keep_every_bit(zero):
    data = smooth_batch()
    chances = dict.fromkeys(("rotate_prob", "scale_prob", "translate_prob", "elastic_prob"), 1)
    result = BatchRandSpatiald(KEYS, MODES, **chances, **zero, spacing=[0.7, 0.7, 3.0])(data)
    assert all(result[key] is data[key] for key in KEYS)


@pytest.mark.parametrize("size", [(8, 8, 6), (7, 9, 10)])
def test_a_smaller_result_is_the_centre_drawn_or_not(size):
    data = smooth_batch()
    image = data["image"]
    window = tuple(slice((a - b) // 2, (a - b) // 2 + b) for a, b in zip(image.shape[2:], size, strict=True))
    centre = BatchRandSpatiald(KEYS, MODES, **OFF, spatial_size=size)(data)
    assert torch.equal(centre["image"], image[:, :, *window])
    assert torch.equal(centre["label"], data["label"][:, :, *window])
    grid = sampling_grid(torch.eye(3).repeat(3, 1, 1), torch.zeros(3, 3), image.shape[2:], size)
    torch.testing.assert_close(resample(image, grid, "bilinear", "zeros"), centre["image"], atol=1e-4, rtol=0)


def test_what_turns_into_a_smaller_result_is_image_and_not_padding():
    image = torch.ones(2, 1, 24, 24, 24)
    turn = {"rotate_prob": 1, "scale_prob": 0, "padding_mode": "zeros"}
    torch.manual_seed(0)
    assert (BatchRandSpatiald("image", **turn, spatial_size=(12, 12, 12))({"image": image})["image"] > 0.999).all()
    assert (BatchRandSpatiald("image", **turn)({"image": image})["image"] == 0).any()


@pytest.mark.parametrize(("size", "distance"), [(20, 8.0), (33, 5.5), (10, 16.0), (1, 4.0), (7, 0.5)])
def test_a_spline_field_is_scipys_and_stays_within_its_control_points(size, distance):
    points = spline_points(size, distance)
    matrix = spline_matrix(size, points, distance, torch.zeros(0, dtype=torch.float64))
    torch.testing.assert_close(matrix.sum(1), torch.ones(size, dtype=torch.float64))
    assert (matrix >= 0).all() and points >= 3
    controls = np.random.default_rng(0).normal(size=points)
    places = (np.arange(size) - (size - 1) / 2) / distance + (points - 1) / 2
    padded = np.pad(controls, 8, mode="constant")
    theirs = scipy.ndimage.map_coordinates(padded, [places + 8], order=3, prefilter=False, mode="constant")
    np.testing.assert_allclose(matrix.numpy() @ controls, theirs, atol=1e-9)


def test_a_deformation_that_moves_all_control_points_alike_is_a_shift():
    image, distances = smooth_batch(2)["image"], (5.0, 6.0, 4.0)
    points = [spline_points(*pair) for pair in zip(image.shape[2:], distances, strict=True)]
    shift = torch.tensor([[1.3, -0.6, 0.4], [0.0, 2.0, -1.5]])
    controls = -shift[..., None, None, None].expand(2, 3, *points)
    matrices = affine_matrices(torch.tensor([[0.1, 0.2, 0.3], [0.0, 0.0, 0.4]]), torch.tensor([1.1, 0.9]))
    deformed = moved(image, matrices, controls=controls, distances=distances)
    torch.testing.assert_close(deformed, moved(image, matrices, shift), atol=1e-3, rtol=0)


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 2.0)])
def test_a_deformation_is_as_large_as_was_asked_for_and_folds_nothing(spacing):
    size, elastic = (40, 36, 24), {"elastic_prob": 1, "elastic_magnitude": (6.4, 6.4), "elastic_spacing": 16}
    for axis in range(3):
        ramp = torch.arange(float(size[axis])).reshape([-1 if other == axis else 1 for other in range(3)])
        torch.manual_seed(axis)
        deform = BatchRandSpatiald("image", **OFF, **elastic, spacing=spacing)
        places = deform({"image": ramp.expand(6, 1, *size).contiguous()})["image"].narrow(axis + 2, 8, size[axis] - 16)
        offset = places - ramp.narrow(axis, 8, size[axis] - 16)
        limit = 6.4 / (spacing or (1, 1, 1))[axis]
        assert 0.3 * limit < offset.abs().max() <= limit + 1e-4
        assert (places.diff(dim=axis + 2) > 0).all()


def test_a_deformation_of_unequal_voxels_is_alike_along_all_axes_in_mm():
    size, spacing, moves, strains = (64, 64, 32), (1.0, 1.0, 2.0), [], []
    deform = BatchRandSpatiald("image", **OFF, elastic_prob=1, elastic_magnitude=(3, 3), spacing=spacing)
    for axis in (0, 2):
        ramp = torch.arange(float(size[axis])).reshape([-1 if other == axis else 1 for other in range(3)])
        torch.manual_seed(0)
        offset = deform({"image": ramp.expand(12, 1, *size).contiguous()})["image"] - ramp
        inner = offset.narrow(axis + 2, 8, size[axis] - 16)
        moves.append(inner.std().item() * spacing[axis])
        strains.append(inner.diff(dim=axis + 2).std().item())
    assert moves[1] == pytest.approx(moves[0], rel=0.2) and strains[1] == pytest.approx(strains[0], rel=0.2)


def test_a_sample_with_any_draw_is_changed():
    data = smooth_batch(8)
    torch.manual_seed(0)
    either = BatchRandSpatiald(KEYS, MODES, rotate_prob=0.5, scale_prob=0, elastic_prob=0.5)
    counts = []
    for _ in range(20):
        result = either(data)["image"]
        counts += [not torch.equal(*pair) for pair in zip(result, data["image"], strict=True)]
    assert sum(counts) / 160 == pytest.approx(0.75, abs=0.1)


def test_every_sample_gets_its_own_change_and_a_batch_is_its_samples():
    image = smooth_batch(4)["image"]
    angles, scales = torch.randn(4, 3), torch.rand(4) + 0.5
    shifts, controls = torch.randn(4, 3), torch.randn(4, 3, 6, 6, 6)
    deformed = {"distances": (5.0, 6.0, 4.0)}
    matrices = affine_matrices(angles, scales)
    whole = moved(image, matrices, shifts, controls=controls, **deformed)
    for number in range(4):
        one = slice(number, number + 1)
        alone = moved(image[one], matrices[one], shifts[one], controls=controls[one], **deformed)
        torch.testing.assert_close(whole[one], alone, atol=1e-5, rtol=1e-5)


def test_some_drawn_samples_of_a_batch_are_resampled_as_alone():
    data = smooth_batch(6)
    torch.manual_seed(0)
    result = BatchRandSpatiald(KEYS, MODES, rotate_prob=0, scale_prob=0.5, scale_range=(1.3, 1.3))(data)
    scaled = moved(data["image"], affine_matrices(torch.zeros(6, 3), torch.full((6,), 1.3)), padding_mode="border")
    kept = [torch.equal(*pair) for pair in zip(result["image"], data["image"], strict=True)]
    assert 0 < sum(kept) < 6
    for number, same in enumerate(kept):
        expected = data["image"] if same else scaled
        torch.testing.assert_close(result["image"][number], expected[number], atol=1e-5, rtol=1e-5)


def test_flips_are_monais():
    data = smooth_batch(2)
    flipped = BatchRandFlipd(KEYS, [0, 2], prob=1)(data)
    for key in KEYS:
        expected = torch.stack([Flip((0, 2))(sample).as_tensor() for sample in data[key]])
        assert torch.equal(flipped[key], expected)
    assert torch.equal(BatchRandFlipd(KEYS, 1, prob=1)(data)["label"], data["label"].flip(3))


def test_axes_are_flipped_independently_and_none_without_axes():
    ramp = torch.arange(8.0).reshape(1, 1, 2, 2, 2).repeat(400, 1, 1, 1, 1)
    torch.manual_seed(0)
    corners = BatchRandFlipd("image", [0, 1, 2])({"image": ramp})["image"][:, 0, 0, 0, 0]
    shares = torch.bincount(corners.long(), minlength=8) / 400
    assert shares.min() > 0.05 and shares.max() < 0.2
    assert BatchRandFlipd("image", [], prob=1)({"image": ramp})["image"] is ramp


# ----------------------------------------------------------------------------------------- intensity


def test_smoothing_is_scipys_for_each_sample_and_channel():
    image = torch.randn(2, 2, 24, 22, 26)
    sigmas = torch.tensor([[0.6, 1.1], [0.8, 0.5]])
    ours = smooth(image, sigmas)[:, :, 5:-5, 5:-5, 5:-5]
    for number, channel in np.ndindex(2, 2):
        theirs = scipy.ndimage.gaussian_filter(image[number, channel].numpy(), sigmas[number, channel].item())
        np.testing.assert_allclose(ours[number, channel], theirs[5:-5, 5:-5, 5:-5], atol=2e-4)


@pytest.mark.parametrize("size", [(24, 24, 24), (24, 24)])
def test_smoothing_is_monais_within_and_keeps_a_constant_to_the_border(size):
    image = smooth_batch(1, size, 1)["image"]
    inner = (slice(None), *[slice(5, -5)] * len(size))
    theirs = GaussianSmooth(1.0, approx="sampled")(image[0])
    torch.testing.assert_close(smooth(image, torch.ones(1, 1))[0][inner], theirs[inner], atol=2e-3, rtol=0)
    torch.testing.assert_close(smooth(torch.ones(1, 1, *size), torch.ones(1, 1)), torch.ones(1, 1, *size))


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("retain", [False, True])
def test_gamma_is_monais(invert, retain):
    image = smooth_batch(2)["image"]
    gammas = torch.tensor([[0.7, 1.6], [1.2, 0.8]])
    ours = change_gamma(image, gammas, invert, retain)
    for number, channel in np.ndindex(2, 2):
        monais = AdjustContrast(gammas[number, channel].item(), invert_image=invert, retain_stats=retain)
        theirs = monais(image[number, channel : channel + 1])
        torch.testing.assert_close(ours[number, channel], theirs[0], atol=1e-4, rtol=1e-4)


def test_gamma_leaves_a_constant_channel():
    torch.testing.assert_close(
        change_gamma(torch.full((1, 1, 4, 4, 4), -2.5), torch.tensor([[1.4]])).mean().item(), -2.5
    )


def test_contrast_stretches_about_the_mean_within_the_range():
    image = smooth_batch(1)["image"]
    result = change_contrast(image, torch.tensor([[1.2, 0.5]]))
    free = change_contrast(image, torch.tensor([[1.2, 0.5]]), preserve_range=False)
    assert result.max() == image.max() < free.max()
    mean = image[:, 0].mean()
    torch.testing.assert_close(free[:, 0], (image[:, 0] - mean) * 1.2 + mean)
    torch.testing.assert_close(result[:, 0], free[:, 0].clamp(image[:, 0].min(), image[:, 0].max()))
    torch.testing.assert_close(result[:, 1].std(), image[:, 1].std() * 0.5)


@pytest.mark.parametrize("size", [(21, 16, 10), (21, 16)])
@pytest.mark.parametrize("axes", [None, [0, 1]])
def test_a_lower_resolution_is_torchs_interpolation(size, axes):
    image = smooth_batch(2, size)["image"]
    zooms = torch.tensor([[0.5, 0.73], [0.31, 1.0]])
    ours = lower_resolution(image, zooms, axes)
    for number, channel in np.ndindex(2, 2):
        part, zoom = image[number : number + 1, channel : channel + 1], zooms[number, channel].item()
        coarse = [round(n * zoom) if axes is None or axis in axes else n for axis, n in enumerate(size)]
        low = functional.interpolate(part, coarse, mode="nearest-exact")
        theirs = functional.interpolate(low, size, mode="trilinear" if len(size) == 3 else "bilinear")
        torch.testing.assert_close(ours[number, channel], theirs[0, 0], atol=1e-4, rtol=1e-4)


def test_a_bias_field_is_smooth_within_its_strength_and_leaves_the_background():
    torch.manual_seed(0)
    image = torch.full((2, 2, 30, 24, 20), 1.5)
    image[..., 0] = -1
    field = (BatchRandBiasFieldd("image", 1, (0.5, 0.5))({"image": image})["image"] + 1) / 2.5
    assert (field[..., 0] == 0).all()
    inner = field[..., 1:].log()
    assert 0.2 < inner.abs().max() <= 0.5 + 1e-5 and inner.diff(dim=2).abs().max() < 0.15
    assert not torch.equal(field[0, 0], field[0, 1])
    torch.testing.assert_close(apply_bias(image, torch.zeros(2, 2, 5, 5, 5)), image)
    torch.testing.assert_close(apply_bias(image, torch.full((2, 2, 5, 5, 5), 0.4)), (image + 1) * math.exp(0.4) - 1)


def test_noise_brightness_and_offset_are_as_large_as_was_asked_for():
    flat = {"image": torch.ones(1, 1, 40, 40, 40)}
    noisy = BatchRandGaussianNoised("image", 1, (0.3, 0.3))(flat)["image"]
    assert noisy.std().item() == pytest.approx(0.3, rel=0.03) and noisy.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(BatchRandBrightnessd("image", 1, (1.25, 1.25))(flat)["image"], flat["image"] * 1.25)
    assert torch.equal(BatchRandShiftIntensityd("image", 1, (0.5, 0.5))(flat)["image"], flat["image"] + 0.5)


@pytest.mark.parametrize("kind", [kind for kind in INTENSITY if kind is not BatchRandGaussianNoised])
def test_a_sample_changes_alike_whichever_others_are_drawn(kind):
    image, results = smooth_batch(6)["image"], []
    for prob in (1, 0.5):
        torch.manual_seed(1)
        results.append(make(kind, prob)({"image": image})["image"])
    kept = [torch.equal(*pair) for pair in zip(results[1], image, strict=True)]
    assert 0 < sum(kept) < 6
    for number in [number for number, same in enumerate(kept) if not same]:
        torch.testing.assert_close(results[1][number], results[0][number])


@pytest.mark.parametrize("kind", INTENSITY)
def test_the_channels_of_a_sample_are_drawn_for_by_themselves(kind):
    image = smooth_batch(1, channels=1)["image"].repeat(1, 2, 1, 1, 1)
    torch.manual_seed(0)
    result = make(kind)({"image": image})["image"]
    assert not torch.equal(result[:, 0], result[:, 1])


def test_as_many_factors_enlarge_as_reduce():
    torch.manual_seed(0)
    factors = draw_factors(4000, (0.7, 1.4))
    assert 0.7 <= factors.min() < 0.72 and 1.38 < factors.max() <= 1.4
    assert (factors < 1).float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert draw_factors(100, (1.2, 1.4)).min() >= 1.2


# -------------------------------------------------------------------------------------------- errors

SPATIAL = BatchRandSpatiald


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: SPATIAL("image", "cubic"), "mode must be one of bilinear, nearest, got 'cubic'"),
        (lambda: SPATIAL("image", padding_mode="edge"), "padding_mode must be one of .*zeros, got 'edge'"),
        (lambda: SPATIAL("image", rotate_range=30), r"rotate_range must .* at most 6\.283 in radians.*got 30"),
        (lambda: SPATIAL("image", translate_range=-1), "translate_range must be .*not negative, got -1"),
        (lambda: SPATIAL("image", scale_range=(0, 1)), r"scale_range .* got \(0, 1\)"),
        (lambda: SPATIAL("image", scale_prob=2), "scale_prob must lie in 0–1, got 2"),
        (lambda: SPATIAL("image", elastic_magnitude=(0, 8)), r"up to 8 voxels folds .* of 16; set it to 6\.45 or"),
        (lambda: SPATIAL("image", spacing=[1, 0, 1]), r"spacing must be positive .* got \(1\.0, 0\.0, 1\.0\)"),
        (lambda: BatchRandFlipd("image", [-1]), r"spatial_axis must be .*, got \[-1\]"),
        (lambda: BatchRandFlipd("image", None), "spatial_axis must be .*, got None"),
        (lambda: BatchRandFlipd("image", [0], 2), "prob must lie in 0–1, got 2"),
        (lambda: BatchRandGaussianNoised("image", 1.5), r"prob must lie in 0–1, got 1\.5"),
        (lambda: BatchRandGaussianNoised("image", 0.5, (0.3, 0.1)), r"std_range .* got \(0\.3, 0\.1\)"),
        (lambda: BatchRandGaussianSmoothd("image", 0.5, (-1, 1)), r"sigma_range .*from 0\.05.*got \(-1, 1\)"),
        (lambda: BatchRandLowResolutiond("image", 0.5, (0.5, 2)), r"zoom_range .*from 0\.05 to 1,.*got \(0\.5, 2\)"),
        (lambda: BatchRandLowResolutiond("image", axes=[-1]), r"axes must be .*, got \[-1\]"),
        (lambda: BatchRandShiftIntensityd("image", 0.5, (0, math.inf)), r"offset_range .* got \(0, inf\)"),
        (lambda: BatchRandGammad("image", gamma_range=(0, 1)), r"gamma_range .* got \(0, 1\)"),
        (lambda: BatchRandBrightnessd("image", factor_range=(1,)), r"factor_range must be two .* got \(1,\)"),
        (lambda: BatchRandContrastd("image", factor_range=(-1, 1)), r"factor_range .* got \(-1, 1\)"),
        (lambda: BatchRandBiasFieldd("image", points=3), "points must be at least 4, got 3"),
    ],
)
def test_an_argument_out_of_range_is_named(build, told):
    with pytest.raises(TomokitError, match=told):
        build()


@pytest.mark.parametrize(
    ("transform", "told"),
    [
        (SPATIAL("image", rotate_range=[0.1, 0.2]), r"rotate_range must be one number or 3 .* got \(0\.1, 0\.2\)"),
        (
            SPATIAL("image", spatial_size=(20, 8, 8)),
            r"spatial_size must be within the image's \(12, 16, 10\), got \(20",
        ),
        (SPATIAL("image", spatial_size=(8, 8)), r"spatial_size must be within .*got \(8, 8\)"),
        (SPATIAL("image", spacing=[1, 1]), r"spacing must be 3 numbers in mm, got \(1\.0, 1\.0\)"),
        (SPATIAL(["image", "flat"]), r"one spatial shape, got .*'flat': \(3, 2, 12, 16\)"),
        (BatchRandFlipd("flat", [2]), r"spatial_axis \[2\] is not within 'flat' of shape \(3, 2, 12, 16\)"),
        (BatchRandGammad("label"), r"BatchRandGammad takes .* got torch\.uint8 of shape \(3, 1, .* in 'label'"),
    ],
)
def test_a_batch_that_does_not_fit_is_named(transform, told):
    data = smooth_batch()
    with pytest.raises(TomokitError, match=told):
        transform({**data, "flat": data["image"][..., 0]})
