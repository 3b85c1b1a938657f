"""A U-Net of separable convolutions."""

from collections.abc import Sequence

from torch import nn

from tomokit.networks.blocks import (
    Extent,
    Pointwise,
    Segmenter,
    check_lists,
    convolution,
    normalised,
    paired_body,
)


def separable_unet(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    filters: Sequence[int],
    strides: Sequence[Extent],
    kernel_size: Sequence[Extent],
    depthwise: Sequence[bool],
    dropout: float = 0.0,
) -> Segmenter:
    """Return a U-Net of depthwise separable convolutions: one filter per channel, then a mixture of the channels.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        filters: features of each level, from full resolution down.
        strides: of each level, one number or one per axis; the first is 1.
        kernel_size: of each level's convolutions, one odd number or one per axis.
        depthwise: for each level whether its convolutions are separated. At full resolution few channels make a plain
            convolution the faster one on a CPU, and its parameters count little there.
        dropout: share of the features that are dropped after each convolution.

    Raises:
        TomokitError: when the lists do not fit each other.
    Source: Chollet, Xception, CVPR 2017; Howard et al., MobileNets, arXiv:1704.04861.
    """
    check_lists(spatial_dims, filters, strides=strides, kernel_size=kernel_size, depthwise=depthwise)

    def layer(level: int, channels: int, features: int, stride: Extent) -> nn.Module:
        kernel = kernel_size[level]
        if depthwise[level]:
            each = convolution(spatial_dims, channels, channels, kernel, stride, groups=channels)
            whole: nn.Module = nn.Sequential(each, Pointwise(channels, features, bias=False))
        else:
            whole = convolution(spatial_dims, channels, features, kernel, stride)
        return normalised(whole, features, dropout)

    body = paired_body(spatial_dims, in_channels, filters, strides, layer)
    return Segmenter(body, filters[0], out_channels)
