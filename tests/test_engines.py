import json
import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer
from monai.optimizers import WarmupCosineSchedule
from torch import nn

from tomokit.engines import (
    PrepareBatch,
    attach_training,
    choose_precision,
    distributed_device,
    find_checkpoint,
    load_weights,
    make_sampler,
    place_network,
    set_seed,
)
from tomokit.engines.checkpoints import load, save, weights_of
from tomokit.engines.hardware import seed_epoch, to_channels_last
from tomokit.engines.progress import ProgressBar, format_seconds
from tomokit.errors import TomokitError

EPOCHS = 4


class ScriptedEvaluator(Engine):
    """An evaluator whose metric is read from a script, one value per validation."""

    def __init__(self, script):
        super().__init__(lambda engine, batch: None)
        self.script = list(script)
        self.data_loader = [None]
        self.add_event_handler(Events.STARTED, self.score)

    def score(self, _):
        self.state.key_metric_name = "val_score"
        self.state.metrics = {"val_score": self.script.pop(0)}

    @staticmethod
    def metric_cmp_fn(current, best):
        return current > best


def make_training(
    run_dir, script, *, resume=False, patience=0, loss=None, epochs=EPOCHS, learning_rate=0.1, averaging=0.0
):
    """Return a real trainer of a tiny network with everything attached, and its evaluator."""
    set_seed(0, True, "cpu")
    network = nn.Conv3d(1, 1, 3, padding=1)
    rng = np.random.default_rng(0)
    data = [{"image": rng.normal(size=(1, 4, 4, 4)).astype(np.float32)} for _ in range(6)]
    dataset = Dataset([{**item, "label": item["image"] * 2} for item in data])
    loader = DataLoader(dataset, batch_size=2, sampler=make_sampler(dataset, 0))
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate)
    schedule = WarmupCosineSchedule(optimizer, 3, epochs * len(loader))
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=loss or nn.MSELoss(),
        prepare_batch=PrepareBatch(),
        decollate=False,
    )
    evaluator = ScriptedEvaluator(script)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: evaluator.run([0]))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: schedule.step())
    attach_no_overlays(evaluator)
    state = attach_training(trainer, evaluator, schedule, run_dir, resume, 0, patience, 1.0, averaging)
    return trainer, evaluator, state


def attach_no_overlays(evaluator):
    """Give the scripted evaluator the output that the TensorBoard picture reads: a volume of one class."""
    zero = torch.zeros(1, 4, 4, 4)

    def fill(engine):
        engine.state.output = [{"image": zero, "label": zero, "pred": zero}]

    evaluator.add_event_handler(Events.ITERATION_STARTED, lambda _: None)
    evaluator._process_function = lambda engine, batch: [{"image": zero, "label": zero, "pred": zero}]
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, fill)


def test_the_best_checkpoint_holds_the_best_epochs_weights_and_the_last_one_the_last(tmp_path):
    trainer, _, _ = make_training(tmp_path, [0.1, 0.9, 0.3, 0.5])
    after_epoch = {}
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda engine: after_epoch.update(
            {engine.state.epoch: {k: v.clone() for k, v in engine.network.state_dict().items()}}
        ),
    )
    trainer.run()
    best = load(tmp_path / "checkpoints" / "best.pt")
    assert all(torch.equal(best[key], after_epoch[2][key]) for key in best)
    assert not torch.equal(best["weight"], after_epoch[4]["weight"])
    last = load(tmp_path / "checkpoints" / "last.pt")
    assert torch.equal(last["network"]["weight"], after_epoch[4]["weight"])
    record = json.loads((tmp_path / "validation.json").read_text())
    assert record["best"] == {"epoch": 2, "metric": 0.9}


def test_a_resumed_run_has_everything_back(tmp_path):
    whole, _, _ = make_training(tmp_path / "whole", [0.1, 0.9, 0.3, 0.5])
    whole.run()
    script = [0.1, 0.9, 0.3, 0.5]
    half, _, _ = make_training(tmp_path / "half", script)
    half.add_event_handler(Events.ITERATION_COMPLETED(once=8), lambda _: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        half.run()
    resumed, _, state = make_training(tmp_path / "half", script[2:], resume=True)
    assert (resumed.state.epoch, resumed.state.iteration) == (2, 6)
    assert (state.best_epoch, state.best_metric, state.validations_since_best()) == (2, 0.9, 0)
    resumed.run()
    a, b = (load(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "half"))
    assert torch.equal(a["network"]["weight"], b["network"]["weight"])
    for moment in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(a["optimizer"]["state"][0][moment], b["optimizer"]["state"][0][moment])
    assert a["lr_scheduler"]["last_epoch"] == b["lr_scheduler"]["last_epoch"]
    assert a["best"]["epoch"] == b["best"]["epoch"] == 2
    assert [e["loss"] for e in a["history"]] == [e["loss"] for e in b["history"]]


def test_the_averaged_weights_are_validated_kept_and_follow_their_formula(tmp_path):
    trainer, evaluator, state = make_training(tmp_path, [0.1, 0.9, 0.3, 0.5], averaging=0.8)
    weights = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: weights.append(engine.network.weight.detach().clone())
    )
    trainer.run()
    expected = weights[0]
    for step, weight in enumerate(weights[1:], start=1):
        share = max(0.2, 9 / (step + 9))
        expected = expected + share * (weight - expected)
    assert evaluator.network is state.result and evaluator.network is not trainer.network
    torch.testing.assert_close(evaluator.network.weight.detach(), expected)
    last = nn.Conv3d(1, 1, 3, padding=1)
    load_weights(last, tmp_path, "last")
    assert torch.equal(last.weight, evaluator.network.weight)
    best = load(tmp_path / "checkpoints" / "best.pt")
    assert best.keys() == last.state_dict().keys() and not torch.equal(best["weight"], last.weight)


def test_a_resumed_run_averages_on_bit_for_bit(tmp_path):
    whole, _, _ = make_training(tmp_path / "whole", [0.1, 0.9, 0.3, 0.5], averaging=0.8)
    whole.run()
    script = [0.1, 0.9, 0.3, 0.5]
    half, _, _ = make_training(tmp_path / "half", script, averaging=0.8)
    half.add_event_handler(Events.ITERATION_COMPLETED(once=8), lambda _: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        half.run()
    make_training(tmp_path / "half", script[2:], resume=True, averaging=0.8)[0].run()
    a, b = (load(tmp_path / name / "checkpoints" / "last.pt")["average"] for name in ("whole", "half"))
    assert a["count"] == b["count"] > 0
    assert all(torch.equal(a["module"][key], b["module"][key]) for key in a["module"])


def test_the_weights_of_monais_checkpoints_are_found():
    weights = {"fc.weight": torch.ones(1)}
    assert weights_of({"model": weights, "optimizer": {}, "epoch": 3}) == weights
    assert weights_of({"net": weights}) == weights and weights_of(weights) == weights


def test_a_decay_out_of_range_is_named(tmp_path):
    with pytest.raises(TomokitError, match=r"below 1, got 1\.5"):
        make_training(tmp_path, [0.1], averaging=1.5)


def test_a_batch_is_augmented_as_plain_tensors_on_its_device():
    seen = {}

    def double(batch):
        seen.update(batch)
        return {"image": batch["image"] * 2, "label": batch["label"]}

    image, label = torch.randn(2, 3, 4, 4, 4), torch.ones(2, 1, 4, 4, 4)
    batch = {"image": MetaTensor(image), "label": MetaTensor(label), "case": ["a", "b"]}
    prepared, target = PrepareBatch(double)(batch, "cpu")
    assert set(seen) == {"image", "label"} and all(type(value) is torch.Tensor for value in seen.values())
    assert torch.equal(prepared, image * 2) and torch.equal(target, label)
    assert prepared.is_contiguous(memory_format=torch.channels_last_3d)
    assert PrepareBatch()({"image": image}, "cpu")[1] is None


def test_what_a_network_takes_beside_the_image_comes_in_its_order():
    image, record = torch.randn(2, 1, 4, 4, 4), torch.randn(2, 3)
    batch = {"image": image, "record": MetaTensor(record), "lengths": [3, 4]}
    prepared, label, (lengths, told), options = PrepareBatch(extra=["lengths", "record"])(batch, "cpu")
    assert torch.equal(prepared, image) and label is None and options == {}
    assert lengths.tolist() == [3, 4] and torch.equal(told, record) and type(told) is torch.Tensor
    with pytest.raises(TomokitError, match=r"the network takes \['presence'\] of a case, which the preprocessing"):
        PrepareBatch(extra=["presence"])(batch, "cpu")


def test_a_newer_best_file_than_the_last_checkpoint_is_taken_back(tmp_path):
    trainer, _, _ = make_training(tmp_path, [0.1, 0.9], epochs=2)
    trainer.run()
    best = tmp_path / "checkpoints" / "best.pt"
    good = best.read_bytes()
    save({"weight": torch.zeros(1)}, best)  # as if killed between the two files
    make_training(tmp_path, [0.1, 0.2], resume=True, epochs=4)[0].run()
    assert best.read_bytes() == good


def test_a_checkpoint_that_does_not_fit_is_not_resumed(tmp_path):
    make_training(tmp_path, [0.1] * EPOCHS)[0].run()
    content = load(tmp_path / "checkpoints" / "last.pt")
    save(content | {"network": {"weight": torch.zeros(1)}}, tmp_path / "checkpoints" / "last.pt")
    with pytest.raises(TomokitError, match=r"can't resume from .*last\.pt: .*another network or optimizer"):
        make_training(tmp_path, [0.1] * EPOCHS, resume=True)


def test_of_equal_validations_the_last_is_the_best_but_they_do_not_put_off_the_stop(tmp_path, caplog):
    trainer, _, state = make_training(tmp_path, [0.3, 0.9, 0.9, 0.5], patience=2)
    with caplog.at_level("INFO"):
        trainer.run()
    assert (state.best_epoch, state.best_metric, state.validations_since_best()) == (3, 0.9, 2)
    assert "no better validation since epoch 2" in caplog.text
    _, _, resumed = make_training(tmp_path, [], resume=True, patience=2)
    assert (resumed.best_epoch, resumed.validations_since_best()) == (3, 2)


def test_an_undefined_metric_is_told_and_never_the_best(tmp_path, caplog):
    trainer, _, state = make_training(tmp_path, [math.nan, 0.2, math.nan, 0.1])
    with caplog.at_level("WARNING"):
        trainer.run()
    assert "val_score is undefined on the validation cases" in caplog.text
    assert (state.best_epoch, state.best_metric) == (2, 0.2)
    assert json.loads((tmp_path / "validation.json").read_text())["history"][0]["metric"] is None


def test_early_stopping_counts_validations_and_survives_a_resume(tmp_path):
    trainer, _, state = make_training(tmp_path, [0.5, 0.4, 0.3, 0.9], patience=2)
    trainer.run()
    assert trainer.state.epoch == 3
    assert state.validations_since_best() == 2
    again, evaluator, _ = make_training(tmp_path, [0.9], patience=2, resume=True)
    again.run()
    assert evaluator.script == [0.9]  # a run that was stopped is finished: nothing is validated again


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path):
    class Breaks(nn.Module):
        calls = 0

        def forward(self, prediction, target):
            self.calls += 1
            return nn.functional.mse_loss(prediction, target) * (math.nan if self.calls > 4 else 1)

    trainer, _, _ = make_training(tmp_path, [0.5, 0.4], loss=Breaks())
    with pytest.raises(TomokitError, match="the loss became nan in epoch 2; lower learning_rate"):
        trainer.run()
    assert load(tmp_path / "checkpoints" / "last.pt")["epoch"] == 1


def test_gradients_are_clipped_to_the_norm(tmp_path):
    trainer, _, _ = make_training(tmp_path, [0.1] * EPOCHS, loss=lambda p, t: 1e6 * nn.functional.mse_loss(p, t))
    norms = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: norms.append(torch.cat([p.grad.flatten() for p in engine.network.parameters()]).norm().item()),
    )
    trainer.run()
    assert norms and all(norm == pytest.approx(1.0, abs=1e-3) for norm in norms)


def test_tensorboard_has_scalars_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer, _, _ = make_training(tmp_path, [0.1, 0.2, 0.3, 0.4])
    trainer.run()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 13))
    assert [event.value for event in events.Scalars("validation/val_score")] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert len(events.Images("validation/axial")) == EPOCHS


def test_a_checkpoint_of_another_network_is_refused_with_what_differs(tmp_path):
    save(nn.Conv3d(1, 2, 1).state_dict(), tmp_path / "checkpoints" / "best.pt")
    with pytest.raises(TomokitError, match=r"of another network: 0 missing, 0 unknown, 1 of another shape \(weight\)"):
        load_weights(nn.Conv3d(1, 2, 3), tmp_path, "best")
    with pytest.raises(TomokitError, match=r"no checkpoint .*last\.pt; .*\(this run has: best\)"):
        find_checkpoint(tmp_path, "last")


def test_the_best_weights_of_a_run_without_validation_cases_are_the_last(tmp_path):
    save({}, tmp_path / "checkpoints" / "last.pt")
    config = tmp_path / "configs" / "train.yaml"
    config.parent.mkdir()
    config.write_text("cases: {training: [a], validation: [b], test: []}")
    with pytest.raises(TomokitError, match=r"no checkpoint .*best\.pt; .*\(this run has: last\)"):
        find_checkpoint(tmp_path, "best")
    config.write_text("cases: {training: [a, b], validation: [], test: []}")
    assert find_checkpoint(tmp_path, "best") == tmp_path / "checkpoints" / "last.pt"


def test_a_file_that_would_run_code_is_not_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return print, ("ran",)

    torch.save({"network": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(TomokitError, match=r"bomb\.pt is no checkpoint of weights"):
        load(tmp_path / "bomb.pt")
    torch.save(torch.zeros(1), tmp_path / "tensor.pt")
    with pytest.raises(TomokitError, match="holds a Tensor, not a network's weights"):
        load(tmp_path / "tensor.pt")
    with pytest.raises(TomokitError, match=r"no checkpoint .*absent\.pt"):
        load(tmp_path / "absent.pt")


def test_weights_that_do_not_fit_into_memory_are_not_called_damaged(tmp_path, monkeypatch):
    save({}, tmp_path / "best.pt")

    def full(*_arguments, **_options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3276800 bytes")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(TomokitError, match=r"the free memory .* does not suffice to load .*best\.pt"):
        load(tmp_path / "best.pt")


@pytest.mark.parametrize(
    ("units", "trains", "infers"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, torch.bfloat16, torch.bfloat16),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, torch.float32, torch.bfloat16),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}, torch.bfloat16, torch.bfloat16),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False, "amx_bf16": False}, torch.float32, torch.float32),
        ({"cpu_name": "Apple M2"}, torch.float32, torch.float32),
    ],
)
def test_precision_follows_the_hardware(monkeypatch, units, trains, infers):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert choose_precision("cpu", True) == trains
    assert choose_precision("cpu", True, training=False) == infers
    assert choose_precision("cpu", False) == torch.float32
    assert choose_precision("cpu", False, training=False) == torch.float32
    assert choose_precision("meta", True) == torch.float32


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_precision_on_cuda_is_low():
    assert choose_precision("cuda", True) in (torch.bfloat16, torch.float16)


def test_networks_and_images_are_channels_last():
    network = place_network(nn.Conv3d(2, 4, 3), "cpu")
    assert network.weight.is_contiguous(memory_format=torch.channels_last_3d)
    image = to_channels_last(torch.zeros(1, 2, 4, 4, 4))
    assert image.is_contiguous(memory_format=torch.channels_last_3d)
    assert to_channels_last(torch.zeros(1, 2, 4, 4)).is_contiguous(memory_format=torch.channels_last)
    assert to_channels_last(torch.zeros(3)).shape == (3,)


def test_the_order_of_an_epoch_follows_from_seed_and_epoch():
    data = Dataset(list(range(20)))
    sampler = make_sampler(data, seed=1)
    orders = []
    for epoch in (1, 2, 1):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1] and sorted(orders[0]) == list(range(20))


def test_an_epochs_random_draws_follow_from_seed_and_epoch():
    from monai.transforms import RandGaussianNoise

    dataset = Dataset([torch.zeros(1, 8)] * 2, RandGaussianNoise(prob=1.0))
    draws = []
    for epoch in (1, 2, 1):
        seed_epoch(7, epoch, dataset)
        draws.append((dataset[0].tolist(), torch.rand(1).item(), np.random.rand()))
    assert draws[0] == draws[2] != draws[1]


def test_the_distributed_layer_needs_its_launcher(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(TomokitError, match="start it with `torchrun"):
        distributed_device()


def test_progress_tells_the_time_left_in_a_log(capsys, monkeypatch):
    monkeypatch.setattr("tomokit.engines.progress.LINE_SECONDS", 0.0)
    engine = Engine(lambda engine, batch: None)
    ProgressBar("train", "step").attach(engine)
    engine.run([0, 1], max_epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train: step 1 of 4, 0:0") and lines[-1].startswith("train: step 4 of 4, 0:00 left")
    assert [format_seconds(seconds) for seconds in (5, 65, 3700)] == ["0:05", "1:05", "1:01:40"]
