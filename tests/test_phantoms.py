"""The phantoms' truth, geometry, determinism and files, and what a threshold or a histogram can't tell."""

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from tomokit import phantoms
from tomokit.errors import TomokitError
from tomokit.phantoms import abdomens

SIZE = 32


def voxel_ml(case):
    return abs(np.linalg.det(case.affine[:3, :3])) / 1000


def centroid_mm(case, value):
    """The label's centre in world coordinates, told from the centre of the volume."""
    voxels = np.argwhere(case.label == value).mean(0) - (np.array(case.label.shape) - 1) / 2
    return case.affine[:3, :3] @ voxels


@pytest.fixture(scope="module", params=phantoms.MODALITIES)
def cases(request):
    return [phantoms.make_segmentation_case(request.param, SIZE, seed=0, index=index) for index in range(10)]


@pytest.fixture(scope="module")
def segmentation_set(tmp_path_factory):
    directory = tmp_path_factory.mktemp("segmentation")
    phantoms.make_segmentation_set(directory, "MRI", cases=6, test_cases=2, size=16, seed=3, progress=False)
    return directory


@pytest.fixture(scope="module")
def classification_set(tmp_path_factory):
    directory = tmp_path_factory.mktemp("classification")
    phantoms.make_classification_set(directory, "CT", cases=24, test_cases=4, size=16, seed=3, progress=False)
    return directory


@pytest.mark.parametrize("make", [phantoms.make_segmentation_case, phantoms.make_classification_case])
@pytest.mark.parametrize("modality", phantoms.MODALITIES)
def test_the_same_seed_and_index_give_the_same_bytes(make, modality):
    first, again, other = make(modality, 24, 5, 2), make(modality, 24, 5, 2), make(modality, 24, 6, 2)
    assert first.image.tobytes() == again.image.tobytes() and first.label.tobytes() == again.label.tobytes()
    assert np.array_equal(first.affine, again.affine) and first.truth == again.truth
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("make", [phantoms.make_segmentation_case, phantoms.make_classification_case])
def test_ct_and_mri_show_the_same_patient_on_the_same_grid(make):
    ct, mri = make("CT", 24, 0, 1), make("MRI", 24, 0, 1)
    assert np.array_equal(ct.label, mri.label) and np.array_equal(ct.affine, mri.affine)
    assert ct.truth["volumes_ml"] == mri.truth["volumes_ml"]


def test_arrays_have_the_promised_shapes_and_types(cases):
    for case in cases:
        assert case.image.shape == case.label.shape == (SIZE,) * 3
        assert (case.image.dtype, case.label.dtype, case.affine.dtype) == (np.float32, np.uint8, np.float64)
        assert np.isfinite(case.image).all()
        assert set(np.unique(case.label)) == {0, 1, 2, 3}


def test_labelled_volumes_agree_with_the_truth(cases):
    for value, name in ((1, "liver"), (2, "spleen"), (3, "lesion")):
        measured = np.array([np.sum(case.label == value) * voxel_ml(case) for case in cases])
        known = np.array([case.truth["volumes_ml"][name] for case in cases])
        # At 32 voxels an axis a spleen or lesion is a few voxels wide: partial volume is a tenth of it.
        assert np.abs(measured / known - 1).max() < 0.15
        assert abs(measured.sum() / known.sum() - 1) < 0.05


def test_lesion_volume_is_that_of_its_ellipsoid_at_full_size():
    case = phantoms.make_segmentation_case("CT", 64, seed=0, index=0)
    for lesion in case.truth["lesions"]:
        assert lesion["volume_ml"] == pytest.approx(4e-3 / 3 * math.pi * math.prod(lesion["semi_axes_mm"]))
        assert 4 * 2 <= max(lesion["semi_axes_mm"]) <= 7 * 3.5
    measured = np.sum(case.label == 3) * voxel_ml(case)
    assert measured == pytest.approx(case.truth["volumes_ml"]["lesion"], rel=0.03)


def test_lesions_lie_apart_within_the_liver_where_the_truth_says(cases):
    for case in cases:
        count = ndimage.label(case.label == 3)[1]
        assert count == len(case.truth["lesions"])
        rim = ndimage.binary_dilation(case.label == 3) & (case.label != 3)
        assert np.mean(case.label[rim] == 1) > 0.95  # a lesion may come within a voxel of the liver's surface
        for lesion in case.truth["lesions"]:
            place = np.linalg.solve(case.affine, [*lesion["centre_mm"], 1])[:3]
            assert case.label[tuple(np.rint(place).astype(int))] == 3


def test_anatomy_is_the_same_way_round_in_world_space(cases):
    stored = {case.truth["orientation"] for case in cases}
    assert len(stored) >= 4 and any(case.truth["oblique_degrees"] for case in cases)
    half_mm = SIZE * phantoms.NOMINAL_SPACING_MM / 2
    for case in cases:
        liver, spleen = centroid_mm(case, 1) / half_mm, centroid_mm(case, 2) / half_mm
        assert liver[0] > 0.1 and spleen[0] < -0.25  # the liver on the patient's right, the spleen on the left
        assert spleen[1] < liver[1]  # further back
        assert liver[2] > 0 and spleen[2] > 0  # both in the upper half


def test_the_affine_says_orientation_spacing_and_tilt(cases):
    for case in cases:
        truth = case.truth
        assert "".join(nib.aff2axcodes(case.affine)) == truth["orientation"]
        assert np.allclose(nib.affines.voxel_sizes(case.affine), truth["spacing_mm"])
        closest = np.abs(case.affine[:3, :3] / truth["spacing_mm"]).max(0)
        tilt = np.degrees(np.arccos(np.clip(closest, -1, 1))).max()
        assert tilt <= truth["oblique_degrees"] + 1e-4
        assert (truth["oblique_degrees"] == 0) == (tilt < 1e-4)


def test_slices_are_thicker_than_pixels(cases):
    for case in cases:
        for code, spacing in zip(case.truth["orientation"], case.truth["spacing_mm"], strict=True):
            low, high = (2.5, 3.5) if code in "IS" else (2.3, 2.7)
            assert low <= spacing <= high


def test_ct_is_in_hounsfield_units():
    case = phantoms.make_segmentation_case("CT", SIZE)
    assert case.truth["stored_as"] == "int16" and np.array_equal(case.image, np.rint(case.image))
    assert case.image.min() == pytest.approx(-1024, abs=40)
    assert np.median(case.image[case.label == 1]) == pytest.approx(86, abs=30)
    assert np.median(case.image[case.label == 3]) == pytest.approx(28, abs=30)


def test_mri_has_arbitrary_units_and_several_contrasts():
    every = [phantoms.make_segmentation_case("MRI", 16, index=index) for index in range(20)]
    brightest = [case.image.max() for case in every]
    assert 190 < min(brightest) < 600 and 2000 < max(brightest) < 4100
    assert {case.truth["contrast"] for case in every} == {"T1", "T2", "T1c"}
    assert {case.truth["stored_as"] for case in every} == {"int16", "float32"}
    assert min(case.image.min() for case in every) >= 0


def test_class_changes_the_shape_but_neither_volume_nor_intensity():
    every = [phantoms.make_classification_case("CT", SIZE, index=index) for index in range(60)]
    sides = [[case for case in every if case.truth["class"] == value] for value in (0, 1)]
    assert len(sides[0]) == len(sides[1]) == 30
    volumes = [np.mean([case.truth["volumes_ml"]["lesion"] for case in side]) for side in sides]
    levels = [np.mean([np.median(case.image[case.label == 1]) for case in side]) for side in sides]
    ratios = [
        {round(max(axes) / min(axes), 6) for case in side for axes in [case.truth["lesions"][0]["semi_axes_mm"]]}
        for side in sides
    ]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.2)
    assert levels[0] == pytest.approx(levels[1], abs=6)
    assert ratios == [{1.0}, {phantoms.ELONGATION}]
    for case in every:
        measured = np.sum(case.label) * voxel_ml(case)
        assert measured == pytest.approx(case.truth["volumes_ml"]["lesion"], rel=0.1)


def test_each_pair_of_cases_holds_both_classes():
    classes = [phantoms.make_classification_case("CT", 16, index=index).truth["class"] for index in range(20)]
    pairs = {tuple(classes[first : first + 2]) for first in range(0, 20, 2)}
    assert pairs == {(0, 1), (1, 0)}


def test_files_hold_the_cases_in_decathlon_layout(segmentation_set):
    dataset = json.loads((segmentation_set / "dataset.json").read_text())
    assert dataset["name"] == "phantom-mri" and dataset["modality"] == {"0": "MRI"}
    assert dataset["labels"] == {"0": "background", "1": "liver", "2": "spleen", "3": "lesion"}
    assert (dataset["tensorImageSize"], dataset["numTraining"], dataset["numTest"]) == ("3D", 4, 2)
    assert dataset["training"][0] == {
        "image": "imagesTr/case_000.nii.gz",
        "label": "labelsTr/case_000.nii.gz",
        "patient": "patient_000",
    }
    assert dataset["test"][1]["label"] == "labelsTs/case_005.nii.gz"
    for index, entry in enumerate(dataset["training"] + dataset["test"]):
        case = phantoms.make_segmentation_case("MRI", 16, seed=3, index=index)
        image, label = (
            nib.load(segmentation_set / entry["image"]),
            nib.load(segmentation_set / entry["label"]),
        )
        assert image.get_data_dtype() == case.truth["stored_as"] and label.get_data_dtype() == np.uint8
        assert np.array_equal(np.asanyarray(image.dataobj), case.image)
        assert np.array_equal(np.asanyarray(label.dataobj), case.label)
        assert np.allclose(image.affine, case.affine, atol=1e-4)
        assert np.array_equal(image.affine, label.affine) and image.header.get_xyzt_units()[0] == "mm"


def test_files_do_not_depend_on_the_number_of_cases_or_the_moment(segmentation_set, tmp_path):
    phantoms.make_segmentation_set(tmp_path, "MRI", cases=3, test_cases=1, size=16, seed=3, progress=False)
    for name in ("imagesTr/case_000.nii.gz", "labelsTr/case_001.nii.gz"):
        assert (tmp_path / name).read_bytes() == (segmentation_set / name).read_bytes()


def test_classification_labels_are_classes(classification_set):
    dataset = json.loads((classification_set / "dataset.json").read_text())
    assert dataset["name"] == "phantom-ct-classes" and dataset["labels"] == {"0": "compact", "1": "elongated"}
    assert sorted(entry["label"] for entry in dataset["training"]) == [0] * 10 + [1] * 10
    assert not (classification_set / "labelsTr").exists()
    for index, entry in enumerate(dataset["training"]):
        case = phantoms.make_classification_case("CT", 16, seed=3, index=index)
        assert entry["label"] == case.truth["class"]
        assert np.array_equal(nib.load(classification_set / entry["image"]).get_fdata(), case.image)


@pytest.mark.parametrize("which", ["segmentation_set", "classification_set"])
def test_case_lists_are_disjoint_by_patient_and_complete(which, request):
    directory = request.getfixturevalue(which)
    dataset = json.loads((directory / "dataset.json").read_text())
    entries = dataset["training"] + dataset["test"]
    patients = {Path(entry["image"]).name.removesuffix(".nii.gz"): entry["patient"] for entry in entries}
    splits = json.loads((directory / "splits.json").read_text())
    assert splits["seed"] == 3 and splits["method"] and len(splits["folds"]) == 1
    lists = [splits["folds"][0][part] for part in ("training", "validation", "test")]
    assert all(lists)
    found = [patients[case] for names in lists for case in names]
    assert len(found) == len(set(found)) == len(entries)
    assert [patients[case] for case in lists[2]] == [entry["patient"] for entry in dataset["test"]]


def test_validation_is_an_eighth_of_each_class(classification_set):
    dataset = json.loads((classification_set / "dataset.json").read_text())
    fold = json.loads((classification_set / "splits.json").read_text())["folds"][0]
    classes = {Path(entry["image"]).name.removesuffix(".nii.gz"): entry["label"] for entry in dataset["training"]}
    assert [classes[case] for case in sorted(fold["validation"], key=classes.get)] == [0, 1]


def test_progress_is_shown_when_asked_for(tmp_path, capsys):
    phantoms.make_classification_set(tmp_path, cases=3, test_cases=1, size=16, progress=True)
    assert "Making phantom-ct-classes" in capsys.readouterr().out


@pytest.mark.parametrize("make", [phantoms.make_segmentation_set, phantoms.make_classification_set])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modality": "PET"}, "unknown modality 'PET'; choose one of CT, MRI"),
        ({"size": 15}, "at least 16 voxels, got 15"),
        ({"seed": -1}, "got seed -1"),
        ({"test_cases": 0}, "test_cases must be at least 1, got 0"),
        ({"cases": 8, "test_cases": 8}, "got cases 8 and test_cases 8"),
        ({"cases": 9, "test_cases": 8}, "got cases 9 and test_cases 8"),
    ],
)
def test_impossible_arguments_are_named(make, arguments, message, tmp_path):
    with pytest.raises(TomokitError, match=message):
        make(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("make", [phantoms.make_segmentation_case, phantoms.make_classification_case])
def test_a_negative_index_is_named(make):
    with pytest.raises(TomokitError, match="index -2"):
        make(index=-2)


def test_a_data_set_is_never_written_over(classification_set):
    with pytest.raises(TomokitError, match=f"{classification_set} holds a data set already"):
        phantoms.make_classification_set(classification_set)


def test_an_interrupted_set_has_no_dataset_json(tmp_path, monkeypatch):
    made = []

    def stop_at_the_third(*arguments):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(phantoms.Phantom(*case))
        return made[-1]

    case = phantoms.make_segmentation_case(size=16)
    monkeypatch.setattr(abdomens, "make_segmentation_case", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        phantoms.make_segmentation_set(tmp_path, cases=4, test_cases=1, size=16, progress=False)
    assert sorted(path.name for path in tmp_path.rglob("*.nii.gz")) == ["case_000.nii.gz"] * 2 + ["case_001.nii.gz"] * 2
    assert not (tmp_path / "dataset.json").exists()
