"""How well a registration fits: structures' overlap, folds, how unevenly space is bent, likeness of the images."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.metrics import CumulativeIterationMetric
from monai.transforms import MapTransform
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tomokit.errors import TomokitError
from tomokit.geometry import spacing_from_affine
from tomokit.losses import LocalCorrelation
from tomokit.losses.targets import one_hot, split_target
from tomokit.metrics.deformations import jacobian_determinants, share_folded, spread_of_volume
from tomokit.metrics.entries import NO_ROWS, Row, mean_entry
from tomokit.networks.registration import warp
from tomokit.registration.displacements import moved_labels

MEASURES = ("dice", "folds", "sdlogj", "seconds")


class MovedLabelsd(MapTransform):
    """Turns a displacement into the moving label map as it is moved, and the pair's target into the fixed label map.

    Both become (1, X, Y, Z): structures are numbered from 1 in the order of `structures`, all else is 0.

    Args:
        keys: the key of the displacement (3, X, Y, Z) in voxels.
        structures: the values of the structures in the label maps.
        label_key: the key of the target, as `join_target` makes it.
    """

    def __init__(self, keys: KeysCollection, structures: Sequence[int], label_key: str = "label") -> None:
        super().__init__(keys)
        self.structures = tuple(structures)
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with both label maps."""
        result = dict(data)
        fixed, moving = split_target(torch.as_tensor(result[self.label_key])[None], labelled=True)
        shares = one_hot(moving.label, self.structures)
        for key in self.key_iterator(result):
            moved = warp(shares, torch.as_tensor(result[key])[None].float(), padding_mode="zeros")
            result[key] = torch.cat([1 - moved.sum(1, keepdim=True), moved], 1).argmax(1).float()
        own = one_hot(fixed.label, self.structures)
        result[self.label_key] = torch.cat([1 - own.sum(1, keepdim=True), own], 1).argmax(1).float()
        return result


class Likeness(CumulativeIterationMetric):
    """MONAI metric: the mean squared local correlation of moved and fixed volumes, 0 to 1, where both are image.

    It takes displacements (B, d, X, Y[, Z]) in voxels and targets without label maps, as `join_target` makes them, or
    lists of single ones.

    Args:
        window: edge of the cube in which both are compared, in voxels, odd.
    """

    def __init__(self, window: int = 7) -> None:
        super().__init__()
        self.loss = LocalCorrelation(window)

    def _compute_tensor(self, y_pred: Tensor, y: Tensor, **_: Any) -> Tensor:
        fixed, moving = split_target(y, labelled=False)
        moved = warp(moving.image, y_pred.to(moving.image))
        mask = fixed.mask * warp(moving.mask, y_pred.to(moving.mask), padding_mode="zeros")
        found = [1 - self.loss(*(part[[place]] for part in (moved, fixed.image, mask))) for place in range(len(y))]
        return torch.stack(found)[:, None]

    def aggregate(self) -> float:
        """Return the metric over all pairs since the last reset."""
        kept = self.get_buffer()
        return math.nan if kept is None else float(torch.as_tensor(kept).mean())


def score_registration(
    displacement: NDArray[np.float32],
    affine: ArrayLike,
    labels: tuple[NDArray[Any], NDArray[Any]] | None = None,
    moving_affine: ArrayLike | None = None,
    structures: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """Return the scores of a pair: "folds", "sdlogj", and with label maps "dice" and "dice_<structure>".

    "folds" is the share of the fixed scan's voxels at which space is folded, "sdlogj" the deviation of the logarithm of
    how their volume changes. A structure that both label maps lack has None, and "dice" is the mean of the others.

    Args:
        displacement: (3, X, Y, Z) on the fixed scan's grid, in mm (RAS).
        affine: (4, 4) of the fixed scan.
        labels: label maps of the fixed and of the moving scan.
        moving_affine: (4, 4) of the moving scan.
        structures: which labels are scored, with their names.
    """
    spacing = spacing_from_affine(affine)
    axes = np.asarray(affine, float)[:3, :3] / spacing
    own = np.linalg.solve(axes, displacement.reshape(3, -1).astype(float)).reshape(displacement.shape)
    determinants = jacobian_determinants(own, spacing)
    scores: dict[str, Any] = {}
    if labels is not None and structures:
        fixed, moving = labels
        assert moving_affine is not None
        moved = moved_labels(moving, list(structures), moving_affine, displacement, affine)
        for value, name in structures.items():
            scores[f"dice_{name}"] = _dice(moved == value, fixed == value)
        known = [score for score in scores.values() if score is not None]
        scores = {"dice": float(np.mean(known)) if known else None, **scores}
    return {**scores, "folds": share_folded(determinants), "sdlogj": spread_of_volume(determinants)}


def _dice(one: NDArray[np.bool_], two: NDArray[np.bool_]) -> float | None:
    """Return the Dice of two masks, None where both are empty."""
    total = int(one.sum()) + int(two.sum())
    return 2 * int((one & two).sum()) / total if total else None


def summarise_registration(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the scores over a test set as {"summary": …, "per_class": …}.

    Rows carry "case", "patient" (the fixed scan's), "folds", "sdlogj", "seconds", and perhaps "dice" and
    "dice_<structure>". Each score is {"mean", "ci95": [low, high] or None, "n": patients, "cases"}; pairs are resampled
    by the patient of their fixed scan.

    Raises:
        TomokitError: when there are no rows.
    """
    if not rows:
        raise TomokitError(NO_ROWS.format("registered"))
    summary = {name: _mean(rows, name) for name in MEASURES if name in rows[0]}
    names = [name for name in rows[0] if name.startswith("dice_")]
    return {
        "summary": summary,
        "per_class": {name.removeprefix("dice_"): {"dice": _mean(rows, name)} for name in names},
    }


def _mean(rows: Sequence[Row], name: str) -> dict[str, Any]:
    """Return the mean of a score over the rows that have it, as an entry of metrics.json."""
    known = [row for row in rows if row[name] is not None]
    return mean_entry([row[name] for row in known], [str(row["patient"]) for row in known])
