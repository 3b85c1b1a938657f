import copy

import pytest
import torch
from torch import nn

from tomokit.errors import TomokitError
from tomokit.optimizers import Muon, is_kernel, orthogonal


@pytest.mark.parametrize("shape", [(16, 16, 3, 3, 3), (64, 32, 3, 3, 3), (200, 9, 2), (8, 8)])
def test_an_orthogonal_kernel_has_the_directions_of_the_kernel_and_singular_values_near_1(shape):
    torch.manual_seed(0)
    kernel = torch.randn(shape)
    left, values, right = torch.linalg.svd(kernel.flatten(1), full_matrices=False)
    turned = left.T @ orthogonal([kernel])[0].flatten(1) @ right.T
    weighty = values > 0.02 * values.norm()
    assert ((turned.diagonal()[weighty] > 0.6) & (turned.diagonal()[weighty] < 1.25)).all()
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 1e-4


def test_five_rounds_on_the_gram_matrix_are_five_rounds_on_the_matrix():
    torch.manual_seed(1)
    kernel = torch.randn(24, 16, 3, 3)
    x = kernel.flatten(1) / kernel.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    torch.testing.assert_close(orthogonal([kernel])[0].flatten(1), x, atol=1e-5, rtol=0)


def test_the_memory_order_of_a_kernel_changes_nothing():
    kernel = torch.randn(16, 8, 3, 3, 3)
    last = kernel.contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(orthogonal([last]), orthogonal([kernel]))


def test_kernels_of_several_sizes_are_each_turned_as_alone():
    torch.manual_seed(2)
    kernels = [torch.randn(shape) for shape in [(16, 8, 3, 3, 3), (8, 32), (32, 16, 2, 2), (16, 16, 3), (64, 8)]]
    for kernel, together in zip(kernels, orthogonal(kernels), strict=True):
        torch.testing.assert_close(together, orthogonal([kernel])[0])


def test_a_kernel_without_gradient_values_is_not_turned_to_nonsense():
    assert orthogonal([torch.zeros(8, 9)])[0].abs().max() == 0
    thin = torch.outer(torch.randn(16), torch.randn(200))
    assert torch.linalg.svdvals(orthogonal([thin])[0])[1] < 1e-3


def test_a_kernels_step_has_the_size_of_adamws():
    kernel = nn.Parameter(torch.zeros(32, 16, 3, 3, 3))
    kernel.grad = torch.randn_like(kernel)
    Muon([kernel], lr=0.01, weight_decay=0).step()
    assert kernel.detach().square().mean().sqrt().item() == pytest.approx(0.01 * 0.2, rel=0.2)


def test_what_is_no_kernel_is_stepped_as_torchs_adamw_steps_it():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv3d(1, 4, 3), nn.GroupNorm(2, 4), nn.Conv3d(4, 2, 1))
    theirs = copy.deepcopy(ours)
    assert not any(map(is_kernel, ours.parameters()))
    optimizers = Muon(ours.parameters(), 0.01, 0.1), torch.optim.AdamW(theirs.parameters(), 0.01, weight_decay=0.1)
    for _ in range(4):
        x = torch.randn(2, 1, 5, 5, 5)
        for network, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_momentum_and_weight_decay_follow_their_formulas():
    torch.manual_seed(0)
    start = torch.randn(8, 8)
    kernel = nn.Parameter(start.clone())
    optimizer = Muon([kernel], lr=0.1, weight_decay=0.5, momentum=0.9)
    first, second = torch.randn(2, 8, 8)
    expected, momentum = start.clone(), torch.zeros(8, 8)
    for gradient in (first, second):
        kernel.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        direction = orthogonal([0.1 * gradient + 0.9 * momentum])[0]
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 8**0.5 * direction
        torch.testing.assert_close(kernel.detach(), expected)


def test_a_kernel_of_one_channel_mixes_nothing_and_is_adamws():
    first, depthwise, plain = nn.Conv3d(1, 16, 3), nn.Conv3d(16, 16, 3, groups=16), nn.Conv3d(16, 16, 3)
    assert [is_kernel(layer.weight) for layer in (first, depthwise, plain)] == [False, False, True]


def test_the_state_is_restored_where_the_parameter_lies():
    layer = nn.Linear(4, 1)
    optimizer = Muon(layer.parameters())
    layer(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    double = copy.deepcopy(layer).double()  # stands for another device: torch moves both with the parameter
    restored = Muon(double.parameters())
    restored.load_state_dict(optimizer.state_dict())
    assert {value.dtype for state in restored.state.values() for value in state.values()} == {torch.float64}


def test_a_parameter_without_gradient_stays():
    frozen, kernel = nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.ones(8, 8))
    kernel.grad = torch.randn(8, 8)
    Muon([frozen, kernel]).step()
    assert torch.equal(frozen, torch.ones(8, 8)) and not torch.equal(kernel, torch.ones(8, 8))


def test_a_restored_optimizer_goes_on_bit_for_bit():
    def train(network, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            network(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 3))
    optimizer = Muon(network.parameters())
    train(network, optimizer, 3)
    other = copy.deepcopy(network)
    restored = Muon(other.parameters())
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for pair in ((network, optimizer), (other, restored)):
        torch.manual_seed(5)
        train(*pair, 3)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"momentum": 1.0}, {"weight_decay": -0.1}])
def test_a_value_out_of_range_is_named(wrong):
    with pytest.raises(TomokitError, match=str(next(iter(wrong.values())))):
        Muon([nn.Parameter(torch.ones(2))], **wrong)


def test_the_closures_loss_comes_back():
    kernel = nn.Parameter(torch.ones(8, 8))

    def closure():
        loss = kernel.sum()
        loss.backward()
        return loss

    assert Muon([kernel]).step(closure).item() == 64
