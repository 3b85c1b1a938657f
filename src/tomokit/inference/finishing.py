"""A finished part on its way to labels: divided by the windows' weights, through the last layer, bar by bar."""

from collections.abc import Sequence

from torch import Tensor, nn

from tomokit.inference.fields import Field
from tomokit.inference.grids import stretches
from tomokit.inference.heads import apply_head
from tomokit.inference.reducing import BlockReducer, block_edge
from tomokit.inference.slabs import Finished


def reduce_part(
    part: Finished, field: Field, first_strip: bool, head: nn.Module | None, reducer: BlockReducer, nearest: bool
) -> None:
    """Write the labels of a finished part, bar by bar along the third axis."""
    (low, high), columns = part_nodes(part, field)
    fresh = not (part.carried[0] and low == part.first[0])
    if high < low or (high == low and not fresh):
        return
    third, edge = field.nodes[2], block_edge(len(reducer.values))
    along = stretches(field.places[2], *third, edge, nearest, True)
    if not along:
        return
    for one in stretches(field.places[0], low, high, edge, nearest, fresh):
        for two in stretches(field.places[1], *columns, edge, nearest, first_strip and not part.carried[1]):
            logits = part_logits(part, field, (one.nodes, two.nodes, (third[0], third[1] + 1)), head)
            reducer.reduce_bar(logits, (one, two), along, third[0])


def part_nodes(part: Finished, field: Field) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the first and the last node of a finished part along the first axis, without padding, and the second."""
    low, high = field.nodes[0]
    first, second = part.first
    slices, columns = part.sums.shape[:2]
    return (max(low, first), min(high, first + slices - 1)), (second, second + columns - 1)


def part_logits(part: Finished, field: Field, nodes: Sequence[tuple[int, int]], head: nn.Module | None) -> Tensor:
    """Return the logits (K, first, second, third), float32, at nodes of a finished part.

    `nodes` are of each axis the first one, and one behind the last.
    """
    begins = (*part.first, 0)
    places = tuple(slice(low - begin, high - begin) for (low, high), begin in zip(nodes, begins, strict=True))
    totals = [field.windows.total_weights(axis) for axis in range(3)]
    one, two, three = (1 / total[slice(*pair)] for total, pair in zip(totals, nodes, strict=True))
    scale = (one[:, None, None] * two[:, None] * three).to(part.sums.device)
    features = part.sums[places] * scale[..., None]
    return apply_head(head, features) if head is not None else features.movedim(-1, 0).contiguous()
