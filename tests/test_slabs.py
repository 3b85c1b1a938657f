import itertools
import math

import pytest
import torch
from torch import Tensor

from tomokit.inference import slabs
from tomokit.inference.boxes import whole_box
from tomokit.inference.calling import Probe
from tomokit.inference.fields import make_field, strip_bytes
from tomokit.inference.grids import same_grid
from tomokit.inference.reducing import block_edge
from tomokit.inference.slabs import open_slices, sum_slabs
from tomokit.inference.windows import Windows, place_windows

SHAPE = (37, 30, 22)


def network(windows: Tensor) -> Tensor:
    """Return two features of each voxel, (B, 2, …), which tell where in its window it lies."""
    ramp = torch.arange(windows.shape[2], dtype=torch.float32)[:, None, None]
    return torch.cat([windows * (1 + ramp), windows.square()], 1)


def whole_sums(image: Tensor, windows: Windows) -> Tensor:
    """Return the weighted sums (X, Y, Z, 2) of all windows, none left out."""
    first, second, third = windows.weights
    weight = (first[:, None, None] * second[:, None] * third)[..., None]
    sums = torch.zeros(*image.shape[1:], 2)
    for place in itertools.product(*windows.starts):
        inside = tuple(slice(start, start + edge) for start, edge in zip(place, windows.size, strict=True))
        sums[inside] += weight * network(image[(slice(None), *inside)][None])[0].movedim(0, -1)
    return sums


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("size", [(16, 12, 8), (37, 9, 22), (10, 30, 7), (37, 30, 22)])
@pytest.mark.parametrize("strip", [(0, 30), (0, 11), (10, 21), (13, 14)])
@pytest.mark.parametrize("batch", [1, 5])
def test_every_voxel_of_a_strip_is_finished_once_with_all_its_windows(overlap, size, strip, batch):
    image = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    windows = place_windows(SHAPE, size, overlap, "gaussian")
    truth = whole_sums(image, windows)
    times = torch.zeros(SHAPE[:2], dtype=torch.int)
    for part in sum_slabs(image, network, 2, windows, strip, batch):
        (first, second), (slices, columns) = part.first, part.sums.shape[:2]
        place = slice(first, first + slices), slice(second, second + columns)
        torch.testing.assert_close(part.sums, truth[place])
        assert all(times[place][0] == 1) or not part.carried[0]
        assert all(times[place][:, 0] == 1) or not part.carried[1]
        times[place][int(part.carried[0]) :, int(part.carried[1]) :] += 1
    assert (times[:, slice(*strip)] == 1).all() and times.sum() == SHAPE[0] * (strip[1] - strip[0])


def test_the_sums_take_the_memory_that_is_planned_for(monkeypatch):
    held = []
    make = torch.zeros
    shape = (100, 60, 40)
    field = make_field(torch.zeros(1, *shape), whole_box(shape), same_grid(shape), (20, 20, 20), 0.5, "gaussian")
    monkeypatch.setattr(slabs.torch, "zeros", lambda *size, **more: held.append(math.prod(size)) or make(*size, **more))
    for low, high in ((0, 59), (10, 20)):
        held.clear()
        list(sum_slabs(field.image, network, 2, field.windows, (low, high + 1), 1))
        bars = 4 * 2 * 2 * (block_edge(2) + 1) ** 2 * 40
        assert 4 * sum(held) == strip_bytes(field, Probe(0, "", 2, 0), high - low) - bars


def test_between_slabs_only_what_the_next_one_reaches_is_held():
    assert open_slices(place_windows((100, 30, 30), (40, 10, 10), 0.5, "gaussian")) == 20 + 1
    assert open_slices(place_windows((100, 30, 30), (100, 10, 10), 0.5, "gaussian")) == 1
