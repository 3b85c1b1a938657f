from pathlib import Path

import pytest
import torch
from bundle_runs import config
from monai.bundle import ConfigParser
from monai.networks.nets import AttentionUnet, DenseNet, ResNet
from torch import nn
from torch.nn import functional

from tomokit.engines import place_network
from tomokit.errors import TomokitError
from tomokit.networks import (
    ContextAttention,
    DynamicConvolution,
    PaddedNetwork,
    ResidualStage,
    SkipGate,
    SlicewiseDynamicConvolution,
    add_dropout,
    context_attention_unet,
    dynamic_unet,
    separable_unet,
    slicewise_dynamic_unet,
    slim_vnet,
    task_head_unet,
)
from tomokit.networks.blocks import SLOPE, Pointwise, crop_like, initialise, up

EXTRA = {
    context_attention_unet: {},
    dynamic_unet: {},
    separable_unet: {"depthwise": [False, True, True]},
    slicewise_dynamic_unet: {},
    slim_vnet: {"depths": [1, 1, 2]},
    task_head_unet: {"tasks": [[1], [2, 3]]},
}
BUILDERS = pytest.mark.parametrize("build", EXTRA, ids=lambda build: build.__name__)
LAYERS = "attention context_attention dynamic residual separable slicewise_dynamic"
LAYERS = [f"{name}_unet" for name in LAYERS.split()] + ["dynunet", "swin_unetr", "task_heads", "vnet", "vnet_slim"]


def small(build, dims=3, **changes) -> nn.Module:
    options = {"filters": [4, 6, 8], "strides": [1, 2, 2], "kernel_size": [3, 3, 3]} | EXTRA[build] | changes
    torch.manual_seed(0)
    return build(dims, options.pop("in_channels", 1), 4, **options)


def build_layer(name: str) -> nn.Module:
    if name == "swin_unetr":
        pytest.importorskip("einops")
    parser = ConfigParser(ConfigParser.load_config_files(config("segmentation", "train", f"networks/{name}")))
    return parser.get_parsed_content("network_def")


def test_dropout_stands_before_the_last_layer():
    network = ResNet("basic", [1, 1, 1, 1], [4, 4, 4, 4], n_input_channels=1, num_classes=2)
    found = add_dropout(network, 0.3).fc
    assert isinstance(found[0], nn.Dropout) and found[0].p == 0.3 and isinstance(found[1], nn.Linear)
    assert network.eval()(torch.zeros(2, 1, 16, 16, 16)).shape == (2, 2)


def test_dropout_in_a_densenet_leaves_the_weights_their_names():
    network = DenseNet(3, 1, 2, init_features=4, growth_rate=2, block_config=(1, 1))
    names = list(network.state_dict())
    *_, dropout, last = add_dropout(network, 0.3).class_layers
    assert isinstance(dropout, nn.Dropout) and dropout.p == 0.3 and isinstance(last, nn.Linear)
    assert list(network.state_dict()) == names


def test_a_network_without_that_layer_is_named():
    with pytest.raises(TomokitError, match="Conv3d has no linear layer `fc`"):
        add_dropout(nn.Conv3d(1, 1, 1), 0.3)


# the layers' files


def test_every_layer_of_the_package_is_tested_here():
    folder = Path(config("segmentation", "train")[0]).parent / "networks"
    assert {path.stem for path in folder.glob("*.yaml") if "tomokit.networks" in path.read_text()} == set(LAYERS)


# torch's checkpointing, which MONAI's SwinUNETR calls, is no script; vnet takes seconds
@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ("vnet", "swin_unetr")])
def test_a_layer_takes_any_size_and_is_a_script(name):
    network = place_network(build_layer(name), "cpu").eval()
    image = torch.randn(1, 1, 17, 23, 9)
    with torch.no_grad():
        logits = network(image)
        assert logits.shape == (1, 4, 17, 23, 9) and logits.isfinite().all()
        torch.testing.assert_close(torch.jit.script(network)(image), logits, rtol=1e-3, atol=1e-4)


def test_swin_unetr_takes_any_size():
    network = build_layer("swin_unetr").eval()
    with torch.no_grad():
        assert network(torch.randn(1, 1, 17, 23, 9)).shape == (1, 4, 17, 23, 9)


# what all networks have in common


@BUILDERS
@pytest.mark.parametrize("size", [(17, 23, 9), (5, 6, 7), (16, 16, 8), (17, 23), (33, 6)])
def test_logits_lie_on_the_image_s_grid(build, size):
    network = small(build, len(size))
    assert network(torch.randn(2, 1, *size)).shape == (2, 4, *size)


@BUILDERS
@pytest.mark.parametrize("dims", [2, 3])
def test_the_gradient_reaches_every_parameter(build, dims):
    network = place_network(small(build, dims), "cpu")
    network(torch.randn(2, 1, *(17, 12, 9)[:dims])).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@BUILDERS
@pytest.mark.parametrize("dims", [2, 3])
def test_a_batch_equals_its_images_one_by_one(build, dims):
    network, images = small(build, dims).eval(), torch.randn(3, 1, *(17, 12, 9)[:dims])
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(network(images), alone, rtol=1e-4, atol=1e-5)


@BUILDERS
@pytest.mark.parametrize("dims", [2, 3])
def test_a_network_runs_in_bfloat16(build, dims):
    network, image = small(build, dims), torch.randn(2, 1, *(17, 12, 9)[:dims])
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(image)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), network(image), rtol=0.2, atol=0.2)
    logits.float().square().mean().backward()


@BUILDERS
def test_strides_and_kernels_differ_by_axis(build):
    network = small(build, strides=[1, [2, 2, 1], [1, 2, 3]], kernel_size=[[3, 3, 1], 3, [1, 3, 5]], in_channels=2)
    features, deepest = network.body(torch.randn(2, 2, 17, 12, 7))
    assert features.shape == (2, 4, 17, 12, 7) and deepest.shape == (2, 8, 9, 3, 3)
    assert network(torch.randn(2, 2, 17, 12, 7)).shape == (2, 4, 17, 12, 7)


@BUILDERS
def test_weights_survive_a_state_dict(build):
    network, image = small(build).eval(), torch.randn(1, 1, 9, 12, 7)
    other = small(build, dropout=0.3).eval()
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    assert not torch.allclose(other(image), network(image))
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(image), network(image), rtol=0, atol=0)


@BUILDERS
def test_dropout_acts_in_training_alone(build):
    network, image = small(build, dropout=0.5), torch.randn(1, 1, 9, 12, 7)
    assert not torch.allclose(network(image), network(image))
    network.eval()
    assert torch.equal(network(image), network(image))


@BUILDERS
def test_a_network_is_a_script_in_two_dimensions(build):
    network, image = small(build, 2).eval(), torch.randn(2, 1, 9, 12)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image), rtol=1e-4, atol=1e-5)


@BUILDERS
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": [1, 2]}, r"`strides` must have 3 entries, one for each filter, got \[1, 2\]"),
        ({"strides": [2, 2, 2]}, "the first of `strides` must be 1, got 2"),
        ({"strides": [1, [2, 2], 2]}, r"`strides` must have one number or one per axis, got \[2, 2\]"),
        ({"kernel_size": [3, 4, 3]}, "`kernel_size` must be odd, got 4"),
        ({"filters": [4], "strides": [1], "kernel_size": [3]}, r"`filters` must have two levels or more, got \[4\]"),
        ({"filters": [4, 0, 4]}, r"`filters` must be 1 or more, got \[4, 0, 4\]"),
        ({"strides": [1, 0, 2]}, "`strides` must be 1 or more along each axis, got 0"),
        ({"strides": []}, r"`strides` must have 3 entries, one for each filter, got \[\]"),
        ({"dims": 4}, "`spatial_dims` must be 2 or 3, got 4"),
    ],
)
def test_lists_that_do_not_fit_are_named(build, changes, message):
    with pytest.raises(TomokitError, match=message):
        small(build, **changes)


# the blocks


def test_a_pointwise_layer_is_a_convolution_of_one_voxel():
    layer, image = Pointwise(3, 5), torch.randn(2, 3, 4, 5, 6)
    nn.init.normal_(layer.bias)
    expected = functional.conv3d(image, layer.weight[:, :, None, None, None], layer.bias)
    torch.testing.assert_close(layer(image), expected)


def test_features_beyond_the_grid_are_cropped_at_the_far_end():
    image = torch.arange(20.0).reshape(1, 1, 4, 5)
    assert torch.equal(crop_like(image, torch.zeros(1, 7, 3, 4)), image[..., :3, :4])


def test_a_residual_of_zero_leaves_the_entry():
    stage = ResidualStage(3, 2, 4, 3, 2, 2, True)
    nn.init.zeros_(stage.residual[-1].weight)
    image = torch.randn(2, 2, 8, 8, 8)
    torch.testing.assert_close(stage(image), functional.leaky_relu(stage.entry(image), 0.01))


def test_a_separable_network_has_a_filter_per_channel():
    layer = small(separable_unet).body.encoder[1][0][0]
    assert layer[0].weight.shape == (4, 1, 3, 3, 3) and layer[1].weight.shape == (6, 4)
    plain = small(separable_unet, depthwise=[False] * 3).body.encoder[1][0][0]
    assert plain.weight.shape == (6, 4, 3, 3, 3)


def test_padding_repeats_the_far_end_and_is_cropped_back():
    class Keep(nn.Module):
        def forward(self, image):
            self.seen = image
            return image * 2

    image, inner = torch.randn(1, 1, 5, 8, 3), Keep()
    assert torch.equal(PaddedNetwork(inner, [4, 8, 2])(image), image * 2)
    assert inner.seen.shape == (1, 1, 8, 8, 4)
    assert torch.equal(inner.seen[:, :, 4:, :, 3], image[:, :, 4:, :, 2].expand(-1, -1, 4, -1))
    PaddedNetwork(inner, 4, minimum=9)(image)
    assert inner.seen.shape == (1, 1, 12, 12, 12)


def test_a_network_of_monai_takes_any_size_once_padded():
    network = AttentionUnet(2, 1, 2, (4, 8, 8), (2, 2))
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 1, 9, 11))
    assert PaddedNetwork(network, 4)(torch.zeros(1, 1, 9, 11)).shape == (1, 2, 9, 11)


def test_a_multiple_below_one_is_refused():
    with pytest.raises(TomokitError, match=r"`multiple` must be 1 or more along each axis, got \[8, 0, 8\]"):
        PaddedNetwork(nn.Identity(), [8, 0, 8])


def test_context_and_gates_of_zero_weight_are_halves():
    features = torch.randn(2, 4, 5, 5, 5)
    context = ContextAttention(3, 4, [1, 2], 7)
    nn.init.zeros_(context.join[1].weight)
    torch.testing.assert_close(context(features), features * 1.5)
    gate = SkipGate(4)
    nn.init.zeros_(gate.weight[1].weight)
    torch.testing.assert_close(gate(features, features), features * 0.5)


def test_context_reaches_as_far_as_its_strips():
    scales = ContextAttention(3, 1, [1, 3], 9).scales
    point = torch.zeros(1, 1, 11, 11, 11)
    point[0, 0, 5, 5, 5] = 1
    reached = sum((scale(point) - scale(torch.zeros_like(point))).abs() for scale in scales)[0, 0] > 0
    assert reached[1, 5, 5] and reached[5, 9, 5] and reached[5, 5, 1] and reached[2, 8, 2] and not reached[0, 5, 5]
    assert not reached[1, 1, 5]


# dynamic convolution


def uniform(layer: nn.Module) -> None:
    nn.init.zeros_(layer.attention.layers[-1].weight)


def steep(layer: nn.Module) -> None:
    nn.init.normal_(layer.attention.layers[-1].weight, std=5)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_dynamic_convolution_with_equal_weights_is_a_plain_one(dims):
    layer, image = DynamicConvolution(dims, 3, 5, 3, 2, 4), torch.randn(2, 3, *(9, 8, 7)[:dims])
    uniform(layer)
    filters = layer.bank.mean(0).reshape(5, 3, *[3] * dims)
    plain = (functional.conv2d if dims == 2 else functional.conv3d)(image, filters, stride=2, padding=1)
    torch.testing.assert_close(layer(image), plain, rtol=1e-4, atol=1e-5)


def test_each_image_has_its_own_mixture_of_filters():
    layer, images = (
        DynamicConvolution(3, 3, 5, 3, 1, 4),
        torch.randn(3, 3, 6, 7, 8) + torch.arange(3.0).view(3, 1, 1, 1, 1),
    )
    steep(layer)
    for image, output in zip(images, layer(images), strict=True):
        weights = layer.attention(image.mean((1, 2, 3)))
        assert weights.sum().item() == pytest.approx(1, abs=1e-5)
        filters = (weights[:, None] * layer.bank).sum(0).reshape(5, 3, 3, 3, 3)
        torch.testing.assert_close(output, functional.conv3d(image[None], filters, padding=1)[0], rtol=1e-3, atol=1e-4)


def test_filters_follow_from_the_whole_image():
    layer, image = DynamicConvolution(3, 2, 3, 3, 1, 4), torch.randn(1, 2, 12, 6, 6)
    steep(layer)
    other = image.clone()
    other[:, :, 6:] += 3  # far from the first voxels, whose neighbourhoods stay the same
    assert not torch.allclose(layer(image)[:, :, :4], layer(other)[:, :, :4])
    uniform(layer)
    torch.testing.assert_close(layer(image)[:, :, :4], layer(other)[:, :, :4])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slicewise_convolution_with_equal_weights_is_a_plain_one_within_planes(axis):
    layer, image = SlicewiseDynamicConvolution(3, 3, 5, 3, 2, 4, axis), torch.randn(2, 3, 9, 8, 7)
    uniform(layer)
    size, stride, padding = [[3] * 3, [2] * 3, [1] * 3]
    size[axis] = stride[axis] = 1
    padding[axis] = 0
    filters = layer.bank.mean(0).reshape(5, 3, *size)
    expected = functional.conv3d(image, filters, stride=stride, padding=padding)
    torch.testing.assert_close(layer(image), expected, rtol=1e-4, atol=1e-5)


def test_each_position_along_the_axis_has_its_own_filters():
    layer, series = SlicewiseDynamicConvolution(3, 2, 3, 3, 1, 4, 2), torch.randn(1, 2, 6, 7, 5)
    steep(layer)
    series += torch.arange(5.0)
    filters = layer.mix(series.movedim(4, 1))[0]
    assert torch.pdist(filters).min() > 1e-3
    for position, values in enumerate(filters):
        plane = functional.conv2d(series[..., position], values.reshape(3, 2, 3, 3), padding=1)
        torch.testing.assert_close(layer(series)[..., position], plane, rtol=1e-3, atol=1e-4)


def test_permuting_the_positions_permutes_the_output():
    layer, series = SlicewiseDynamicConvolution(3, 2, 3, 3, 1, 4, 2), torch.randn(2, 2, 6, 7, 5)
    steep(layer)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(layer(series[..., order]), layer(series)[..., order], rtol=1e-3, atol=1e-4)


def test_the_axis_along_which_filters_vary_is_the_one_named():
    found = [small(slicewise_dynamic_unet, axis=axis).body.encoder[0][0] for axis in (0, -1)]
    assert [layer[0].axis for layer in found] == [2, 4]
    assert [tuple(layer[1].kernel_size) for layer in found] == [(3, 1, 1), (1, 1, 3)]
    with pytest.raises(TomokitError, match="`axis` must be -3 to 2, got 3"):
        small(slicewise_dynamic_unet, axis=3)


# heads by task


def test_each_task_s_head_is_three_convolutions_made_by_the_controller():
    network, image = small(task_head_unet).eval(), torch.randn(2, 1, 8, 9, 7)
    nn.init.normal_(network.controller.weight)
    logits, (features, deepest) = network(image), network.body(image)
    assert torch.equal(logits[:, 0], torch.zeros(2, 8, 9, 7))
    for b in range(2):
        for code, classes in (([1.0, 0], [1]), ([0, 1.0], [2, 3])):
            made = network.controller(torch.cat([deepest[b].mean((1, 2, 3)), torch.tensor(code)]))
            w1, b1, w2, b2, w3, b3 = made.split([32, 8, 64, 8, 16, 2])
            x = functional.conv3d(features[b, None], w1.view(8, 4, 1, 1, 1), b1).relu()
            x = functional.conv3d(x, w2.view(8, 8, 1, 1, 1), b2).relu()
            x = functional.conv3d(x, w3.view(2, 8, 1, 1, 1), b3)[0, : len(classes)]
            torch.testing.assert_close(logits[b, classes], x, rtol=1e-3, atol=1e-3)


def test_one_task_s_code_is_nothing_to_the_others():
    network, image = small(task_head_unet, tasks=[[3, 1], [2]]).eval(), torch.randn(2, 1, 8, 9, 7)
    before = network(image)
    network.codes[0] = torch.tensor([0.2, 0.9])
    after = network(image)
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.allclose(before[:, 1], after[:, 1]) and not torch.allclose(before[:, 3], after[:, 3])


def test_a_loss_on_one_task_teaches_no_other_code():
    network = small(task_head_unet)
    logits = network(torch.randn(2, 1, 8, 9, 7))
    logits[:, [0, 1]].softmax(1).square().mean().backward()
    codes = network.controller.weight.grad[:, -2:].abs().sum(0)
    assert codes[0] > 0 and codes[1] == 0


def test_an_even_strip_is_refused():
    with pytest.raises(TomokitError, match=r"`strip` must be odd.*got 4"):
        ContextAttention(3, 4, [1], 4)


def test_a_step_up_keeps_the_variance_of_what_it_rises_from():
    torch.manual_seed(0)
    rise = up(3, 64, 32, 2)
    rise.apply(initialise)
    features = nn.functional.leaky_relu(torch.randn(2, 64, 4, 4, 4), SLOPE)
    assert rise(features).var().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([[1], [2]], r"2 structures in \[\[1\], \[2\]\], 3 classes without the background"),
        ([[1], [2, 2]], "class 2 stands in `tasks` 2 times"),
        ([[1], [2, 4]], "class 3 is in no task"),
        ([[0], [1, 2]], "class 0 is no structure: they count from 1"),
        ([[1, 2, 3], []], "task 1 has no structure"),
    ],
)
def test_tasks_that_do_not_hold_the_structures_are_named(tasks, message):
    with pytest.raises(TomokitError, match=message):
        small(task_head_unet, tasks=tasks)
