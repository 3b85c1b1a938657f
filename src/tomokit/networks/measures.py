"""A network with a linear model of measures beside it."""

import torch
from torch import Tensor, nn

from tomokit.errors import TomokitError


class MeasuresAdded(nn.Module):
    """The mean of a network's logits and of those of a linear model of measures of the case.

    The measures are standardised by a mean and a deviation that are kept with the weights; `tomokit.joining` fits all.

    Args:
        network: gives logits (B, out_channels) of an image.
        measures: how many there are.
        out_channels: classes, labels or values.

    Raises:
        TomokitError: when a batch has another number of measures.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, measures: int, out_channels: int) -> None:
        super().__init__()
        self.network = network
        self.fc = nn.Linear(measures, out_channels)
        self.register_buffer("mean", torch.zeros(measures))
        self.register_buffer("deviation", torch.ones(measures))

    def forward(self, image: Tensor, measures: Tensor) -> Tensor:
        """Return logits (B, out_channels) for an image (B, C, X, Y[, Z]) and its measures (B, measures)."""
        if not torch.jit.is_scripting():
            self.check(measures)
        standardised = (measures - self.mean) / self.deviation
        linear = (standardised[:, None] * self.fc.weight).sum(2) + self.fc.bias  # in float32 under autocast too
        return (self.network(image) + linear) / 2

    def check(self, measures: Tensor) -> None:
        """Raise when there are not as many measures as the network was made for.

        Raises:
            TomokitError: that gives the numbers.
        """
        if measures.ndim != 2 or measures.shape[1] != len(self.mean):
            raise TomokitError(f"a case must have {len(self.mean)} measures, got shape {tuple(measures.shape)}")
