"""Networks that mend an image: what they give is added to it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from tomokit.errors import TomokitError
from tomokit.networks.blocks import SLOPE, Body, Extent, convolution, initialise

BRANCH, LAST = 0.1, 0.01  # of the usual weights of a block's second convolution and of the last layer before training


class Residual(nn.Module):
    """A network whose output is added to its input, in the input's precision.

    Args:
        network: takes (B, C, X, Y[, Z]) and gives as many channels on the same grid.
        within: voxels; the result stays between the least and the greatest value that its channel of the input has so
            near. Whatever the network was not trained for, no value is made that is not there, and what is even stays
            as it is. None bounds nothing, for what must go beyond: a blurred peak was higher.

    Raises:
        TomokitError: when `within` is below 1.
    Source: Zhang et al., Beyond a Gaussian denoiser, IEEE Transactions on Image Processing 26 (2017).
    """

    def __init__(self, network: nn.Module, within: int | None = None) -> None:
        super().__init__()
        if within is not None and within < 1:
            raise TomokitError(f"within must be at least 1 voxel, or null, got {within}")
        self.network = network
        self.within = within

    def forward(self, image: Tensor) -> Tensor:
        """Return the mended image (B, C, X, Y[, Z]) for an image of the same shape."""
        mended = image + self.network(image).to(image.dtype)
        if self.within is None:
            return mended
        return mended.clamp(-greatest_near(-image, self.within), greatest_near(image, self.within))


def greatest_near(image: Tensor, reach: int) -> Tensor:
    """Return the greatest value of (B, C, X, Y[, Z]) within `reach` voxels along each axis, axis by axis."""
    flat = image.ndim == 4
    pool = functional.max_pool2d if flat else functional.max_pool3d
    for axis in range(image.ndim - 2):
        edge, pad = [1] * (image.ndim - 2), [0] * (image.ndim - 2)
        edge[axis], pad[axis] = 2 * reach + 1, reach
        image = pool(image, edge, stride=1, padding=pad)
    return image


class ResidualBlock(nn.Module):
    """Two convolutions without bias, added to what they are given.

    Args:
        dims: 2 or 3.
        features: channels of input and output.
    """

    def __init__(self, dims: int, features: int) -> None:
        super().__init__()
        self.first = convolution(dims, features, features, 3)
        self.activation = nn.LeakyReLU(SLOPE, inplace=True)
        self.second = convolution(dims, features, features, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, features, X, Y[, Z]) for the same."""
        return x + self.second(self.activation(self.first(x)))


class BiasFreeUNet(nn.Module):
    """A U-Net of residual blocks without biases and without normalisation.

    Its answer to a times the image is a times its answer, for each a above 0: so it serves levels of noise that it was
    not trained on, and an image's brightness needs no normalisation within the network, which would hide the level.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image, and of the output.
        filters: features of each level, from full resolution down.
        strides: of each level, one number or one per axis; the first is 1.
        blocks: residual blocks of each level, on the way down and again on the way up.

    Raises:
        TomokitError: when the lists do not fit each other.
    Source: Mohan et al., Robust and interpretable blind image denoising via bias-free CNNs, ICLR 2020; Zhang et al.,
        Plug-and-play image restoration with deep denoiser prior, IEEE TPAMI 44 (2022).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        filters: Sequence[int],
        strides: Sequence[Extent],
        blocks: int = 1,
    ) -> None:
        super().__init__()

        def encode(level: int, channels: int, features: int, stride: Extent) -> nn.Module:
            first = convolution(spatial_dims, channels, features, 3, stride)
            return nn.Sequential(first, *decode(level, features))

        def decode(level: int, features: int) -> nn.Sequential:
            return nn.Sequential(*(ResidualBlock(spatial_dims, features) for _ in range(blocks)))

        self.body = Body(spatial_dims, in_channels, filters, strides, encode, decode)
        self.last = convolution(spatial_dims, filters[0], in_channels, 3)
        self.apply(initialise)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                _scale(module.second, BRANCH)
        _scale(self.last, LAST)  # the answer to an image begins as the image

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, C, X, Y[, Z]) for an image (B, C, X, Y[, Z]) of any size."""
        return self.last(self.body(image)[0])


def _scale(layer: nn.Module, factor: float) -> None:
    """Multiply the weights of a layer."""
    with torch.no_grad():
        for weight in layer.parameters():
            weight.mul_(factor)
