"""nnU-Net, the Decathlon, MedMNIST and DICOM become one layout; real sets too."""

import json
import zipfile
from collections import Counter

import nibabel
import numpy as np
import pydicom
import pytest
from nibabel.affines import apply_affine
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from tomokit.datasets import read_description, read_entries
from tomokit.errors import TomokitError
from tomokit.importers import import_dataset
from tomokit.importers.medmnist import Rows, plan_medmnist
from tomokit.importers.records import check_strings
from tomokit.volumes import read_volume, write_volume

SHAPE = (5, 4, 3)
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def noise(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 100, shape).astype(np.int16)


def mask(value=1):
    array = np.zeros(SHAPE, np.uint8)
    array[1, 1] = value
    return array


def write(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def bring(source, tmp_path, **options):
    report = import_dataset(source, tmp_path / "new", **options)
    content = json.loads((report.target / "dataset.json").read_text())
    read_description(report.target)
    return report, content


# nnU-Net


def make_nnunet(root, labels, names=("a", "b"), **more):
    channels = {"0": "T2", "1": "ADC"}
    write_json(root / "dataset.json", {"channel_names": channels, "labels": labels, "file_ending": ".nii.gz"} | more)
    for name in names:
        for number in range(2):
            write(root / f"imagesTr/{name}_{number:04d}.nii.gz", noise(number))
        write(root / f"labelsTr/{name}.nii.gz", mask())


def test_nnunet_labels_are_swapped_and_test_images_kept(tmp_path):
    make_nnunet(tmp_path / "in", {"background": 0, "prostate": 1})
    for number in range(2):
        write(tmp_path / f"in/imagesTs/c_{number:04d}.nii.gz", noise())
    report, content = bring(tmp_path / "in", tmp_path)
    assert content["labels"] == {"0": "background", "1": "prostate"}
    assert content["modality"] == {"0": "T2", "1": "ADC"} and report.kind == "nnU-Net raw folder"
    assert content["training"][1]["image"] == ["imagesTr/b_0000.nii.gz", "imagesTr/b_0001.nii.gz"]
    assert content["training"][1]["label"] == "labelsTr/b.nii.gz"
    assert content["test"] == [{"image": ["imagesTs/c_0000.nii.gz", "imagesTs/c_0001.nii.gz"], "patient": "c"}]
    assert report.left_out == []
    np.testing.assert_array_equal(read_volume(report.target / "imagesTr/b_0001.nii.gz").array, noise(1))


def test_nnunet_regions_and_ignore_stay_behind(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    make_nnunet(tmp_path / "in", labels)
    array = mask()
    array[2, 2] = 2
    array[3, 3] = 3
    write(tmp_path / "in/labelsTr/a.nii.gz", array)
    report, content = bring(tmp_path / "in", tmp_path)
    assert content["labels"] == {"0": "background", "1": "label_1", "2": "core"}
    np.testing.assert_array_equal(read_volume(report.target / "labelsTr/a.nii.gz").array, array)
    assert report.left_out == [
        "regions of several labels (their values stay in the label files): whole [1, 2]",
        "the ignore label, which is no structure: value 3, left as it is in the label files; "
        "train with LAYERS=modes/ignore_label and 3",
    ]
    assert any("label values without a name in the source: 1" in line for line in report.found)


def test_nnunet_cases_that_lack_something_are_left_out(tmp_path):
    make_nnunet(tmp_path / "in", {"background": 0, "x": 1}, names=("a", "b", "c"))
    (tmp_path / "in/imagesTr/b_0001.nii.gz").unlink()
    (tmp_path / "in/labelsTr/c.nii.gz").unlink()
    write(tmp_path / "in/labelsTr/d.nii.gz", mask())
    write(tmp_path / "in/imagesTr/e.nii.gz", noise())
    write(tmp_path / "in/imagesTr/a_0002.nii.gz", noise())
    report, content = bring(tmp_path / "in", tmp_path)
    assert [("label" in entry, entry["patient"]) for entry in content["training"]] == [(False, "c")]
    assert sorted(report.left_out) == [
        "cases whose channels are not those of dataset.json: a (has 2 too), b (lacks 1)",
        "files not named like case_0000.nii.gz: imagesTr/e.nii.gz",
        "labels without an image: labelsTr/d.nii.gz",
    ]


def test_nnunets_first_version_is_known_by_its_files(tmp_path):
    write(tmp_path / "in/imagesTr/a_0000.nii.gz", noise())
    write(tmp_path / "in/labelsTr/a.nii.gz", mask())
    training = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    old = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "x"}, "training": training, "test": []}
    write_json(tmp_path / "in/dataset.json", old)
    report, content = bring(tmp_path / "in", tmp_path)
    assert report.kind == "nnU-Net raw folder" and content["labels"]["1"] == "x"
    assert content["training"] == [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz", "patient": "a"}]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"file_ending": ".tif"}, r"`file_ending` is '\.tif', which tomokit can't read; convert to one of"),
        ({"file_ending": ".mha"}, r"imagesTr has no case: no file is named like case_0000\.mha"),
        ({"labels": ["a"]}, r"`labels` must be like .* got \['a'\]; correct it"),
        ({"labels": {"background": "none"}}, r"`labels` must be like .* got \{'background': 'none'\}"),
        ({"channel_names": {}}, r"`channel_names` must be like .* got \{\}"),
    ],
)
def test_a_malformed_nnunet_description_is_explained(tmp_path, change, text):
    make_nnunet(tmp_path / "in", **({"labels": {"background": 0, "x": 1}} | change))
    with pytest.raises(TomokitError, match=text):
        import_dataset(tmp_path / "in", tmp_path / "new")


# The Decathlon


def make_decathlon(root, **change):
    for name in ("a", "b"):
        write(root / f"imagesTr/{name}.nii.gz", noise(1, (*SHAPE, 2)))
        write(root / f"labelsTr/{name}.nii.gz", mask(2 if name == "b" else 1))
    write(root / "imagesTs/c.nii.gz", noise(3, (*SHAPE, 2)))
    pairs = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in ("a", "b")]
    content = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "PZ", "2": "TZ"}}
    write_json(root / "dataset.json", content | {"training": pairs, "test": ["./imagesTs/c.nii.gz"]} | change)


def test_channels_of_the_last_axis_become_files(tmp_path):
    make_decathlon(tmp_path / "in")
    report, content = bring(tmp_path / "in", tmp_path)
    assert content["modality"] == {"0": "T2", "1": "ADC"} and content["labels"]["2"] == "TZ"
    volume = read_volume(report.target / content["training"][0]["image"][1])
    np.testing.assert_array_equal(volume.array, noise(1, (*SHAPE, 2))[..., 1])
    np.testing.assert_array_equal(volume.affine, AFFINE)
    assert volume.array.dtype == np.int16 and content["training"][0]["label"] == "labelsTr/a.nii.gz"
    assert content["test"] == [{"image": ["imagesTs/c_0000.nii.gz", "imagesTs/c_0001.nii.gz"], "patient": "c"}]
    assert report.left_out == [] and "spacing: 2 × 2 × 3 mm" in report.found


def test_cases_with_other_channels_or_axes_are_left_out(tmp_path):
    make_decathlon(tmp_path / "in")
    write(tmp_path / "in/imagesTr/b.nii.gz", noise())
    write(tmp_path / "in/imagesTs/c.nii.gz", noise(0, (*SHAPE, 2, 2)))
    report, content = bring(tmp_path / "in", tmp_path)
    assert [entry["patient"] for entry in content["training"]] == ["a"]
    assert "b (1 channel, where the modality or the cases before have 2)" in report.left_out[0]
    assert "c.nii.gz has 5 axes" in report.left_out[0]


def test_an_import_of_an_import_is_the_same(tmp_path):
    make_decathlon(tmp_path / "in")
    entry = {"image": "./imagesTr/a.nii.gz", "label": 1, "patient": "p7", "group": "site", "clinical": {"age": np.nan}}
    listed = entry | {"image": ["./imagesTr/b.nii.gz"], "label": 0, "clinical": {"crp": np.inf}}
    make_decathlon(tmp_path / "in", training=[entry], validation=[listed])
    _, first = bring(tmp_path / "in", tmp_path)
    again = import_dataset(tmp_path / "new", tmp_path / "again")
    second = json.loads((again.target / "dataset.json").read_text())
    assert second == first | {"name": "again"}
    assert first["training"][0]["label"] == 1 and first["validation"][0]["label"] == 0
    assert first["validation"][0]["clinical"] == {"crp": "inf"}
    assert first["training"][0]["clinical"] == {"age": None} and first["training"][0]["group"] == "site"


def test_a_malformed_decathlon_description_lists_everything(tmp_path):
    good = [{"image": "a.nii", "label": [0, 1]}, {"image": "b.nii", "label": 3}]
    bad = [{"image": "../x.nii"}, {"image": []}, 3, {"image": "a.nii.gz", "label": 0.5}, {"image": "a", "clinical": 3}]
    make_decathlon(tmp_path / "in", training=bad, validation="a", test=good, modality=7, labels="x")
    with pytest.raises(TomokitError) as stopped:
        import_dataset(tmp_path / "in", tmp_path / "new")
    for text in (
        "`modality` must be like",
        "some labels are paths, some classes, or some lists of 0 and 1; a data set has one kind",
        "`labels` must be like",
        "`training` entry 0: `image` names '../x.nii', outside",
        "`training` entry 1: `image` must be a path or a list of paths, got []",
        "`training` entry 2: `image` must be a path or a list of paths, got None",
        "`training` entry 3: `label` must be a path, a class, or a list of 0 and 1, got 0.5",
        """`training` entry 4: `clinical` must be like {"age": 61.0}, got 3""",
        "`validation` must be a list of entries, got 'a'",
    ):
        assert text in str(stopped.value)
    assert check_strings(["CT"], "x") == check_strings({"0": "CT"}, "x") == check_strings({"CT": 0}, "x") == {0: "CT"}


# MedMNIST


def save_medmnist(path, size=6, labels=None, shape=None, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for key, count in (("train", 3), ("val", 1), ("test", 2)):
        arrays[f"{key}_images"] = np.random.default_rng(count).integers(
            0, 255, (count, *(shape or (size, size + 1, size + 2))), np.uint8
        )
        arrays[f"{key}_labels"] = np.arange(count)[:, None] % 2 if labels is None else labels[:count]
    np.savez_compressed(path, **{key: array for key, array in (arrays | more).items() if array is not None})
    return arrays


def test_medmnist_keeps_its_sections_and_the_smallest_size(tmp_path):
    arrays = save_medmnist(tmp_path / "in/adrenalmnist3d.npz")
    save_medmnist(tmp_path / "in/adrenalmnist3d_64.npz", 8)
    report, content = bring(tmp_path / "in", tmp_path)
    assert [len(content[key]) for key in ("training", "validation", "test")] == [3, 1, 2]
    assert content["labels"] == {"0": "normal", "1": "hyperplasia"} and "modality" not in content
    assert [entry["label"] for entry in content["training"]] == [0, 1, 0]
    volume = read_volume(report.target / content["test"][1]["image"])
    np.testing.assert_array_equal(volume.array.T, arrays["test_images"][1])  # (X, Y, Z) is (W, H, D)
    np.testing.assert_array_equal(volume.affine, np.eye(4))
    assert volume.array.dtype == np.uint8 and any("1 mm" in line for line in report.found)
    other = tmp_path / "in/adrenalmnist3d_64.npz"
    line = f"adrenalmnist3d_64.npz (take it with: tomokit import {other} DIR)"
    assert report.left_out == [f"the same set at a larger size: {line}"]
    assert "labels: 0 normal (4), 1 hyperplasia (2)" in report.found


@pytest.mark.parametrize(("shape", "channels"), [((6, 5), 1), ((6, 5, 3), 3), ((6, 5, 4, 2), 2)])
def test_medmnist_pictures_and_channels(tmp_path, shape, channels):
    arrays = save_medmnist(tmp_path / "x.npz", shape=shape)
    report, content = bring(tmp_path / "x.npz", tmp_path, modality=["CT"] * channels)
    image = content["training"][2]["image"]
    voxels = [read_volume(report.target / path).array for path in ([image] if channels == 1 else image)]
    if len(shape) == 4:
        np.testing.assert_array_equal(np.stack(voxels).T, arrays["train_images"][2].swapaxes(0, 0))
    else:
        stacked = np.stack([array[:, :, 0].T for array in voxels], -1)
        np.testing.assert_array_equal(stacked.reshape(shape), arrays["train_images"][2])
    assert content["labels"] == {"0": "0", "1": "1"}
    assert any("names of the classes are not in the file" in line for line in report.found)


def test_medmnist_with_several_labels_gives_lists(tmp_path):
    save_medmnist(tmp_path / "x.npz", labels=np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0]]))
    report, content = bring(tmp_path / "x.npz", tmp_path)
    assert content["training"][1]["label"] == [1, 0, 0] and list(content["labels"]) == ["0", "1", "2"]
    assert "several labels per case: 0 (2), 1 (3), 2 (3)" in report.found


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"train_labels": None}, "train_labels is absent"),
        ({"train_labels": np.zeros((2, 1), int)}, r"train_labels has the shape \(2, 1\); it must be \(3, 1\)"),
        ({"val_images": np.zeros((1, 2), np.uint8)}, r"val_images has the shape \(1, 2\); it must be"),
        ({"test_labels": np.full((2, 1), -3)}, "test_labels has values from -3 to -3"),
        ({"train_images": np.array([None] * 3)}, "values of the type object, not numbers"),
        ({"train_images": np.asfortranarray(np.zeros((3, 4, 5), np.uint8))}, "Fortran's order"),
        (dict.fromkeys(("train_images", "val_images", "test_images")), "is no MedMNIST archive: it has test_labels"),
    ],
)
def test_an_archive_that_is_no_medmnist_is_explained(tmp_path, more, text):
    save_medmnist(tmp_path / "x.npz", **more)
    with pytest.raises(TomokitError, match=text):
        import_dataset(tmp_path / "x.npz", tmp_path / "new")


def test_several_medmnist_sets_are_refused(tmp_path):
    for name in ("a", "b"):
        save_medmnist(tmp_path / f"in/{name}.npz")
    with pytest.raises(TomokitError, match=r"in has 2 sets as \.npz; give one of the files: .*a\.npz, .*b\.npz"):
        import_dataset(tmp_path / "in", tmp_path / "new")


def test_an_archive_that_claims_too_much_is_not_unpacked(tmp_path):
    header = np.lib.format.header_data_from_array_1_0(np.zeros((3, 2)))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive, archive.open("train_images.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, header)
    raw = bytearray((tmp_path / "x.npz").read_bytes())
    entry = raw.rindex(b"PK\x01\x02")
    raw[entry + 24 : entry + 28] = (3 << 30).to_bytes(4, "little")  # the directory's size when unpacked
    (tmp_path / "x.npz").write_bytes(raw)
    with pytest.raises(TomokitError, match=r"train_images\.npy is said to unpack from \d+ to 3,221,225,472 bytes"):
        import_dataset(tmp_path / "x.npz", tmp_path / "new")
    (tmp_path / "y.npz").write_bytes(b"PK no zip")
    with pytest.raises(TomokitError, match=r"y\.npz can't be read \(BadZipFile"):
        import_dataset(tmp_path / "y.npz", tmp_path / "new")


def test_rows_are_read_in_any_order_and_truncation_is_said(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    np.savez(tmp_path / "x.npz", a=array)
    rows = Rows(tmp_path / "x.npz", "a")
    for index in (0, 2, 1, 3, 0):
        np.testing.assert_array_equal(rows.read(index), array[index])
    rows.close()
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive, archive.open("a.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, np.lib.format.header_data_from_array_1_0(array))
        member.write(bytes(20))
    with pytest.raises(TomokitError, match=r"y\.npz: a can't be read \(row 3 is cut off\); restore the file"):
        Rows(tmp_path / "y.npz", "a").read(3)


# DICOM


def write_dicom(folder, array, patient="P1", description="axial", modality="CT", gap=3.0):
    """Write a series of one file per slice, (rows, columns) each, upwards along z."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = generate_uid(entropy_srcs=[str(folder), description])
    for number, rows in enumerate(array):
        data = pydicom.Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid(entropy_srcs=[uid, str(number)])
        data.SeriesInstanceUID, data.PatientID, data.Modality = uid, patient, modality
        data.SeriesDescription, data.PatientName = description, "Doe^Jane"
        data.Rows, data.Columns = rows.shape
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 15, 1, 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.PixelSpacing, data.ImageOrientationPatient = [2.0, 2.0], [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [0, 0, gap * number]
        data.RescaleSlope, data.RescaleIntercept = 1, -100
        data.PixelData = rows.astype("<i2").tobytes()
        data.save_as(folder / f"{description.replace('/', '')}{number:03d}.dcm", enforce_file_format=True)


def test_each_dicom_series_is_a_case_of_its_patient(tmp_path):
    voxels = noise(4, (4, 6, 5))
    for patient, description in (("P1", "thin"), ("P1", "soft/tissue"), ("P2", "thin")):
        write_dicom(tmp_path / f"in/{patient}", voxels, patient, description)
    write_dicom(tmp_path / "in/scout", voxels[:1], "P2", "scout")
    (tmp_path / "in/readme.txt").write_text("x")
    report, content = bring(tmp_path / "in", tmp_path)
    names = {entry["image"]: entry["patient"] for entry in content["training"]}
    expected = {"P1_soft_tissue": "P1", "P1_thin": "P1", "P2_thin": "P2"}
    assert names == {f"imagesTr/{name}.nii.gz": patient for name, patient in expected.items()}
    assert content["modality"] == {"0": "CT"} and "Doe" not in json.dumps(content)
    volume = read_volume(report.target / "imagesTr/P1_thin.nii.gz")
    np.testing.assert_array_equal(volume.array, voxels.T - 100)
    np.testing.assert_allclose(apply_affine(volume.affine, [1, 1, 1]), [-2, -2, 3])
    assert "series of fewer than 3 slices, such as localizers: P2_scout" in report.left_out
    assert "other files: readme.txt" in report.left_out and len(report.left_out) == 2


def test_dicom_of_several_kinds_needs_a_choice(tmp_path):
    for kind in ("CT", "MR"):
        write_dicom(tmp_path / f"in/{kind}", noise(0, (3, 4, 4)), description=kind, modality=kind)
    with pytest.raises(TomokitError, match=r"has series of CT \(1\), MRI \(1\); .* such as with --modality CT"):
        import_dataset(tmp_path / "in", tmp_path / "new")
    report, content = bring(tmp_path / "in", tmp_path, modality=["MRI"])
    assert content["modality"] == {"0": "MRI"} and len(content["training"]) == 1
    assert report.left_out == ["series of other kinds than MRI: P1_CT (CT)"]
    with pytest.raises(TomokitError, match=r"has series of CT \(1\), not MRI"):
        import_dataset(tmp_path / "in/CT", tmp_path / "other", modality=["MRI"])
    report = import_dataset(tmp_path / "in/MR", tmp_path / "t1", modality=["T1"])
    assert "modality: T1" in report.found


def test_damaged_dicom_is_left_out_with_its_fault(tmp_path):
    write_dicom(tmp_path / "in/a", noise(0, (5, 4, 4)), "", "whole")
    write_dicom(tmp_path / "in/b", noise(0, (5, 4, 4)), "P2", "gap")
    (tmp_path / "in/b/gap002.dcm").unlink()
    (tmp_path / "in/x.dcm").write_bytes(b"not DICOM")
    report, content = bring(tmp_path / "in", tmp_path)
    assert [entry["patient"] for entry in content["training"]] == ["whole"]
    left = "\n".join(report.left_out)
    assert "series that can't become a volume: P2_gap (" in left and "DICOM files that give no volume: 1 file" in left
    assert "series without a PatientID, each taken for a patient of its own: whole" in report.found


def test_labels_are_matched_to_dicom_series_by_name(tmp_path):
    write_dicom(tmp_path / "in/a", noise(0, (3, 4, 5)), "P1", "ct")
    write_dicom(tmp_path / "in/b", noise(0, (3, 4, 5)), "P2", "ct")
    image = import_dataset(tmp_path / "in", tmp_path / "first").target / "imagesTr/P2_ct.nii.gz"
    label = np.zeros((5, 4, 3), np.uint8)
    label[1, 2] = 1
    write_volume(tmp_path / "labels/b_seg.nii.gz", label, read_volume(image).affine)
    _, content = bring(tmp_path / "in", tmp_path, labels=tmp_path / "labels")
    assert [entry.get("label") for entry in content["training"]] == [None, "labelsTr/P2_ct.nii.gz"]


# Real sets


@pytest.mark.mirror
def test_a_real_label_lands_on_its_dicom_series(mirror, tmp_path):
    source = mirror / "reference_ct_mr/example_seg_dicom.nii.gz"
    report, content = bring(mirror / "reference_ct_mr/ct_dicom", tmp_path, labels=source)
    entry = read_entries(report.target)[0]
    image, label, before = (read_volume(path) for path in (entry["image"], entry["label"], source))
    assert image.array.shape == label.array.shape == (512, 512, 20)
    np.testing.assert_allclose(label.affine, image.affine, atol=1e-6)
    names = {int(value): name for value, name in content["labels"].items()}
    held = np.unique(before.array)
    assert [f"label_{value}" for value in held[1:]] == list(names.values())[1:]
    places = np.argwhere(before.array)
    moved = apply_affine(np.linalg.inv(label.affine) @ before.affine, places)
    np.testing.assert_allclose(moved, moved.round(), atol=0.005)  # voxels, of at most 2 mm
    x, y, z = moved.round().astype(int).T
    np.testing.assert_array_equal(held[label.array[x, y, z]], before.array[tuple(places.T)])
    assert np.count_nonzero(label.array) == len(places)
    assert content["modality"] == {"0": "CT"} and report.left_out == []


@pytest.mark.mirror
def test_real_sets_come_in_whole(mirror, tmp_path):
    cases = import_dataset(mirror / "multiple_sclerosis", tmp_path / "ms").target
    content = json.loads((cases / "dataset.json").read_text())
    assert list(content["modality"].values()) == ["FLAIR", "T1", "T1_POST", "T2"] and len(content["training"]) == 3
    assert content["labels"] == {"0": "background", "1": "lesions"}
    report = import_dataset(mirror / "cervical_cord", tmp_path / "cord")
    assert "training: 1 case of 1 patient, 1 labelled" in report.found
    report = import_dataset(mirror / "dicom_t1_mr", tmp_path / "t1")
    assert "size: 274 × 384 × 32 voxels" in report.found and "modality: MRI" in report.found
    with pytest.raises(TomokitError, match=r"mixes kinds[\s\S]*20 DICOM files[\s\S]*7 volumes"):
        import_dataset(mirror / "reference_ct_mr", tmp_path / "mixed")


@pytest.mark.mirror
def test_real_tables_and_archives_come_in_whole(mirror, tmp_path):
    report = import_dataset(mirror / "chest_xray_clinical", tmp_path / "chest", label_columns=["sex"])
    assert "training: 243 cases of 71 patients, 243 labelled" in report.found
    assert "labels: 0 f (63), 1 m (180)" in report.found
    plan = plan_medmnist(
        [mirror / "adrenalmnist3d/adrenalmnist3d_64.npz", mirror / "adrenalmnist3d/adrenalmnist3d.npz"]
    )
    sections = Counter(case.section for case in plan.cases)
    assert sections == {"training": 1188, "validation": 98, "test": 298} and plan.labels == {
        0: "normal",
        1: "hyperplasia",
    }
    assert sum(case.label for case in plan.cases if case.section == "training") == 259
    assert {case.images[0].read().array.shape for case in plan.cases[::100]} == {(28, 28, 28)}
