import pytest
import torch
from monai.losses import DeepSupervisionLoss, DiceCELoss, DiceLoss
from monai.networks.nets import DynUNet
from torch.nn import functional

from tomokit.errors import TomokitError
from tomokit.losses import DeepSupervision, DiceCrossEntropyLoss, merge_unlabelled
from tomokit.regions import MarkUnlabelledd

MONAI = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
SHAPES = [(8, 6, 4), (8, 6)]


def sample(shape=(8, 6, 4), channels=4, labels=4, batch=2):
    torch.manual_seed(0)
    logits = torch.randn(batch, channels, *shape, requires_grad=True)
    return logits, torch.randint(0, labels, (batch, 1, *shape)).float()


def value_and_gradient(loss, logits, target):
    result = loss(logits, target)
    return result.detach(), torch.autograd.grad(result, logits)[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("include_background", [True, False])
def test_labels_give_monais_value_and_gradient(shape, include_background):
    logits, target = sample(shape)
    monai = DiceCELoss(softmax=True, to_onehot_y=True, include_background=include_background, batch=True)
    expected = value_and_gradient(monai, logits, target)
    found = value_and_gradient(DiceCrossEntropyLoss(include_background=include_background), logits, target)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


def test_separate_regions_give_monais_dice_and_torchs_binary_cross_entropy():
    logits, target = sample(channels=3)
    loss = DiceCrossEntropyLoss(regions={"one": [1], "two": [2], "both": [1, 2]})
    truth = torch.cat([target == 1, target == 2, (target == 1) | (target == 2)], 1).float()
    expected = DiceLoss(sigmoid=True, batch=True)(logits, truth)
    expected += functional.binary_cross_entropy_with_logits(logits, truth)
    assert torch.allclose(loss(logits, target), expected, atol=1e-6)


@pytest.mark.parametrize("regions", [None, {"one": [1, 2], "two": [2], "three": [3], "four": [4]}])
def test_ignored_voxels_count_as_if_they_were_cut_off(regions):
    logits, target = sample()
    ignored = target.clone()
    ignored[:, :, 5:] = 255
    loss = DiceCrossEntropyLoss(ignore_label=255, regions=regions)
    value, gradient = value_and_gradient(loss, logits, ignored)
    expected, cropped = value_and_gradient(
        lambda a, b: DiceCrossEntropyLoss(regions=regions)(a[:, :, :5], b), logits, target[:, :, :5]
    )
    assert torch.allclose(value, expected, atol=1e-6)
    assert torch.allclose(gradient, cropped, atol=1e-7)
    assert (gradient[:, :, 5:] == 0).all() and (gradient[:, :, :5] != 0).all()


@pytest.mark.parametrize("regions", [None, {"one": [1]}])
def test_a_batch_that_is_ignored_wholly_has_no_loss(regions):
    logits, target = sample(channels=2 if regions is None else 1)
    loss = DiceCrossEntropyLoss(ignore_label=255, regions=regions)
    value, gradient = value_and_gradient(loss, logits, torch.full_like(target, 255))
    assert abs(value) < 1e-6 and (gradient == 0).all()


def code(target, *labelled):
    """Return the label maps (B, 1, …) coded by the lists of what is labelled in each case."""
    mark = MarkUnlabelledd("label", 4)
    items = [{"label": case, "labelled": names} for case, names in zip(target, labelled, strict=True)]
    return torch.stack([mark(item)["label"] for item in items])


def test_merged_probabilities_are_sums():
    logits, _ = sample()
    missing = torch.tensor([[False, True, False, True], [False] * 4])
    merged = merge_unlabelled(logits, missing).softmax(1)
    chances = logits.softmax(1)
    assert torch.allclose(merged[0, 0], chances[0, [0, 1, 3]].sum(0))
    assert (merged[0, [1, 3]] == 0).all() and torch.allclose(merged[0, 2], chances[0, 2])
    assert torch.allclose(merged[1], chances[1])


def test_partly_labelled_cases_give_the_marginal_loss():
    logits, target = sample()
    target[0] = torch.where(target[0] == 2, 2, 0)
    target[1, target[1] == 3] = 0
    value = DiceCrossEntropyLoss(partly_labelled=True)(logits, code(target, [2], [1, 2]))
    chances = logits.softmax(1)
    first = torch.stack([chances[0, [0, 1, 3]].sum(0), torch.zeros(8, 6, 4), chances[0, 2], torch.zeros(8, 6, 4)])
    second = torch.stack([chances[1, [0, 3]].sum(0), chances[1, 1], chances[1, 2], torch.zeros(8, 6, 4)])
    merged = torch.stack([first, second])
    cross_entropy = -merged.gather(1, target.long()).log().mean()
    dice = DiceLoss(to_onehot_y=True, include_background=False, batch=True)(merged, target)
    assert torch.allclose(value, cross_entropy + dice, atol=1e-5)


def test_a_class_nobody_annotated_may_take_the_background_for_free():
    logits, target = sample()
    target = torch.where(target == 1, 1, 0).float()
    sure = torch.zeros(2, 4, 8, 6, 4)
    sure[:, 1] = 50.0 * (target[:, 0] == 1)
    sure[:, 3] = 50.0 * (target[:, 0] == 0)
    coded = code(target, [1], [1])
    assert DiceCrossEntropyLoss(partly_labelled=True)(sure, coded) < 1e-4
    assert DiceCrossEntropyLoss()(sure, target) > 10
    fully = code(target, [1, 2, 3], [1, 2, 3])
    assert torch.equal(fully, target)
    assert torch.allclose(DiceCrossEntropyLoss(partly_labelled=True)(logits, fully), MONAI(logits, target), atol=1e-6)


def test_regions_with_a_class_nobody_annotated_are_left_out_where_unknown():
    logits, target = sample(channels=2)
    target = torch.where(target == 1, 1, 0).float()
    loss = DiceCrossEntropyLoss(partly_labelled=True, regions={"both": [1, 2], "one": [1]})
    coded = torch.cat([code(target[:1], [1]), target[1:]])
    _, gradient = value_and_gradient(loss, logits, coded)
    background = target[0, 0] == 0
    assert (gradient[0, 0, background] == 0).all() and (gradient[0, 0, ~background] != 0).all()
    assert (gradient[0, 1] != 0).all() and (gradient[1] != 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_heads_are_weighted_by_halves_to_a_sum_of_one(shape):
    logits, target = sample(shape)
    coarse = functional.avg_pool3d(logits, 2) if len(shape) == 3 else functional.avg_pool2d(logits, 2)
    small = functional.interpolate(target, scale_factor=0.5, mode="nearest-exact")
    expected = (2 * MONAI(logits, target) + MONAI(coarse, small)) / 3
    for loss in (MONAI, DiceCrossEntropyLoss()):
        assert torch.allclose(DeepSupervision(loss)([logits, coarse], target), expected, atol=1e-6)
        assert torch.allclose(DeepSupervision(loss)((logits, coarse), target.to(torch.uint8)), expected, atol=1e-6)
        assert torch.equal(DeepSupervision(loss)(logits, target), loss(logits, target))
        assert torch.equal(DeepSupervision(loss)([logits], target), loss(logits, target))
    monai = DeepSupervisionLoss(MONAI)([logits, coarse], target)
    assert torch.allclose(expected, monai / 1.5, atol=1e-6)


def test_a_dynunets_stacked_heads_are_taken_apart():
    torch.manual_seed(0)
    options = {"kernel_size": [3] * 4, "strides": [1, 2, 2, 2], "upsample_kernel_size": [2] * 3}
    network = DynUNet(3, 1, 3, **options, filters=[4] * 4, deep_supervision=True, deep_supr_num=2)
    _, target = sample((16, 16, 16), labels=3)
    heads = network(torch.rand(2, 1, 16, 16, 16))
    assert heads.shape == (2, 3, 3, 16, 16, 16)
    loss = DeepSupervision(MONAI)
    expected = sum(weight * MONAI(heads[:, i], target) for i, weight in enumerate((4 / 7, 2 / 7, 1 / 7)))
    assert torch.allclose(loss(heads, target), expected, atol=1e-6)
    assert loss(network.eval()(torch.rand(2, 1, 16, 16, 16)), target).ndim == 0


def test_ignored_and_coded_voxels_stay_so_on_coarse_grids():
    logits, target = sample(channels=4)
    coarse = torch.randn(2, 4, 4, 3, 2, requires_grad=True)
    target[:, :, 4:] = 255
    target[0, target[0] == 3] = 0
    target[0] = code(target[:1], [1, 2])[0]
    loss = DeepSupervision(DiceCrossEntropyLoss(ignore_label=255, partly_labelled=True))
    gradient = torch.autograd.grad(loss([logits, coarse], target), coarse)[0]
    assert (gradient[:, :, 2:] == 0).all() and (gradient[:, :, :2] != 0).any()


def test_channels_that_are_not_the_regions_are_refused():
    logits, target = sample()
    with pytest.raises(TomokitError, match="gives 4 channels for 2 regions; set `network_def::out_channels`"):
        DiceCrossEntropyLoss(regions={"one": [1], "two": [2]})(logits, target)
