"""Registrations: directions and millimetres against known truth, ITK's transform, folds, losses, pairs, whole runs."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import config, follow, train
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from monai.losses import BendingEnergyLoss, LocalNormalizedCrossCorrelationLoss
from monai.networks.blocks import DVF2DDF, Warp
from nibabel.affines import apply_affine
from scipy import ndimage

from tomokit import phantoms
from tomokit.engines import PreparePairs, attach_registration_files, attach_registration_scores, list_registrations
from tomokit.engines.registration import Pair, find_pair, write_registration
from tomokit.engines.registration_pictures import draw_registrations
from tomokit.errors import TomokitError
from tomokit.lint import lint_bundle
from tomokit.losses import (
    LocalCorrelation,
    MutualInformation,
    RegistrationLoss,
    join_target,
    one_hot,
    split_target,
)
from tomokit.losses.registration import bending_energy, overlap
from tomokit.metrics import jacobian_determinants, share_folded
from tomokit.networks import RegistrationPyramid
from tomokit.networks.registration import AffineHead, compose, integrate, join_affine, voxel_places, warp
from tomokit.registration import (
    AddImageMaskd,
    Likeness,
    MovedLabelsd,
    PairedScans,
    displacement_mm,
    field_transform,
    list_scans,
    move_volume,
    moved_labels,
    neighbouring_images,
    score_registration,
    summarise_registration,
)
from tomokit.registration.displacements import cover_grid, read_displacement
from tomokit.release import release_run
from tomokit.rivals.registration import register
from tomokit.volumes import Volume, itk_image, write_volume

monais = pytest.mark.filterwarnings("ignore:monai.networks.blocks.Warp", "ignore:Using a non-tuple sequence")


def smooth(*shape, sigma=2.0, seed=0, size=1.0):
    """Return smooth noise of a given largest value."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    noise = ndimage.gaussian_filter(noise, [0] * (len(shape) - 3) + [sigma] * 3)
    return (size * noise / np.abs(noise).max()).astype(np.float32)


def oblique(spacing=(1.0, 1.3, 2.0), turn=0.3, origin=(5.0, -7.0, 11.0), flip=1.0):
    """Return an affine of anisotropic voxels, turned about z and x."""
    c, s = np.cos(turn), np.sin(turn)
    about = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = about @ np.diag(np.array(spacing) * [flip, 1, 1])
    affine[:3, 3] = origin
    return affine


# ------------------------------------------------------------------------------------------ warps, velocities, network


@monais
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_a_warp_and_an_integration_are_monais(padding):
    image = torch.from_numpy(smooth(2, 3, 7, 9, 6))
    field = torch.from_numpy(smooth(2, 3, 7, 9, 6, seed=1, size=2.5))
    assert torch.allclose(warp(image, field, padding_mode=padding), Warp(padding_mode=padding)(image, field), atol=1e-5)
    assert torch.allclose(integrate(field, 5), DVF2DDF(5, padding_mode="border")(field), atol=1e-4)


def test_a_displacement_says_where_a_voxel_looks():
    image = torch.zeros(1, 1, 6, 8, 10)
    image[..., 4, 3, 2] = 1
    for axis, place in enumerate((4, 3, 2)):
        field = torch.zeros(1, 3, 6, 8, 10)
        field[:, axis] = 2
        moved = warp(image, field)
        wanted = [4, 3, 2]
        wanted[axis] = place - 2
        assert moved[0, 0][tuple(wanted)] == pytest.approx(1, abs=1e-5)


def test_following_a_velocity_back_undoes_it_and_nothing_folds():
    velocity = torch.from_numpy(smooth(1, 3, 24, 24, 24, sigma=3, size=4.0))
    there, back = integrate(velocity, 7), integrate(-velocity, 7)
    inner = compose(there, back)[..., 6:-6, 6:-6, 6:-6]
    assert inner.abs().max() < 0.15 < there.abs().max()
    assert share_folded(jacobian_determinants(there[0].numpy(), (1, 1, 1))) == 0
    raw = integrate(torch.from_numpy(smooth(1, 3, 24, 24, 24, sigma=1, size=6.0)), 0)
    assert share_folded(jacobian_determinants(raw[0].numpy(), (1, 1, 1))) > 0


def test_an_affine_map_is_about_the_centre_and_alike_at_every_scale():
    matrix = torch.tensor([[[0.1, 0.02, 0, 3.0], [0, -0.1, 0.05, -2.0], [0.03, 0, 0.2, 1.0]]])
    fine = join_affine(torch.zeros(1, 3, 16, 24, 8), matrix, 1.0)
    coarse = join_affine(torch.zeros(1, 3, 4, 6, 2), matrix, 4.0)
    middle = fine.reshape(1, 3, 4, 4, 6, 4, 2, 4).mean((3, 5, 7))
    assert torch.allclose(4 * coarse, middle, atol=1e-5)
    assert torch.allclose(fine.mean((2, 3, 4)), matrix[..., -1], atol=1e-5)


def test_the_affine_head_reads_the_linear_part_of_a_displacement():
    head = AffineHead(3, 4, 3)
    head.body, head.last = torch.nn.Identity(), torch.nn.Identity()
    truth = torch.tensor([[0.1, 0.02, 0, 3.0], [0, -0.1, 0.05, -2.0], [0.03, 0, 0.2, 1.0]])
    places = voxel_places(torch.zeros(1, 1, 6, 8, 4))
    field = torch.einsum("ij,j...->i...", truth[:, :3], places) + truth[:, 3, None, None, None]
    assert torch.allclose(head(field[None])[0], truth, atol=1e-5)


@pytest.mark.parametrize(("dims", "size"), [(3, (16, 24, 32)), (2, (24, 32))])
@pytest.mark.parametrize("affine", [True, False])
def test_the_network_starts_at_the_identity_and_takes_any_size(dims, size, affine):
    torch.manual_seed(0)
    network = RegistrationPyramid(dims, 2, [4, 6, 8], [4, 6, 8], affine=affine)
    found = network(torch.rand(2, 2, *size))
    assert found.shape == (2, dims, *size) and found.abs().max() < 0.5
    found.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 3}, "two scans of as many channels, got 3"),
        ({"hidden": [4]}, r"`hidden` must have 3 entries, as `filters` has, got \[4\]"),
    ],
)
def test_a_network_that_can_not_be_built_says_why(options, message):
    with pytest.raises(TomokitError, match=message):
        RegistrationPyramid(**({"spatial_dims": 3, "in_channels": 2, "hidden": [4, 4, 4]} | options))


def test_a_size_that_can_not_be_halved_is_told():
    with pytest.raises(TomokitError, match=r"a multiple of 8.*got \(16, 20, 16\); set `image_size`"):
        RegistrationPyramid(3, 2)(torch.rand(1, 2, 16, 20, 16))


def test_a_network_learns_to_find_a_known_affine_map():
    torch.manual_seed(0)
    moving = torch.from_numpy(smooth(1, 1, 16, 16, 16, sigma=2, size=0.5)) + 0.5
    matrix = torch.tensor([[[0.08, 0, 0, 1.5], [0, -0.06, 0.05, -1.0], [0, 0, 0.05, 0.5]]])
    truth = join_affine(torch.zeros(1, 3, 16, 16, 16), matrix, 1.0)
    fixed, mask = warp(moving, truth), torch.ones_like(moving)
    network, loss = RegistrationPyramid(3, 2, [8, 8, 8], [8, 8, 8]), RegistrationLoss(LocalCorrelation(5), 1.0)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    image, target = torch.cat([fixed, moving], 1), torch.cat([fixed, mask, moving, mask], 1)
    inner = (..., slice(4, -4), slice(4, -4), slice(4, -4))
    for _ in range(40):
        optimizer.zero_grad()
        loss(network(image), target).backward()
        optimizer.step()
    found = network(image).detach()
    assert (found - truth)[inner].norm(dim=1).mean() < 0.35 * truth[inner].norm(dim=1).mean()


# ------------------------------------------------------------------------------------------------------------ losses


@monais
def test_the_local_correlation_is_monais_where_all_is_image():
    one, two = (torch.from_numpy(smooth(1, 1, 18, 16, 20, seed=seed)) for seed in (0, 1))
    inner = (..., slice(3, -3), slice(3, -3), slice(3, -3))
    mask = torch.zeros_like(one)
    mask[inner] = 1
    whole = LocalNormalizedCrossCorrelationLoss(kernel_size=7, reduction="none", smooth_dr=1e-12)(one, two)
    ours = LocalCorrelation(7)
    # MONAI's window reaches over the border, so what is compared lies within
    assert float(ours(one, one * 2 + 3, mask)) == pytest.approx(0, abs=0.05)
    far = (..., slice(6, -6), slice(6, -6), slice(6, -6))
    middle = torch.zeros_like(one)
    middle[far] = 1
    kept, ours.window = ours.window, 7
    assert kept == 7
    everywhere = 1 - ours(one[inner], two[inner], torch.ones_like(one[inner]))
    assert 0 < float(everywhere) < 1 and float(-whole[far].mean()) == pytest.approx(float(everywhere), abs=0.15)


def test_what_lies_outside_the_mask_does_not_count():
    one, two = (torch.from_numpy(smooth(1, 1, 12, 12, 12, seed=seed)) for seed in (0, 1))
    mask = torch.zeros_like(one)
    mask[..., 3:9, 3:9, 3:9] = 1
    for loss in (LocalCorrelation(5), MutualInformation()):
        changed = torch.where(mask > 0, two, torch.rand_like(two))
        assert float(loss(one, changed, mask)) == pytest.approx(float(loss(one, two, mask)), abs=1e-5)


def test_mutual_information_sees_through_another_contrast():
    image = torch.from_numpy(smooth(1, 1, 16, 16, 16, sigma=2, size=0.5)) + 0.5
    mask, loss = torch.ones_like(image), MutualInformation(most=2000)
    inverse = 1 - image
    assert loss(inverse, image, mask) < loss(inverse.roll(4, 2), image, mask) - 0.1
    assert float(loss(image, image, mask * 0)) == 0


@monais
def test_bending_is_that_of_monai_and_none_of_an_affine_map():
    field = torch.from_numpy(smooth(1, 3, 10, 12, 14, size=2))
    ours = float(bending_energy(field))
    pure = sum(field.diff(n=2, dim=axis).square().mean() for axis in (2, 3, 4))
    assert float(pure) / 3 < ours
    assert ours == pytest.approx(float(BendingEnergyLoss()(field)) / 1, rel=2.0)
    affine = join_affine(torch.zeros(1, 3, 10, 12, 14), torch.rand(1, 3, 4), 1.0)
    assert float(bending_energy(affine)) == pytest.approx(0, abs=1e-8)


def test_overlap_is_dice_and_leaves_out_what_neither_has():
    one = torch.zeros(1, 2, 4, 4, 4)
    two = one.clone()
    one[0, 0, :2] = 1
    two[0, 0, 1:3] = 1
    assert float(overlap(one, two)) == pytest.approx(0.5)


def test_the_loss_is_least_where_scans_and_labels_meet():
    moving = torch.from_numpy(smooth(1, 1, 16, 16, 16, sigma=2, size=0.5)) + 0.5
    label = (moving > 0.6).float()
    field = torch.zeros(1, 3, 16, 16, 16)
    field[:, 0] = 2
    fixed, fixed_label, mask = warp(moving, field), warp(label, field, mode="nearest"), torch.ones_like(moving)
    target = torch.cat([fixed, mask, fixed_label, moving, mask, label], 1)
    for weights in ({}, {"label_weight": 1.0}):
        loss = RegistrationLoss(LocalCorrelation(5), structures=[1], **weights)
        assert float(loss(field, target)) < 0.15 < float(loss(0 * field, target)) - 0.2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalCorrelation(4), "`window` must be an odd number of voxels, 3 or more, got 4"),
        (lambda: RegistrationLoss(LocalCorrelation(), label_weight=1.0), "`label_weight` is 1.0, but `structures`"),
        (lambda: split_target(torch.zeros(1, 2, 4, 4, 4), False), r"image, mask of both scans, got \(1, 2, 4, 4, 4\)"),
        (lambda: one_hot(None, [1]), r"structures \[1\] need label maps of the pair, got None"),
    ],
)
def test_a_loss_that_can_not_be_computed_says_why(make, message):
    with pytest.raises(TomokitError, match=message):
        make()


# ------------------------------------------------------------------------------------------------------------- pairs


ENTRIES = [{"case": name, "patient": f"p{name}", "image": f"{name}.nii", "label": f"l{name}.nii"} for name in "abcd"]
TWO = [{"case": name, "patient": name, "image": [f"{name}_0000.nii", f"{name}_0001.nii"]} for name in "ab"]


def test_scans_of_a_set_are_paired_with_the_next_or_with_others():
    scans = list_scans(ENTRIES)
    assert scans == ENTRIES
    behind = [(pair["case"], pair["moving_case"]) for pair in PairedScans(scans, "next")]
    assert behind == [("a", "b"), ("b", "c"), ("c", "d")]
    assert len(PairedScans(scans, "next", most=2)) == 2
    torch.manual_seed(0)
    drawn = PairedScans(scans, "random")
    partners = {drawn[0]["moving_case"] for _ in range(40)}
    assert len(drawn) == 4 and partners == {"b", "c", "d"}
    pair = PairedScans(scans, "next")[1]
    assert pair == {
        "case": "b",
        "patient": "pb",
        "fixed_image": "b.nii",
        "fixed_label": "lb.nii",
        "moving_case": "c",
        "moving_image": "c.nii",
        "moving_label": "lc.nii",
    }
    assert neighbouring_images(ENTRIES)[0] == ["a.nii", "b.nii"] and len(neighbouring_images(ENTRIES)) == 3


def test_the_two_scans_of_an_entry_stay_a_pair():
    scans = list_scans(TWO, labelled=False)
    pairs = PairedScans(scans, "random")
    assert len(pairs) == 2 and [pairs[1][f"{side}_image"] for side in ("fixed", "moving")] == TWO[1]["image"]
    assert neighbouring_images(TWO) == [entry["image"] for entry in TWO]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: list_scans([*ENTRIES, *TWO]), "a lists two scans, a is one; give all entries one scan"),
        (lambda: list_scans([{**TWO[0], "image": ["x", "y", "z"]}], False), "a lists 3 scans"),
        (lambda: list_scans([{"case": "a", "image": "a.nii"}]), "a has no label map"),
        (lambda: list_scans(TWO), "b has no label map"),
        (lambda: PairedScans(ENTRIES, "nearest"), "`partner` must be one of random, next, got 'nearest'"),
        (lambda: PairedScans(ENTRIES[:1]), r"a has no other scan to be registered with: .* need two"),
    ],
)
def test_scans_that_make_no_pairs_are_told(make, message):
    with pytest.raises(TomokitError, match=message):
        make()


def test_a_batch_holds_both_scans_and_augments_each_by_itself():
    item = {f"{side}_{part}": torch.rand(3, 1, 4, 4, 4) for side in ("fixed", "moving") for part in ("image", "mask")}
    image, target = PreparePairs()(item | {"case": ["a", "b", "c"]})
    fixed, moving = split_target(target, labelled=False)
    assert torch.equal(image, torch.cat([item["fixed_image"], item["moving_image"]], 1))
    assert torch.equal(fixed.mask, item["fixed_mask"]) and torch.equal(moving.image, item["moving_image"])

    def add(batch):
        return {**batch, "image": batch["image"] + torch.arange(6).reshape(6, 1, 1, 1, 1)}

    changed, _ = PreparePairs(scans=add, pairs=lambda data: {"pair": data["pair"].flip(2)})(item)
    assert torch.allclose(changed[:, :1], item["fixed_image"].flip(2) + torch.arange(3).reshape(3, 1, 1, 1, 1))
    assert torch.allclose(changed[:, 1:], item["moving_image"].flip(2) + torch.arange(3, 6).reshape(3, 1, 1, 1, 1))
    labelled = {"image": torch.rand(4, 1, 2, 2), "mask": torch.rand(4, 1, 2, 2), "label": torch.rand(4, 1, 2, 2)}
    assert join_target(labelled).shape == (2, 6, 2, 2)


# --------------------------------------------------------------------------------------------- millimetres and files


@pytest.mark.parametrize("axis", range(3))
def test_a_shift_by_known_millimetres_has_its_direction(axis):
    """What lies 6 mm further along a world axis in the moving scan is found there."""
    centre = np.array([20.0, 18.0, 22.0])
    truth = np.zeros(3)
    truth[axis] = 6.0
    grid = np.diag([2.0, 2.0, 2.0, 1.0])
    field = np.zeros((3, 20, 20, 20), np.float32)
    field[axis] = 3  # voxels of 2 mm
    source, shape = oblique(), (31, 27, 15)
    found = displacement_mm(field, grid, grid, source, shape)
    assert np.allclose(found, truth[:, None, None, None], atol=1e-4)
    image = itk_image(np.zeros((4, 4, 4), np.float32), grid)
    assert image.GetDimension() == 3
    moved = np.array(
        field_transform(displacement_mm(field, grid, grid, grid, (20, 20, 20)), grid).TransformPoint(
            (centre * [-1, -1, 1]).tolist()
        )
    )
    assert np.allclose(moved * [-1, -1, 1], centre + truth, atol=1e-4)


def make_pair(tmp_path: Path) -> tuple[Pair, np.ndarray, Volume, Volume]:
    """Return two volumes on oblique, anisotropic, odd grids, and a displacement on a network's grid."""
    fixed = Volume(smooth(31, 27, 15, seed=3) * 50 + 50, oblique(flip=-1.0))
    other = oblique((1.4, 1.1, 1.7), turn=-0.2, origin=(-30.0, 12.0, 3.0))
    moving = Volume(smooth(25, 33, 19, seed=4) * 50 + 50, other)
    files = (str(tmp_path / "fixed.nii.gz"), str(tmp_path / "moving.nii.gz"))
    grids = []
    for path, volume in zip(files, (fixed, moving), strict=True):
        write_volume(path, volume.array, volume.affine)
        own = volume.affine[:3, :3]  # the network's grids lie along each scan's own axes, in RAS, their centres alike
        grid = np.eye(4)
        grid[:3, :3] = 2.0 * own / np.linalg.norm(own, axis=0) * np.sign(np.diag(own))
        grid[:3, 3] = apply_affine(volume.affine, (np.array(volume.array.shape) - 1) / 2) - grid[:3, :3] @ ([7.5] * 3)
        grids.append(grid)
    voxels = smooth(3, 16, 16, 16, sigma=3, size=2.0, seed=5)
    names = {"case": "case", "moving": "other", "patient": "case"}
    pair = Pair(names, files, None, (grids[0], grids[1]), (16, 16, 16), fixed.array.shape, fixed.affine)
    return pair, voxels, fixed, moving


def test_simpleitk_moves_the_volume_to_the_same_place(tmp_path):
    import SimpleITK as sitk

    pair, voxels, fixed, _ = make_pair(tmp_path)
    write_registration(pair, voxels, tmp_path / "out")
    read = [sitk.ReadImage(path, sitk.sitkFloat32) for path in pair.files]
    transform = sitk.ReadTransform(str(tmp_path / "out" / "case_transform.h5"))
    ours = nibabel.load(tmp_path / "out" / "case_moved.nii.gz")
    assert np.allclose(ours.affine, fixed.affine, atol=1e-4) and ours.shape == fixed.array.shape
    seen = np.asarray(ours.dataobj)
    field = sitk.ReadImage(str(tmp_path / "out" / "case_displacement.nii.gz"), sitk.sitkVectorFloat64)
    vectors = nibabel.load(tmp_path / "out" / "case_displacement.nii.gz")
    assert vectors.shape == (*fixed.array.shape, 1, 3) and vectors.header.get_intent()[0] == "vector"
    for way in (transform, sitk.DisplacementFieldTransform(field)):
        itk = sitk.GetArrayFromImage(sitk.Resample(read[1], read[0], way, sitk.sitkLinear, 0.0)).T
        both = (itk != 0) & (seen != 0)
        assert both.mean() > 0.3 and ((itk != 0) == (seen != 0)).mean() > 0.99
        assert np.abs(itk - seen)[both].max() < 0.05  # of values from 0 to 100


def test_the_displacement_leads_to_the_point_that_the_network_means(tmp_path):
    pair, voxels, fixed, moving = make_pair(tmp_path)
    field = pair.field(voxels)
    node = np.array([6, 9, 7])
    world = apply_affine(pair.grids[0], node)
    truth = apply_affine(pair.grids[1], node + voxels[(slice(None), *node)])
    index = np.linalg.inv(fixed.affine) @ [*world, 1]
    found = [ndimage.map_coordinates(own, index[:3, None], order=1)[0] for own in field]
    assert np.allclose(world + found, truth, atol=0.15)
    assert np.allclose(pair.still(), pair.field(0 * voxels))
    middle = tuple(size // 2 for size in pair.shape)
    centres = [apply_affine(own.affine, (np.array(own.array.shape) - 1) / 2) for own in (fixed, moving)]
    assert np.allclose(pair.still()[(slice(None), *middle)], centres[1] - centres[0], atol=2.5)


def test_a_transform_covers_the_whole_fixed_scan():
    shape, affine = cover_grid((8, 8, 8), np.diag([2.0, 2, 2, 1]), (31, 9, 9), np.eye(4) * [[1], [1], [1], [1]])
    assert shape == (16, 8, 8) and np.allclose(affine, np.diag([2.0, 2, 2, 1]))
    low = np.eye(4)
    low[:3, 3] = [-3, 0, 0]
    shape, affine = cover_grid((8, 8, 8), np.diag([2.0, 2, 2, 1]), (9, 9, 9), low)
    assert shape == (10, 8, 8) and affine[0, 3] == -4


def test_labels_are_moved_as_volumes_are():
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[3:7, 4:8, 5:9] = 2
    field = np.zeros((3, 12, 12, 12), np.float32)
    field[0] = 2
    moved = moved_labels(labels, [1, 2], np.eye(4), field, np.eye(4))
    assert np.array_equal(moved, np.roll(labels, -2, 0)) and moved.dtype == np.uint8
    volume = move_volume(labels, np.eye(4), field, np.eye(4), outside=-1)
    assert np.array_equal(volume[:-2], labels[2:]) and (volume[-2:] == -1).all()


def test_a_result_is_not_written_beside_its_source(tmp_path):
    scans = [{"image": str(tmp_path / "a.nii.gz")}]
    evaluator = SimpleNamespace(data_loader=SimpleNamespace(dataset=SimpleNamespace(data=SimpleNamespace(data=scans))))
    with pytest.raises(TomokitError, match=r"holds the input a.nii.gz; give another `output_dir`"):
        attach_registration_files(evaluator, tmp_path)


# ------------------------------------------------------------------------------------------------------------ scores


def test_scores_tell_overlap_folds_and_bending():
    affine = oblique()
    fixed = np.zeros((10, 12, 14), np.uint8)
    fixed[2:6, 3:7, 4:9] = 1
    still = np.zeros((3, 10, 12, 14), np.float32)
    scores = score_registration(still, affine, (fixed, np.roll(fixed, 1, 0)), affine, {1: "one", 2: "two"})
    assert scores["dice_one"] == pytest.approx(0.75) == scores["dice"] and scores["dice_two"] is None
    assert scores["folds"] == 0 and scores["sdlogj"] == pytest.approx(0, abs=1e-6)
    rows = [{"case": "a", "patient": "a", **scores, "seconds": 0.1}]
    told = summarise_registration(rows)
    assert told["summary"]["dice"]["mean"] == pytest.approx(0.75) and told["per_class"]["two"]["dice"]["mean"] is None
    folded = still.copy()
    folded[:, 5] = -3 * affine[:3, 0, None, None]
    assert score_registration(folded, affine)["folds"] > 0
    with pytest.raises(TomokitError, match="no registered cases to summarise, got 0 rows"):
        summarise_registration([])


def test_validation_moves_labels_and_tells_likeness():
    image = torch.from_numpy(smooth(1, 12, 12, 12, size=0.5)) + 0.5
    label = torch.zeros_like(image)
    label[:, 3:6] = 4
    field = torch.zeros(3, 12, 12, 12)
    field[0] = 2
    mask = torch.ones_like(image)
    target = torch.cat([image, mask, label, image, mask, label])
    moved = MovedLabelsd("pred", [4])({"pred": field, "label": target})
    assert torch.equal(moved["label"], (label == 4).float())
    assert torch.equal(moved["pred"][:, 1:4], moved["label"][:, 3:6])
    plain, metric = torch.cat([image, mask, image, mask])[None], Likeness(5)
    metric(field[None] * 0, plain)
    assert metric.aggregate() == pytest.approx(1, abs=0.05)
    metric.reset()
    metric(field[None] * 2, plain)
    assert metric.aggregate() < 0.5


def test_a_mask_tells_padding_from_image():
    data = AddImageMaskd("image")({"image": torch.rand(2, 3, 4, 5)})
    assert data["mask"].shape == (1, 3, 4, 5) and (data["mask"] == 1).all()


def test_a_picture_of_nothing_is_refused(tmp_path):
    with pytest.raises(TomokitError, match=r"nothing to draw in .*got an empty list"):
        draw_registrations([], tmp_path / "x.png")


# ------------------------------------------------------------------------------------------------------------ rivals


@pytest.mark.parametrize("method", ["affine", "bspline", "demons"])
def test_a_rival_finds_a_known_shift(method):
    moving = Volume(smooth(20, 18, 16, sigma=3, seed=1) * 50 + 50, np.diag([1.0, 1.2, 1.1, 1]))
    truth = np.zeros((3, 20, 18, 16), np.float32)
    truth[0] = 2.0
    fixed = Volume(move_volume(moving.array, moving.affine, truth, moving.affine, outside=50), moving.affine)
    found = register(fixed, moving, method)
    inner = found[:, 5:-5, 5:-5, 5:-5]
    assert np.abs(inner.mean((1, 2, 3)) - [2, 0, 0]).max() < 0.5
    assert np.array_equal(found, register(fixed, moving, method))


def test_an_unknown_rival_is_told():
    volume = Volume(np.zeros((4, 4, 4)), np.eye(4))
    with pytest.raises(TomokitError, match="must be one of affine, bspline, demons, got 'magic'"):
        register(volume, volume, "magic")
    with pytest.raises(TomokitError, match="`rivals` must be of none, affine, bspline, demons, got 'magic'"):
        attach_registration_scores(None, "run", "best", {"test": [1]}, None, [], ["magic"])


def test_a_transform_is_read_as_it_was_made():
    affine = oblique()
    field = smooth(3, 9, 8, 7, size=3)
    assert np.allclose(read_displacement(field_transform(field, affine), (9, 8, 7), affine), field, atol=1e-4)


# -------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "bodies"
    phantoms.make_segmentation_set(folder, "MRI", cases=14, test_cases=2, size=24, progress=False)
    return folder


SMALL = {"image_size": [16, 16, 16], "network_def::filters": [4, 4, 4], "network_def::hidden": [4, 4, 4]}


def test_labels_help_where_a_layer_says_so_and_new_pairs_get_their_files(data, tmp_path):
    run = train("registration", tmp_path / "run", "modes/assisted", dataset_dir=str(data), **SMALL)
    follow("registration", run, "evaluate", rivals=["none"])
    measures = json.loads((run / "metrics.json").read_text())
    assert set(measures["summary"]) == {"dice", "folds", "sdlogj", "seconds"}
    assert measures["summary"]["folds"]["mean"] == 0 and set(measures["per_class"]) == {"liver", "spleen"}
    assert set(measures["rivals"]) == {"none"} and (run / "overlay.png").stat().st_size > 10_000
    images = sorted((data / "imagesTs").iterdir())
    follow("registration", run, "inference", input=[[str(path) for path in images]])
    written = sorted(path.name for path in (run / "inference").iterdir())
    stem = images[0].name.removesuffix(".nii.gz")
    assert written == [f"{stem}_displacement.nii.gz", f"{stem}_moved.nii.gz", f"{stem}_transform.h5"]


def test_a_set_without_label_maps_is_registered_by_likeness(data, tmp_path):
    content = json.loads((data / "dataset.json").read_text())
    own = [{"image": f"{data}/{entry['image']}", "patient": entry["patient"]} for entry in content["training"]]
    bare = {"name": "bare", "modality": content["modality"], "training": own}
    (tmp_path / "dataset.json").write_text(json.dumps(bare))
    layers = ("modes/unlabelled", "modes/modalities")
    run = train("registration", tmp_path / "run", *layers, dataset_dir=str(tmp_path), **SMALL)
    record = json.loads((run / "validation.json").read_text())
    metadata = json.loads((run / "configs" / "metadata.json").read_text())["network_data_format"]
    assert (metadata["inputs"]["image"]["num_channels"], metadata["outputs"]["pred"]["num_channels"]) == (2, 3)
    assert record["metric"] == "val_likeness" and 0 <= record["best"]["metric"] <= 1
    follow("registration", run, "evaluate", rivals=[])
    assert set(json.loads((run / "metrics.json").read_text())["summary"]) == {"folds", "sdlogj", "seconds"}


def test_two_scans_of_a_case_on_two_grids_are_a_pair(tmp_path):
    entries = []
    for number in range(10):
        images = []
        for role, affine in enumerate((oblique(), oblique((2, 2, 2), turn=-0.1))):
            path = tmp_path / f"case{number}_{role:04d}.nii.gz"
            write_volume(path, smooth(15 + role, 13, 11, seed=number) * 50 + 50, affine)
            images.append(path.name)
        entries.append({"image": images, "patient": str(number)})
    content = {"name": "two", "modality": {"0": "T1", "1": "T2"}, "training": entries}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    options = {"dataset_dir": str(tmp_path), "modality": ["T1", "T2"], "spacing": [1.5, 1.5, 1.5], **SMALL}
    run = train("registration", tmp_path / "run", "modes/unlabelled", "modes/modalities", **options)
    follow("registration", run, "evaluate", rivals=[])
    follow("registration", run, "inference")
    assert len(list((run / "inference").glob("*_moved.nii.gz"))) == 2


def test_a_release_registers_as_the_run_does(data, tmp_path, monkeypatch):
    run = train("registration", tmp_path / "run", dataset_dir=str(data), **SMALL, epochs=1)
    follow("registration", run, "evaluate", rivals=[])
    release = release_run("registration", run, tmp_path / "moved.zip")
    assert "models/model.ts" in release.files or any(line.startswith("model.ts: ") for line in release.left_out)
    shutil.unpack_archive(release.path, tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty")
    given = [[str(path) for path in sorted((data / "imagesTs").iterdir())]]
    follow("registration", run, "inference", input=given)
    monai.bundle.run(config_file="moved/configs/inference.json", bundle_root="moved", input=given, output_dir="out")
    names = {path.name for path in (run / "inference").iterdir()}
    assert names == {path.name for path in Path("out").iterdir()} and len(names) == 3
    folders = (run / "inference", Path("out"))
    one, two = (nibabel.load(next(folder.glob("*_moved*"))).get_fdata() for folder in folders)
    assert np.array_equal(one, two)
    described = json.loads(Path("moved/configs/metadata.json").read_text())
    assert described["task"] == "Registration of MRI"
    assert described["network_data_format"]["inputs"]["image"]["channel_def"]["1"] == "moving scan, MRI"
    for stage in ("train", "evaluate", "inference"):
        assert lint_bundle([Path(f"moved/configs/{stage}.json")]) == []


def test_a_config_builds_the_pairs_it_says(data):
    workflow = ConfigWorkflow(config("registration", "train"), init_id="no", dataset_dir=str(data), **SMALL)
    workflow.initialize()
    pair = workflow.parser.get_parsed_content("train::dataset")[0]
    assert pair["fixed_image"].shape == pair["moving_label"].shape == (1, 16, 16, 16)
    assert not isinstance(pair["fixed_image"], MetaTensor) and pair["case"] != pair["moving_case"]
    checked = workflow.parser.get_parsed_content("validate::dataset")[0]
    assert find_pair(checked).network_shape == (16, 16, 16)
    images = [str(next(data.glob(f"images{part}/*"))) for part in ("Tr", "Ts")]
    assert list_registrations([images])[1] == {**list_registrations(images)[0], "image": images[1], "role": "moving"}
