import nibabel
import numpy as np
import pytest

from tomokit.errors import TomokitError
from tomokit.geometry import axis_codes, check_affine, grid_difference, spacing_from_affine, voxel_volume_ml

SHAPE = (11, 21, 31)


def affine_of(spacing, angle=0.0, origin=(0, 0, 0)):
    """Return an affine rotated about z by `angle` radians."""
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


@pytest.mark.parametrize("angle", [0, 0.3, 2.0])
def test_spacing_and_volume_of_a_turned_grid(angle):
    affine = affine_of((1, 2, 5), angle, origin=(-7, 3, 100))
    assert spacing_from_affine(affine) == pytest.approx((1, 2, 5))
    assert voxel_volume_ml(affine) == pytest.approx(0.01)


def test_volume_of_a_sheared_grid():
    affine = np.eye(4)
    affine[0, 2] = 1  # a tilted gantry: slices are shifted, their distance is not
    assert voxel_volume_ml(affine) == pytest.approx(0.001)
    assert spacing_from_affine(affine)[2] == pytest.approx(2**0.5)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA", "PIR"])
def test_axis_codes(codes):
    turn = nibabel.orientations.axcodes2ornt(codes)
    affine = np.linalg.inv(nibabel.orientations.inv_ornt_aff(turn, SHAPE))
    assert axis_codes(affine) == codes
    assert "".join(nibabel.aff2axcodes(affine)) == codes


def test_axis_codes_of_an_oblique_grid_are_the_nearest():
    assert axis_codes(affine_of((1, 1, 3), angle=0.3)) == "RAS"


def test_same_grids():
    affine = affine_of((1, 2, 5), 0.3)
    assert grid_difference(affine, SHAPE, affine, list(SHAPE)) is None
    assert grid_difference(affine, SHAPE, affine_of((1, 2, 5), 0.3, (0.005, 0, 0)), SHAPE) is None


def test_a_shifted_grid():
    shifted = affine_of((1, 1, 1), origin=(3, 4, 0))
    assert "up to 5 mm apart" in grid_difference(np.eye(4), SHAPE, shifted, SHAPE)
    assert grid_difference(np.eye(4), SHAPE, shifted, SHAPE, tolerance_mm=5.001) is None


def test_a_small_error_in_spacing_adds_up_at_the_far_corner():
    text = grid_difference(np.eye(4), SHAPE, affine_of((1, 1, 1.01)), SHAPE)
    assert "up to 0.3 mm apart" in text
    assert "1 × 1 × 1 and 1 × 1 × 1.01 mm" in text


def test_grids_of_other_shape_and_orientation():
    assert "(11, 21, 31) and (11, 21, 30)" in grid_difference(np.eye(4), SHAPE, np.eye(4), (11, 21, 30))
    flipped = np.diag([-1.0, -1, 1, 1])
    assert "axes RAS and LPS" in grid_difference(np.eye(4), SHAPE, flipped, SHAPE)


def test_the_worst_corner_bounds_every_voxel():
    generator = np.random.default_rng(0)
    for _ in range(20):
        a, b = (affine_of(generator.uniform(0.5, 3, 3), generator.uniform(0, 0.1)) for _ in range(2))
        voxels = generator.integers(0, SHAPE, size=(200, 3))
        gaps = nibabel.affines.apply_affine(a, voxels) - nibabel.affines.apply_affine(b, voxels)
        worst = float(grid_difference(a, SHAPE, b, SHAPE, tolerance_mm=0).split("up to ")[1].split(" mm")[0])
        assert np.linalg.norm(gaps, axis=1).max() <= worst * 1.01


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.eye(3), r"got \[\[1.0, 0.0, 0.0\]"),
        (np.diag([1.0, 0, 1, 1]), r"\[0.0, 0.0, 0.0, 0.0\]"),
        (np.full((4, 4), np.nan), "nan"),
        (np.diag([1.0, 1, 1, 2]), r"\[0.0, 0.0, 0.0, 2.0\]"),
    ],
)
def test_wrong_affines(affine, message):
    for function in (check_affine, spacing_from_affine, axis_codes, voxel_volume_ml):
        with pytest.raises(TomokitError, match=message):
            function(affine)
    with pytest.raises(TomokitError, match=message):
        grid_difference(np.eye(4), SHAPE, affine, SHAPE)
