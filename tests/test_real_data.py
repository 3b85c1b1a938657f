"""On real scans: run with TOMOKIT_MIRROR set to a folder of the real data sets."""

import json

import monai.bundle
import monai.transforms
import nibabel
import numpy as np
import pytest
from bundle_runs import SMALL_UNET, config, follow

from tomokit.catalogue import get_dataset
from tomokit.checks import check_cases, check_dataset
from tomokit.datasets import read_entries, select_cases
from tomokit.importers import import_dataset

pytestmark = pytest.mark.mirror
LABELS = {"0": "background", "1": "anterior", "2": "posterior"}


@pytest.fixture(scope="module")
def hippocampus(mirror, tmp_path_factory):
    return get_dataset("hippocampus", tmp_path_factory.mktemp("sets") / "hippocampus", mirror)


def test_all_260_hippocampus_cases_pass_the_check(hippocampus):
    cases = select_cases(hippocampus, "splits.json", 0)
    assert [len(cases[part]) for part in ("training", "validation", "test")] == [191, 17, 52]
    check_cases(cases, hippocampus, LABELS, ["MRI"], (1, 1, 1), (40, 56, 40), (40, 56, 40))


def test_a_short_run_on_hippocampus_learns_and_predicts_on_the_sources(hippocampus, tmp_path):
    names = json.loads((hippocampus / "splits.json").read_text())["folds"][0]
    lists = {"training": names["training"][:24], "validation": names["validation"][:2], "test": names["test"][:4]}
    monai.bundle.run(
        config_file=[*config("segmentation", "train", "data/hippocampus")],
        dataset_dir=str(hippocampus),
        run_dir=str(tmp_path / "run"),
        network_def=SMALL_UNET | {"filters": [8, 16, 32]},
        epochs=12,
        val_interval=12,
        learning_rate=0.02,
        **{f"cases#{part}": cases for part, cases in lists.items()},
    )
    follow("segmentation", tmp_path / "run", "evaluate")
    measures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert measures["summary"]["dice"]["mean"] > 0.5
    for case in lists["test"]:
        source = nibabel.load(hippocampus / "imagesTr" / f"{case}.nii.gz")
        prediction = nibabel.load(tmp_path / "run" / "predictions" / f"{case}.nii.gz")
        assert prediction.shape == source.shape and np.array_equal(prediction.affine, source.affine)


def test_the_whole_check_of_hippocampus_ends_with_warnings_only(hippocampus):
    report = check_dataset(hippocampus, progress=False)
    assert len(report.cases) == 260 and report.exit_code == 0
    kinds = {kind: [f.case for f in report.findings if f.kind == kind] for kind in {f.kind for f in report.findings}}
    assert set(kinds) == {"intensity_domains", "label_islands", "label_does_not_fit"}
    assert len(kinds["intensity_domains"]) == 88  # two domains beside that of 172 cases
    assert kinds["label_islands"] == ["hippocampus_156"]  # four voxels away from the anterior part
    assert len(kinds["label_does_not_fit"]) == 4  # displaced by about two voxels, as pictures show


@pytest.mark.parametrize(
    ("source", "options", "kinds", "shape"),
    [
        (
            "reference_ct_mr/ct_dicom",
            {"labels": "reference_ct_mr/example_seg_dicom.nii.gz"},
            set(),
            (1, 512, 512, 20),
        ),
        ("dicom_t1_mr", {}, set(), (1, 274, 384, 32)),
        ("multiple_sclerosis", {}, set(), (4, 91, 109, 91)),
        (
            "chest_xray_clinical",
            {"label_columns": ["sex"]},
            {"clinical_infinite", "clinical_missing", "clinical_unit"},
            None,
        ),
    ],
)
def test_an_imported_set_is_checked_and_loads_as_the_bundles_load_it(mirror, tmp_path, source, options, kinds, shape):
    if "labels" in options:
        options = {"labels": mirror / options["labels"]}
    folder = import_dataset(mirror / source, tmp_path / "set", **options).target
    report = check_dataset(folder, progress=False)
    assert {finding.kind for finding in report.findings} - {"clinical_unit"} == kinds - {"clinical_unit"}
    load = monai.transforms.Compose(
        [
            monai.transforms.LoadImaged(["image"], reader="NibabelReader", ensure_channel_first=True),
            monai.transforms.Orientationd(["image"], axcodes="RAS", labels=None),
        ]
    )
    image = load(read_entries(folder, labelled=False)[0])["image"]
    assert image.isfinite().all() and (shape is None or tuple(image.shape) == shape)
