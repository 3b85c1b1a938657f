"""The page of runs: what stands on it, that it is whole, and that it stays small."""

import json
import re
import time

import nibabel
import numpy as np
import pytest
import yaml

from tomokit.errors import TomokitError
from tomokit.files import write_json, write_table, write_text
from tomokit.held_out import Promise, promise_classes, score_classes
from tomokit.metrics import summarise_classification, summarise_labels, summarise_regression, summarise_segmentation
from tomokit.report import write_report
from tomokit.report.checklist import checklist
from tomokit.report.content import read_finished
from tomokit.report.slices import choose_slices, make_viewer
from tomokit.report.tables import show

LABELS = {"0": "background", "1": "liver", "2": "<lesion> & co"}
CLASSES = ["benign", "malignant"]


def write_run(folder, task, rows, metrics, cases, labels, dataset_dir="nowhere"):
    """Write the files that a trained and evaluated run leaves."""
    split = {"training": ["t0", "t1"], "validation": ["v0"], "test": cases}
    config = {"dataset_dir": str(dataset_dir), "seed": 0, "split": "splits.json", "fold": 0, "labels": labels}
    config |= {"learning_rate": 0.01, "batch_size": 2, "cases": split, "network_def": {"_target_": "DynUNet"}}
    write_text(folder / "configs" / "train.yaml", yaml.safe_dump(config))
    write_json(folder / "metrics.json", {"task": task, "checkpoint": "best.pt, epoch 2", **metrics})
    write_table(folder / "cases.csv", rows)
    history = [{"epoch": i, "loss": 1 / i, **({"metric": 0.5 + i / 20} if i % 2 == 0 else {})} for i in range(1, 7)]
    best = {"epoch": 6, "metric": 0.8}
    write_json(
        folder / "validation.json", {"history": history, "best": best, "metric": "val_dice", "epochs": 6, "seconds": 90}
    )
    write_json(folder / "environment.json", {"data_hash": "abc123", "versions": {"tomokit": "1", "monai": "2"}})
    return folder


def segmentation_rows(count, shift=0.0):
    generator = np.random.default_rng(0)
    return [
        {
            "case": f"c{i}",
            "patient": f"p{i}",
            "class": name,
            "dice": None if name != "liver" and i == 1 else float(np.clip(generator.beta(9, 2) + shift, 0, 1)),
            "truth_ml": 100.0 + i,
            "predicted_ml": 101.0 + i + generator.normal(),
        }
        for i in range(count)
        for name in ("liver", "<lesion> & co")
    ]


def segmentation_run(folder, count=12, shift=0.0, dataset_dir="nowhere"):
    rows = segmentation_rows(count, shift)
    metrics = summarise_segmentation(rows) | {"rivals": {"threshold": summarise_segmentation(rows)}}
    cases = [f"c{i}" for i in range(count)]
    return write_run(folder, "segmentation", rows, metrics, cases, LABELS, dataset_dir)


def classification_rows(count):
    generator = np.random.default_rng(1)
    promise = Promise("classes", 99, 0.1, 0.05, least=0.4, answered=0.8)
    rows = []
    for i in range(count):
        truth = i % 2
        chance = float(generator.beta(2 + 3 * truth, 5 - 3 * truth))
        row = {
            "case": f"c{i}",
            "patient": f"p{i}",
            "truth": CLASSES[truth],
            "p_benign": 1 - chance,
            "p_malignant": chance,
        }
        rows.append(row | promise_classes(promise, {"benign": 1 - chance, "malignant": chance}))
    return rows, score_classes(promise, rows, CLASSES)


def classification_run(folder, count=40):
    rows, promises = classification_rows(count)
    summary = summarise_classification(rows, CLASSES)
    kinds = {"F": {"n": 20, "cases": 20, "summary": summary["summary"]}, "M": {"n": 2, "cases": 2, "summary": None}}
    comparison = {"malignant": {"difference": 0.1, "ci95": [-0.05, 0.2], "p": 0.2, "verdict": "tie", "n": count}}
    metrics = summary | {"promises": promises, "subgroups": {"sex": kinds}, "comparisons": {"histogram": comparison}}
    labels = {str(i): name for i, name in enumerate(CLASSES)}
    return write_run(folder, "classification", rows, metrics, [f"c{i}" for i in range(count)], labels)


@pytest.fixture
def dataset(tmp_path):
    """A data set of three cases with predictions' like: a ball in an anisotropic volume."""
    folder = tmp_path / "set"
    entries = []
    for i in range(3):
        x, y, z = np.ogrid[:20, :24, :10]
        ball = ((x - 10) ** 2 + (y - 10 - i) ** 2 + 4 * (z - 5) ** 2 < 36).astype(np.uint8)
        image = nibabel.Nifti1Image(
            ball * 100.0 + np.random.default_rng(i).normal(size=ball.shape), np.diag([1, 1, 2, 1])
        )
        for kind, content in (("images", image), ("labels", nibabel.Nifti1Image(ball, image.affine))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nibabel.save(content, folder / kind / f"c{i}.nii.gz")
        entries.append({"image": f"images/c{i}.nii.gz", "label": f"labels/c{i}.nii.gz"})
    write_json(folder / "dataset.json", {"modality": {"0": "CT"}, "labels": LABELS, "training": entries})
    return folder


def page_of(*runs, **more):
    return write_report(runs, **more).read_text()


def test_a_page_needs_nothing_beside_itself(tmp_path, dataset):
    run = segmentation_run(tmp_path / "run", 3, dataset_dir=dataset)
    (run / "predictions").mkdir()
    for i in range(3):
        nibabel.save(nibabel.load(dataset / "labels" / f"c{i}.nii.gz"), run / "predictions" / f"c{i}.nii.gz")
    page = page_of(run)
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert not re.findall(r"@import|url\((?!data:|#)", page)
    assert "<lesion>" not in page and "&lt;lesion&gt; &amp; co" in page
    assert [f"{kind}: c" in page for kind in ("worst", "median", "best")] == [True] * 3
    assert page.count('<input type="range"') == 9
    assert page.count("<svg") >= 3
    for told in ("Dice", "threshold", "abc123", "monai 2", "open:", "[0."):
        assert told in page, told


def test_the_gaps_are_named(tmp_path):
    page = page_of(segmentation_run(tmp_path / "run"))
    for remedy in ("describe the reference standard", "evaluate on an external set", "name funding and interests"):
        assert f'<span class="open">open:</span> {remedy}' in page
    assert "2 training, 1 validation, 12 test cases" in page
    assert "The data set nowhere is not here" in page


@pytest.mark.parametrize(
    ("network", "told"),
    [
        ({"_target_": "DynUNet"}, "DynUNet"),
        ({"_target_": "add_dropout", "network": {"_target_": "ResNet", "layers": [1]}}, "ResNet in add_dropout"),
        ({"_target_": "FusionNetwork", "image_network": "@images"}, "DenseNet121 in FusionNetwork"),
        ({"_target_": "FusionNetwork", "image_network": "@absent"}, "FusionNetwork"),
        (None, ""),
    ],
)
def test_the_network_is_named_with_what_stands_around_it(network, told, tmp_path):
    run = read_finished(segmentation_run(tmp_path / "run"))
    config = run.config | {"network_def": network, "images": {"_target_": "DenseNet121"}}
    items = {item.asks: item.answer for item in checklist(run._replace(config=config))}
    assert items["Which network, exactly?"] == told


def test_a_classification_page_has_curves_promises_and_kinds(tmp_path):
    page = page_of(classification_run(tmp_path / "run"))
    for told in ("ROC", "Calibration", "Confusion", "Risk and coverage", "Precision and recall", "truth inside"):
        assert told in page, told
    assert "By sex" in page and "fewer than five patients" in page
    assert "+0.100 [-0.050, +0.200]" in page and "tie" in page


def test_labels_and_values_have_pages(tmp_path):
    generator = np.random.default_rng(2)
    rows = [
        {"case": f"c{i}", "patient": f"p{i}", "truth": float(i), "prediction": i + generator.normal()} for i in range(9)
    ]
    page = page_of(write_run(tmp_path / "value", "regression", rows, summarise_regression(rows), ["c0"], {}))
    assert "Predicted and true" in page and "mean absolute error" in page
    rows = [
        {"case": f"c{i}", "patient": f"p{i}"}
        | {f"truth_{n}": (i + k) % 2 for k, n in enumerate("ab")}
        | {f"p_{n}": (i + k) % 3 / 3 for k, n in enumerate("ab")}
        | {f"decided_{n}": i % 2 for n in "ab"}
        for i in range(12)
    ]
    metrics = summarise_labels(rows, ["a", "b"])
    page = page_of(write_run(tmp_path / "labels", "multi_label", rows, metrics, ["c0"], {"0": "a", "1": "b"}))
    assert "ROC" in page and "average precision" in page


def test_runs_side_by_side_are_compared_on_their_cases(tmp_path):
    one, two = segmentation_run(tmp_path / "one", 20), segmentation_run(tmp_path / "two", 20, shift=-0.1)
    page = page_of(one, two, out=tmp_path / "both.html")
    assert "one beside two" in page
    assert re.search(
        r"mean Dice, one − it</th>.*?<td>20</td><td>\+0\.\d+ \[\+0\.\d+, \+0\.\d+\]</td>.*?better", page, re.S
    )
    assert (tmp_path / "both.html").is_file() and not (one / "report.html").exists()


def test_three_runs_are_ranked(tmp_path):
    runs = [segmentation_run(tmp_path / name, 20, shift) for name, shift in (("low", -0.2), ("high", 0), ("mid", -0.1))]
    page = page_of(*runs)
    assert re.findall(r"<tr><td>(\w+)</td><td>(\d)</td><td>\d to \d</td></tr>", page) == [
        ("high", "1"),
        ("mid", "2"),
        ("low", "3"),
    ]


def test_two_classifiers_are_compared_by_delong(tmp_path):
    page = page_of(classification_run(tmp_path / "one"), classification_run(tmp_path / "two"))
    assert "<td>malignant</td><td>40</td><td>+0.000 [+0.000, +0.000]</td>" in page


def test_runs_of_two_tasks_do_not_stand_side_by_side(tmp_path):
    runs = [segmentation_run(tmp_path / "one"), classification_run(tmp_path / "two")]
    with pytest.raises(TomokitError, match="must be of one task, got segmentation and classification"):
        write_report(runs)


def test_a_few_patients_are_said_to_be_few(tmp_path):
    assert "held the truth in" in page_of(segmentation_run(tmp_path / "few", 60))
    assert "held the truth in" not in page_of(segmentation_run(tmp_path / "many", 120))


@pytest.mark.parametrize(
    ("remove", "told"), [("configs/train.yaml", "holds no run"), ("metrics.json", "metrics.json does not exist")]
)
def test_what_is_absent_is_named(tmp_path, remove, told):
    run = segmentation_run(tmp_path / "run")
    (run / remove).unlink()
    with pytest.raises(TomokitError, match=told):
        write_report([run])


def test_scores_without_their_parts_are_named(tmp_path):
    run = segmentation_run(tmp_path / "run")
    (run / "metrics.json").write_text(json.dumps({"task": "segmentation"}))
    with pytest.raises(TomokitError, match=r"lacks \['summary', 'per_class'\]; run `make evaluate RUN=run` again"):
        write_report([run])


def test_no_run_is_refused():
    with pytest.raises(TomokitError, match="no run to report, got an empty list"):
        write_report([])


def test_a_thousand_cases_stay_small_and_fast(tmp_path):
    run = segmentation_run(tmp_path / "run", 1000)
    began = time.process_time()
    page = write_report([run])
    assert page.stat().st_size < 20e6
    assert time.process_time() - began < 60


def test_slices_spread_over_what_is_found():
    found = np.zeros((10, 10, 100), bool)
    found[4:6, 4:6, 40:60] = True
    places = choose_slices(found, 2)
    assert len(places) == 24 and places[0] == 37 and places[-1] == 62
    assert choose_slices(np.zeros((5, 5, 3), bool), 2) == [0, 1, 2]


def test_a_viewer_turns_any_orientation_and_keeps_proportions():
    labels = np.zeros((10, 20, 8), np.uint8)
    labels[2:5, 5:9, 1:4] = 1
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    straight = make_viewer("a", "", labels * 10.0, labels, labels, affine, LABELS)
    flipped = nibabel.Nifti1Image(labels, affine).as_reoriented(nibabel.orientations.axcodes2ornt("PSL"))
    arrays = np.asarray(flipped.dataobj)
    turned = make_viewer("a", "", arrays * 10.0, arrays, arrays, flipped.affine, LABELS)
    assert turned == straight
    axial, coronal, sagittal = straight.planes
    assert (axial.width, axial.height) == (160, 320) and (coronal.width, coronal.height) == (133, 320)
    assert (sagittal.width, sagittal.height) == (267, 320)
    assert [plane.letters for plane in straight.planes] == ["RLAP", "RLSI", "APSI"]
    assert [name for name, _ in straight.legend] == ["liver"]


def test_scores_as_texts():
    assert show({"mean": 0.12345, "ci95": [0.1, 0.2]}) == "0.123 [0.100, 0.200]"
    assert show({"mean": 123.456, "ci95": None}) == "123.5"
    assert show({"mean": None, "ci95": None}) == show(None) == "–"
