"""V-Net with widths that fit the machine."""

from collections.abc import Sequence

from torch import Tensor, nn

from tomokit.networks.blocks import (
    Body,
    Extent,
    InstanceNorm,
    Segmenter,
    check_lists,
    convolution,
    normalised,
)


class ResidualStage(nn.Module):
    """A stage of V-Net: a convolution to its grid and width, then convolutions to whose result its own is added.

    Args:
        spatial_dims: 2 or 3.
        channels: of the input.
        features: of the output.
        kernel: size of the convolutions, odd.
        stride: of the first convolution.
        depth: convolutions that learn the residual.
        entry: whether there is a first convolution; without it `channels` must be `features` and `stride` 1.
        dropout: share of the features that are dropped after each convolution.

    Source: Milletari et al., V-Net, 3DV 2016.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        features: int,
        kernel: Extent,
        stride: Extent,
        depth: int,
        entry: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        first = convolution(spatial_dims, channels, features, kernel, stride)
        self.entry = normalised(first, features, dropout) if entry else nn.Identity()
        inner = [
            normalised(convolution(spatial_dims, features, features, kernel), features, dropout)
            for _ in range(depth - 1)
        ]
        self.residual = nn.Sequential(
            *inner, convolution(spatial_dims, features, features, kernel), InstanceNorm(features)
        )
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, features, X', Y'[, Z']) for (B, channels, X, Y[, Z])."""
        features = self.entry(image)
        return self.activation(features + self.residual(features))


def slim_vnet(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    filters: Sequence[int],
    strides: Sequence[Extent],
    kernel_size: Sequence[Extent],
    depths: Sequence[int],
    dropout: float = 0.0,
) -> Segmenter:
    """Return a V-Net of any widths: residual stages, strided convolutions in place of pooling.

    Unlike the paper's, its skips are added, it normalises by instance, and any image size is taken.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        filters: features of each level, from full resolution down.
        strides: of each level, one number or one per axis; the first is 1.
        kernel_size: of each level's convolutions, one odd number or one per axis.
        depths: residual convolutions of each level's stages, on the way down and up.
        dropout: share of the features that are dropped after each convolution.

    Raises:
        TomokitError: when the lists do not fit each other.
    Source: Milletari et al., V-Net, 3DV 2016.
    """
    check_lists(spatial_dims, filters, strides=strides, kernel_size=kernel_size, depths=depths)

    def encode(level: int, channels: int, features: int, stride: Extent) -> nn.Module:
        kernel = kernel_size[level]
        return ResidualStage(spatial_dims, channels, features, kernel, stride, depths[level], True, dropout)

    def decode(level: int, features: int) -> nn.Module:
        kernel = kernel_size[level]
        return ResidualStage(spatial_dims, features, features, kernel, 1, depths[level], False, dropout)

    body = Body(spatial_dims, in_channels, filters, strides, encode, decode)
    return Segmenter(body, filters[0], out_channels)
