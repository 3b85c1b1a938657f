"""What MONAI's losses need to take a case's class, and weights of the classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tomokit.errors import TomokitError


class OneHotLoss(nn.Module):
    """Gives another loss with classes made one-hot, as MONAI's losses take them.

    MONAI's own `to_onehot_y` takes no soft labels, such as mixup makes.

    Args:
        loss: called with logits (B, K) and labels (B, K).
        task: the config's: several labels per case, or a value, would pass for soft labels of classes.

    Raises:
        TomokitError: when the task is not "classes".
    """

    def __init__(self, loss: nn.Module, task: str = "classes") -> None:
        super().__init__()
        if task != "classes":
            raise TomokitError(f"this loss is one of classes, the config's `task` is {task}; leave its layer out")
        self.loss = loss

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits (B, K) and classes (B,), or labels (B, K) as they are."""
        if labels.ndim == 1:
            labels = functional.one_hot(labels.long(), logits.shape[1])
        return self.loss(logits.float(), labels.float())


def class_weights(entries: Sequence[Mapping[str, Any]], num_classes: int, device: str | torch.device = "cpu") -> Tensor:
    """Return a weight for each class (K,), cases over K times its cases: all classes then count alike.

    Args:
        entries: the training cases; `label` is a class.
        num_classes: K.
        device: where the loss is computed.

    Raises:
        TomokitError: when a label is no class, or a class has no case.
    """
    labels = [entry["label"] for entry in entries]
    wrong = [label for label in labels if not isinstance(label, int) or not 0 <= label < num_classes]
    if wrong:
        raise TomokitError(f"class weights need classes 0 to {num_classes - 1} as labels, got {wrong[0]!r}")
    counts = Counter(labels)
    absent = [number for number in range(num_classes) if not counts[number]]
    if absent:
        raise TomokitError(
            f"no training case is of class {', '.join(map(str, absent))}, so it can have no weight; leave out the "
            "class, or the layer with class weights"
        )
    weights = [len(labels) / (num_classes * counts[number]) for number in range(num_classes)]
    return torch.tensor(weights, device=device)
