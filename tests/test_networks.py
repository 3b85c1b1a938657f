import pytest
import torch
from torch import nn

from tomokit.errors import TomokitError
from tomokit.networks import add_dropout


def test_dropout_stands_before_the_last_layer():
    from monai.networks.nets import ResNet

    network = ResNet("basic", [1, 1, 1, 1], [4, 4, 4, 4], n_input_channels=1, num_classes=2)
    found = add_dropout(network, 0.3).fc
    assert isinstance(found[0], nn.Dropout) and found[0].p == 0.3 and isinstance(found[1], nn.Linear)
    assert network.eval()(torch.zeros(2, 1, 16, 16, 16)).shape == (2, 2)


def test_a_network_without_that_layer_is_named():
    with pytest.raises(TomokitError, match="Conv3d has no linear layer `fc`"):
        add_dropout(nn.Conv3d(1, 1, 1), 0.3)
