"""A U-Net that looks at several scales at its coarsest level, and chooses what its skips bring."""

from collections.abc import Sequence

from monai.networks.layers import Conv
from torch import Tensor, nn

from tomokit.errors import TomokitError
from tomokit.networks.blocks import (
    Extent,
    InstanceNorm,
    Pass,
    Pointwise,
    Segmenter,
    check_lists,
    convolution,
    normalised,
    paired_body,
)


class ContextAttention(nn.Module):
    """Features weighted by what surrounds them at several scales: dilated filters, and long strips along each axis.

    All filters are one per channel, so that the long reach costs little; a 1×1×1 convolution joins the scales.

    Args:
        spatial_dims: 2 or 3.
        channels: of the features.
        dilations: of the filters of three voxels' edge.
        strip: length of the strips in voxels, odd.

    Raises:
        TomokitError: when `strip` is even.
    Source: Gu et al., CE-Net, IEEE TMI 38 (2019), the dilated branches; Guo et al., SegNeXt, NeurIPS 2022, the strips.
    """

    def __init__(self, spatial_dims: int, channels: int, dilations: Sequence[int], strip: int) -> None:
        super().__init__()
        if strip % 2 == 0:
            raise TomokitError(f"`strip` must be odd, so that it is centred on its voxel, got {strip}")
        conv = Conv["conv", spatial_dims]
        self.scales = nn.ModuleList(
            conv(channels, channels, 3, 1, rate, dilation=rate, groups=channels) for rate in dilations
        )
        for axis in range(spatial_dims):
            line = [strip if i == axis else 1 for i in range(spatial_dims)]
            self.scales.append(conv(channels, channels, line, 1, [n // 2 for n in line], groups=channels))
        self.join = nn.Sequential(Pointwise(channels, channels, bias=False), InstanceNorm(channels), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape, each times 1 to 2: a weight of 0 leaves them as they are."""
        context = features
        for scale in self.scales:
            context = context + scale(features)
        return features * (1 + self.join(context))


class SkipGate(nn.Module):
    """A skip times a weight between 0 and 1 in each voxel, from the skip and from what comes from below.

    Args:
        channels: of the skip and of the features from below.

    Source: Oktay et al., Attention U-Net, MIDL 2018.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.skip = Pointwise(channels, inner)
        self.below = Pointwise(channels, inner, bias=False)
        self.weight = nn.Sequential(nn.ReLU(inplace=True), Pointwise(inner, 1), nn.Sigmoid())

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        """Return the skip (B, C, X, Y[, Z]), weighted; `below` has its shape."""
        return skip * self.weight(self.skip(skip) + self.below(below))


def context_attention_unet(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    filters: Sequence[int],
    strides: Sequence[Extent],
    kernel_size: Sequence[Extent],
    dilations: Sequence[int] = (1, 2, 3),
    strip: int = 7,
    dropout: float = 0.0,
) -> Segmenter:
    """Return a U-Net with context attention at its coarsest level and attention gates at its skips.

    The skip at full resolution has no gate, as in Oktay et al.: its features are too simple, and it would cost most.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        filters: features of each level, from full resolution down.
        strides: of each level, one number or one per axis; the first is 1.
        kernel_size: of each level's convolutions, one odd number or one per axis.
        dilations: of the filters that see the surroundings, in voxels of the coarsest level.
        strip: length of the strips that see far along each axis, in voxels of the coarsest level.
        dropout: share of the features that are dropped after each convolution.

    Raises:
        TomokitError: when the lists do not fit each other.
    Source: Oktay et al., Attention U-Net, MIDL 2018; Gu et al., CE-Net, 2019; Guo et al., SegNeXt, NeurIPS 2022.
    """
    check_lists(spatial_dims, filters, strides=strides, kernel_size=kernel_size)

    def layer(level: int, channels: int, features: int, stride: Extent) -> nn.Module:
        return normalised(convolution(spatial_dims, channels, features, kernel_size[level], stride), features, dropout)

    bottom = ContextAttention(spatial_dims, filters[-1], dilations, strip)
    gates = [Pass(), *(SkipGate(features) for features in filters[1:-1])]
    body = paired_body(spatial_dims, in_channels, filters, strides, layer, bottom, gates)
    return Segmenter(body, filters[0], out_channels)
