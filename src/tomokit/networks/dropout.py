"""Dropout for a network that has none."""

from collections import OrderedDict

from torch import nn

from tomokit.errors import TomokitError


def add_dropout(network: nn.Module, dropout: float) -> nn.Module:
    """Return the network with dropout before its last linear layer: `fc`, or the last of `class_layers` (DenseNet).

    Raises:
        TomokitError: when the network ends in neither.
    """
    head, layers = getattr(network, "fc", None), getattr(network, "class_layers", None)
    if isinstance(head, nn.Linear):
        network.fc = nn.Sequential(nn.Dropout(dropout), head)
    elif isinstance(layers, nn.Sequential) and isinstance(layers[-1], nn.Linear):
        *first, last = layers.named_children()  # the names stay, and with them those of the weights
        network.class_layers = nn.Sequential(OrderedDict([*first, ("dropout", nn.Dropout(dropout)), last]))
    else:
        raise TomokitError(f"{type(network).__name__} has no linear layer `fc`; set its own dropout argument instead")
    return network
