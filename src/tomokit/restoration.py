"""How well distorted images are restored: measures, a metric of training, a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from torch import Tensor

from tomokit.errors import TomokitError
from tomokit.metrics import Row, mean_entry, psnr
from tomokit.panels import Panel, PanelRow, draw_rows, middle_slice
from tomokit.pictures import grey_range

TASK = "pretraining"
MEASURES = ("restored", "error", "error_distorted", "psnr_db", "psnr_distorted_db")
TITLES = ("as it was", "distorted", "restored")
CONVENTION = "The middle axial slice of each patch; the patient's right is on the left."


def restored_share(restored: Tensor, distorted: Tensor, target: Tensor) -> Tensor:
    """Return of each image how much of the distortion's error was undone: 1 all of it, 0 nothing, below 0 it grew.

    It is 1 less the mean absolute error of the restored image over that of the distorted one; NaN where the distortion
    changed nothing.

    Args:
        restored: (B, C, X, Y[, Z]).
        distorted: likewise.
        target: the clean image; with a last channel more, only voxels above 0 in that one count.

    Raises:
        TomokitError: when the shapes do not fit.
    """
    after, before = mean_errors(restored, target), mean_errors(distorted, target)
    return torch.where(before > 0, 1 - after / before, math.nan)


def mean_errors(image: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute error (B,) of images (B, C, X, Y[, Z]) over the voxels that count in the target.

    Raises:
        TomokitError: when the shapes do not fit.
    """
    channels = image.shape[1]
    if target.shape[1] - channels not in (0, 1) or target.shape[2:] != image.shape[2:] or len(target) != len(image):
        raise TomokitError(
            f"a target has its image's channels, or one more that maps what counts; got {tuple(target.shape)} for "
            f"{tuple(image.shape)}"
        )
    errors = (image.double() - target[:, :channels].double()).abs()
    counts = (target[:, channels:] > 0 if target.shape[1] > channels else torch.ones_like(errors[:, :1])).double()
    axes = tuple(range(1, image.ndim))
    return (errors * counts).sum(axes) / (counts.sum(axes) * channels).clamp(min=1)


class RestoredShare(CumulativeIterationMetric):
    """MONAI metric: the mean of `restored_share` over the images.

    It takes outputs (B, C, X, Y[, Z]) and, as the truth, the distorted image and the target as one tensor with all
    channels of the former first; or lists of single ones.
    """

    def _compute_tensor(self, y_pred: Tensor, y: Tensor, **_: Any) -> Tensor:
        channels = y_pred.shape[1]
        return restored_share(y_pred, y[:, :channels], y[:, channels:])[:, None]

    def aggregate(self) -> float:
        """Return the mean over all images since the last reset; NaN without any."""
        kept = self.get_buffer()
        if kept is None:
            return math.nan
        return float(torch.as_tensor(kept).double().nanmean())


def measure_restoration(restored: Tensor, distorted: Tensor, target: Tensor) -> dict[str, float | None]:
    """Return the `MEASURES` of one image (C, X, Y[, Z]); errors in the units of the normalised image.

    The peak signal-to-noise ratios are over all voxels, with the clean image's range of values; None where infinite.

    Raises:
        TomokitError: when the shapes do not fit.
    """
    batch = [part[None] for part in (restored, distorted, target)]
    share = float(restored_share(*batch)[0])
    clean = target[: len(restored)]
    extent = float(clean.max() - clean.min())
    ratios = [_mean_psnr(own, clean, extent) for own in (restored, distorted)]
    values = (share, float(mean_errors(batch[0], batch[2])[0]), float(mean_errors(batch[1], batch[2])[0]), *ratios)
    return {name: value if math.isfinite(value) else None for name, value in zip(MEASURES, values, strict=True)}


def summarise_restoration(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the mean of each measure over the cases where it is a number, with its 95 % interval by patient."""
    summary = {}
    for name in MEASURES:
        known = [row for row in rows if row[name] is not None]
        summary[name] = mean_entry([row[name] for row in known], [row["patient"] for row in known])
    return {"summary": summary, "per_class": {}}


def draw_restorations(cases: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write a PNG with a row per case: the patch as it was, distorted, restored.

    A case has "title", and "clean", "distorted" and "restored", (X, Y[, Z]) of one shape, turned to RAS. The grey runs
    from the 1st to the 99th percentile of the clean patch.

    Raises:
        TomokitError: when there is no case, or the file can't be written.
    """
    rows = []
    for case in cases:
        low, high = grey_range(case["clean"])
        look = {"cmap": "gray", "vmin": low, "vmax": high}
        planes = [middle_slice(case[key]) for key in ("clean", "distorted", "restored")]
        panels = [Panel(title, plane, look) for title, plane in zip(TITLES, planes, strict=True)]
        rows.append(PanelRow(case["title"], panels))
    draw_rows(rows, path, CONVENTION)


def _mean_psnr(image: Tensor, clean: Tensor, extent: float) -> float:
    """Return the mean over the channels of the ratio in dB; infinite where nothing differs."""
    if not extent > 0:
        return math.inf
    return float(np.mean([psnr(own.numpy(), truth.numpy(), extent) for own, truth in zip(image, clean, strict=True)]))
