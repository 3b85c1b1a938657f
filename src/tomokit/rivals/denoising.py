"""Filters that need no training, each at its best strength: Gaussian, total variation, non-local means, a fill.

scikit-image is imported late: it takes half a second, and only evaluations need it.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomokit.degradation.holes import HOLE
from tomokit.errors import TomokitError

Image = NDArray[np.float32]
Pair = tuple[Image, Image]
LEAST_WEIGHT = 1e-6  # of the known voxels near a hole
NLM_H = 0.8  # of the noise: what scikit-image advises for the fast form


def smooth(image: Image, strength: float) -> Image:
    """Return the image (X, Y[, Z]) smoothed by a Gaussian of `strength` voxels."""
    return np.asarray(ndimage.gaussian_filter(image, strength), np.float32)


def reduce_variation(image: Image, strength: float) -> Image:
    """Return the image (X, Y[, Z]) with less total variation; `strength` is its weight.

    Source: Chambolle, An algorithm for total variation minimization, Journal of Mathematical Imaging and Vision 20
        (2004).
    """
    from skimage.restoration import denoise_tv_chambolle

    return np.asarray(denoise_tv_chambolle(image, weight=strength), np.float32)


def average_alike(image: Image, strength: float) -> Image:
    """Return the image (X, Y[, Z]) whose voxels are means over patches that look alike.

    `strength` is the noise's deviation that is assumed, as a share of the range.

    Source: Buades et al., A non-local algorithm for image denoising, CVPR 2005; with their later fast form and noise
        correction, Darbon et al., ISBI 2008.
    """
    from skimage.restoration import denoise_nl_means

    fit = {"h": NLM_H * strength, "sigma": strength}
    return np.asarray(denoise_nl_means(image, patch_size=3, patch_distance=3, fast_mode=True, **fit), np.float32)


def fill(image: Image, strength: float) -> Image:
    """Return the image (X, Y[, Z]) with its holes, below 0, filled by a Gaussian mean of `strength` voxels around them.

    Source: Knutsson and Westin, Normalized and differential convolution, CVPR 1993.
    """
    known = (image > HOLE / 2).astype(np.float32)
    weights = ndimage.gaussian_filter(known, strength)
    near = ndimage.gaussian_filter(image * known, strength) / np.maximum(weights, LEAST_WEIGHT)
    return np.where(known > 0, image, near).astype(np.float32)


# the strengths to choose from
FILTERS: dict[str, tuple[Callable[[Image, float], Image], tuple[float, ...]]] = {
    "gaussian": (smooth, (0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)),
    "tv": (reduce_variation, (0.01, 0.02, 0.03, 0.045, 0.06, 0.08, 0.11, 0.15)),
    "fill": (fill, (0.7, 1.0, 1.5, 2.0, 3.0)),
    "nlm": (average_alike, (0.01, 0.02, 0.03, 0.045, 0.065, 0.09, 0.12)),
}


def choose_strength(name: str, pairs: Sequence[Pair]) -> float:
    """Return the strength at which a filter comes nearest to clean images, by the mean of its PSNR.

    Args:
        name: of the filter: "gaussian", "tv", "nlm" or "fill".
        pairs: degraded and clean images (X, Y[, Z]), from 0 to 1.

    Raises:
        TomokitError: when there is no such filter, or no pair to choose on.
    """
    change, strengths = _filter(name)
    if not pairs:
        raise TomokitError(f"no cases to choose the strength of {name} on, got an empty list")

    def error(strength: float) -> float:
        found = [np.mean((change(image, strength).clip(0, 1) - clean) ** 2) for image, clean in pairs]
        return float(np.mean(np.log(np.maximum(found, 1e-12))))

    return min(strengths, key=error)


def apply_filter(name: str, image: Image, strength: float) -> Image:
    """Return a degraded image (X, Y[, Z]) filtered.

    Raises:
        TomokitError: when there is no such filter.
    """
    return _filter(name)[0](image, strength)


def check_filters(names: Sequence[str]) -> Mapping[str, None]:
    """Return the names of filters.

    Raises:
        TomokitError: when one of them is none.
    """
    for name in names:
        _filter(name)
    return dict.fromkeys(names)


def _filter(name: str) -> tuple[Callable[[Image, float], Image], tuple[float, ...]]:
    """Return a filter with its strengths."""
    if name not in FILTERS:
        raise TomokitError(f"rivals must be of {', '.join(FILTERS)}, got {name!r}")
    return FILTERS[name]
