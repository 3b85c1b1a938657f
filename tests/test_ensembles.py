import csv
import json
import math
import shutil
from pathlib import Path

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
import yaml
from bundle_runs import SMALL_UNET, follow, layer, train, weights
from torch import nn

from tomokit import phantoms
from tomokit.checks import read_range
from tomokit.engines.checkpoints import save
from tomokit.ensembles import Ensemble, gather_folds, join_runs, list_runs, read_rows
from tomokit.errors import TomokitError
from tomokit.files import write_json, write_table
from tomokit.metrics import summarise_classification, summarise_segmentation, summarise_task
from tomokit.postprocessing import Step, read_steps

SMALL = {"patch_size": [16, 16, 16], "network_def": SMALL_UNET, "epochs": 1}
SMALL |= {"train::augmentation": {"_target_": "Compose", "transforms": []}}
LARGEST = {"largest": True, "minimum_ml": 0.0}


def members(count=3, classes=4) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Conv3d(1, classes, 3, padding=1) for _ in range(count)]


def ensemble_of(networks, **options) -> Ensemble:
    """Return the ensemble of networks, its weights loaded as those of a joined run are."""
    ensemble = Ensemble(nn.Conv3d(1, networks[0].out_channels, 3, padding=1), len(networks), **options)
    states = enumerate(network.state_dict() for network in networks)
    ensemble.load_state_dict({f"members.{i}.{key}": value for i, own in states for key, value in own.items()})
    return ensemble


def test_a_softmax_gives_the_mean_of_the_members_probabilities():
    networks = members()
    image = torch.randn(2, 1, 6, 5, 4)
    mean = sum(network(image).softmax(1) for network in networks) / 3
    assert torch.allclose(ensemble_of(networks)(image).softmax(1), mean, atol=1e-6)
    assert torch.allclose(ensemble_of(networks[:1])(image).softmax(1), networks[0](image).softmax(1), atol=1e-6)


def test_a_sigmoid_gives_the_mean_of_the_members_regions():
    networks = members()
    image = torch.randn(2, 1, 6, 5, 4)
    mean = sum(network(image).sigmoid() for network in networks) / 3
    assert torch.allclose(ensemble_of(networks, sigmoid=True)(image).sigmoid(), mean, atol=1e-6)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_certain_members_give_finite_logits(sigmoid):
    networks = members(2)
    for network in networks:
        nn.init.zeros_(network.weight)
        network.bias.data = torch.tensor([500.0, -500, -500, -500])
    logits = ensemble_of(networks, sigmoid=sigmoid)(torch.randn(1, 1, 4, 4, 4))
    assert torch.isfinite(logits).all() and (logits.argmax(1) == 0).all()


def test_an_ensemble_of_nobody_is_refused():
    with pytest.raises(TomokitError, match="at least one member, got count 0"):
        Ensemble(nn.Identity(), 0)


def make_run(folder: Path, seed: int = 0, cases: dict | None = None, **changes) -> Path:
    """Write what a trained run holds, as far as an ensemble reads it."""
    torch.manual_seed(seed)
    own = {"training": ["a"], "validation": ["b"], "test": ["c"]} if cases is None else cases
    content = {"network_def": {"_target_": "Conv"}, "labels": {"0": "background", "1": "liver"}, "run_dir": str(folder)}
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "train.yaml").write_text(yaml.safe_dump(content | {"cases": own, "seed": seed} | changes))
    (folder / "configs" / "metadata.json").write_text("{}")
    write_json(folder / "environment.json", {"seed": seed})
    save(nn.Conv3d(1, 2, 1).state_dict(), folder / "checkpoints" / "best.pt")
    return folder


def test_joined_runs_keep_their_weights_and_the_cases_that_nobody_trained_on(tmp_path):
    lists = [
        {"training": ["a"], "validation": ["b"], "test": ["c", "d"]},
        {"training": ["b", "d"], "validation": ["a"], "test": ["c"]},
    ]
    runs = [make_run(tmp_path / f"fold_{i}", i, cases) for i, cases in enumerate(lists)]
    assert join_runs(tmp_path, tmp_path / "ensemble") == tmp_path / "ensemble"
    content = yaml.safe_load((tmp_path / "ensemble" / "configs" / "train.yaml").read_text())
    assert content["cases"] == {"training": ["a", "b", "d"], "validation": [], "test": ["c"]}
    target = {"_target_": "tomokit.ensembles.Ensemble", "network": {"_target_": "Conv"}, "count": 2}
    assert content["network_def"] == target and content["run_dir"] == str(tmp_path / "ensemble")
    joined = weights(tmp_path / "ensemble", "best")
    assert all(torch.equal(joined[f"members.{i}.weight"], weights(run, "best")["weight"]) for i, run in enumerate(runs))
    assert json.loads((tmp_path / "ensemble" / "environment.json").read_text())["members"] == list(map(str, runs))


def test_an_ensemble_joined_anew_keeps_no_score_of_the_old_one(tmp_path):
    runs = [make_run(tmp_path / f"fold_{i}", i) for i in range(3)]
    for run in runs:
        write_json(run / "postprocessing.json", {"steps": {"1": LARGEST}})
    ensemble = join_runs(runs[:2], tmp_path / "ensemble")
    stale = ["postprocessing.json", "metrics.json", "cases.csv", "lesions.csv", "overlay.png", "predictions/c.nii.gz"]
    (ensemble / "predictions").mkdir()
    for name in stale:
        (ensemble / name).touch()
    (runs[2] / "postprocessing.json").unlink()
    join_runs(runs, ensemble)
    assert not any((ensemble / name).exists() for name in [*stale, "predictions"])
    assert len(json.loads((ensemble / "environment.json").read_text())["members"]) == 3


def test_the_range_of_an_ensemble_is_that_of_all_its_members(tmp_path):
    runs = [make_run(tmp_path / f"fold_{i}", i) for i in range(2)]
    grid = {name: [[1.0, 2.0]] * 3 for name in ("spacing_mm", "extent_mm", "voxels")}
    own = {"cases": 1, "modality": ["CT"], **grid, "intensity": [None]}
    for run, high in zip(runs, (2.0, 5.0), strict=True):
        write_json(run / "range.json", own | {"voxels": [[1.0, high]] * 3})
    known = read_range(join_runs(runs, tmp_path / "ensemble"))
    assert known == own | {"cases": 2, "voxels": [[1.0, 5.0]] * 3}
    (runs[1] / "range.json").unlink()  # of an earlier version: nothing is known of what it saw
    assert read_range(join_runs(runs, tmp_path / "ensemble")) is None


def test_an_ensemble_does_the_postprocessing_that_all_members_agree_on(tmp_path, capsys):
    labels = {str(value): name for value, name in enumerate(("background", "liver", "spleen", "lesion", "cyst"))}
    sizes = [{"largest": False, "minimum_ml": size} for size in (0.5, 0.25)]
    runs = [make_run(tmp_path / f"fold_{i}", i, labels=labels) for i in range(2)]
    for run, lesion, cyst in zip(runs, sizes, ({}, {"4": LARGEST}), strict=True):
        spleen = LARGEST if run is runs[0] else sizes[0]
        write_json(run / "postprocessing.json", {"steps": {"1": LARGEST, "2": spleen, "3": lesion, **cyst}})
    join_runs(runs, tmp_path / "ensemble")
    agreed = {1: Step(largest=True), 3: Step(minimum_ml=0.25)}
    assert read_steps(tmp_path / "ensemble" / "postprocessing.json") == agreed
    told = capsys.readouterr().out
    assert "of liver the largest piece\n" in told and "of lesion the pieces of 0.25 ml and more\n" in told
    assert "nothing to spleen, since the runs differ: largest piece; pieces of 0.5 ml and more\n" in told
    assert "nothing to cyst, since the runs differ: nothing; largest piece\n" in told


@pytest.mark.parametrize("changes", [{"regions": {"all": [1]}}, {"task": "labels"}])
def test_runs_of_regions_or_labels_are_joined_by_their_sigmoids(changes, tmp_path):
    runs = [make_run(tmp_path / f"fold_{i}", i, **changes) for i in range(2)]
    join_runs(runs, tmp_path / "ensemble")
    content = yaml.safe_load((tmp_path / "ensemble" / "configs" / "train.yaml").read_text())
    assert content["network_def"]["sigmoid"] is True


def test_runs_that_differ_are_not_joined(tmp_path):
    first = make_run(tmp_path / "a")
    second = make_run(tmp_path / "b", labels={"0": "background", "1": "spleen"})
    save(nn.Conv3d(1, 2, 3).state_dict(), second / "checkpoints" / "best.pt")
    with pytest.raises(TomokitError) as caught:
        join_runs([first, second], tmp_path / "ensemble")
    assert f"`labels` of {second} is {{'0': 'background', '1': 'spleen'}}" in str(caught.value)
    assert f"weights of {second} are of another network" in str(caught.value)
    save({}, first / "checkpoints" / "last.pt")
    for name in ("last", "best"):  # a search keeps the best alone
        with pytest.raises(TomokitError, match="a holds a trained run; give the ensemble another"):
            join_runs([first], first)
        (first / "checkpoints" / f"{name}.pt").unlink()
    third = make_run(tmp_path / "c", strides=[1, 2])  # which no weight tells
    with pytest.raises(TomokitError, match=rf"`strides` of {third} is \[1, 2\], of {tmp_path / 'd'} None"):
        join_runs([make_run(tmp_path / "d"), third], tmp_path / "ensemble")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "value"}, "of a regression each run has a scale of its own"),
        ({"joined": {"_target_": "Joined"}}, "their networks take measures beside the image"),
        ({"records": {"fields": {}}}, "their networks take records"),
        ({"network_def": {"_target_": "tomokit.networks.SiameseNetwork"}}, "gives no probabilities to average"),
    ],
)
def test_runs_that_can_not_be_one_network_are_not_joined(changes, reason, tmp_path):
    runs = [make_run(tmp_path / f"fold_{i}", i, **changes) for i in range(2)]
    with pytest.raises(TomokitError, match=f"to an ensemble: .*{reason}.*; gather their folds instead"):
        join_runs(runs, tmp_path / "ensemble")
    assert not (tmp_path / "ensemble").exists()


def test_folds_are_listed_by_number(tmp_path):
    for name in ("fold_10", "fold_2", "fold_1.1", "ensemble"):
        (tmp_path / name).mkdir()
    assert [path.name for path in list_runs(tmp_path)] == ["fold_2", "fold_10"]
    assert list_runs(["x", "y"]) == [Path("x"), Path("y")]
    with pytest.raises(TomokitError, match=r"no runs in .*nothing: expected folders fold_0"):
        list_runs(tmp_path / "nothing")
    with pytest.raises(TomokitError, match=r"given twice: x$"):
        list_runs(["x", "y", "x"])


def make_scores(folder: Path, rows: list[dict], task: str = "segmentation") -> Path:
    summary = (
        summarise_segmentation(rows)["summary"]
        if task == "segmentation"
        else summarise_classification(rows, ["no", "yes"])["summary"]
    )
    write_table(folder / "cases.csv", rows)
    write_json(folder / "metrics.json", {"task": task, "checkpoint": "best.pt, epoch 3", "summary": summary})
    return folder


def row(case: str, dice: float | None, name: str = "liver") -> dict:
    return {"case": case, "patient": f"p{case}", "class": name, "dice": dice, "truth_ml": 1.5, "predicted_ml": 0.0}


def test_gathered_folds_give_the_scores_of_all_cases_at_once(tmp_path):
    tables = [[row("1", 0.5), row("2", 1.0)], [row("3", 0.0)], [row("4", None), row("5", 0.9)]]
    for number, rows in enumerate(tables):
        make_scores(tmp_path / f"fold_{number}", rows)
    result = gather_folds(tmp_path, tmp_path)
    every = [item for rows in tables for item in rows]
    expected = summarise_segmentation(every)
    assert {key: result[key] for key in expected} == expected
    assert math.isclose(result["summary"]["dice"]["mean"], (0.5 + 1 + 0 + 0.9) / 4)
    assert result["summary"]["dice"]["cases"] == 4 and result["per_class"]["liver"]["absent_in_both"] == 1
    assert [fold["summary"]["dice"]["mean"] for fold in result["folds"]] == [0.75, 0.0, 0.9]
    assert json.loads((tmp_path / "cross_validation.json").read_text()) == result
    assert not (tmp_path / "cases.csv").exists()  # of a run in the same folder, where there is one
    table = tmp_path / "cross_validation.csv"
    with table.open() as file:
        assert [(item["case"], item["fold"]) for item in csv.DictReader(file)] == list(
            zip("12345", "00122", strict=True)
        )
    read = [{key: value for key, value in item.items() if key != "fold"} for item in read_rows(table)]
    assert read == every


def test_gathered_folds_of_a_classification(tmp_path):
    def told(case: str, truth: str, chance: float) -> dict:
        return {"case": case, "patient": case, "truth": truth, "p_no": 1 - chance, "p_yes": chance}

    tables = [[told("1", "no", 0.25), told("2", "yes", 0.75)], [told("3", "yes", 0.5), told("4", "no", 0.625)]]
    runs = [make_scores(tmp_path / f"run_{i}", rows, "classification") for i, rows in enumerate(tables)]
    result = gather_folds(runs, tmp_path)
    assert result["summary"]["auc"]["mean"] == 0.75
    assert result["summary"] == summarise_classification([*tables[0], *tables[1]], ["no", "yes"])["summary"]


def test_gathered_folds_of_labels_and_of_values(tmp_path):
    flags = [(1, 0.75, 1), (0, 0.5, 0), (1, 0.25, 0), (0, 0.125, 0)]
    labels = [dict(zip(("truth_a", "p_a", "decided_a"), own, strict=True)) for own in flags]
    values = [{"truth": truth, "prediction": truth + 0.5} for truth in (1.5, 2.0, 4.0, 3.0)]
    for task, told, rows in (("labels", "multi_label", labels), ("value", "regression", values)):
        table = [{"case": f"c{i}", "patient": f"p{i}", **row} for i, row in enumerate(rows)]
        runs = [tmp_path / f"{task}_{number}" for number in range(2)]
        for run, own in zip(runs, (table[:2], table[2:]), strict=True):
            write_table(run / "cases.csv", own)
            write_json(run / "metrics.json", {"task": told, "summary": {}})
        result = gather_folds(runs, tmp_path)
        expected = summarise_task(task, table, ["a"])
        assert {key: result[key] for key in expected} == expected and result["task"] == told


def test_folds_that_do_not_go_together_are_not_gathered(tmp_path):
    a = make_scores(tmp_path / "a", [row("1", 0.5)])
    b = make_scores(tmp_path / "b", [row("1", 0.6), row("2", 0.6)])
    with pytest.raises(TomokitError, match=f"1 is scored in {a} and {b}"):
        gather_folds([a, b], tmp_path)
    with pytest.raises(TomokitError, match=f"not evaluated.*\n.*{tmp_path / 'c'}"):
        gather_folds([a, tmp_path / "c"], tmp_path)
    write_json(b / "metrics.json", {"task": "detection", "summary": {}})
    with pytest.raises(TomokitError, match=r"several tasks, \['detection', 'segmentation'\]"):
        gather_folds([a, b], tmp_path)
    (a / "cases.csv").unlink()
    with pytest.raises(TomokitError, match=r"cases.csv does not exist; run evaluate.yaml"):
        gather_folds([a], tmp_path)


def test_the_folds_of_a_real_run_are_joined_evaluated_and_gathered(tmp_path):
    phantoms.make_segmentation_set(tmp_path / "data", cases=4, test_cases=1, size=32, progress=False)
    runs = tmp_path / "runs"
    train("segmentation", runs / "fold_0", dataset_dir=str(tmp_path / "data"), **SMALL)
    shutil.copytree(runs / "fold_0", runs / "fold_1")
    for number, run in enumerate((runs / "fold_0", runs / "fold_1")):
        torch.manual_seed(number)
        content = {key: value + 0.3 * torch.randn(value.shape) for key, value in weights(run, "best").items()}
        save(content, run / "checkpoints" / "best.pt")
        follow("segmentation", run, "inference", run_dir=str(run))
    monai.bundle.run(config_file=layer("ensemble"), runs=str(runs))
    follow("segmentation", runs / "ensemble", "evaluate", rival=False)
    assert 0 <= json.loads((runs / "ensemble" / "metrics.json").read_text())["summary"]["dice"]["mean"] <= 1
    masks = [next((runs / name).glob("*/case_003.nii.gz")) for name in ("fold_0", "fold_1", "ensemble")]
    one, two, both = (np.asanyarray(nibabel.load(path).dataobj) for path in masks)
    agreed = one == two
    assert 0.05 < agreed.mean() < 0.95
    inside = (both == one) | (both == two)
    assert inside.mean() > 0.5 and (both[~agreed] == one[~agreed]).any() and (both[~agreed] == two[~agreed]).any()
    shutil.copy(runs / "ensemble" / "metrics.json", runs / "fold_0")
    shutil.copy(runs / "ensemble" / "cases.csv", runs / "fold_0")
    monai.bundle.run(config_file=layer("crossval"), runs=[str(runs / "fold_0")], run_dir=str(runs))
    assert json.loads((runs / "cross_validation.json").read_text())["summary"]["dice"]["cases"] == 1
