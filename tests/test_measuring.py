"""The mode that measures label maps, behind inference and evaluation: small real runs of a network that thresholds."""

import csv
import json

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import config
from grids import oblique_affine
from ignite.engine import Engine
from monai.transforms import LoadImaged

from tomokit.engines import StructureMeasures
from tomokit.engines.checkpoints import save
from tomokit.engines.progress import ProgressBar
from tomokit.errors import TomokitError
from tomokit.measure import COLUMNS, measure_structures
from tomokit.reading import ScanReader

LABELS = {"0": "background", "1": "nodule"}
NETWORK = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}


def make_scan(shape=(20, 18, 16)) -> np.ndarray:
    """Return a scan with two bright boxes, of 5 × 4 × 6 and 2 × 3 × 2 voxels."""
    image = np.full(shape, -100.0, np.float32)
    image[3:8, 4:8, 5:11] = 60
    image[12:14, 10:13, 3:5] = 40
    return image


def run_mode(run, *stages: str, **more) -> None:
    """Run stages of the bundle, and the mode behind them, with a network that calls what is above 0 a nodule."""
    weights = {"weight": torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1, 1), "bias": torch.zeros(2)}
    save(weights, run / "checkpoints" / "best.pt")
    monai.bundle.run(
        config_file=config("segmentation", "train", *stages, "modes/measures"),
        run_dir=str(run),
        spacing=[1.5, 1.5, 3.0],
        labels=LABELS,
        network_def=NETWORK,
        intensity={"_target_": "Identityd", "keys": "image"},
        patch_size=[16, 16, 16],
        **more,
    )


def read_rows(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_measures_lie_beside_the_label_maps(write_volume, tmp_path):
    image, affine = make_scan(), oblique_affine("LPS", (20, 18, 16))
    for name in ("a", "b"):
        write_volume(f"scans/{name}.nii.gz", image + (5 if name == "b" else 0), affine)
    run_mode(tmp_path / "run", "inference", input=str(tmp_path / "scans"), **{"inferer#body_crop": False})
    folder = tmp_path / "run" / "inference"
    content, rows = json.loads((folder / "measures.json").read_text()), read_rows(folder / "measures.csv")
    assert content["columns"] == COLUMNS and content["lesions"] == ["nodule"]
    written = nibabel.load(folder / "a.nii.gz")
    label_map, affine = np.asanyarray(written.dataobj), written.affine
    for name, more in (("a", 0), ("b", 5)):
        assert content["cases"][name] == measure_structures(label_map, LABELS, affine, image + more, unit="HU")
    assert list(rows[0]) == ["case", *COLUMNS]
    told = [(row["case"], row["structure"], row["piece"], row["voxels"], row["density_mean"]) for row in rows]
    assert told[:3] == [
        ("a", "nodule", "", "132", str((120 * 60 + 12 * 40) / 132)),
        ("a", "nodule", "1", "120", "60.0"),
        ("a", "nodule", "2", "12", "40.0"),
    ]
    assert told[5] == ("b", "nodule", "2", "12", "45.0")
    assert rows[1]["box_first"] == "3 4 5" and rows[1]["axial_longest_ends_mm"].count(";") == 1
    assert [len(end.split()) for end in rows[1]["axial_longest_ends_mm"].split("; ")] == [3, 3]


def test_a_scan_that_is_no_ct_has_no_unit_and_lesions_may_be_named(write_volume, tmp_path):
    write_volume("scans/a.nii.gz", make_scan(), np.diag([1.5, 1.5, 3.0, 1.0]))
    given = {"input": str(tmp_path / "scans"), "modality": ["MRI"], "lesions": [], "output_dir": str(tmp_path / "out")}
    run_mode(tmp_path / "run", "inference", **given)
    (row,) = read_rows(tmp_path / "out" / "measures.csv")
    assert (row["piece"], row["pieces"], row["density_unit"]) == ("", "2", "")


def test_the_predictions_of_an_evaluation_are_measured_too(write_volume, tmp_path):
    affine = np.diag([1.5, 1.5, 3.0, 1.0])
    case = {"case": "a", "patient": "a", "image": write_volume("a.nii.gz", make_scan(), affine)}
    case["label"] = write_volume("label.nii.gz", (make_scan() > 50).astype(np.uint8), affine)
    cases = {"training": [], "validation": [], "test": [case]}
    run_mode(tmp_path / "run", "evaluate", cases=cases, rival=False, **{"inferer#body_crop": False})
    rows = read_rows(tmp_path / "run" / "predictions" / "measures.csv")
    assert [(row["case"], row["piece"], row["voxels"]) for row in rows] == [
        ("a", "", "132"),
        ("a", "1", "120"),
        ("a", "2", "12"),
    ]
    assert (tmp_path / "run" / "metrics.json").is_file()


@pytest.fixture
def measured(write_volume, tmp_path):
    """Return a function that measures a label map of a scan in an engine."""
    source = write_volume("scan.nii.gz", make_scan(), np.eye(4))
    image = LoadImaged("image", reader=ScanReader(), ensure_channel_first=True)({"image": source})["image"]

    def run(*label_maps: np.ndarray) -> None:
        def step(engine, label_map):
            engine.state.batch = [{"case": "case_1", "image": image}]
            return [{"pred": torch.as_tensor(label_map)[None]}]

        engine = Engine(step)
        StructureMeasures(LABELS, tmp_path / "out", ["CT"]).attach(engine)
        ProgressBar("infer", "case").attach(engine)  # which raises an error again, as in each stage
        engine.run(label_maps)

    return run


def test_a_label_map_on_another_grid_is_told_and_the_scans_before_are_kept(measured, tmp_path, caplog):
    right, wrong = np.zeros((20, 18, 16), np.uint8), np.zeros((18, 20, 16), np.uint8)
    right[4, 5, 6] = 1
    with pytest.raises(
        TomokitError, match=r"case_1 can't be measured: image \(20, 18, 16\) and label map \(18, 20, 16\)"
    ):
        measured(right, wrong)
    assert [row["piece"] for row in read_rows(tmp_path / "out" / "measures.csv")] == ["", "1"]
    assert "holds the 2 rows before TomokitError" in caplog.text
    assert not (tmp_path / "out" / "measures.json").exists()


def test_other_processes_write_nothing(measured, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    measured(np.zeros((20, 18, 16), np.uint8))
    assert not (tmp_path / "out").exists()
