"""Pairs of scans: the change is the one that is told, and nothing else tells the pairs apart."""

import json
import math

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from tomokit import phantoms
from tomokit.datasets import read_entries, select_cases
from tomokit.errors import TomokitError
from tomokit.phantoms import followup
from tomokit.volumes import read_volume

AFFINE = np.array([[1.0, 0.1, 0, -20], [-0.1, 1.2, 0, 10], [0, 0, 0.9, 5], [0, 0, 0, 1]])  # oblique, not cubic


def make_structure(shape=(32, 40, 32)):
    """An elongated, bent structure in the middle of a grid."""
    x, y, z = (axis - (size - 1) / 2 for axis, size in zip(np.indices(shape), shape, strict=True))
    return ((x - 0.02 * y**2 + 1) / 6) ** 2 + (y / 12) ** 2 + (z / 5) ** 2 < 1


def make_texture(rng, shape):
    """Smooth texture with fine grain, alike everywhere."""
    return 100 + 20 * ndimage.gaussian_filter(rng.normal(size=shape), 2) * 8 + 4 * rng.normal(size=shape)


def numeric_jacobian(flow, points, step=1e-3):
    """The determinant of the flow's derivatives at points (3, N), by central differences."""
    columns = [
        (followup.flow_points(flow, points + step * axis) - followup.flow_points(flow, points - step * axis)) / 2 / step
        for axis in np.eye(3)[:, :, None]
    ]
    return np.linalg.det(np.stack(columns, axis=1).transpose(2, 0, 1))


def places_of(structure, affine=AFFINE):
    middle = (np.array(structure.shape) - 1) / 2
    return affine[:3, :3] @ (np.argwhere(structure) - middle).T


# The flow


@pytest.mark.parametrize("change", [-0.3, -0.03, 0.01, 0.03, 0.1, 0.3])
def test_the_structures_jacobian_is_the_wanted_change(change):
    structure = make_structure()
    first, second = followup.draw_warps(structure, AFFINE, change, np.random.default_rng(0), 0.03)
    assert second.growth / first.growth == pytest.approx(1 + change, abs=1e-9)
    for warp in (first, second):
        numeric = numeric_jacobian(warp.flow, places_of(structure)).mean()
        assert numeric == pytest.approx(warp.growth, abs=2e-3 * abs(change) + 1e-7)
    assert first.growth == pytest.approx(1 / second.growth, abs=1e-9)  # half of the change in each


def test_a_pair_without_change_keeps_the_volume_of_everything():
    structure = make_structure()
    everywhere = places_of(np.ones_like(structure))
    for seed in range(3):
        for warp in followup.draw_warps(structure, AFFINE, 0.0, np.random.default_rng(seed), 0.06):
            assert warp.growth == pytest.approx(1, abs=1e-12)
            assert np.abs(followup.divergence(warp.flow, everywhere)).max() < 1e-12
            assert np.abs(numeric_jacobian(warp.flow, everywhere) - 1).max() < 5e-3
            assert numeric_jacobian(warp.flow, places_of(structure)).mean() == pytest.approx(1, abs=5e-4)


def test_the_divergence_is_that_of_the_velocity():
    structure = make_structure()
    points, step = places_of(structure), 1e-4
    for change in (0.0, 0.1):
        flow = followup.draw_warps(structure, AFFINE, change, np.random.default_rng(1), 0.1)[1].flow
        numeric = sum(
            (followup.velocity(flow, points + step * axis[:, None]) - followup.velocity(flow, points))[row] / step
            for row, axis in enumerate(np.eye(3))
        )
        assert followup.divergence(flow, points) == pytest.approx(numeric, abs=1e-5)


@pytest.mark.parametrize("size", [0.01, 0.03, 0.1])
def test_an_unchanged_structure_moves_as_far_as_a_changed_one(size):
    structure = make_structure()
    changed = followup.draw_warps(structure, AFFINE, size, np.random.default_rng(4), 0.02)
    unchanged = followup.draw_warps(structure, AFFINE, 0.0, np.random.default_rng(4), size)
    speeds = [followup.speed(warp.flow, places_of(structure)) for warp in (*changed, *unchanged)]
    assert speeds == pytest.approx([speeds[1]] * 4, rel=3 * size)
    assert speeds[2] == pytest.approx(speeds[3], rel=1e-9) and speeds[2] == pytest.approx(speeds[1], rel=1e-6)


def test_a_flow_and_its_reverse_cancel():
    structure = make_structure()
    flow = followup.draw_warps(structure, AFFINE, 0.06, np.random.default_rng(2), 0.03)[1].flow
    back = flow._replace(slopes=-flow.slopes)
    points = places_of(structure)
    away = followup.flow_points(back, followup.flow_points(flow, points)) - points
    assert np.linalg.norm(away, axis=0).max() < 1e-4 < followup.speed(flow, points)


# The scans


@pytest.mark.parametrize("change", [-0.06, 0.0, 0.06, 0.2])
def test_the_resampled_structure_has_the_told_volume(change):
    """Measured on the voxels of the structure's own resampled, smooth map."""
    structure = make_structure((40, 48, 40))
    smooth = ndimage.gaussian_filter(structure.astype(float), 0.8)
    for seed in range(3):
        warps = followup.draw_warps(structure, np.eye(4), change, np.random.default_rng(seed), 0.06)
        first, second = (followup.warp_volume(smooth, np.eye(4), warp).sum(dtype=float) for warp in warps)
        assert second / first - 1 == pytest.approx(change, abs=0.003 + 0.05 * abs(change))


def test_a_still_warp_gives_the_volume_itself():
    volume = np.random.default_rng(0).normal(size=(9, 8, 7))
    still = followup.Flow(np.zeros((1, 3)), np.zeros((1, 3, 3)), np.eye(3))
    warped = followup.warp_volume(volume, AFFINE, followup.Warp(still, np.eye(3), np.zeros(3), 1.0))
    assert warped.dtype == np.float32 and np.allclose(warped, volume, atol=1e-5)
    shifted = followup.warp_volume(volume, np.eye(4), followup.Warp(still, np.eye(3), np.array([0, 1.0, 0]), 1.0))
    assert np.allclose(shifted[:, :-1], volume[:, 1:], atol=1e-5)


def test_both_scans_are_new_and_the_same_again():
    rng = np.random.default_rng(0)
    structure = make_structure((20, 24, 20))
    image = (50 + 100 * structure + rng.normal(size=structure.shape)).astype(np.float32)
    pairs = [phantoms.simulate_pair(image, structure, AFFINE, -0.03, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    for first, second, change in pairs:
        assert first.shape == second.shape == image.shape and first.dtype == second.dtype == np.float32
        assert change == pytest.approx(-0.03, abs=1e-9)
        assert not np.allclose(first, image, atol=0.5) and not np.allclose(first, second, atol=0.5)
    assert np.array_equal(pairs[0][0], pairs[1][0]) and np.array_equal(pairs[0][1], pairs[1][1])
    assert not np.array_equal(pairs[0][0], pairs[2][0])


def test_no_change_is_exactly_none():
    structure = make_structure((20, 24, 20))
    change = phantoms.simulate_pair(structure * 1.0, structure, np.eye(4), 0.0, np.random.default_rng(0))[2]
    assert change == 0 and math.copysign(1, change) == 1


def test_noise_of_the_two_scans_is_independent():
    image = np.zeros((24, 28, 24))
    image[8:16, 8:20, 8:16] = 100
    first, second, _ = phantoms.simulate_pair(image, image > 0, np.eye(4), 0.05, np.random.default_rng(0))
    grain = [(scan - ndimage.gaussian_filter(scan, 1))[:, :, :4].ravel() for scan in (first, second)]
    assert all(1.3 < np.std(values) < 3 for values in grain)  # 2 of a range of 100, and less what the filter keeps
    assert abs(np.corrcoef(*grain)[0, 1]) < 0.1


def sharpness(scan):
    """What resampling and noise could betray: fine grain, edges, and the finest differences along each axis."""
    grain = scan - ndimage.gaussian_filter(scan, 1)
    second = [np.abs(np.diff(scan, 2, axis)).mean() for axis in range(3)]
    return np.array([grain.std(), np.abs(ndimage.laplace(scan)).mean(), *second])


def test_a_control_that_sees_only_resampling_stays_at_chance():
    """Neither whether a pair has changed nor in which direction shows in the blur and noise of its scans."""
    shape = (16, 20, 16)
    structure = ((np.indices(shape).T - (np.array(shape) - 1) / 2) ** 2 / np.array([5, 7, 5]) ** 2).sum(-1).T < 1
    ratios, changes = [], []
    for index in range(300):
        rng = np.random.default_rng([11, index])
        change = (-0.03, 0.0, 0.03)[index % 3]
        first, second, _ = phantoms.simulate_pair(make_texture(rng, shape), structure, np.eye(4), change, rng)
        ratios.append(np.log(sharpness(second) / sharpness(first)))
        changes.append(change)
    ratios, changes = np.array(ratios), np.array(changes)
    for statistic in ratios.T:
        assert 0.4 <= roc_auc_score(changes != 0, np.abs(statistic)) <= 0.6
        assert 0.4 <= roc_auc_score(changes[changes != 0] > 0, statistic[changes != 0]) <= 0.6


def test_the_control_would_see_a_scan_that_was_resampled_twice():
    shape = (16, 20, 16)
    blurred = []
    for index in range(40):
        rng = np.random.default_rng([12, index])
        texture = make_texture(rng, shape)
        once, again, _ = phantoms.simulate_pair(texture, texture > 100, np.eye(4), 0.0, rng)
        twice = ndimage.shift(again, 0.4, order=1, mode="nearest") if index % 2 else again
        blurred.append(np.log(sharpness(twice) / sharpness(once))[0])
    assert roc_auc_score(np.arange(40) % 2, -np.array(blurred)) > 0.95


# Phantoms


@pytest.fixture(scope="module")
def cases():
    return [phantoms.make_followup_case(24, seed=0, index=index) for index in range(120)]


def test_classes_are_those_of_the_changes(cases):
    for case in cases:
        change = case.truth["change"]
        assert case.truth["class"] == {0: 0, -1: 1, 1: 2}[int(np.sign(change))]
        assert change == 0 or 0.029 < abs(change) < 0.201
        assert case.scans[0].shape == case.scans[1].shape == case.label.shape == (24, 24, 24)
        assert case.truth["volume_ml"] == pytest.approx(case.label.sum() / 1000)
    for first in range(0, 120, 4):
        assert sorted(case.truth["class"] for case in cases[first : first + 4]) == [0, 0, 1, 2]


def test_no_threshold_tells_the_order(cases):
    """More grey in one scan than in the other says little: there is more grey about, up to the edges."""

    def grey_share(scan):
        white = np.percentile(scan, 75)
        return np.mean((scan > 0.58 * white) & (scan < 0.86 * white))

    differences = np.array([grey_share(case.scans[1]) - grey_share(case.scans[0]) for case in cases])
    classes = np.array([case.truth["class"] for case in cases])
    changed = classes > 0
    assert roc_auc_score(classes[changed] == 2, differences[changed]) <= 0.8
    assert roc_auc_score(changed, np.abs(differences)) <= 0.8


def test_the_structure_itself_tells_the_order():
    """With the label as a window, its grey grows in the larger class: the change is there to be seen."""
    pairs = [phantoms.make_followup_case(32, seed=1, index=index, change=(0.2, 0.25)) for index in range(24)]
    gains = []
    for case in pairs:
        window = ndimage.binary_dilation(case.label > 0, iterations=2)
        shares = [np.mean(scan[window] < np.percentile(scan[window], (10, 90)).mean()) for scan in case.scans]
        gains.append(shares[1] - shares[0])
    classes = np.array([case.truth["class"] for case in pairs])
    changed = classes > 0
    assert roc_auc_score(classes[changed] == 2, np.array(gains)[changed]) > 0.8


def test_the_same_seed_and_index_give_the_same_bytes():
    first, again, other = (phantoms.make_followup_case(16, seed, 3) for seed in (5, 5, 6))
    for number in range(2):
        assert first.scans[number].tobytes() == again.scans[number].tobytes()
        assert not np.array_equal(first.scans[number], other.scans[number])
    assert first.truth == again.truth and np.array_equal(first.label, again.label)


def test_files_hold_both_scans_and_the_change(tmp_path):
    phantoms.make_followup_set(tmp_path, cases=8, test_cases=2, size=16, seed=3, change=(0.1, 0.2), progress=False)
    assert json.loads((tmp_path / "dataset.json").read_text())["modality"] == {"0": "MRI", "1": "MRI"}
    entries = read_entries(tmp_path)
    assert [entry["case"] for entry in entries] == [f"case_{index:03d}" for index in range(8)]
    for index, entry in enumerate(entries):
        case = phantoms.make_followup_case(16, seed=3, index=index, change=(0.1, 0.2))
        assert (entry["label"], entry["change"]) == (case.truth["class"], case.truth["change"])
        stored = [nib.load(path) for path in entry["image"]]
        arrays = [np.asanyarray(image.dataobj).astype(float) for image in stored]
        scale = 4000 / max(np.abs(scan).max() for scan in case.scans)
        for array, scan, image in zip(arrays, case.scans, stored, strict=True):
            assert np.abs(array - scan * scale).max() <= 0.51
            assert image.get_data_dtype() == np.int16 and np.allclose(image.affine, case.affine, atol=1e-4)
    parts = select_cases(tmp_path, "splits.json", 0)
    assert [entry["case"] for entry in parts["test"]] == ["case_006", "case_007"]


# Pairs of other data sets


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "abdomens"
    phantoms.make_segmentation_set(folder, "MRI", cases=6, test_cases=2, size=20, seed=1, progress=False)
    return folder


def test_a_labelled_set_becomes_pairs_on_the_same_sides(source, tmp_path):
    phantoms.simulate_followup_set(tmp_path, source, pairs=4, change=(0.05, 0.05), progress=False)
    before, after = read_entries(source), read_entries(tmp_path)
    assert [entry["case"] for entry in after] == [f"{entry['case']}_{pair}" for entry in before for pair in range(4)]
    assert [entry["patient"] for entry in after] == [entry["patient"] for entry in before for _ in range(4)]
    for number, entry in enumerate(before):
        own = after[4 * number : 4 * number + 4]
        assert sorted(pair["label"] for pair in own) == [0, 0, 1, 2]
        for pair in own:
            assert pair["change"] == pytest.approx({0: 0.0, 1: -0.05, 2: 0.05}[pair["label"]], abs=1e-8)
            for path in pair["image"]:
                scan, image = read_volume(path), read_volume(entry["image"])
                assert scan.array.shape == image.array.shape and np.allclose(scan.affine, image.affine, atol=1e-4)
    sides = {part: {e["patient"] for e in own} for part, own in select_cases(tmp_path, "splits.json", 0).items()}
    assert sides == {part: {e["patient"] for e in own} for part, own in select_cases(source, "splits.json", 0).items()}


def test_a_set_without_a_split_gets_none(source, tmp_path):
    content = json.loads((source / "dataset.json").read_text())
    for entry in content["training"] + content["test"]:
        entry.update({key: str(source / entry[key]) for key in ("image", "label")})
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "dataset.json").write_text(json.dumps(content | {"test": []}))
    phantoms.simulate_followup_set(tmp_path / "pairs", tmp_path / "plain", progress=False)
    assert len(read_entries(tmp_path / "pairs")) == 4 and not (tmp_path / "pairs" / "splits.json").exists()


@pytest.mark.mirror
def test_hippocampi_change_as_they_are_told_to(mirror):
    for number, path in enumerate(sorted((mirror / "hippocampus" / "imagesTr").glob("*.nii.gz"))[:4]):
        image, label = read_volume(path), read_volume(mirror / "hippocampus" / "labelsTr" / path.name)
        structure = label.array > 0
        rng = np.random.default_rng(number)
        warps = followup.draw_warps(structure, image.affine, -0.03, rng, 0.03)
        smooth = np.pad(ndimage.gaussian_filter(structure.astype(float), 0.8), 6)
        first, second = (followup.warp_volume(smooth, image.affine, warp).sum(dtype=float) for warp in warps)
        assert second / first - 1 == pytest.approx(-0.03, abs=0.005)
        scans = phantoms.simulate_pair(image.array, label.array, image.affine, -0.03, rng)[:2]
        assert all(scan.shape == image.array.shape and np.isfinite(scan).all() for scan in scans)


# Errors


@pytest.mark.parametrize(
    ("image", "label", "change", "strength", "message"),
    [
        (np.ones((4, 4)), np.ones((4, 4)), 0.1, 0.1, r"of one shape; got \(4, 4\) and \(4, 4\)"),
        (np.ones((4, 4, 4)), np.ones((4, 4, 5)), 0.1, 0.1, r"got \(4, 4, 4\) and \(4, 4, 5\)"),
        (np.ones((4, 4, 4)), np.zeros((4, 4, 4)), 0.1, 0.1, "the label marks no voxel"),
        (np.ones((4, 4, 4)), np.ones((4, 4, 4)), -0.4, 0.1, "got change -0.4 and strength 0.1"),
        (np.ones((4, 4, 4)), np.ones((4, 4, 4)), 0.0, 0.0, "got change 0.0 and strength 0.0"),
        (np.ones((4, 4, 4)), np.ones((4, 4, 4)), math.nan, 0.1, "got change nan"),
    ],
)
def test_impossible_pairs_are_named(image, label, change, strength, message):
    with pytest.raises(TomokitError, match=message):
        phantoms.simulate_pair(image, label, np.eye(4), change, np.random.default_rng(0), strength)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 15}, "at least 16 voxels, got 15"),
        ({"seed": -1}, "got seed -1"),
        ({"cases": 9, "test_cases": 8}, "got cases 9 and test_cases 8"),
        ({"change": (0.2, 0.1)}, "got 0.2 and 0.1"),
        ({"change": (0.0, 0.1)}, "got 0.0 and 0.1"),
        ({"change": (0.1, 0.5)}, "above 0 and up to 0.3; got 0.1 and 0.5"),
    ],
)
def test_impossible_arguments_are_named(arguments, message, tmp_path):
    with pytest.raises(TomokitError, match=message):
        phantoms.make_followup_set(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_what_can_not_become_pairs_is_named(source, tmp_path):
    with pytest.raises(TomokitError, match="pairs must be at least 1 for each case, got 0"):
        phantoms.simulate_followup_set(tmp_path / "none", source, pairs=0)
    with pytest.raises(TomokitError, match=f"{source} holds a data set already"):
        phantoms.simulate_followup_set(source, source)
    phantoms.make_classification_set(tmp_path / "classes", cases=3, test_cases=1, size=16, progress=False)
    with pytest.raises(TomokitError, match=r"case_000 has the label [01]; pairs are simulated from label maps"):
        phantoms.simulate_followup_set(tmp_path / "pairs", tmp_path / "classes", progress=False)
    assert not (tmp_path / "pairs" / "dataset.json").exists()


def test_a_case_without_the_structure_is_named(tmp_path, write_volume):
    image, label = (write_volume(f"{name}/a.nii.gz", np.zeros((6, 6, 6), np.uint8)) for name in ("images", "labels"))
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [{"image": image, "label": label}]}))
    with pytest.raises(TomokitError, match="a: the label marks no voxel"):
        phantoms.simulate_followup_set(tmp_path / "pairs", tmp_path, progress=False)
