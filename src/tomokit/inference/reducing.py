"""From the network's logits to labels, block by block: only the classes that can win in a block are interpolated."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tomokit.errors import TomokitError
from tomokit.inference.grids import Stretch

EDGE, LARGE_EDGE = 16, 32  # cells of a block along each axis
FEW = 8  # classes of which none is left out in most blocks: larger ones take fewer calls
ENTROPY, CONFIDENCE, VARIANCE = "entropy", "confidence", "variance"
NEGLIGIBLE = 16.0  # logits below the largest: a probability of 1e-7, which no map of steps of 1/255 shows


def label_dtype(values: Sequence[int]) -> torch.dtype:
    """Return the smallest type for these labels: uint8, or int32 beyond 255."""
    return torch.uint8 if max(values) < 256 else torch.int32


def block_edge(classes: int) -> int:
    """Return the cells of a block along each axis."""
    return LARGE_EDGE if classes <= FEW else EDGE


class Map(NamedTuple):
    """A map on the source's grid, beside the labels.

    Attributes:
        of: the channel whose probability it shows, "entropy", "confidence", or "variance".
        out: (X, Y, Z) uint8, in steps of 1/255.
    """

    of: int | str
    out: Tensor


class BlockReducer:
    """Writes the labels of blocks of the network's grid into a label map on the source's.

    Interpolated logits are means of the nodes' logits, with weights that sum to 1. So a class whose largest logit in a
    block is below another one's smallest can't win there, and is left out: what comes back is the same.

    Args:
        values: of each channel of the logits its label.
        painted: channels are regions: each that has a logit of 0 or more (a probability of 0.5) paints its label, later
            ones over earlier ones; else the label of the largest logit wins.
        order: of each axis of the source, the axis of the network's grid that lies along it.
        out: the label map on the source's grid, (X, Y, Z), filled with background.
        maps: what else is written, filled with 0. Where one is of the variance, that is the channel behind the logits.
        nearest: each voxel of the source takes what the nearest node has; else logits are interpolated.
        name: of the scan, for a message.
    """

    def __init__(
        self,
        values: Sequence[int],
        painted: bool,
        order: Sequence[int],
        out: Tensor,
        maps: Sequence[Map] = (),
        nearest: bool = False,
        name: str = "",
    ) -> None:
        self.values = torch.tensor(values, dtype=out.dtype)
        self.painted = painted
        self.order = list(order)
        self.out = out
        self.maps = maps
        self.spread = any(wanted.of == VARIANCE for wanted in maps)
        self.nearest = nearest
        self.name = name

    def reduce_bar(self, logits: Tensor, across: Sequence[Stretch], along: Sequence[Stretch], first: int) -> None:
        """Write the labels of a bar: one stretch along the first axes, several along the last.

        Args:
            logits: (K, nodes, nodes, length), of the last axis from node `first` on; the variance behind them.
            across: the stretch of each axis but the last.
            along: the stretches of the last axis.
            first: the first node of the last axis in `logits`.

        Raises:
            TomokitError: when a logit is not finite.
        """
        low, high = _extremes(logits[: len(self.values)], along, first)
        if not (low.isfinite().all() and high.isfinite().all()):
            raise TomokitError(
                f"{self.name or 'the volume'}: the network's output is not finite; look for NaN or infinite voxels in "
                "the scan (`tomokit check`), or take `amp: false`"
            )
        for number, stretch in enumerate(along):
            voxels = tuple(slice(*part.voxels) for part in (*across, stretch))
            place = tuple(voxels[axis] for axis in self.order)
            kept = self._candidates(low[:, number], high[:, number])
            if isinstance(kept, int):
                if kept:
                    self.out[place].fill_(kept)
                continue
            start, stop = (node - first for node in stretch.nodes)
            wanted = torch.cat([kept, torch.tensor([len(self.values)])]) if self.spread else kept
            axes = (*across, stretch)
            block = logits[..., start:stop][wanted]
            block = block if self.nearest else interpolate(block, axes)
            block, variance = block[: len(kept)], block[-1]
            self._write(self.out[place], self._labels(block, kept), axes)
            for each in self.maps:
                found = variance if each.of == VARIANCE else self._chances(block, kept, each.of)
                self._write(each.out[place], (found * 255).round_(), axes)

    def _write(self, target: Tensor, found: Tensor, axes: Sequence[Stretch]) -> None:
        """Write what was found at the source's voxels, or at the nodes of which each voxel takes the nearest."""
        if self.nearest:
            for axis, stretch in enumerate(axes):
                found = found.index_select(axis, stretch.matrix.argmax(1).to(found.device))
        target.copy_(found.permute(self.order))

    def _candidates(self, low: Tensor, high: Tensor) -> Tensor | int:
        """Return the channels that can win in a block, or the label that has surely won.

        `low` and `high` (K,) are the smallest and the largest logit of each channel. Maps take all that show in them.
        """
        if self.maps:
            return torch.arange(len(low)) if self.painted else torch.nonzero(high >= low.max() - NEGLIGIBLE)[:, 0]
        if not self.painted:
            kept = torch.nonzero(high >= low.max())[:, 0]
            return kept if len(kept) > 1 else int(self.values[kept[0]])
        sure = torch.nonzero(low >= 0)[:, 0]
        kept = torch.nonzero(high >= 0)[:, 0]
        kept = kept[kept >= sure[-1]] if len(sure) else kept
        if len(kept) == 0:
            return 0
        return int(self.values[kept[0]]) if len(sure) and len(kept) == 1 else kept

    def _labels(self, logits: Tensor, kept: Tensor) -> Tensor:
        """Return the labels of interpolated logits (kept, …)."""
        labels = torch.zeros(logits.shape[1:], dtype=self.values.dtype, device=logits.device)
        values = self.values[kept].tolist()
        if self.painted:
            for channel, value in zip(logits, values, strict=True):
                labels.masked_fill_(channel >= 0, value)
            return labels
        largest = logits.amax(0)  # torch's argmax over channels takes several times as long on a CPU
        for number in reversed(range(len(values))):  # of equal ones the first wins
            labels.masked_fill_(logits[number] == largest, values[number])
        return labels

    def _chances(self, logits: Tensor, kept: Tensor, of: int | str) -> Tensor:
        """Return the probability of a channel or the likeliest label, or the entropy, of logits (kept, …): 0 to 1."""
        chances = logits.sigmoid() if self.painted else logits.softmax(0)
        if of == CONFIDENCE:  # of regions the least certain one's
            return torch.maximum(chances, 1 - chances).amin(0) if self.painted else chances.amax(0)
        if of != ENTROPY:
            place = kept.tolist()
            return chances[place.index(of)] if of in place else torch.zeros_like(logits[0])
        if self.painted:  # of the least certain region
            return (torch.special.entr(chances) + torch.special.entr(1 - chances)).amax(0) / math.log(2)
        return torch.special.entr(chances).sum(0) / math.log(max(2, len(self.values)))


def interpolate(block: Tensor, axes: Sequence[Stretch]) -> Tensor:
    """Return (K, nodes, …) interpolated at the source's voxels (K, voxels, …), axis by axis."""
    for axis, stretch in enumerate(axes, start=1):
        matrix = stretch.matrix.to(block.device)
        block = torch.tensordot(block, matrix, dims=([axis], [1])).movedim(-1, axis)
    return block


def _extremes(logits: Tensor, along: Sequence[Stretch], first: int) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest logit of each channel and stretch, (K, stretches) each, on the CPU."""
    dims = list(range(1, logits.ndim - 1))
    low, high = logits.amin(dims), logits.amax(dims)  # (K, length)
    parts = [slice(stretch.nodes[0] - first, stretch.nodes[1] - first) for stretch in along]
    lows = torch.stack([low[:, part].amin(1) for part in parts], 1)
    highs = torch.stack([high[:, part].amax(1) for part in parts], 1)
    return lows.cpu(), highs.cpu()
