"""What a training step of a U-Net costs, told before it is built: multiplications and memory."""

import math
from collections.abc import Sequence
from typing import NamedTuple

Shape = tuple[int, ...]

# bytes of memory for each stored value, with what works on them: on a CPU float32 and the gradients that are under way
# (measured: 5.3 to 7.4); on a GPU bfloat16 for the convolution and float32 for the norm, and the allocator's gaps
CPU_BYTES = 7.0
GPU_BYTES = 7.0
STATE_BYTES = 16  # a weight, its gradient and up to two moments of the optimizer, four bytes each
HEADS = 2  # of deep supervision


class Stages(NamedTuple):
    """The stages of the packaged `LeanUNet`, one entry each: strides, kernel sizes, filters."""

    strides: tuple[Shape, ...]
    kernels: tuple[Shape, ...]
    filters: tuple[int, ...]


def stage_voxels(patch: Sequence[int], stages: Stages) -> list[int]:
    """Return how many voxels a patch has in each stage."""
    sizes, size = [], list(patch)
    for stride in stages.strides:
        size = [edge // factor for edge, factor in zip(size, stride, strict=True)]
        sizes.append(math.prod(size))
    return sizes


def step_gmacs(patch: Sequence[int], stages: Stages, batch: int, channels: int, classes: int) -> float:
    """Return the 10⁹ multiplications and additions of a training step: forward, and backward as twice that."""
    voxels = stage_voxels(patch, stages)
    macs = sum(count * weights for count, weights in zip(voxels, _weights(stages, channels), strict=True))
    heads = sum(count * width * classes for count, width in zip(voxels[:HEADS], stages.filters, strict=False))
    return 3 * batch * (macs + heads) / 1e9


def _weights(stages: Stages, channels: int) -> list[int]:
    """Return how many weights are applied at each voxel of each stage.

    The first stage has a convolution each way, the others two, of which the first on the way down is strided; the
    transposed convolution's strides are its kernel, so one tap reaches each voxel.
    """
    filters, applied = stages.filters, []
    for stage, width in enumerate(filters):
        taps, before = math.prod(stages.kernels[stage]), filters[stage - 1] if stage else channels
        deepest = stage == len(filters) - 1
        same = (1 if stage else 0) + (0 if deepest else 2 if stage else 1)  # convolutions that keep the width
        applied.append(taps * width * (before + same * width) + (0 if deepest else width * filters[stage + 1]))
    return applied


def image_gmacs(size: Sequence[int], batch: int, first: int) -> float:
    """Return about the 10⁹ multiplications and additions of a step of the packaged ResNet with `first` filters.

    Its first convolution halves the grid; each later stage costs half of the one before.
    """
    return 3 * batch * math.prod(size) / 8 * 27 * first * (1 + 4 * first) / 1e9


def image_memory_gb(size: Sequence[int], batch: int, first: int, channels: int, cuda: bool) -> float:
    """Return about how much memory a step of the packaged ResNet with `first` filters takes, in GB.

    Each convolution keeps what it gave, and what the norm made of it where an activation follows. The first one, on
    half the grid, and its block: six maps. Each later block, on half the grid and twice as wide, has a convolution on
    its way around too: five.
    """
    voxels = math.prod(size)
    maps = sum((6 if stage == 0 else 5) * first * 2**stage / 8 ** (stage + 1) for stage in range(4))
    weights = first * (27 * channels + 54 * first + 164 * first * (1 + 4 + 16))
    stored = batch * voxels * (maps + channels)
    return (stored * (GPU_BYTES if cuda else CPU_BYTES) + STATE_BYTES * weights) / 1e9


def stored_values(patch: Sequence[int], stages: Stages, channels: int, classes: int) -> int:
    """Return how many values one patch keeps between forward and backward.

    Each convolution keeps what it gave and what norm and activation made of it, the way up also the sum with the
    skip: five maps in the first stage, nine in those between, four in the deepest. The loss keeps four per class.
    """
    voxels = stage_voxels(patch, stages)
    kept = [5, *[9] * (len(voxels) - 2), 4]
    maps = sum(count * width * times for count, width, times in zip(voxels, stages.filters, kept, strict=True))
    return maps + voxels[0] * (channels + 4 * classes)


def memory_gb(patch: Sequence[int], stages: Stages, batch: int, channels: int, classes: int, cuda: bool) -> float:
    """Return about how much memory a training step takes, in GB: stored values and what works on them, and weights."""
    stored = batch * stored_values(patch, stages, channels, classes)
    applied = _weights(stages, channels)
    strided = [math.prod(stride) - 1 for stride in (*stages.strides[1:], (1,))]
    upward = sum(
        more * width * above
        for more, width, above in zip(strided, stages.filters, (*stages.filters[1:], 0), strict=True)
    )
    return (stored * (GPU_BYTES if cuda else CPU_BYTES) + STATE_BYTES * (sum(applied) + upward)) / 1e9
