import json

import nibabel
import numpy as np
import pytest

from tomokit.checks import check_cases, size_at_spacing
from tomokit.errors import TomokitError

LABELS = {"0": "background", "1": "liver"}
SHAPE = (12, 14, 16)


@pytest.fixture
def entry(write_volume):
    image = np.random.default_rng(0).normal(0, 100, SHAPE).astype(np.float32)
    label = np.zeros(SHAPE, np.uint8)
    label[3:6, 3:6, 3:6] = 1
    return {
        "case": "case_7",
        "patient": "p7",
        "image": write_volume("image.nii.gz", image),
        "label": write_volume("label.nii.gz", label),
    }


@pytest.fixture
def check(tmp_path):
    """Return a function that checks entries against the label map and the modality of a data set."""

    def run(*entries, labels=LABELS, modality=("CT",), told=None, **kwargs):
        content = {"labels": LABELS, "modality": {"0": "CT"}} if told is None else told
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        check_cases({"training": entries, "validation": [], "test": []}, tmp_path, labels, modality, **kwargs)

    return run


def test_a_clean_case_passes(check, entry):
    check(entry, spacing=(1, 1, 1), patch_size=(12, 12, 12))


def test_a_case_that_was_annotated_in_part_needs_the_mode_for_it(check, entry):
    part, whole = entry | {"labelled": []}, entry | {"labelled": [1]}
    with pytest.raises(TomokitError, match=r"case_7: .*leaves out \[1\], .*background; add .*partly_labelled"):
        check(part, whole)
    check(part, partly_labelled=True)
    check(whole)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("label.nii.gz", lambda a: a[:-1], r"label\.nii\.gz differ: .*11"),
        ("label.nii.gz", lambda a: a * 7, r"values outside the label map \[0, 1\]: 7; add the value"),
        ("image.nii.gz", lambda a: np.where(a > 250, np.nan, a), r"voxels that are NaN or infinite"),
        (
            "label.nii.gz",
            lambda a: a.astype(np.float32) * 0.5,
            r"values that are not whole: 0\.5; resample it by nearest",
        ),
        ("label.nii.gz", lambda a: a * np.float32(0.9999), r"not whole: 0\.999\d+; .*store integers"),
        ("label.nii.gz", lambda a: a * np.float32(1.0000001), r"not whole: 1\.0000001\d*; resample"),
        ("label.nii.gz", lambda a: np.where(a == 1, np.float32(np.nan), a), r"not whole: nan; resample"),
        (
            "label.nii.gz",
            lambda a: a[..., None],
            r"label\.nii\.gz has the shape \(12, 14, 16, 1\); store one 3D volume",
        ),
        ("label.nii.gz", lambda a: a[0], r"label\.nii\.gz has the shape \(14, 16\); store one 3D volume"),
        ("image.nii.gz", lambda a: a[0], r"image\.nii\.gz has the shape \(14, 16\); store one 3D"),
        (
            "image.nii.gz",
            lambda a: np.stack([a, a], -1),
            r"has the shape \(12, 14, 16, 2\); store one 3D volume per channel",
        ),
        (
            "image.nii.gz",
            lambda a: a[..., None, None],
            r"has the shape \(12, 14, 16, 1, 1\); store one 3D volume",
        ),
        ("image.nii.gz", lambda a: a.astype(np.complex64), r"image\.nii\.gz has voxels of the type complex64"),
    ],
)
def test_a_fault_in_the_voxels_is_named_with_its_case(check, entry, write_volume, tmp_path, name, change, message):
    array = np.asanyarray(nibabel.load(tmp_path / name).dataobj)
    write_volume(name, change(array))
    with pytest.raises(TomokitError, match=rf"case_7: .*{message}"):
        check(entry)


def test_another_affine_is_named_in_mm(check, entry, write_volume):
    affine = np.diag([1.0, 1, 1, 1])
    affine[0, 3] = 5
    write_volume("label.nii.gz", np.zeros(SHAPE, np.uint8), affine)
    with pytest.raises(TomokitError, match=r"case_7: .*/image\.nii\.gz and .*/label\.nii\.gz differ: .*5"):
        check(entry)


def test_float_labels_that_are_whole_pass(check, entry, write_volume):
    write_volume("label.nii.gz", np.ones(SHAPE, np.float64) + 1e-12)  # 1.0 once the loader has made float32 of it
    check(entry)


def test_an_image_with_a_fourth_axis_of_one_passes_and_loads(check, entry, write_volume):
    from monai.transforms import LoadImaged

    array = np.random.default_rng(0).normal(0, 100, SHAPE).astype(np.float32)
    write_volume("image.nii.gz", array[..., None])
    check(entry, patch_size=SHAPE, spacing=(1, 1, 1))
    loaded = LoadImaged("image", reader="NibabelReader", ensure_channel_first=True)(entry)["image"]
    np.testing.assert_array_equal(loaded, array[None])
    two = {**entry, "image": [entry["image"], write_volume("second.nii.gz", array)]}
    with pytest.raises(
        TomokitError, match=r"case_7: image\.nii\.gz has the shape \(12, 14, 16, 1\); store one 3D volume"
    ):
        check(two, modality=("T1", "T2"), told={})


def test_files_must_be_as_many_as_the_kinds(check, entry):
    two = {**entry, "case": "case_8", "image": [entry["image"]] * 2}
    with pytest.raises(
        TomokitError, match=r"case_8: 2 images, but modality has 1 kinds \(CT\); list one image per kind"
    ):
        check(entry, two)
    with pytest.raises(TomokitError, match=r"case_7: 1 images, but modality has 2 kinds \(T1, T2\)"):
        check(entry, two, modality=("T1", "T2"), told={})


def test_colour_and_a_bad_affine_are_problems_among_others(check, entry, tmp_path):
    colour = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colour, np.eye(4)), tmp_path / "colour.nii")
    image = nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4))
    image.set_sform(np.diag([1.0, 1, 0, 1]), code=1)
    nibabel.save(image, tmp_path / "flat.nii")
    entries = [
        {**entry, "image": str(tmp_path / "colour.nii")},
        {**entry, "case": "case_8", "image": str(tmp_path / "flat.nii")},
        {**entry, "case": "case_9", "image": "nowhere.nii.gz"},
    ]
    with pytest.raises(TomokitError) as caught:
        check(*entries)
    text = str(caught.value)
    assert "3 problems" in text and "case_9: nowhere" in text
    assert "case_7" in text and "colour.nii has voxels of the type [('R', 'u1')" in text
    assert "case_8" in text and "flat.nii: an affine must be an invertible (4, 4) matrix" in text


def test_absent_and_unreadable_files_are_named(check, entry, tmp_path):
    (tmp_path / "label.nii.gz").unlink()
    (tmp_path / "image.nii.gz").write_bytes((tmp_path / "image.nii.gz").read_bytes()[:500])
    with pytest.raises(TomokitError) as caught:
        check(entry)
    assert "label.nii.gz does not exist" in str(caught.value)
    assert "image.nii.gz can't be read" in str(caught.value)


def test_all_cases_are_collected_in_one_error(check, entry):
    other = {**entry, "case": "case_8", "image": "nowhere.nii.gz"}
    third = {**entry, "case": "case_9", "label": 5}
    with pytest.raises(TomokitError, match=r"(?s)2 problems.*case_8: nowhere.*case_9: class 5"):
        check(entry, other, third)


def test_labels_and_modality_must_be_the_data_sets(check, entry):
    check(entry, told={"labels": {"0": "Background", "1": "LIVER"}, "modality": {"0": "ct"}})
    check(entry, told={})
    check(entry, told={"modality": "CT"})
    check(entry, told={"modality": ["ct"]})
    with pytest.raises(
        TomokitError, match=r"dataset\.json is malformed.*\n.*swap them: \{'0': 'background', '1': 'liver'\}"
    ):
        check(entry, told={"labels": {"background": 0, "liver": 1}})
    with pytest.raises(TomokitError, match=r"labels \{'0': 'background', '1': 'kidney'\}, the config .*'liver'"):
        check(entry, told={"labels": {"0": "background", "1": "kidney"}})
    with pytest.raises(TomokitError, match=r"modality \['MRI'\], the config \['CT'\]; .*NormalizeIntensityd"):
        check(entry, told={"modality": {"0": "MRI"}})


def test_where_labels_are_not_learned_they_need_no_map(check, entry):
    without = {key: value for key, value in entry.items() if key != "label"}
    check(entry, without, labels=None, told={"labels": {"0": "background", "1": "kidney"}})
    with pytest.raises(TomokitError, match=r"modality \['MRI'\], the config \['CT'\]"):
        check(without, labels=None, told={"modality": {"0": "MRI"}})


def test_a_crop_larger_than_the_volume_names_case_and_remedy(check, entry):
    with pytest.raises(TomokitError, match=r"case_7: patch_size \(12, 16, 16\) .*\(12, 14, 16\).*minimum_size"):
        check(entry, patch_size=(12, 16, 16))
    check(entry, patch_size=(12, 16, 16), minimum_size=(0, 16, 0))


def test_size_at_spacing_follows_monai(write_volume):
    from monai.transforms import Compose, LoadImage, Orientation, Spacing

    affine = nibabel.orientations.inv_ornt_aff(nibabel.orientations.axcodes2ornt("PSL"), SHAPE)
    affine = affine @ np.diag([0.7, 2.1, 3.3, 1])
    path = write_volume("a.nii.gz", np.zeros(SHAPE, np.float32), affine)
    load = Compose([LoadImage(ensure_channel_first=True), Orientation("RAS", labels=None), Spacing((1, 1.5, 2))])
    assert size_at_spacing(SHAPE, affine, (1, 1.5, 2)) == tuple(load(path).shape[1:])


def test_all_cases_are_measured_alike(check, entry):
    masked = entry | {"mask": entry["label"]}
    check(masked, masked)
    with pytest.raises(TomokitError, match=r"case_7: its entry has a `mask`, and mask_above \(0\.5\) says .*to null"):
        check(masked, mask_above=0.5)
    other = entry | {"case": "case_8"}
    with pytest.raises(TomokitError, match="case_8: its entry has no `mask`, that of case_7 has one; give all"):
        check(masked, other)
    check(entry, mask_above=0.5)
