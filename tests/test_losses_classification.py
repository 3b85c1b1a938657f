"""The losses of cases' classes, their layers, and mixup."""

import math

import pytest
import torch
from bundle_runs import config
from monai.bundle import ConfigParser
from monai.losses import DiceLoss, FocalLoss
from torch import nn
from torch.nn import functional

from tomokit.augmentation import BatchRandMixupd
from tomokit.augmentation.mixup import mix
from tomokit.errors import TomokitError
from tomokit.losses import OneHotLoss, class_weights

LOSSES = ["focal", "soft_dice", "label_smoothing", "class_weights"]
CASES = [{"label": 0}, {"label": 0}, {"label": 0}, {"label": 1}]


def build_loss(name: str) -> nn.Module:
    parser = ConfigParser(ConfigParser.load_config_files(config("classification", "train", f"losses/{name}")))
    parser["cases"] = {"training": CASES}
    parser["device"] = "cpu"
    return parser.get_parsed_content("train::loss")


def sample(batch=6, classes=2):
    torch.manual_seed(0)
    return torch.randn(batch, classes, requires_grad=True), torch.arange(batch) % classes


# the losses


@pytest.mark.parametrize("name", LOSSES)
def test_a_layer_s_loss_takes_classes_and_soft_labels_alike(name):
    loss, (logits, labels) = build_loss(name), sample()
    value = loss(logits, labels)
    value.backward()
    assert value.ndim == 0 and value > 0 and (logits.grad != 0).all()
    soft = functional.one_hot(labels, 2).float()
    if name != "class_weights":  # torch divides by the cases there, by the sum of weights where labels are classes
        torch.testing.assert_close(loss(logits, soft), value)
    mixed = torch.lerp(soft, soft.flip(0), 0.3)
    assert loss(logits, mixed).isfinite()


@pytest.mark.parametrize("name", LOSSES)
def test_a_layer_s_loss_is_least_for_the_truth(name):
    loss, (_, labels) = build_loss(name), sample()
    right = functional.one_hot(labels, 2) * 4.0
    assert loss(right, labels) < loss(right * 0, labels) < loss(-right, labels)


def test_the_focal_layer_is_the_paper_s():
    logits, labels = sample()
    chance = logits.softmax(1)[torch.arange(6), labels]
    expected = (-((1 - chance) ** 2) * chance.log()).sum() / logits.numel()
    torch.testing.assert_close(build_loss("focal")(logits, labels), expected)


def test_the_dice_layer_compares_sums_over_the_batch():
    logits, labels = sample()
    chances, truth = logits.softmax(1), functional.one_hot(labels, 2)
    dice = 2 * (chances * truth).sum(0) / (chances + truth).sum(0)
    torch.testing.assert_close(build_loss("soft_dice")(logits, labels), (1 - dice).mean(), atol=1e-4, rtol=1e-4)


def test_soft_dice_of_a_soft_truth_is_least_there():
    truth = torch.tensor([[0.3, 0.7], [0.9, 0.1]])
    loss = build_loss("soft_dice")
    assert loss(truth.log(), truth).item() == pytest.approx(0, abs=1e-5)
    assert loss(torch.tensor([[0.0, 9.0], [9.0, 0.0]]), truth) > 0.05


def test_the_weights_layer_makes_classes_count_alike():
    loss, logits = build_loss("class_weights"), torch.randn(4, 2)
    labels = torch.tensor([case["label"] for case in CASES])
    each = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss(logits, labels), (each[:3].mean() + each[3]) / 2)


def test_classes_become_one_hot_and_others_stay():
    logits, labels = sample(classes=3)
    one_hot = functional.one_hot(labels, 3).float()
    monai = FocalLoss(use_softmax=True)
    assert torch.equal(OneHotLoss(monai)(logits, labels), monai(logits, one_hot))
    dice = DiceLoss(sigmoid=True, batch=True)
    assert torch.equal(OneHotLoss(dice)(logits, one_hot), dice(logits, one_hot))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("mode", "task", "label"), [("multi_label", "labels", [0, 1]), ("regression", "value", 1.5)])
def test_a_loss_of_classes_takes_no_other_task(name, mode, task, label):
    files = config("classification", "train", f"modes/{mode}", f"losses/{name}")
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser["cases"] = {"training": [{"case": "a", "label": label}]}
    parser["device"] = "cpu"
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("train::loss")
    cause = caught.value
    while not isinstance(cause, TomokitError):
        cause = cause.__cause__ or cause.__context__
    told = f"got {label!r}" if name == "class_weights" else f"the config's `task` is {task}"
    assert told in str(cause)


def test_weights_are_cases_over_classes_times_their_cases():
    assert torch.equal(class_weights(CASES, 2), torch.tensor([4 / 6, 4 / 2]))
    weights = class_weights(CASES, 2)
    assert sum(weights[case["label"]].item() for case in CASES) / len(CASES) == pytest.approx(1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0, 2], "no training case is of class 1, so it can have no weight"),
        ([0, 3], "need classes 0 to 2 as labels, got 3"),
        ([[0, 1], [1, 1]], r"need classes 0 to 2 as labels, got \[0, 1\]"),
    ],
)
def test_classes_that_can_have_no_weights_are_told(labels, message):
    with pytest.raises(TomokitError, match=message):
        class_weights([{"label": label} for label in labels], 3)


# mixup


def batch(count=6, size=(3, 4, 5)):
    """Return images whose values are their numbers, and these as labels."""
    numbers = torch.arange(count)
    return {"image": numbers.float().view(-1, 1, *[1] * len(size)).expand(-1, 1, *size).clone(), "label": numbers}


@pytest.mark.parametrize("size", [(3, 4, 5), (3, 4)])
def test_images_and_labels_are_mixed_alike(size):
    data, transform = batch(6, size), BatchRandMixupd("image", "label", 6, alpha=1.0)
    torch.manual_seed(1)
    result = transform(data)
    labels = result["label"]
    assert labels.shape == (6, 6) and torch.allclose(labels.sum(1), torch.ones(6)) and (labels >= 0).all()
    expected = (labels @ torch.arange(6.0)).view(-1, 1, *[1] * len(size)).expand_as(result["image"])
    torch.testing.assert_close(result["image"], expected)
    assert ((labels > 0).sum(1) == 2).sum() > 2


def test_a_mixture_is_the_weighted_mean():
    images, shares = torch.randn(3, 2, 4, 4), torch.tensor([0.25, 1.0, 0.5])
    result = mix(images, [0, 2], [1, 0, 1], shares)
    torch.testing.assert_close(result[0], 0.25 * images[0] + 0.75 * images[1])
    torch.testing.assert_close(result[2], 0.5 * images[2] + 0.5 * images[1])
    assert torch.equal(result[1], images[1])


def test_the_loss_of_a_mixture_is_the_mixture_of_losses():
    logits, labels = torch.randn(2, 3), torch.tensor([0, 2])
    soft = mix(functional.one_hot(labels, 3).float(), [0, 1], [1, 0], torch.tensor([0.3, 0.6]))
    losses = [functional.cross_entropy(logits, torch.full((2,), label), reduction="none") for label in (0, 2)]
    expected = torch.stack([0.3 * losses[0][0] + 0.7 * losses[1][0], 0.6 * losses[1][1] + 0.4 * losses[0][1]]).mean()
    torch.testing.assert_close(functional.cross_entropy(logits, soft), expected)


def test_without_a_draw_images_come_back_and_classes_one_hot():
    data = batch()
    result = BatchRandMixupd("image", "label", 6, prob=0.0)(data)
    assert result["image"] is data["image"] and torch.equal(result["label"], torch.eye(6))


def test_each_sample_is_drawn_for_by_itself_and_the_draws_follow_the_seed():
    data, transform, mixed = batch(8, (2, 2)), BatchRandMixupd("image", "label", 8, prob=0.5, alpha=1.0), 0
    before = {key: value.clone() for key, value in data.items()}
    torch.manual_seed(0)
    for _ in range(50):
        result = transform(data)
        own = result["label"].diagonal()
        assert all(torch.equal(a, b) for a, b, c in zip(result["image"], data["image"], own, strict=True) if c == 1)
        mixed += int((own < 1).sum())
    # half are drawn, one in eight of them as its own partner; 400 samples, so five standard errors are 0.13
    assert mixed / 400 == pytest.approx(0.5 * 7 / 8, abs=0.13)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(transform(data)["image"])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert all(torch.equal(data[key], before[key]) for key in data)


def test_shares_are_of_the_beta_distribution():
    torch.manual_seed(0)
    own = BatchRandMixupd("image", "label", 500, alpha=0.2)(batch(500, (1, 1)))["label"].diagonal()
    assert own.mean().item() == pytest.approx(0.5, abs=0.1)
    assert own.var().item() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.04)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_an_image_keeps_its_precision_and_memory_order(dtype):
    data = batch(4)
    data["image"] = torch.randn(4, 2, 3, 4, 5).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    result = BatchRandMixupd("image", "label", 4, alpha=1.0)(data)["image"]
    assert result.dtype == dtype and result.stride() == data["image"].stride()


def test_labels_with_a_fraction_are_mixed_as_they_are():
    data = batch() | {"label": torch.arange(6.0)}
    torch.manual_seed(1)
    result = BatchRandMixupd("image", "label", 1, alpha=1.0)(data)
    torch.testing.assert_close(result["label"], result["image"][:, 0, 0, 0, 0])
    assert not torch.equal(result["label"], data["label"])


@pytest.mark.parametrize("alpha", [0, -1, math.nan])
def test_a_share_without_a_distribution_is_refused(alpha):
    with pytest.raises(TomokitError, match=f"alpha must be above 0, got {alpha}"):
        BatchRandMixupd("image", "label", 2, alpha=alpha)


def test_labels_that_are_no_classes_are_refused():
    transform = BatchRandMixupd("image", "label", 3)
    with pytest.raises(TomokitError, match=r"classes \(B,\) from 0 to 2, got shape \(6,\) with values from 0 to 5"):
        transform(batch())
    with pytest.raises(TomokitError, match=r"got shape \(2, 1\) with values from 0 to 1"):
        transform(batch(2) | {"label": torch.tensor([[0], [1]])})
    with pytest.raises(TomokitError, match="prob must lie in 0–1, got 2"):
        BatchRandMixupd("image", "label", 3, prob=2)


def test_the_mixup_layer_stands_last():
    parser = ConfigParser(ConfigParser.load_config_files(config("classification", "train", "augmentation/mixup")))
    transforms = parser.get_parsed_content("train::augmentation").transforms
    assert isinstance(transforms[-1], BatchRandMixupd) and len(transforms) > 1
    result = transforms[-1]({"image": torch.randn(3, 1, 4, 4, 4), "label": torch.tensor([0, 1, 1])})
    assert result["label"].shape == (3, 2)
