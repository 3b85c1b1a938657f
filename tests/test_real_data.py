"""On real scans: run with TOMOKIT_MIRROR set to a folder of the real data sets."""

import json

import monai.bundle
import nibabel
import numpy as np
import pytest
from bundle_runs import SMALL_UNET, config, follow

from tomokit.catalogue import get_dataset
from tomokit.checks import check_cases
from tomokit.datasets import select_cases

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
