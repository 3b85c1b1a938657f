import csv
import itertools
import json
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.special
import torch
from bundle_runs import SMALL_UNET, follow, layer, same_weights, train, weights
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer
from monai.networks.nets import DynUNet, ResNet
from monai.optimizers import WarmupCosineSchedule
from set_files import make_items, write_set
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from tomokit import phantoms
from tomokit.datasets import select_cases, select_unlabelled
from tomokit.engines.checkpoints import load
from tomokit.errors import TomokitError
from tomokit.finetuning import UnfreezeAt, inflate, load_pretrained, rate_groups
from tomokit.optimizers import Muon
from tomokit.readout import STRENGTHS, Table, choose_read_out, fit_read_out, fit_regression, last_linear
from tomokit.splits import limit_cases

WIDTHS = (4, 4, 8, 8)


def resnet(dims=3, channels=1, seed=0, **options) -> nn.Module:
    torch.manual_seed(seed)
    given = {"num_classes": 2, "bias_downsample": False, "conv1_t_stride": 2}
    return ResNet("basic", [1, 1, 1, 1], WIDTHS, spatial_dims=dims, n_input_channels=channels, **(given | options))


# Inflation


def write_torchvision_resnet(path):
    """Write a small file in the form of torchvision's resnet18, a block in each stage, and return its tensors."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        return torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5

    def norm(name, width):
        numbers = {key: draw(width) / 10 for key in ("bias", "running_mean")}
        numbers |= {key: 1 + draw(width).abs() for key in ("weight", "running_var")}
        state = {f"{name}.{key}": value for key, value in numbers.items()}
        return state | {f"{name}.num_batches_tracked": torch.tensor(7)}

    state = {"conv1.weight": draw(WIDTHS[0], 3, 7, 7), **norm("bn1", WIDTHS[0])}
    for stage, (before, width) in enumerate(zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False), start=1):
        block = f"layer{stage}.0"
        state |= {f"{block}.conv1.weight": draw(width, before, 3, 3), **norm(f"{block}.bn1", width)}
        state |= {f"{block}.conv2.weight": draw(width, width, 3, 3), **norm(f"{block}.bn2", width)}
        if stage > 1:
            state |= {f"{block}.downsample.0.weight": draw(width, before, 1, 1), **norm(f"{block}.downsample.1", width)}
    state |= {"fc.weight": draw(1000, WIDTHS[-1]), "fc.bias": draw(1000)}
    torch.save(state, path)
    return state


def features_of(network, image):
    """Return the features before the head; the edges of the image are joined, since zeros would not be its slices."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.kernel_size[0] > 1:
            module.padding_mode = "circular"
    network.fc = None
    with torch.no_grad():
        return network.eval()(image)


@pytest.mark.parametrize("channels", [3, 1])
def test_an_inflated_network_gives_a_volume_of_equal_slices_the_features_of_the_slice(channels, tmp_path, caplog):
    state = write_torchvision_resnet(tmp_path / "resnet.pth")
    flat = resnet(2, 3, num_classes=1000)
    flat.load_state_dict(state)  # the names are torchvision's, all of them
    with caplog.at_level(logging.INFO):
        solid = load_pretrained(resnet(3, channels), tmp_path / "resnet.pth")
    kernels = sum(value.ndim == 4 for value in state.values())
    assert f"{kernels} 2D kernels were inflated to 3D" in caplog.text
    assert "fc.weight (1000, 8) for (2, 8)" in caplog.text
    image = torch.rand(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = features_of(flat, image.expand(2, 3, 32, 32))
    found = features_of(solid, image[..., None].expand(2, channels, 32, 32, 32))
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_kernel_is_shared_out_over_its_depth():
    shapes = {"a": (2, 3, 5, 5), "b": (2, 3, 5, 5), "c": (4, 2), "d": (1, 1, 3, 3)}
    flat = {name: torch.rand(shape) for name, shape in shapes.items()}
    own = {"a": torch.zeros(2, 3, 5, 5, 3), "b": torch.zeros(2, 3, 7, 7, 7), "c": torch.zeros(4, 2)}
    found = inflate(flat, own)
    assert found["a"].shape == (2, 3, 5, 5, 3)
    torch.testing.assert_close(found["a"].sum(-1), flat["a"])
    assert torch.equal(found["a"][..., 0], found["a"][..., 2])
    assert all(found[key] is flat[key] for key in "bcd")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shortcut_type": "A"}, r"layer2\.0\.downsample\.0\.weight is in the file alone; `shortcut_type: B`"),
        ({"bias_downsample": True}, r"layer2\.0\.downsample\.0\.bias is in the network alone"),
    ],
)
def test_shortcuts_of_another_kind_are_refused(options, message, tmp_path):
    write_torchvision_resnet(tmp_path / "resnet.pth")
    with pytest.raises(TomokitError, match=message):
        load_pretrained(resnet(3, **options), tmp_path / "resnet.pth")


# Rates by depth


def test_the_earlier_a_layer_the_lower_its_rate():
    network = resnet()
    groups = rate_groups(network, 0.01, factor=0.5, groups=3)
    assert [group["lr"] for group in groups] == pytest.approx([0.01, 0.005, 0.0025, 0.00125])
    name_of = {id(parameter): name for name, parameter in network.named_parameters()}
    names = [[name_of[id(parameter)] for parameter in group["params"]] for group in groups]
    assert names[0] == ["fc.weight", "fc.bias"]
    first = [name for name in names[3] if "conv" in name]  # a third of the twelve kernels
    assert first == ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight", "layer2.0.conv1.weight"]
    assert names[3] + names[2] + names[1] + names[0] == [name for name, _ in network.named_parameters()]
    assert [group["lr"] for group in rate_groups(network, 0.01, 1.0, 1)] == [0.01, 0.01]


def test_more_groups_than_kernels_leave_some_out():
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Conv3d(2, 2, 1))
    groups = rate_groups(network, 1.0, 0.5, 3)
    assert [len(group["params"]) for group in groups] == [2, 2]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, Muon])
def test_an_optimizer_steps_each_group_at_its_rate(kind):
    network = resnet()
    optimizer = kind(rate_groups(network, 0.01), lr=0.5, weight_decay=0.0)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name: (before[name] - parameter).detach() for name, parameter in network.named_parameters()}
    rates = {"bn1.bias": 0.00125, "layer2.0.bn2.bias": 0.0025, "layer4.0.bn2.bias": 0.005, "fc.bias": 0.01}
    for name, rate in rates.items():
        torch.testing.assert_close(moved[name], torch.full_like(moved[name], rate), rtol=1e-3, atol=0)


def test_a_schedule_and_a_late_thaw_change_all_rates_alike():
    network = resnet()
    optimizer = torch.optim.AdamW(rate_groups(network, 0.01))
    schedule = WarmupCosineSchedule(optimizer, 1, 8)
    rates = []

    def step(_, __):
        optimizer.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
        schedule.step()

    engine = Engine(step)
    engine.network = network
    UnfreezeAt(2, schedule, factor=0.1).attach(engine)
    engine.run([0, 1], max_epochs=4)
    assert all(own == pytest.approx([own[0] * part for part in (1, 0.5, 0.25, 0.125)]) for own in rates)
    assert rates[1][0] == 0.01 and rates[4][0] < 0.001 < rates[3][0]
    state = optimizer.state_dict()
    again = torch.optim.AdamW(rate_groups(resnet(), 0.01))
    again.load_state_dict(state)
    assert [group["lr"] for group in again.param_groups] == [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize(("factor", "groups"), [(0.0, 3), (1.5, 3), (0.5, 0)])
def test_impossible_rates_are_refused(factor, groups):
    with pytest.raises(TomokitError, match=f"groups 1 or more; got {factor} and {groups}"):
        rate_groups(resnet(), 0.01, factor, groups)


# Few labels


def make_entries(label):
    return [{"case": f"c{i:03d}", "patient": f"p{i}", "label": label(i)} for i in range(100)]


LABELS = {
    "classes": lambda i: int(i % 5 == 0),
    "lists": lambda i: [i % 2, i // 2 % 2],
    "values": lambda i: i + 0.5,
    "files": lambda i: f"labelsTr/c{i:03d}.nii.gz",
}


@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)
def test_fewer_labels_are_among_more(label):
    entries = make_entries(label)
    drawn = [limit_cases(entries, count, 0) for count in (2, 10, 20, 40, 100)]
    assert [len(own) for own in drawn] == [2, 10, 20, 40, 100] == [len(set(own)) for own in drawn]
    assert all(less == more[: len(less)] for less, more in itertools.pairwise(drawn))
    assert limit_cases(entries[::-1], 10, 0) == drawn[1] != limit_cases(entries, 10, 1)
    assert limit_cases(entries, 0.2, 0) == drawn[2] and len(limit_cases(entries, 0.001, 0)) == 1


@pytest.mark.parametrize("seed", range(5))
def test_few_labels_are_stratified(seed):
    classes = {entry["case"]: entry["label"] for entry in make_entries(LABELS["classes"])}
    for count, share in ((2, 1), (10, 2), (20, 4), (40, 8)):
        found = sum(classes[name] for name in limit_cases(make_entries(LABELS["classes"]), count, seed))
        assert abs(found - share) <= 1 and found >= 1  # one of each class comes first
    values = [int(name[1:]) for name in limit_cases(make_entries(LABELS["values"]), 10, seed)]
    assert sorted(value // 10 for value in values) == list(range(10))


@pytest.mark.parametrize("limit", [0, 101, 2.5, -0.1, True, "10", math.nan, None])
def test_an_impossible_number_of_labels_is_refused(limit):
    with pytest.raises(TomokitError, match=rf"whole number from 1 to 100.*got {limit!r}"):
        limit_cases(make_entries(LABELS["classes"]), limit, 0)


def make_set(folder, more=()):
    items = [{"image": f"c{i:02d}.nii.gz", "label": i % 2, "patient": f"p{i}"} for i in range(40)]
    return write_set(folder, [*items, *more])


def names(entries):
    return [entry["case"] for entry in entries]


def test_a_limit_leaves_the_other_parts_and_the_lists_of_a_run_alone(tmp_path):
    folder = make_set(tmp_path)
    whole, few = select_cases(folder, "splits.json", 0), select_cases(folder, "splits.json", 0, limit=10)
    assert len(few["training"]) == 10 and set(names(few["training"])) < set(names(whole["training"]))
    assert sum(entry["label"] for entry in few["training"]) == 5
    assert few["validation"] == whole["validation"] and few["test"] == whole["test"]
    lists = {part: names(few[part]) for part in few}
    assert select_cases(folder, "splits.json", 0, **lists, limit=0.5) == few  # drawn already
    joined = select_cases(folder, "splits.json", 0, limit=10, join_validation=True)
    assert names(joined["training"]) == [*names(few["training"]), *names(whole["validation"])]


def test_the_rest_is_unlabelled_and_no_label_is_seen(tmp_path):
    whole = select_cases(make_set(tmp_path), "splits.json", 0)
    patient = whole["test"][0]["patient"]
    more = [{"image": "u.nii.gz", "mask": "m.nii.gz"}, {"image": "v.nii.gz", "patient": patient}]
    folder = make_set(tmp_path, more)  # entries without a label; the second one of a test patient
    few = select_cases(folder, "splits.json", 0, limit=10)
    found = select_unlabelled(folder, "splits.json", 0, 0, few)
    assert set(names(found)) == (set(names(whole["training"])) - set(names(few["training"]))) | {"u"}
    assert all(set(entry) <= {"case", "patient", "image", "mask"} for entry in found)
    assert found[-1]["mask"] == str(tmp_path / "m.nii.gz")
    lists = {part: names(few[part]) for part in few}
    again = select_cases(folder, "splits.json", 0, **lists, limit=10)
    assert select_unlabelled(folder, "splits.json", 0, 0, again) == found


def test_without_unlabelled_cases_it_says_where_they_come_from(tmp_path):
    folder = write_set(tmp_path, make_items(10))
    cases = select_cases(folder, "splits.json", 0)
    with pytest.raises(TomokitError, match=r"no unlabelled case.*all 6 training cases.*label_count"):
        select_unlabelled(folder, "splits.json", 0, 0, cases)


# Read-out


def make_table(classes, cases=60, seed=0):
    generator = np.random.default_rng(seed)
    truth = np.arange(cases) % classes
    features = generator.normal(size=(cases, 5)) * [1, 10, 0.1, 1, 1] + truth[:, None] * [1, 0, 0.1, 0, 0]
    return Table(features, truth)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_layer_says_what_the_regression_says(classes):
    table, others = make_table(classes), make_table(classes, seed=1)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000)).fit(table.features, table.classes)
    found = fit_regression(table, 0.1)
    assert found.weights.shape == (classes, 5) and found.biases.shape == (classes,)
    chances = scipy.special.softmax(found.logits(others.features), axis=1)
    np.testing.assert_allclose(chances, model.predict_proba(others.features), atol=1e-6)


def test_the_penalty_is_that_of_the_least_validation_loss():
    training, validation = make_table(2, 40), make_table(2, 40, seed=1)

    def loss(found):
        chances = scipy.special.softmax(found.logits(validation.features), axis=1)
        return -np.log(chances[np.arange(40), validation.classes]).mean()

    best = choose_read_out(training, validation, ["a", "b"])
    assert loss(best) == min(loss(fit_regression(training, strength)) for strength in STRENGTHS)
    assert choose_read_out(training, None, ["a", "b"]).strength == 1.0
    with pytest.raises(TomokitError, match="no training case is of class c, so it can't be read out; give"):
        choose_read_out(training, validation, ["a", "b", "c"])


def make_reader(count, held):
    """Return a trainer's loader and MONAI's evaluator of one network on images whose brightness is their class."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count + held, 1, 16, 16, 16, generator=generator)
    classes = [number % 2 for number in range(count + held)]
    items = [{"image": image + 4 * own, "label": own} for image, own in zip(images, classes, strict=True)]
    loader = DataLoader(Dataset(items[count:]), batch_size=4)
    network = resnet(seed=1)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=loader, network=network, inferer=SimpleInferer()
    )
    return SimpleNamespace(data_loader=DataLoader(Dataset(items[:count]), batch_size=3)), evaluator


def test_a_network_becomes_its_own_read_out(tmp_path):
    trainer, evaluator = make_reader(14, 9)
    network = evaluator.network
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = fit_read_out(trainer, evaluator, tmp_path, {"1": "bright", "0": "dark"})
    changed = [key for key, value in network.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == ["fc.weight", "fc.bias"]
    assert same_weights(load(tmp_path / "checkpoints" / "best.pt"), network.state_dict())
    assert not network.fc._forward_pre_hooks and evaluator.data_loader.batch_size == 4
    image = torch.stack([item["image"] for item in evaluator.data_loader.dataset])
    head, network.fc = network.fc, None
    with torch.no_grad():
        features = network.eval()(image)
        logits = head(features).double().numpy()
    np.testing.assert_allclose(logits, found.logits(features.double().numpy()), rtol=1e-3, atol=1e-2)
    record = json.loads((tmp_path / "validation.json").read_text())
    assert record["best"] == {"epoch": 0, "metric": 1.0} and record["metric"] == "val_auc"
    assert (record["cases"], record["features"], record["strength"]) == (14, 8, found.strength)


def test_without_validation_cases_the_penalty_is_not_chosen(tmp_path):
    trainer, evaluator = make_reader(8, 0)
    assert fit_read_out(trainer, evaluator, tmp_path, {"0": "dark", "1": "bright"}).strength == 1.0
    assert json.loads((tmp_path / "validation.json").read_text())["best"] is None
    with pytest.raises(TomokitError, match="reads out classes, got the task 'labels'"):
        fit_read_out(trainer, evaluator, tmp_path, {"0": "dark", "1": "bright"}, task="labels")


def test_a_head_without_a_linear_layer_can_not_be_read_out():
    network = DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2] * 2, [4, 8, 8])
    with pytest.raises(TomokitError, match="DynUNet has no linear layer in its head output_block"):
        last_linear(network)


# Real runs


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> str:
    """Return the folder of a small set of classes: 15 training, 5 validation and 6 test cases."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    phantoms.make_classification_set(folder, cases=26, test_cases=6, size=16, progress=False)
    (folder / "splits.json").unlink()
    return str(folder)


@pytest.fixture(scope="module")
def earlier(shapes, tmp_path_factory):
    return train("classification", tmp_path_factory.mktemp("runs") / "earlier", **small(shapes))


def small(folder) -> dict:
    return {"dataset_dir": folder, "image_size": [16, 16, 16]}


def read_table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_bundle_reads_out_a_pretrained_network_and_every_stage_follows(shapes, earlier, tmp_path):
    run = train("classification", tmp_path / "run", "modes/read_out", pretrained=str(earlier), **small(shapes))
    before, after = weights(earlier, "best"), weights(run, "best")
    assert [key for key in before if not torch.equal(before[key], after[key])] == ["fc.1.weight", "fc.1.bias"]
    assert json.loads((run / "decision.json").read_text())["task"] == "classes"
    assert json.loads((run / "validation.json").read_text())["cases"] == 15
    follow("classification", run, "evaluate", rival=False, feature_models=[])
    follow("classification", run, "inference")
    assert json.loads((run / "metrics.json").read_text())["checkpoint"] == "best.pt, epoch 0"
    scored, answers = read_table(run / "cases.csv"), read_table(run / "inference" / "classes.csv")
    assert [row["p_elongated"] for row in scored] == [row["p_elongated"] for row in answers]


def stop_here(*_):
    raise RuntimeError("stopped")


def test_a_classifier_trains_its_head_then_everything(shapes, earlier, tmp_path, monkeypatch):
    options = small(shapes) | {"pretrained": str(earlier), "head_epochs": 1, "weight_averaging": 0}
    files, run = (layer("finetune_head_then_all"),), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("tomokit.engines.training.write_json", stop_here)  # after the first epoch's checkpoint
        with pytest.raises(RuntimeError):
            train("classification", run, files=files, **options)
    before, first = weights(earlier, "best"), weights(run)
    assert [key for key in first if not torch.equal(first[key], before[key])] == ["fc.1.weight", "fc.1.bias"]
    train("classification", run, files=files, **options, resume=True)
    second = weights(run)
    assert not any(torch.equal(second[key], first[key]) for key in second if "num_batches" not in key)


def test_a_bundle_learns_from_few_labels_more_slowly_in_early_layers(shapes, earlier, tmp_path):
    files = (layer("finetune"), layer("layer_rates"), layer("few_labels"))
    options = small(shapes) | {"pretrained": str(earlier), "label_count": 4}
    run = train("classification", tmp_path / "run", files=files, **options)
    content = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    tenth = 0.004 / 10  # of the bundle's rate
    assert content["lr_scheduler"]["base_lrs"] == pytest.approx([tenth, tenth / 2, tenth / 4, tenth / 8])
    assert content["iteration"] == 2 * 4 // 2
    environment = json.loads((run / "environment.json").read_text())
    assert environment["cases"] == {"training": 4, "validation": 5, "test": 6}
    train("classification", run, files=files, **options, resume=True)  # the same draw again: nothing is left to do
    follow("classification", run, "evaluate", rival=False, feature_models=[])


def test_a_segmentation_takes_rates_by_depth(tmp_path):
    phantoms.make_segmentation_set(tmp_path / "data", cases=5, test_cases=1, size=32, progress=False)
    options = {"dataset_dir": str(tmp_path / "data"), "patch_size": [16, 16, 16], "network_def": SMALL_UNET}
    run = train("segmentation", tmp_path / "run", files=(layer("layer_rates"),), **options, epochs=1)
    content = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    assert content["lr_scheduler"]["base_lrs"] == pytest.approx([0.01, 0.005, 0.0025, 0.00125])
    assert [len(group["params"]) > 0 for group in content["optimizer"]["param_groups"]] == [True] * 4
