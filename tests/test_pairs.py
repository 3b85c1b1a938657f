"""Pairs of scans: targets, answers, thresholds, scores and rivals against what is known of made pairs."""

import csv
import json
import math

import nibabel as nib
import numpy as np
import pytest
import scipy.stats
import torch
from bundle_runs import config, follow, train
from ignite.engine import Engine
from monai.bundle import ConfigWorkflow
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, from_engine
from monai.inferers import SimpleInferer
from scipy import ndimage
from scipy.special import expit, logit

from tomokit import phantoms
from tomokit.augmentation.pairs import BatchRandShiftScansd, BatchRandSwapScansd, shift_voxels
from tomokit.datasets import select_cases
from tomokit.engines.checkpoints import save
from tomokit.engines.pairs import (
    attach_pair_scores,
    attach_pair_table,
    choose_pair_decision,
    draw_pairs,
    list_pairs,
    pick_pairs,
)
from tomokit.ensembles import read_rows
from tomokit.errors import TomokitError
from tomokit.files import write_json, write_table
from tomokit.losses import SiameseLoss
from tomokit.pairs import (
    CHANGES,
    PairAnswersd,
    PairAUC,
    PairTargetd,
    answer_columns,
    choose_change_threshold,
    pair_target,
    read_threshold,
    summarise_pairs,
    truth_columns,
)
from tomokit.rivals.pairs import answer_pairs, count_tissues, describe_resampling, fit_pairs, pair_table, score_pairs

NAN = float("nan")
SWAP = BatchRandSwapScansd("image", "label")
# label and change of pairs, and what is learned of them
KNOWN = [
    (0, 0.0, (NAN, 0.0, 0.0)),
    (0, None, (NAN, 0.0, 0.0)),
    (0, 0.004, (NAN, 0.0, 0.4)),
    (1, -0.03, (1.0, 1.0, -3.0)),
    (1, None, (1.0, 1.0, NAN)),
    (2, 0.05, (0.0, 1.0, 5.0)),
]


def read_table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Targets and answers


@pytest.mark.parametrize(("label", "change", "expected"), KNOWN)
def test_the_target_is_order_change_and_amount(label, change, expected):
    assert pair_target(label, change) == pytest.approx(expected, nan_ok=True)
    data = {"case": "a", "label": label} | ({} if change is None else {"change": change})
    made = PairTargetd("label")(data)
    assert set(made) == {"case", "label"} and made["label"].dtype == torch.float32
    assert made["label"].tolist() == pytest.approx(expected, nan_ok=True)


def test_truths_stand_in_the_table_as_names_and_per_cent():
    assert truth_columns({"label": 1, "change": -0.03}) == {"truth": "smaller", "truth_amount": -3.0}
    assert truth_columns({"label": 2}) == {"truth": "larger", "truth_amount": None}


@pytest.mark.parametrize(
    ("label", "change", "message"),
    [
        (3, None, "one of 0 unchanged, 1 smaller, 2 larger; got 3"),
        (True, None, "got True"),
        ("a.nii.gz", None, "got 'a.nii.gz'"),
        (1, 0.03, "the `label` 1 says smaller, the `change` 0.03 larger"),
        (2, 0.0, "the `label` 2 says larger, the `change` 0.0 unchanged"),
        (1, "much", "`change` must be a number such as -0.03, a loss of 3 %; got 'much'"),
        (1, NAN, "got nan"),
    ],
)
def test_what_is_no_pair_is_named_with_its_case(label, change, message):
    with pytest.raises(TomokitError, match=message):
        pair_target(label, change)
    with pytest.raises(TomokitError, match=f"^case_7: .*{message}.*; correct dataset.json"):
        PairTargetd("label")({"case": "case_7", "label": label, "change": change})


def test_an_output_becomes_probabilities_and_a_decision(tmp_path):
    output = torch.tensor([logit(0.9), logit(0.25), -2.5, 0.7])
    answer = PairAnswersd("pred", tmp_path)({"pred": output})
    assert answer["pred"].tolist() == pytest.approx([0.25, 0.9, -2.5]) and answer["pred_changed"] == 0
    (tmp_path / "decision.json").write_text(json.dumps({"task": "pairs", "threshold": 0.2}))
    assert PairAnswersd("pred", tmp_path)({"pred": output})["pred_changed"] == 1


def test_a_probability_at_the_threshold_is_below_it(tmp_path):
    """So that what was decided on the validation pairs holds for them."""
    output = torch.tensor([0.0, 1.2345, 0.0, 1.0])
    threshold = float(expit(np.float64(output[1])))
    (tmp_path / "decision.json").write_text(json.dumps({"task": "pairs", "threshold": threshold}))
    assert PairAnswersd("pred", tmp_path)({"pred": output})["pred_changed"] == 0


def test_a_threshold_of_another_task_is_refused(tmp_path):
    path = tmp_path / "decision.json"
    assert read_threshold(path) == 0.5
    for content in ({"task": "classes", "temperatures": [1.0]}, {"task": "pairs"}, [1]):
        path.write_text(json.dumps(content))
        with pytest.raises(TomokitError, match=r"does not tell the threshold of pairs.*--resume true"):
            read_threshold(path)


# The threshold


@pytest.mark.parametrize(
    ("count", "called"), [(1, 0), (20, 0), (44, 0), (45, 0), (76, 0), (77, 1), (104, 1), (105, 2), (1000, 40)]
)
def test_so_many_unchanged_pairs_may_lie_above_the_threshold(count, called):
    """Of so many pairs at a true rate of 5 %, as few would be seen above it in less than one in ten sets."""
    found = choose_change_threshold(np.random.default_rng(0).permutation(count) / count)
    assert found["called"] == called and found["unchanged"] == count and found["rate"] == 0.05
    assert found["threshold"] == pytest.approx((count - 1 - called) / count)
    assert found["confidence"] == pytest.approx(1 - scipy.stats.binom.cdf(called, count, 0.05))
    assert (found["confidence"] >= 0.9) == (count >= 45)


def test_the_threshold_holds_for_other_pairs_of_the_same_kind():
    rng = np.random.default_rng(1)
    rates = [np.mean(rng.random(2000) > choose_change_threshold(rng.random(60))["threshold"]) for _ in range(300)]
    assert np.mean(np.array(rates) <= 0.05) >= 0.88  # 90 %, and 1.7 % to either side by chance


def test_equal_probabilities_stay_on_one_side():
    found = choose_change_threshold([0.9] * 200)
    assert (found["threshold"], found["called"]) == (0.9, 0)


@pytest.mark.parametrize(
    ("chances", "rate", "message"), [([], 0.05, "got none"), ([0.5], 0.0, "got 0.0"), ([0.5], 1, "got 1")]
)
def test_a_threshold_needs_pairs_and_a_rate(chances, rate, message):
    with pytest.raises(TomokitError, match=message):
        choose_change_threshold(chances, rate)


# Scores


def make_rows(kinds=(0, 1, 0, 2), patients=6, p_changed=lambda kind: 0.9 if kind else 0.1, order=1, error=0.0):
    """Return the rows of pairs that a network answers perfectly, or with its orders swapped, or its amounts off."""
    rows = []
    for patient in range(patients):
        for number, kind in enumerate(kinds):
            amount = {0: 0.0, 1: -3.0, 2: 3.0}[kind]
            first = 0.5 - order * np.sign(amount) * 0.4
            chance = p_changed(kind)
            row = {"case": f"{patient}_{number}", "patient": f"p{patient}", "truth": CHANGES[kind]}
            row |= {"truth_amount": amount}
            rows.append(row | answer_columns(chance, chance > 0.5, first, order * amount + error))
    return rows


def means(rows):
    return {name: score["mean"] for name, score in summarise_pairs(rows)["summary"].items()}


def test_a_perfect_network():
    summary = summarise_pairs(make_rows())["summary"]
    perfect = {"auc", "order_accuracy", "order_auc", "change_auc", "sensitivity", "amount_correlation"}
    for name, score in summary.items():
        assert score["mean"] == pytest.approx(1.0 if name in perfect else 0.0), name
        assert score["n"] == 6 and score["ci95"] == pytest.approx([score["mean"]] * 2)
    assert summary["order_accuracy"]["cases"] == summary["false_positive_rate"]["cases"] == 12


def test_swapped_pairs_turn_order_and_amount_round_and_nothing_else():
    found = means(make_rows(order=-1))
    assert found["order_accuracy"] == found["order_auc"] == 0
    assert found["change_auc"] == found["sensitivity"] == 1 and found["auc"] == 0.5
    assert found["amount_correlation"] == pytest.approx(-1) and found["amount_mae"] == pytest.approx(3)


def test_what_can_not_tell_is_right_by_half():
    rows = [row | {"p_first_is_earlier": 0.5, "p_changed": 0.5} for row in make_rows()]
    found = means(rows)
    assert found["order_accuracy"] == found["order_auc"] == found["change_auc"] == 0.5


def test_false_alarms_and_misses_are_counted_apart():
    rows = make_rows(kinds=(0, 0, 0, 0, 1))
    for number in (0, 7):
        rows[number] |= {"changed": 1}
    rows[4] |= {"changed": 0}
    found = summarise_pairs(rows)["summary"]
    assert found["false_positive_rate"]["mean"] == pytest.approx(2 / 24)
    assert found["sensitivity"]["mean"] == pytest.approx(5 / 6)
    assert found["false_positive_rate"]["ci95"][0] < 2 / 24 < found["false_positive_rate"]["ci95"][1]


def test_an_error_of_all_amounts_is_a_bias():
    found = means(make_rows(error=0.5))
    assert found["amount_bias"] == found["amount_mae"] == pytest.approx(0.5)


def test_unknown_amounts_are_left_out():
    rows = make_rows(error=1.0)
    for row in rows[4:]:
        row["truth_amount"] = None
    assert summarise_pairs(rows)["summary"]["amount_mae"]["cases"] == 4
    for row in rows:
        row["truth_amount"] = None
    assert summarise_pairs(rows)["summary"]["amount_mae"]["mean"] is None


def test_pairs_of_one_kind_have_what_can_be_told_of_them():
    found = means(make_rows(kinds=(0, 0)))
    assert found["false_positive_rate"] == 0
    assert found["auc"] is found["order_accuracy"] is found["sensitivity"] is found["change_auc"] is None


def test_rows_from_a_file_are_scored_alike(tmp_path):
    write_table(tmp_path / "cases.csv", make_rows(order=-1, error=0.25))
    assert means(read_rows(tmp_path / "cases.csv")) == means(make_rows(order=-1, error=0.25))


def test_what_is_wrong_with_rows_is_listed():
    with pytest.raises(TomokitError, match="no compared cases to summarise, got 0 rows"):
        summarise_pairs([])
    row = make_rows()[0]
    wrong = [
        {key: value for key, value in row.items() if key != "amount"},
        row | {"truth": "shrunk"},
        row | {"p_changed": 1.5},
        row | {"changed": 0.5},
        row | {"amount": math.inf},
    ]
    with pytest.raises(TomokitError) as caught:
        summarise_pairs(wrong)
    text = str(caught.value)
    for part in ("has no column amount", "got 'shrunk'", "0–1, got 1.5", "must be 0 or 1, got 0.5", "number, got inf"):
        assert part in text


def test_the_metric_of_an_engine_is_the_mean_of_both_areas():
    targets = torch.tensor([pair_target(kind, {0: 0.0, 1: -0.03, 2: 0.03}[kind]) for kind in (0, 1, 0, 2, 1)])
    outputs = torch.zeros(5, 4)
    outputs[:, 1] = targets[:, 1] * 4 - 2
    outputs[:, 0] = torch.tensor([9.0, 3.0, -9.0, -3.0, -4.0])  # the last order is wrong
    engine = Engine(lambda _, numbers: [{"pred": outputs[i], "label": targets[i]} for i in numbers])
    metric = IgniteMetricHandler(PairAUC(), output_transform=from_engine(["pred", "label"]), save_details=False)
    metric.attach(engine, "val_auc")
    assert engine.run([[0, 1, 2], [3, 4]]).metrics["val_auc"] == pytest.approx((0.5 + 1) / 2)
    assert math.isnan(engine.run([[0, 2]]).metrics["val_auc"])
    assert math.isnan(PairAUC().aggregate())


# Augmentation


def make_batch(count=6, channels=2):
    torch.manual_seed(0)
    image = torch.randn(count, 2 * channels, 5, 6, 7)
    targets = torch.tensor([pair_target(i % 3, (0.0, -0.03, 0.03)[i % 3]) for i in range(count)])
    return {"image": image, "label": targets}


@pytest.mark.parametrize("channels", [1, 2])
def test_swapped_scans_have_swapped_targets(channels):
    batch = make_batch(channels=channels)
    before = {key: value.clone() for key, value in batch.items()}
    swapped = BatchRandSwapScansd("image", "label", prob=1.0)(batch)
    assert torch.equal(swapped["image"], before["image"].roll(channels, 1))
    expected = torch.tensor([pair_target((0, 2, 1)[i % 3], (0.0, 0.03, -0.03)[i % 3]) for i in range(6)])
    torch.testing.assert_close(swapped["label"], expected, equal_nan=True)
    assert all(torch.equal(batch[key].nan_to_num(9), before[key].nan_to_num(9)) for key in batch)  # itself unchanged
    again = BatchRandSwapScansd("image", "label", prob=1.0)(swapped)
    torch.testing.assert_close(again, before, equal_nan=True)


def test_some_pairs_are_swapped_and_the_others_keep_every_bit():
    batch = make_batch(40, 1)
    torch.manual_seed(1)
    swapped = BatchRandSwapScansd("image", "label", prob=0.5)(batch)
    kept = (swapped["image"] == batch["image"]).flatten(1).all(1)
    assert 10 < kept.sum() < 30
    assert torch.equal(swapped["label"][kept].nan_to_num(9), batch["label"][kept].nan_to_num(9))


def test_a_swap_costs_the_loss_nothing():
    batch = make_batch()
    outputs = torch.randn(6, 4)
    outputs[:, 3] = outputs[:, 3].abs()
    flipped = outputs * torch.tensor([-1.0, 1.0, -1.0, 1.0])
    swapped = BatchRandSwapScansd("image", "label", prob=1.0)(batch)
    loss = SiameseLoss(contrastive=1.0)
    torch.testing.assert_close(loss(outputs, batch["label"]), loss(flipped, swapped["label"]))


def test_a_scan_moves_by_whole_voxels_over_its_edge():
    image = torch.arange(24.0).reshape(1, 4, 3, 2)
    moved = shift_voxels(image, [1, -1, 0])
    assert torch.equal(moved[:, 1:, :2], image[:, :3, 1:])
    assert torch.equal(moved[:, 0], moved[:, 1]) and torch.equal(moved[:, :, 2], moved[:, :, 1])
    assert torch.equal(shift_voxels(image, [0, 0, 0]), image)


def test_each_scan_moves_by_itself():
    batch = make_batch(20, 1)
    torch.manual_seed(2)
    moved = BatchRandShiftScansd("image", most=2, prob=0.5)(batch)
    still = (moved["image"] == batch["image"]).flatten(2).all(2)
    assert 8 < still.sum() < 32 and (still[:, 0] != still[:, 1]).any()
    inner = (slice(None), slice(2, -2), slice(2, -2), slice(2, -2))
    for number, scan in (~still).nonzero().tolist():
        own = batch["image"][number, scan][None]
        shifts = [(x, y, z) for x in range(-2, 3) for y in range(-2, 3) for z in range(-2, 3)]
        found = moved["image"][number, scan][None]
        assert any(torch.equal(own.roll(shift, (1, 2, 3))[inner], found[inner]) for shift in shifts)
    assert BatchRandShiftScansd("image", most=0)(batch)["image"].equal(batch["image"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: SWAP({"image": torch.zeros(2, 2, 4, 4), "label": torch.zeros(2)}), r"got shape \(2,\)"),
        (lambda: SWAP({"image": torch.zeros(2, 3, 4, 4), "label": torch.zeros(2, 3)}), r"\(2, 3, 4, 4\)"),
        (lambda: BatchRandShiftScansd("image")({"image": torch.zeros(2, 3, 4, 4, 4)}), r"\(2, 3, 4, 4, 4\)"),
        (lambda: BatchRandShiftScansd("image", most=-1), "at least 0, got -1"),
        (lambda: BatchRandShiftScansd("image", prob=2), "got 2"),
    ],
)
def test_what_is_no_batch_of_pairs_is_refused(change, message):
    with pytest.raises(TomokitError, match=message):
        change()


# Files of pairs


def save_scan(path, shape=(6, 7, 8), affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.arange(math.prod(shape), dtype=np.int16).reshape(shape), affine), path)
    return str(path)


@pytest.fixture
def scans(tmp_path):
    """Return four files, two pairs, in a folder of their own."""
    names = ("a_0000", "a_0001", "b_0000", "b_0001")
    return [save_scan(tmp_path / "scans" / f"{name}.nii.gz", affine=np.eye(4)) for name in names]


def test_pairs_come_as_lists_as_one_pair_or_as_a_folder(scans, tmp_path):
    both = [{"case": "a", "image": scans[:2]}, {"case": "b", "image": scans[2:]}]
    assert list_pairs([scans[:2], scans[2:]]) == both
    assert list_pairs(str(tmp_path / "scans")) == both
    assert list_pairs(scans[:2]) == both[:1]


def test_what_is_no_pair_of_files_is_told(scans, tmp_path):
    other = save_scan(tmp_path / "other.nii.gz", affine=np.diag([2.0, 1, 1, 1]))
    for given, message in (
        (scans[:3], "a_0000.nii.gz' is no pair"),
        ([scans[:3]], "is no pair"),
        (scans[0], "is no folder; give one, or pairs such as"),
        ([[scans[0], other]], r"lie on one grid; align and resample both alike(.|\n)*a: corresponding corner voxels"),
        ([[scans[0], "none.nii.gz"]], "input none.nii.gz does not exist"),
    ):
        with pytest.raises(TomokitError, match=message):
            list_pairs(given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TomokitError, match=r"holds no pair of scans: its files must be called <case>_0000.nii.gz"):
        list_pairs(tmp_path / "empty")


# Engines


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return the folder of a small set of pairs with large changes."""
    folder = tmp_path_factory.mktemp("pairs") / "set"
    phantoms.make_followup_set(folder, cases=24, test_cases=8, size=16, change=(0.2, 0.3), progress=False)
    return folder


def perfect_answers(entries):
    """Return what an evaluator's outputs became, were its network perfect."""
    answers = {}
    for entry in entries:
        changed, amount = float(entry["label"] > 0), 100 * entry["change"]
        first = 0.5 - 0.45 * np.sign(amount)
        answer = torch.tensor([0.05 + 0.9 * changed, first, amount])
        answers[entry["case"]] = {"pred": answer, "pred_changed": torch.tensor(int(changed))}
    return answers


def make_engine(entries, answers):
    def step(engine, number):
        engine.state.batch = [{key: entries[number][key] for key in ("case", "patient")}]
        return [answers[entries[number]["case"]]]

    return Engine(step)


def test_an_evaluation_writes_table_measures_and_picture(data, tmp_path, capsys):
    cases = select_cases(data, "splits.json", 0)
    save({}, tmp_path / "checkpoints" / "best.pt")
    engine = make_engine(cases["test"], perfect_answers(cases["test"]))
    attach_pair_scores(engine, tmp_path, "best", cases)
    engine.run(range(8))
    rows = read_table(tmp_path / "cases.csv")
    columns = "case patient truth truth_amount p_changed changed p_first_is_earlier amount".split()
    assert list(rows[0]) == columns and [row["case"] for row in rows] == [entry["case"] for entry in cases["test"]]
    measures = json.loads((tmp_path / "metrics.json").read_text())
    assert measures["task"] == "pairs" and measures["threshold"] == 0.5 and measures["checkpoint"] == "best.pt"
    assert measures["summary"]["order_accuracy"]["mean"] == measures["summary"]["auc"]["mean"] == 1
    assert measures["summary"]["false_positive_rate"]["mean"] == 0
    assert set(measures["rivals"]) == {"otsu", "resampling"}
    assert all(rival["summary"].keys() == measures["summary"].keys() for rival in measures["rivals"].values())
    assert (tmp_path / measures["picture"]).read_bytes()[:4] == b"\x89PNG"
    assert f"scores: {tmp_path / 'metrics.json'}" in capsys.readouterr().out


def test_the_threshold_of_a_change_may_stand_in_another_folder(data, tmp_path):
    cases = select_cases(data, "splits.json", 0)
    save({}, tmp_path / "scored" / "checkpoints" / "best.pt")
    write_json(tmp_path / "models" / "decision.json", {"task": "pairs", "threshold": 0.7})
    engine = make_engine(cases["test"], perfect_answers(cases["test"]))
    attach_pair_scores(engine, tmp_path / "scored", "best", cases, rival=False, decision_dir=tmp_path / "models")
    engine.run(range(8))
    assert json.loads((tmp_path / "scored" / "metrics.json").read_text())["threshold"] == 0.7


def test_an_evaluation_needs_test_pairs(data, tmp_path):
    with pytest.raises(TomokitError, match="no test case to score"):
        attach_pair_scores(Engine(lambda *_: None), tmp_path, "best", {"training": [], "validation": [], "test": []})


def test_the_picture_shows_the_surest_and_the_least_sure():
    chances = {"a": 0.9, "b": 0.2, "c": 0.5, "d": 0.1, "e": 0.8, "f": 0.3}
    rows = [
        {"case": case, "truth": "smaller" if case in "abc" else "unchanged", "p_changed": chance}
        for case, chance in chances.items()
    ]
    assert [row["case"] for row in pick_pairs(rows)] == ["a", "b", "e", "d"]
    assert [row["case"] for row in pick_pairs(rows[:1])] == ["a"]


def test_a_picture_needs_pairs_of_one_shape(tmp_path):
    with pytest.raises(TomokitError, match="nothing to draw"):
        draw_pairs([], tmp_path / "a.png")
    pair = {"title": "a", "first": np.zeros((4, 4, 4)), "second": np.zeros((4, 4, 5)), "affine": np.eye(4)}
    with pytest.raises(TomokitError, match=r"a: the scans must be 3D of one shape.*\(4, 4, 5\)"):
        draw_pairs([pair], tmp_path / "a.png")


def test_a_table_of_new_pairs_has_their_files(tmp_path, capsys):
    entries = [{"case": "a", "patient": "a", "image": ["x.nii", "y.nii"], "label": 1, "change": -0.2}]
    engine = make_engine(entries, perfect_answers(entries))
    engine.data_loader = DataLoader(Dataset(entries))
    attach_pair_table(engine, tmp_path)
    engine.run([0])
    (row,) = read_table(tmp_path / "pairs.csv")
    assert (row["case"], row["first"], row["second"], row["changed"]) == ("a", "x.nii", "y.nii", "1")
    assert float(row["amount"]) == pytest.approx(-20) and float(row["p_first_is_earlier"]) == pytest.approx(0.95)
    assert f"pairs: {tmp_path / 'pairs.csv'}" in capsys.readouterr().out


def make_evaluator(run, kinds):
    """Return an evaluator on made pairs whose best weights give the first voxel as the logit of change."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4))
    torch.nn.init.zeros_(network[1].bias)
    torch.nn.init.zeros_(network[1].weight)
    last = {key: value.clone() for key, value in network.state_dict().items()}
    network[1].weight.data[1, 0] = 1.0
    save(network.state_dict(), run / "checkpoints" / "best.pt")
    network.load_state_dict(last)
    images = torch.randn(len(kinds), 2, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    targets = [torch.tensor(pair_target(kind)) for kind in kinds]
    loader = DataLoader(Dataset([{"image": a, "label": b} for a, b in zip(images, targets, strict=True)]), batch_size=4)
    device = torch.device("cpu")
    evaluator = SupervisedEvaluator(device=device, val_data_loader=loader, network=network, inferer=SimpleInferer())
    return evaluator, images[:, 0, 0, 0, 0].double()


def test_the_threshold_is_chosen_on_unchanged_validation_pairs_by_the_best_weights(tmp_path):
    kinds = [0, 1, 0, 2, 0, 0, 1, 0, 0]
    evaluator, logits = make_evaluator(tmp_path, kinds)
    content = choose_pair_decision(evaluator, tmp_path)
    unchanged = logits[torch.tensor(kinds) == 0]
    assert content["threshold"] == pytest.approx(float(unchanged.max().sigmoid()))
    assert (content["task"], content["unchanged"], content["called"]) == ("pairs", 6, 0)
    assert json.loads((tmp_path / "decision.json").read_text()) == content
    assert read_threshold(tmp_path / "decision.json") == content["threshold"]


@pytest.mark.parametrize("kinds", [[], [1, 2, 2]])
def test_without_unchanged_validation_pairs_nothing_is_decided(kinds, tmp_path):
    evaluator, _ = make_evaluator(tmp_path, kinds)
    assert choose_pair_decision(evaluator, tmp_path) is None
    assert not (tmp_path / "decision.json").exists()


# Rivals


def make_ball(radius, rng, size=20):
    """Return a bright ball somewhere near the middle of a noisy image."""
    middle = (size - 1) / 2 + rng.uniform(-1, 1, 3)
    x, y, z = (axis - place for axis, place in zip(np.ogrid[:size, :size, :size], middle, strict=True))
    return 100.0 * (x**2 + y**2 + z**2 < radius**2) + rng.normal(0, 4, (size,) * 3)


def write_pairs(folder, count, change, rng, blur=False):
    """Write pairs of balls with changes of their volume; with `blur`, the later scan of a pair is interpolated."""
    entries = []
    for number in range(count):
        kind = (0, 1, 0, 2)[number % 4]
        share = {0: 0.0, 1: -change, 2: change}[kind]
        radii = 6 * np.array([1.0, (1 + share) ** (1 / 3)])
        arrays = [make_ball(radius, rng) for radius in radii]
        later = int(kind == 1)  # the larger one comes first
        if blur and kind:
            arrays[later] = ndimage.shift(arrays[later], 0.4, order=1, mode="nearest")
        paths = [str(folder / f"{number:03d}_{scan:04d}.nii") for scan in range(2)]
        for path, array in zip(paths, arrays, strict=True):
            nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4)), path)
        names = {"case": f"{number:03d}", "patient": f"p{number // 2}"}
        entries.append(names | {"image": paths, "label": kind, "change": share})
    return {"training": entries[: count // 2], "validation": entries[count // 2 : -16], "test": entries[-16:]}


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    """Return 56 pairs of balls, half of which grew or shrank by a fifth."""
    return write_pairs(tmp_path_factory.mktemp("balls"), 56, 0.2, np.random.default_rng(0))


def test_counted_tissues_tell_a_ball_that_grew(balls):
    rows, decision = score_pairs(balls, "otsu")
    found = means(rows)
    assert found["order_accuracy"] == 1 and found["change_auc"] > 0.95 and found["amount_correlation"] > 0.9
    assert decision["unchanged"] == 6 and {row["changed"] for row in rows} <= {0, 1}
    assert decision["threshold"] != 0.5


def test_the_control_does_not_see_what_grew_and_sees_what_was_interpolated(tmp_path):
    (tmp_path / "fair").mkdir()
    (tmp_path / "blurred").mkdir()
    fair = write_pairs(tmp_path / "fair", 120, 0.03, np.random.default_rng(1))
    blurred = write_pairs(tmp_path / "blurred", 56, 0.2, np.random.default_rng(1), blur=True)
    seen, other = fair["training"], fair["validation"] + fair["test"]
    models = fit_pairs(pair_table(seen, "resampling"), seen)
    found = means(answer_pairs(models, pair_table(other, "resampling"), other))
    assert 0.2 < found["order_accuracy"] < 0.8 and 0.25 < found["change_auc"] < 0.75
    found = means(score_pairs(blurred, "resampling")[0])
    assert found["order_accuracy"] == 1 and found["change_auc"] > 0.9


def test_swapped_scans_get_the_opposite_answer_of_a_rival(balls):
    swapped = [entry | {"image": entry["image"][::-1]} for entry in balls["test"]]
    rows, back = score_pairs(balls, "otsu")[0], score_pairs(balls | {"test": swapped}, "otsu")[0]
    for row, other in zip(rows, back, strict=True):
        assert row["p_first_is_earlier"] == pytest.approx(1 - other["p_first_is_earlier"])
        assert row["amount"] == pytest.approx(-other["amount"])
        assert row["p_changed"] == pytest.approx(other["p_changed"])


def test_tissues_are_counted():
    image = np.zeros((8, 8, 8))
    image[:4], image[2:6, 2:6, 2:6] = 50, 100
    whole, middle = np.split(np.expm1(count_tissues(image)), 2)
    assert whole.tolist() == pytest.approx([8 * 8 * 8 - 256 - 32, 256 - 32, 64])
    assert middle.tolist() == pytest.approx([0, 0, 64])


def test_pure_noise_has_the_neighbours_of_its_filter():
    noise, *alike = describe_resampling(np.random.default_rng(0).normal(0, 3, (24, 26, 28)))
    assert alike == pytest.approx([-2 / 3] * 3, abs=0.05)
    assert noise == pytest.approx(np.log(3 * 6**1.5 * scipy.stats.norm.ppf(0.75)), abs=0.1)
    flat = describe_resampling(np.random.default_rng(0).normal(0, 3, (24, 26, 1)))
    assert flat[3] == 0 and flat[1] == pytest.approx(-2 / 3, abs=0.15)


def test_what_the_training_pairs_do_not_tell(balls):
    unknown = [{key: value for key, value in entry.items() if key != "change"} for entry in balls["training"]]
    rows, _ = score_pairs(balls | {"training": unknown}, "otsu")
    assert [row["amount"] for row in rows] == pytest.approx([0.0] * 16)
    rows, decision = score_pairs(balls | {"validation": []}, "otsu")
    assert decision is None and len(rows) == 16
    changed = [entry for entry in balls["training"] if entry["label"]]
    with pytest.raises(TomokitError, match=r"got 14 changed ones; set `rival: false`"):
        score_pairs(balls | {"training": changed}, "otsu")


def test_rivals_are_named():
    with pytest.raises(TomokitError, match="one of otsu, resampling, got 'thresholds'"):
        score_pairs({"training": []}, "thresholds")
    with pytest.raises(TomokitError, match=r"8 voxels along some axis, got an image of \(4, 4, 4\)"):
        describe_resampling(np.zeros((4, 4, 4)))


# A real run


def test_a_run_learns_decides_and_answers_alike_in_every_stage(data, tmp_path):
    run = train("longitudinal", tmp_path / "run", "losses/contrastive", dataset_dir=str(data), image_size=[16, 16, 16])
    record = json.loads((run / "validation.json").read_text())
    assert record["metric"] == "val_auc" and 0 <= record["best"]["metric"] <= 1
    decision = json.loads((run / "decision.json").read_text())
    assert decision["task"] == "pairs" and decision["unchanged"] == 1
    follow("longitudinal", run, "evaluate", rival=False)
    follow("longitudinal", run, "inference")
    rows, answers = read_table(run / "cases.csv"), read_table(run / "inference" / "pairs.csv")
    columns = ("case", "p_changed", "changed", "p_first_is_earlier", "amount")
    assert [[row[name] for name in columns] for row in rows] == [[row[name] for name in columns] for row in answers]
    swapped = [[answer["second"], answer["first"]] for answer in answers]
    follow("longitudinal", run, "inference", input=swapped)
    for row, back in zip(answers, read_table(run / "inference" / "pairs.csv"), strict=True):
        (changed, first, amount), (other_changed, other_first, other_amount) = (
            [float(table[name]) for name in ("p_changed", "p_first_is_earlier", "amount")] for table in (row, back)
        )
        assert changed == pytest.approx(other_changed, abs=1e-6) and first == pytest.approx(1 - other_first, abs=1e-6)
        assert amount == pytest.approx(-other_amount, abs=1e-5)


def test_the_targets_of_a_batch_are_those_of_its_pairs(data, tmp_path):
    options = {"dataset_dir": str(data), "run_dir": str(tmp_path / "run"), "image_size": [16, 16, 16], "batch_size": 4}
    files = config("longitudinal", "train")
    workflow = ConfigWorkflow(files, workflow_type="train", init_id="no_initialize", **options)
    workflow.initialize()
    loader = workflow.parser.get_parsed_content("validate::dataloader")
    batch = next(iter(loader))
    assert batch["image"].shape == (3, 2, 16, 16, 16) and batch["label"].shape == (3, 3)
    assert "change" not in batch
    for scan in batch["image"].as_tensor().flatten(0, 1):
        assert float(scan.mean()) == pytest.approx(0, abs=0.02) and float(scan.std()) == pytest.approx(1, abs=0.02)
    assert sorted(batch["label"][:, 1].tolist()) == [0, 1, 1]


def test_a_pair_without_its_second_scan_stops_before_a_run_is_made(data, tmp_path):
    content = json.loads((data / "dataset.json").read_text())
    for entry in content["training"] + content["test"]:
        entry["image"] = str(data / entry["image"][0])
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(RuntimeError) as caught:
        train("longitudinal", tmp_path / "run", dataset_dir=str(tmp_path), image_size=[16, 16, 16])
    error: BaseException = caught.value
    while not isinstance(error, TomokitError):
        error = error.__cause__ or error.__context__
    assert "1 images, but modality has 2 kinds" in str(error)
    assert not (tmp_path / "run").exists()


def test_the_changes_are_the_labels_of_the_phantoms(data):
    labels = json.loads((data / "dataset.json").read_text())["labels"]
    assert labels == {str(number): name for number, name in enumerate(CHANGES)}
