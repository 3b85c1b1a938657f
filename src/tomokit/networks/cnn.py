"""A plain convolutional network that classifies, and the unit of convolution that classifiers share."""

from collections.abc import Sequence

from monai.networks.layers import Norm
from torch import Tensor, nn

from tomokit.errors import TomokitError
from tomokit.networks.blocks import Extent, check_lists, convolution, initialise


class PlainCNN(nn.Module):
    """A classifier of one convolution or more per level, whose features' mean goes through a perceptron.

    It normalises by batch: by instance, each channel would have the same mean and deviation in every image, which
    is most of what its mean over the grid can tell. Any image size.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, labels or values; None gives the mean features (B, filters[-1]) in their place.
        filters: features of each level; each level but the first halves the grid.
        stride: of the first level: 1, or 2 for images that are large for the machine.
        hidden: units of the perceptron's hidden layer.
        dropout: share of the hidden units that are dropped.
        convolutions: in each level, one after the other.

    Raises:
        TomokitError: when the filters, the stride or the convolutions do not make a network.
    Source: LeCun et al., Gradient-based learning applied to document recognition, Proceedings of the IEEE 86 (1998);
        the mean over the grid: Lin et al., Network in network, ICLR 2014.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int | None,
        filters: Sequence[int],
        stride: int = 1,
        hidden: int = 64,
        dropout: float = 0.0,
        convolutions: int = 1,
    ) -> None:
        super().__init__()
        check_lists(spatial_dims, filters)
        if stride not in (1, 2):
            raise TomokitError(f"`stride` of the first level must be 1 or 2, got {stride}")
        if convolutions < 1:
            raise TomokitError(f"each level needs one of the `convolutions` or more, got {convolutions}")
        channels = [in_channels, *filters]
        units = []
        for i, width in enumerate(filters):
            units.append(unit(spatial_dims, channels[i], width, 3, 2 if i else stride))
            units += [unit(spatial_dims, width, width, 3) for _ in range(convolutions - 1)]
        self.features = nn.Sequential(*units)
        self.fc: nn.Module = nn.Identity()
        if out_channels is not None:
            layers = [nn.Linear(filters[-1], hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, out_channels)]
            self.fc = nn.Sequential(*layers)
        self.apply(initialise)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, out_channels) for an image (B, C, X, Y[, Z])."""
        return self.fc(mean_features(self.features(image)))


def unit(dims: int, channels: int, features: int, kernel: Extent, stride: Extent = 1) -> nn.Sequential:
    """Return a convolution, batch norm and ReLU, on the grid or on one voxel in `stride` of it."""
    layer = convolution(dims, channels, features, kernel, stride)
    return nn.Sequential(layer, Norm["batch", dims](features), nn.ReLU(inplace=True))


def mean_features(features: Tensor) -> Tensor:
    """Return the mean (B, C) of features (B, C, X, Y[, Z]) over their grid; (B, C) as it is.

    torch's adaptive pooling has no deterministic form on a GPU.
    """
    return features.flatten(2).mean(2) if features.ndim > 2 else features
