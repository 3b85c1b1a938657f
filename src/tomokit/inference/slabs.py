"""Weighted sums of windows, in a slab as thick as one window that moves along one axis of the volume."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tomokit.inference.windows import Windows

Part = tuple[int, int]
Network = Callable[[Tensor], Tensor]
ROWS = 8


class Finished(NamedTuple):
    """Slices of the slab to which no further window adds.

    Attributes:
        sums: the windows' weighted features (slices, second, third, C), not yet divided by the weights.
        first: the first slice, along the slab's axis of the volume.
        carried: the first slice is the last one of what was finished before.
    """

    sums: Tensor
    first: int
    carried: bool


def sum_slabs(
    image: Tensor, network: Network, channels: int, windows: Windows, strip: Part, batch: int
) -> Iterator[Finished]:
    """Yield the finished slices of a strip of a volume, in the order of the first axis.

    What is yielded is valid until the next one is asked for.

    Args:
        image: (C, X, Y, Z), at least as large as a window; the slab moves along X.
        network: gives features (B, channels, …) of a batch of windows.
        channels: how many features there are.
        windows: where the windows lie in the image.
        strip: the first voxel of the second axis that is wanted, and one behind the last; windows that reach none of
            it are not computed.
        batch: windows that the network gets at once.
    """
    depth = windows.size[0]
    weight = _outer(windows.weights).to(image.device)
    # slice 0 is carried over from what was finished before; channels last, as convolutions give them
    slab = torch.zeros(depth + 1, strip[1] - strip[0], image.shape[3], channels, device=image.device)
    starts = windows.starts[0]
    for number, start in enumerate(starts):
        places = [(start, second, third) for second in windows.reaching(strip) for third in windows.starts[2]]
        for chunk in (places[index : index + batch] for index in range(0, len(places), batch)):
            cut = torch.stack([_cut(image, place, windows.size) for place in chunk])
            for place, features in zip(chunk, network(cut), strict=True):
                _add(slab[1:], features.movedim(0, -1), weight[..., None], place, strip)
        done = (starts[number + 1] if number + 1 < len(starts) else start + depth) - start
        carried = number > 0
        yield Finished(slab[0 if carried else 1 : done + 1], start - int(carried), carried)
        _move(slab, done)


def _outer(weights: Sequence[Tensor]) -> Tensor:
    """Return the weights of a window's voxels (X, Y, Z)."""
    first, second, third = weights
    return first[:, None, None] * second[:, None] * third


def _cut(image: Tensor, place: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return a window (C, X, Y, Z) of the image."""
    parts = tuple(slice(start, start + edge) for start, edge in zip(place, size, strict=True))
    return image[(slice(None), *parts)]


def _add(slab: Tensor, features: Tensor, weight: Tensor, place: tuple[int, int, int], strip: Part) -> None:
    """Add what lies in the strip of a window's features (X, Y, Z, C), weighted."""
    low, high = max(place[1], strip[0]), min(place[1] + weight.shape[1], strip[1])
    inside = slice(low - place[1], high - place[1])
    target = slab[:, low - strip[0] : high - strip[0], place[2] : place[2] + weight.shape[2]]
    for first in range(0, len(target), ROWS):  # a few slices at a time: what lower precision is cast to stays small
        part = slice(first, first + ROWS)
        target[part].addcmul_(features[part, inside].to(slab.dtype), weight[part, inside])


def _move(slab: Tensor, done: int) -> None:
    """Move the slab on by `done` slices: the last finished one comes first, then what is open; the rest is empty."""
    left = len(slab) - done
    for index in range(left):  # one at a time, since the parts may overlap
        slab[index].copy_(slab[index + done])
    slab[left:].zero_()
