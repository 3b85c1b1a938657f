"""The size of a batch's voxels, by which mm become voxels."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from tomokit.errors import TomokitError

SPACING = "spacing"


def spacing_of(data: Mapping[Hashable, Any], transform: object) -> Tensor:
    """Return the voxels' size in mm (B, dimensions) of a batch, on the CPU, where draws are made.

    Raises:
        TomokitError: when the batch does not tell it.
    """
    if SPACING not in data:
        raise TomokitError(
            f"{type(transform).__name__} is told in mm, and the batch has no `{SPACING}`; put NoteSpacingd into the "
            f"preprocessing, and `context: [{SPACING}]` into PrepareBatch"
        )
    return torch.as_tensor(data[SPACING]).to("cpu", torch.float32)
