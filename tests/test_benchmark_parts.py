"""The parts of benchmarks that make data or draw conclusions; what trains is left to the benchmarks themselves."""

import importlib
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tomokit import phantoms
from tomokit.bundles import find_bundle
from tomokit.errors import TomokitError
from tomokit.files import write_table
from tomokit.statistics import delong
from tomokit.volumes import write_volume

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    """Make the benchmarks' modules importable, as when one is run."""
    sys.path.append(str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


# Labels of hippocampus crops


def test_the_measures_behind_the_labels_are_those_of_the_mask():
    bench = importlib.import_module("hippocampus_labels")
    mask = np.zeros((20, 30, 20), np.uint8)
    mask[5:11, 4:24, 6:14] = 2
    mask[5:11, 14:24, 6:14] = 1  # the front half
    image = np.where(mask > 0, 300.0, 100.0)
    found = bench.measure_labels(image, mask, np.eye(4))
    assert list(found) == list(bench.LABELS)
    assert found["volume"] == pytest.approx(6 * 20 * 8 / 1000) and found["anterior share"] == 0.5
    assert found["length"] == pytest.approx(np.sqrt(36 + 400 + 64)) and found["width"] == 6
    assert found["contrast"] == pytest.approx(1)  # from the least to the greatest intensity
    other = bench.measure_labels(7 * image + 50, mask, np.diag([2.0, 1, 1, 1]))
    assert other["contrast"] == pytest.approx(1) and other["width"] == 12
    assert other["volume"] == pytest.approx(2 * found["volume"])


def test_a_label_is_above_the_training_median():
    bench = importlib.import_module("hippocampus_labels")
    measures = {f"c{i}": dict.fromkeys(bench.LABELS, float(i)) for i in range(6)}
    labels = bench.label_cases(measures, ["c0", "c1", "c2"])
    assert [labels[f"c{i}"][0] for i in range(6)] == [0, 0, 1, 1, 1, 1]
    assert all(len(own) == 5 and len(set(own)) == 1 for own in labels.values())


def test_a_crop_lies_at_the_centre_of_the_grid_in_noise_of_its_own():
    bench = importlib.import_module("hippocampus_labels")
    crop = np.random.default_rng(0).integers(1, 9, (5, 6, 4)).astype(np.uint8)
    affine = np.array([[0, 2, 0, 10], [-1, 0, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1.0]])
    image, moved = bench.put_on_grid(crop, affine, 3, (9, 9, 8))
    assert image.shape == (9, 9, 8) and image.dtype == np.float32
    assert np.array_equal(image[2:7, 1:7, 2:6], crop)
    assert set(np.unique(image)) <= set(np.unique(crop)) and len(np.unique(image[:2])) > 3
    index = np.array([2, 1, 2, 1])
    assert np.allclose(moved @ index, affine @ [0, 0, 0, 1])  # the crop stays where it was
    assert np.array_equal(image, bench.put_on_grid(crop, affine, 3, (9, 9, 8))[0])
    with pytest.raises(TomokitError, match=r"a crop of \(5, 6, 4\) voxels does not fit on the grid of \(9, 5, 8\)"):
        bench.put_on_grid(crop, affine, 3, (9, 5, 8))


def test_network_and_rival_are_compared_case_by_case():
    bench = importlib.import_module("hippocampus_labels")
    rng = np.random.default_rng(0)
    truth, chances = rng.integers(0, 2, (30, 5)), rng.random((2, 30, 5))
    tables = [
        [
            {"case": f"c{i}", "patient": f"c{i}"}
            | {f"truth_{name}": int(flag) for name, flag in zip(bench.LABELS, truth[i], strict=True)}
            | {f"p_{name}": float(chance) for name, chance in zip(bench.LABELS, own[i], strict=True)}
            for i in range(30)
        ]
        for own in chances
    ]
    measured = bench.measured_rows(tables[0], tables[1][::-1], {"seconds": 1})
    rows = {(row["system"], row["metric"]): row for row in measured}
    means = [np.mean([roc_auc_score(truth[:, i], own[:, i]) for i in range(5)]) for own in chances]
    assert rows["resnet", "auc"]["value"] == pytest.approx(means[0])
    assert rows["crop size and histogram", "auc"]["value"] == pytest.approx(means[1])
    against = rows["resnet", "auc - rival's"]
    assert against["value"] == pytest.approx(means[0] - means[1]) and against["ci95"][0] < against["value"]
    assert len(bench.lines(list(rows.values()))) == 6


# Adrenal glands


def make_chances(seed, trainings):
    rng = np.random.default_rng(seed)
    truth = np.arange(60) % 4 == 0
    return truth, 1 / (1 + np.exp(-(2 * truth[:, None] - 1 + rng.normal(size=(60, trainings)))))


def test_a_row_is_the_mean_of_the_seeds():
    bench = importlib.import_module("adrenal")
    truth, chances = make_chances(0, 3)
    rows = {row["metric"]: row for row in bench.metric_rows(28, "resnet", truth, chances, {"seconds": 7.0})}
    areas = [roc_auc_score(truth, own) for own in chances.T]
    assert rows["auc"]["by_seed"] == pytest.approx(areas) and rows["auc"]["value"] == pytest.approx(np.mean(areas))
    assert rows["auc"]["ci95"][0] < rows["auc"]["value"] < rows["auc"]["ci95"][1]
    assert rows["acc"]["value"] == pytest.approx(((chances >= 0.5) == truth[:, None]).mean())
    assert 0 <= rows["ece"]["value"] <= 1 and rows["ece"]["dataset"] == "adrenal28" and rows["ece"]["seconds"] == 7
    _, other = make_chances(1, 1)
    row = bench.difference_row(28, "resnet", truth, (chances, other), {})
    assert row["value"] == pytest.approx(np.mean(areas) - roc_auc_score(truth, other[:, 0]))
    assert (row["p"], row["verdict"]) == (delong(truth, chances, other).p, delong(truth, chances, other).verdict)


def test_the_network_of_the_best_validation_is_chosen():
    bench = importlib.import_module("adrenal")

    def rows_of(system, validation, test):
        common = {"system": system, "dataset": "adrenal28", "validation_auc": validation, "seconds": 60.0}
        common |= {"ci95": [0.1, 0.9], "parameters": 1000, "p": 0.2, "verdict": "tie"}
        return [common | {"metric": metric, "value": test} for metric in (*bench.METRICS, "auc - features")]

    known = (("resnet", 0.8, 0.95), ("cnn", 0.9, 0.85), ("cnn+features", 0.7, 0.9))
    rows = [row for own in known for row in rows_of(*own)]
    found = bench.chosen_rows(rows, 28)
    names = {(row["system"], row["network"]) for row in found}
    assert names == {("chosen", "cnn"), ("chosen+features", "cnn+features")}
    assert [row["value"] for row in found if row["metric"] == "auc"] == [0.85, 0.9]
    assert found[0]["among"] == ["cnn", "resnet"] and bench.chosen_rows(rows, 64) == []
    lines = bench.table_lines([*rows, *found], 28)
    assert [line[0] for line in lines] == [
        "chosen: cnn",
        "chosen+features: cnn+features",
        "resnet",
        "cnn",
        "cnn+features",
    ]
    assert all(len(line) == len(bench.HEAD) for line in lines) and lines[0][4].endswith("p 0.200: tie")


def test_the_best_rival_of_the_phantoms_is_told():
    bench = importlib.import_module("classifiers")
    score = {"mean": 0.97, "ci95": [0.9, 1.0], "n": 40}
    own = {"seconds": 100.0, "parameters": 900_000, "epochs": 40}
    rows = [bench.row("resnet", score, own)]
    rows += [bench.row(name, score | {"mean": mean}, {}) for name, mean in (("tree", 0.6), ("histogram", 0.7))]
    assert bench.best_rival(rows)["system"] == "histogram"
    assert [line[0] for line in bench.lines(rows)] == ["resnet", "best rival: histogram"]
    bench.show(rows)


# Maps that point to lesions


def test_a_case_is_made_again_as_it_was_written(tmp_path):
    bench = importlib.import_module("pointing")
    phantoms.make_classification_set(tmp_path / "set", cases=6, test_cases=2, progress=False)
    phantom = bench.make_again("phantom-ct-classes", "case_005")
    image = nibabel.load(tmp_path / "set" / "imagesTs" / "case_005.nii.gz")
    assert np.array_equal(image.get_fdata(dtype=np.float32), phantom.image.astype(phantom.truth["stored_as"]))
    assert np.allclose(image.affine, phantom.affine, atol=1e-4) and phantom.label.any()
    layers = [layer for own in bench.DATASETS.values() for layer in own.layers]
    assert all((find_bundle("classification") / "configs" / f"{layer}.yaml").is_file() for layer in layers)


def test_chance_is_the_lesions_share_of_the_body():
    bench = importlib.import_module("pointing")
    image, label = np.full((12, 12, 12), -1000.0), np.zeros((12, 12, 12), np.uint8)
    image[2:10, 2:10, 2:10] = 40
    image[4, 4, 4] = -1000  # air in the body is the body's
    image[0, 0, 0] = 40
    label[4:6, 4:6, 4:6] = 1
    found = bench.rivals_of(bench.Phantom(image, label, np.diag([5.0, 5, 10, 1]), {}))
    assert found[bench.CHANCE] == pytest.approx({"hit": 8 / 512, "near": 24 / 512, "energy": 8 / 512})
    assert found[bench.CENTRE] == {"hit": 0, "near": 0, "energy": 0}  # at (6, 6, 6)
    label[6, 6, 6] = 1
    assert bench.rivals_of(bench.Phantom(image, label, np.eye(4), {}))[bench.CENTRE]["hit"] == 1
    assert bench.find_body(np.full((3, 3, 3), -1000.0)).all()


def test_maps_of_an_explained_run_are_scored_and_shown(tmp_path, monkeypatch):
    bench = importlib.import_module("pointing")
    small = {index: phantoms.make_classification_case(size=16, index=index) for index in range(4)}
    small[3] = small[3]._replace(label=np.zeros_like(small[3].label))
    data = bench.Data(lambda index: small[index], ())
    monkeypatch.setitem(bench.DATASETS, "phantom-ct-classes", data)
    areas = {"insertion": 0.9, "deletion": 0.2, "random_insertion": 0.6, "random_deletion": 0.5}
    rows = [{"case": f"case_{i:03d}", "class": "a", "truth": "b" if i == 2 else "a", **areas} for i in range(4)]
    write_table(tmp_path / "explanations.csv", rows)
    for index, phantom in small.items():
        heat = phantom.label if index == 0 else 1 - phantom.label  # the second one points everywhere else
        write_volume(tmp_path / f"case_{index:03d}.nii.gz", heat.astype(np.float32), phantom.affine)
    scores, cases = bench.score_cases("phantom-ct-classes", tmp_path)
    assert cases == ["case_000", "case_001"]  # the third is wrong, the last has no lesion
    assert scores["map"]["hit"] == scores["map"]["energy"] == [1, 0] and scores["map"]["insertion"] == [0.9, 0.9]
    made = []
    for system in bench.WAYS:
        more = {"seconds": 1.0, "correlation": 0.1, "verdict": "depends on the weights"}
        made += bench.make_rows("phantom-ct-classes", system, scores["map"], more)
    for system in (bench.CHANCE, bench.CENTRE):
        made += bench.make_rows("phantom-ct-classes", system, scores[system], {"seconds": None})
    lines = bench.lines(made, "phantom-ct-classes")
    assert [line[0] for line in lines] == [*bench.WAYS, bench.CENTRE, bench.CHANCE]
    assert all(len(line) == len(bench.HEAD) for line in lines)
    assert lines[0][1:] == ["0.50 [0.00, 1.00]", lines[0][2], "0.50", "0.900 (0.600)", "0.200 (0.500)", "0.10"]
    assert lines[-1][4:] == ["", "", ""]
    bench.show(made)


# Enhancement


def test_the_table_of_enhancement_has_a_line_per_system_with_what_is_measured():
    bench = importlib.import_module("enhancement")
    common = {"dataset": "gaussian5", "n": 52}
    rows = [
        {"system": system, "metric": metric, "value": value, "ci95": [value - 0.1, value + 0.1], **common}
        for system, psnr in (("l1", 29.4), ("noisy", 26.1), ("tv", 28.4))
        for metric, value in (("psnr", psnr), ("ssim", psnr / 31), ("seconds", 0.25))
        if (system, metric) != ("noisy", "seconds")
    ]
    rows.append({"system": "l1", "metric": "volume_shift", "value": -0.4, "ci95": [-0.7, -0.1], **common})
    lines = bench.block(rows, "gaussian5").strip().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| noisy", "| tv", "| l1"]
    assert lines[4] == "| l1 | 29.40 [29.30, 29.50] | 0.948 | 0.25 | -0.40 [-0.70, -0.10] | – |"
    told = {row["metric"]: bench.verdict(row) for row in rows if row["system"] == "l1"}
    assert told["psnr"] == "≥ 29.0: met; BM4D 29.6" and told["volume_shift"] == "≤ 1.0 %: met" and told["ssim"] == ""
    assert bench.verdict(rows[0] | {"value": 28.9}).startswith("≥ 29.0: missed")
    assert bench.block(rows, "gaussian10") == "not measured yet"
