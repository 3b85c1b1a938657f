"""The parts that the project's networks share: a U-shaped body whose stages are exchangeable."""

import math
from collections.abc import Callable, Sequence

import torch
from monai.networks.layers import Conv
from torch import Tensor, nn
from torch.nn import functional

from tomokit.errors import raise_problems

SLOPE = 0.01  # of leaky ReLU below 0
Extent = int | Sequence[int]
# stage(level, channels in, features out, stride) and stage(level, features): what a network builds at each level
EncoderStage = Callable[[int, int, int, Extent], nn.Module]
DecoderStage = Callable[[int, int], nn.Module]


class InstanceNorm(nn.Module):
    """Instance normalisation with a scale and a shift per channel, which does not leave channels-last memory.

    The arithmetic is torch's `InstanceNorm3d(affine=True)`, which rearranges its input and took five times as long.
    Training on a CPU it is a batch norm of each sample by itself (docs/experiments.md: a third of the time of the
    group norm that serves otherwise).

    Args:
        channels: the number of channels C of the input (B, C, X, Y[, Z]).
        eps: added to the variance.

    Source: Ulyanov et al., Instance normalization, arXiv:1607.08022.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, X, Y[, Z]) with mean 0 and deviation 1 of each sample's channel, scaled and shifted."""
        if self.training and x.device.type == "cpu" and not torch.jit.is_scripting():
            weight, bias = self.weight, self.bias
            samples = [
                functional.batch_norm(sample, None, None, weight, bias, True, 0.0, self.eps) for sample in x.split(1)
            ]
            return torch.cat(samples)
        return functional.group_norm(x, self.channels, self.weight, self.bias, self.eps)


class Pointwise(nn.Module):
    """A 1×1×1 convolution, computed as a matrix product: on a CPU three times as fast as torch's convolution.

    Args:
        channels: of the input.
        features: of the output.
        bias: whether a number is added to each feature.
    """

    def __init__(self, channels: int, features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, channels) * math.sqrt(2 / channels))
        self.bias = nn.Parameter(torch.zeros(features)) if bias else None

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, features, X, Y[, Z]) for (B, channels, X, Y[, Z])."""
        return functional.linear(image.movedim(1, -1), self.weight, self.bias).movedim(-1, 1)


class Pass(nn.Module):
    """A skip that is left as it is."""

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        """Return the skip."""
        return skip


class Body(nn.Module):
    """A U-Net without its last layer, of any stages: it gives the features at full resolution and the deepest ones.

    Skips are added to what comes from below (a concatenation doubles the next convolution). An odd size gains a voxel
    on its way down and up, which is cropped at each skip, so that any input size comes back on its own grid, if two
    voxels are left at the coarsest stage to normalise over.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        filters: features of each level, from full resolution down.
        strides: of each level, one number or one per axis; the first is 1.
        encode: makes a level's stage on the way down, `encode(level, channels, features, stride)`.
        decode: makes a level's stage on the way up, `decode(level, features)`.
        bottom: a module applied to the deepest features.
        gates: a module for each level but the last, from full resolution down, which takes a skip and the features
            from below, and gives the skip to add.

    Raises:
        TomokitError: when the lists do not fit each other.
    Source: Ronneberger et al., U-Net, MICCAI 2015.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        filters: Sequence[int],
        strides: Sequence[Extent],
        encode: EncoderStage,
        decode: DecoderStage,
        bottom: nn.Module | None = None,
        gates: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_lists(spatial_dims, filters, strides=strides)
        levels = range(len(filters))
        channels = [in_channels, *filters]
        self.encoder = nn.ModuleList(encode(i, channels[i], filters[i], strides[i]) for i in levels)
        self.bottom = bottom or nn.Identity()
        upward = list(reversed(levels))[1:]
        self.ups = nn.ModuleList(up(spatial_dims, filters[i + 1], filters[i], strides[i + 1]) for i in upward)
        self.gates = nn.ModuleList(gates[i] if gates else Pass() for i in upward)
        self.decoder = nn.ModuleList(decode(i, filters[i]) for i in upward)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, filters[0], X, Y[, Z]) on the image's grid and (B, filters[-1], X', Y'[, Z'])."""
        skips: list[Tensor] = []
        features = image
        for stage in self.encoder:
            features = stage(features)
            skips.append(features)
        deepest = self.bottom(features)
        features = deepest
        level = len(self.ups)
        for rise, gate, stage in zip(self.ups, self.gates, self.decoder):  # noqa: B905 (TorchScript has no `strict`)
            level -= 1
            below = crop_like(rise(features), skips[level])
            features = stage(gate(skips[level], below) + below)
        return features, deepest


class Segmenter(nn.Module):
    """A body with a last 1×1×1 convolution to the classes' logits.

    Args:
        body: gives features of `channels` channels on the image's grid, and the deepest ones.
        channels: of the body's features.
        out_channels: classes, background included.
    """

    def __init__(self, body: Body, channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.logits = Pointwise(channels, out_channels)
        self.apply(initialise)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, classes, X, Y[, Z]) for an image (B, C, X, Y[, Z]) of any size that the body takes."""
        return self.logits(self.body(image)[0])


def paired_body(
    spatial_dims: int,
    in_channels: int,
    filters: Sequence[int],
    strides: Sequence[Extent],
    layer: EncoderStage,
    bottom: nn.Module | None = None,
    gates: Sequence[nn.Module] | None = None,
) -> Body:
    """Return a body with one layer per stage at full resolution, where it costs most, and two at other levels.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        filters: features of each level, from full resolution down.
        strides: of each level, one number or one per axis; the first is 1.
        layer: makes one layer, `layer(level, channels, features, stride)`.
        bottom: a module applied to the deepest features.
        gates: as `Body` takes them.
    """

    def encode(level: int, channels: int, features: int, stride: Extent) -> nn.Module:
        first = layer(level, channels, features, stride)
        return nn.Sequential(first, layer(level, features, features, 1)) if level else first

    def decode(level: int, features: int) -> nn.Module:
        return nn.Sequential(*(layer(level, features, features, 1) for _ in range(2 if level else 1)))

    return Body(spatial_dims, in_channels, filters, strides, encode, decode, bottom, gates)


def convolution(
    dims: int, channels: int, features: int, kernel: Extent, stride: Extent = 1, groups: int = 1
) -> nn.Module:
    """Return a convolution without bias that keeps the grid, or one voxel in `stride` of it, the first included."""
    size = extent(kernel, dims)
    padding = tuple(edge // 2 for edge in size)
    return Conv["conv", dims](channels, features, size, extent(stride, dims), padding, groups=groups, bias=False)


def normalised(layer: nn.Module, features: int, dropout: float) -> nn.Sequential:
    """Return the layer followed by instance norm, dropout and leaky ReLU."""
    return nn.Sequential(layer, InstanceNorm(features), nn.Dropout(dropout), nn.LeakyReLU(SLOPE, inplace=True))


def up(dims: int, channels: int, features: int, stride: Extent) -> nn.Module:
    """Return a transposed convolution without bias that makes `stride` voxels of one."""
    size = extent(stride, dims)
    return Conv["convtrans", dims](channels, features, size, size, bias=False)


def crop_like(features: Tensor, like: Tensor) -> Tensor:
    """Return features (B, C, X, Y[, Z]) without the voxels beyond the grid of `like`."""
    if features.shape[2:] == like.shape[2:]:
        return features
    for axis in range(2, features.ndim):
        features = features.narrow(axis, 0, like.shape[axis])
    return features


def extent(value: Extent, dims: int) -> tuple[int, ...]:
    """Return one number per axis."""
    return (value,) * dims if isinstance(value, int) else tuple(value)


def initialise(module: nn.Module) -> None:
    """Draw a convolution's weights so that leaky ReLU keeps the variance (He et al., ICCV 2015)."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
    elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
        # kernel and stride are alike, so that a voxel sums over the channels alone
        nn.init.normal_(module.weight, std=nn.init.calculate_gain("leaky_relu", SLOPE) / math.sqrt(module.in_channels))
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def check_lists(spatial_dims: int, filters: Sequence[int], **lists: Sequence[Extent]) -> None:
    """Raise when a network's lists per level do not fit its filters.

    Args:
        spatial_dims: 2 or 3.
        filters: features of each level.
        lists: by argument name: `strides`, `kernel_size` or another list with an entry for each level.

    Raises:
        TomokitError: that names each problem and its value.
    """
    problems = [] if spatial_dims in (2, 3) else [f"`spatial_dims` must be 2 or 3, got {spatial_dims}"]
    problems += [] if len(filters) > 1 else [f"`filters` must have two levels or more, got {list(filters)}"]
    problems += [] if min(filters, default=1) > 0 else [f"`filters` must be 1 or more, got {list(filters)}"]
    for name, values in lists.items():
        if len(values) != len(filters):
            problems.append(f"`{name}` must have {len(filters)} entries, one for each filter, got {list(values)}")
        wrong = [value for value in values if len(extent(value, spatial_dims)) != spatial_dims]
        problems += [f"`{name}` must have one number or one per axis, got {value}" for value in wrong]
        small = [value for value in values if not isinstance(value, bool) and min(extent(value, 1), default=1) < 1]
        problems += [f"`{name}` must be 1 or more along each axis, got {value}" for value in small]
    if any(size != 1 for first in lists.get("strides", [])[:1] for size in extent(first, 1)):
        problems.append(f"the first of `strides` must be 1, got {lists['strides'][0]}")
    even = [size for size in lists.get("kernel_size", []) if any(edge % 2 == 0 for edge in extent(size, 1))]
    problems += [f"`kernel_size` must be odd, got {size}" for size in even]
    raise_problems("the levels of the network do not fit each other", problems)
