"""The rival of a network that looks for anomalies: what principal components of normal volumes leave unexplained."""

from typing import Any, NamedTuple

import numpy as np
from monai.transforms import ResizeWithPadOrCrop
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA
from torch.utils.data import Dataset

from tomokit.anomalies import CLEAN, volume_score, voxel_precision
from tomokit.errors import TomokitError

COMPONENTS = 64
HELD_OUT = 5  # every fifth volume tells the usual error
LEAST_SPREAD = 0.5  # of its mean, added to it, so that it is nowhere near 0


class Components(NamedTuple):
    """Principal components of normal volumes, and their mean error at each voxel (X, Y[, Z])."""

    model: PCA
    spread: NDArray[np.float32]


def score_pca(
    normal: Dataset, anomalies: Dataset, percentile: float, smoothing: float, components: int = COMPONENTS
) -> list[dict[str, Any]]:
    """Return a row per test volume, as `summarise_anomalies` takes them.

    The components are fitted on four in five of the normal volumes, brought to the size of the first one about their
    centres; how far they are usually off at each voxel is seen on the rest, and errors are in units of that.

    Args:
        normal: its items have "image" (C, X, Y[, Z]).
        anomalies: a `TestAnomalies`.
        percentile: of its voxels' scores that is a volume's score.
        smoothing: of the scores, one deviation of a Gaussian in voxels.
        components: at most, and fewer than normal volumes.

    Raises:
        TomokitError: when there are fewer than five normal volumes.
    Source: Baur et al., Autoencoders for unsupervised anomaly segmentation, Medical Image Analysis 69 (2021).
    """
    model = fit_pca(normal, components)
    rows = []
    for number in range(len(anomalies)):  # type: ignore[arg-type]  # it has a length
        item = anomalies[number]
        scores = pca_scores(model, np.asarray(item["image"]), smoothing)
        row = {key: item[key] for key in ("case", "patient", "kind")}
        row["score"] = volume_score(scores, percentile)
        if row["kind"] != CLEAN:
            row["voxel_ap"] = voxel_precision(scores, np.asarray(item["mask"])[0])
        rows.append(row)
    return rows


def fit_pca(normal: Dataset, components: int) -> Components:
    """Return the principal components of normal volumes, and what they usually leave unexplained.

    Raises:
        TomokitError: when there are fewer than five volumes.
    """
    count = len(normal)  # type: ignore[arg-type]  # it has a length
    if count < HELD_OUT:
        raise TomokitError(f"principal components need {HELD_OUT} normal volumes, got {count}; set `rival: false`")
    shape = tuple(np.asarray(normal[0]["image"]).shape[1:])
    table = np.stack([_fit(np.asarray(normal[number]["image"]), shape).ravel() for number in range(count)])
    held = np.arange(count) % HELD_OUT == 0
    model = PCA(min(components, int((~held).sum()) - 1), svd_solver="randomized", random_state=0).fit(table[~held])
    errors = np.abs(table[held] - model.inverse_transform(model.transform(table[held])))
    return Components(model, errors.reshape(-1, *shape).mean(0))


def pca_scores(components: Components, image: NDArray[Any], smoothing: float) -> NDArray[np.float32]:
    """Return the scores (X, Y[, Z]) of an image (C, X, Y[, Z]); 0 beyond the size that the components have."""
    spread = gaussian_filter(components.spread, smoothing, mode="nearest")
    fitted = _fit(image, spread.shape)
    made = components.model.inverse_transform(components.model.transform(fitted.reshape(1, -1)))
    errors = np.abs(fitted - made.reshape(fitted.shape)).mean(0)
    scores = gaussian_filter(errors, smoothing, mode="nearest") / (spread + LEAST_SPREAD * spread.mean())
    return np.asarray(ResizeWithPadOrCrop(image.shape[1:], mode="constant")(scores[None]))[0]


def _fit(image: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return an image (C, X, Y[, Z]) cropped or padded about its centre."""
    return np.asarray(ResizeWithPadOrCrop(shape, mode="edge")(image)).astype(np.float32)
