"""What is told of slices: tables, scores and pictures, the price of a random order, and real runs of the bundle."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from bundle_runs import follow, train
from matplotlib.image import imread
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer
from monai.transforms import Activationsd, Compose
from sklearn.metrics import roc_auc_score
from torch import nn

from tomokit import phantoms
from tomokit.decisions import Calibratedd
from tomokit.engines import (
    PrepareBatch,
    attach_class_table,
    attach_classification_scores,
    attach_shuffled_scores,
    attach_slice_scores,
    attach_slice_table,
)
from tomokit.engines.checkpoints import save
from tomokit.engines.predicting import predict_cases
from tomokit.engines.sequences import find_hits, permute_slices, slice_positions, slice_rows, summarise_slices
from tomokit.engines.slice_pictures import draw_slices, pick_volumes
from tomokit.errors import TomokitError
from tomokit.losses import SequenceLoss
from tomokit.networks import WholeVolume
from tomokit.sequences import SplitWindowsd, check_sequences, collate_sequences, count_slices

LABELS = {"1": "bleed", "0": "nothing"}
NAMES = ["nothing", "bleed"]


def rows_of(case, chances, truth=None, patient=None):
    """Return the rows of a volume's slices with these probabilities of a bleed, and their true classes."""
    rows = [
        {"case": case, "patient": patient or case, "slice": number, "p_nothing": 1 - chance, "p_bleed": chance}
        for number, chance in enumerate(chances)
    ]
    return rows if truth is None else [row | {"truth": NAMES[own]} for row, own in zip(rows, truth, strict=True)]


def read_table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Rows


def test_a_slice_has_the_probabilities_of_its_window_and_its_place():
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = (7, 8, -20)
    item = {"case": "a", "patient": "p", "image": MetaTensor(torch.zeros(1, 2, 3, 5), affine=affine), "lengths": 5}
    windows = torch.tensor([[0.75, 0.5, 0.125, 0.0], [0.25, 0.5, 0.875, 1.0]])  # the last one is padding
    rows = slice_rows(item, {"pred_windows": windows}, NAMES, stride=2, truth=[-1, 0, 1, 1, 0])
    assert rows[0] == {
        **{"case": "a", "patient": "p", "slice": 0, "position_mm": -20.0, "p_nothing": 0.75, "p_bleed": 0.25}
    }
    assert [row["p_bleed"] for row in rows] == [0.25, 0.25, 0.5, 0.5, 0.875]
    assert [row["position_mm"] for row in rows] == [-20, -17, -14, -11, -8]
    assert [row.get("truth") for row in rows] == [None, "nothing", "bleed", "bleed", "nothing"]


def test_slices_of_a_tilted_volume_lie_where_their_centres_do():
    angle = np.deg2rad(10)
    affine = np.array([[1, 0, 0, 0], [0, np.cos(angle), -np.sin(angle), 0], [0, np.sin(angle), np.cos(angle), 5]])
    image = MetaTensor(torch.zeros(1, 1, 3, 4), affine=np.vstack([affine, [0, 0, 0, 1]]))
    expected = [np.sin(angle) + number * np.cos(angle) + 5 for number in range(4)]
    assert slice_positions(image, -1, 4) == pytest.approx(expected)
    assert slice_positions(torch.zeros(1, 2, 3, 4), 1, 3) == [0, 1, 2]


def test_a_network_that_tells_nothing_of_slices_has_no_rows():
    item = {"case": "a", "image": torch.zeros(1, 2, 2, 3), "lengths": 3}
    assert slice_rows(item, {"pred": torch.zeros(2)}, NAMES) == []


def test_slice_labels_of_another_number_are_refused():
    item = {"case": "a", "image": torch.zeros(1, 2, 2, 3), "lengths": 3}
    with pytest.raises(TomokitError, match="a has 2 slice labels for 3 slices; `spacing` and `image_size` must be -1"):
        slice_rows(item, {"pred_windows": torch.zeros(2, 3)}, NAMES, truth=[0, 1])


# Scores


def test_the_auc_is_that_of_all_slices_together():
    generator = np.random.default_rng(0)
    rows = []
    for number in range(12):
        truth = generator.integers(0, 2, 9)
        rows += rows_of(f"c{number}", generator.random(9) * 0.6 + truth * 0.3, truth)
    scores = summarise_slices(rows, NAMES)
    truth = [row["truth"] == "bleed" for row in rows]
    assert scores["auc"]["mean"] == pytest.approx(roc_auc_score(truth, [row["p_bleed"] for row in rows]))
    low, high = scores["auc"]["ci95"]
    assert low < scores["auc"]["mean"] < high and scores["auc"]["n"] == 12 and scores["auc"]["cases"] == 108


def test_slices_of_unknown_class_are_not_scored():
    rows = [*rows_of("a", [0.1, 0.9, 0.2], [0, 1, 0]), *rows_of("b", [0.99, 0.98])]
    scores = summarise_slices(rows, NAMES)
    assert scores["auc"]["mean"] == 1 and scores["auc"]["cases"] == 3 and scores["auc"]["ci95"] is None
    assert summarise_slices(rows_of("b", [0.5]), NAMES) is None
    nothing = summarise_slices(rows_of("a", [0.1, 0.2], [0, 0]), NAMES)
    assert nothing["auc"]["mean"] is None and nothing["hit"] == {"mean": None, "ci95": None, "n": 0, "cases": 0}


def test_the_most_suspicious_slice_of_a_volume_with_a_finding_shows_it_or_not():
    rows = [*rows_of("a", [0.1, 0.9, 0.2], [0, 1, 0], "p"), *rows_of("b", [0.3, 0.2], [0, 1], "p")]
    rows += rows_of("c", [0.9, 0.8], [0, 0])
    assert find_hits(rows, NAMES) == {("p", "a"): 1.0, ("p", "b"): 0.0}
    scores = summarise_slices(rows, NAMES)
    assert (scores["hit"]["mean"], scores["hit"]["n"], scores["hit"]["cases"]) == (0.5, 1, 2)


def test_of_several_classes_the_mean_auc_is_told():
    names = ["nothing", "old", "new"]
    keys = [f"p_{name}" for name in names]
    generator = np.random.default_rng(1)
    truth, chances = generator.integers(0, 3, 60), generator.dirichlet(np.ones(3), 60)
    rows = [
        {"case": f"c{i // 6}", "patient": f"c{i // 6}", "truth": names[own]} | dict(zip(keys, p, strict=True))
        for i, (own, p) in enumerate(zip(truth, chances, strict=True))
    ]
    expected = roc_auc_score(truth, chances, multi_class="ovr")
    assert summarise_slices(rows, names)["auc"]["mean"] == pytest.approx(expected)


# Pictures


def test_volumes_worth_a_look():
    rows = [row for i, top in enumerate([0.9, 0.2, 0.6, 0.5]) for row in rows_of(f"with{i}", [0.1, top], [0, 1])]
    rows += [row for i, top in enumerate([0.3, 0.7]) for row in rows_of(f"none{i}", [top, 0.1], [0, 0])]
    assert pick_volumes(rows, NAMES) == ["with1", "with3", "with0", "none1"]
    assert pick_volumes(rows_of("a", [0.5], [1]), NAMES) == ["a"]
    unknown = [row for i in range(6) for row in rows_of(f"c{i}", [0.1, i / 10])]
    assert pick_volumes(unknown, NAMES) == ["c5", "c4", "c3", "c2"]
    assert pick_volumes([], NAMES) == []


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_picture_is_written(axis, tmp_path):
    image = MetaTensor(torch.rand(1, 5, 6, 7), affine=np.diag([1.0, 2.0, 3.0, 1.0]))
    count = image.shape[1 + axis]
    rows = rows_of("a", np.linspace(0, 1, count), [0] * (count - 1) + [1])
    draw_slices([(rows, image), (rows_of("b", [0.5] * count), image)], NAMES, tmp_path / "slices.png", axis)
    height, width = imread(tmp_path / "slices.png").shape[:2]
    assert width > 900 and height > 500


def test_a_picture_needs_a_volume(tmp_path):
    with pytest.raises(TomokitError, match=r"no volumes to draw in .*x.png, got an empty list"):
        draw_slices([], NAMES, tmp_path / "x.png")


# The order


def test_slices_are_permuted_within_their_volume():
    image = torch.arange(7.0).expand(3, 2, 4, 5, 7).clone()
    lengths = torch.tensor([7, 4, 1])
    shuffled = permute_slices(image, lengths, -1, torch.Generator().manual_seed(0))
    for own, length in zip(shuffled, lengths.tolist(), strict=True):
        order = own[0, 0, 0]
        assert sorted(order[:length].tolist()) == list(range(length)) and torch.equal(own, order.expand(2, 4, 5, 7))
        assert order[length:].tolist() == list(range(length, 7))
    assert not torch.equal(shuffled[0], image[0])
    again = permute_slices(image, lengths, -1, torch.Generator().manual_seed(0))
    assert torch.equal(again, shuffled)
    along_x = permute_slices(image.movedim(4, 2), lengths, 0, torch.Generator().manual_seed(0))
    assert torch.equal(along_x.movedim(2, 4), shuffled)


# The way through an evaluator


class Reader(nn.Module):
    """Says of a slice how bright it is, and of a volume by how much it darkens from its first slice to its last."""

    def forward(self, image, lengths):
        brightness = image.mean((1, 2, 3))
        last = brightness.gather(1, (lengths - 1)[:, None])[:, 0]
        falls = torch.cat([(brightness[:, 0] - last)[:, None], brightness], 1)
        return 4 * torch.stack([torch.zeros_like(falls), falls], 1)


def make_evaluator(run, count=24):
    """Return an evaluator of volumes that darken (class 1) or brighten along 6 to 9 slices, its cases and its end."""
    save({}, run / "checkpoints" / "best.pt")
    entries, items = [], []
    for number in range(count):
        slices = torch.linspace(-1, 1, 6 + number % 4) * (-1) ** number
        entries.append({"case": f"c{number}", "patient": f"p{number}", "label": int(slices[0] > 0)})
        entries[-1]["slice_labels"] = [int(value > 0.5) if value != 1 else -1 for value in slices]
        image = slices.expand(1, 4, 5, len(slices)).clone()
        items.append({"case": f"c{number}", "patient": f"p{number}", "image": image})
    ending = Compose(
        [
            SplitWindowsd("pred", windows=True),
            Activationsd("pred_windows", softmax=True, allow_missing_keys=True),
            Calibratedd("pred", run),
        ]
    )
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items), batch_size=3, collate_fn=collate_sequences),
        network=Reader(),
        prepare_batch=PrepareBatch(extra=["lengths"]),
        inferer=SimpleInferer(),
        postprocessing=ending,
    )
    return evaluator, {"training": [], "test": entries}, ending


def test_an_evaluation_tells_of_volumes_of_slices_and_of_their_order(tmp_path, capsys):
    evaluator, cases, ending = make_evaluator(tmp_path)
    attach_classification_scores(evaluator, tmp_path, "best", LABELS, cases, False)
    attach_slice_scores(evaluator, tmp_path, LABELS, cases)
    attach_shuffled_scores(evaluator, tmp_path, LABELS, cases, ending, seed=1)
    evaluator.run()
    measures = json.loads((tmp_path / "metrics.json").read_text())
    assert measures["task"] == "classification" and measures["summary"]["auc"]["mean"] == 1
    assert measures["slices"]["auc"]["mean"] == 1 and measures["slices"]["hit"]["mean"] == 1
    rows = read_table(tmp_path / "slices.csv")
    labels = [label for entry in cases["test"] for label in entry["slice_labels"]]
    assert [row["truth"] for row in rows] == [NAMES[label] if label >= 0 else "" for label in labels]
    assert measures["slices"]["auc"]["cases"] == sum(label >= 0 for label in labels) < len(labels)
    chance = torch.tensor([0.0, -4.0]).softmax(0)[1]  # of the darkest slice, -1
    assert float(rows[0]["p_bleed"]) == pytest.approx(chance.item(), abs=1e-6)
    shuffled = measures["rivals"]["shuffled slices"]["summary"]["auc"]["mean"]
    cost = measures["comparisons"]["shuffled slices"]["bleed"]
    assert cost["difference"] == pytest.approx(1 - shuffled) and cost["difference"] > 0.15
    assert cost["ci95"][0] < cost["difference"] < cost["ci95"][1]
    assert cost["n"] == 24 and (tmp_path / "slices.png").is_file()
    told = capsys.readouterr().out
    assert "slices: AUC 1.000 [1.000, 1.000]" in told and f"slices: {tmp_path / 'slices.csv'}" in told
    assert "slices in a random order" in told


def test_a_random_order_is_scored_only_if_asked_for(tmp_path):
    evaluator, cases, ending = make_evaluator(tmp_path, 4)
    attach_classification_scores(evaluator, tmp_path, "best", LABELS, cases, False)
    attach_shuffled_scores(evaluator, tmp_path, LABELS, cases, ending, shuffle_slices=False)
    evaluator.run()
    measures = json.loads((tmp_path / "metrics.json").read_text())
    assert not {"rivals", "comparisons", "slices"} & measures.keys()


@pytest.mark.parametrize("attach", [attach_slice_scores, attach_shuffled_scores])
def test_a_split_without_test_cases_has_no_scores(attach, tmp_path):
    more = {"postprocessing": None} if attach is attach_shuffled_scores else {}
    with pytest.raises(TomokitError, match="the run's split has no test case to score"):
        attach(None, tmp_path, LABELS, {"test": []}, **more)


def test_an_inference_writes_volumes_and_slices(tmp_path, capsys):
    evaluator, _, _ = make_evaluator(tmp_path, 5)
    attach_slice_table(evaluator, tmp_path / "out", LABELS)
    attach_class_table(evaluator, tmp_path / "out", LABELS)
    evaluator.run()
    assert [row["class"] for row in read_table(tmp_path / "out" / "classes.csv")] == [
        *("nothing", "bleed", "nothing", "bleed", "nothing")
    ]
    rows = read_table(tmp_path / "out" / "slices.csv")
    assert len(rows) == 6 + 7 + 8 + 9 + 6 and "truth" not in rows[0] and (tmp_path / "out" / "slices.png").is_file()
    assert "out/slices.csv" in capsys.readouterr().out


def test_decisions_are_made_on_the_volumes_outputs(tmp_path):
    labelled = [
        {"image": torch.linspace(-1, 1, slices).expand(1, 2, 2, slices).clone(), "label": number % 2}
        for number, slices in enumerate((3, 5, 4, 7))
    ]
    loader = DataLoader(Dataset(labelled), batch_size=2, collate_fn=collate_sequences)
    options = {"prepare_batch": PrepareBatch(extra=["lengths"]), "inferer": SimpleInferer()}
    evaluator = SupervisedEvaluator(device=torch.device("cpu"), val_data_loader=loader, network=Reader(), **options)
    logits, truth = predict_cases(evaluator)
    assert logits == pytest.approx(np.tile([0.0, -8.0], (4, 1))) and truth.tolist() == [0, 1, 0, 1]


# Parts


def test_outputs_and_labels_are_parted():
    data = {"pred": torch.arange(8.0).view(2, 4), "label": torch.tensor([1, -1, 0, 1]), "case": "a"}
    found = SplitWindowsd(["pred", "label"], windows=True)(data)
    assert found["pred"].tolist() == [0, 4] and found["pred_windows"].tolist() == [[1, 2, 3], [5, 6, 7]]
    assert found["label"] == 1 and found["label_windows"].tolist() == [-1, 0, 1] and found["case"] == "a"
    assert SplitWindowsd("pred")(data).keys() == data.keys()


def entry_of(path, labels, case="a"):
    return {"case": case, "image": path, "slice_labels": labels}


def test_slices_are_counted_along_the_world_s_axis(write_volume):
    sagittal = np.array([[0, 0, -3.0, 0], [1, 0, 0, 0], [0, -2.0, 0, 0], [0, 0, 0, 1]])  # axes to A, I and L
    path = write_volume("a.nii.gz", np.zeros((4, 5, 6), np.uint8), sagittal)
    assert [count_slices(path, axis) for axis in (0, 1, 2, -1)] == [6, 4, 5, 5]


def test_slice_labels_are_checked_against_the_files(write_volume):
    path = write_volume("a.nii.gz", np.zeros((4, 4, 3), np.uint8))
    good = {"training": [entry_of(path, [0, -1, 1]), {"case": "b", "image": [path]}], "validation": [], "test": []}
    check_sequences(good, LABELS, flip_axes=[0, 1])
    wrong = [entry_of(path, [0, 1], "short"), entry_of(path, [0, 2, 1], "other"), entry_of(path, "no", "text")]
    with pytest.raises(TomokitError) as caught:
        check_sequences(good | {"validation": wrong}, LABELS)
    text = str(caught.value)
    assert "short: must list a class for each of 3 slices, -1 where unknown; got 2 of them" in text
    assert "other: a slice has the class 2, known are [-1, 1, 0]" in text and "text: must list" in text
    assert "got 'no'" in text
    check_sequences(good | {"test": wrong}, LABELS)
    with pytest.raises(TomokitError, match="short: must list"):
        check_sequences(good | {"test": wrong}, LABELS, parts=["test"])


@pytest.mark.parametrize(("axis", "flip_axes"), [(2, [0, 2]), (-1, [2]), (0, [0])])
def test_slices_are_not_mirrored_along_their_axis(axis, flip_axes):
    with pytest.raises(TomokitError, match=rf"`flip_axes` .* has the axis {axis % 3} of the slices"):
        check_sequences({"training": [], "validation": []}, LABELS, axis, flip_axes)


def test_a_network_of_whole_volumes_learns_by_the_same_loss():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Flatten(), nn.Linear(4 * 5 * 7, 2))
    network = WholeVolume(inner, stride=2)
    image, lengths = torch.randn(3, 1, 4, 5, 7), torch.tensor([7, 4, 1])
    logits = network(image, lengths)
    assert logits.shape == (3, 2, 1 + 4) and torch.equal(logits[..., 0], inner(image))
    assert torch.equal(logits[..., 1:].softmax(1)[:, 0], torch.ones(3, 4))
    labels = torch.tensor([1, 0, 1])
    loss = SequenceLoss()(logits, labels)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(inner(image), labels))
    loss.backward()
    assert inner[1].weight.grad.abs().sum() > 0
    assert WholeVolume(nn.Sequential(nn.Flatten(), nn.Linear(140, 3)), axis=0)(image).shape == (3, 3, 1 + 4)
    torch.testing.assert_close(torch.jit.script(network)(image), logits)


# Real runs

SMALL = {"spacing": [8.0, 8.0, -1], "image_size": [24, 24, -1]}


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "heads"
    phantoms.make_bleed_set(folder, cases=14, test_cases=6, size=24, progress=False)
    return str(folder)


@pytest.fixture(scope="module")
def run(heads, tmp_path_factory):
    return train("sequence", tmp_path_factory.mktemp("runs") / "run", dataset_dir=heads, **SMALL)


def read_losses(run):
    return [entry["loss"] for entry in json.loads((run / "validation.json").read_text())["history"]]


def test_a_run_learns_from_volumes_and_is_scored_on_slices(run, heads):
    assert yaml.safe_load((run / "configs" / "train.yaml").read_text())["keep"] == []
    decision = json.loads((run / "decision.json").read_text())
    assert decision["task"] == "classes" and decision["cases"] == 2
    follow("sequence", run, "evaluate", shuffle_slices=True)
    entries = json.loads((Path(heads) / "dataset.json").read_text())["test"]
    rows = read_table(run / "slices.csv")
    labels = [label for entry in entries for label in entry["slice_labels"]]
    assert [row["truth"] for row in rows] == [["no bleed", "bleed"][label] for label in labels] and sum(labels) > 0
    assert all(float(row["p_bleed"]) + float(row["p_no bleed"]) == pytest.approx(1, abs=1e-5) for row in rows)
    measures = json.loads((run / "metrics.json").read_text())
    assert 0 <= measures["slices"]["auc"]["mean"] <= 1 and measures["slices"]["auc"]["cases"] == len(rows)
    assert {"histogram", "threshold", "shuffled slices"} <= measures["rivals"].keys()
    assert measures["comparisons"]["shuffled slices"]["bleed"]["n"] == 6 and (run / "slices.png").is_file()
    follow("sequence", run, "inference")
    answers = read_table(run / "inference" / "slices.csv")
    assert [row["p_bleed"] for row in answers] == [row["p_bleed"] for row in rows]
    scored, answered = read_table(run / "cases.csv"), read_table(run / "inference" / "classes.csv")
    assert [row["p_bleed"] for row in answered] == [row["p_bleed"] for row in scored]
    assert (run / "inference" / "slices.png").is_file()


def test_volumes_and_slices_found_before_a_damaged_scan_are_kept(run, heads, tmp_path):
    first = json.loads((Path(heads) / "dataset.json").read_text())["test"][0]
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_bytes(b"no scan")
    given = {"input": [str(Path(heads) / first["image"]), str(damaged)], "output_dir": str(tmp_path / "out")}
    with pytest.raises(RuntimeError):
        follow("sequence", run, "inference", **given)
    assert len(read_table(tmp_path / "out" / "classes.csv")) == 1
    assert len(read_table(tmp_path / "out" / "slices.csv")) == len(first["slice_labels"])


def test_slice_labels_are_learned_from_where_a_layer_says_so(run, heads, tmp_path):
    other = train("sequence", tmp_path / "run", "modes/slice_labels", dataset_dir=heads, **SMALL)
    assert read_losses(other)[0] != read_losses(run)[0]
    follow("sequence", other, "evaluate", rival=False, feature_models=[])
    assert "slices" in json.loads((other / "metrics.json").read_text())


def test_where_the_order_alone_tells_slices_are_not_scored(tmp_path):
    phantoms.make_order_set(tmp_path / "tubes", cases=12, test_cases=4, size=16, progress=False)
    options = {"dataset_dir": str(tmp_path / "tubes"), "image_size": [16, 16, -1]}
    other = train("sequence", tmp_path / "run", "data/phantom-order", **options)
    follow("sequence", other, "evaluate", rival=False, feature_models=[], shuffle_slices=True)
    follow("sequence", other, "inference")
    measures = json.loads((other / "metrics.json").read_text())
    assert "slices" not in measures and not (other / "slices.csv").exists()
    assert measures["comparisons"]["shuffled slices"]["plug above"]["n"] == 4
    assert not (other / "inference" / "slices.csv").exists()
