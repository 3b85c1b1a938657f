"""Measures against shapes whose size is known, against SimpleITK and SciPy, and under moves that change nothing."""

import numpy as np
import pytest
import scipy.stats
import SimpleITK as sitk
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from tomokit.errors import TomokitError
from tomokit.measure import (
    INTENSITY,
    PLACE,
    SHAPE,
    feature_names,
    measure_case,
    measure_features,
    measure_intensity,
    measure_shape,
)
from tomokit.volumes import itk_image

DIRECTED = ("extent_", "section_", "asymmetry_", "centre_")
AXES = ("x", "y", "z")


def make_affine(spacing=(1.0, 1.0, 1.0), turn=(0.0, 0.0, 0.0), origin=(-20.0, 7.0, 30.0)):
    """Return an affine with right angles: rotated by `turn` degrees about x, y and z."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() * spacing
    affine[:3, 3] = origin
    return affine


def draw_ellipsoid(semi_axes_mm, shape, affine, off_mm=(0.3, 0.2, 0.1)):
    """Return the voxels in an ellipsoid along the world's axes, its centre a little off the grid's, and that centre."""
    centre = apply_affine(affine, (np.array(shape) - 1) / 2) + off_mm
    points = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    return (((points - centre) / semi_axes_mm) ** 2).sum(axis=-1) <= 1, centre


def make_box(lengths, margin=3):
    """Return a box of voxels with a margin."""
    return np.pad(np.ones(lengths, dtype=bool), margin)


def make_blob():
    """Return two boxes that overlap, and a small piece apart, without any symmetry: 863 voxels."""
    mask = np.zeros((24, 20, 18), dtype=bool)
    mask[3:15, 4:9, 5:10] = True
    mask[10:20, 6:16, 7:13] = True
    mask[4:6, 15:17, 2:4] = True
    return mask


def undirected(measures):
    return {name: value for name, value in measures.items() if not name.startswith(DIRECTED)}


def by_axis(measures, name):
    return [measures[name.format(axis)] for axis in AXES]


def crofton_of_box(a, b, c):
    """Return what Crofton's formula with 13 directions gives for a box of a × b × c unit voxels, counted by hand.

    A box meets bc lines along x, c(a + b - 1) along each diagonal of xy, and ab + bc + ca - a - b - c + 1 along each
    diagonal of space. The weights are the directions' parts of the sphere (Lehmann and Legland, 2012).
    """
    faces = b * c + a * c + a * b
    edges = 2 * (c * (a + b - 1) + b * (a + c - 1) + a * (b + c - 1))
    space = 4 * (faces - a - b - c + 1)
    return 4 * (0.09155578241 * faces + 0.07396125575 * edges / 2**0.5 + 0.07039127956 * space / 3**0.5)


# Known shapes


def test_a_box_has_its_own_lengths():
    spacing = (1.5, 2.0, 0.5)
    mask = np.zeros((12, 10, 16), dtype=bool)
    mask[3:9, 2:6, 4:14] = True  # 9 × 8 × 5 mm
    found = measure_shape(mask, make_affine(spacing))
    lengths = np.array([9.0, 8.0, 5.0])
    assert found["volume_ml"] == pytest.approx(0.36)
    assert by_axis(found, "extent_{}_mm") == pytest.approx(lengths)
    assert by_axis(found, "centre_{}_mm") == pytest.approx([-11.75, 14.0, 34.25])
    assert found["longest_diameter_mm"] == pytest.approx(170**0.5)
    axes = [found[f"axis_{name}_mm"] for name in ("longest", "middle", "shortest")]
    assert axes == pytest.approx(lengths * (5 / 3) ** 0.5)  # a box of length L has the second moment L² / 12
    assert (found["elongation"], found["flatness"]) == pytest.approx((9 / 8, 8 / 5))
    assert by_axis(found, "section_{}_mm2") == pytest.approx([40, 45, 72])
    assert by_axis(found, "section_fill_{}") == pytest.approx([1, 1, 1])
    assert by_axis(found, "asymmetry_{}") == pytest.approx([0, 0, 0], abs=1e-9)
    assert (found["solidity"], found["pieces"], found["largest_piece_share"]) == pytest.approx((1, 1, 1))
    radius = (3 * 360 / (4 * np.pi)) ** (1 / 3)
    assert found["equivalent_diameter_mm"] == pytest.approx(2 * radius)
    assert found["spread"] == pytest.approx((170 / 12) ** 0.5 / (0.6**0.5 * radius))
    assert found["thickness_max_mm"] == pytest.approx(5, abs=0.26)


def test_a_ball():
    affine = make_affine()
    mask, centre = draw_ellipsoid((12, 12, 12), (30, 30, 30), affine)
    found = measure_shape(mask, affine)
    assert found["volume_ml"] == pytest.approx(4 / 3 * np.pi * 12**3 / 1000, rel=0.01)
    assert found["surface_mm2"] == pytest.approx(4 * np.pi * 12**2, rel=0.03)
    assert found["surface_to_volume_per_mm"] == pytest.approx(3 / 12, rel=0.03)
    assert found["sphericity"] == pytest.approx(1, abs=0.03)
    assert found["spread"] == pytest.approx(1, abs=0.01)
    assert (found["elongation"], found["flatness"]) == pytest.approx((1, 1), abs=0.02)
    assert found["axis_longest_mm"] == pytest.approx(24, rel=0.015)
    assert by_axis(found, "extent_{}_mm") == pytest.approx([24] * 3, abs=1.01)
    assert by_axis(found, "centre_{}_mm") == pytest.approx(centre, abs=0.1)
    assert by_axis(found, "section_{}_mm2") == pytest.approx([np.pi * 144] * 3, rel=0.03)
    assert by_axis(found, "section_fill_{}") == pytest.approx([2 / 3] * 3, abs=0.04)
    assert 23 <= found["longest_diameter_mm"] <= 24 + 3**0.5
    assert 0.84 <= found["solidity"] <= 1
    assert found["thickness_max_mm"] == pytest.approx(24, abs=1.75)  # the deepest voxel is not quite at the centre
    assert 0.7 * 24 <= found["thickness_mean_mm"] <= found["thickness_max_mm"]
    assert found["depth_mean_mm"] == pytest.approx(12 / 4, abs=0.5)


@pytest.mark.parametrize("turn", [(0, 0, 0), (20, -15, 30)])
def test_a_ball_on_thick_slices(turn):
    affine = make_affine((1, 1, 4), turn)
    mask, centre = draw_ellipsoid((20, 20, 20), (46, 46, 14), affine)
    found = measure_shape(mask, affine)
    assert found["volume_ml"] == pytest.approx(4 / 3 * np.pi * 20**3 / 1000, rel=0.02)
    assert found["surface_mm2"] == pytest.approx(4 * np.pi * 20**2, rel=0.08)
    assert (found["elongation"], found["flatness"]) == pytest.approx((1, 1), abs=0.03)
    assert by_axis(found, "extent_{}_mm") == pytest.approx([40] * 3, abs=4.3)
    assert by_axis(found, "centre_{}_mm") == pytest.approx(centre, abs=0.3)
    assert found["thickness_max_mm"] == pytest.approx(40, abs=3)


@pytest.mark.parametrize("turn", [(0, 0, 0), (25, -10, 40)])
def test_an_ellipsoid_is_the_same_on_any_grid(turn):
    affine = make_affine(turn=turn)
    mask, _ = draw_ellipsoid((15, 10, 6), (40, 40, 40), affine)
    found = measure_shape(mask, affine)
    assert found["volume_ml"] == pytest.approx(4 / 3 * np.pi * 900 / 1000, rel=0.015)
    axes = [found[f"axis_{name}_mm"] for name in ("longest", "middle", "shortest")]
    assert axes == pytest.approx([30, 20, 12], rel=0.02)
    assert (found["elongation"], found["flatness"]) == pytest.approx((1.5, 5 / 3), rel=0.03)
    assert by_axis(found, "extent_{}_mm") == pytest.approx([30, 20, 12], abs=1.75)
    thomsen = 4 * np.pi * ((150**1.6075 + 90**1.6075 + 60**1.6075) / 3) ** (1 / 1.6075)  # within 1.1 % of the truth
    assert found["surface_mm2"] == pytest.approx(thomsen, rel=0.05)
    assert found["thickness_max_mm"] == pytest.approx(12, abs=1.5)
    assert max(map(abs, by_axis(found, "asymmetry_{}"))) < 0.05 and found["taper"] < 0.05


@pytest.mark.parametrize("lengths", [(1, 1, 1), (5, 4, 3), (20, 20, 20), (1, 7, 9)])
def test_the_surface_of_a_box_is_croftons(lengths):
    found = measure_shape(make_box(lengths), np.eye(4))
    assert found["surface_mm2"] == pytest.approx(crofton_of_box(*lengths), rel=1e-6)


def test_the_surface_of_a_large_box_is_a_tenth_too_small():
    found = measure_shape(make_box((20, 20, 20)), np.eye(4))
    assert 0.89 * 2400 <= found["surface_mm2"] <= 0.91 * 2400


def test_thick_slices_do_not_spoil_the_surface():
    mask, affine = make_box((8, 8, 25)), np.diag([1.0, 1.0, 4.0, 1.0])
    true = 2 * 64 + 4 * 8 * 100
    assert measure_shape(mask, affine)["surface_mm2"] == pytest.approx(true, rel=0.16)
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.ComputePerimeterOn()
    statistics.Execute(itk_image(mask.astype(np.uint8), affine))
    assert statistics.GetPerimeter(1) < 0.7 * true  # its weights are those of cubic voxels


def test_an_angle_fills_six_sevenths_of_its_hull():
    mask = make_box((10, 10, 4))
    mask[8:, 8:] = False  # a square of 5 × 5 of 10 × 10
    assert measure_shape(mask, np.eye(4))["solidity"] == pytest.approx(75 / 87.5)


@pytest.mark.parametrize("voxels", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_thickness_of_a_plate_is_within_half_a_voxel(voxels, axis):
    lengths = [24, 24, 24]
    lengths[axis] = voxels
    found = measure_shape(make_box(lengths), np.diag([0.8, 0.8, 0.8, 1]))
    assert abs(found["thickness_max_mm"] - 0.8 * voxels) <= 0.4 + 1e-9
    assert found["thickness_mean_mm"] == pytest.approx(found["thickness_max_mm"])
    assert found["thickness_sd_mm"] == pytest.approx(0, abs=1e-6)


def test_the_thickness_of_a_rod_is_its_diameter():
    x, y = np.indices((17, 17)) - 8.2
    mask = np.pad(np.repeat((x**2 + y**2 <= 36)[..., None], 40, axis=2), 2)
    found = measure_shape(mask, np.eye(4))
    assert found["thickness_max_mm"] == pytest.approx(12, abs=1)
    assert found["thickness_mean_mm"] == pytest.approx(12, abs=2)


def test_a_wedge_thins_out_to_one_side():
    mask = np.zeros((12, 12, 6), dtype=bool)
    for x in range(12):
        mask[x, : 12 - x] = True
    found = measure_shape(mask, np.eye(4))
    assert found["asymmetry_x"] == pytest.approx(2 * 2**0.5 / 5, abs=0.01)  # of a triangle
    assert found["asymmetry_z"] == pytest.approx(0, abs=1e-9)
    assert found["section_fill_x"] == pytest.approx(6.5 / 12)
    mirrored = measure_shape(mask[::-1], np.eye(4))
    assert mirrored["asymmetry_x"] == pytest.approx(-found["asymmetry_x"])
    assert mirrored["taper"] == pytest.approx(found["taper"])


def test_pieces_are_counted_and_corners_connect():
    found = measure_shape(make_blob(), np.eye(4))
    assert (found["pieces"], found["largest_piece_share"]) == (2, pytest.approx(855 / 863))
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    assert measure_shape(mask, np.eye(4))["pieces"] == 1


# Limits


def test_an_empty_mask_measures_nothing():
    empty = np.zeros((4, 5, 6), dtype=bool)
    found = measure_case(np.ones((4, 5, 6)), empty, np.eye(4))
    assert list(found) == [*SHAPE, *INTENSITY] and set(found.values()) == {0.0}


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 2, 5), (0.7, 2.4, 2.5), (1, 1.5, 2.49), (3, 1, 1)])
def test_a_single_voxel_has_its_own_size(spacing):
    mask = make_box((1, 1, 1))
    found = measure_shape(mask, make_affine(spacing))
    assert np.isfinite(list(found.values())).all()
    assert found["volume_ml"] == pytest.approx(np.prod(spacing) / 1000)
    assert by_axis(found, "extent_{}_mm") == pytest.approx(spacing)
    assert found["longest_diameter_mm"] == pytest.approx(np.linalg.norm(spacing))
    assert found["elongation"] == pytest.approx(sorted(spacing)[2] / sorted(spacing)[1])
    assert (found["solidity"], found["pieces"]) == (pytest.approx(1), 1)
    assert found["surface_mm2"] > 0 and found["depth_mean_mm"] > 0 and found["thickness_mean_mm"] > 0


def test_a_slice_has_its_thickness():
    found = measure_shape(np.ones((20, 30, 1), dtype=bool), np.diag([1, 1, 2.0, 1]))
    assert found["extent_z_mm"] == 2 and found["flatness"] == pytest.approx(20 / 2)


def test_the_edge_of_the_image_is_a_surface():
    affine = make_affine((1, 1, 2.5))
    mask = np.zeros((8, 9, 10), dtype=bool)
    mask[:5, 3:, :4] = True
    moved = affine.copy()
    moved[:3, 3] = apply_affine(affine, (-3, -3, -3))
    assert measure_shape(np.pad(mask, 3), moved) == pytest.approx(measure_shape(mask, affine), rel=1e-9, abs=1e-9)


def test_every_measure_is_a_plain_number():
    blob = make_blob()
    found = measure_case(np.random.default_rng(0).normal(size=blob.shape), blob, np.eye(4))
    assert list(found) == [*SHAPE, *INTENSITY]
    assert all(type(value) is float for value in found.values())


# What changes nothing


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1), (2, 1, 0)])
def test_the_order_of_the_axes_does_not_matter(order):
    affine = make_affine((1, 1, 2), (10, 20, 5))
    moved = affine.copy()
    moved[:3, :3] = affine[:3, order]
    found = measure_shape(make_blob().transpose(order), moved)
    assert found == pytest.approx(measure_shape(make_blob(), affine), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_direction_of_an_axis_does_not_matter(axis):
    affine, mask = make_affine((1, 1, 2), (10, 20, 5)), make_blob()
    flip = np.eye(4)
    flip[axis, axis], flip[axis, 3] = -1, mask.shape[axis] - 1
    found = measure_shape(np.flip(mask, axis), affine @ flip)
    assert found == pytest.approx(measure_shape(mask, affine), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("planes", [(0, 1), (1, 2), (2, 0)])
def test_a_quarter_turn_of_the_mask_changes_directions_alone(planes):
    found, before = (measure_shape(mask, np.eye(4)) for mask in (np.rot90(make_blob(), axes=planes), make_blob()))
    assert undirected(found) == pytest.approx(undirected(before), rel=1e-7, abs=1e-7)
    assert sorted(by_axis(found, "extent_{}_mm")) == pytest.approx(sorted(by_axis(before, "extent_{}_mm")))


def test_a_turn_of_the_grid_changes_directions_alone():
    straight, oblique = make_affine((1, 1.2, 2)), make_affine((1, 1.2, 2), (33, -12, 57))
    found, before = (measure_shape(make_blob(), affine) for affine in (oblique, straight))
    assert undirected(found) == pytest.approx(undirected(before), rel=1e-7, abs=1e-7)
    assert by_axis(found, "extent_{}_mm") != pytest.approx(by_axis(before, "extent_{}_mm"))


def test_a_shift_moves_the_centre_alone():
    affine = make_affine((1, 1, 2), (10, 20, 5))
    found, before = (measure_shape(mask, affine) for mask in (np.roll(make_blob(), (2, 1, 3), (0, 1, 2)), make_blob()))
    moves = [found[name] - before[name] for name in PLACE]
    assert moves == pytest.approx(affine[:3, :3] @ (2, 1, 3))
    same = [name for name in SHAPE if name not in PLACE]
    assert [found[name] for name in same] == pytest.approx([before[name] for name in same], rel=1e-7, abs=1e-7)


def test_measures_scale_by_their_units():
    affine = make_affine((1, 1, 2), (10, 20, 5))
    found = measure_shape(make_blob(), np.diag([2, 2, 2, 1]) @ affine)
    for name, before in measure_shape(make_blob(), affine).items():
        factors = {"_per_mm": 0.5, "_mm": 2, "_mm2": 4, "_ml": 8}
        factor = next((factors[unit] for unit in factors if name.endswith(unit)), 1)
        assert found[name] == pytest.approx(factor * before, rel=1e-7, abs=1e-7), name


# Parity


def test_shapes_are_those_of_simpleitk():
    mask, affine = make_blob(), make_affine((1.5, 1.5, 1.5), (10, 20, 5))
    found = measure_shape(mask, affine)
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.ComputePerimeterOn()
    statistics.ComputeFeretDiameterOn()
    statistics.Execute(itk_image(mask.astype(np.uint8), affine))
    assert found["volume_ml"] == pytest.approx(statistics.GetPhysicalSize(1) / 1000)
    assert found["surface_mm2"] == pytest.approx(statistics.GetPerimeter(1))
    assert found["sphericity"] == pytest.approx(statistics.GetRoundness(1))
    assert found["equivalent_diameter_mm"] == pytest.approx(2 * statistics.GetEquivalentSphericalRadius(1))
    assert by_axis(found, "centre_{}_mm") == pytest.approx(np.array(statistics.GetCentroid(1)) * (-1, -1, 1))
    of_points = np.array(statistics.GetPrincipalMoments(1))
    axes = [found[f"axis_{name}_mm"] for name in ("shortest", "middle", "longest")]
    assert axes == pytest.approx(2 * np.sqrt(5 * (of_points + 1.5**2 / 12)))
    feret = statistics.GetFeretDiameter(1)  # from centre to centre
    assert feret < found["longest_diameter_mm"] <= feret + 1.5 * 3**0.5


def test_moments_are_those_of_numpy_on_a_sheared_grid():
    affine = make_affine((1, 1.2, 3), (33, -12, 57))
    affine[:3, 1] += 0.2 * affine[:3, 0]
    # each voxel as its 2 × 2 × 2 Gauss points, whose second moments are those of the box
    inner = np.stack(np.meshgrid(*[(-(12**-0.5), 12**-0.5)] * 3), axis=-1).reshape(-1, 3)
    points = apply_affine(affine, (np.argwhere(make_blob())[:, None] + inner).reshape(-1, 3))
    found = measure_shape(make_blob(), affine)
    moments = np.linalg.eigvalsh(np.cov(points.T, bias=True))
    assert found["axis_longest_mm"] == pytest.approx(2 * (5 * moments[2]) ** 0.5)
    assert found["flatness"] == pytest.approx((moments[1] / moments[0]) ** 0.5)
    assert by_axis(found, "asymmetry_{}") == pytest.approx(scipy.stats.skew(points, axis=0), abs=1e-9)
    assert found["volume_ml"] == pytest.approx(863 * abs(np.linalg.det(affine)) / 1000)


def test_intensities_are_those_of_scipy_and_simpleitk():
    mask = make_blob()
    image = np.random.default_rng(0).gamma(2, 50, mask.shape)
    found, values = measure_intensity(image, mask), image[mask]
    assert found["intensity_mean"] == pytest.approx(values.mean())
    assert found["intensity_skewness"] == pytest.approx(scipy.stats.skew(values))
    assert found["intensity_kurtosis"] == pytest.approx(scipy.stats.kurtosis(values))
    for percent in (5, 25, 50, 75, 95):
        assert found[f"intensity_p{percent:02d}"] == pytest.approx(np.percentile(values, percent))
    statistics = sitk.LabelIntensityStatisticsImageFilter()
    statistics.Execute(itk_image(mask.astype(np.uint8), np.eye(4)), itk_image(image, np.eye(4)))
    larger = (values.size / (values.size - 1)) ** 0.5  # ITK's deviation is that of a sample
    assert found["intensity_sd"] * larger == pytest.approx(statistics.GetStandardDeviation(1))
    assert found["intensity_skewness"] / larger**3 == pytest.approx(statistics.GetSkewness(1))


# Intensities


def test_contrast_is_to_what_lies_around():
    mask = make_blob()
    image = np.where(mask, 100, 20).astype(np.int16)
    assert measure_intensity(image, mask)["intensity_contrast"] == 80
    assert measure_intensity(image, np.ones_like(mask))["intensity_contrast"] == 0


def test_entropy_counts_bits():
    image = np.tile(np.arange(32.0), (4, 2, 1))
    mask = np.ones(image.shape, dtype=bool)
    assert measure_intensity(image, mask)["intensity_entropy_bits"] == pytest.approx(5)
    assert measure_intensity(image % 2, mask)["intensity_entropy_bits"] == pytest.approx(1)


@pytest.mark.parametrize("value", [0.1, 1e12, -7])
def test_equal_intensities_have_no_spread(value):
    found = measure_intensity(np.full((3, 4, 5), value), np.ones((3, 4, 5), dtype=bool))
    assert found["intensity_mean"] == pytest.approx(value) and found["intensity_p05"] == pytest.approx(value)
    for name in ("sd", "skewness", "kurtosis", "entropy_bits", "contrast"):
        assert found[f"intensity_{name}"] == 0


def test_shape_without_unit_does_not_depend_on_scale_and_offset():
    mask = make_blob()
    image = np.random.default_rng(1).normal(size=mask.shape)
    found, before = measure_intensity(300 * image - 40, mask), measure_intensity(image, mask)
    for name in ("skewness", "kurtosis", "entropy_bits"):
        assert found[f"intensity_{name}"] == pytest.approx(before[f"intensity_{name}"], rel=1e-6, abs=1e-6)
    assert found["intensity_contrast"] == pytest.approx(300 * before["intensity_contrast"])


# Features


def test_features_are_the_measures_but_the_place():
    mask, affine = make_blob(), make_affine((1, 1, 2))
    image = np.random.default_rng(2).normal(size=mask.shape)
    shape, case = measure_shape(mask, affine), measure_case(image, mask, affine)
    of_mask = measure_features(image, affine, mask)
    assert list(of_mask) == feature_names(True) and of_mask.items() <= case.items() and not set(of_mask) & set(PLACE)
    of_image = measure_features(mask * 255.0, affine, mask_above=127)
    assert list(of_image) == feature_names(False, 127) and of_image.items() <= shape.items()
    assert len(of_image) == len(SHAPE) - 3 >= 22
    whole = measure_features(image, affine)
    assert list(whole) == feature_names(False) == list(INTENSITY)
    assert whole["intensity_mean"] == pytest.approx(image.mean())


# Errors


def test_another_number_of_axes_is_named():
    with pytest.raises(TomokitError, match=r"three axes \(X, Y, Z\), got the shape \(4, 5\)"):
        measure_shape(np.ones((4, 5), dtype=bool), np.eye(4))


def test_an_impossible_affine_is_named():
    with pytest.raises(TomokitError, match=r"an affine must be an invertible \(4, 4\) matrix"):
        measure_shape(np.ones((4, 5, 6), dtype=bool), np.zeros((4, 4)))


def test_different_shapes_are_named():
    with pytest.raises(TomokitError, match=r"image \(4, 5, 7\) and mask \(4, 5, 6\) differ in shape"):
        measure_intensity(np.ones((4, 5, 7)), np.ones((4, 5, 6), dtype=bool))


@pytest.mark.parametrize("place", [(5, 6, 7), (2, 6, 7)])  # in the structure, and beside it
def test_intensities_that_are_not_finite_are_counted(place):
    image = np.zeros((24, 20, 18))
    image[place] = np.nan
    image[0, 0, 0] = np.inf  # far away
    with pytest.raises(TomokitError, match="1 intensities that are not finite in or around the mask"):
        measure_intensity(image, make_blob())
