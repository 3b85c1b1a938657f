"""Surface distances: analytic boxes, and an independent implementation by distance transforms."""

import numpy as np
import pytest
import scipy.ndimage

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


def test_distances_are_those_of_distance_transforms():
    generator = np.random.default_rng(0)
    spacing = (1.5, 1.5, 1.5)
    for _ in range(3):
        one, two = (scipy.ndimage.gaussian_filter(generator.normal(size=(28, 30, 22)), 3) > 0.02 for _ in range(2))

        def edges(mask):
            padded = np.pad(mask, 1)
            return padded & ~scipy.ndimage.binary_erosion(padded)

        # from voxel centres, unweighted: the surfaces lie half a voxel further out, and count by their area
        far = []
        for a, b in ((one, two), (two, one)):
            away = scipy.ndimage.distance_transform_edt(~edges(b), sampling=spacing)
            far.append(np.quantile(away[edges(a)], 0.95))
        assert compare_surfaces(one, two, spacing, 1.0).hd95_mm == pytest.approx(max(far), abs=1.5)


def test_what_is_absent_is_no_distance():
    mask, none = box((8, 8, 8), (2, 2, 2), (5, 5, 5)), np.zeros((8, 8, 8), bool)
    assert compare_surfaces(none, none, (1, 1, 1), 1) == (None, None)
    assert compare_surfaces(mask, none, (1, 1, 1), 1) == compare_surfaces(none, mask, (1, 1, 1), 1) == (0, None)


def test_one_slice_is_compared_by_its_outline():
    truth = box((40, 40, 1), (10, 10, 0), (30, 30, 1))
    found = compare_surfaces(np.roll(truth, 3, 0), truth, (1, 1, 5), 3.0)
    assert found.nsd == 1 and found.hd95_mm == pytest.approx(3)


def test_a_large_volume_is_cut_to_what_is_there():
    import time

    truth = box((400, 400, 300), (100, 100, 100), (120, 118, 110))
    began = time.process_time()
    assert compare_surfaces(np.roll(truth, 1, 0), truth, (1, 1, 1), 1.0).nsd == 1
    assert time.process_time() - began < 10


@pytest.mark.parametrize("tolerance", [0, -1.0, float("nan")])
def test_a_tolerance_must_be_above_0(tolerance):
    mask = np.ones((2, 2, 2), bool)
    with pytest.raises(TomokitError, match=f"`tolerance_mm` must be above 0, such as 1.0, got {tolerance}"):
        compare_surfaces(mask, mask, (1, 1, 1), tolerance)


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
