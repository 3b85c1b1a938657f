"""Image and record in one network: how they meet, and what is missing."""

import pytest
import torch
from torch import nn

from tomokit.errors import TomokitError
from tomokit.finetuning import find_head
from tomokit.networks import FusionNetwork, PlainCNN
from tomokit.networks.fusion import MODES, NoFeatures

NAN = float("nan")
DIMS = pytest.mark.parametrize("dims", [2, 3])
EACH = pytest.mark.parametrize("mode", MODES)
SIZE = (12, 9, 10)


def fusion(mode="concatenate", dims=3, record=4, channels=3, maps=False, **options) -> FusionNetwork:
    torch.manual_seed(0)
    image = PlainCNN(dims, channels, None, [4, 6])
    return FusionNetwork(image.features if maps else image, 6, record, 2, mode, **options)


def batch(dims=3, count=3, record=4, channels=3):
    torch.manual_seed(1)
    return torch.randn(count, channels, *SIZE[:dims]), torch.randn(count, record)


def shake(network: nn.Module) -> nn.Module:
    """Return the network with weights that are not those of the start, where the record may have none."""
    torch.manual_seed(2)
    for parameter in network.fc.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network


# how they meet


@EACH
@DIMS
@pytest.mark.parametrize("maps", [True, False])
def test_logits_are_of_image_and_record(mode, dims, maps):
    network, (image, record) = shake(fusion(mode, dims, maps=maps)).eval(), batch(dims)
    logits = network(image, record)
    assert logits.shape == (3, 2) and logits.isfinite().all()
    assert not torch.allclose(network(image.flip(0), record), logits)
    assert not torch.allclose(network(image, record.flip(0)), logits)


@EACH
@DIMS
@pytest.mark.parametrize("maps", [True, False])
def test_the_gradient_reaches_every_parameter(mode, dims, maps):
    network, (image, record) = shake(fusion(mode, dims, maps=maps, modalities=[1, 2])), batch(dims, 6)
    network(image, record, torch.tensor([[1, 0], [1, 1], [0, 1]] * 2)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@EACH
@pytest.mark.parametrize("maps", [True, False])
def test_a_batch_equals_its_cases_one_by_one(mode, maps):
    network, (image, record) = shake(fusion(mode, maps=maps)).eval(), batch()
    record[1, 2] = NAN
    alone = torch.cat([network(image[i : i + 1], record[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(image, record), alone, rtol=1e-4, atol=1e-5)


@EACH
@pytest.mark.parametrize("modalities", [[], [1, 2]])
def test_the_network_is_a_script(mode, modalities):
    network, (image, record) = shake(fusion(mode, modalities=modalities, hide=0.1)).eval(), batch()
    record[1, 2] = NAN
    script = torch.jit.script(network)
    torch.testing.assert_close(script(image, record), network(image, record), rtol=1e-4, atol=1e-5)
    if modalities:
        presence = torch.tensor([[1, 0], [1, 1], [0, 1]])
        expected = network(image, record, presence)
        torch.testing.assert_close(script(image, record, presence), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mode", "sees"), [("concatenate", True), ("film", False), ("add", False)])
def test_at_the_start_the_image_decides(mode, sees):
    network, (image, record) = fusion(mode).eval(), batch()
    assert torch.allclose(network(image, record), network(image, record.flip(0))) != sees


@pytest.mark.parametrize("maps", [True, False])
def test_the_record_scales_and_shifts_each_feature(maps):
    network, (image, record) = shake(fusion("film", maps=maps)).eval(), batch()
    features, (scale, shift) = network.image_network(image), network.fc.changes(network.read_record(record)).split(6, 1)
    if maps:
        scale, shift = scale[..., None, None, None], shift[..., None, None, None]
        expected = (features * (1 + scale) + shift).relu().mean((2, 3, 4))
    else:
        expected = features * (1 + scale) + shift
    torch.testing.assert_close(network(image, record), network.fc.last(expected))


def test_a_linear_model_of_the_record_is_added():
    network, (image, record) = shake(fusion("add")).eval(), batch()
    record[1, 2] = NAN
    weights = network.fc.record.weight
    known = torch.where(record.isnan(), 0, record) @ weights[:, :4].T + record.isnan().float() @ weights[:, 4:].T
    alone = network.fc.image(network.image_network(image))
    torch.testing.assert_close(network(image, record), alone + known)


def test_the_joint_part_is_the_head():
    assert find_head(fusion()) == ("fc",)


# what is missing


def test_a_missing_field_is_told_and_counts_as_its_mean():
    told = fusion(record=3).read_record(torch.tensor([[0.5, NAN, 2.0], [NAN, -1.0, 0.0]]))
    assert told.tolist() == [[0.5, 0, 2, 0, 1, 0], [0, -1, 0, 1, 0, 0]]


def test_the_numbers_of_a_field_are_missing_together():
    told = fusion(record=[1, 3]).read_record(torch.tensor([[0.5, 0.0, NAN, 1.0], [NAN, 0.0, 1.0, 0.0]]))
    assert told.tolist() == [[0.5, 0, 0, 0, 0, 1], [0, 0, 1, 0, 1, 0]]


@EACH
def test_an_absent_modality_s_channels_do_not_count(mode):
    network, (image, record) = shake(fusion(mode, modalities=[1, 2])).eval(), batch()
    presence = torch.tensor([[1, 0], [0, 1], [1, 1]])
    other = image.clone()
    other[0, 1:], other[1, 0] = NAN, 1e6
    assert torch.equal(network(other, record, presence), network(image, record, presence))
    assert not torch.allclose(network(image, record, presence)[:2], network(image, record)[:2])
    complete = network(image, record, presence.clamp(min=1))
    torch.testing.assert_close(network(image, record, presence)[2], complete[2])


@EACH
def test_which_modalities_are_there_is_told(mode):
    network, (image, record) = shake(fusion(mode, modalities=[1, 2])).eval(), batch()
    image[:, 1:] = 0
    absent = network(image, record, torch.tensor([[1, 0]] * 3))
    assert not torch.allclose(absent, network(image, record, torch.tensor([[1, 1]] * 3)))


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_presence_is_of_any_type(kind):
    network, (image, record) = fusion(modalities=[1, 2]).eval(), batch()
    presence = torch.tensor([[1, 0], [0, 1], [1, 1]])
    assert torch.equal(network(image, record, presence.to(kind)), network(image, record, presence))


def test_fields_and_modalities_are_hidden_in_training_alone():
    network = fusion(record=[1, 1, 2], modalities=[1, 1, 1], hide=0.3)
    record, present = torch.randn(2000, 4), torch.ones(2000, 3, dtype=torch.bool)
    told = network.read_record(record)
    hidden = told[:, 4:] > 0
    # 6000 draws, so five standard errors are 0.03
    assert hidden.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(told[:, :4] == 0, hidden[:, [0, 1, 2, 2]])
    kept = network.choose_present(present)
    assert kept.any(1).all()
    # all three would go in 0.3³ of the cases, which then keep all
    assert (~kept).float().mean().item() == pytest.approx(0.3 - 0.3**3, abs=0.03)
    network.eval()
    assert torch.equal(network.choose_present(present), present)
    assert torch.equal(network.read_record(record)[:, :4], record)


def test_nothing_absent_comes_back_in_training():
    network = fusion(modalities=[1, 1, 1], hide=0.5)
    present = torch.tensor([[True, False, False], [False, True, True]]).repeat(100, 1)
    kept = network.choose_present(present)
    assert (kept <= present).all() and kept.any(1).all()


def test_without_a_record_all_of_it_is_missing():
    network, (image, record) = shake(fusion(record=[1, 3])).eval(), batch()
    assert torch.equal(network(image), network(image, torch.full_like(record, NAN)))
    assert not torch.allclose(network(image), network(image, record))
    script = torch.jit.script(network)
    torch.testing.assert_close(script(image), network(image), rtol=1e-4, atol=1e-5)


@EACH
def test_modalities_need_no_record(mode):
    network, (image, _) = shake(fusion(mode, record=[], modalities=[1, 2], hide=0.1)), batch()
    presence, empty = torch.tensor([[1, 0], [0, 1], [1, 1]]), torch.zeros(3, 0)
    network(image, empty, presence).square().mean().backward()
    network.eval()
    assert torch.equal(network(image, empty, presence), network(image, None, presence))
    assert not torch.allclose(network(image, empty, presence)[:2], network(image, empty)[:2])


@DIMS
def test_without_features_of_the_image_the_record_decides(dims):
    network, (image, record) = shake(FusionNetwork(NoFeatures(), 1, 4, 2)).eval(), batch(dims)
    assert torch.equal(network(image, record), network(image.flip(0), record))
    assert not torch.allclose(network(image, record), network(image, record.flip(0)))
    assert torch.jit.script(network)(image, record).shape == (3, 2)


# what does not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "sum"}, "`mode` must be one of concatenate, film, add, got 'sum'"),
        ({"record": 0}, r"`record_features` must count one number or more for each field, got \[\]"),
        ({"record": [2, 0]}, r"`record_features` must count one number or more for each field, got \[2, 0\]"),
        ({"modalities": [1, 0]}, r"`modalities` must count one channel or more for each modality, got \[1, 0\]"),
        ({"hide": 1}, "`hide` must be a share from 0 up to, but not including, 1, got 1"),
    ],
)
def test_arguments_out_of_range_are_refused(changes, message):
    with pytest.raises(TomokitError, match=message):
        fusion(**changes)


def test_parts_that_do_not_fit_are_told():
    network, (image, record) = fusion(modalities=[1, 1]), batch()
    with pytest.raises(TomokitError) as caught:
        network(image, record[:, :2], torch.ones(3, 3))
    for message in (
        "a record must hold 4 numbers, (B, 4), got shape (3, 2)",
        "`modalities` count 2 channels, the image has 3",
        "`presence` must have the shape (3, 2), got (3, 3)",
    ):
        assert message in str(caught.value)
    with pytest.raises(TomokitError, match=r"`presence` must have the shape \(3, 0\), got \(3, 1\)"):
        fusion()(image, record, torch.ones(3, 1))
