"""Weighted sums of windows, held only where windows are still to come: row by row of a slab as thick as one window."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tomokit.inference.windows import Windows

Part = tuple[int, int]
Network = Callable[[Tensor], Tensor]
ROWS = 8


class Finished(NamedTuple):
    """Part of a volume to which no further window adds: some slices along the first axis, some columns of the second.

    Attributes:
        sums: the windows' weighted features (slices, columns, third, C), not yet divided by the weights.
        first: the first slice, and the first column, of the volume.
        carried: of both, whether that is the last one of what was finished before.
    """

    sums: Tensor
    first: Part
    carried: tuple[bool, bool]


def sum_slabs(
    image: Tensor, network: Network, channels: int, windows: Windows, strip: Part, batch: int
) -> Iterator[Finished]:
    """Yield the finished parts of a strip of a volume, in the order of the first axis, and of the second within it.

    Sums are held of one row of windows along the third axis, and of the slices that the next slab's windows reach. What
    is yielded is valid until the next part is asked for.

    Args:
        image: (C, X, Y, Z), at least as large as a window; the slab moves along X.
        network: gives features (B, channels, …) of a batch of windows.
        channels: how many features there are.
        windows: where the windows lie in the image.
        strip: the first voxel of the second axis that is wanted, and one behind the last; windows that reach none of
            it are not computed.
        batch: windows that the network gets at once.
    """
    (depth, width), starts, seconds = windows.size[:2], windows.starts[0], windows.reaching(strip)
    weight = _outer(windows.weights).to(image.device)[..., None]
    done = [after - start for start, after in zip(starts, (*starts[1:], starts[-1] + depth), strict=True)]
    lows = [*(max(start, strip[0]) for start in seconds), strip[1]]  # what lies below is finished when a row begins
    ends = [min(start + width, strip[1]) for start in seconds]
    # slice 0, and column 0, are carried over from what was finished before; channels last, as convolutions give them
    shape = (image.shape[3], channels)
    row = torch.zeros(depth + 1, min(width, strip[1] - strip[0]) + 1, *shape, device=image.device)
    waiting = torch.zeros(open_slices(windows), strip[1] - strip[0], *shape, device=image.device)
    for number, start in enumerate(starts):
        left = depth + 1 - done[number - 1] if number else 0
        places = [(start, second, third) for second in seconds for third in windows.starts[2]]
        found = _features(image, network, windows.size, places, batch)
        for turn, second in enumerate(seconds):
            low, end, stop = lows[turn], ends[turn], lows[turn + 1]
            filled = ends[turn - 1] if turn else low
            if turn:
                _move(row.transpose(0, 1), low - lows[turn - 1])
            fresh = row[:, 1 + filled - low : 1 + end - low]
            fresh.zero_()
            fresh[:left] = waiting[:left, filled - strip[0] : end - strip[0]]
            inside = slice(low - second, end - second)
            for third in windows.starts[2]:
                target = row[1:, 1 : 1 + end - low, third : third + windows.size[2]]
                _add(target, next(found)[:, inside], weight[:, inside])
            finished = row[:, 1 : 1 + stop - low]
            waiting[: depth + 1 - done[number], low - strip[0] : stop - strip[0]] = finished[done[number] :]
            if stop > low:
                carried = number > 0, low > strip[0]
                part = row[int(not carried[0]) : done[number] + 1, int(not carried[1]) : 1 + stop - low]
                yield Finished(part, (start - int(carried[0]), low - int(carried[1])), carried)


def open_slices(windows: Windows) -> int:
    """Return the slices that are held between two slabs: what the next one's windows reach, and the last finished."""
    depth, pairs = windows.size[0], itertools.pairwise(windows.starts[0])
    return depth + 1 - min((after - start for start, after in pairs), default=depth)


def _features(
    image: Tensor, network: Network, size: Sequence[int], places: Sequence[tuple[int, ...]], batch: int
) -> Iterator[Tensor]:
    """Yield the features (X, Y, Z, C) of the window at each place, computed in batches."""
    for index in range(0, len(places), batch):
        cut = torch.stack([_cut(image, place, size) for place in places[index : index + batch]])
        yield from network(cut).movedim(1, -1)


def _outer(weights: Sequence[Tensor]) -> Tensor:
    """Return the weights of a window's voxels (X, Y, Z)."""
    first, second, third = weights
    return first[:, None, None] * second[:, None] * third


def _cut(image: Tensor, place: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return a window (C, X, Y, Z) of the image."""
    parts = tuple(slice(start, start + edge) for start, edge in zip(place, size, strict=True))
    return image[(slice(None), *parts)]


def _add(target: Tensor, features: Tensor, weight: Tensor) -> None:
    """Add features (X, Y, Z, C), weighted, to a part of the sums."""
    for first in range(0, len(target), ROWS):  # a few slices at a time: what lower precision is cast to stays small
        part = slice(first, first + ROWS)
        target[part].addcmul_(features[part].to(target.dtype), weight[part])


def _move(row: Tensor, done: int) -> None:
    """Move the columns of a row (columns, …) on: the last finished one comes first, then those that are open."""
    for index in range(len(row) - done):  # one at a time, since the parts may overlap
        row[index].copy_(row[index + done])
