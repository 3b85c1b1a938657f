"""A network with a linear model of measures beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tomokit.errors import TomokitError


class MeasuresAdded(nn.Module):
    """A network's logits plus a linear model of measures of the case; it starts as the network alone.

    The measures are standardised by a mean and a deviation that are kept with the weights: `fit_measures` sets them.

    Args:
        network: gives logits (B, out_channels) of an image.
        measures: how many there are.
        out_channels: classes, labels or values.

    Raises:
        TomokitError: when a batch has another number of measures.
    Source: Cheng et al., Wide & deep learning for recommender systems, DLRS 2016.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, measures: int, out_channels: int) -> None:
        super().__init__()
        self.network = network
        self.fc = nn.Linear(measures, out_channels)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        self.register_buffer("mean", torch.zeros(measures))
        self.register_buffer("deviation", torch.ones(measures))

    def forward(self, image: Tensor, measures: Tensor) -> Tensor:
        """Return logits (B, out_channels) for an image (B, C, X, Y[, Z]) and its measures (B, measures)."""
        if not torch.jit.is_scripting():
            self.check(measures)
        return self.network(image) + self.fc((measures - self.mean) / self.deviation)

    def check(self, measures: Tensor) -> None:
        """Raise when there are not as many measures as the network was made for.

        Raises:
            TomokitError: that gives the numbers.
        """
        if measures.ndim != 2 or measures.shape[1] != len(self.mean):
            raise TomokitError(f"a case must have {len(self.mean)} measures, got shape {tuple(measures.shape)}")


def fit_measures(network: nn.Module, entries: Sequence[Mapping[str, Any]], mask_above: float | None = None) -> None:
    """Set the mean and deviation of a `MeasuresAdded` to those of the training cases; what never varies becomes 0.

    Args:
        network: a `MeasuresAdded`, joined with other processes' or not.
        entries: the training cases, with their files, as `tomokit.rivals.feature_table` takes them.
        mask_above: as there.

    Raises:
        TomokitError: when the cases have other measures than the network was made for, and as `feature_table`.
    """
    from sklearn.preprocessing import StandardScaler

    from tomokit.rivals import feature_table

    bare: Any = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    names, table = feature_table(entries, mask_above)
    if len(names) != len(bare.mean):
        raise TomokitError(
            f"the training cases have {len(names)} measures, the network takes {len(bare.mean)}; set `mask_key: mask` "
            "where each entry has a `mask`, else null"
        )
    scaler = StandardScaler().fit(table)
    bare.mean.copy_(torch.from_numpy(scaler.mean_))
    bare.deviation.copy_(torch.from_numpy(scaler.scale_))
