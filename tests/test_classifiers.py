"""Networks that classify, the layers that choose them, and what makes a volume large enough for one."""

import pytest
import torch
from bundle_runs import config
from monai.bundle import ConfigParser
from monai.networks.nets import DenseNet, ViT
from monai.networks.nets.resnet import get_medicalnet_pretrained_resnet_args
from torch import nn
from torch.nn import functional

from tomokit.configs import ConfigWorkflow
from tomokit.engines import place_network
from tomokit.errors import TomokitError
from tomokit.finetuning import find_head
from tomokit.networks import Inception, InceptionBlock, MinimumSize, PlainCNN, ViTClassifier, add_dropout


def inception(dims=3, out_channels=2, width=4, **options) -> nn.Module:
    torch.manual_seed(0)
    return Inception(dims, 1, out_channels, width, **options)


def cnn(dims=3, out_channels=2, filters=(4, 6, 8), **options) -> nn.Module:
    torch.manual_seed(0)
    return PlainCNN(dims, 1, out_channels, list(filters), **options)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


BUILDERS = pytest.mark.parametrize("build", [inception, cnn], ids=lambda build: build.__name__)
DIMS = pytest.mark.parametrize("dims", [2, 3])
SIZE = (17, 12, 9)


# what both have in common


@BUILDERS
@pytest.mark.parametrize("size", [(8, 8, 8), (9, 13, 11), (28, 28, 28), (8, 9), (33, 17), (3, 1, 2)])
def test_an_image_of_any_size_gets_its_logits(build, size):
    network = build(len(size))
    logits = network(torch.randn(2, 1, *size))
    assert logits.shape == (2, 2) and logits.isfinite().all()


@BUILDERS
@DIMS
def test_the_gradient_reaches_every_parameter(build, dims):
    network = place_network(build(dims), "cpu")
    network(torch.randn(4, 1, *SIZE[:dims])).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@BUILDERS
@DIMS
def test_a_batch_equals_its_images_one_by_one(build, dims):
    network, images = build(dims), torch.randn(3, 1, *SIZE[:dims])
    network(images)  # so that the batch norms' statistics are not those of the start
    network.eval()
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(network(images), alone, rtol=1e-4, atol=1e-5)


@BUILDERS
@DIMS
def test_a_classifier_is_a_script(build, dims):
    network, images = build(dims).eval(), torch.randn(2, 1, *SIZE[:dims])
    torch.testing.assert_close(torch.jit.script(network)(images), network(images), rtol=1e-4, atol=1e-5)


@BUILDERS
def test_a_classifier_runs_in_bfloat16(build):
    network, images = build().eval(), torch.randn(2, 1, *SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images)
    torch.testing.assert_close(logits.float(), network(images), rtol=0.2, atol=0.2)


@BUILDERS
@DIMS
def test_without_classes_the_mean_features_come_back(build, dims):
    network, images = build(dims, None).eval(), torch.randn(2, 1, *SIZE[:dims])
    expected = network.features(images).mean(tuple(range(2, 2 + dims)))
    torch.testing.assert_close(network(images), expected)


@BUILDERS
def test_dropout_acts_in_training_alone(build):
    network, images = build(dropout=0.5), torch.randn(2, 1, *SIZE)
    assert not torch.allclose(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


@BUILDERS
def test_the_head_is_found(build):
    assert find_head(build()) == ("fc",)


# Inception


@pytest.mark.parametrize(("width", "parameters"), [(8, 69_906), (16, 276_994)])
def test_inception_has_the_parameters_that_its_layer_tells(width, parameters):
    assert count(Inception(3, 1, 2, width)) == parameters


@DIMS
@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_has_four_branches_on_one_grid(dims, stride):
    block, image = InceptionBlock(dims, 3, 6, stride), torch.randn(2, 3, *SIZE[:dims])
    branches = [block.one(image), block.three(image), block.five(image), block.pooled(image)]
    size = [-(-edge // stride) for edge in SIZE[:dims]]
    assert [tuple(branch.shape) for branch in branches] == [(2, 6, *size)] * 4
    assert block(image).shape == (2, 24, *size)


@pytest.mark.parametrize(("branch", "reach"), [("one", 0), ("three", 1), ("five", 2), ("pooled", 1)])
def test_a_branch_sees_as_far_as_its_filter(branch, reach):
    torch.manual_seed(0)
    block = InceptionBlock(3, 8, 16).eval()
    image = torch.rand(1, 8, 9, 9, 9) + 1
    point = image.clone()
    point[..., 4, 4, 4] += 5
    changed = (getattr(block, branch)(point) != getattr(block, branch)(image))[0].any(0)
    expected = torch.zeros(9, 9, 9, dtype=torch.bool)
    expected[4 - reach : 5 + reach, 4 - reach : 5 + reach, 4 - reach : 5 + reach] = True
    assert torch.equal(changed, expected)


def test_pooling_takes_the_greatest_value_nearby():
    block, image = InceptionBlock(3, 2, 4), torch.randn(1, 2, 5, 6, 7)
    assert torch.equal(block.pooled[0](image), functional.max_pool3d(image, 3, 1, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"dims": 4}, "`spatial_dims` must be 2 or 3, got 4"), ({"width": 0}, "`width` must be 1 or more, got 0")],
)
def test_an_inception_network_that_can_not_be_is_refused(changes, message):
    with pytest.raises(TomokitError, match=message):
        inception(**changes)


# the plain network


def test_each_level_but_the_first_halves_the_grid():
    image = torch.randn(2, 1, 17, 12, 9)
    assert cnn().features(image).shape == (2, 8, 5, 3, 3)
    assert cnn(stride=2).features(image).shape == (2, 8, 3, 2, 2)
    assert cnn(convolutions=2).features(image).shape == (2, 8, 5, 3, 3)
    assert len(cnn(convolutions=2).features) == 2 * len(cnn().features)
    with pytest.raises(TomokitError, match="one of the `convolutions` or more, got 0"):
        cnn(convolutions=0)


def test_the_plain_network_s_head_is_a_perceptron():
    network, features = cnn(hidden=5).eval(), torch.randn(3, 8)
    first, last = network.fc[0], network.fc[-1]
    assert (first.out_features, last.in_features) == (5, 5)
    torch.testing.assert_close(network.fc(features), last(first(features).relu()))
    with pytest.raises(TomokitError, match="PlainCNN has no linear layer `fc`"):
        add_dropout(network, 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 3}, "`stride` of the first level must be 1 or 2, got 3"),
        ({"filters": [4]}, r"`filters` must have two levels or more, got \[4\]"),
        ({"dims": 1}, "`spatial_dims` must be 2 or 3, got 1"),
    ],
)
def test_a_plain_network_that_can_not_be_is_refused(changes, message):
    with pytest.raises(TomokitError, match=message):
        cnn(**changes)


# volumes that are too small


class Keep(nn.Module):
    def forward(self, image):
        self.seen = image
        return image.flatten(1).sum(1)


def test_a_small_image_is_padded_on_both_sides_by_its_edge():
    image, inner = torch.arange(1.0, 7).view(1, 1, 2, 3), Keep()
    MinimumSize(inner, 5)(image)
    expected = torch.tensor([[1, 1, 2, 3, 3], [1, 1, 2, 3, 3], [4, 4, 5, 6, 6], [4, 4, 5, 6, 6], [4, 4, 5, 6, 6]])
    assert torch.equal(inner.seen[0, 0], expected.float())


def test_an_image_that_is_large_enough_is_left_alone():
    image, inner = torch.randn(2, 1, 5, 6, 9), Keep()
    MinimumSize(inner, 5)(image)
    assert inner.seen is image
    MinimumSize(inner, 7)(image)
    assert inner.seen.shape == (2, 1, 7, 7, 9) and torch.equal(inner.seen[:, :, 1:6, :6], image)


def test_a_densenet_takes_28_voxels_once_padded():
    torch.manual_seed(0)
    network, image = DenseNet(3, 1, 2, 4, 2, (1, 1, 1, 1)).eval(), torch.randn(1, 1, 28, 28, 28)
    with pytest.raises(RuntimeError):
        network(image)
    padded = MinimumSize(network, 32)
    assert find_head(padded) == ("network.class_layers",)
    assert padded(image).shape == (1, 2)
    torch.testing.assert_close(torch.jit.script(padded)(image), padded(image), rtol=1e-4, atol=1e-5)


def test_a_minimum_below_one_is_refused():
    with pytest.raises(TomokitError, match="`minimum` must be 1 voxel or more, got 0"):
        MinimumSize(nn.Identity(), 0)


# MONAI's transformer


def vit(**options) -> ViT:
    pytest.importorskip("einops")
    torch.manual_seed(0)
    given = {"classification": True, "post_activation": None, "num_classes": 3, "spatial_dims": 2}
    return ViT(1, (8, 8), (4, 4), hidden_size=12, mlp_dim=16, num_layers=2, num_heads=2, **given | options)


def test_a_transformer_gives_its_logits():
    network, images = vit().eval(), torch.randn(2, 1, 8, 8)
    classifier = ViTClassifier(network)
    assert torch.equal(classifier(images), network(images)[0]) and classifier(images).shape == (2, 3)
    assert find_head(classifier) == ("network.classification_head",)


def test_the_gradient_reaches_all_of_a_transformer_that_is_trained():
    network = ViTClassifier(vit())
    network(torch.randn(4, 1, 8, 8)).square().mean().backward()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0] == []
    left = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert left and all("norm_cross_attn" in name for name in left)


@pytest.mark.parametrize(
    ("options", "found"), [({"post_activation": "Tanh"}, "Sequential"), ({"classification": False}, "NoneType")]
)
def test_a_transformer_without_logits_is_refused(options, found):
    with pytest.raises(TomokitError, match=f"`classification: true` and `post_activation: null` alone, .* {found}"):
        ViTClassifier(vit(**options))


# the layers' files


def build_layer(name: str) -> nn.Module:
    parser = ConfigParser(ConfigParser.load_config_files(config("classification", "train", f"networks/{name}")))
    return parser.get_parsed_content("network_def")


@pytest.mark.parametrize("name", ["cnn", "densenet", "inception", "senet", "vit"])
def test_a_layer_classifies_volumes(name):
    if name == "vit":
        pytest.importorskip("einops")
    network = place_network(build_layer(name), "cpu").eval()
    for size in [(32, 32, 32)] if name == "vit" else [(28, 28, 28), (21, 14, 30)]:
        with torch.no_grad():
            logits = network(torch.randn(1, 1, *size))
        assert logits.shape == (1, 2) and logits.isfinite().all()


# counted by hand from the convolutions' sizes; without the head as MedicalNet's own table has them, in millions
RESNETS = {10: 14_356_546, 18: 32_987_202, 34: 63_296_834, 50: 46_159_170}


@pytest.mark.parametrize("depth", RESNETS)
def test_a_resnet_has_the_form_of_medicalnet_s(depth):
    with torch.device("meta"):
        network = build_layer(f"resnet{depth}")
    assert count(network) == RESNETS[depth]
    state = network.state_dict()
    assert state["conv1.weight"].shape == (64, 1, 7, 7, 7) and network.conv1.stride == (2, 2, 2)
    bias, shortcut = get_medicalnet_pretrained_resnet_args(depth)
    assert ("layer2.0.downsample.0.weight" in state) == (shortcut == "B")
    assert ("layer2.0.downsample.0.bias" in state) == (shortcut == "B" and bias)
    assert find_head(network) == ("fc",)


@pytest.mark.parametrize("blocks", [[1, 1], [4, 4, 4], [1, 2, 1, 1, 1]])
def test_a_densenet_of_any_depth_takes_volumes_smaller_than_it_halves(blocks):
    workflow = ConfigWorkflow(
        config("classification", "train", "networks/densenet"),
        **{"network_def::network::network::block_config": blocks},
    )
    network = workflow.parser.get_parsed_content("network_def").eval()
    assert network(torch.rand(1, 1, 3, 9, 20)).shape == (1, 2)
