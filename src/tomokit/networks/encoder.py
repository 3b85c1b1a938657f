"""The encoder of the default U-Net as a classifier, so that one pretraining serves both."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tomokit.networks.blocks import Extent
from tomokit.networks.unet import LeanUNet


class LeanEncoder(nn.Module):
    """The way down of `LeanUNet`, under the same names, with a linear layer on what its last stage found.

    The last stage's features are normalised, so that their mean over the image tells little: their greatest value
    and the mean of their squares above 0 are taken beside it.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes.
        filters: features of each stage, from full resolution down, as those of the U-Net.
        strides: of each stage.
        kernel_size: of each stage's convolutions.
        dropout: the share of pooled features that are dropped.

    Raises:
        TomokitError: when the lists do not fit each other.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        filters: Sequence[int],
        strides: Sequence[Extent],
        kernel_size: Sequence[Extent],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = LeanUNet(spatial_dims, in_channels, out_channels, filters, strides, kernel_size).encoder
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(3 * filters[-1], out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, classes) for an image (B, C, X, Y[, Z])."""
        for stage in self.encoder:
            x = stage(x)
        x = x.flatten(2)
        pooled = torch.cat([x.mean(2), x.amax(2), x.clamp(min=0).square().mean(2)], 1)
        return torch.as_tensor(self.fc(self.dropout(pooled)))
