import logging
import shutil
from pathlib import Path

import pytest
import torch
from bundle_runs import SMALL_UNET, follow, layer, train, weights
from ignite.engine import Engine
from monai.networks.nets import DynUNet, ResNet, SegResNet, UNet, VNet
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, PolynomialLR

from tomokit import phantoms
from tomokit.engines.checkpoints import save
from tomokit.errors import TomokitError
from tomokit.finetuning import LowerRates, UnfreezeAt, find_head, load_pretrained

UNET = {"kernel_size": [3] * 3, "strides": [1, 2, 2], "upsample_kernel_size": [2] * 2, "filters": [4, 8, 8]}


def dynunet(channels=1, classes=3, seed=0, **options) -> nn.Module:
    torch.manual_seed(seed)
    return DynUNet(3, channels, classes, **UNET, **options)


def small_resnet(seed=0, **options) -> nn.Module:
    torch.manual_seed(seed)
    given = {"n_input_channels": 1, "num_classes": 3, "bias_downsample": False}
    return ResNet("basic", [1, 1, 1, 1], [4, 4, 8, 8], **(given | options))


@pytest.fixture
def source(tmp_path) -> Path:
    save(dynunet(seed=1).state_dict(), tmp_path / "run" / "checkpoints" / "best.pt")
    save(dynunet(seed=2).state_dict(), tmp_path / "run" / "checkpoints" / "last.pt")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("network", "heads"),
    [
        (dynunet(), ("output_block",)),
        (dynunet(deep_supervision=True), ("output_block", "deep_supervision_heads")),
        (small_resnet(), ("fc",)),
        (VNet(out_channels=3), ("out_tr",)),
        (SegResNet(init_filters=8, out_channels=3), ("conv_final",)),
        (UNet(3, 1, 3, (4, 8), (2,)), ("model.2",)),
    ],
    ids=lambda item: type(item).__name__,
)
def test_heads_are_found(network, heads):
    assert find_head(network) == heads


def test_a_head_that_can_not_be_told_is_asked_for():
    network = nn.ModuleDict({"left": nn.Linear(2, 2), "right": nn.Linear(2, 2)})
    with pytest.raises(TomokitError, match=r"head of ModuleDict; set `head` to some of \['left', 'right'\]"):
        find_head(network)
    assert find_head(network, ["right"]) == ("right",)
    for wrong in (["middle"], []):
        with pytest.raises(TomokitError, match=rf"`head` must name modules of ModuleDict, got .*{''.join(wrong)}"):
            find_head(network, wrong)


def test_all_weights_of_a_run_are_taken(source):
    network = dynunet()
    assert load_pretrained(network, source) is network
    expected = dynunet(seed=1).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_last_weights_serve_where_there_are_no_best(tmp_path):
    state = {"network": dynunet(seed=2).state_dict(), "optimizer": {}, "epoch": 3}
    save(state, tmp_path / "checkpoints" / "last.pt")
    network = load_pretrained(dynunet(), tmp_path)
    assert torch.equal(network.input_block.conv1.conv.weight, dynunet(seed=2).input_block.conv1.conv.weight)


def test_a_head_for_other_classes_stays_and_is_told(source, caplog):
    network = dynunet(classes=5)
    before = network.output_block.conv.conv.weight.clone()
    with caplog.at_level(logging.INFO):
        load_pretrained(network, source)
    assert torch.equal(network.output_block.conv.conv.weight, before)
    assert torch.equal(network.bottleneck.conv1.conv.weight, dynunet(seed=1).bottleneck.conv1.conv.weight)
    assert "output_block.conv.conv.weight (3, 4, 1, 1, 1) for (5, 4, 1, 1, 1)" in caplog.text
    count = len(network.state_dict())
    assert f"pretrained: {count - 2} of {count} tensors" in caplog.text


def test_tensors_on_one_side_alone_are_told(source, caplog):
    with caplog.at_level(logging.INFO):
        load_pretrained(dynunet(deep_supervision=True), source)
    assert "not in the file: deep_supervision_heads.0.conv.conv.weight" in caplog.text
    save(dynunet(deep_supervision=True).state_dict(), source / "checkpoints" / "best.pt")
    with caplog.at_level(logging.INFO):
        load_pretrained(dynunet(), source)
    assert "not in the network: deep_supervision_heads.0.conv.conv.weight" in caplog.text


def test_another_network_is_refused(source):
    network = dynunet()
    save(small_resnet().state_dict(), source / "checkpoints" / "best.pt")
    with pytest.raises(TomokitError, match=r"best.pt fit only 0 of the \d+ parameters of the body of DynUNet"):
        load_pretrained(network, source)


def test_weights_that_are_not_there_are_asked_for(tmp_path):
    with pytest.raises(TomokitError, match=r"no pretrained weights in .*nowhere; set `pretrained`"):
        load_pretrained(dynunet(), tmp_path / "nowhere")
    with pytest.raises(TomokitError, match=r"freeze must be one of .*, got 'head'"):
        load_pretrained(dynunet(), tmp_path, freeze="head")


@pytest.mark.parametrize(
    "make", [dynunet, lambda channels=1, seed=0: small_resnet(n_input_channels=channels, seed=seed)]
)
def test_the_first_convolution_is_spread_over_more_channels(make, tmp_path):
    path = tmp_path / "weights.pt"
    save(make(seed=1).state_dict(), path)
    one, three = make(seed=1).eval(), load_pretrained(make(channels=3), path, adapt_channels=True).eval()
    image = torch.rand(1, 1, 32, 32, 32)
    assert torch.allclose(three(image.repeat(1, 3, 1, 1, 1)), one(image), atol=1e-5)
    assert not torch.allclose(load_pretrained(make(channels=3), path).eval()(image.repeat(1, 3, 1, 1, 1)), one(image))


def test_a_medicalnet_file_serves_monais_resnet(tmp_path):
    network = small_resnet(seed=1, feed_forward=False)
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state | {"module.conv_seg.0.weight": torch.ones(2)}}, tmp_path / "resnet_10.pth")
    found = load_pretrained(small_resnet(), tmp_path / "resnet_10.pth")
    expected = network.state_dict()
    assert all(torch.equal(found.state_dict()[key], expected[key]) for key in expected)


def test_a_frozen_body_keeps_its_weights_and_statistics(tmp_path):
    save(small_resnet(seed=1).state_dict(), tmp_path / "weights.pt")
    network = load_pretrained(small_resnet(num_classes=2), tmp_path / "weights.pt", freeze="body").train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    image = torch.rand(2, 1, 16, 16, 16)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.1)
    network(image).square().mean().backward()
    optimizer.step()
    changed = [key for key, value in network.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == ["fc.weight", "fc.bias"]
    assert torch.equal(network.train()(image), network.eval()(image))
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    network.train()(image)
    assert not torch.equal(network.bn1.running_mean, before["bn1.running_mean"])


def test_what_was_not_loaded_is_trained_even_in_the_body(tmp_path):
    state = {key: value for key, value in small_resnet(seed=1).state_dict().items() if "layer1.0.conv1" not in key}
    save(state, tmp_path / "weights.pt")
    network = load_pretrained(small_resnet(), tmp_path / "weights.pt", freeze="body")
    trained = [key for key, value in network.named_parameters() if value.requires_grad]
    assert trained == ["layer1.0.conv1.weight", "fc.weight", "fc.bias"]


def training(tmp_path, schedule, handler) -> Engine:
    """Return an engine that fine-tunes a resnet on noise: its head for two epochs, then everything."""
    save(small_resnet(seed=1).state_dict(), tmp_path / "weights.pt")
    network = load_pretrained(small_resnet(num_classes=2), tmp_path / "weights.pt", freeze="body")
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    scheduler = schedule(optimizer)

    def step(engine, image):
        torch.manual_seed(engine.state.iteration)
        engine.network.train()
        optimizer.zero_grad()
        engine.network(torch.rand(2, 1, 16, 16, 16)).square().mean().backward()
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()

    rates: list[float] = []
    engine = Engine(step)
    engine.network, engine.optimizer, engine.scheduler, engine.rates = network, optimizer, scheduler, rates
    handler(scheduler).attach(engine)
    return engine


HANDLERS = {
    "unfreeze": lambda schedule: UnfreezeAt(2, schedule, factor=0.1),
    "lower": lambda schedule: LowerRates(schedule, 0.1),
}
SCHEDULES = {
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "polynomial": lambda optimizer: PolynomialLR(optimizer, total_iters=20),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_resumed_training_has_the_rates_of_an_uninterrupted_one(schedule, handler, stop, tmp_path):
    whole = training(tmp_path, schedule, handler)
    whole.run([0, 1], max_epochs=5)
    first = training(tmp_path, schedule, handler)
    first.run([0, 1], max_epochs=stop)
    again = training(tmp_path, schedule, handler)
    again.network.load_state_dict(first.network.state_dict())
    again.optimizer.load_state_dict(first.optimizer.state_dict())
    again.scheduler.load_state_dict(first.scheduler.state_dict())
    again.state.epoch, again.state.iteration = first.state.epoch, first.state.iteration
    again.state.max_epochs, again.state.epoch_length = 5, 2
    again.run([0, 1], max_epochs=5, epoch_length=2)
    assert first.rates + again.rates == whole.rates
    expected = whole.network.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in again.network.state_dict().items())


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("lambda", [1, 1 / 2, 1 / 3, 1 / 4, 0.1 / 5, 0.1 / 6]), ("polynomial", [1, 0.95, 0.9, 0.85, 0.08, 0.075])],
)
def test_the_body_is_trained_from_its_epoch_on_at_a_lower_rate(schedule, rates, tmp_path):
    engine = training(tmp_path, SCHEDULES[schedule], HANDLERS["unfreeze"])
    body = engine.network.conv1.weight
    before = body.detach().clone()
    engine.run([0, 1], max_epochs=2)
    assert torch.equal(body, before) and len(engine.optimizer.state) == 2
    engine.run([0, 1], max_epochs=3)
    assert not torch.equal(body, before)
    assert engine.rates == pytest.approx([0.01 * rate for rate in rates])


def test_fine_tuning_takes_a_part_of_the_rates_from_the_first_step_on(tmp_path):
    engine = training(tmp_path, SCHEDULES["lambda"], HANDLERS["lower"])
    engine.run([0, 1], max_epochs=2)
    assert engine.rates == pytest.approx([0.01 * 0.1 / step for step in (1, 2, 3, 4)])


def test_a_rate_of_nothing_is_refused():
    with pytest.raises(TomokitError, match="must be above 0, got 0"):
        UnfreezeAt(1, None, factor=0)
    with pytest.raises(TomokitError, match="must be above 0, got nan"):
        LowerRates(None, factor=float("nan"))


def stop_here(*_):
    raise RuntimeError("stopped")


def test_a_bundle_trains_its_head_then_everything(tmp_path, monkeypatch):
    phantoms.make_segmentation_set(tmp_path / "data", cases=4, test_cases=1, size=32, progress=False)
    plain = {"train::augmentation": {"_target_": "Compose", "transforms": []}, "epochs": 2}
    options = plain | {"dataset_dir": str(tmp_path / "data"), "patch_size": [16, 16, 16], "network_def": SMALL_UNET}
    begin = DynUNet(3, 1, 4, **UNET)
    save(begin.state_dict(), tmp_path / "earlier" / "checkpoints" / "best.pt")
    options |= {"pretrained": str(tmp_path / "earlier"), "head_epochs": 1, "weight_averaging": 0, "batch_size": 1}
    files, run = (layer("finetune_head_then_all"),), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("tomokit.engines.training.write_json", stop_here)  # after the first epoch's checkpoint
        with pytest.raises(RuntimeError):
            train("segmentation", run, files=files, **options)
    before, first = begin.state_dict(), weights(run)
    changed = [key for key, value in first.items() if not torch.equal(value, before[key])]
    assert changed == ["output_block.conv.conv.weight", "output_block.conv.conv.bias"]
    train("segmentation", run, files=files, **options, resume=True)
    second = weights(run)
    assert all(not torch.equal(second[key], before[key]) for key, _ in begin.named_parameters())
    rates = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["lr_scheduler"]["base_lrs"]
    assert rates == pytest.approx([0.001])  # a tenth of the bundle's
    shutil.rmtree(tmp_path / "earlier")
    follow("segmentation", run, "evaluate", rival=False)
    assert (run / "metrics.json").exists()
