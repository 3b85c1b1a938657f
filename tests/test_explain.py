"""Maps of what matters to a classifier on networks whose right map is known, and the scores of such maps."""

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import DenseNet, ResNet, ViT
from torch import nn

from tomokit.engines.hardware import place_network
from tomokit.errors import TomokitError
from tomokit.explain import (
    METHODS,
    find_layer,
    grad_cam,
    insertion_deletion,
    make_explainer,
    near_mask,
    occlusion_map,
    pointing_hit,
    randomisation_check,
    rank_correlation,
)
from tomokit.networks import PlainCNN, ViTClassifier, VolumeLogits, WindowSequence


class Corner(nn.Module):
    """Looks at nothing but a corner: class 1 where it is bright."""

    def __init__(self, corner):
        super().__init__()
        self.features = nn.Sequential(nn.Conv3d(1, 1, 1, bias=False), nn.ReLU(inplace=True), Window(corner))
        nn.init.ones_(self.features[0].weight)

    def forward(self, image):
        bright = self.features(image).flatten(1).mean(1)
        return torch.stack([-bright, bright], 1)


class Window(nn.Module):
    def __init__(self, corner):
        super().__init__()
        self.corner = corner

    def forward(self, image):
        seen = torch.zeros_like(image)
        seen[:, :, *self.corner] = image[:, :, *self.corner]
        return seen


class Linear(nn.Module):
    """Gives (0, w·x) of an image."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.as_tensor(weights, dtype=torch.float32))

    def forward(self, image):
        score = (image * self.weights).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)


class Coarse(nn.Module):
    """A map of half the resolution whose mean speaks for class 0 and against class 1."""

    def __init__(self, gain=1.0):
        super().__init__()
        self.pool = nn.AvgPool2d(2)
        self.gain = gain

    def forward(self, image):
        score = self.gain * self.pool(image).flatten(1).mean(1)
        return torch.stack([score, -score], 1)


def small_cnn(seed=0):
    torch.manual_seed(seed)
    return PlainCNN(3, 1, 2, [4, 8, 8], stride=1).eval()


def random_image(*shape, seed=0):
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------- maps


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", [0, 1])
def test_a_map_points_to_the_only_corner_that_is_looked_at(method, place):
    corner = [slice(0, 4), slice(8, 12), slice(0, 4)] if place == 0 else [slice(8, 12), slice(0, 4), slice(4, 8)]
    image = random_image(1, 12, 12, 12) + 0.5
    image[0, 0, *corner] += 1  # brighter than the mean
    heat = make_explainer(method)(Corner(corner), image, 1)
    seen = np.zeros((12, 12, 12))
    seen[*corner] = 1
    assert heat.shape == (1, 12, 12, 12) and heat.dtype == torch.float32
    assert heat.min() == 0 and heat.max() == 1
    found = pointing_hit(heat, seen)
    assert found.hit == 1 and found.energy > (0.99 if method != "occlusion" else 0.3)
    assert make_explainer(method)(Corner(corner), image, 0).max() == 0  # nothing speaks for the other class


@pytest.mark.parametrize("plus", [False, True])
def test_grad_cam_is_the_coarse_map_interpolated(plus):
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, :2, :2], image[0, 0, 2:, :2] = 4, 2  # the map of features is [[4, 0], [2, 0]]
    heat = grad_cam(Coarse(), image, 0, 2, plus)[0]
    down = np.array([1, 0.875, 0.625, 0.5])  # a voxel's centre lies a quarter and three quarters between two features'
    np.testing.assert_allclose(heat, down[:, None] * [1, 0.75, 0.25, 0], atol=1e-6)
    assert grad_cam(Coarse(), image, 1, 2, plus).max() == 0
    np.testing.assert_allclose(grad_cam(Coarse(1e4), image, 0, 2, plus)[0], heat, atol=1e-5)  # logits of 1e4


def test_occlusion_of_a_linear_network_is_what_its_patches_add():
    rng = np.random.default_rng(0)
    weights, image = rng.normal(size=(2, 5, 6)), rng.normal(size=(2, 5, 6)) + np.array([3, -7])[:, None, None]
    away = (weights * (image - image.mean(axis=(1, 2), keepdims=True))).sum(0)
    total, count = np.zeros((5, 6)), np.zeros((5, 6))
    for x, y in itertools.product([0, 2, 3], [0, 1, 2, 3]):  # the last patch ends with the image
        total[x : x + 2, y : y + 3] += away[x : x + 2, y : y + 3].sum()
        count[x : x + 2, y : y + 3] += 1
    expected = np.maximum(total / count, 0)
    found = occlusion_map(Linear(weights), torch.as_tensor(image, dtype=torch.float32)[None], 1, (2, 3), (2, 1))[0]
    np.testing.assert_allclose(found, expected / expected.max(), atol=1e-4)
    other = occlusion_map(Linear(weights), torch.as_tensor(image, dtype=torch.float32)[None], 0, (2, 3), (2, 1))[0]
    expected = np.maximum(-total / count, 0)  # what speaks against one of two classes speaks for the other
    np.testing.assert_allclose(other, expected / expected.max(), atol=1e-4)


def test_occlusion_takes_a_bounded_number_of_passes_by_itself():
    seen = []

    class Counting(Linear):
        def forward(self, image):
            seen.append(len(image))
            return super().forward(image)

    for sizes, patches in (((16, 16, 8), 7 * 7 * 7), ((9, 30, 1), 4 * 7 * 1), ((40, 3), 7 * 3)):
        seen.clear()
        occlusion_map(Counting(np.ones((1, *sizes))), random_image(1, *sizes), 1)
        assert sum(seen) == patches + 2  # once to check the classes, once without a patch


def test_the_last_map_with_room_is_found():
    image = random_image(1, 16, 16, 16)
    cnn = small_cnn()
    assert [find_layer(cnn, image, extent) for extent in (2, 8, 16)] == ["features", "features.1", "features.0"]
    flat = PlainCNN(3, 1, 2, [4, 8], stride=1).eval()
    assert find_layer(flat, random_image(1, 16, 16, 1), 8) == "features"  # the image itself is one voxel thick
    resnet = ResNet("basic", [1, 1, 1, 1], [2, 4, 4, 4], 3, n_input_channels=1, num_classes=2, conv1_t_stride=2)
    assert [find_layer(resnet, random_image(1, 32, 32, 32), extent) for extent in (2, 4)] == ["layer3", "layer2"]


class Mixing(nn.Module):
    """Mixes the voxels of a map, as tokens, and makes a map of them again; its last block begins in place."""

    def __init__(self):
        super().__init__()
        self.conv, self.mix = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(36, 36)
        self.last = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))

    def forward(self, image):
        tokens = self.mix(self.conv(image).flatten(2))
        return self.last(tokens.unflatten(2, (6, 6))).flatten(2).mean(2)


def test_a_map_behind_tokens_and_a_block_that_begins_in_place():
    torch.manual_seed(0)
    network = Mixing().eval()
    assert find_layer(network, random_image(1, 6, 6)) == "last"
    assert max(grad_cam(network, random_image(1, 6, 6), number).max() for number in (0, 1)) == 1
    assert network.last[0].inplace


def test_networks_that_read_sequences_are_told_to_take_occlusion():
    image = random_image(1, 8, 8, 8)
    heads = {"hidden_size": 8, "mlp_dim": 8, "num_layers": 1, "num_heads": 2, "num_classes": 2}
    vit = ViTClassifier(ViT(1, [8] * 3, [4] * 3, classification=True, post_activation=None, **heads))
    with pytest.raises(TomokitError, match=r"ViTClassifier reads its last feature map .*patch_embeddings.* as a seq"):
        grad_cam(vit, image, 0, 2)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    sequence = VolumeLogits(WindowSequence(encoder, 4, 2, hidden=4))
    with pytest.raises(TomokitError, match=r"VolumeLogits has no layer .* of 2 or more voxels .*take occlusion"):
        grad_cam(sequence, image, 0, 2)
    for network in (vit, sequence):
        assert occlusion_map(network.eval(), image, 0).shape == (1, 8, 8, 8)


def test_the_network_stays_as_it_was():
    torch.manual_seed(0)
    network = DenseNet(3, 1, 2, init_features=4, growth_rate=2, block_config=(2, 2)).train()
    network.features.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image = random_image(1, 16, 16, 16)
    for method in METHODS:
        explain = make_explainer(method)
        first = explain(network, image, 1)
        assert torch.equal(first, explain(network, image, 1)) and first.max() == 1
        insertion_deletion(network, image, first, 1, steps=2)
    randomisation_check(make_explainer("gradcam"), network, [image], [1], draws=1, stages=1)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.training and network.class_layers.relu.inplace
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())


def test_a_map_does_not_depend_on_the_memory_order_or_the_metadata():
    image = random_image(1, 16, 16, 16)
    plain = [make_explainer(method)(small_cnn(), image, 1) for method in METHODS]
    network = place_network(small_cnn(), "cpu")
    other = MetaTensor(image.to(memory_format=torch.channels_last_3d))
    for method, expected in zip(METHODS, plain, strict=True):
        found = make_explainer(method)(network, other, 1)
        assert type(found) is torch.Tensor
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"class_index": 2}, "class 2 is none of the network's 2 classes"),
        ({"class_index": -1}, "class -1 is none"),
        ({"image": torch.zeros(2, 1, 6, 6)}, r"an image must be .*got \(2, 1, 6, 6\)"),
        ({"image": torch.zeros(1, 1, 6)}, r"got \(1, 1, 6\)"),
        ({"image": torch.full((1, 1, 6, 6), torch.nan)}, "values that are not finite"),
        ({"patch": 7}, r"`patch` must be 1 to \[6, 6\] voxels along the axes, got 7"),
        ({"patch": (2, 2, 2)}, r"`patch` must be .*got \(2, 2, 2\)"),
        ({"patch": 2, "stride": 3}, r"`stride` must be 1 to \[2, 2\] voxels along the axes, got 3"),
        ({"image": torch.zeros(1, 1, 40, 40), "patch": 2, "stride": 1}, "take 1521 passes, more than 1000"),
    ],
)
def test_what_occlusion_refuses(given, message):
    image = given.get("image", torch.rand(1, 1, 6, 6))
    network = Linear(torch.ones(image.shape[1:]))
    with pytest.raises(TomokitError, match=message):
        occlusion_map(network, **({"image": image, "class_index": 1} | given))


def test_what_the_other_functions_refuse():
    image = random_image(1, 6, 6)
    with pytest.raises(TomokitError, match=r"Flatten must give logits .* two classes or more, it gives \(1, 1\)"):
        grad_cam(nn.Flatten(), torch.zeros(1, 1, 1, 1), 0)
    with pytest.raises(TomokitError, match="`method` must be one of gradcam, gradcam\\+\\+, occlusion, got 'lime'"):
        make_explainer("lime")
    for call in (lambda: make_explainer("gradcam", 1), lambda: find_layer(Coarse(), image, 1)):
        with pytest.raises(TomokitError, match="`extent` must be 2 or more voxels, got 1"):
            call()


# ---------------------------------------------------------------------------------------------------- weights


def edges(network, image, class_index):
    """An edge detector: a map that shows the image, whatever the network."""
    return image[0].diff(dim=1, append=image[0, :, -1:]).abs()


def test_an_edge_detector_does_not_depend_on_the_weights():
    images = [random_image(1, 16, 16, 16, seed=seed) for seed in range(2)]
    found = randomisation_check(edges, small_cnn(), images, [0, 1], draws=1, stages=4)
    assert found.layers == (2, 4, 6, 8) and found.correlations == (1, 1, 1, 1)
    assert not found.depends and found.verdict == "does not depend on the weights"


def test_grad_cam_depends_on_the_weights():
    images = [random_image(1, 16, 16, 16, seed=seed) for seed in range(2)]
    found = randomisation_check(make_explainer("gradcam"), small_cnn(), images, [0, 1])
    assert found.layers[-1] == 8 and found.depends and found.verdict == "depends on the weights"
    again = randomisation_check(make_explainer("gradcam"), small_cnn(), images, [0, 1])
    assert found == again
    other = randomisation_check(make_explainer("gradcam"), small_cnn(), images, [0, 1], seed=1)
    assert found.correlations != other.correlations


def test_layers_are_drawn_anew_from_the_top():
    network, image = small_cnn(), random_image(1, 16, 16, 16)
    layers = [name for name, module in network.named_modules() if any(True for _ in module.parameters(recurse=False))]
    for number, name in enumerate(reversed(layers), 1):

        def weights_of(own, image, _, name=name):
            return dict(own.named_modules())[name].weight.detach().clone()

        found = randomisation_check(weights_of, network, [image], [0], draws=1, stages=8)
        is_norm = isinstance(dict(network.named_modules())[name], nn.BatchNorm3d)  # which starts as it starts
        same = [value == 1 for value in found.correlations]
        assert same == [is_norm or count < number for count in found.layers]


def test_weights_without_a_fresh_start_are_drawn_anew_too():
    image = random_image(1, 6, 6)
    network = Linear(np.random.default_rng(0).normal(size=(1, 6, 6)))
    wrapped = nn.Sequential(network)
    found = randomisation_check(occlusion_map, wrapped, [image], [1], draws=4, stages=6)
    assert found.layers == (1,) and abs(found.correlations[0]) < 0.5


def test_what_the_check_refuses():
    image = random_image(1, 6, 6)
    for images, classes, told in (([], [], "got 0 and 0"), ([image], [0, 1], "got 1 and 2")):
        with pytest.raises(TomokitError, match=f"each image needs a class, and there must be one; {told}"):
            randomisation_check(edges, Coarse(), images, classes)
    for options in ({"draws": 0}, {"stages": 0}):
        told = (options.get("draws", 2), options.get("stages", 6))
        with pytest.raises(TomokitError, match=f"must be 1 or more, got {told[0]} and {told[1]}"):
            randomisation_check(edges, Coarse(), [image], [0], **options)
    with pytest.raises(TomokitError, match="Coarse has no weights to draw anew"):
        randomisation_check(edges, Coarse(), [image], [0])


def test_rank_correlation_of_known_maps():
    ramp = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert rank_correlation(ramp, ramp**3) == pytest.approx(1)
    assert rank_correlation(ramp, -ramp) == pytest.approx(-1)
    assert rank_correlation(ramp, torch.zeros(1, 2, 2, 2)) == 0
    assert rank_correlation(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)) == 1
    swapped = ramp.flatten()[[1, 0, 2, 3, 4, 5, 6, 7]].reshape(ramp.shape)
    assert rank_correlation(ramp, swapped) == pytest.approx(1 - 6 * 2 / (8 * 63))


# ------------------------------------------------------------------------------------------ insertion, deletion


def sigmoid(value):
    return 1 / (1 + np.exp(-value))


def test_insertion_and_deletion_of_a_linear_network_in_closed_form():
    rng = np.random.default_rng(1)
    weights, image = rng.normal(size=(2, 4, 5)), rng.normal(size=(2, 4, 5))
    heat = rng.permutation(20).reshape(1, 4, 5) / 19
    tensor = torch.as_tensor(image, dtype=torch.float32)[None]
    found = insertion_deletion(Linear(weights), tensor, torch.as_tensor(heat, dtype=torch.float32), 1, steps=5)
    gain = (weights * (image - image.mean(axis=(1, 2), keepdims=True))).sum(0).ravel()[np.argsort(-heat.ravel())]
    scores = (weights * image).sum() - np.concatenate([[0], np.cumsum(gain)])[::4]
    chances = sigmoid(scores)
    assert found.deletion == pytest.approx((chances[:-1] + chances[1:]).sum() / 2 / 5, abs=1e-5)
    constant = insertion_deletion(Linear(weights), tensor, torch.ones(1, 4, 5), 1, steps=5)
    assert constant.insertion == constant.random_insertion == found.random_insertion
    assert constant.deletion == constant.random_deletion == found.random_deletion


def test_insertion_begins_with_the_blurred_image_and_ends_with_the_image():
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 4:8, 4:8] = 1
    weights = np.zeros((1, 16, 16))
    weights[0, 4:8, 4:8] = 1
    network = Linear(weights)
    good = insertion_deletion(network, image, torch.as_tensor(weights), 1, steps=16)
    bad = insertion_deletion(network, image, torch.as_tensor(1 - weights), 1, steps=16)
    whole, empty = sigmoid(16), sigmoid(1)  # with the square, and with its mean, 1/16, in its place
    assert good.deletion == pytest.approx((whole + empty) / 2 / 16 + empty * 15 / 16, abs=1e-4)
    assert bad.deletion == pytest.approx((whole + empty) / 2 / 16 + whole * 15 / 16, abs=1e-4)
    # all of the square at once, or at the last; the blurred square itself holds less than half of its sum
    assert good.insertion == pytest.approx(whole, abs=0.01) and bad.insertion < good.insertion
    assert good.random_insertion == bad.random_insertion < good.insertion
    assert good.deletion < good.random_deletion < bad.deletion


def test_what_insertion_and_deletion_refuse():
    image, network = random_image(1, 4, 5), Linear(np.ones((1, 4, 5)))
    with pytest.raises(TomokitError, match=r"the map \(4, 5\) does not lie on the image \(1, 1, 4, 5\)"):
        insertion_deletion(network, image, torch.ones(4, 5), 1)
    with pytest.raises(TomokitError, match="`steps` must be 1 or more, got 0"):
        insertion_deletion(network, image, torch.ones(1, 4, 5), 1, steps=0)
    with pytest.raises(TomokitError, match="class 3 is none of the network's 2"):
        insertion_deletion(network, image, torch.ones(1, 4, 5), 3)


# ----------------------------------------------------------------------------------------------------- pointing


def test_a_maximum_inside_the_mask_is_a_hit():
    heat, mask = np.zeros((6, 6)), np.zeros((6, 6), np.uint8)
    mask[1:3, 1:3] = 2
    heat[2, 2], heat[4, 4] = 3, 1
    assert pointing_hit(heat, mask) == (1, 0.75)
    heat[4, 4] = 5
    assert pointing_hit(heat, mask) == (0, 0.375)
    heat[2, 2] = 5
    assert pointing_hit(torch.as_tensor(heat)[None], mask) == (0.5, 0.5)
    assert pointing_hit(np.ones((6, 6)), mask) == pytest.approx((4 / 36, 4 / 36))  # chance
    assert pointing_hit(np.zeros((6, 6)), mask) == pytest.approx((4 / 36, 0))


def test_the_tolerance_is_in_the_unit_of_the_spacing():
    heat, mask = np.zeros((6, 6, 6)), np.zeros((6, 6, 6))
    mask[2, 2, 2] = heat[3, 2, 3] = 1
    spacing, away = (2.0, 1.0, 1.5), 2.5
    assert pointing_hit(heat, mask, spacing, away - 0.01).hit == 0
    assert pointing_hit(heat, mask, spacing, away) == (1, 0)
    assert pointing_hit(heat, mask, tolerance=1.5).hit == 1  # the root of 2 voxels
    assert near_mask(mask, None, 1).sum() == 7


def test_what_pointing_refuses():
    with pytest.raises(TomokitError, match=r"the map \(3, 3\) does not lie on the mask \(3, 4\)"):
        pointing_hit(np.ones((3, 3)), np.ones((3, 4)))
    with pytest.raises(TomokitError, match=r"the mask \(3, 3\) is empty"):
        pointing_hit(np.ones((3, 3)), np.zeros((3, 3)))
    with pytest.raises(TomokitError, match="`tolerance` must be 0 or more, got -1"):
        pointing_hit(np.ones((3, 3)), np.ones((3, 3)), tolerance=-1)
