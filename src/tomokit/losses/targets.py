"""What a network is told of a pair beside its input: images, masks and label maps of both scans, as one tensor."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tomokit.errors import TomokitError

PARTS = ("image", "mask", "label")


class Side(NamedTuple):
    """One scan of a pair: image (B, C, X, Y[, Z]), mask (B, 1, …), label map (B, 1, …) or None."""

    image: Tensor
    mask: Tensor
    label: Tensor | None


def join_target(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the target of pairs, (B, 2·(C + 1), X, Y[, Z]), or with label maps (B, 2·(C + 2), …).

    Args:
        batch: of the fixed scans, then of the moving ones, `image` (2·B, C, X, Y[, Z]), `mask` (2·B, 1, …), perhaps
            `label` (2·B, 1, …).
    """
    return torch.cat(torch.cat([batch[part] for part in PARTS if part in batch], 1).chunk(2), 1)


def split_target(target: Tensor, labelled: bool) -> tuple[Side, Side]:
    """Return the fixed and the moving scan of what `join_target` made.

    Raises:
        TomokitError: when the channels are not those of two scans.
    """
    more = 1 + labelled
    channels = target.shape[1] // 2 - more
    if target.shape[1] % 2 or channels < 1:
        raise TomokitError(
            f"a pair's target must be (B, 2·(C + {more}), …): image, mask{', label map' * labelled} of both scans, got "
            f"{tuple(target.shape)}"
        )
    sides = []
    for half in target.chunk(2, 1):
        label = half[:, channels + 1 :] if labelled else None
        sides.append(Side(half[:, :channels], half[:, channels : channels + 1], label))
    return sides[0], sides[1]


def one_hot(label: Tensor | None, structures: Sequence[int]) -> Tensor:
    """Return each structure of label maps (B, 1, X, Y[, Z]) by itself: (B, structures, X, Y[, Z]), 0 or 1.

    Raises:
        TomokitError: when there is no label map or no structure.
    """
    if label is None or not structures:
        raise TomokitError(f"structures {list(structures)} need label maps of the pair, got {label}")
    return torch.cat([label == value for value in structures], 1).float()
