import math

import numpy as np
import pytest
import torch
from monai.data import Dataset, MetaTensor
from monai.inferers import SimpleInferer
from monai.transforms import Orientation, Spacing
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from tomokit.anomalies import (
    CLEAN,
    KINDS,
    TestAnomalies,
    VoxelPrecision,
    alter,
    choose_threshold,
    draw_sphere,
    read_threshold,
    separate,
    summarise_anomalies,
    volume_score,
    voxel_precision,
)
from tomokit.augmentation import BatchRandForeignPatchesd
from tomokit.augmentation.foreign import draw_rotation, mean_of_neighbours
from tomokit.errors import TomokitError
from tomokit.files import write_json
from tomokit.inference import PatchScoreInferer, ReconstructionInferer
from tomokit.inference.anomalies import smooth
from tomokit.inference.grids import interpolate_back
from tomokit.losses import VariationalLoss
from tomokit.networks import VolumeVAE
from tomokit.rivals.anomalies import fit_pca, pca_scores, score_pca

SHAPE = (16, 18, 14)


def volumes(count: int, shape=SHAPE, seed: int = 0) -> np.ndarray:
    """Return smooth volumes (count, 1, X, Y, Z) from 0 to 1."""
    noise = np.random.default_rng(seed).normal(size=(count, *shape))
    smoothed = np.stack([gaussian_filter(volume, 2) for volume in noise])
    spread = np.ptp(smoothed, (1, 2, 3), keepdims=True)
    return ((smoothed - smoothed.min((1, 2, 3), keepdims=True)) / spread)[:, None].astype(np.float32)


def normal_set(count: int, patients=None) -> Dataset:
    names = patients or [f"patient_{number}" for number in range(count)]
    return Dataset(
        [
            {"case": f"case_{number}", "patient": name, "image": torch.from_numpy(image)}
            for number, (name, image) in enumerate(zip(names, volumes(count), strict=True))
        ]
    )


# ---------------------------------------------------------------------------------------- foreign patches


def patches(**options) -> BatchRandForeignPatchesd:
    return BatchRandForeignPatchesd("image", "label", **options)


def batch(count: int = 3, shape=SHAPE) -> torch.Tensor:
    return torch.from_numpy(volumes(count, shape))


def test_an_image_changes_only_where_the_label_tells_of_a_patch():
    torch.manual_seed(0)
    image = batch()
    found = patches(radius_range=(2, 4))({"image": image})
    outside = found["label"] == 0
    assert torch.equal(found["image"][outside], image[outside])
    assert (~outside).flatten(1).any(1).all()
    assert found["label"].min() >= 0 and found["label"].max() < 1


def test_a_patch_is_the_blend_of_two_cases_and_the_label_says_how_visible_it_is():
    """Of two constant cases the blend shows the weight itself."""
    torch.manual_seed(1)
    image = torch.stack([torch.zeros(1, *SHAPE), torch.ones(1, *SHAPE)])
    found = patches(visible=0.2)({"image": image})
    weight = torch.stack([found["image"][0], 1 - found["image"][1]])
    assert (weight.amax((1, 2, 3, 4)) >= 0.2).all() and weight.max() <= 0.6 + 1e-6
    expected = 1 - torch.exp(-mean_of_neighbours(weight) / 0.2)
    inside = weight > 1e-6
    torch.testing.assert_close(found["label"][inside], expected[inside])
    assert (found["label"][weight == 0] == 0).all()


def test_no_constant_is_added():
    """What a constant case gets from one like it is nothing, as the label says: bright needs another anatomy."""
    torch.manual_seed(2)
    image = torch.full((2, 1, *SHAPE), 0.4)
    found = patches()({"image": image})
    torch.testing.assert_close(found["image"], image)
    assert found["label"].max() < 1e-5


def test_patches_stay_within_the_range_of_both_cases():
    torch.manual_seed(3)
    found = patches(contrast_range=(-5, 5), detail_range=(0, 9))({"image": batch(4)})["image"]
    assert found.min() >= -1e-5 and found.max() <= 1 + 1e-5


def test_patches_with_a_seed_are_always_the_same_and_leave_the_generator_alone():
    image = batch()
    torch.manual_seed(4)
    state = torch.get_rng_state()
    first, second = (patches(seed=7)({"image": image}) for _ in range(2))
    assert torch.equal(first["image"], second["image"]) and torch.equal(first["label"], second["label"])
    assert torch.equal(state, torch.get_rng_state())


def test_without_events_nothing_changes():
    image = batch()
    found = patches(prob=0.0)({"image": image})
    assert torch.equal(found["image"], image) and found["label"].sum() == 0


def test_patches_serve_slices_several_channels_and_a_single_case():
    torch.manual_seed(5)
    found = patches(flip_axes=(0, 1, 2))({"image": torch.rand(2, 3, 20, 24)})
    assert found["image"].shape == (2, 3, 20, 24) and found["label"].shape == (2, 1, 20, 24)
    alone = patches()({"image": batch(1)})
    assert not torch.equal(alone["image"], batch(1))


def test_a_rotation_is_one():
    for axes in (2, 3):
        turn = draw_rotation(axes)
        torch.testing.assert_close(turn @ turn.T, torch.eye(axes), atol=1e-6, rtol=0)
        assert torch.linalg.det(turn) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prob": 2}, "prob must lie in 0–1, got 2"),
        ({"most": 0}, "most must be a number of patches of at least 1, got 0"),
        ({"weight_range": (0.5, 2)}, r"weight_range must be two numbers from 0 to 1, .*got \(0.5, 2\)"),
        ({"radius_range": (0.1, 2)}, r"radius_range must be two numbers from 0.5, .*got \(0.1, 2\)"),
        ({"edge_range": (0.0, 2)}, r"edge_range .*got \(0.0, 2\)"),
        ({"scale_range": (2, 1)}, r"scale_range .*got \(2, 1\)"),
        ({"contrast_range": (2,)}, r"contrast_range .*got \(2,\)"),
        ({"detail_range": (0, math.inf)}, r"detail_range .*got \(0, inf\)"),
        ({"visible": 0}, "visible must be above 0, got 0"),
        ({"flip_axes": [3]}, r"flip_axes must be a list of 0, 1 and 2, or empty, got \[3\]"),
    ],
)
def test_impossible_patches_are_refused(options, message):
    with pytest.raises(TomokitError, match=message):
        patches(**options)


# ---------------------------------------------------------------------------------------- test anomalies


def test_a_sphere_has_the_volume_of_its_radius_and_lies_within():
    for seed in range(20):
        mask = draw_sphere((32, 40, 24), np.random.default_rng(seed))
        assert 4 / 3 * math.pi * 2.8**3 < mask.sum() < 4 / 3 * math.pi * 5.2**3
        for axis in range(3):
            ends = np.moveaxis(mask, axis, 0)
            assert not ends[0].any() and not ends[-1].any()


def test_the_kinds_are_what_they_are_called():
    image, other = volumes(2)
    found = {kind: alter(image, kind, other, np.random.default_rng(3)) for kind in (*KINDS, CLEAN)}
    mask = found["bright"].mask
    for kind in KINDS:
        assert np.array_equal(found[kind].mask, mask)  # one generator, one place
        assert np.array_equal(found[kind].image[:, ~mask], image[:, ~mask])
    inside = image[:, mask]
    assert np.allclose(found["bright"].image[:, mask], np.minimum(inside + 0.35, 1))
    assert np.allclose(found["dark"].image[:, mask], np.maximum(inside - 0.35, 0))
    assert np.allclose(found["foreign"].image[:, mask], 0.2 * inside + 0.8 * other[:, ::-1][:, mask])
    shuffled = found["shuffled"].image[:, mask]
    assert not np.array_equal(shuffled, inside) and np.array_equal(np.sort(shuffled), np.sort(inside))
    assert np.array_equal(found[CLEAN].image, image) and not found[CLEAN].mask.any()


def test_voxels_of_several_channels_are_shuffled_together():
    image = np.concatenate([volumes(1)[0], 2 * volumes(1)[0]])
    found = alter(image, "shuffled", image, np.random.default_rng(0)).image
    assert np.allclose(found[1], 2 * found[0])


def test_an_unknown_kind_and_a_small_volume_are_refused():
    image = volumes(1)[0]
    with pytest.raises(TomokitError, match="one of bright, dark, foreign, shuffled, got 'blue'"):
        alter(image, "blue", image, np.random.default_rng(0))
    with pytest.raises(TomokitError, match=r"voxels along each axis, got a volume of \(6, 18, 14\)"):
        draw_sphere((6, 18, 14), np.random.default_rng(0))


def test_a_case_comes_once_as_it_is_and_once_with_each_kind_always_the_same():
    data = TestAnomalies(normal_set(3))
    kinds = [data[number]["kind"] for number in range(len(data))]
    assert kinds == [CLEAN, *KINDS] * 3
    assert torch.equal(data[8]["image"], data[8]["image"])
    assert torch.equal(data[5]["image"], torch.as_tensor(data.data[1]["image"]))
    places = {tuple(data[number]["mask"].nonzero()[0].tolist()) for number in (1, 2, 3, 4, 6)}
    assert len(places) == 5


def test_a_foreign_patch_is_never_of_the_same_patient():
    assert TestAnomalies(normal_set(4, ["a", "a", "b", "a"])).others == [2, 2, 3, 2]
    with pytest.raises(TomokitError, match=r"test cases of two patients, got those of \['a'\]"):
        TestAnomalies(normal_set(2, ["a", "a"]))


# ---------------------------------------------------------------------------------------- scores


def test_scores_of_a_volume_and_of_its_voxels():
    scores = np.arange(1000).reshape(10, 10, 10)
    assert volume_score(scores, 99.5) == pytest.approx(np.percentile(scores, 99.5))
    assert voxel_precision(scores, scores >= 990) == 1
    assert math.isnan(voxel_precision(scores, scores < 0))


def test_the_metric_is_the_mean_of_the_volumes_that_have_a_patch():
    torch.manual_seed(0)
    scores, labels = torch.rand(3, 1, 6, 6, 6), torch.zeros(3, 1, 6, 6, 6)
    labels[:2, :, :2] = 0.4
    metric = VoxelPrecision()
    assert math.isnan(metric.aggregate())
    metric(scores, labels)
    expected = np.mean([voxel_precision(scores[number], labels[number] > 0) for number in range(2)])
    assert metric.aggregate() == pytest.approx(expected)


@pytest.mark.parametrize(("count", "rate", "place"), [(19, 0.05, 18), (39, 0.05, 37), (10, 0.05, 9), (9, 0.2, 7)])
def test_the_threshold_is_a_quantile_of_the_normal_cases(count, rate, place):
    scores = np.random.default_rng(0).permutation(count).astype(float)
    found = choose_threshold(scores, rate)
    assert found == {"threshold": float(place), "rate": rate, "normal": count, "flagged": count - 1 - place}


def test_new_normal_volumes_are_flagged_as_often_as_promised():
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(400):
        threshold = choose_threshold(generator.normal(size=59), 0.05)["threshold"]
        shares.append(np.mean(generator.normal(size=200) > threshold))
    assert 0.04 < np.mean(shares) < 0.06


@pytest.mark.parametrize(
    ("scores", "rate", "message"),
    [
        ([1.0], 0, "false_positive_rate must lie between 0 and 1, got 0"),
        ([], 0.05, r"finite scores of normal validation cases, got \[\]"),
        ([1.0, math.nan], 0.05, r"got \[1.0, nan\]"),
    ],
)
def test_an_impossible_threshold_is_refused(scores, rate, message):
    with pytest.raises(TomokitError, match=message):
        choose_threshold(scores, rate)


def test_a_threshold_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "decision.json"
    assert read_threshold(path) is None
    write_json(path, {"task": "anomaly", **choose_threshold([1.0, 2.0], 0.5)})
    assert read_threshold(path) == 2.0
    write_json(path, {"task": "pairs", "threshold": 1})
    with pytest.raises(TomokitError, match=r"must hold the threshold of an anomaly run, got \{'task': 'pairs'"):
        read_threshold(path)


def rows_of(**scores) -> list[dict]:
    return [
        {"case": f"case_{number}", "patient": f"patient_{number}", "kind": kind, "score": score, "voxel_ap": 0.5}
        for kind, own in scores.items()
        for number, score in enumerate(own)
    ]


def test_the_summary_says_which_kinds_were_seen_and_leaves_them_out():
    rows = rows_of(clean=[1, 2, 3, 4], bright=[5, 6, 3.5, 7], foreign=[0, 0, 0, 0])
    found = summarise_anomalies(rows, threshold=3.0)
    assert found["per_class"]["bright"]["auroc"]["mean"] == roc_auc_score([0] * 4 + [1] * 4, [1, 2, 3, 4, 5, 6, 3.5, 7])
    assert found["per_class"]["foreign"]["auroc"]["mean"] == 0
    assert [found["per_class"][kind]["seen"] for kind in ("bright", "foreign")] == [False, True]
    assert found["summary"]["auc"] == found["per_class"]["bright"]["auroc"]
    assert found["summary"]["flagged normals"]["mean"] == 0.25
    assert found["per_class"]["bright"]["flagged"]["mean"] == 1
    low, high = found["per_class"]["bright"]["auroc"]["ci95"]
    assert low < 0.9375 <= high
    assert summarise_anomalies(rows, None)["summary"]["flagged normals"]["mean"] is None


def test_the_area_is_undefined_without_anomalies():
    assert separate(rows_of(clean=[1, 2]), []).mean is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (rows_of(bright=[1]), "no clean volume among the 1 scored"),
        (rows_of(clean=[math.inf]), r"the score of case case_0 \(clean\) is inf"),
        ([{"case": "a", "patient": "a", "kind": CLEAN}], "case a has no column score"),
    ],
)
def test_rows_that_tell_nothing_are_refused(rows, message):
    with pytest.raises(TomokitError, match=message):
        summarise_anomalies(rows, None)


# ---------------------------------------------------------------------------------------- maps


def test_smoothing_agrees_with_scipy():
    image = batch(1)
    found = smooth(image, 1.5)[0, 0].numpy()
    assert np.allclose(
        found, gaussian_filter(image[0, 0].numpy(), 1.5, mode="nearest"), atol=5e-3
    )  # MONAI's kernel is the mean over each voxel
    assert smooth(image, 0) is image


def test_a_score_is_the_probability_of_the_logit():
    image = batch(2)
    found = PatchScoreInferer(SimpleInferer(), 0)(image, lambda inputs: inputs * 3)
    torch.testing.assert_close(found, torch.sigmoid(3 * image))


def test_an_error_is_counted_in_units_of_the_usual_one():
    image = torch.cat([batch(1), batch(1) + 0.2], 1)
    found = ReconstructionInferer(SimpleInferer(), 0)(image, lambda inputs: inputs - 0.1)
    torch.testing.assert_close(found, torch.full((1, 1, *SHAPE), 0.1))
    network = VolumeVAE(3, 1, (16, 16, 16), 4, (4, 4), (2, 2)).eval()
    network.spread[..., :8] = 3.0
    cube = torch.from_numpy(volumes(1, (16, 16, 16)))
    with torch.no_grad():
        error = (cube - network(cube)).abs()
        found = ReconstructionInferer(SimpleInferer(), 0)(cube, network)
    torch.testing.assert_close(found[..., :8], error[..., :8] / (3.0 + 0.5 * 2.0))
    torch.testing.assert_close(found[..., 8:], error[..., 8:] / (1.0 + 0.5 * 2.0))


@pytest.mark.parametrize("kind", [PatchScoreInferer, ReconstructionInferer])
def test_a_smoothing_below_0_is_refused(kind):
    with pytest.raises(TomokitError, match="smoothing must be a number of voxels of at least 0, got -1"):
        kind(SimpleInferer(), -1)


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SAR"])
def test_a_map_comes_back_to_its_source(axcodes):
    """A linear function of the world's place is the same on every grid."""
    affine = np.array([[0, 0, 2.0, 3], [1.5, 0, 0, -4], [0, 1.0, 0, 5], [0, 0, 0, 1]])
    places = np.stack(np.meshgrid(*map(np.arange, (12, 14, 10)), indexing="ij"), -1)
    world = places @ affine[:3, :3].T + affine[:3, 3]
    source = (world @ [1.0, -2.0, 0.5]).astype(np.float32)
    moved = Spacing(pixdim=(1.0, 1.0, 1.0))(
        Orientation(axcodes=axcodes, labels=None)(MetaTensor(source[None], affine=affine))
    )
    found = interpolate_back(np.asarray(moved)[0], moved.affine, source.shape, affine)
    inner = (slice(2, -2),) * 3
    assert found.shape == source.shape and np.allclose(found[inner], source[inner], atol=1e-3)


def test_what_was_cropped_away_scores_0():
    scores = np.ones((4, 4, 4), np.float32)
    affine = np.eye(4)
    affine[:3, 3] = 2
    found = interpolate_back(scores, affine, (8, 8, 8), np.eye(4))
    assert found.sum() == 64 and (found[2:6, 2:6, 2:6] == 1).all()


# ---------------------------------------------------------------------------------------- models


def test_an_autoencoder_learns_its_usual_error_in_training_alone():
    torch.manual_seed(0)
    network = VolumeVAE(3, 1, (16, 16, 16), 4, (4, 4), (2, 2))
    cube = torch.from_numpy(volumes(2, (16, 16, 16))).contiguous(memory_format=torch.channels_last_3d)
    before = network.spread.clone()
    made, mean, log_variance, code = network(cube)
    assert made.shape == cube.shape and mean.shape == log_variance.shape == code.shape == (2, 4)
    error = (cube - made.detach()).abs().mean(0, keepdim=True)
    torch.testing.assert_close(network.spread, 0.98 * before + 0.02 * error)
    network.eval()
    after = network.spread.clone()
    assert torch.equal(network(cube), network.decode_forward(network.encode_forward(cube)[0]))
    assert torch.equal(after, network.spread)


def test_the_variational_loss_is_distance_and_divergence():
    image, made = torch.zeros(2, 1, 4, 4, 4), torch.full((2, 1, 4, 4, 4), 0.25)
    mean, log_variance = torch.full((2, 3), 2.0), torch.zeros(2, 3)
    output = (made, mean, log_variance, mean)
    assert VariationalLoss(0.0)(output, image) == pytest.approx(0.25)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, 1.0), torch.distributions.Normal(0.0, 1.0)
    ).sum(1)
    assert VariationalLoss(2.0)(output, image) == pytest.approx(0.25 + 2 * expected.mean().item() / 64)
    with pytest.raises(TomokitError, match="beta must be at least 0, got -1"):
        VariationalLoss(-1)


def test_principal_components_find_a_bright_sphere():
    normal, test = normal_set(20), TestAnomalies(normal_set(6), ["bright"])
    rows = score_pca(normal, test, 99.5, 1.0)
    assert len(rows) == 12
    found = summarise_anomalies(rows, None)["per_class"]["bright"]
    assert found["auroc"]["mean"] > 0.8 and found["voxel_ap"]["mean"] > 0.3


def test_components_explain_what_they_were_fitted_on():
    """As many components as volumes less one span all of them; beyond their size nothing scores."""
    components = fit_pca(normal_set(10), 64)
    own = pca_scores(components, volumes(10)[1], 0.0)
    new = pca_scores(components, volumes(1, seed=9)[0], 0.0)
    assert own.max() < 1e-3 * new.max()
    larger = pca_scores(components, volumes(1, (20, 18, 14))[0], 0.0)
    assert larger.shape == (20, 18, 14) and (larger[:2] == 0).all() and (larger[2:18] > 0).any()


def test_few_volumes_have_no_components():
    with pytest.raises(TomokitError, match="principal components need 5 normal volumes, got 4"):
        fit_pca(normal_set(4), 64)
