"""A network with a linear model of measures beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tomokit.errors import TomokitError
from tomokit.metrics import check_task


class MeasuresAdded(nn.Module):
    """The mean of a network's logits and of those of a linear model of measures of the case.

    In training it gives the network's logits alone, so that the network learns as it would without measures. The linear
    model is fitted by `fit_measures`; it and the measures' mean and deviation are buffers, kept with the weights.

    Args:
        network: gives logits (B, out_channels) of an image.
        measures: how many there are.
        out_channels: classes, labels or values.

    Raises:
        TomokitError: when a batch has another number of measures.
    """

    mean: Tensor
    deviation: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, network: nn.Module, measures: int, out_channels: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.zeros(measures))
        self.register_buffer("deviation", torch.ones(measures))
        self.register_buffer("weight", torch.zeros(out_channels, measures))
        self.register_buffer("bias", torch.zeros(out_channels))

    def forward(self, image: Tensor, measures: Tensor) -> Tensor:
        """Return logits (B, out_channels) for an image (B, C, X, Y[, Z]) and its measures (B, measures)."""
        if not torch.jit.is_scripting():
            self.check(measures)
        logits: Tensor = self.network(image)
        if self.training:
            return logits
        return (logits + F.linear((measures - self.mean) / self.deviation, self.weight, self.bias)) / 2

    def check(self, measures: Tensor) -> None:
        """Raise when there are not as many measures as the network was made for.

        Raises:
            TomokitError: that gives the numbers.
        """
        if measures.ndim != 2 or measures.shape[1] != len(self.mean):
            raise TomokitError(f"a case must have {len(self.mean)} measures, got shape {tuple(measures.shape)}")


def fit_measures(
    network: nn.Module, entries: Sequence[Mapping[str, Any]], mask_above: float | None = None, task: str = "classes"
) -> None:
    """Fit the linear model of a `MeasuresAdded` to the training cases.

    Classes and labels have the logistic regression that is the network's rival; a value, standardised over the cases as
    the network learns it, has scikit-learn's ridge of 1.

    Args:
        network: a `MeasuresAdded`, joined with other processes' or not.
        entries: the training cases, with their `label` and files, as `tomokit.rivals.feature_table` takes them.
        mask_above: as there.
        task: "classes", "labels" or "value".

    Raises:
        TomokitError: when there is no such task, the cases have other measures than the network was made for, a class
            has no case, a label has all cases or none, and as `feature_table`.
    """
    from tomokit.rivals import feature_table

    check_task(task)
    bare: Any = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    names, table = feature_table(entries, mask_above)
    if len(names) != len(bare.mean):
        raise TomokitError(
            f"the training cases have {len(names)} measures, the network takes {len(bare.mean)}; set `mask_key: mask` "
            "where each entry has a `mask`, else null"
        )
    targets = np.array([entry["label"] for entry in entries])
    _check_targets(targets, task, len(bare.bias))
    models = _fit_models(table, targets, task)
    weight = np.concatenate([np.atleast_2d(model[-1].coef_) for model in models])
    bias = np.concatenate([np.atleast_1d(model[-1].intercept_) for model in models])
    if task == "classes" and len(bias) == 1:  # of two classes scikit-learn gives the difference of their logits
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    scaler = models[0][0]
    found = {"mean": scaler.mean_, "deviation": scaler.scale_, "weight": weight, "bias": bias}
    for name, values in found.items():
        getattr(bare, name).copy_(torch.from_numpy(values))


def _check_targets(targets: NDArray[Any], task: str, outputs: int) -> None:
    """Raise when the targets, classes (cases,) or labels (cases, L), leave something that nothing can be fitted to."""
    kind = {"classes": "class", "labels": "label"}.get(task)
    shares = targets[:, None] == np.arange(outputs) if task == "classes" else targets.reshape(len(targets), -1)
    alike = [number for number, share in enumerate(shares.T) if share.min() == share.max()]
    if kind and alike:
        raise TomokitError(
            f"no regression of the measures can be fitted to the {kind} {alike[0]}: all training cases have it, or "
            "none has; leave modes/features out"
        )


def _fit_models(table: NDArray[np.float64], targets: NDArray[Any], task: str) -> list[Any]:
    """Return the fitted models, each a standardisation and a regression: one, or one for each label."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from tomokit.rivals import make_classifier

    if task == "value":
        return [make_pipeline(StandardScaler(), Ridge()).fit(table, (targets - targets.mean()) / targets.std())]
    columns = targets.T if task == "labels" else [targets]
    return [make_classifier("logistic").fit(table, column) for column in columns]
