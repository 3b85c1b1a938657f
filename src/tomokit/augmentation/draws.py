"""Checked arguments, draws on the CPU, and the change of a batch's drawn samples alone."""

import math
from collections.abc import Callable, Sequence

import torch
from monai.utils import ensure_tuple_rep
from torch import Tensor

from tomokit.errors import TomokitError

Range = tuple[float, float]


def check_probability(name: str, value: float) -> float:
    """Return a probability.

    Raises:
        TomokitError: when it is not in 0–1.
    """
    if not 0 <= value <= 1:
        raise TomokitError(f"{name} must lie in 0–1, got {value}")
    return float(value)


def check_range(name: str, ends: Sequence[float], least: float = -math.inf, greatest: float = math.inf) -> Range:
    """Return a range as its two ends.

    Raises:
        TomokitError: when they are not two finite numbers in order between `least` and `greatest`.
    """
    values = tuple(ends)
    ordered = len(values) == 2 and least <= values[0] <= values[1] <= greatest
    if not ordered or not all(map(math.isfinite, values)):
        limits = "" if math.isinf(least) else f" from {least:g}" + ("" if math.isinf(greatest) else f" to {greatest:g}")
        raise TomokitError(f"{name} must be two numbers{limits}, the lower one first, got {values}")
    return float(values[0]), float(values[1])


def per_axis(name: str, value: float | Sequence[float], count: int) -> tuple[float, ...]:
    """Return one number for each of `count` axes.

    Raises:
        TomokitError: when there are more or fewer.
    """
    if isinstance(value, int | float):
        return tuple(ensure_tuple_rep(value, count))
    if len(value) != count:
        raise TomokitError(f"{name} must be one number or {count} for images of this shape, got {tuple(value)}")
    return tuple(value)


def check_axes(name: str, value: int | Sequence[int]) -> list[int]:
    """Return axes of (X, Y, Z) in order, each once.

    Raises:
        TomokitError: when one is not 0, 1 or 2: a negative one would be hidden from other checks.
    """
    axes = [value] if isinstance(value, int) else value
    if axes is None or any(axis not in (0, 1, 2) for axis in axes):
        raise TomokitError(f"{name} must be a list of 0, 1 and 2, or empty, got {value}")
    return sorted(set(axes))


def check_axis(axis: int) -> int:
    """Return an axis of (X, Y, Z).

    Raises:
        TomokitError: when it is none.
    """
    if axis not in (0, 1, 2):
        raise TomokitError(f"axis must be 0, 1 or 2, got {axis}")
    return axis


def draw_events(shape: Sequence[int] | int, prob: float) -> Tensor:
    """Return which of the events happen, bool on the CPU."""
    return torch.rand(shape) < prob


def draw_uniform(shape: Sequence[int] | int, ends: Range) -> Tensor:
    """Return numbers spread evenly between the ends, on the CPU."""
    return torch.rand(shape) * (ends[1] - ends[0]) + ends[0]


def draw_factors(shape: Sequence[int] | int, ends: Range) -> Tensor:
    """Return factors between the ends, on the CPU; as many below 1 as above where the range spans 1.

    Source: as nnU-Net draws scale, contrast and gamma (Isensee et al., Nature Methods 18, 2021).
    """
    low, high = ends
    if not low < 1 < high:
        return draw_uniform(shape, ends)
    return torch.where(draw_events(shape, 0.5), draw_uniform(shape, (low, 1.0)), draw_uniform(shape, (1.0, high)))


def pick(batch: Tensor, samples: Sequence[int]) -> Tensor:
    """Return the samples of these numbers; a list of numbers, not a tensor, since that would be copied to the device.

    A copy to a GPU makes the program wait for it.
    """
    return batch if len(samples) == len(batch) else torch.stack([batch[number] for number in samples])


def change_samples(
    batch: Tensor, samples: Sequence[int], change: Callable[[Tensor], Tensor], base: Tensor | None = None
) -> Tensor:
    """Return a new batch with `change` done to these samples, in single precision at least; without any, the batch.

    The others, the dtype and the memory order are those of `base`, by default the batch.
    """
    base = batch if base is None else base
    if not samples:
        return base
    precise = torch.promote_types(batch.dtype, torch.float32)  # half has no room for sums and small differences
    changed = change(pick(batch, samples).to(precise))
    result = torch.empty_like(base) if len(samples) == len(base) else base.clone()
    for number, sample in zip(samples, changed, strict=True):
        result[number].copy_(sample)
    return result
