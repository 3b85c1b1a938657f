"""Volumes read as sequences of windows: the network, its loss, and batches of different length."""

import pytest
import torch
from monai.networks.nets import ResNet
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional

from tomokit.errors import TomokitError
from tomokit.finetuning import find_head
from tomokit.losses import SequenceLoss
from tomokit.networks import WindowSequence
from tomokit.networks.sequence import CELLS, POOLINGS, Recurrence, pool_windows
from tomokit.sequences import collate_sequences, window_labels

LENGTHS = torch.tensor([7, 4, 1])


class Mean(nn.Module):
    """Gives each slice's mean: an encoder whose features are known."""

    def forward(self, windows):
        return windows.mean((2, 3))


def resnet(channels=3) -> nn.Module:
    options = {"spatial_dims": 2, "n_input_channels": channels, "conv1_t_size": 3, "no_max_pool": True}
    return ResNet("basic", [1, 1, 1, 1], [4, 4, 4, 6], feed_forward=False, **options)


def network(encoder=None, features=6, classes=3, **options) -> WindowSequence:
    torch.manual_seed(0)
    return WindowSequence(encoder or resnet(), features, classes, **{"hidden": 5} | options)


def numbered(batch=1, slices=5, channels=1) -> torch.Tensor:
    """Return volumes whose slices' values are their numbers, plus 100 for each further channel."""
    values = torch.arange(float(slices)) + 100 * torch.arange(float(channels))[:, None, None, None]
    return values.expand(batch, channels, 2, 3, slices).clone()


VARIANTS = pytest.mark.parametrize(
    "options",
    [{"pooling": pooling, "context": context} for pooling in POOLINGS for context in (False, True)],
    ids=lambda options: f"{options['pooling']}-{options['context']}",
)


# windows


@pytest.mark.parametrize(
    ("window", "stride", "expected"),
    [
        (3, 1, [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 4]]),
        (1, 1, [[0], [1], [2], [3], [4]]),
        (3, 2, [[0, 1, 2], [2, 3, 4], [4, 4, 4]]),
        (5, 3, [[0, 0, 1, 2, 3], [2, 3, 4, 4, 4]]),
        (1, 9, [[4]]),
    ],
)
def test_a_window_shows_the_slices_about_its_middle(window, stride, expected):
    net = network(Mean(), window, window=window, stride=stride)
    features, _, known = net.read(numbered())
    assert torch.equal(features, torch.tensor([expected]).float()) and known.all()


def test_windows_end_with_their_volume():
    net = network(Mean(), 3, window=3, stride=2)
    features, states, known = net.read(numbered(2), torch.tensor([5, 3]))
    assert torch.equal(features[1], torch.tensor([[0.0, 1, 2], [2, 2, 2], [0, 0, 0]]))
    assert known.tolist() == [[True, True, True], [True, True, False]]
    assert (states[1, 2] == 0).all() and (states[1, 1] != 0).all()


def test_channels_of_each_slice_lie_together():
    features, _, _ = network(Mean(), 6, window=3).read(numbered(channels=2))
    assert features[0, 1].tolist() == [0, 100, 1, 101, 2, 102]


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_slices_lie_along_the_axis(axis):
    image = torch.randn(2, 1, 5, 6, 8)
    along_z = network(axis=-1).eval()
    other = network(axis=axis).eval()
    moved = image.movedim(4, axis % 3 + 2)
    torch.testing.assert_close(other(moved, torch.tensor([8, 3])), along_z(image, torch.tensor([8, 3])))


@VARIANTS
@pytest.mark.parametrize("size", [(8, 9, 7), (5, 13, 1)])
def test_logits_are_of_the_volume_and_of_each_window(options, size):
    logits = network(**options)(torch.randn(2, 1, *size))
    assert logits.shape == (2, 3, 1 + size[2]) and logits.isfinite().all() and logits.dtype == torch.float32


def test_an_encoder_may_give_maps():
    maps, net = nn.Conv2d(3, 6, 3), network()
    net.encoder = maps
    image = torch.randn(2, 1, 8, 8, 4)
    expected = maps(image[:1, 0, ..., :3].movedim(3, 1)).mean((2, 3))
    torch.testing.assert_close(net.read(image)[0][0, 1], expected[0])


# length


@VARIANTS
@pytest.mark.parametrize("training", [True, False])
def test_what_lies_beyond_a_volume_has_no_influence(options, training):
    net, image = network(**options).train(training), torch.randn(3, 1, 8, 9, 7)
    beyond = torch.arange(7) >= LENGTHS.view(-1, 1, 1, 1, 1)
    results = [net(image.masked_fill(beyond, value), LENGTHS) for value in (0.0, 1e6, float("nan"))]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@VARIANTS
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_batch_equals_its_volumes_one_by_one(options, cell, bidirectional):
    net, image = network(**options, cell=cell, bidirectional=bidirectional).eval(), torch.randn(3, 1, 8, 9, 7)
    logits = net(image, LENGTHS)
    for number, length in enumerate(LENGTHS.tolist()):
        alone = net(image[number : number + 1, ..., :length])
        torch.testing.assert_close(logits[number, :, : 1 + length], alone[0], rtol=1e-4, atol=1e-5)
        beyond = logits[number, :, 1 + length :].softmax(0)
        assert (beyond[0] == 1).all() and (beyond[1:] == 0).all()


def test_without_lengths_all_slices_count():
    net, image = network().eval(), torch.randn(2, 1, 8, 9, 5)
    assert torch.equal(net(image), net(image, torch.tensor([5, 5])))


@pytest.mark.parametrize("lengths", [[5, 0], [6, 5]])
def test_lengths_that_can_not_be_are_refused(lengths):
    with pytest.raises(TomokitError, match=rf"each of `lengths` must be 1 to 5, .*, got \{lengths}"):
        network()(torch.randn(2, 1, 8, 9, 5), torch.tensor(lengths))


# states and heads


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_states_are_torch_s_of_each_volume_alone(cell, bidirectional):
    torch.manual_seed(0)
    recurrence, features = Recurrence(cell, 4, 3, bidirectional), torch.randn(3, 7, 4)
    states = recurrence(features, LENGTHS)
    for number, length in enumerate(LENGTHS.tolist()):
        expected = recurrence.cell(features[number, None, :length])[0][0]
        torch.testing.assert_close(states[number, :length], expected)
        assert (states[number, length:] == 0).all()


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_volume_s_logits_are_of_the_last_state(bidirectional):
    net, image = network(bidirectional=bidirectional).eval(), torch.randn(3, 1, 8, 9, 7)
    features, _, _ = net.read(image, LENGTHS)
    logits = net(image, LENGTHS)[..., 0]
    for number, length in enumerate(LENGTHS.tolist()):
        last = net.rnn.cell(features[number, None, :length])[1]
        torch.testing.assert_close(logits[number], net.fc.layers(last.flatten()), rtol=1e-4, atol=1e-5)


def test_attention_weights_sum_to_one_within_a_volume():
    net, image = network(pooling="attention").eval(), torch.randn(3, 1, 8, 9, 7)
    _, states, known = net.read(image, LENGTHS)
    weights = net.fc.weights(states, known)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert torch.equal(weights > 0, known) and weights[2, 0] == 1
    expected = net.fc.layers((weights[..., None] * states).sum(1))
    torch.testing.assert_close(net(image, LENGTHS)[..., 0], expected)


def test_attention_is_the_paper_s():
    net = network(pooling="attention")
    states, known = torch.randn(1, 4, 10), torch.ones(1, 4, dtype=torch.bool)
    head = net.fc
    scores = [head.score.weight @ (head.value(h).tanh() * head.gate(h).sigmoid()) for h in states[0]]
    torch.testing.assert_close(head.weights(states, known)[0], torch.cat(scores).softmax(0))


def test_pooled_odds_are_the_greatest_or_the_sum_of_the_windows():
    windows = torch.tensor([[[1.0, 0.0], [3.0, 1.0], [1.0, -1.0]]])
    torch.testing.assert_close(pool_windows(windows, "max"), torch.tensor([[0.0, 2.0, 0.0]]))
    odds = torch.tensor([[2.0, 1.0], [0.0, -1.0]]).exp().sum(1)
    torch.testing.assert_close(pool_windows(windows, "logsumexp")[0, 1:].exp(), odds)


@pytest.mark.parametrize("pooling", ["max", "logsumexp"])
def test_pooled_logits_follow_from_the_windows(pooling):
    net, image = network(pooling=pooling).eval(), torch.randn(2, 1, 8, 9, 7)
    assert net.rnn is None
    logits = net(image)
    torch.testing.assert_close(logits[..., 0], pool_windows(logits[..., 1:], pooling))


@pytest.mark.parametrize(
    ("options", "sees"),
    [
        ({"pooling": "max"}, False),
        ({"pooling": "logsumexp"}, False),
        ({"pooling": "attention", "cell": None}, False),
        ({"pooling": "rnn"}, True),
        ({"pooling": "attention"}, True),
    ],
)
def test_only_an_rnn_sees_the_order(options, sees):
    net, image = network(resnet(1), window=1, bidirectional=False, **options).eval(), torch.randn(2, 1, 8, 9, 7)
    same = torch.allclose(net(image)[..., 0], net(image.flip(4))[..., 0], atol=1e-5)
    assert same != sees


@pytest.mark.parametrize("context", [True, False])
def test_only_with_context_a_window_sees_the_others(context):
    net, image = network(resnet(1), window=1, context=context).eval(), torch.randn(1, 1, 8, 9, 7)
    other = image.clone()
    other[..., 1] += 3
    assert torch.allclose(net(image)[..., 1], net(other)[..., 1], atol=1e-6) != context


# all together


@VARIANTS
@pytest.mark.parametrize("cell", CELLS)
def test_the_gradient_reaches_every_parameter(options, cell):
    net = network(**options, cell=cell)
    net(torch.randn(3, 1, 8, 9, 7), LENGTHS).clamp(min=-100).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "rnn"},
        {"pooling": "rnn", "context": True, "cell": "lstm", "bidirectional": False},
        {"pooling": "attention", "cell": "lstm"},
        {"pooling": "attention", "cell": None},
        {"pooling": "max", "stride": 2},
        {"pooling": "logsumexp", "context": True},
    ],
)
def test_the_network_is_a_script(options):
    net, image = network(nn.Conv2d(3, 6, 3), **options).eval(), torch.randn(3, 1, 8, 9, 7)
    script = torch.jit.script(net)
    torch.testing.assert_close(script(image, LENGTHS), net(image, LENGTHS), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(script(image), net(image), rtol=1e-4, atol=1e-5)


def test_the_heads_are_found():
    assert find_head(network()) == ("logits", "fc")
    assert find_head(network(pooling="max")) == ("logits",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 2}, "`window` must be odd, centred on its slice, got 2"),
        ({"stride": 0}, "`stride` must be 1 slice or more, got 0"),
        ({"axis": 3}, "`axis` must be -3 to 2, got 3"),
        ({"cell": "rnn"}, "`cell` must be one of gru, lstm, None, got 'rnn'"),
        ({"cell": None, "pooling": "rnn"}, "without an RNN there are no states"),
        ({"cell": None, "pooling": "max", "context": True}, "without an RNN there are no states"),
        ({"pooling": "mean"}, "`pooling` must be one of rnn, attention, max, logsumexp, got 'mean'"),
        ({"classes": 1}, "`out_channels` must be 2 or more, one per class, got 1"),
    ],
)
def test_a_network_that_can_not_be_is_refused(changes, message):
    with pytest.raises(TomokitError, match=message):
        network(**changes)


def test_an_encoder_of_other_features_is_told():
    with pytest.raises(TomokitError, match="the encoder gives 6 features, `features` is 8"):
        network(features=8)(torch.randn(1, 1, 8, 9, 3))


# the loss


def sample():
    torch.manual_seed(0)
    return torch.randn(3, 2, 1 + 4, requires_grad=True)


def test_the_loss_is_torch_s_over_what_is_known():
    logits, labels = sample(), torch.tensor([[1, 0, 1, -1, -1], [0, 0, 0, 0, 0], [1, -1, -1, -1, -1]])
    volume = functional.cross_entropy(logits[..., 0], labels[:, 0])
    known = labels[:, 1:] >= 0
    windows = functional.cross_entropy(logits[..., 1:].movedim(1, 2)[known], labels[:, 1:][known])
    torch.testing.assert_close(SequenceLoss()(logits, labels), volume + windows)
    torch.testing.assert_close(SequenceLoss(window_weight=0.3)(logits, labels), volume + 0.3 * windows)
    pooled = functional.cross_entropy(pool_windows(logits[2:, :, 1:]), labels[2:, 0])
    torch.testing.assert_close(SequenceLoss(instance_weight=2)(logits, labels), volume + windows + 2 * pooled)


def test_volumes_alone_may_be_labelled():
    logits, labels = sample(), torch.tensor([1, 0, -1])
    loss = SequenceLoss()(logits, labels)
    torch.testing.assert_close(loss, functional.cross_entropy(logits[:2, :, 0], labels[:2]))
    gradient = torch.autograd.grad(loss, logits)[0]
    assert (gradient[:2, :, 0] != 0).all() and (gradient[..., 1:] == 0).all() and (gradient[2] == 0).all()


@pytest.mark.parametrize("instance_weight", [0, 1])
def test_without_any_label_there_is_no_loss(instance_weight):
    logits = sample()
    loss = SequenceLoss(instance_weight=instance_weight)(logits, torch.full((3, 5), -1))
    assert loss == 0 and (torch.autograd.grad(loss, logits)[0] == 0).all()


def test_padding_windows_teach_nothing():
    net, image = network(classes=2, pooling="logsumexp"), torch.randn(3, 1, 8, 9, 7)
    logits = net(image, LENGTHS)
    wider = functional.pad(logits, (0, 3), value=0)
    wider[:, 1, 8:] = -1e4
    loss = SequenceLoss(instance_weight=1)
    labels = torch.tensor([1, 0, 1])
    torch.testing.assert_close(loss(wider, labels), loss(logits, labels))


def test_labels_of_another_number_of_windows_are_refused():
    with pytest.raises(TomokitError, match=r"here \(3, 5\), got shape \(3, 4\); give the collation .* `stride`"):
        SequenceLoss()(sample(), torch.zeros(3, 4))


@pytest.mark.parametrize("options", [{"pooling": "logsumexp"}, {"pooling": "rnn"}], ids=["logsumexp", "rnn"])
def test_volume_labels_alone_teach_which_window_shows_it(options):
    torch.manual_seed(0)
    values = torch.randn(64, 8) * 0.3
    volumes = torch.arange(64) % 2
    windows = functional.one_hot(torch.randint(8, (64,)), 8) * volumes[:, None]
    image = (values + 2 * windows).view(64, 1, 1, 1, 8)
    net = network(Mean(), 1, classes=2, window=1, **options)
    loss = SequenceLoss(instance_weight=float(options["pooling"] == "rnn"))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss(net(image), volumes).backward()
        optimizer.step()
    chances = net(image).softmax(1)[:, 1, 1:].detach()
    assert roc_auc_score(windows.flatten().numpy(), chances.flatten().numpy()) > 0.97


# batches


def case(length, label=1, slices=None, **more):
    image = torch.arange(float(length)).expand(2, 3, 4, length).clone()
    return {"image": image, "label": label, **({} if slices is None else {"slice_labels": slices}), **more}


def test_volumes_are_filled_up_with_their_last_slice():
    result = collate_sequences([case(3, case="a"), case(5, case="b")])
    assert result["image"].shape == (2, 2, 3, 4, 5) and result["lengths"].tolist() == [3, 5]
    assert result["image"][0, 0, 0, 0].tolist() == [0, 1, 2, 2, 2]
    assert result["image"][1, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert result["label"].tolist() == [[1, -1, -1, -1, -1, -1]] * 2 and result["case"] == ["a", "b"]


def test_slices_lie_along_the_collation_s_axis():
    cases = [{**item, "image": item["image"].movedim(3, 1)} for item in (case(3), case(5))]
    result = collate_sequences(cases, axis=0)
    assert result["image"].shape == (2, 2, 5, 3, 4) and result["lengths"].tolist() == [3, 5]


def test_slice_labels_become_those_of_windows():
    batch = [case(3, 1, [0, 1, 1]), case(5, 0, torch.zeros(5)), case(2, -1)]
    assert collate_sequences(batch)["label"].tolist() == [
        [1, 0, 1, 1, -1, -1],
        [0, 0, 0, 0, 0, 0],
        [-1, -1, -1, -1, -1, -1],
    ]
    assert collate_sequences(batch, stride=2)["label"].tolist() == [[1, 1, 1, -1], [0, 0, 0, 0], [-1, -1, -1, -1]]
    assert "slice_labels" not in collate_sequences(batch)


def test_cases_without_a_label_have_none():
    batch = [{"image": case(length)["image"]} for length in (3, 5)]
    assert set(collate_sequences(batch)) == {"image", "lengths"}


@pytest.mark.parametrize(
    ("slices", "stride", "expected"),
    [
        ([0, 2, 0, 0, 1], 2, [2, 0, 1]),
        ([0, -1, -1, 1, -1], 2, [-1, 1, -1]),
        ([0, 1, 0], 1, [0, 1, 0]),
        ([0, 1], 5, [1]),
    ],
)
def test_a_window_s_label_is_the_greatest_of_its_slices(slices, stride, expected):
    assert window_labels(torch.tensor(slices), stride).tolist() == expected


def test_slice_labels_of_another_number_are_refused():
    with pytest.raises(TomokitError, match="case_3 has 2 slice labels for 3 slices"):
        collate_sequences([case(3, slices=[0, 1], case="case_3")])


def test_a_collated_batch_goes_through_network_and_loss():
    batch = collate_sequences([case(3, 1, [0, 1, 1]), case(5, 0)], stride=2)
    net = network(resnet(6), classes=2, stride=2)
    assert SequenceLoss()(net(batch["image"], batch["lengths"]), batch["label"]).isfinite()
