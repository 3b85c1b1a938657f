"""Convolutions whose filters are made from the image, and U-Nets of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from tomokit.errors import TomokitError
from tomokit.networks.blocks import (
    Extent,
    Segmenter,
    check_lists,
    convolution,
    extent,
    normalised,
    paired_body,
)


class KernelAttention(nn.Module):
    """Weights between 0 and 1, of sum 1, by which a bank of filters is mixed, from a mean of the features.

    Args:
        channels: of the features.
        kernels: filters in the bank.
    """

    def __init__(self, channels: int, kernels: int) -> None:
        super().__init__()
        hidden = max(channels // 4, 4)
        scores = nn.Linear(hidden, kernels)
        # nearly equal weights at the start let every filter learn; the paper reaches it by a high temperature
        nn.init.normal_(scores.weight, std=0.01)
        nn.init.zeros_(scores.bias)
        # leaky: normalised features have much the same means in every image, and a dead unit would stay dead
        self.layers = nn.Sequential(nn.Linear(channels, hidden), nn.LeakyReLU(0.1), scores)

    def forward(self, mean: Tensor) -> Tensor:
        """Return (…, kernels) for the mean features (…, channels)."""
        return self.layers(mean).softmax(-1)


def filter_bank(kernels: int, channels: int, features: int, size: Sequence[int]) -> nn.Parameter:
    """Return a bank (kernels, features·channels·size), each filter drawn as for a plain convolution (He et al.)."""
    fan = channels * math.prod(size)
    # flat, since channels-last memory is for weights of one convolution
    return nn.Parameter(torch.randn(kernels, features * fan) * math.sqrt(2 / fan))


class DynamicConvolution(nn.Module):
    """A convolution whose filters are a mixture, of weights that follow from each image's mean features.

    The mixtures of all images in a batch are applied at once, as one convolution with a group for each image.

    Args:
        spatial_dims: 2 or 3.
        channels: of the input.
        features: of the output.
        kernel: size of the filters, one odd number or one per axis.
        stride: one number or one per axis.
        kernels: filters in the bank.

    Source: Chen et al., Dynamic convolution: attention over convolution kernels, CVPR 2020.
    """

    def __init__(
        self, spatial_dims: int, channels: int, features: int, kernel: Extent, stride: Extent, kernels: int
    ) -> None:
        super().__init__()
        size = extent(kernel, spatial_dims)
        self.features = features
        self.shape = [-1, channels, *size]
        self.stride = list(extent(stride, spatial_dims))
        self.padding = [edge // 2 for edge in size]
        self.attention = KernelAttention(channels, kernels)
        self.bank = filter_bank(kernels, channels, features, size)

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, features, X', Y'[, Z']) for (B, channels, X, Y[, Z])."""
        batch = image.shape[0]
        mixture = self.attention(image.flatten(2).mean(2)) @ self.bank
        filters = mixture.flatten().unflatten(0, self.shape)
        output = convolve(image.flatten(0, 1).unsqueeze(0), filters, self.stride, self.padding, groups=batch)
        return output.squeeze(0).unflatten(0, [batch, self.features])


class SlicewiseDynamicConvolution(nn.Module):
    """A convolution within the planes across one axis, with filters of their own at each position along it.

    The axis may be slices, or time: a series of planes is (B, C, X, Y, T). A position's filters follow from the mean
    features of its own plane alone, so that permuting the positions permutes the output. All planes are convolved at
    once, as one convolution with a group for each.

    Args:
        spatial_dims: 2 or 3, the axis included.
        channels: of the input.
        features: of the output.
        kernel: size of the filters, one odd number or one per axis; the axis' own is not used.
        stride: one number or one per axis; the axis' own is not used.
        kernels: filters in the bank.
        axis: 0, 1 or 2 for X, Y or Z.

    Source: Chen et al., Dynamic convolution, CVPR 2020, by position as in Huang et al., TAda!, ICLR 2022.
    """

    def __init__(
        self, spatial_dims: int, channels: int, features: int, kernel: Extent, stride: Extent, kernels: int, axis: int
    ) -> None:
        super().__init__()
        size, step = list(extent(kernel, spatial_dims)), list(extent(stride, spatial_dims))
        del size[axis], step[axis]
        self.axis = 2 + axis
        self.features = features
        self.shape = [-1, channels, *size]
        self.stride = step
        self.padding = [edge // 2 for edge in size]
        self.attention = KernelAttention(channels, kernels)
        self.bank = filter_bank(kernels, channels, features, size)

    def mix(self, planes: Tensor) -> Tensor:
        """Return each position's filters (B, T, features·channels·size) for planes (B, T, channels, X[, Y])."""
        return self.attention(planes.flatten(3).mean(3)) @ self.bank

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, features, X', Y', T), where T is the axis' size, for (B, channels, X, Y, T); 2D likewise."""
        planes = image.movedim(self.axis, 1)
        batch, positions = planes.shape[0], planes.shape[1]
        filters = self.mix(planes).flatten().unflatten(0, self.shape)
        joined = planes.flatten(0, 2).unsqueeze(0)
        output = convolve(joined, filters, self.stride, self.padding, groups=batch * positions)
        return output.squeeze(0).unflatten(0, [batch, positions, self.features]).movedim(1, self.axis)


def convolve(image: Tensor, filters: Tensor, stride: list[int], padding: list[int], groups: int) -> Tensor:
    """Return the convolution in as many dimensions as the filters have, in autocast's precision."""
    # torch.convolution would serve them all, but autocast passes it by
    if len(stride) == 1:
        return functional.conv1d(image, filters, None, stride, padding, 1, groups)
    if len(stride) == 2:
        return functional.conv2d(image, filters, None, stride, padding, 1, groups)
    return functional.conv3d(image, filters, None, stride, padding, 1, groups)


def dynamic_unet(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    filters: Sequence[int],
    strides: Sequence[Extent],
    kernel_size: Sequence[Extent],
    kernels: int = 4,
    dropout: float = 0.0,
) -> Segmenter:
    """Return a U-Net of dynamic convolutions: each image is filtered by its own mixtures of a few filters.

    The first convolution is a plain one, as in the paper.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        filters: features of each level, from full resolution down.
        strides: of each level, one number or one per axis; the first is 1.
        kernel_size: of each level's convolutions, one odd number or one per axis.
        kernels: filters that each convolution mixes.
        dropout: share of the features that are dropped after each convolution.

    Raises:
        TomokitError: when the lists do not fit each other.
    Source: Chen et al., Dynamic convolution: attention over convolution kernels, CVPR 2020.
    """
    check_lists(spatial_dims, filters, strides=strides, kernel_size=kernel_size)

    def layer(level: int, channels: int, features: int, stride: Extent) -> nn.Module:
        whole = DynamicConvolution(spatial_dims, channels, features, kernel_size[level], stride, kernels)
        return normalised(whole, features, dropout)

    body = paired_body(spatial_dims, in_channels, filters, strides, layer)
    first = convolution(spatial_dims, in_channels, filters[0], kernel_size[0])
    body.encoder[0] = normalised(first, filters[0], dropout)
    return Segmenter(body, filters[0], out_channels)


def slicewise_dynamic_unet(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    filters: Sequence[int],
    strides: Sequence[Extent],
    kernel_size: Sequence[Extent],
    kernels: int = 4,
    axis: int = -1,
    dropout: float = 0.0,
) -> Segmenter:
    """Return a U-Net whose filters vary along one axis, slices or time; a plain convolution joins the positions.

    A time series of planes is an image (B, C, X, Y, T) with `axis` -1; its strides and kernels stand for X, Y and T.

    Args:
        spatial_dims: 2 or 3, the axis included.
        in_channels: channels of the image.
        out_channels: classes, background included.
        filters: features of each level, from full resolution down.
        strides: of each level, one number or one per axis; the first is 1.
        kernel_size: of each level's convolutions, one odd number or one per axis.
        kernels: filters that each position mixes.
        axis: along which the filters vary, from 0 or, as -1, from the last.
        dropout: share of the features that are dropped after each convolution.

    Raises:
        TomokitError: when the lists do not fit each other, or the axis is none of the image's.
    Source: Chen et al., Dynamic convolution, CVPR 2020, by position as in Huang et al., TAda!, ICLR 2022.
    """
    check_lists(spatial_dims, filters, strides=strides, kernel_size=kernel_size)
    if not -spatial_dims <= axis < spatial_dims:
        raise TomokitError(f"`axis` must be {-spatial_dims} to {spatial_dims - 1}, got {axis}")
    place = axis % spatial_dims

    def layer(level: int, channels: int, features: int, stride: Extent) -> nn.Module:
        kernel = extent(kernel_size[level], spatial_dims)
        within = SlicewiseDynamicConvolution(spatial_dims, channels, features, kernel, stride, kernels, place)
        line, step = [1] * spatial_dims, [1] * spatial_dims
        line[place], step[place] = kernel[place], extent(stride, spatial_dims)[place]
        along = convolution(spatial_dims, features, features, line, step)
        return normalised(nn.Sequential(within, along), features, dropout)

    body = paired_body(spatial_dims, in_channels, filters, strides, layer)
    return Segmenter(body, filters[0], out_channels)
