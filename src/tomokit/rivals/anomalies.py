"""The rival of a network that looks for anomalies: what few principal components of normal volumes leave unexplained."""

from typing import Any

import numpy as np
from monai.transforms import ResizeWithPadOrCrop
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA
from torch.utils.data import Dataset

from tomokit.anomalies import CLEAN, volume_score, voxel_precision
from tomokit.errors import TomokitError

COMPONENTS = 32


def score_pca(
    normal: Dataset, anomalies: Dataset, percentile: float, smoothing: float, components: int = COMPONENTS
) -> list[dict[str, Any]]:
    """Return a row per test volume, as `summarise_anomalies` takes them.

    The components are fitted on the normal volumes, brought to the size of the first one about their centres.

    Args:
        normal: its items have "image" (C, X, Y[, Z]).
        anomalies: a `TestAnomalies`.
        percentile: of its voxels' scores that is a volume's score.
        smoothing: of the scores, one deviation of a Gaussian in voxels.
        components: at most, and fewer than normal volumes.

    Raises:
        TomokitError: when there are fewer than three normal volumes.
    Source: Baur et al., Autoencoders for unsupervised anomaly segmentation, Medical Image Analysis 69 (2021).
    """
    model, shape = fit_pca(normal, components)
    rows = []
    for number in range(len(anomalies)):  # type: ignore[arg-type]  # it has a length
        item = anomalies[number]
        scores = pca_scores(model, shape, np.asarray(item["image"]), smoothing)
        row = {key: item[key] for key in ("case", "patient", "kind")}
        row["score"] = volume_score(scores, percentile)
        if row["kind"] != CLEAN:
            row["voxel_ap"] = voxel_precision(scores, np.asarray(item["mask"])[0])
        rows.append(row)
    return rows


def fit_pca(normal: Dataset, components: int) -> tuple[PCA, tuple[int, ...]]:
    """Return the principal components of normal volumes, and the size (X, Y[, Z]) that they have."""
    count = len(normal)  # type: ignore[arg-type]  # it has a length
    if count < 3:
        raise TomokitError(f"principal components need 3 normal volumes, got {count}; set `rival: false`")
    first = np.asarray(normal[0]["image"])
    shape = tuple(first.shape[1:])
    fit = ResizeWithPadOrCrop(shape, mode="edge")
    table = np.stack([np.asarray(fit(np.asarray(normal[i]["image"]))).ravel() for i in range(count)])
    model = PCA(min(components, count - 1), svd_solver="randomized", random_state=0)
    return model.fit(table.astype(np.float32)), shape


def pca_scores(model: PCA, shape: tuple[int, ...], image: NDArray[Any], smoothing: float) -> NDArray[np.float32]:
    """Return the scores (X, Y[, Z]) of an image (C, X, Y[, Z]); 0 beyond the size that the components have."""
    fitted = np.asarray(ResizeWithPadOrCrop(shape, mode="edge")(image)).astype(np.float32)
    made = model.inverse_transform(model.transform(fitted.reshape(1, -1))).reshape(fitted.shape)
    scores = gaussian_filter(np.abs(fitted - made).mean(0), smoothing, mode="nearest")
    return np.asarray(ResizeWithPadOrCrop(image.shape[1:], mode="constant")(scores[None]))[0]
