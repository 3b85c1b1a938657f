"""Thresholds and histograms: right where they can be, and unable to solve the phantoms."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tomokit import phantoms, rivals
from tomokit.errors import TomokitError


def read_entries(directory, part):
    dataset = json.loads((directory / "dataset.json").read_text())
    return [
        {
            "case": Path(entry["image"]).name.removesuffix(".nii.gz"),
            "patient": entry["patient"],
            "image": directory / entry["image"],
            "label": entry["label"] if isinstance(entry["label"], int) else directory / entry["label"],
        }
        for entry in dataset[part]
    ]


def save(path, volume):
    nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
    return path


def write_entry(directory, name, image, label):
    image = save(directory / f"{name}.nii", image)
    label = save(directory / f"{name}-label.nii", label) if isinstance(label, np.ndarray) else label
    return {"case": name, "image": image, "label": label}


def dice(found, truth):
    return 2 * np.sum(found & truth) / (found.sum() + truth.sum())


def test_a_structure_with_its_own_intensities_is_found_exactly():
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 3, (6, 7, 8)) for _ in range(3)]
    images = [np.choose(label, [0, 100, 200]) + rng.uniform(-20, 20, label.shape) for label in labels]
    intervals = rivals.fit_thresholds(images, labels, 3)
    assert len(intervals) == 2
    for value, interval in enumerate(intervals, start=1):
        for image, label in zip(images, labels, strict=True):
            assert np.array_equal(rivals.apply_threshold(image, interval), label == value)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_no_interval_is_better_than_the_fitted_one(dtype):
    rng = np.random.default_rng(1)
    labels = [rng.random((8, 8, 8)) < 0.3 for _ in range(4)]
    images = [np.rint(rng.normal(5 + 4 * label, 3)).astype(dtype) for label in labels]
    (fitted,) = rivals.fit_thresholds(images, [label.astype(np.uint8) for label in labels], 2, bins=4000)

    def mean_dice(interval):
        pairs = zip(images, labels, strict=True)
        return np.mean([dice(rivals.apply_threshold(image, interval), label) for image, label in pairs])

    best = max(mean_dice((low, high)) for low in range(-6, 20) for high in range(low, 24))
    assert mean_dice(fitted) == pytest.approx(best, abs=0.01)


def test_a_constant_structure_has_an_interval():
    image = np.array([[0, 0, 7, 7]])
    intervals = rivals.fit_thresholds([image], [(image == 7).astype(int)], 2)
    assert intervals == [(7, 7)]


def test_both_ends_belong_to_the_interval():
    assert rivals.apply_threshold(np.array([1, 2, 3, 4]), (2, 3)).tolist() == [False, True, True, False]


def test_normalised_intensity_does_not_depend_on_scale_and_offset():
    image = np.random.default_rng(0).normal(size=(9, 9, 9))
    normalised = rivals.normalise_intensity(image)
    assert np.allclose(normalised, rivals.normalise_intensity(37 * image - 5), atol=1e-4)
    assert np.percentile(normalised, (1, 99)) == pytest.approx([0, 1], abs=1e-5)
    assert np.isfinite(rivals.normalise_intensity(np.ones((2, 2)))).all()


def test_normalisation_is_used_where_it_helps(tmp_path):
    rng = np.random.default_rng(2)
    entries = []
    for number, scale in enumerate((1, 30, 5, 200)):
        label = (rng.random((10, 10, 10)) < 0.3).astype(np.uint8)
        image = (scale * (label + rng.uniform(0, 0.3, label.shape))).astype(np.float32)
        entries.append(write_entry(tmp_path, f"case_{number}", image, label))
    rows = rivals.score_thresholds(entries[:3], entries[3:], {"0": "background", "1": "tumour"})
    assert len(rows) == 1 and rows[0]["dice"] > 0.98
    assert (rows[0]["case"], rows[0]["patient"], rows[0]["class"]) == ("case_3", "case_3", "tumour")


def test_dice_is_none_where_truth_and_prediction_are_empty(tmp_path):
    image = np.zeros((4, 4, 4), np.float32)
    image[:2] = 9
    training = [write_entry(tmp_path, "a", image, (image > 0).astype(np.uint8))]
    empty = np.zeros((4, 4, 4), np.float32)
    test = [write_entry(tmp_path, "b", empty, empty.astype(np.uint8))]
    test.append(write_entry(tmp_path, "c", image, empty.astype(np.uint8)))
    rows = rivals.score_thresholds(training, test, {"0": "background", "1": "organ"})
    assert [row["dice"] for row in rows] == [None, 0.0]


@pytest.mark.parametrize("modality", phantoms.MODALITIES)
def test_no_threshold_solves_the_segmentation_phantom(modality, tmp_path):
    phantoms.make_segmentation_set(tmp_path, modality, cases=16, test_cases=6, size=32, progress=False)
    labels = json.loads((tmp_path / "dataset.json").read_text())["labels"]
    rows = rivals.score_thresholds(read_entries(tmp_path, "training"), read_entries(tmp_path, "test"), labels)
    assert len(rows) == 6 * 3
    for name in ("liver", "spleen", "lesion"):
        assert np.mean([row["dice"] for row in rows if row["class"] == name]) <= 0.6


@pytest.mark.parametrize("modality", phantoms.MODALITIES)
def test_no_histogram_solves_the_classification_phantom(modality, tmp_path):
    phantoms.make_classification_set(tmp_path, modality, cases=160, test_cases=80, progress=False)
    classes = json.loads((tmp_path / "dataset.json").read_text())["labels"]
    rows = rivals.score_histogram(read_entries(tmp_path, "training"), read_entries(tmp_path, "test"), classes)
    truth = [row["truth"] == "elongated" for row in rows]
    assert len(rows) == 80 and sum(truth) == 40
    assert roc_auc_score(truth, [row["p_elongated"] for row in rows]) <= 0.75


def test_a_histogram_tells_classes_of_different_intensity(tmp_path):
    rng = np.random.default_rng(3)
    entries = []
    for number in range(16):
        image = rng.normal(100 if number % 2 else 0, 30, (8, 8, 8)).astype(np.float32)
        entries.append(write_entry(tmp_path, f"case_{number}", image, number % 2))
    rows = rivals.score_histogram(entries[:12], entries[12:], {"0": "dark", "1": "bright", "2": "absent"})
    assert [row["truth"] for row in rows] == ["dark", "bright"] * 2
    for row in rows:
        assert row[f"p_{row['truth']}"] > 0.9 and row["p_absent"] == 0
        assert sum(row[f"p_{name}"] for name in ("dark", "bright", "absent")) == pytest.approx(1)


def test_a_missing_partner_is_named():
    volume = np.ones((2, 2, 2))
    with pytest.raises(TomokitError, match="got 2 images and 1 label maps"):
        rivals.fit_thresholds([volume, volume], [volume], 2)


def test_different_shapes_are_named(tmp_path):
    image, label = np.ones((2, 2, 2), np.float32), np.ones((2, 2, 3), np.uint8)
    with pytest.raises(TomokitError, match=r"case 0: image \(2, 2, 2\) and label \(2, 2, 3\)"):
        rivals.fit_thresholds([image], [label], 2)
    entry = write_entry(tmp_path, "case_7", image, label)
    with pytest.raises(TomokitError, match=r"case_7: image \(2, 2, 2\)"):
        rivals.score_thresholds([entry], [entry], {"0": "background", "1": "organ"})


def test_an_absent_label_is_named():
    volume = np.ones((2, 2, 2), int)
    with pytest.raises(TomokitError, match="label 2, 3 occurs in no training case"):
        rivals.fit_thresholds([volume], [volume], 4)


def test_an_unknown_class_is_named(tmp_path):
    entry = write_entry(tmp_path, "case_1", np.ones((2, 2, 2), np.float32), 5)
    with pytest.raises(TomokitError, match="case_1 has the label 5; the classes are 0, 1"):
        rivals.score_histogram([entry], [entry], {"0": "no", "1": "yes"})


def test_a_single_training_class_is_named(tmp_path):
    entry = write_entry(tmp_path, "case_1", np.ones((2, 2, 2), np.float32), 1)
    with pytest.raises(TomokitError, match="got only: yes"):
        rivals.score_histogram([entry], [entry], {"0": "no", "1": "yes"})
