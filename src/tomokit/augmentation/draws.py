"""Random draws on the CPU, one per sample, and what is done to the drawn samples of a batch."""

from collections.abc import Callable, Sequence

import torch
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
    return value


def check_range(name: str, values: Sequence[float], lowest: float = -float("inf")) -> Range:
    """Return a range, lower end first.

    Raises:
        TomokitError: when it has not two ends in order, or one below `lowest`.
    """
    if len(values) != 2 or not lowest <= values[0] <= values[1]:
        floor = "" if lowest == -float("inf") else f" of at least {lowest:g}"
        raise TomokitError(f"{name} must be two numbers{floor}, the lower one first, got {tuple(values)}")
    return float(values[0]), float(values[1])


def draw_samples(batch: int, prob: float) -> list[int]:
    """Return the numbers of the samples that are drawn."""
    return (torch.rand(batch) < prob).nonzero().flatten().tolist()


def draw_uniform(shape: Sequence[int], ends: Range) -> Tensor:
    """Return numbers between the ends, on the CPU."""
    return torch.empty(tuple(shape)).uniform_(*ends)


def spread(values: Tensor, like: Tensor) -> Tensor:
    """Return values (k,) or (k, C) in the form (k, C, 1, 1[, 1]), on the device of `like` and in its type."""
    shape = (*values.shape, *[1] * (like.ndim - values.ndim))
    return values.reshape(shape).to(like.device, like.dtype, non_blocking=True)


def change_samples(batch: Tensor, samples: Sequence[int], change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the batch with `change` done to the samples of these numbers; without any, the batch itself."""
    if not samples:
        return batch
    if len(samples) == len(batch):
        return change(batch)
    result = batch.clone()
    index = torch.tensor(samples).to(batch.device, non_blocking=True)
    result[index] = change(batch[index])
    return result
