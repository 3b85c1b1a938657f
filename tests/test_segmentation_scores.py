"""What an evaluation of a segmentation writes of cases, structures and lesions whose fate is known."""

import csv
import json

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine

from tomokit.engines import attach_segmentation_scores
from tomokit.engines.checkpoints import save
from tomokit.errors import TomokitError

LABELS = {"0": "background", "1": "liver", "2": "liver_tumour"}
AFFINE = np.diag([2.0, 1.0, 5.0, 1.0])  # 0.01 ml a voxel
SHAPE = (20, 22, 8)


def cases():
    """Return truth and prediction of two cases, with one tumour found, one missed, one invented."""
    truths, predictions = np.zeros((2, 2, *SHAPE), np.uint8)
    truths[:, 4:14, 4:14, 2:6] = 1
    predictions[0] = truths[0]
    predictions[1, 5:15, 4:14, 2:6] = 1  # by 2 mm
    truths[0, 5:7, 5:7, 3] = predictions[0, 6:8, 5:7, 3] = 2
    truths[0, 11:13, 11:13, 4] = 2
    predictions[1, 18, 18, 6] = 2
    return truths, predictions


def evaluate(folder, truths, predictions, more=(), **options):
    """Return the rows of cases and lesions (None without a table) that an evaluation writes, and its measures."""
    save({}, folder / "checkpoints" / "best.pt")
    entries = []
    for number, (truth, prediction) in enumerate(zip(truths, predictions, strict=True)):
        paths = {kind: folder / kind / f"c{number}.nii.gz" for kind in ("image", "label", "predictions")}
        for path, array in zip(paths.values(), (truth, truth, prediction), strict=True):
            path.parent.mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
        entry = {"case": f"c{number}", "patient": f"p{number}"}
        entries.append(entry | {key: str(paths[key]) for key in ("image", "label")} | dict(more))

    def step(engine, numbers):
        engine.state.batch = [entries[i] for i in numbers]
        return [{"pred": torch.from_numpy(predictions[i])[None]} for i in numbers]

    engine = Engine(step)
    parts = {"training": [], "test": entries}
    attach_segmentation_scores(engine, folder, folder / "predictions", "best", LABELS, parts, False, **options)
    engine.run([[number] for number in range(len(truths))])
    tables = [read_table(folder / name) for name in ("cases.csv", "lesions.csv")]
    return *tables, json.loads((folder / "metrics.json").read_text())


def read_table(path):
    return list(csv.DictReader(path.open(newline=""))) if path.exists() else None


def test_cases_and_lesions(tmp_path):
    rows, lesions, measures = evaluate(tmp_path, *cases(), tolerance_mm=2.0)
    assert [(row["case"], row["class"]) for row in rows] == [
        (case, name) for case in ("c0", "c1") for name in ("liver", "liver_tumour")
    ]
    assert float(rows[2]["nsd"]) == 1 and float(rows[2]["hd95_mm"]) == 2 and float(rows[2]["difference_ml"]) == 0
    invented = rows[3]
    assert (invented["nsd"], invented["hd95_mm"]) == ("0.0", "")
    assert float(invented["difference_ml"]) == pytest.approx(0.01)
    assert [list(row.values())[:4] for row in lesions] == [
        ["c0", "p0", "liver_tumour", "found"],
        ["c0", "p0", "liver_tumour", "missed"],
        ["c1", "p1", "liver_tumour", "invented"],
    ]
    assert [float(row["ml"]) for row in lesions] == pytest.approx([0.04, 0.04, 0.01])
    assert list(lesions[0]) == ["case", "patient", "class", "status", "ml"]
    assert measures["tolerance_mm"] == 2 and set(measures["summary"]) == {"dice", "nsd", "hd95_mm"}
    found = measures["lesions"]["liver_tumour"]
    assert (found["sensitivity"]["mean"], found["precision"]["mean"], found["false_positives"]["mean"]) == (0.5,) * 3
    assert measures["per_class"]["liver_tumour"]["invented"] == 1 and measures["per_class"]["liver"]["missed"] == 0


def test_a_lower_tolerance_is_stricter(tmp_path):
    assert float(evaluate(tmp_path, *cases())[0][2]["nsd"]) < 0.9  # 1 mm unless said


def test_lesions_are_named_or_none_and_an_earlier_table_goes(tmp_path):
    evaluate(tmp_path, *cases())
    _, lesions, measures = evaluate(tmp_path, *cases(), lesions=[])
    assert lesions is None and "lesions" not in measures
    _, lesions, measures = evaluate(tmp_path, *cases(), lesions=["liver"])
    assert list(measures["lesions"]) == ["liver"] and [row["status"] for row in lesions] == ["found"] * 2


def test_what_nobody_annotated_is_no_invention(tmp_path):
    truths, predictions = cases()
    truths[truths == 2] = 1
    rows, lesions, measures = evaluate(tmp_path, truths, predictions, {"labelled": [1]}.items())
    assert {row["class"] for row in rows} == {"liver"} and lesions is None and "lesions" not in measures


def test_ignored_voxels_are_no_surface_and_no_lesion(tmp_path):
    truths, predictions = cases()
    truths[1, 16:] = 255  # where a tumour was invented
    rows, lesions, _ = evaluate(tmp_path, truths, predictions, ignore_label=255)
    assert {row["status"] for row in lesions} == {"found", "missed"} and rows[3]["nsd"] == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lesions": ["tumor"]},
            r"`lesions` names \['tumor'\], which are not of the labels \['liver', 'liver_tumour'\]",
        ),
        ({"lesions": ["background"]}, r"`lesions` names \['background'\]"),
        ({"tolerance_mm": 0}, "`tolerance_mm` must be above 0, such as 1.0, got 0"),
    ],
)
def test_impossible_settings_are_told_before_the_network_runs(tmp_path, options, message):
    with pytest.raises(TomokitError, match=message):
        evaluate(tmp_path, *cases(), **options)
    assert not (tmp_path / "cases.csv").exists()
