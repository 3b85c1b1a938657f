"""The part of a volume that is looked at, in strips whose windows' sums fit into the memory."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tomokit.errors import TomokitError
from tomokit.inference.boxes import Box
from tomokit.inference.calling import Probe
from tomokit.inference.grids import Axis
from tomokit.inference.reducing import block_edge
from tomokit.inference.slabs import open_slices
from tomokit.inference.windows import Windows, place_windows
from tomokit.memory import free_memory

SHARE = 0.7  # of the free memory that may be planned for


class Field(NamedTuple):
    """A volume's part that is looked at: first the axis that takes most windows, last the one that takes fewest.

    Attributes:
        image: (C, first, second, third), padded to the window where it is smaller.
        nodes: of each axis, the first and the last voxel that is no padding, in `image`.
        places: of each axis, where the wanted grid's voxels lie, in voxels of `image`.
        order: the network's axis that each axis of `image` is.
        windows: where the windows lie in `image`.
    """

    image: Tensor
    nodes: tuple[tuple[int, int], ...]
    places: tuple[NDArray[np.float64], ...]
    order: tuple[int, ...]
    windows: Windows


def make_field(image: Tensor, box: Box, axes: Sequence[Axis], size: Sequence[int], overlap: float, mode: str) -> Field:
    """Return the part of a volume (C, X, Y[, Z]) in a box, its axes in order; an image gets an axis of one."""
    places = [axis.places for axis in axes]
    image = image[(slice(None), *(slice(*part) for part in box))]
    if image.ndim == 3:
        image, size, places = image[..., None], (*size, 1), [*places, np.zeros(1)]
        box = (*box, (0, 1))
    short = [max(0, edge - length) for edge, length in zip(size, image.shape[1:], strict=True)]
    pads = [(lack // 2, lack - lack // 2) for lack in short]
    nodes = [(before, before + high - low - 1) for (before, _), (low, high) in zip(pads, box, strict=True)]
    moved = [place - low + before for place, (low, _), (before, _) in zip(places, box, pads, strict=True)]
    image = nn.functional.pad(image, list(itertools.chain.from_iterable(reversed(pads)))) if any(short) else image
    lengths = image.shape[1:]
    order = tuple(sorted(range(3), key=lambda axis: size[axis] / lengths[axis]))  # in which the sums take least memory
    windows = place_windows([lengths[axis] for axis in order], [size[axis] for axis in order], overlap, mode)
    return Field(
        image.permute(0, *(1 + axis for axis in order)), _ordered(nodes, order), _ordered(moved, order), order, windows
    )


def _ordered(values: Sequence[Any], order: Sequence[int]) -> tuple[Any, ...]:
    """Return values in the order of the field's axes."""
    return tuple(values[axis] for axis in order)


def cut_strips(field: Field, probe: Probe, batch: int) -> list[tuple[int, int]]:
    """Return the strips, first and last node along the second axis, whose sums fit into the free memory.

    Args:
        field: what is cut.
        probe: what is known of the network.
        batch: windows that it gets at once.

    Raises:
        TomokitError: when not even the narrowest strip fits.
    """
    low, high = field.nodes[1]
    whole = strip_bytes(field, probe, high - low) + probe.activations * batch
    free = SHARE * _free_on(field.image.device, whole / SHARE)
    count = 1
    while strip_bytes(field, probe, math.ceil((high - low) / count)) + probe.activations * batch > free:
        count *= 2
        if (high - low) / count < block_edge(probe.classes):
            size = [field.windows.size[field.order.index(axis)] for axis in range(3)]
            raise TomokitError(too_little(size, field.image.device))
    edges = [low + (high - low) * number // count for number in range(count + 1)]
    return list(itertools.pairwise(edges))


def _free_on(device: torch.device, wanted: float = math.inf) -> int:
    """Return the bytes that are free on a device, as `free_memory` does; what torch keeps on a GPU is free too."""
    if device.type == "cpu":
        return free_memory(wanted=wanted)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def strip_bytes(field: Field, probe: Probe, second: int) -> int:
    """Return the bytes of the sums in a strip whose second axis has so many cells, with its bars' logits."""
    depth, width = field.windows.size[:2]
    third = field.image.shape[3]
    sums = (depth + 1) * (min(width, second + 1) + 1) + open_slices(field.windows) * (second + 1)
    bars = (2 * probe.features + 3 * probe.classes) * (block_edge(probe.classes) + 1) ** 2
    return 4 * (probe.features * sums + bars) * third


def count_rows(field: Field, strips: Sequence[tuple[int, int]]) -> int:
    """Return the rows of windows along the third axis that are computed, in all strips together."""
    return len(field.windows.starts[0]) * sum(len(field.windows.reaching((low, high + 1))) for low, high in strips)


def too_little(size: Sequence[int], device: torch.device) -> str:
    """Return what to do where a device's memory does not suffice for windows of that size."""
    window = "×".join(map(str, size))
    return (
        f"the free memory ({_free_on(device) / 1e9:.2g} GB) does not suffice for windows of {window}; close other "
        "programs, raise the limit, or take a smaller `patch_size`"
    )
