import json
import logging
import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import SMALL_UNET, follow, layer, same_weights, train, weights
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.inferers import SimpleInferer
from monai.transforms import Activationsd, AsDiscreted, Compose, RandSpatialCropd
from set_files import write_set
from torch import nn

from tomokit import phantoms
from tomokit.engines import PrepareBatch, make_sampler
from tomokit.engines.checkpoints import WeightAverage, save
from tomokit.engines.hardware import plain
from tomokit.errors import TomokitError
from tomokit.inference import SlabInferer
from tomokit.selftraining import (
    MeanTeacher,
    PseudoLabeld,
    attach_pseudo_labels,
    check_baseline,
    compare_classification,
    compare_segmentation,
    images_alone,
    read_pseudo_labels,
)
from tomokit.selftraining.comparison import judge
from tomokit.selftraining.mean_teacher import leading_head, ramp

CPU = torch.device("cpu")


# Pseudo-labels


@pytest.mark.parametrize("kind", [torch.Tensor, MetaTensor])
def test_only_certain_voxels_get_a_label(kind):
    inferer = SlabInferer((4, 1, 1), maps={"confidence": "confidence"})
    inferer.found_maps = {"confidence": kind(torch.tensor([255, 230, 229, 242]).view(1, 4, 1, 1))}  # of 255
    labels = torch.tensor([0, 1, 1, 2], dtype=torch.uint8).view(1, 4, 1, 1)
    found = PseudoLabeld("pred", inferer, 0.9, 255)({"pred": kind(labels), "case": "a"})
    assert found["pred"].flatten().tolist() == [0, 1, 255, 2] and found["pred"].shape == (1, 4, 1, 1)
    assert type(found["pred"]) is torch.Tensor and found["case"] == "a"
    assert found["pred_sure"].item() == 0.75
    assert found["pred_highest"].item() == pytest.approx(242 / 255)
    nothing = PseudoLabeld("pred", inferer, 0.9, 255)({"pred": kind(0 * labels)})
    assert nothing["pred_highest"].item() == 0  # sure of the background alone


@pytest.mark.parametrize("confidence", [0, -0.1, 1.01])
def test_an_impossible_confidence_is_refused(confidence):
    with pytest.raises(TomokitError, match=rf"above 0 and at most 1, got {confidence}"):
        PseudoLabeld("pred", SlabInferer((4, 1, 1), maps={"confidence": "confidence"}), confidence, 255)


def test_what_gives_no_pseudo_labels_is_refused():
    with pytest.raises(TomokitError, match="need the inferer's map of the confidence"):
        PseudoLabeld("pred", SlabInferer((4, 1, 1), maps={"confidence": "entropy"}), 0.9, 255)
    with pytest.raises(TomokitError, match="tells regions that overlap, which have no pseudo-labels"):
        PseudoLabeld("pred", SlabInferer((4, 1, 1), regions={"whole": [1, 2]}), 0.9, 255)
    with pytest.raises(TomokitError, match="classes or label maps, got the task 'value'"):
        attach_pseudo_labels(None, "run", "out", "best", 0.9, "value")


class Brightness(nn.Module):
    """A teacher that tells bright images from dark ones; how sure it is follows from `scale`."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, image):
        score = self.scale * image.flatten(1).mean(1)
        return torch.stack([-score, score], 1)


def label_cases(run, scale, confidence):
    """Let a teacher label eight images, bright and dark in turn, and return the file's content."""
    items = [{"case": f"c{i}", "image": torch.full((1, 2, 2, 2), float(2 * (i % 2) - 1) * (1 + i))} for i in range(8)]
    save({"scale": torch.tensor(1.0)}, run / "checkpoints" / "best.pt")
    evaluator = SupervisedEvaluator(
        device=CPU,
        val_data_loader=DataLoader(Dataset(items), batch_size=1),
        network=Brightness(scale),
        inferer=SimpleInferer(),
        postprocessing=Compose([Activationsd("pred", softmax=True)]),
    )
    attach_pseudo_labels(evaluator, run, run / "pseudo_labels", "best", confidence, "classes")
    evaluator.run()
    return json.loads((run / "pseudo_labels" / "pseudo_labels.json").read_text())


def make_set(folder):
    """Write a data set of the eight images with wrong labels, of some without, and of labelled ones."""
    items = [{"image": f"c{i}.nii.gz", "label": 1 - i % 2, "group": "a"} for i in range(4)]
    items += [{"image": f"c{i}.nii.gz", "group": "a"} for i in range(4, 8)]
    items += [{"image": f"d{i}.nii.gz", "label": i % 2, "patient": f"p{i}", "group": "a"} for i in range(6)]
    return write_set(folder, items)


def make_cases(training="01", validation="23", test="45"):
    parts = {"training": training, "validation": validation, "test": test}
    return {part: [{"case": f"d{i}", "patient": f"p{i}"} for i in own] for part, own in parts.items()}


def test_a_perfect_teachers_labels_are_the_truth(tmp_path, capsys):
    content = label_cases(tmp_path, 1000, 1.0)
    assert [(row["case"], row["label"]) for row in content["cases"]] == [(f"c{i}", i % 2) for i in range(8)]
    assert content["candidates"] == 8 and content["checkpoint"] == "best.pt"
    assert "pseudo-labels: 8 of 8 cases" in capsys.readouterr().out
    folder = make_set(tmp_path / "set")
    entries = read_pseudo_labels(tmp_path / "pseudo_labels", make_cases(), folder)
    assert [entry["label"] for entry in entries] == [i % 2 for i in range(8)]  # nothing of the set's own labels
    assert entries[5] == {
        "case": "c5",
        "patient": "c5",
        "image": str(folder / "c5.nii.gz"),
        "label": 1,
    }


def test_the_confidence_decides_which_cases_are_taken(tmp_path):
    # case i has a logit of (1 + i) / 10 for its class and its negative for the other one
    chances = [1 / (1 + math.exp(-0.2 * (1 + i))) for i in range(8)]
    content = label_cases(tmp_path, 0.1, 0.7)
    assert [row["case"] for row in content["cases"]] == [f"c{i}" for i in range(8) if chances[i] >= 0.7]
    assert content["highest"] == pytest.approx(chances[-1])
    table = (tmp_path / "pseudo_labels" / "pseudo_labels.csv").read_text().splitlines()
    assert len(table) == 9 and table[1].startswith("c0,0,0.549") and table[1].endswith(",False")


def test_a_confidence_that_lets_nothing_through_is_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert label_cases(tmp_path, 0.1, 0.99)["cases"] == []
    assert "no case reaches the confidence 0.99; the highest is 0.832" in caplog.text
    with pytest.raises(TomokitError, match=r"none of the 8 unlabelled cases.*it is to be 0\.99, the highest is 0\.832"):
        read_pseudo_labels(tmp_path / "pseudo_labels", make_cases(), make_set(tmp_path / "set"))


def test_pseudo_labels_that_do_not_fit_are_refused(tmp_path):
    folder = make_set(tmp_path / "set")
    with pytest.raises(TomokitError, match=r"pseudo_labels\.json does not exist; run pseudo_label\.yaml behind"):
        read_pseudo_labels(tmp_path / "none", make_cases(), folder)
    label_cases(tmp_path, 1000, 0.9)
    cases = make_cases()
    cases["training"].append({"case": "c1", "patient": "c1"})
    with pytest.raises(TomokitError, match="c1 is among the training cases"):
        read_pseudo_labels(tmp_path / "pseudo_labels", cases, folder)
    cases = make_cases()
    cases["test"].append({"case": "d9", "patient": "c6"})  # another scan of that patient
    with pytest.raises(TomokitError, match="patient c6 is in pseudo-labels and in test"):
        read_pseudo_labels(tmp_path / "pseudo_labels", cases, folder)
    write_set(folder, [{"image": "c0.nii.gz", "label": 0}])
    with pytest.raises(TomokitError, match="c7 is not in the data set"):
        read_pseudo_labels(tmp_path / "pseudo_labels", make_cases(), folder)


# The mean teacher


def make_training(weight, epochs=3, handler=True, decay=0.8, views=dict, ramp_up=0.5):
    """Return MONAI's trainer of a linear network with a mean teacher, its evaluator, and the average that it is."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
    images = torch.randn(12, 1, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    labelled = Dataset([{"image": image, "label": int(image.mean() > 0)} for image in images[:4]])
    everything = Dataset([{"case": str(number), "image": image} for number, image in enumerate(images)])
    sizes = ((labelled, 2), (everything, 4))
    loaders = [DataLoader(data, batch_size=size, sampler=make_sampler(data, 0)) for data, size in sizes]
    evaluator = SupervisedEvaluator(device=CPU, val_data_loader=loaders[0], network=network)
    average = WeightAverage(network, decay)
    evaluator.network = average.module
    teacher = MeanTeacher(evaluator, loaders[1], views, weight, ramp_up)
    trainer = SupervisedTrainer(
        device=CPU,
        max_epochs=epochs,
        train_data_loader=loaders[0],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.3),
        loss_function=nn.CrossEntropyLoss(),
        prepare_batch=PrepareBatch(),
        train_handlers=[teacher] if handler else [],
        decollate=False,
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: average.update(network))
    return trainer, evaluator, average


def test_the_teacher_is_the_average_of_the_students_weights():
    trainer, evaluator, average = make_training(weight=1.0)
    kept = [trainer.network[1].weight.detach().clone()]
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: kept.append(engine.network[1].weight.detach().clone())
    )
    trainer.run()
    expected = kept[0]
    for step, own in enumerate(kept[1:]):
        share = max(9 / (step + 9), 0.2)
        expected = expected + share * (own - expected)
    assert len(kept) == 7 and evaluator.network is average.module
    torch.testing.assert_close(evaluator.network[1].weight.detach(), expected)
    assert all(parameter.grad is None for parameter in evaluator.network.parameters())


def test_what_is_added_is_the_weighted_difference_from_the_teacher():
    trainer, _, _ = make_training(weight=100.0, epochs=6, ramp_up=1.0)
    added = []

    def keep(engine):
        output = engine.state.output
        own = nn.functional.cross_entropy(output["pred"], output["label"])
        added.append((output["loss"] - own).item())

    trainer.add_event_handler(Events.ITERATION_COMPLETED, keep)
    trainer.run()
    # in the first two steps the teacher is the student: the average begins with the weights after the first step
    assert added[0] == added[1] == 0
    assert all(value > 0 for value in added[4:])


def test_a_difference_by_hand():
    seen, losses = [], []

    def views(batch):
        seen.append(batch["image"])
        return batch

    trainer, evaluator, _ = make_training(weight=2.0, epochs=1, views=views)  # two steps, the ramp is one of them
    evaluator.network, trainer.network = Brightness(3.0), Brightness(1.0)
    trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), 0.0)

    def keep(engine):
        output = engine.state.output
        losses.append((output["loss"] - nn.functional.cross_entropy(output["pred"], output["label"])).item())

    trainer.add_event_handler(Events.ITERATION_COMPLETED, keep)
    trainer.run()
    assert len(seen) == 4 and len(losses) == 2
    for image, loss in zip(seen[::2], losses, strict=True):
        chances = [torch.sigmoid(2 * scale * image.flatten(1).mean(1)) for scale in (3, 1)]
        assert loss == pytest.approx(2 * (chances[0] - chances[1]).square().mean().item(), abs=1e-6)


def test_without_a_weight_nothing_changes():
    plain, ours = make_training(0.0, handler=False)[0], make_training(0.0)[0]
    plain.run()
    ours.run()
    assert same_weights(plain.network.state_dict(), ours.network.state_dict())
    weighted = make_training(1.0)[0]
    weighted.run()
    assert not same_weights(plain.network.state_dict(), weighted.network.state_dict())


def test_a_run_without_an_average_is_refused():
    trainer, evaluator, _ = make_training(1.0)
    evaluator.network = trainer.network
    with pytest.raises(TomokitError, match=r"of which none is kept; set weight_averaging above 0, such as 0.99"):
        trainer.run()


@pytest.mark.parametrize(("weight", "ramp_up"), [(-1.0, 0.3), (1.0, 1.5), (1.0, -0.1)])
def test_an_impossible_weight_or_ramp_is_refused(weight, ramp_up):
    with pytest.raises(TomokitError, match=f"its ramp from 0 to 1; got {weight} and {ramp_up}"):
        MeanTeacher(None, None, None, weight, ramp_up)


def test_the_weight_rises_as_it_should():
    assert ramp(0, 10) == pytest.approx(math.exp(-5)) and ramp(5, 10) == pytest.approx(math.exp(-1.25))
    assert ramp(10, 10) == ramp(11, 10) == ramp(3, 0) == 1


def draw(epochs, count, seed=0):
    """Return the crops that a new teacher draws in each of the epochs, as numbers of their cases and values."""
    images = torch.arange(6 * 64, dtype=torch.float32).view(6, 1, 4, 4, 4)
    items = [{"image": image} for image in images]
    data = Dataset(items, Compose([RandSpatialCropd("image", [2, 2, 2], random_size=False)]))
    loader = DataLoader(data, batch_size=2, sampler=make_sampler(data, seed))
    teacher = MeanTeacher(None, loader, dict, seed=seed)
    return {epoch: torch.cat([plain(teacher.draw(epoch)["image"]) for _ in range(count)]) for epoch in epochs}


def test_what_is_drawn_follows_from_the_seed_and_the_epoch():
    whole, resumed = draw([1, 2, 3], 4), draw([3], 4)
    assert torch.equal(whole[3], resumed[3])
    assert not torch.equal(whole[1], whole[2]) and not torch.equal(whole[3], draw([3], 4, seed=1)[3])
    cases = (whole[1].flatten(1)[:, 0] // 64).int().tolist()
    assert sorted(cases[:6]) == list(range(6)) and cases[6:] == cases[:2]  # each once, then from the start


class Joined(nn.Module):
    """A network of an image and a record."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, image, record):
        return self.fc(record) + image.flatten(1).mean(1, keepdim=True)


def test_a_teacher_takes_further_inputs():
    items = [{"image": torch.rand(1, 2, 2, 2), "record": torch.rand(3), "label": i % 2} for i in range(4)]
    loader = DataLoader(Dataset(items), batch_size=2, shuffle=True)
    network = Joined()
    evaluator = SupervisedEvaluator(device=CPU, val_data_loader=loader, network=Joined())
    teacher = MeanTeacher(evaluator, loader, dict, inputs=["record"])
    trainer = SupervisedTrainer(
        device=CPU,
        max_epochs=1,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.1),
        loss_function=nn.CrossEntropyLoss(),
        prepare_batch=PrepareBatch(extra=["record"]),
        train_handlers=[teacher],
        decollate=False,
    )
    trainer.run()
    assert trainer.state.iteration == 2


def test_the_leading_head_is_compared():
    first, second = torch.rand(2, 3, 4, 4, 4), torch.rand(2, 3, 2, 2, 2)
    assert leading_head([first, second], 5) is first and leading_head(first, 5) is first
    stack = torch.rand(2, 4, 3, 4, 4, 4)
    assert torch.equal(leading_head(stack, 5), stack[:, 0])
    classes = torch.rand(2, 3)
    assert leading_head(classes, 5) is classes


@pytest.mark.parametrize(
    ("channels", "sigmoid", "expected"),
    [(2, False, 0.5), (2, True, 1 / (1 + math.exp(-3))), (1, True, 1 / (1 + math.exp(-3))), (1, False, 3.0)],
)
def test_probabilities_are_compared_or_a_value_as_it_is(channels, sigmoid, expected):
    network = nn.Conv3d(1, channels, 1)
    nn.init.zeros_(network.weight)
    nn.init.constant_(network.bias, 3.0)
    teacher = MeanTeacher(None, None, dict, sigmoid=sigmoid)
    found = teacher.chances(make_training(1.0)[0], network, torch.zeros(2, 1, 2, 2, 2)).detach()
    torch.testing.assert_close(found, torch.full((2, channels, 2, 2, 2), expected))


def test_images_alone_tell_nothing_of_labels():
    entry = {"case": "a", "patient": "p", "image": "a.nii", "label": 1, "labelled": [1], "clinical": {}}
    assert images_alone([entry, entry | {"mask": "m.nii"}]) == [
        {"case": "a", "patient": "p", "image": "a.nii"},
        {"case": "a", "patient": "p", "image": "a.nii", "mask": "m.nii"},
    ]


# The comparison


@pytest.mark.parametrize(
    ("low", "high", "lower_is_better", "verdict"),
    [
        (0.01, 0.2, False, "helped"),
        (-0.2, -0.01, False, "hurt"),
        (0.01, 0.2, True, "hurt"),
        (-0.2, -0.01, True, "helped"),
        (-0.1, 0.2, False, "no difference shown"),
        (None, None, False, "no difference shown"),
    ],
)
def test_the_interval_decides(low, high, lower_is_better, verdict):
    assert judge(low, high, lower_is_better) == verdict


def make_run(folder, state, cases=None):
    """Write what is read of a trained run."""
    save(state, folder / "checkpoints" / "best.pt")
    (folder / "configs").mkdir()
    (folder / "configs" / "train.yaml").write_text(json.dumps({"cases": cases or {}}))
    (folder / "validation.json").write_text("{}")
    return folder


def make_classifier(labels):
    """Return MONAI's evaluator of a linear network on images with these labels."""
    images = torch.randn(len(labels), 1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    items = [
        {"case": f"c{i}", "patient": f"p{i}", "image": image, "label": label}
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
    loader = DataLoader(Dataset(items), batch_size=8)
    return SupervisedEvaluator(device=CPU, val_data_loader=loader, network=network, inferer=SimpleInferer())


def linear(sign, width=8):
    """Return the weights of a network that adds its inputs up, with a sign for the second class or the value."""
    rows = torch.stack([-torch.ones(width), torch.ones(width)]) * sign
    return {"1.weight": rows, "1.bias": torch.zeros(2)}


@pytest.mark.parametrize(("ours", "verdict"), [(1, "helped"), (-1, "hurt")])
def test_a_run_is_compared_with_the_supervised_one_on_the_validation_cases(ours, verdict, tmp_path, caplog):
    images = torch.randn(40, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = [int(image.sum() > 0) for image in images]
    evaluator = make_classifier(labels)
    run, baseline = make_run(tmp_path / "run", linear(ours)), make_run(tmp_path / "baseline", linear(-ours))
    with caplog.at_level(logging.INFO):
        found = compare_classification(evaluator, run, baseline)
    assert found["verdict"] == verdict and found["metric"] == "AUC" and found["n"] == 40
    assert (found["value"], found["baseline"], found["difference"]) == ((ours + 1) / 2, (1 - ours) / 2, ours)
    assert json.loads((run / "validation.json").read_text()) == {"comparison": found}
    assert same_weights(evaluator.network.state_dict(), linear(ours))  # it ends with the run's own
    assert f"40 patients: {verdict}" in caplog.text
    assert caplog.records[-1].levelname == ("INFO" if verdict == "helped" else "WARNING")


def test_equal_runs_show_no_difference(tmp_path):
    evaluator = make_classifier([i % 2 for i in range(12)])
    run, baseline = make_run(tmp_path / "run", linear(1)), make_run(tmp_path / "baseline", linear(1))
    found = compare_classification(evaluator, run, baseline)
    assert found["difference"] == 0 and found["verdict"] == "no difference shown"


def test_labels_and_values_are_compared_too(tmp_path):
    labels = [torch.tensor([i % 2, i // 2 % 2]).float() for i in range(20)]
    evaluator = make_classifier(labels)
    run, baseline = make_run(tmp_path / "run", linear(1)), make_run(tmp_path / "baseline", linear(-1))
    found = compare_classification(evaluator, run, baseline, "labels")
    assert found["metric"] == "mean AUC" and found["value"] == pytest.approx(1 - found["baseline"])
    images = torch.randn(20, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    evaluator = make_classifier([image.sum()[None] for image in images])
    evaluator.network = nn.Sequential(nn.Flatten(), nn.Linear(8, 1))
    states = [{"1.weight": sign * torch.ones(1, 8), "1.bias": torch.zeros(1)} for sign in (1, -1)]
    run, baseline = (make_run(tmp_path / name, state) for name, state in zip("ab", states, strict=True))
    found = compare_classification(evaluator, run, baseline, "value")
    assert found["metric"] == "mean squared error" and found["verdict"] == "helped"
    assert found["value"] == pytest.approx(0, abs=1e-8) and found["difference"] == pytest.approx(-found["baseline"])


def test_a_segmentation_is_compared_case_by_case(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 1, 4, 4, 4, generator=generator)
    items = [{"patient": f"p{i}", "image": image, "label": (image > 0).float()} for i, image in enumerate(images)]
    items[5]["label"] = torch.zeros(1, 4, 4, 4)
    items[5]["image"] = -torch.ones(1, 4, 4, 4)  # nothing there, and nothing found: no Dice
    network = nn.Conv3d(1, 2, 1)
    loader = DataLoader(Dataset(items), batch_size=1)
    evaluator = SupervisedEvaluator(device=CPU, val_data_loader=loader, network=network, inferer=SimpleInferer())

    def state(sign):
        return {"weight": sign * torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1, 1), "bias": torch.zeros(2)}

    run, baseline = make_run(tmp_path / "run", state(1)), make_run(tmp_path / "baseline", state(-1))
    labels = {"0": "background", "1": "a"}
    found = compare_segmentation(evaluator, AsDiscreted("pred", argmax=True), run, baseline, labels)
    assert (found["value"], found["baseline"], found["difference"], found["n"]) == (1, 0, 1, 5)
    assert found["verdict"] == "helped" and found["metric"] == "mean Dice"


def test_without_validation_cases_or_best_weights_nothing_is_compared(tmp_path, caplog):
    evaluator = make_classifier([0, 1])
    run, baseline = make_run(tmp_path / "run", linear(1)), make_run(tmp_path / "baseline", linear(1))
    (run / "checkpoints" / "best.pt").unlink()
    assert compare_classification(evaluator, run, baseline) is None
    assert json.loads((run / "validation.json").read_text()) == {}
    with caplog.at_level(logging.INFO):
        check_baseline(tmp_path / "none", {"training": [], "validation": [], "test": []}, evaluator.network)
    assert "no validation cases" in caplog.text


def test_a_baseline_that_can_not_be_compared_with_is_refused_before_the_training(tmp_path):
    cases = make_cases()
    names = {part: [entry["case"] for entry in own] for part, own in cases.items()}
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
    check_baseline(make_run(tmp_path / "good", linear(1), names), cases, network)
    with pytest.raises(TomokitError, match=r"no supervised run in .*none to compare with"):
        check_baseline(tmp_path / "none", cases, network)
    other = make_run(tmp_path / "other", linear(1), names | {"training": ["d0", "d1", "d9"]})
    with pytest.raises(TomokitError, match="it has 3 training cases, others than the 2 of this training"):
        check_baseline(other, cases, network)
    wide = make_run(tmp_path / "wide", linear(1, width=9), names)
    with pytest.raises(TomokitError, match="its network is another one"):
        check_baseline(wide, cases, network)


# Real runs

FEW = (layer("few_labels"),)


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> dict:
    """Return the options of a small classification with 6 of 15 labels, and its supervised run."""
    folder = tmp_path_factory.mktemp("data") / "set"
    phantoms.make_classification_set(folder, cases=26, test_cases=6, size=16, progress=False)
    (folder / "splits.json").unlink()
    options = {"dataset_dir": str(folder), "image_size": [16, 16, 16], "label_count": 6}
    run = train("classification", tmp_path_factory.mktemp("runs") / "supervised", files=FEW, **options)
    return {"options": options, "run": run}


@pytest.fixture(scope="module")
def organs(tmp_path_factory) -> dict:
    """Return the options of a small segmentation with 3 of 5 labels, and its supervised run, sure of liver anywhere."""
    folder = tmp_path_factory.mktemp("data") / "set"
    phantoms.make_segmentation_set(folder, cases=8, test_cases=2, size=32, progress=False)
    small = {"patch_size": [16, 16, 16], "network_def": SMALL_UNET, "label_count": 3}
    options = {"dataset_dir": str(folder)} | small
    run = train("segmentation", tmp_path_factory.mktemp("runs") / "supervised", files=FEW, **options)
    state = weights(run, "best")
    state["output_block.conv.conv.bias"] = torch.tensor([0.0, 50.0, 0.0, 0.0])
    save(state, run / "checkpoints" / "best.pt")
    return {"options": options, "run": run, "folder": folder}


def steps_of(run: Path) -> int:
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)["iteration"]


def test_a_classifier_trains_on_its_teachers_labels(classes, tmp_path):
    assert steps_of(classes["run"]) == 2 * 6 // 2
    follow("classification", classes["run"], "pseudo_label", confidence=0.5)
    content = json.loads((classes["run"] / "pseudo_labels" / "pseudo_labels.json").read_text())
    assert len(content["cases"]) == content["candidates"] == 9  # one of two classes is likelier than half
    options = classes["options"] | {"teacher": str(classes["run"])}
    run = train("classification", tmp_path / "run", "modes/self_training", files=FEW, **options)
    assert steps_of(run) == 2 * (15 // 2)
    record = json.loads((run / "validation.json").read_text())["comparison"]
    assert record["run"] == str(classes["run"]) and record["metric"] == "AUC" and record["n"] == 5
    follow("classification", run, "evaluate", rival=False, feature_models=[])
    assert json.loads((run / "metrics.json").read_text())["task"] == "classification"


def stop_here(*_):
    raise RuntimeError("stopped")


def test_a_mean_teacher_goes_on_as_if_it_had_not_been_stopped(classes, tmp_path, monkeypatch):
    options = classes["options"] | {"baseline": str(classes["run"])}
    whole = train("classification", tmp_path / "whole", "modes/mean_teacher", files=FEW, **options)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("tomokit.engines.training.write_json", stop_here)  # after the first epoch's checkpoint
        with pytest.raises(RuntimeError):
            train("classification", run, "modes/mean_teacher", files=FEW, **options)
    train("classification", run, "modes/mean_teacher", files=FEW, **options, resume=True)
    assert same_weights(weights(whole), weights(run)) and same_weights(weights(whole, "best"), weights(run, "best"))
    assert not same_weights(weights(whole), weights(classes["run"]))
    records = [json.loads((own / "validation.json").read_text()) for own in (whole, run)]
    assert records[0]["comparison"] == records[1]["comparison"] and records[0]["comparison"]["metric"] == "AUC"


def test_a_run_that_can_not_be_compared_is_not_begun(classes, tmp_path):
    options = classes["options"] | {"baseline": str(tmp_path / "none")}
    with pytest.raises(RuntimeError) as caught:
        train("classification", tmp_path / "run", "modes/mean_teacher", files=FEW, **options)
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, TomokitError):
        error = error.__cause__ or error.__context__
    assert "no supervised run in" in str(error)
    assert not (tmp_path / "run").exists()  # nor would an earlier run have been moved aside


def test_a_segmentation_trains_on_its_teachers_certain_voxels(organs, tmp_path):
    follow("segmentation", organs["run"], "pseudo_label", confidence=0.99)
    content = json.loads((organs["run"] / "pseudo_labels" / "pseudo_labels.json").read_text())
    assert content["kind"] == "segmentation" and len(content["cases"]) == content["candidates"] == 2
    for row in content["cases"]:
        found = nibabel.load(organs["run"] / "pseudo_labels" / row["label"])
        source = nibabel.load(organs["folder"] / "imagesTr" / row["label"])
        assert found.shape == source.shape and np.array_equal(found.affine, source.affine)
        assert set(np.unique(np.asarray(found.dataobj))) == {1}
    options = organs["options"] | {"teacher": str(organs["run"])}
    run = train("segmentation", tmp_path / "run", "modes/self_training", files=FEW, **options)
    assert steps_of(run) == 2 * (5 // 2)
    assert json.loads((run / "validation.json").read_text())["comparison"]["metric"] == "mean Dice"
    follow("segmentation", run, "evaluate", rival=False)


def test_a_segmentation_trains_with_a_mean_teacher(organs, tmp_path):
    options = organs["options"] | {"baseline": str(organs["run"])}
    run = train("segmentation", tmp_path / "run", "modes/mean_teacher", files=FEW, **options)
    assert steps_of(run) == 2 * (3 // 2)
    assert json.loads((run / "validation.json").read_text())["comparison"]["run"] == str(organs["run"])
    follow("segmentation", run, "evaluate", rival=False)
