"""How near an image is to another: peak signal-to-noise ratio, structural similarity."""

from typing import Any

import numpy as np
import torch
from monai.metrics.regression import PSNRMetric, SSIMMetric
from numpy.typing import NDArray

from tomokit.errors import TomokitError

WINDOW, SIGMA = 11, 1.5  # of the structural similarity, in voxels


def psnr(image: NDArray[Any], truth: NDArray[Any], data_range: float) -> float:
    """Return the peak signal-to-noise ratio in dB of an image (X, Y[, Z]); infinite where both are equal.

    `data_range` is the range of values that can be, such as 1.

    Raises:
        TomokitError: when the shapes differ, or the range is not above 0.
    """
    pair = _batches(image, truth, data_range)
    return float("inf") if np.array_equal(image, truth) else float(PSNRMetric(max_val=data_range)(*pair))


def ssim(image: NDArray[Any], truth: NDArray[Any], data_range: float) -> float:
    """Return the structural similarity of an image (X, Y[, Z]), at most 1, over a Gaussian window of 11 voxels.

    Raises:
        TomokitError: when the shapes differ, the range is not above 0, or the image is smaller than the window.
    Source: Wang et al., Image quality assessment, IEEE Transactions on Image Processing 13 (2004).
    """
    pair = _batches(image, truth, data_range)
    if min(image.shape) < WINDOW:
        raise TomokitError(f"the structural similarity needs {WINDOW} voxels along each axis, got {image.shape}")
    return float(SSIMMetric(image.ndim, data_range=data_range, win_size=WINDOW, kernel_sigma=SIGMA)(*pair))


def _batches(image: NDArray[Any], truth: NDArray[Any], data_range: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both as batches of one image of one channel."""
    if image.shape != truth.shape or image.ndim not in (2, 3):
        raise TomokitError(f"both images must be of one shape (X, Y[, Z]), got {image.shape} and {truth.shape}")
    if not data_range > 0:
        raise TomokitError(f"`data_range` must be above 0, such as 1.0, got {data_range}")
    one, two = (torch.from_numpy(np.ascontiguousarray(own, dtype=np.float32))[None, None] for own in (image, truth))
    return one, two
