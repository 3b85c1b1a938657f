import pytest
import torch
from torch import nn

from tomokit.errors import TomokitError
from tomokit.networks import InstanceNorm, LeanUNet


def small(spatial_dims=3, **changes):
    settings = {"filters": [4, 6, 8], "strides": [1, 2, 2], "kernel_size": [3, 3, 3], "heads": 2} | changes
    return LeanUNet(spatial_dims, 2, 3, **settings)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_instance_norm_is_torchs(training, channels_last):
    torch.manual_seed(0)
    ours, theirs = InstanceNorm(5).train(training), nn.InstanceNorm3d(5, affine=True).train(training)
    for norm in (ours, theirs):
        nn.init.constant_(norm.weight, 1.5)
        nn.init.constant_(norm.bias, 0.25)
    x = torch.randn(3, 5, 6, 7, 4)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [norm(given) for norm, given in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(*outputs)
    weights = torch.randn_like(outputs[0])
    for output in outputs:
        (output * weights).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, atol=1e-4, rtol=1e-4)
    if channels_last:
        assert outputs[0].is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("size", [(17, 23, 9), (8, 8, 8), (5, 31, 12)])
def test_logits_lie_on_the_images_grid_and_heads_on_their_stages(size):
    network = small()
    full, half = network(torch.randn(2, 2, *size))
    assert full.shape == (2, 3, *size) and half.shape == (2, 3, *((edge + 1) // 2 for edge in size))
    assert network.eval()(torch.randn(1, 2, *size)).shape == (1, 3, *size)


def test_one_head_gives_a_tensor_in_training_too():
    assert small(heads=1)(torch.randn(1, 2, 8, 8, 8)).shape == (1, 3, 8, 8, 8)


def test_a_2d_network_with_strides_and_kernels_per_axis_keeps_the_grid():
    network = small(2, strides=[1, [2, 1], 2], kernel_size=[[3, 1], 3, 3], heads=1)
    assert network(torch.randn(2, 2, 13, 9)).shape == (2, 3, 13, 9)
    assert network.encoder[0][0][0].weight.shape[2:] == (3, 1)


def test_every_parameter_gets_a_gradient():
    network = small(dropout=0.1)
    sum(output.square().mean() for output in network(torch.randn(2, 2, 12, 12, 12))).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_what_a_sample_gets_does_not_depend_on_the_others():
    network, x = small().eval(), torch.randn(3, 2, 8, 12, 8)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), atol=1e-5, rtol=1e-5)


def test_a_scripted_network_computes_the_same():
    network, x = small().eval(), torch.randn(1, 2, 9, 8, 11)
    torch.testing.assert_close(torch.jit.script(network)(x), network(x))


def test_the_default_of_the_bundle_has_the_parameters_that_the_docs_tell():
    network = LeanUNet(3, 1, 3, [16, 32, 64, 128], [1, 2, 2, 2], [3, 3, 3, 3], heads=2)
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_242_246


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"strides": [1, 2]}, r"`strides` must have 3 entries, one for each filter, got \[1, 2\]"),
        ({"kernel_size": [3, 3, 2]}, "`kernel_size` must be odd, got 2"),
        ({"heads": 3}, "`heads` must be 1 to 2, got 3"),
        ({"filters": [4], "strides": [1], "kernel_size": [3]}, r"two levels or more, got \[4\]"),
        ({"encoder_convolutions": [1, 0, 2]}, r"`encoder_convolutions` must be 1 or more .*\[1, 0, 2\]"),
        ({"decoder_convolutions": [1]}, r"`decoder_convolutions` must have 2 entries for 3 filters, got \[1\]"),
    ],
)
def test_stages_that_do_not_fit_are_named(changes, told):
    with pytest.raises(TomokitError, match=told):
        small(**changes)
