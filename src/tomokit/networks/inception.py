"""A small Inception network: at each level filters of several sizes lie side by side."""

from collections import OrderedDict

import torch
from monai.networks.layers import Pool
from torch import Tensor, nn

from tomokit.errors import raise_problems
from tomokit.networks.blocks import initialise
from tomokit.networks.cnn import mean_features, unit


class InceptionBlock(nn.Module):
    """Features of filters of 1, 3 and 5 voxels' edge, and of the greatest values nearby, side by side.

    A filter of 5 is two of 3, one after the other: they see as far, and have 54 weights for 125 in 3D (18 for 25 in
    2D). In front of the larger filters a 1×1×1 convolution leaves half as many channels as their branch gives.

    Args:
        spatial_dims: 2 or 3.
        channels: of the input.
        width: features of each of the four branches.
        stride: of each branch.

    Source: Szegedy et al., Going deeper with convolutions, CVPR 2015, the branches; Rethinking the Inception
        architecture for computer vision, CVPR 2016, small filters for large ones and blocks with a stride.
    """

    def __init__(self, spatial_dims: int, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        half = max(width // 2, 1)
        self.one = unit(spatial_dims, channels, width, 1, stride)
        self.three = nn.Sequential(
            unit(spatial_dims, channels, half, 1),
            unit(spatial_dims, half, width, 3, stride),
        )
        self.five = nn.Sequential(
            unit(spatial_dims, channels, half, 1),
            unit(spatial_dims, half, half, 3),
            unit(spatial_dims, half, width, 3, stride),
        )
        self.pooled = nn.Sequential(Pool["max", spatial_dims](3, stride, 1), unit(spatial_dims, channels, width, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, 4·width, X', Y'[, Z']) for (B, channels, X, Y[, Z]): one voxel in `stride`, the first included."""
        return torch.cat([self.one(features), self.three(features), self.five(features), self.pooled(features)], 1)


class Inception(nn.Module):
    """A classifier of four Inception blocks, A to D, behind a stem of two convolutions.

    The stem, B and D halve the grid. Width 16 has 277,000 parameters in 3D, width 8 a quarter of them. Any image size.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, labels or values; None gives the mean features (B, 16·width) in their place.
        width: features of each branch of block A; B and C have twice as many, D four times.
        dropout: share of the mean features that are dropped.

    Raises:
        TomokitError: when an argument is out of its range.
    Source: Szegedy et al., CVPR 2015 and CVPR 2016.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int | None,
        width: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        problems = [] if spatial_dims in (2, 3) else [f"`spatial_dims` must be 2 or 3, got {spatial_dims}"]
        problems += [] if width > 0 else [f"`width` must be 1 or more, got {width}"]
        raise_problems("the Inception network can't be made", problems)
        stem = [unit(spatial_dims, in_channels, width, 3, 2), unit(spatial_dims, width, 2 * width, 3)]
        blocks = OrderedDict(
            stem=nn.Sequential(*stem),
            a=InceptionBlock(spatial_dims, 2 * width, width),
            b=InceptionBlock(spatial_dims, 4 * width, 2 * width, 2),
            c=InceptionBlock(spatial_dims, 8 * width, 2 * width),
            d=InceptionBlock(spatial_dims, 8 * width, 4 * width, 2),
        )
        self.features = nn.Sequential(blocks)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Identity() if out_channels is None else nn.Linear(16 * width, out_channels)
        self.apply(initialise)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, out_channels) for an image (B, C, X, Y[, Z])."""
        return self.fc(self.dropout(mean_features(self.features(image))))
