"""Pairs of scans: what changes its sign and what stays when they are swapped, and the losses."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tomokit.errors import TomokitError
from tomokit.finetuning import find_head
from tomokit.losses import SiameseLoss
from tomokit.losses.siamese import contrastive_losses
from tomokit.networks import PlainCNN, SiameseNetwork
from tomokit.networks.siamese import OUTPUTS, PairHead

NAN = float("nan")
DIMS = pytest.mark.parametrize("dims", [2, 3])
SIZE = (12, 9, 10)
ODD, EVEN = [0, 2], [1, 3]  # of the columns `OUTPUTS`


def siamese(dims=3, channels=1, **options) -> SiameseNetwork:
    torch.manual_seed(0)
    return SiameseNetwork(PlainCNN(dims, channels, None, [4, 6]), 6, dims, hidden=8, **options)


def pairs(dims=3, channels=1, count=4):
    torch.manual_seed(1)
    return torch.randn(count, 2, channels, *SIZE[:dims])


# order


def test_the_columns_are_named():
    assert [OUTPUTS[i] for i in ODD] == ["order", "amount"] and [OUTPUTS[i] for i in EVEN] == ["change", "distance"]


@pytest.mark.parametrize("features", [1, 6, 64])
def test_the_head_is_odd_and_even_bit_for_bit(features):
    torch.manual_seed(0)
    head, (first, second) = PairHead(features, 32, 0.0), torch.randn(2, 7, features)
    forth, back = head(first, second), head(second, first)
    assert torch.equal(forth[:, ODD], -back[:, ODD]) and torch.equal(forth[:, EVEN], back[:, EVEN])
    assert (forth[:, ODD] != 0).any()


@DIMS
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("count", [1, 4])
def test_swapped_scans_swap_the_order_and_nothing_else(dims, channels, count):
    network, images = siamese(dims, channels).eval(), pairs(dims, channels, count)
    forth, back = network(images), network(images.flip(1))
    assert forth.shape == (count, 4)
    assert torch.equal(forth[:, ODD], -back[:, ODD]) and torch.equal(forth[:, EVEN], back[:, EVEN])


def test_training_knows_the_order_too():
    network, images = siamese().train(), pairs()
    forth, back = network(images), network(images.flip(1))
    torch.testing.assert_close(forth[:, ODD], -back[:, ODD], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(forth[:, EVEN], back[:, EVEN], rtol=1e-4, atol=1e-5)


def test_a_scan_and_itself_have_no_order_and_no_distance():
    images = pairs()[:, :1].expand(-1, 2, -1, -1, -1, -1)
    order, _, amount, distance = siamese().eval()(images).unbind(1)
    assert (order == 0).all() and (amount == 0).all() and (distance < 1e-3).all()


def test_the_distance_is_that_of_the_features():
    network, images = siamese().eval(), pairs()
    first, second = network.encoder(images[:, 0]), network.encoder(images[:, 1])
    expected = (first - second).square().mean(1).sqrt()
    torch.testing.assert_close(network(images)[:, 3], expected, rtol=1e-3, atol=1e-4)


# the usual size of a difference


def test_differences_count_in_their_usual_size():
    """However little features move, the head sees differences of size 1, in evaluation too."""
    torch.manual_seed(0)
    difference = torch.randn(32, 6)
    for size in (1e-2, 1.0, 1e3):
        head = PairHead(6, 8, 0.0)
        assert torch.equal(head.eval().scale(difference), difference)  # nothing is known before the first step
        scaled = head.train().scale(size * difference)
        assert float(scaled.square().mean()) == pytest.approx(1, rel=1e-3)
        torch.testing.assert_close(head.eval().scale(size * difference), scaled, rtol=1e-4, atol=1e-5)


def test_the_usual_size_follows_the_last_steps():
    torch.manual_seed(0)
    head = PairHead(6, 8, 0.0).train()
    for step in range(200):
        head.scale(torch.randn(16, 6) * (5.0 if step < 100 else 2.0))
    assert float(head.size) == pytest.approx(2, rel=0.1)
    assert set(head.state_dict()) >= {"size", "steps"}  # kept with the weights


# the network


@DIMS
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_scans_come_stacked_or_as_channels(dims, channels, training):
    network, images = siamese(dims, channels).train(training), pairs(dims, channels)
    assert torch.equal(network(images), network(images.flatten(1, 2)))


def test_an_encoder_may_give_maps():
    network, images = siamese().eval(), pairs()
    expected = network(images)
    network.encoder = network.encoder.features
    torch.testing.assert_close(network(images), expected)


@DIMS
def test_the_gradient_reaches_every_parameter(dims):
    network = siamese(dims)
    network(pairs(dims)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_the_gradient_of_equal_scans_is_finite():
    network = siamese()
    network(pairs()[:, :1].expand(-1, 2, -1, -1, -1, -1)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_a_batch_equals_its_pairs_one_by_one():
    network, images = siamese().eval(), pairs()
    alone = torch.cat([network(images[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(network(images), alone, rtol=1e-4, atol=1e-5)


@DIMS
def test_the_network_is_a_script(dims):
    network, images = siamese(dims).eval(), pairs(dims)
    script = torch.jit.script(network)
    torch.testing.assert_close(script(images), network(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(script(images.flatten(1, 2)), network(images), rtol=1e-4, atol=1e-5)


def test_the_head_is_found():
    assert find_head(siamese()) == ("fc",)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8, 8), (2, 3, 1, 8, 8, 8), (2, 2, 8, 8)])
def test_what_is_no_pair_is_refused(shape):
    numbers = ", ".join(map(str, shape))
    with pytest.raises(TomokitError, match=rf"a pair of 3D scans must be .*, got shape \({numbers}\)"):
        siamese()(torch.zeros(shape))


# the losses


def test_the_contrastive_loss_pulls_and_pushes():
    distance = torch.tensor([0.0, 0.5, 2.0])
    same, other = torch.zeros(3), torch.ones(3)
    torch.testing.assert_close(contrastive_losses(distance, same, 1.0), torch.tensor([0.0, 0.125, 2.0]))
    torch.testing.assert_close(contrastive_losses(distance, other, 1.0), torch.tensor([0.5, 0.125, 0.0]))


def test_the_loss_is_a_weighted_sum_over_what_is_known():
    torch.manual_seed(0)
    outputs = torch.randn(4, 4).abs().requires_grad_()
    targets = torch.tensor([[1.0, 1.0, -3.0], [0.0, 1.0, NAN], [NAN, 0.0, 0.0], [NAN, NAN, 0.5]])
    entropy = functional.binary_cross_entropy_with_logits
    order = entropy(outputs[:2, 0], targets[:2, 0])
    change = entropy(outputs[:3, 1], targets[:3, 1])
    amount = functional.smooth_l1_loss(outputs[[0, 2, 3], 2], targets[[0, 2, 3], 2])
    contrast = contrastive_losses(outputs[:3, 3], targets[:3, 1], 0.7).mean()
    loss = SiameseLoss(1.0, 2.0, 0.5, 3.0, margin=0.7)(outputs, targets)
    torch.testing.assert_close(loss, order + 2 * change + 0.5 * amount + 3 * contrast)
    gradient = torch.autograd.grad(loss, outputs)[0]
    assert gradient.isfinite().all() and (gradient[2:, 0] == 0).all() and (gradient[3, [1, 3]] == 0).all()


def test_without_any_target_there_is_no_loss():
    outputs = torch.randn(3, 4, requires_grad=True)
    loss = SiameseLoss(contrastive=1.0)(outputs, torch.full((3, 3), NAN))
    assert loss == 0 and (torch.autograd.grad(loss, outputs)[0] == 0).all()


def test_swapped_pairs_cost_the_same():
    network, images = siamese().eval(), pairs()
    targets = torch.tensor([[1.0, 1.0, -3.0], [0.0, 1.0, 2.0], [NAN, 0.0, 0.0], [1.0, 1.0, 0.5]])
    swapped = torch.stack([1 - targets[:, 0], targets[:, 1], -targets[:, 2]], 1)
    loss = SiameseLoss(contrastive=1.0)
    torch.testing.assert_close(loss(network(images), targets), loss(network(images.flip(1)), swapped))


@pytest.mark.parametrize(("outputs", "targets"), [((2, 3), (2, 3)), ((2, 4), (2, 4)), ((2, 4), (3, 3))])
def test_outputs_and_targets_of_something_else_are_refused(outputs, targets):
    with pytest.raises(TomokitError, match=r"pairs have outputs \(B, 4\) and targets \(B, 3\)") as caught:
        SiameseLoss()(torch.zeros(outputs), torch.zeros(targets))
    assert f"{outputs} and {targets}" in str(caught.value)


def test_an_amount_is_learned_with_its_sign():
    torch.manual_seed(0)
    sizes = torch.rand(64, 2) * 2 + 1
    images = sizes[:, :, None, None, None, None].expand(-1, -1, 1, 2, 2, 2)
    amount = sizes[:, 1] - sizes[:, 0]
    targets = torch.stack([(amount > 0).float(), torch.ones(64), amount], 1)
    network = SiameseNetwork(nn.Conv3d(1, 3, 1), 3, hidden=16)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        SiameseLoss(change=0.0)(network(images), targets).backward()
        optimizer.step()
    outputs = network.eval()(images).detach()
    assert (outputs[:, 2] - amount).abs().mean() < 0.2
    assert ((outputs[:, 0] > 0) == (amount > 0)).float().mean() > 0.9
