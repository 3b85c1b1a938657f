"""Random changes that are drawn once for a case, the same in every validation."""

import hashlib
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_dst_type
from torch import Tensor


class FixedDraws(Transform):
    """Changes a case as a batch of one would be changed, by draws that follow from the seed and its name alone.

    A cache may keep the outcome: nothing of it is random any more. The generators are left as they were.

    Args:
        transform: of a batch, `{"image": (B, C, X, Y[, Z]), "label": …}`.
        seed: of the draws.
    """

    def __init__(self, transform: Callable[[dict[Hashable, Any]], Mapping[Hashable, Any]], seed: int = 0) -> None:
        self.transform = transform
        self.seed = seed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case, its tensors (C, X, Y[, Z]) changed; `case` is its name."""
        batch: dict[Hashable, Any] = {key: plain(value)[None] for key, value in data.items() if _is_image(value)}
        digest = hashlib.sha256(f"{self.seed} {data['case']}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            changed = self.transform(batch)
        result = dict(data)
        for key, value in changed.items():
            result[key] = convert_to_dst_type(value[0], data.get(key, data["image"]))[0]
        return result


def plain(value: Tensor) -> Tensor:
    """Return the tensor without MONAI's metadata, as a batch has it."""
    return value.as_tensor() if isinstance(value, MetaTensor) else value


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 2
