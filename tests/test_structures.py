"""Each structure and lesion in numbers: against known shapes, by brute force, and under moves that change nothing."""

import itertools

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation

from tomokit.errors import TomokitError
from tomokit.measure import COLUMNS, DENSITY, measure_structures, structures

LABELS = {"0": "background", "1": "liver", "2": "tumour"}
ORGAN = {"0": "background", "1": "organ"}
OF_THE_GRID = {"axial_slice", "axial_axis", "box_first", "box_last"}


def make_affine(spacing=(1.0, 1.0, 1.0), turn=(0.0, 0.0, 0.0), origin=(-20.0, 7.0, 30.0)):
    """Return an affine with right angles: rotated by `turn` degrees about x, y and z."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() * spacing
    affine[:3, 3] = origin
    return affine


def points_of(shape, affine, off_mm=(0.3, 0.2, 0.1)):
    """Return each voxel's place in world mm, from a point a little off the grid's middle."""
    middle = apply_affine(affine, (np.array(shape) - 1) / 2) + off_mm
    return apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)) - middle


def measure_one(mask, affine, **more):
    """Return the only row of a mask that is no lesion."""
    (row,) = measure_structures(np.asarray(mask, np.uint8), ORGAN, affine, **more)
    return row


def make_blobs(seed=0, shape=(18, 16, 14)):
    """Return a label map of a liver and a tumour in two pieces, without any symmetry."""
    label_map = np.zeros(shape, np.uint8)
    label_map[2:14, 3:9, 4:11] = 1
    label_map[5:16, 7:12, 6:10] = 1
    label_map[4:9, 4:7, 5:9] = 2
    label_map[7:9, 6:9, 8:10] = 2
    label_map[13:15, 12:15, 2:4] = 2
    noise = np.random.default_rng(seed).random(shape) < 0.3
    label_map[noise & (label_map == 1)] = 0
    return label_map


# Known shapes


def test_a_box_has_its_own_lengths():
    label_map = np.zeros((12, 10, 16), np.uint8)
    label_map[3:9, 2:6, 4:13] = 1  # 9 × 8 × 4.5 mm
    row = measure_one(label_map, make_affine((1.5, 2.0, 0.5)))
    assert list(row) == list(COLUMNS)
    assert (row["structure"], row["piece"], row["voxels"], row["pieces"]) == ("organ", "", 216, 1)
    assert row["volume_ml"] == pytest.approx(0.324)
    assert row["axial_longest_mm"] == pytest.approx(145**0.5)
    assert row["axial_short_mm"] == pytest.approx(8 * 145**0.5 / 9)  # across a diagonal, as high as the box
    assert row["longest_diameter_mm"] == pytest.approx((145 + 20.25) ** 0.5)
    assert (row["axial_axis"], row["axial_slice"]) == (2, 8)  # all slices are alike: the middle one
    assert row["axial_longest_ends_mm"] == [pytest.approx([-16.25, 10, 34]), pytest.approx([-7.25, 18, 34])]
    assert (row["box_first"], row["box_last"]) == ([3, 2, 4], [8, 5, 12])
    assert row["extent_mm"] == pytest.approx([9, 8, 4.5])
    assert row["centre_mm"] == pytest.approx([-11.75, 14, 34])
    assert row["touches_edge"] is False


def test_a_single_voxel_has_its_own_size():
    row = measure_one(np.pad(np.ones((1, 1, 1)), 2), make_affine((3.0, 4.0, 12.0)))
    assert (row["axial_longest_mm"], row["longest_diameter_mm"]) == pytest.approx((5, 13))
    assert row["axial_short_mm"] == pytest.approx(3 * 5 / 4)
    assert row["extent_mm"] == pytest.approx([3, 4, 12])


@pytest.mark.parametrize("angle", [0, 17, 30, 45, 80])
def test_a_box_turned_in_the_plane_keeps_its_diameters(angle):
    affine, shape = make_affine((0.5, 0.5, 2.0)), (90, 90, 8)
    points = points_of(shape, affine)
    turned = points @ Rotation.from_euler("z", angle, degrees=True).as_matrix()
    row = measure_one((np.abs(turned) <= (15, 6, 5)).all(axis=-1), affine)  # 30 × 12 mm
    diagonal = (30**2 + 12**2) ** 0.5
    assert diagonal - 0.3 <= row["axial_longest_mm"] <= diagonal + 0.5**0.5
    assert row["axial_short_mm"] == pytest.approx(12 * diagonal / 30, abs=0.9)
    first, last = np.array(row["axial_longest_ends_mm"])
    other, end = np.array(row["axial_short_ends_mm"])
    assert np.linalg.norm(last - first) == pytest.approx(row["axial_longest_mm"])
    assert np.linalg.norm(end - other) == pytest.approx(row["axial_short_mm"])
    assert (last - first) @ (end - other) == pytest.approx(0, abs=1e-6)


def test_a_box_on_a_grid_turned_in_the_plane_has_exactly_its_diameters():
    affine = make_affine((0.7, 0.7, 3.0), turn=(0, 0, 33))
    row = measure_one(np.pad(np.ones((20, 10, 4)), 3), affine)
    assert row["axial_longest_mm"] == pytest.approx(0.7 * 500**0.5)
    assert row["axial_short_mm"] == pytest.approx(0.7 * 10 * 500**0.5 / 20)
    assert row["axial_longest_ends_mm"][0] in [
        pytest.approx(apply_affine(affine, (x, y, row["axial_slice"])).tolist())
        for x in (2.5, 22.5)
        for y in (2.5, 12.5)
    ]


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 0.7, 2.5), (1.5, 1, 3)])
def test_a_ball(spacing):
    affine = make_affine(spacing)
    shape = tuple(int(34 / size) for size in spacing)
    row = measure_one(np.linalg.norm(points_of(shape, affine), axis=-1) <= 14, affine)
    assert row["volume_ml"] == pytest.approx(4 / 3 * np.pi * 14**3 / 1000, rel=0.02)
    pixel = float(np.hypot(*spacing[:2]))
    assert 28 - pixel <= row["axial_longest_mm"] <= 28 + pixel
    assert 28 - 2 * pixel <= row["axial_short_mm"] <= row["axial_longest_mm"] + 1e-9
    assert 28 - max(spacing) <= row["longest_diameter_mm"] <= 28 + np.linalg.norm(spacing)
    assert row["extent_mm"] == pytest.approx([28] * 3, abs=max(spacing) + 0.01)
    assert row["sphericity"] == pytest.approx(1, abs=0.08)


def test_a_cylinder_is_measured_across_and_along():
    affine = make_affine((0.8, 0.8, 1.5))
    points = points_of((34, 34, 30), affine, (0.1, 0.2, 0.0))
    mask = (np.hypot(points[..., 0], points[..., 1]) <= 10) & (np.abs(points[..., 2]) < 15)  # 20 slices of 1.5 mm
    row = measure_one(mask, affine)
    assert row["axial_longest_mm"] == pytest.approx(20, abs=1.14)
    assert row["axial_short_mm"] == pytest.approx(20, abs=2.3)
    assert row["longest_diameter_mm"] == pytest.approx(np.hypot(row["axial_longest_mm"], 30))
    assert row["axial_slice"] == 14  # of the two in the middle the one nearer to the feet
    assert row["volume_ml"] == pytest.approx(np.pi * 100 * 30 / 1000, rel=0.02)


@pytest.mark.parametrize("turn", [(0, 0, 0), (0, 0, 25), (25, -10, 40)])
def test_an_ellipsoid_on_an_oblique_grid(turn):
    affine, semi = make_affine((0.8, 0.9, 1.0), turn), np.array([15.0, 10.0, 6.0])
    row = measure_one(((points_of((48, 46, 44), affine) / semi) ** 2).sum(axis=-1) <= 1, affine)
    assert row["volume_ml"] == pytest.approx(4 / 3 * np.pi * 900 / 1000, rel=0.015)
    # the section by the slice's plane through the middle is an ellipse, whose axes are these
    plane = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
    short, long = sorted(2 / np.sqrt(np.linalg.eigvalsh(plane.T @ np.diag(semi**-2.0) @ plane)))
    assert row["axial_longest_mm"] == pytest.approx(long, abs=1.3)
    assert row["axial_short_mm"] == pytest.approx(short, abs=1.6)
    assert row["longest_diameter_mm"] == pytest.approx(30, abs=1.6)
    assert row["extent_mm"] == pytest.approx([30, 20, 12], abs=1.6)


def test_the_longest_slice_is_found_where_others_have_larger_boxes():
    label_map = np.zeros((20, 20, 3), np.uint8)
    label_map[2:12, 10, 0] = label_map[2, 10:20, 0] = 1  # an L of 10 × 10: its box's diagonal is as long as its own
    label_map[1:12, 1:12, 1] = np.abs(np.add.outer(np.arange(11), np.arange(11)) - 10) <= 10  # all of 11 × 11
    label_map[10, 2:19, 2] = 1  # 17 long
    row = measure_one(label_map, np.eye(4))
    assert (row["axial_slice"], row["axial_longest_mm"]) == (2, pytest.approx((17**2 + 1) ** 0.5))


# Brute force


@pytest.mark.parametrize("seed", range(3))
def test_diameters_are_those_of_all_pairs_of_corners(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((7, 6, 5)) < 0.15
    affine = make_affine((1.1, 0.7, 2.3), (10, 20, 30))
    row = measure_one(mask, affine)
    best = []
    for place in np.flatnonzero(mask.any(axis=(0, 1))):
        steps = itertools.product((-0.5, 0.5), repeat=2)
        corners = np.concatenate([np.argwhere(mask[..., place]) + step for step in steps])
        best.append(pdist(apply_affine(affine, np.insert(corners, 2, place, axis=1))).max())
    assert row["axial_longest_mm"] == pytest.approx(max(best))
    corners = np.concatenate([np.argwhere(mask) + step for step in itertools.product((-0.5, 0.5), repeat=3)])
    assert row["longest_diameter_mm"] == pytest.approx(pdist(apply_affine(affine, corners)).max())


@pytest.mark.parametrize("seed", range(4))
def test_the_line_across_is_the_longest_of_many(seed):
    mask = np.zeros((12, 12, 1), np.uint8)
    mask[tuple(np.random.default_rng(seed).integers(0, 12, (2, 6)))] = 1
    affine = make_affine((0.9, 1.3, 2.0))
    row = measure_one(mask, affine)
    start, end = np.array(row["axial_longest_ends_mm"])[:, :2]
    along = (end - start) / np.linalg.norm(end - start)
    corners = np.concatenate([np.argwhere(mask) + np.array((x, y, 0)) for x in (-0.5, 0.5) for y in (-0.5, 0.5)])
    points = apply_affine(affine, corners)[:, :2] - start
    far, high = points @ along, points @ (-along[1], along[0])
    pairs = np.array(list(itertools.permutations(range(len(points)), 2)))
    found = 0.0
    for place in np.linspace(0, np.linalg.norm(end - start), 801):
        a, b = pairs[(far[pairs[:, 0]] <= place) & (far[pairs[:, 1]] > place)].T
        met = high[a] + (place - far[a]) / (far[b] - far[a]) * (high[b] - high[a])  # of all lines between two corners
        found = max(found, np.ptp(met) if met.size else 0.0)
    assert found <= row["axial_short_mm"] + 1e-9
    assert row["axial_short_mm"] == pytest.approx(found, rel=0.02)


# Properties


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "SRA", "AIL"])
def test_any_orientation_of_the_grid_gives_the_same_lengths(codes):
    label_map, affine = make_blobs(), make_affine((0.8, 1.1, 2.0), (8, -6, 11))
    image = np.random.default_rng(0).normal(size=label_map.shape)
    target = nibabel.orientations.axcodes2ornt(codes)
    files = [nibabel.Nifti1Image(array.astype(np.float64), affine) for array in (label_map, image)]
    turned, seen = (file.as_reoriented(nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(affine), target)) for file in files)  # fmt: skip
    first = measure_structures(label_map, LABELS, affine, image)
    second = measure_structures(turned.get_fdata().astype(np.uint8), LABELS, turned.affine, seen.get_fdata())
    assert len(first) == len(second) == 4
    for a, b in zip(first, second, strict=True):
        for name in COLUMNS.keys() - OF_THE_GRID - {"axial_longest_ends_mm", "axial_short_ends_mm"}:
            expected = a[name] if isinstance(a[name], str | None) else pytest.approx(a[name], rel=1e-6, abs=1e-6)
            assert b[name] == expected, name
        for name in ("axial_longest_ends_mm", "axial_short_ends_mm"):
            assert np.allclose(a[name], b[name], atol=1e-4), name
        axis = codes.index("S") if "S" in codes else codes.index("I")
        assert b["axial_axis"] == axis and b["box_first"][axis] <= b["axial_slice"] <= b["box_last"][axis]


def test_lesions_are_numbered_from_the_largest():
    label_map = np.zeros((20, 20, 10), np.uint8)
    label_map[1:10, 1:10, 1:9] = 1
    label_map[14:16, 2:4, 3:5] = 2  # 8 voxels
    label_map[12:15, 12:16, 4:8] = 2  # 48 voxels
    label_map[15, 16, 8] = 2  # touches them at a corner
    rows = measure_structures(label_map, LABELS, np.diag([1, 1, 2, 1]))
    told = [(row["structure"], row["piece"], row["voxels"], row["pieces"]) for row in rows]
    assert told == [("liver", "", 648, 1), ("tumour", "", 57, 2), ("tumour", 1, 49, 1), ("tumour", 2, 8, 1)]
    assert (rows[3]["box_first"], rows[3]["box_last"]) == ([14, 2, 3], [15, 3, 4])
    assert rows[3]["centre_mm"] == pytest.approx([14.5, 2.5, 7.0])
    assert rows[3]["axial_longest_mm"] == pytest.approx(8**0.5)
    assert rows[1]["axial_longest_mm"] == pytest.approx(np.hypot(4, 14))  # across both pieces, in slice 4
    assert [row["volume_ml"] for row in rows[1:]] == pytest.approx([0.114, 0.098, 0.016])


def test_which_labels_are_lesions_may_be_given():
    label_map = make_blobs()
    found = measure_structures(label_map, LABELS, np.eye(4), lesions=["liver"])
    assert {row["structure"] for row in found if row["piece"] != ""} == {"liver"}
    assert all(row["piece"] == "" for row in measure_structures(label_map, LABELS, np.eye(4), lesions=[]))


def test_a_row_each_is_for_the_largest_pieces_only(monkeypatch):
    monkeypatch.setattr(structures, "MOST_PIECES", 3)
    label_map = np.zeros((21, 3, 3), np.uint8)
    label_map[::4] = 2
    label_map[8, 0, 0] = 0
    label_map[12, :2, 0] = 0
    rows = measure_structures(label_map, LABELS, np.eye(4))
    assert [(row["piece"], row["voxels"]) for row in rows[1:]] == [("", 51), (1, 9), (2, 9), (3, 9)]
    assert rows[1]["pieces"] == 6
    assert [row["centre_mm"][0] for row in rows[2:]] == [0, 4, 16]  # alike, they stand by their place


def test_pieces_of_one_size_stand_by_their_place_in_the_world():
    label_map = np.zeros((9, 3, 3), np.uint8)
    label_map[::4] = 2
    turned = np.diag([-1.0, 1.0, 1.0, 1.0])
    turned[0, 3] = 8  # the same places from right to left
    for array, affine in ((label_map, np.eye(4)), (label_map[::-1], turned)):
        rows = measure_structures(array, LABELS, affine)
        assert [row["centre_mm"][0] for row in rows[2:]] == [0, 4, 8]


def test_density_is_of_the_voxels_inside():
    label_map, image = np.zeros((6, 5, 4), np.uint8), np.full((6, 5, 4), -1000.0)
    label_map[1:3, 1, 1], image[1:3, 1, 1] = 1, (10, 50)
    row = measure_one(label_map, np.eye(4), image=image.astype(np.int16), unit="HU")
    assert [row[name] for name in DENSITY] == [pytest.approx(value) for value in (30, 20, 30, 12, 48)] + ["HU"]
    assert all(measure_one(label_map, np.eye(4))[name] is None for name in DENSITY)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("place", [0, -1])
def test_what_touches_the_edge_is_told(axis, place):
    label_map = np.zeros((7, 8, 9), np.uint8)
    label_map[2:4, 2:4, 2:4] = 1
    assert measure_one(label_map, np.eye(4))["touches_edge"] is False
    np.moveaxis(label_map, axis, 0)[place, 3, 3] = 1
    assert measure_one(label_map, np.eye(4))["touches_edge"] is True


def test_a_structure_without_a_voxel_has_a_row_without_lengths():
    rows = measure_structures(np.eye(4)[None].astype(np.uint8), LABELS, np.eye(4))
    assert [(row["structure"], row["voxels"], row["volume_ml"], row["pieces"]) for row in rows] == [
        ("liver", 4, pytest.approx(0.004), 1),
        ("tumour", 0, 0.0, 0),
    ]
    assert list(rows[1]) == list(COLUMNS)
    assert all(rows[1][name] is None for name in list(COLUMNS)[5:])


# Errors


@pytest.mark.parametrize(
    ("label_map", "more", "message"),
    [
        (np.zeros((4, 4), np.uint8), {}, r"three axes \(X, Y, Z\), got \(4, 4\)"),
        (np.zeros((4, 4, 4)), {}, "whole numbers, got float64"),
        (np.full((4, 4, 4), 3), {}, "values from 0 to 3, `labels` names 0 to 2"),
        (np.full((4, 4, 4), -1), {}, "values from -1 to 0"),
        (np.ones((4, 4, 4), int), {"image": np.zeros((4, 4, 5))}, r"\(4, 4, 5\) and label map \(4, 4, 4\) differ"),
        (np.ones((4, 4, 4), int), {"image": np.full((4, 4, 4), np.nan)}, "64 intensities that are not finite"),
        (np.ones((4, 4, 4), int), {"lesions": ["spleen"]}, r"`lesions` names \['spleen'\], .*\['liver', 'tumour'\]"),
        (np.ones((4, 4, 4), int), {"affine": np.zeros((4, 4))}, "must be an invertible"),
        (np.ones((4, 4, 4), int), {"labels": {"0": "background"}}, "at least one structure"),
    ],
)
def test_what_can_not_be_measured_is_told(label_map, more, message):
    given = {"labels": LABELS, "affine": np.eye(4), **more}
    with pytest.raises(TomokitError, match=message):
        measure_structures(label_map, **given)
