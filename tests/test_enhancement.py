"""Networks that mend images, their losses, units, rivals, scores, and the way back to the source's grid."""

import json
import traceback
import zipfile

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import follow, train, weights
from monai.data import MetaTensor
from monai.losses import SSIMLoss
from scipy.ndimage import maximum_filter, minimum_filter
from torch import nn

from tomokit import phantoms
from tomokit.degradation import HOLE, BatchRandHolesd
from tomokit.degradation.cases import KIND
from tomokit.engines.enhancement import draw_enhanced, summarise_enhancement
from tomokit.errors import TomokitError
from tomokit.inference import CutHolesd, WritePredictiond, finish_writing
from tomokit.inference.grids import turn_back
from tomokit.intensity import RestoreUnitsd, ScaleToUnitd, unit_range
from tomokit.losses import DeceptionLoss, DiscriminationLoss, RestorationLoss
from tomokit.networks import BiasFreeUNet, Residual
from tomokit.release.making import release_run
from tomokit.rivals.denoising import FILTERS, apply_filter, check_filters, choose_strength

SMALL = {
    "patch_size": [16, 16, 16],
    "window": [32, 32, 32],
    "filters": [4, 8, 8],
    "mirror_axes": [0],
    "cache": "memory",
}


class Strong(nn.Module):
    def forward(self, x):
        return 50 * x


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scans"
    phantoms.make_segmentation_set(folder, "MRI", cases=6, test_cases=2, size=32, progress=False)
    return folder


@pytest.fixture(scope="module")
def run(scans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train("enhancement", folder, dataset_dir=str(scans), **SMALL)
    follow("enhancement", folder, "evaluate", rivals=["gaussian", "tv"])
    return folder


# networks and losses


@pytest.mark.parametrize("shape", [(1, 1, 16, 18, 13), (2, 2, 15, 17)])
def test_the_answer_to_a_brighter_image_is_as_much_brighter(shape):
    torch.manual_seed(0)
    network = Residual(BiasFreeUNet(len(shape) - 2, shape[1], [4, 8], [1, 2])).eval()
    image = torch.rand(shape)
    with torch.no_grad():
        one, other = network(image), network(7 * image)
    assert one.shape == shape and torch.allclose(other, 7 * one, rtol=1e-4, atol=1e-5)
    assert not torch.equal(one, image) and (one - image).abs().mean() < 0.1  # it begins near the image
    assert not [name for name, _ in network.named_parameters() if "bias" in name]


def test_the_answer_is_added_in_the_images_precision():
    class Nothing(torch.nn.Module):
        def forward(self, image):
            return torch.zeros_like(image, dtype=torch.bfloat16)

    image = torch.rand(1, 1, 4, 4, 4)
    assert torch.equal(Residual(Nothing())(image), image)


def test_an_image_with_little_noise_counts_as_much_as_one_with_much():
    clean = torch.zeros(2, 1, 8, 8, 8)
    image = (clean + torch.tensor([0.01, 0.1]).reshape(2, 1, 1, 1, 1)).requires_grad_()
    RestorationLoss(ssim=0)(image, clean).backward()
    pull = image.grad.flatten(1).sum(1) * torch.tensor([0.01, 0.1])  # what a share of its error is worth
    assert torch.allclose(pull, torch.full((2,), 0.5), rtol=0.02)


@pytest.mark.parametrize("shape", [(2, 1, 16, 14, 12), (2, 2, 15, 18)])
def test_the_loss_is_the_distance_and_what_the_similarity_lacks(shape):
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.rand(shape, generator=generator) for _ in range(2))
    distance = (one - two).abs().flatten(1).mean(1).log().mean()
    assert torch.isclose(RestorationLoss(ssim=0)(one, two), distance, atol=1e-3)
    monais = SSIMLoss(len(shape) - 2, data_range=1.0, win_size=7, kernel_type="uniform")(one, two)
    gained = RestorationLoss(ssim=0.3)(one, two) - RestorationLoss(ssim=0)(one, two)
    assert torch.isclose(gained, 0.3 * monais, atol=1e-5)
    assert RestorationLoss()(one, one).isfinite()
    with pytest.raises(TomokitError, match="ssim must be at least 0, got -1"):
        RestorationLoss(ssim=-1)
    with pytest.raises(TomokitError, match=r"window of 7 voxels does not fit into \(6, 9\)"):
        RestorationLoss()(torch.rand(1, 1, 6, 9), torch.rand(1, 1, 6, 9))


def test_the_discriminator_loses_where_the_network_wins():
    sure_real, sure_fake = [torch.zeros(1), torch.ones(2, 1, 3, 3)], [torch.zeros(1), torch.zeros(2, 1, 3, 3)]
    assert DiscriminationLoss()(sure_real, sure_fake) == 0 and DiscriminationLoss()(sure_fake, sure_real) == 1
    assert DeceptionLoss(0.5)(sure_real) == 0 and DeceptionLoss(0.5)(sure_fake) == 0.5
    with pytest.raises(TomokitError, match="weight must be at least 0, got -2"):
        DeceptionLoss(-2)


# units and grids


def test_units_come_back_exactly_once():
    values = torch.rand(2, 9, 8, 7, generator=torch.Generator().manual_seed(0)) * 800 - 100
    scaled = ScaleToUnitd("image")({"image": MetaTensor(values)})
    image = scaled["image"]
    for own, given in zip(image, values, strict=True):
        assert own.min() == 0
        assert np.percentile(own.numpy(), 99.5) == pytest.approx(1, abs=1e-5)
        assert unit_range(image)[0][0] == pytest.approx(values[0].min().item()) and given.max() > 600
    clipped = ScaleToUnitd("image", clip=True)({"image": MetaTensor(values)})["image"]
    assert clipped.max() == 1 < image.max()
    back = RestoreUnitsd("pred")({"pred": image.clone().as_tensor(), "image": image})["pred"]
    assert torch.allclose(back, values, atol=1e-3)
    with pytest.raises(TomokitError, match=r"percentiles in order, 0 to 100, got 99 and 1"):
        ScaleToUnitd("image", lower=99, upper=1)
    with pytest.raises(TomokitError, match="case_4 has no metadata"):
        ScaleToUnitd("image")({"image": values, "case": "case_4"})
    with pytest.raises(TomokitError, match="own units are not known"):
        unit_range(values)


def test_a_constant_image_is_scaled_without_a_division_by_nothing():
    image = ScaleToUnitd("image")({"image": MetaTensor(torch.full((1, 4, 4, 4), 37.0))})["image"]
    assert (image == 0).all()
    assert (RestoreUnitsd("pred")({"pred": image.clone(), "image": image})["pred"] == 37).all()


def test_an_image_is_turned_back_voxel_by_voxel():
    source = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    affine = np.array([[0, -2, 0, 9], [0, 0, 3, -7], [-4, 0, 0, 5], [0, 0, 0, 1.0]])  # P, L, S in some order
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    turn = io_orientation(affine)
    turned = apply_orientation(source, turn)
    turned_affine = affine @ inv_ornt_aff(turn, source.shape)
    assert np.array_equal(turn_back(turned, turned_affine, source.shape, affine), source)
    with pytest.raises(TomokitError, match=r"does not lie on its source of \(4, 5, 6\)"):
        turn_back(turned[1:], turned_affine, source.shape, affine)


@pytest.mark.parametrize("folder", [None, "kind"])
def test_an_image_is_written_on_its_source_as_float32(folder, tmp_path):
    affine = np.array([[-2, 0, 0, 9], [0, 3, 0, -7], [0, 0, 4, 5], [0, 0, 0, 1.0]])
    source = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    nibabel.save(nibabel.Nifti1Image(source, affine), tmp_path / "a.nii.gz")
    meta = {"original_affine": affine, "spatial_shape": [3, 4, 5], "filename_or_obj": str(tmp_path / "a.nii.gz")}
    turned = affine @ np.array([[-1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    image = MetaTensor(torch.from_numpy(source[::-1].copy())[None].float(), affine=torch.as_tensor(turned), meta=meta)
    writer = WritePredictiond("pred", tmp_path / "out", folder_key=folder)
    writer({"pred": image + 0.25, "image": image, "case": "a", "kind": "noise"})
    finish_writing()
    found = nibabel.load(tmp_path / "out" / ("noise" if folder else "") / "a.nii.gz")
    assert found.get_data_dtype() == np.float32 and np.array_equal(found.affine, affine)
    assert np.array_equal(found.get_fdata(), source + 0.25)


# rivals and scores


def test_filters_take_noise_away_at_the_strength_that_is_best():
    rng = np.random.default_rng(0)
    clean = np.zeros((20, 20, 20), np.float32)
    clean[5:15, 5:15, 5:15] = 1
    noisy = clean + 0.1 * rng.standard_normal(clean.shape).astype(np.float32)
    for name, (_, strengths) in FILTERS.items():
        if name == "fill":
            continue
        chosen = choose_strength(name, [(noisy, clean)])
        errors = {s: np.mean((apply_filter(name, noisy, s).clip(0, 1) - clean) ** 2) for s in strengths}
        assert errors[chosen] == min(errors.values()) < 0.9 * np.mean((noisy.clip(0, 1) - clean) ** 2)
    with pytest.raises(TomokitError, match="rivals must be of gaussian, tv, fill, nlm, got 'median'"):
        check_filters(["gaussian", "median"])
    with pytest.raises(TomokitError, match="no cases to choose the strength of tv on"):
        choose_strength("tv", [])


def test_scores_are_summarised_by_degradation_and_paired():
    rows = [
        {"case": f"c{i}", "patient": f"p{i}", KIND: kind, "psnr": 30 + i, "ssim": 0.9, "seconds": 0.1}
        | {"psnr_degraded": 25 + i, "ssim_degraded": 0.8, "psnr_tv": 29.5 + i - (i % 2), "ssim_tv": 0.85}
        for kind in ("gaussian5", "blur")
        for i in range(8)
    ]
    found = summarise_enhancement(rows, ["tv"])
    assert found["per_class"]["blur"]["psnr"]["mean"] == 33.5 and found["per_class"]["blur"]["psnr"]["n"] == 8
    assert found["rivals"]["degraded"]["per_class"]["blur"]["psnr"]["mean"] == 28.5
    compared = found["comparisons"]["tv"]["gaussian5"]
    assert compared["difference"] == pytest.approx(1.0) and compared["verdict"] == "better"
    low, high = compared["ci95"]
    assert 0.5 < low < 1 < high < 1.5


def test_a_picture_needs_volumes(tmp_path):
    with pytest.raises(TomokitError, match="nothing to draw in"):
        draw_enhanced([], tmp_path / "a.png")
    flat = {name: np.zeros((4, 4)) for name in ("clean", "degraded", "enhanced")} | {"title": "x", "affine": np.eye(4)}
    with pytest.raises(TomokitError, match=r"x: the images must be 3D, got \(4, 4\)"):
        draw_enhanced([flat], tmp_path / "a.png")


# the bundle


def test_a_run_is_scored_in_each_degradation_beside_filters(run):
    measures = json.loads((run / "metrics.json").read_text())
    assert measures["task"] == "enhancement" and set(measures["rivals"]) == {"degraded", "gaussian", "tv"}
    assert set(measures["per_class"]) == {"gaussian5", "gaussian10", "rician5"}
    noisy = {kind: own["psnr"]["mean"] for kind, own in measures["rivals"]["degraded"]["per_class"].items()}
    assert 26 < noisy["gaussian5"] < 28 and 20 < noisy["gaussian10"] < 22  # 20 log10 of 1/0.05, less what is clipped
    lines = (run / "cases.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 3 and lines[0].startswith("case,patient,degradation,psnr,ssim,seconds")
    assert (run / "overlay.png").stat().st_size > 10_000
    found = {str(path.relative_to(run / "predictions")) for path in (run / "predictions").rglob("*.nii.gz")}
    assert found == {f"{kind}/case_00{i}.nii.gz" for kind in measures["per_class"] for i in (4, 5)}


@pytest.mark.parametrize("shape", [(2, 2, 9, 8, 7), (2, 1, 9, 8)])
def test_no_value_is_made_that_is_not_near(shape):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    image[:, :, 5:] = 0.25  # even, but for what lies within two voxels
    dims = len(shape) - 2
    wild = nn.Sequential(nn.Conv3d(2, 2, 3, padding=1) if dims == 3 else nn.Conv2d(1, 1, 3, padding=1), Strong())
    found = Residual(wild, within=2)(image)
    size = (1, 1, *[5] * dims)
    greatest, least = (torch.tensor(change(image.numpy(), size)) for change in (maximum_filter, minimum_filter))
    assert (found <= greatest).all() and (found >= least).all() and not torch.equal(found, image)
    assert torch.equal(found[:, :, 7:], image[:, :, 7:])
    assert torch.equal(Residual(wild)(image), image + wild(image))
    with pytest.raises(TomokitError, match="within must be at least 1 voxel, or null, got 0"):
        Residual(wild, within=0)


def test_an_enhanced_scan_has_the_units_and_the_grid_of_its_source(run, scans, tmp_path):
    source = nibabel.load(scans / "imagesTs" / "case_004.nii.gz")
    turned = source.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))  # another order of the same voxels
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    given = [str(scans / "imagesTs" / "case_004.nii.gz"), str(tmp_path / "turned.nii.gz")]
    follow("enhancement", run, "inference", input=given, output_dir=str(tmp_path / "out"))
    found = nibabel.load(tmp_path / "out" / "case_004.nii.gz")
    assert found.shape == source.shape and np.array_equal(found.affine, source.affine)
    before, after = source.get_fdata(), found.get_fdata()
    spread = before.std()
    assert abs(after.mean() - before.mean()) < 0.1 * spread and np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.9
    again = nibabel.load(tmp_path / "out" / "turned.nii.gz")
    assert again.shape == turned.shape and np.allclose(again.affine, turned.affine)
    back = again.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.io_orientation(again.affine), nibabel.io_orientation(source.affine))
    )
    assert np.allclose(back.get_fdata(), after, atol=1e-3 * spread)


def test_a_release_enhances_as_its_run_does(run, scans, tmp_path):
    release = release_run("enhancement", run, tmp_path / "enhancer.zip")
    assert {export.name for export in release.exports} == {"model.ts", "model.onnx"}
    with zipfile.ZipFile(tmp_path / "enhancer.zip") as content:
        content.extractall(tmp_path)
    scan = str(scans / "imagesTs" / "case_004.nii.gz")
    follow("enhancement", run, "inference", input=scan, output_dir=str(tmp_path / "own"))
    folder = tmp_path / "enhancer"
    released = str(folder / "configs" / "inference.json")
    monai.bundle.run(config_file=released, bundle_root=str(folder), input=scan, output_dir=str(tmp_path / "out"))
    one, two = (nibabel.load(tmp_path / name / "case_004.nii.gz") for name in ("own", "out"))
    assert np.allclose(one.get_fdata(), two.get_fdata(), atol=1e-3) and np.array_equal(one.affine, two.affine)


def test_a_discriminator_is_resumed_with_its_optimizer(scans, tmp_path):
    options = {"dataset_dir": str(scans), "patch_size": [24, 24, 24], **{k: SMALL[k] for k in ("window", "filters")}}
    whole = train("enhancement", tmp_path / "whole", "modes/gan", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tomokit.engines.training.write_json", _stop)
        with pytest.raises(RuntimeError):
            train("enhancement", tmp_path / "parts", "modes/gan", **options)
    content = torch.load(tmp_path / "parts" / "checkpoints" / "last.pt", weights_only=True)
    assert content["epoch"] == 1 and content["companions"]["discriminator_optimizer"]["state"]
    train("enhancement", tmp_path / "parts", "modes/gan", **options, resume=True)
    ends = [torch.load(run / "checkpoints" / "last.pt", weights_only=True) for run in (whole, tmp_path / "parts")]
    for part in ("network", "companions"):
        one, two = (end[part]["discriminator"] if part == "companions" else end[part] for end in ends)
        assert all(torch.equal(one[key], two[key]) for key in one)
    losses = json.loads((whole / "validation.json").read_text())["history"]
    assert all(np.isfinite(entry["loss"]) for entry in losses)
    assert weights(whole)  # a plain network's, which any stage takes


def _stop(*_):
    raise RuntimeError("stopped")


@pytest.mark.parametrize("mode", ["deblur", "artefacts", "super_resolution", "low_dose", "inpainting"])
def test_what_is_mended_is_a_layer(mode, scans, tmp_path):
    train("enhancement", tmp_path / "run", f"modes/{mode}", dataset_dir=str(scans), **SMALL, epochs=1)
    follow("enhancement", tmp_path / "run", "evaluate", rivals=[])
    measures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for kind, own in measures["per_class"].items():
        assert 0 < own["psnr"]["mean"] < 100, kind
        assert measures["rivals"]["degraded"]["per_class"][kind]["psnr"]["mean"] < 60  # it does spoil the image


def test_what_a_mask_marks_is_filled_and_the_rest_kept(scans, tmp_path):
    run = train("enhancement", tmp_path / "run", "modes/inpainting", dataset_dir=str(scans), **SMALL, epochs=1)
    source = nibabel.load(scans / "imagesTs" / "case_004.nii.gz")
    mask = np.zeros(source.shape, np.uint8)
    mask[10:14, 12:18, 9:12] = 1
    given = {"input": str(scans / "imagesTs" / "case_004.nii.gz"), "output_dir": str(tmp_path / "out")}
    with pytest.raises(RuntimeError) as caught:
        follow("enhancement", run, "inference", **given, masks=str(tmp_path))
    assert "case_004.nii.gz of what to fill" in "".join(traceback.format_exception(caught.value))
    nibabel.save(nibabel.Nifti1Image(mask, source.affine), tmp_path / "case_004.nii.gz")
    follow("enhancement", run, "inference", **given, masks=str(tmp_path))
    before, after = source.get_fdata(), nibabel.load(tmp_path / "out" / "case_004.nii.gz").get_fdata()
    scale = before.max()
    assert np.allclose(after[mask == 0], before[mask == 0], atol=1e-4 * scale)
    assert not np.allclose(after[mask == 1], before[mask == 1], atol=1e-3 * scale)


def test_a_hole_is_filled_by_what_lies_around():
    image = np.full((9, 9, 9), 0.6, np.float32)
    image[3:5, 3:5, 3:5] = HOLE
    assert np.allclose(apply_filter("fill", image, 1.0), 0.6, atol=1e-5)
    batch = {"image": torch.rand(2, 2, 20, 20, 20), "spacing": torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])}
    torch.manual_seed(0)
    holes = BatchRandHolesd("image", diameter_mm_range=[8, 8], count=1)(batch)["image"] == HOLE
    assert torch.equal(holes[:, 0], holes[:, 1]) and 0 < holes[1].sum() < holes[0].sum() / 4
    assert holes[0, 0].sum() <= 4 / 3 * np.pi * 4**3 * 1.1
    with pytest.raises(TomokitError, match="count must be at least 1, got 0"):
        BatchRandHolesd("image", count=0)


def test_a_mask_must_mark_something_on_the_scans_grid(tmp_path):
    image = MetaTensor(torch.rand(1, 4, 4, 4), affine=torch.eye(4))
    cut = CutHolesd("image", tmp_path)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(TomokitError, match=r"a.nii.gz marks no voxel to be filled"):
        cut({"image": image, "case": "a"})
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 5), np.uint8), np.eye(4)), tmp_path / "b.nii.gz")
    with pytest.raises(TomokitError, match=r"does not lie on its source of \(4, 4, 4\)"):
        cut({"image": image, "case": "b"})
    assert CutHolesd("image")({"image": image})["image"] is image
