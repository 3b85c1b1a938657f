"""The page of one new scan, from small real runs."""

import base64
import io

import nibabel
import numpy as np
import pytest
from bundle_runs import SMALL_UNET, follow, train
from PIL import Image

from tomokit import phantoms
from tomokit.errors import TomokitError
from tomokit.files import read_json, write_json
from tomokit.held_out import FILE, Promise
from tomokit.report import write_case_page, write_report
from tomokit.report.case_page import _doubts, _picture, _structures

SIZES = {"patch_size": [16, 16, 16], "minimum_size": [32, 32, 32], "network_def": SMALL_UNET}


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    """A run of two epochs on phantoms, evaluated, and a scan of its set."""
    folder = tmp_path_factory.mktemp("segmented")
    phantoms.make_segmentation_set(folder / "set", "CT", cases=10, test_cases=3, size=32, progress=False)
    run = train("segmentation", folder / "run", dataset_dir=str(folder / "set"), **SIZES)
    follow("segmentation", run, "evaluate")
    return run, sorted((folder / "set").glob("images*/*"))[-1]


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classified")
    phantoms.make_classification_set(folder / "set", cases=24, test_cases=6, size=32, progress=False)
    run = train("classification", folder / "run", dataset_dir=str(folder / "set"))
    follow("classification", run, "evaluate")
    return run, sorted((folder / "set").glob("images*/*"))[-1]


def test_what_training_and_evaluation_leave_for_the_pages(segmented):
    run, _ = segmented
    kept = read_json(run / FILE)
    assert kept["task"] == "segmentation" and set(kept["volumes"]) == {"liver", "spleen", "lesion"}
    metrics = read_json(run / "metrics.json")
    assert {"dice", "nsd", "hd95_mm"} <= set(metrics["summary"])
    assert metrics["tolerance_mm"] == 1.0 and set(metrics["lesions"]) == {"lesion"}
    assert metrics["promises"]["calibration_cases"] == len(kept["volumes"]["liver"]["truth_ml"])
    assert (run / "lesions.csv").is_file() and (run / "range.json").is_file()


def test_a_page_of_a_segmented_scan(segmented, tmp_path):
    run, image = segmented
    path = write_case_page(image, run, out=tmp_path / "page.html")
    page = path.read_text()
    for told in ("Findings", "liver", "spleen", "lesion", "ml, promised", "HU", "axial", "Refer to a human"):
        assert told in page, told
    assert page.count('type="range"') == 3
    assert nibabel.load(tmp_path / "page_files" / image.name).shape == nibabel.load(image).shape
    assert not list(run.glob("inference/*"))


def test_a_scan_outside_the_training_range_is_named(segmented, tmp_path):
    run, image = segmented
    scan = nibabel.load(image)
    thick = nibabel.Nifti1Image(np.asarray(scan.dataobj)[:, :, ::2], scan.affine @ np.diag([1, 1, 2, 1]))
    nibabel.save(thick, tmp_path / "thick.nii.gz")
    page = write_case_page(tmp_path / "thick.nii.gz", run, out=tmp_path / "page.html").read_text()
    assert "in training" in page and "spacing" in page


def test_a_page_of_a_classified_scan(classified):
    run, image = classified
    path = write_case_page(image, run)
    assert path.parent == run / "inference"
    page = path.read_text()
    for told in ("probability", "fits", "Refer to a human", "Answer: "):
        assert told in page, told


def test_the_reports_of_both_runs_hold_their_parts(segmented, classified):
    page = write_report([segmented[0]]).read_text()
    assert "the interval is endless" in page  # of a single validation case
    for told in ("NSD", "HD95, mm", "Lesions, one by one", "By labelled volume", "worst", "volume bias, ml"):
        assert told in page, told
    page = write_report([classified[0]]).read_text()
    for told in ("ROC", "Confusion", "What is promised", "farthest from the truth"):
        assert told in page, told


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "RPS"])
def test_a_radiograph_is_shown_as_a_reader_sees_it(axes):
    bright = np.zeros((12, 8, 1))
    bright[:4, :4] = 1  # in RAS: to the patient's left and the back, which is right and below on the page
    signs = [1 if axis in "RAS" else -1 for axis in axes]
    picture = _picture("case", bright[:: signs[0], :: signs[1]], np.diag([*signs, 1.0]))
    with Image.open(io.BytesIO(base64.b64decode(picture.split(",")[-1]))) as shown:
        grey = np.asarray(shown.convert("L"), float)
    height, width = (size // 2 for size in grey.shape)
    assert width > height
    quarters = {"above": grey[:height], "below right": grey[height:, width + width // 2 :], "left": grey[:, :width]}
    assert quarters["below right"].mean() > 200
    assert max(quarters["above"].mean(), quarters["left"].mean()) < 100


def test_doubts_name_what_is_absent_and_cut_off():
    rows = [
        {"structure": "liver", "piece": "", "voxels": 0, "touches_edge": None},
        {"structure": "lesion", "piece": "", "voxels": 0, "touches_edge": None},
        {"structure": "spleen", "piece": "", "voxels": 9, "touches_edge": True},
    ]
    promise = Promise("segmentation", 20, 0.1, 0.05, reach={"spleen": 1.0})
    assert list(_doubts(rows, promise, ["lesion"])) == [
        "no liver was found",
        "spleen reaches the edge of the scan, which may cut it off",
    ]
    assert list(_doubts([], None, []))[-1].startswith("the run had no validation cases")


DENSE = {"density_mean": 40.0, "density_sd": 5.0}


def test_an_interval_stands_beside_a_volume():
    sizes = {"axial_longest_mm": 10.0, "axial_short_mm": 8.0, "longest_diameter_mm": 12.0, "centre_mm": [1, 2, 3]}
    row = {
        "structure": "spleen",
        "piece": "",
        "voxels": 9,
        "volume_ml": 1.0 - 0.01,
        "density_mean": 40.0,
        "density_sd": 5.0,
    }
    promise = Promise("segmentation", 20, 0.1, 0.05, reach={"spleen": 0.5})
    table = _structures([row | sizes], promise, "HU")
    assert table.rows == [["spleen", "0.99", "0.49 to 1.49", "10.0", "8.0", "12.0", "1, 2, 3", "40 ± 5"]]
    endless = _structures([row | sizes], promise._replace(reach={"spleen": float("inf")}), "HU")
    assert endless.rows[0][2] == "too few validation cases" and endless.note == ""
    many = [row | sizes | {"pieces": 12}, *(row | sizes | {"piece": number} for number in range(1, 13))]
    names = [line[0] for line in _structures(many, promise, "HU").rows]
    assert names == ["spleen, 12 pieces", *(f"spleen, piece {number}" for number in range(1, 11))]
    assert table.head[-1] == "density, HU" and "90% of such scans, by 20" in table.note


def test_what_has_no_page_is_told(segmented, tmp_path):
    _, image = segmented
    with pytest.raises(TomokitError, match="holds no run that was trained and evaluated"):
        write_case_page(image, tmp_path)
    write_json(tmp_path / "metrics.json", {"task": "pairs"})
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "train.yaml").write_text("{}")
    with pytest.raises(TomokitError, match="of the task 'pairs', which has no page of a single scan"):
        write_case_page(image, tmp_path)
