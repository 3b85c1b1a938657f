"""Dropout for a network that has none."""

from torch import nn

from tomokit.errors import TomokitError


def add_dropout(network: nn.Module, dropout: float) -> nn.Module:
    """Return the network with dropout before its last linear layer, an attribute `fc`.

    Raises:
        TomokitError: when the network has no linear layer `fc`.
    """
    head = getattr(network, "fc", None)
    if not isinstance(head, nn.Linear):
        raise TomokitError(f"{type(network).__name__} has no linear layer `fc`; set its own dropout argument instead")
    network.fc = nn.Sequential(nn.Dropout(dropout), head)
    return network
