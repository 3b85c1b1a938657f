import numpy as np
import pytest
import scipy.ndimage

from tomokit.errors import TomokitError
from tomokit.metrics import psnr, ssim


def pair(shape):
    generator = np.random.default_rng(0)
    truth = generator.uniform(size=shape).astype(np.float32)
    return np.clip(truth + 0.1 * generator.normal(size=shape), 0, 1).astype(np.float32), truth


def test_the_ratio_is_its_closed_form():
    truth = np.zeros((8, 9, 10), np.float32)
    assert psnr(truth + 0.1, truth, 1.0) == pytest.approx(20, abs=1e-4)
    assert psnr(truth + 10, truth, 100.0) == pytest.approx(20, abs=1e-4)
    assert psnr(truth, truth, 1.0) == float("inf")


@pytest.mark.parametrize("shape", [(30, 33), (24, 21, 20)])
def test_the_similarity_agrees_with_another_implementation(shape):
    image, truth = (own.astype(float) for own in pair(shape))

    def smooth(array):
        return scipy.ndimage.gaussian_filter(array, 1.5, radius=5)

    one, two = smooth(image), smooth(truth)
    both = smooth(image * truth) - one * two
    spread = smooth(image**2) - one**2 + smooth(truth**2) - two**2
    local = (2 * one * two + 0.01**2) * (2 * both + 0.03**2) / ((one**2 + two**2 + 0.01**2) * (spread + 0.03**2))
    inside = tuple(slice(5, -5) for _ in shape)
    assert ssim(image, truth, 1.0) == pytest.approx(local[inside].mean(), abs=1e-4)
    assert ssim(truth, truth, 1.0) == pytest.approx(1, abs=1e-6)


def test_wrong_input_is_told():
    image = np.zeros((12, 12), np.float32)
    with pytest.raises(TomokitError, match=r"\(12, 12\) and \(12, 13\)"):
        psnr(image, np.zeros((12, 13)), 1.0)
    with pytest.raises(TomokitError, match=r"`data_range` must be above 0, such as 1\.0, got 0"):
        ssim(image, image, 0)
    with pytest.raises(TomokitError, match=r"needs 11 voxels along each axis, got \(10, 12\)"):
        ssim(image[:10], image[:10], 1.0)
