"""Surface distances: analytic boxes, and an independent implementation by distance transforms."""

import tracemalloc

import numpy as np
import pytest
import scipy.ndimage
import torch
from monai.metrics import compute_surface_dice
from monai.metrics.utils import get_edge_surface_distance

from tomokit.errors import TomokitError
from tomokit.metrics import compare_surfaces, score_segmentation, summarise_segmentation


def box(shape, first, last):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] = True
    return mask


def test_equal_masks_agree_wholly_at_the_volumes_edge_too():
    for mask in (
        box((20, 20, 20), (5, 5, 5), (12, 9, 7)),
        np.ones((4, 5, 6), bool),
        box((9, 9, 9), (0, 0, 0), (1, 1, 1)),
    ):
        assert compare_surfaces(mask, mask, (1, 2, 3), 0.5) == (1, 0)


def test_a_shift_is_measured_in_millimetres():
    truth = box((60, 30, 30), (10, 5, 5), (50, 25, 25))
    for axis, spacing in ((0, (0.5, 1, 1)), (1, (1, 2, 1)), (2, (1, 1, 5))):
        found = compare_surfaces(np.roll(truth, 2, axis), truth, spacing, 2 * spacing[axis])
        assert found.hd95_mm == pytest.approx(2 * spacing[axis])
        assert found.nsd == 1
        assert compare_surfaces(np.roll(truth, 2, axis), truth, spacing, 1.9 * spacing[axis]).nsd < 1


def test_pieces_of_surface_count_by_their_area():
    # a box of 40 × 40 × 4 mm in voxels of 1 × 1 × 4, its top raised by a voxel: one of its two large faces is wrong
    truth, prediction = box((60, 60, 20), (10, 10, 8), (50, 50, 9)), box((60, 60, 20), (10, 10, 8), (50, 50, 10))
    found = compare_surfaces(prediction, truth, (1, 1, 4), 2.0)
    total = 2 * (2 * 40 * 40) + 160 * 4 + 160 * 8  # both surfaces
    wrong = 2 * 40 * 40  # of each the top; the rim is nearer
    assert found.nsd == pytest.approx(1 - wrong / total, abs=0.06)
    assert found.hd95_mm == 4


SPACINGS = [(1.5, 0.8, 3.0), (1.0, 1.0, 1.0), (0.7, 2.1, 0.9)]


def blobs(seed):
    """Return two ragged masks on an odd grid."""
    generator = np.random.default_rng(seed)
    return [scipy.ndimage.gaussian_filter(generator.normal(size=(27, 30, 21)), 3) > 0.02 for _ in range(2)]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_surface_dice_is_monais(spacing):
    one, two = blobs(1)
    for tolerance in (0.5, 1.0, 4.0):
        theirs = compute_surface_dice(
            torch.from_numpy(np.stack([~one, one]))[None],
            torch.from_numpy(np.stack([~two, two]))[None],
            class_thresholds=[tolerance],
            spacing=spacing,
            use_subvoxels=True,
        )
        assert compare_surfaces(one, two, spacing, tolerance).nsd == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_distance_is_the_percentile_of_distance_transforms(spacing):
    one, two = blobs(2)
    # blocks of 2 × 2 × 2 voxels in which both kinds meet, by filters; the areas from MONAI, which keeps their order
    own, other = (np.pad(mask, 2) for mask in (one, two))
    meet = [(scipy.ndimage.maximum_filter(m, 2) != scipy.ndimage.minimum_filter(m, 2)) for m in (own, other)]
    masks = [torch.from_numpy(mask) for mask in (one, two)]
    edges, _, areas = get_edge_surface_distance(*masks, spacing=spacing, use_subvoxels=True, symmetric=True)
    far = []
    for (a, b), edge, area in zip(((0, 1), (1, 0)), edges, areas, strict=True):
        weights = area[edge]
        away = scipy.ndimage.distance_transform_edt(~meet[b], sampling=spacing)[meet[a]]
        order = np.argsort(away)
        share = np.cumsum(weights.numpy()[order]) / weights.numpy().sum()
        far.append(away[order][share >= 0.95][0])
    assert compare_surfaces(one, two, spacing, 1.0).hd95_mm == pytest.approx(max(far), abs=1e-6)


def test_spheres_lie_as_far_apart_as_their_radii():
    spacing = np.array([0.8, 1.0, 2.0])
    places = np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in (81, 65, 33)), indexing="ij"), -1) * spacing
    far = np.linalg.norm(places, axis=-1)
    found = compare_surfaces(far <= 25, far <= 20, spacing, 5 + np.linalg.norm(spacing))
    assert found.nsd == 1 and found.hd95_mm == pytest.approx(5, abs=0.7)
    assert compare_surfaces(far <= 25, far <= 20, spacing, 3.0).nsd < 0.02


@pytest.mark.parametrize("size", [0.1, 0.3, 0.7])
def test_a_surface_at_the_tolerance_is_within_it(size):
    truth = box((30, 8, 8), (10, 2, 2), (20, 6, 6))
    assert compare_surfaces(np.roll(truth, 3, 0), truth, (size, 1, 1), round(3 * size, 1)).nsd == 1


def test_what_is_absent_is_no_distance():
    mask, none = box((8, 8, 8), (2, 2, 2), (5, 5, 5)), np.zeros((8, 8, 8), bool)
    assert compare_surfaces(none, none, (1, 1, 1), 1) == (None, None)
    assert compare_surfaces(mask, none, (1, 1, 1), 1) == compare_surfaces(none, mask, (1, 1, 1), 1) == (0, None)


def test_one_slice_is_compared_by_its_outline():
    truth = box((40, 40, 1), (10, 10, 0), (30, 30, 1))
    found = compare_surfaces(np.roll(truth, 3, 0), truth, (1, 1, 5), 3.0)
    assert found.nsd == 1 and found.hd95_mm == pytest.approx(3)
    # two of four edges lie 3 mm off, but for their ends; as bodies both would agree in all of top and bottom
    assert compare_surfaces(np.roll(truth, 3, 0), truth, (1, 1, 5), 2.0).nsd == pytest.approx(0.55, abs=0.08)


def test_a_large_volume_takes_no_memory_of_its_own():
    truth = np.zeros((300, 300, 300), np.uint8)
    truth[100:120, 100:118, 100:110] = 1
    tracemalloc.start()
    row = score_segmentation(np.roll(truth, 1, 0), truth, {0: "background", 1: "organ"}, np.eye(4), 1.0)[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert row["nsd"] == 1 and row["hd95_mm"] == 1
    assert peak < 1.3 * truth.nbytes  # of the rolled copy; nothing else has the size of the volume


@pytest.mark.parametrize("tolerance", [0, -1.0, float("nan")])
def test_a_tolerance_must_be_above_0(tolerance):
    mask = np.ones((2, 2, 2), bool)
    with pytest.raises(TomokitError, match=f"`tolerance_mm` must be above 0, such as 1.0, got {tolerance}"):
        compare_surfaces(mask, mask, (1, 1, 1), tolerance)


def test_each_structure_is_compared_by_itself_wherever_it_lies():
    labels = {"0": "background", "1": "a", "2": "b", "3": "c"}
    truth, prediction = np.zeros((2, 20, 21, 22), np.float16)
    truth[2:5, 2:5, 2:5] = prediction[3:6, 2:5, 2:5] = 1  # whole numbers in an array of floats
    truth[10:14, 10:14, 10:14] = 3
    prediction[1:3, 15:18, 15:18] = 3
    rows = score_segmentation(prediction, truth, labels, np.diag([2, 1, 1, 1]), tolerance_mm=1.0)
    alone = [compare_surfaces(prediction == value, truth == value, (2, 1, 1), 1.0) for value in (1, 2, 3)]
    assert [(row["nsd"], row["hd95_mm"]) for row in rows] == alone
    assert rows[0]["hd95_mm"] == 2 and rows[1]["nsd"] is None and rows[2]["nsd"] == 0


def test_shapes_must_agree():
    with pytest.raises(TomokitError, match=r"prediction \(2, 2, 2\) and truth \(2, 2, 3\)"):
        compare_surfaces(np.ones((2, 2, 2), bool), np.ones((2, 2, 3), bool), (1, 1, 1), 1)


def test_a_segmentation_is_summarised_with_distances_and_volumes():
    labels = {"0": "background", "1": "liver", "2": "cyst"}
    affine = np.diag([-2.0, 2.0, 5.0, 1.0])
    rows = []
    for case in range(4):
        truth = box((20, 20, 12), (4, 4, 4), (14, 14, 8)).astype(np.uint8)
        prediction = np.roll(truth, case % 2, 0)
        if case == 0:
            truth[18, 18, 10] = 2
        if case == 1:
            prediction[18, 18, 10] = 2
        scored = score_segmentation(prediction, truth, labels, affine, tolerance_mm=2.0)
        rows += [{"case": str(case), "patient": str(case), **row} for row in scored]
    assert rows[0]["nsd"] == 1 and rows[0]["hd95_mm"] == 0
    assert [row["difference_ml"] for row in rows[:4]] == pytest.approx([0, -0.02, 0, 0.02])
    assert rows[2]["nsd"] == 1 and rows[2]["hd95_mm"] == pytest.approx(2)
    found = summarise_segmentation(rows)
    assert found["summary"]["hd95_mm"]["mean"] == pytest.approx(1)
    assert found["per_class"]["liver"]["hd95_mm"]["n"] == 4
    cyst = found["per_class"]["cyst"]
    assert (cyst["missed"], cyst["invented"], cyst["absent_in_both"], cyst["empty_truth"]) == (1, 1, 2, 3)
    assert cyst["nsd"]["mean"] == 0 and cyst["nsd"]["cases"] == 2 and cyst["hd95_mm"]["mean"] is None
    assert cyst["difference_ml"]["mean"] == 0
    reach = 1.96 * 0.02 * np.std([-1, 1, 0, 0], ddof=1)
    assert cyst["limits_ml"] == pytest.approx([-reach, reach])
