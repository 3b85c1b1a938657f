import numpy as np
import pytest

from tomokit.errors import TomokitError
from tomokit.metrics import jacobian_determinants, landmark_error_mm, share_folded, spread_of_volume

SPACING = (1.0, 2.0, 4.0)


def places():
    return np.stack(np.meshgrid(*(np.arange(8) * size for size in SPACING), indexing="ij"))


def test_a_scaling_changes_every_volume_alike():
    factors = np.array([1.1, 0.8, 1.5])
    field = (factors - 1)[:, None, None, None] * places()
    found = jacobian_determinants(field, SPACING)
    assert found == pytest.approx(1.1 * 0.8 * 1.5)
    assert spread_of_volume(found) == pytest.approx(0, abs=1e-9) and share_folded(found) == 0


def test_a_shear_keeps_volumes_and_no_displacement_too():
    _, y, z = places()
    shear = np.stack([0.5 * y + z, 0 * y, 0 * z])
    assert jacobian_determinants(shear, SPACING) == pytest.approx(1)
    assert jacobian_determinants(np.zeros((3, 4, 4, 4)), SPACING) == pytest.approx(1)


def test_a_fold_is_counted():
    field = np.zeros((3, 8, 8, 8))
    field[0, 4:] = -3  # the right half is moved over the left one, by three voxels
    found = jacobian_determinants(field, (1, 1, 1))
    assert share_folded(found) == 2 / 8  # both slices at the step: 1 - 3 / 2
    assert share_folded(np.array([1.0, 0.0, -1.0, 2.0])) == 0.5


def test_the_spread_is_of_logarithms():
    assert spread_of_volume(np.exp([1.0, -1.0])) == pytest.approx(1)
    assert np.isfinite(spread_of_volume([-1.0, 1.0]))


def test_landmarks_are_measured_in_millimetres():
    assert landmark_error_mm([[0, 0, 0], [3, 4, 0]], [[0, 0, 2], [0, 0, 0]]).tolist() == [2, 5]


@pytest.mark.parametrize("shape", [(2, 4, 4, 4), (3, 4, 4), (3, 1, 4, 4)])
def test_another_shape_is_told(shape):
    with pytest.raises(TomokitError, match=r"must be \(3, X, Y, Z\), two voxels or more each way, got \("):
        jacobian_determinants(np.zeros(shape), SPACING)


def test_what_is_not_finite_is_told():
    field = np.zeros((3, 4, 4, 4))
    field[1, 2, 2, :2] = np.nan, np.inf
    with pytest.raises(TomokitError, match="got 2 of 192 numbers that are not"):
        jacobian_determinants(field, SPACING)


def test_wrong_spacing_and_landmarks_are_told():
    with pytest.raises(TomokitError, match=r"three positive numbers in mm, got \(1, 0, 1\)"):
        jacobian_determinants(np.zeros((3, 4, 4, 4)), (1, 0, 1))
    with pytest.raises(TomokitError, match=r"got \(1, 2\) and \(1, 3\)"):
        landmark_error_mm([[0, 0]], [[0, 0, 0]])
