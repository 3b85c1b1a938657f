"""The default network: a U-Net that spends its arithmetic where it pays on a CPU."""

from collections.abc import Sequence

from torch import Tensor, nn

from tomokit.errors import raise_problems
from tomokit.networks.blocks import (
    Extent,
    Pointwise,
    check_lists,
    convolution,
    crop_like,
    initialise,
    normalised,
    up,
)


class LeanUNet(nn.Module):
    """A U-Net with few convolutions at full resolution, skips that are added, and logits of coarser stages.

    Each stage but the first begins with a strided convolution; the way up is a transposed convolution, to which the
    stage's features are added (a concatenation doubles the next convolution). Every convolution is followed by
    instance norm and leaky ReLU. Against MONAI's `DynUNet` of the same filters it has 0.9 of the parameters and takes
    half the time (docs/experiments.md), since the first stage has one convolution each way instead of two.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        filters: features of each stage, from full resolution down.
        strides: of each stage, one number or one per axis; the first is 1.
        kernel_size: of each stage's convolutions, one odd number or one per axis.
        encoder_convolutions: how many each stage has on the way down (default: 1 in the first, 2 in the others).
        decoder_convolutions: how many each stage but the last has on the way up (default: likewise).
        heads: how many stages give logits in training, from full resolution down (deep supervision).
        dropout: the share of values that are dropped after each convolution but those at full resolution.

    Raises:
        TomokitError: when the lists do not fit each other.
    Source: Ronneberger et al., U-Net, MICCAI 2015; Isensee et al., nnU-Net, Nature Methods 18 (2021).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        filters: Sequence[int],
        strides: Sequence[Extent],
        kernel_size: Sequence[Extent],
        encoder_convolutions: Sequence[int] | None = None,
        decoder_convolutions: Sequence[int] | None = None,
        heads: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_lists(spatial_dims, filters, strides=strides, kernel_size=kernel_size)
        down = list(encoder_convolutions or [1] + [2] * (len(filters) - 1))
        way_up = list(decoder_convolutions or [1] + [2] * (len(filters) - 2))
        _check_counts(len(filters), down, way_up, heads)
        self.heads = heads
        self.encoder = nn.ModuleList()
        self.ups = nn.ModuleList()
        self.decoder = nn.ModuleList()
        self.logits = nn.ModuleList()

        def stage(level: int, count: int, channels: int, stride: Extent) -> nn.Sequential:
            layers = []
            for _ in range(count):
                layer = convolution(spatial_dims, channels, filters[level], kernel_size[level], stride)
                layers.append(normalised(layer, filters[level], dropout if level else 0.0))
                channels, stride = filters[level], 1
            return nn.Sequential(*layers)

        for level, channels in enumerate([in_channels, *filters[:-1]]):
            self.encoder.append(stage(level, down[level], channels, strides[level]))
        for level in reversed(range(len(filters) - 1)):
            self.ups.append(up(spatial_dims, filters[level + 1], filters[level], strides[level + 1]))
            self.decoder.append(stage(level, way_up[level], filters[level], 1))
            self.logits.append(Pointwise(filters[level], out_channels) if level < heads else nn.Identity())
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return the logits (B, classes, X, Y[, Z]) for an image (B, C, X, Y[, Z]) of any size.

        At least two voxels must be left at the coarsest stage to normalise over.

        In training with `heads` above 1, a list: full resolution first, then the coarser stages' own grids.
        """
        features: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            features.append(x)
        outputs: list[Tensor] = []
        below = len(self.ups)
        for rise, stage, logits in zip(self.ups, self.decoder, self.logits):  # noqa: B905 (TorchScript has no `strict`)
            below -= 1
            skip = features[below]
            x = stage(crop_like(rise(x), skip) + skip)
            if below == 0 or (self.training and below < self.heads):
                outputs.insert(0, logits(x))
        if self.training and self.heads > 1:
            return outputs
        return outputs[0]


def _check_counts(levels: int, down: Sequence[int], up: Sequence[int], heads: int) -> None:
    """Raise when the numbers of convolutions or of heads do not fit the levels.

    Raises:
        TomokitError: that names each of them.
    """
    problems = [
        f"`{name}` must have {wanted} entries for {levels} filters, got {list(given)}"
        for name, given, wanted in (("encoder_convolutions", down, levels), ("decoder_convolutions", up, levels - 1))
        if len(given) != wanted
    ]
    problems += [
        f"`{name}` must be 1 or more in each stage, got {list(given)}"
        for name, given in (("encoder_convolutions", down), ("decoder_convolutions", up))
        if min(given, default=1) < 1
    ]
    problems += [] if 1 <= heads < levels else [f"`heads` must be 1 to {levels - 1}, got {heads}"]
    raise_problems("the stages of the U-Net do not fit each other", problems)
