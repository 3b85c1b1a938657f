"""A finished slab on its way to labels: divided by the windows' weights, through the last layer, bar by bar."""

from torch import Tensor, nn

from tomokit.inference.fields import Field
from tomokit.inference.grids import stretches
from tomokit.inference.heads import apply_head
from tomokit.inference.reducing import EDGE, BlockReducer
from tomokit.inference.slabs import Finished


def reduce_slab(
    slab: Finished,
    field: Field,
    strip: tuple[int, int],
    first_strip: bool,
    head: nn.Module | None,
    reducer: BlockReducer,
    nearest: bool,
) -> None:
    """Write the labels of a finished slab, bar by bar along the third axis."""
    low, high = slab_nodes(slab, field)
    if high < low or (high == low and slab.carried and low == slab.first):
        return
    fresh = not (slab.carried and low == slab.first)
    third = field.nodes[2]
    along = stretches(field.places[2], *third, EDGE, nearest, True)
    if not along:
        return
    for one in stretches(field.places[0], low, high, EDGE, nearest, fresh):
        for two in stretches(field.places[1], *strip, EDGE, nearest, first_strip):
            logits = slab_logits(slab, field, one.nodes, (two.nodes, strip[0]), (third[0], third[1] + 1), head)
            reducer.reduce_bar(logits, (one, two), along, third[0])


def slab_nodes(slab: Finished, field: Field) -> tuple[int, int]:
    """Return the first and the last node of a finished slab that is no padding."""
    low, high = field.nodes[0]
    return max(low, slab.first), min(high, slab.first + len(slab.sums) - 1)


def slab_logits(
    slab: Finished,
    field: Field,
    first: tuple[int, int],
    second: tuple[tuple[int, int], int],
    third: tuple[int, int],
    head: nn.Module | None,
) -> Tensor:
    """Return the logits (K, first, second, third) of a finished slab's part, float32.

    `first`, `second` and `third` are nodes and one behind the last; with `second` stands the strip's first node.
    """
    (low, high), start = second
    parts = slice(first[0] - slab.first, first[1] - slab.first), slice(low - start, high - start), slice(*third)
    totals = [field.windows.total_weights(axis) for axis in range(3)]
    nodes = (first, (low, high), third)
    one, two, three = (1 / total[slice(*pair)] for total, pair in zip(totals, nodes, strict=True))
    scale = (one[:, None, None] * two[:, None] * three).to(slab.sums.device)
    features = slab.sums[parts] * scale[..., None]
    return apply_head(head, features) if head is not None else features.movedim(-1, 0).contiguous()
