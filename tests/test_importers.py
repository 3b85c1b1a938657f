"""Volumes, pictures and label files of any layout become one; the source stays as it is."""

import gzip
import hashlib
import itertools
import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from typer.testing import CliRunner

from tomokit.cli import app
from tomokit.datasets import read_description, read_entries
from tomokit.errors import TomokitError
from tomokit.importers import describe_import, import_dataset
from tomokit.importers.label_files import flips_to, renumber, whole_values
from tomokit.importers.records import Case, name_cases, path_inside, safe_name
from tomokit.volumes import read_volume

OBLIQUE = np.array([[1.9, 0.1, 0.2, -10.0], [-0.1, 1.8, 0.3, 20.0], [-0.2, -0.3, 2.9, 5.0], [0, 0, 0, 1]])
SHAPE = (5, 4, 3)


def noise(seed=0, dtype=np.int16, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def mask(*values, shape=SHAPE):
    array = np.zeros(shape, np.uint8)
    array.flat[: len(values)] = values
    return array


def write(path, array, affine=OBLIQUE):
    """Write an array in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    elif path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
    else:
        image = sitk.GetImageFromArray(array.T)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        lps = np.diag([-1, -1, 1]) @ affine[:3]
        image.SetSpacing(spacing)
        image.SetDirection((lps[:, :3] / spacing).ravel())
        image.SetOrigin(lps[:, 3])
        sitk.WriteImage(image, str(path))
    return path


def write_all(root, **arrays):
    for name, array in arrays.items():
        write(root / name, array)


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def bring(source, tmp_path, **options):
    """Return the report and the entries of an import; the source must stay as it was."""
    before = digest(source) if source.is_dir() else None
    report = import_dataset(source, tmp_path / "new", **options)
    if before is not None:
        assert digest(source) == before
    read_description(report.target)
    assert not list(tmp_path.glob(".partial*"))
    return report, {entry["case"]: entry for entry in read_entries(report.target, labelled=False)}


def description(report):
    return json.loads((report.target / "dataset.json").read_text())


# Layouts of trees


def test_folders_side_by_side_in_metaimage_keep_voxels_and_places(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"in/train/{name}.mhd", noise(1, shape=SHAPE))
        write(tmp_path / f"in/label/{name}.mhd", mask(0, 1, 2))
    report, cases = bring(tmp_path / "in", tmp_path)
    assert sorted(cases) == ["a", "b"] and report.left_out == []  # the .raw files belong to the headers
    image, affine = read_volume(cases["a"]["image"])
    np.testing.assert_array_equal(image, noise(1))
    np.testing.assert_allclose(affine, OBLIQUE, atol=1e-5)
    assert image.dtype == np.int16 and cases["b"]["patient"] == "b"
    np.testing.assert_array_equal(read_volume(cases["a"]["label"]).array, mask(0, 1, 2))
    assert description(report)["labels"] == {"0": "background", "1": "label_1", "2": "label_2"}
    assert "modality" not in description(report)
    assert any("give it with --modality, once for each channel: CT" in line for line in report.found)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nhdr", ".nii", ".nii.gz"])
def test_every_format_comes_out_the_same(tmp_path, suffix):
    write(tmp_path / f"in/images/x{suffix}", noise(2, np.float32))
    write(tmp_path / f"in/masks/x{suffix}", mask(1))
    _, cases = bring(tmp_path / "in", tmp_path)
    image, affine = read_volume(cases["x"]["image"])
    np.testing.assert_array_equal(image, noise(2, np.float32))
    np.testing.assert_allclose(affine, OBLIQUE, atol=1e-5)
    assert image.dtype == np.float32 and cases["x"]["label"].endswith("labelsTr/x.nii.gz")


def test_nifti_is_copied_byte_for_byte(tmp_path):
    packed = write(tmp_path / "in/t2.nii.gz", noise())
    plain = write(tmp_path / "in/t2_seg-manual.nii", mask(1))
    report, cases = bring(tmp_path / "in", tmp_path, modality=["MRI"])
    assert packed.read_bytes() == (report.target / "imagesTr/t2.nii.gz").read_bytes()
    assert gzip.decompress((report.target / "labelsTr/t2.nii.gz").read_bytes()) == plain.read_bytes()
    assert description(report)["modality"] == {"0": "MRI"}
    assert cases["t2"]["label"].endswith("labelsTr/t2.nii.gz")


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("volume-12.nii", "segmentation-12.nii"),
        ("image12.nii", "label12.nii"),
        ("p1_ct.nii", "p1_ct-label.nii"),
        ("scan.nii", "gt.nii"),
        ("sub-1_T1w.nii", "sub-1_T1w_label-lesion_mask.nii"),
        ("case_0001.nii", "case_0001_mask.nii"),
    ],
)
def test_pairs_in_one_folder_are_matched_by_name(tmp_path, image, label):
    write_all(tmp_path / "in", **{image: noise(), label: mask(1), f"other_{image}": noise()})
    report, cases = bring(tmp_path / "in", tmp_path)
    labelled = [name for name, entry in cases.items() if "label" in entry]
    assert labelled == [image.removesuffix(".nii")] and len(cases) == 2
    assert any(line.startswith("training: 2 cases of 2 patients, 1 labelled") for line in report.found)


def test_test_and_validation_folders_become_sections(tmp_path):
    for folder, name in itertools.product(("train", "val", "test"), "ab"):
        write(tmp_path / f"in/{folder}/images/{name}.nii", noise())
        if folder != "test":
            write(tmp_path / f"in/{folder}/labels/{name}.nii", mask(*((1, 2) if folder == "val" else (1,))))
    report, cases = bring(tmp_path / "in", tmp_path)
    content = description(report)
    assert [len(content[section]) for section in ("training", "validation", "test")] == [2, 2, 2]
    assert [entry["image"] for entry in content["validation"]] == ["imagesVal/a_2.nii.gz", "imagesVal/b_2.nii.gz"]
    assert read_volume(cases["a_2"]["label"]).array.max() in (1, 2) and len(cases) == 6
    assert not any("label" in entry for entry in content["test"])


def test_labels_are_matched_in_their_own_section(tmp_path):
    for ending, value in (("Tr", 1), ("Ts", 2)):
        write(tmp_path / f"in/images{ending}/a.nii.gz", noise())
        write(tmp_path / f"in/labels{ending}/a.nii.gz", mask(value))
    report, _ = bring(tmp_path / "in", tmp_path)
    content = description(report)
    assert read_volume(report.target / content["test"][0]["label"]).array.max() == 2
    assert read_volume(report.target / content["training"][0]["label"]).array.max() == 1


def test_a_folder_per_case_gives_channels_in_alphabetical_order(tmp_path):
    for case in ("patient07", "patient19", "patient26"):
        for name in ("t1", "flair", "t1_post"):
            if (case, name) != ("patient26", "t1"):
                write(tmp_path / f"in/{case}/{name}.nii.gz", noise(len(name)))
        write(tmp_path / f"in/{case}/lesions.nii.gz", mask(1))
    write(tmp_path / "in/patient07/localizer.nii.gz", noise())
    report, cases = bring(tmp_path / "in", tmp_path)
    content = description(report)
    assert content["modality"] == {"0": "FLAIR", "1": "T1", "2": "T1_POST"}
    assert content["labels"] == {"0": "background", "1": "lesions"}
    entry = content["training"][0]
    assert entry["image"] == [f"imagesTr/patient07_{n:04d}.nii.gz" for n in range(3)]
    assert (entry["label"], entry["patient"]) == ("labelsTr/patient07.nii.gz", "patient07") and len(cases) == 2
    np.testing.assert_array_equal(read_volume(report.target / entry["image"][2]).array, noise(7))
    assert "cases without all channels: patient26 (lacks t1)" in report.left_out
    assert "images that most cases lack: patient07/localizer.nii.gz" in report.left_out
    assert "labels without an image: patient26/lesions.nii.gz" in report.left_out


def test_channels_are_found_behind_the_name_of_the_folder(tmp_path):
    for number in (1, 2):
        for name in ("flair", "t2", "seg"):
            path = tmp_path / f"in/HGG/BraTS_{number:03d}/BraTS_{number:03d}_{name}.nii.gz"
            write(path, mask(4) if name == "seg" else noise())
    report, cases = bring(tmp_path / "in", tmp_path)
    content = description(report)
    assert content["modality"] == {"0": "FLAIR", "1": "T2"} and content["labels"]["1"] == "label_4"
    assert content["training"][1]["label"] == "labelsTr/HGG_BraTS_002.nii.gz" and len(cases) == 2
    assert [entry["patient"] for entry in content["training"]] == ["BraTS_001", "BraTS_002"]


@pytest.mark.parametrize("prefix", ["", "sub-{0}_ses-{1}_"])
def test_sessions_belong_to_their_patient(tmp_path, prefix):
    for subject, session, name in itertools.product("12", "ab", ("T1w", "FLAIR", "LesionMask")):
        folder = tmp_path / f"in/rawdata/sub-{subject}/ses-{session}/anat"
        write(folder / f"{prefix.format(subject, session)}{name}.nii", mask(1))
    report, _ = bring(tmp_path / "in", tmp_path)
    content = description(report)
    assert [entry["patient"] for entry in content["training"]] == ["sub-1", "sub-1", "sub-2", "sub-2"]
    assert content["training"][1]["label"] == "labelsTr/sub-1_ses-b.nii.gz" and content["labels"]["1"] == "lesion"


def test_several_frames_belong_to_the_patient_whose_name_they_have(tmp_path):
    for patient, frame in itertools.product("12", ("frame01", "frame09")):
        for name in (frame, f"{frame}_gt"):
            write(tmp_path / f"in/training/patient{patient}/patient{patient}_{name}.nii", mask(1))
    report, cases = bring(tmp_path / "in", tmp_path)
    assert "training: 4 cases of 2 patients, 4 labelled" in report.found
    assert cases["patient1_frame09"]["patient"] == "patient1"


def test_one_folder_with_named_contrasts_is_one_case(tmp_path):
    write_all(tmp_path / "in", **{"t1.nii": noise(), "t2.nii": noise(), "lesions.nii": mask(1)})
    report, _ = bring(tmp_path / "in", tmp_path)
    entry = description(report)["training"][0]
    assert entry["label"] == "labelsTr/in.nii.gz" and len(entry["image"]) == 2


def test_folders_of_sites_are_no_cases(tmp_path):
    for site in ("A", "B"):
        for number in ("001", "002"):
            write(tmp_path / f"in/{site}/{number}.nii", noise())
            write(tmp_path / f"in/{site}/{number}_seg.nii", mask(1))
    _, cases = bring(tmp_path / "in", tmp_path)
    assert sorted(cases) == ["A_001", "A_002", "B_001", "B_002"] and all("label" in case for case in cases.values())


def test_channel_numbers_are_told_from_case_numbers(tmp_path):
    for case, number in itertools.product("ab", range(2)):
        write(tmp_path / f"in/images/{case}_{number:04d}.nii", noise())
        write(tmp_path / f"in/labels/{case}.nii", mask(1))
    report, _ = bring(tmp_path / "in", tmp_path)
    assert [len(entry["image"]) for entry in description(report)["training"]] == [2, 2]
    for number in range(3):
        write(tmp_path / f"numbers/scan_{number:04d}.nii", noise())
    report = import_dataset(tmp_path / "numbers", tmp_path / "other")
    assert len(description(report)["training"]) == 3


def test_what_fits_nothing_or_too_much_is_left_out_and_said(tmp_path):
    root = tmp_path / "in"
    write_all(root, **{"a.nii": noise(), "a_seg.nii": mask(1), "b.nii": noise(), "c_seg.nii": mask(1)})
    write_all(root / "x", **{"d.nii": noise(), "liver_mask.nii": mask(1), "spleen_mask.nii": mask(1)})
    (root / "notes.txt").write_text("x")
    (root / "broken.nii.gz").write_bytes(b"no gzip")
    report, cases = bring(root, tmp_path)
    assert sorted(cases) == ["a", "b", "d"] and "label" not in cases["d"]
    left = "\n".join(report.left_out)
    assert "labels without an image: c_seg.nii" in left and "other files: notes.txt" in left
    assert "several label files, of which none was taken" in left and "d (x/liver_mask.nii, x/spleen_mask.nii)" in left
    assert "cases that can't be brought in: broken (" in left and "can't be read" in left
    text = describe_import(report)
    assert "left out:" in text and text.splitlines()[-1] == f"next: tomokit check {report.target}"


def test_long_lists_are_cut(tmp_path):
    for number in range(13):
        write(tmp_path / f"in/labels/s{number}.nii", mask(1))
    write(tmp_path / "in/images/other.nii", noise())
    report, _ = bring(tmp_path / "in", tmp_path)
    line = next(line for line in report.left_out if line.startswith("labels without an image"))
    assert line.endswith("… and 3 more") and line.count(".nii") == 10


def test_pictures_become_volumes_of_one_slice(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)  # 3 rows, 4 columns
    write(tmp_path / "in/images/p.png", grey)
    write(tmp_path / "in/labels/p.png", np.where(grey > 5, 255, 0).astype(np.uint8))
    Image.fromarray(np.full((3, 4, 3), 90, np.uint8)).save(tmp_path / "in/images/q.jpg")
    report, cases = bring(tmp_path / "in", tmp_path)
    np.testing.assert_array_equal(read_volume(cases["p"]["image"]).array[:, :, 0], grey.T)
    np.testing.assert_array_equal(read_volume(cases["p"]["label"]).array[:, :, 0], grey.T > 5)
    assert description(report)["labels"] == {"0": "background", "1": "label_255"}
    assert read_volume(cases["q"]["image"]).array.shape == (4, 3, 1)


def test_pictures_beside_volumes_are_left_out(tmp_path):
    write_all(tmp_path / "in", **{"a.nii": noise(), "preview.png": np.zeros((3, 3), np.uint8)})
    report, cases = bring(tmp_path / "in", tmp_path)
    assert list(cases) == ["a"] and report.left_out == ["other files: preview.png"]


def test_wide_integers_and_channels_of_vectors_can_be_stored(tmp_path):
    write(tmp_path / "in/a.nrrd", noise(1, np.int64))
    write(tmp_path / "in/b.nii", np.asfortranarray(noise(1)[..., None]))
    write(tmp_path / "in/c.nii", noise(1)[..., 0])
    report, cases = bring(tmp_path / "in", tmp_path)
    assert read_volume(cases["a"]["image"]).array.dtype == np.int32
    assert read_volume(cases["b"]["image"]).array.shape == SHAPE
    assert read_volume(cases["c"]["image"]).array.shape == (*SHAPE[:2], 1) and report.left_out == []


# Label files


def test_labels_elsewhere_are_matched_by_name_or_alone(tmp_path):
    write_all(tmp_path / "in", **{"a.nii": noise(), "a_seg.nii": mask(1), "b.nii": noise()})
    write_all(tmp_path / "labels", **{"b-label.nii": mask(3), "a.nii": mask(2)})
    report, cases = bring(tmp_path / "in", tmp_path, labels=tmp_path / "labels")
    assert description(report)["labels"] == {"0": "background", "1": "label_2", "2": "label_3"}
    assert read_volume(cases["b"]["label"]).array.max() == 2
    assert "label files of the source, since --labels gives others: a_seg.nii" in report.left_out
    report = import_dataset(tmp_path / "in/b.nii", tmp_path / "one", labels=tmp_path / "labels/a.nii")
    assert description(report)["training"][0]["label"] == "labelsTr/b.nii.gz"


def test_labels_elsewhere_must_be_there_and_fit(tmp_path):
    write_all(tmp_path / "in", **{"a.nii": noise(), "b.nii": noise()})
    write(tmp_path / "labels/c.nii", mask(1))
    with pytest.raises(TomokitError, match=r"no label in .*labels fits.*called c\.nii, the cases a, b; rename"):
        import_dataset(tmp_path / "in", tmp_path / "new", labels=tmp_path / "labels")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TomokitError, match=r"empty holds no volume or picture; give a label file"):
        import_dataset(tmp_path / "in", tmp_path / "new", labels=tmp_path / "empty")


@pytest.mark.parametrize(("axes", "flips"), [((0, 1, 2), (1,)), ((2, 0, 1), (0, 2)), ((1, 0, 2), ())])
def test_a_label_with_other_axes_is_reordered_exactly(tmp_path, axes, flips):
    truth = noise(5, np.uint8) % 3
    moved = nibabel.Nifti1Image(truth, OBLIQUE)
    turn = np.array([[axes[i], -1 if i in flips else 1] for i in range(3)])
    turned = moved.as_reoriented(turn)
    write(tmp_path / "in/a.nii", noise())
    nibabel.save(turned, tmp_path / "in/a_seg.nii.gz")
    report, cases = bring(tmp_path / "in", tmp_path)
    label = read_volume(cases["a"]["label"])
    np.testing.assert_array_equal(label.array, truth)
    np.testing.assert_allclose(label.affine, OBLIQUE, atol=1e-5)
    assert any(line.startswith("label reordered onto its image's grid") and "a" in line for line in report.found)


def test_a_label_on_another_grid_is_kept_and_said(tmp_path):
    write(tmp_path / "in/a.nii.gz", noise())
    other = write(tmp_path / "in/a_seg.nii.gz", mask(1), OBLIQUE @ np.diag([1, 1, 1.1, 1]))
    report, _ = bring(tmp_path / "in", tmp_path)
    assert (report.target / "labelsTr/a.nii.gz").read_bytes() == other.read_bytes()
    assert any("different grids" in line and line.endswith(": a") for line in report.found)
    assert flips_to(OBLIQUE, (5, 4, 3), OBLIQUE, (4, 5, 3)) is None


def test_values_with_gaps_are_renumbered_and_named_after_the_old(tmp_path):
    for name, values in (("a", (5, 17)), ("b", (17, 300))):
        write(tmp_path / f"in/images/{name}.nii", noise())
        array = np.zeros(SHAPE, np.int16)
        array[0, 0] = values[1]
        array[1, 1] = values[0]
        write(tmp_path / f"in/labels/{name}.nii", array)
    report, cases = bring(tmp_path / "in", tmp_path)
    names = {"0": "background", "1": "label_5", "2": "label_17", "3": "label_300"}
    assert description(report)["labels"] == names
    label = read_volume(cases["b"]["label"]).array
    assert (label[0, 0] == 3).all() and (label[1, 1] == 2).all() and label.dtype == np.uint8
    assert any("renumbered without gaps: 5 → 1, 17 → 2, 300 → 3" in line for line in report.found)


def test_fractional_labels_are_kept_for_the_check(tmp_path):
    write_all(tmp_path / "in", **{"a.nii": noise(), "a_mask.nii": mask(1).astype(np.float32) / 2})
    write_all(tmp_path / "in", **{"b.nii": noise(), "b_mask.nii": mask(1)})
    report, cases = bring(tmp_path / "in", tmp_path)
    assert read_volume(cases["a"]["label"]).array.max() == 0.5
    assert any("negative or fractional values" in line and line.endswith(": a") for line in report.found)


def test_a_label_of_several_channels_is_left_out(tmp_path):
    write_all(tmp_path / "in", **{"a.nii": noise(), "a_mask.nii": mask(1, shape=(*SHAPE, 2)), "b.nii": noise()})
    report, cases = bring(tmp_path / "in", tmp_path)
    assert list(cases) == ["b"] and "a_mask.nii has the shape (5, 4, 3, 2)" in report.left_out[0]


def test_renumbering_leaves_unknown_values():
    np.testing.assert_array_equal(renumber(np.array([[0, 5, 9, 7]]), {0: 0, 5: 1, 9: 2}), [[0, 1, 2, 7]])
    assert whole_values(np.array([[0.0, 2.0]])) == {0, 2}
    assert whole_values(np.array([[0.5]])) is None and whole_values(np.array([[-1]])) is None
    assert whole_values(np.array([[np.nan]])) is None


# Sources and targets


def test_mixed_kinds_are_refused_with_the_folders_to_give(tmp_path):
    write(tmp_path / "in/scans/a.nii", noise())
    (tmp_path / "in/dicom").mkdir()
    (tmp_path / "in/dicom/x.dcm").write_bytes(b"")
    with pytest.raises(TomokitError) as stopped:
        import_dataset(tmp_path / "in", tmp_path / "new")
    text = str(stopped.value)
    assert f"mixes kinds, and one import takes one; give one of: {tmp_path}/in/dicom, {tmp_path}/in/scans" in text
    assert "1 DICOM file: " in text and "1 volume: " in text
    (tmp_path / "in/dicom/a.nii").write_bytes(b"")
    (tmp_path / "in/scans/x.dcm").write_bytes(b"")
    with pytest.raises(TomokitError, match="move each kind to a folder of its own"):
        import_dataset(tmp_path / "in", tmp_path / "new")
    write(tmp_path / "two/a.nii", noise())
    (tmp_path / "two/dicom").mkdir()
    (tmp_path / "two/dicom/x.dcm").write_bytes(b"")
    with pytest.raises(TomokitError, match=r"give one of: .*two/dicom; to take what lies in the folder itself, give"):
        import_dataset(tmp_path / "two", tmp_path / "new")


def test_a_source_must_have_something_to_import(tmp_path):
    with pytest.raises(TomokitError, match=r"absent does not exist; give a folder or a file"):
        import_dataset(tmp_path / "absent", tmp_path / "new")
    (tmp_path / "in").mkdir()
    with pytest.raises(TomokitError, match=r"in has nothing to import \(it holds no file\); known are DICOM"):
        import_dataset(tmp_path / "in", tmp_path / "new")
    (tmp_path / "in/x.txt").write_text("x")
    with pytest.raises(TomokitError, match=r"nothing to import \(it holds 1 \.txt\)"):
        import_dataset(tmp_path / "in", tmp_path / "new")
    (tmp_path / "in/x.dcm").write_text("x")
    with pytest.raises(TomokitError, match=r"x\.dcm is one DICOM file; give its folder"):
        import_dataset(tmp_path / "in/x.dcm", tmp_path / "new")
    (tmp_path / "sets/one").mkdir(parents=True)
    (tmp_path / "sets/one/dataset.json").write_text("{}")
    with pytest.raises(TomokitError, match=r"sets holds 1 data set; give one of them: .*sets/one"):
        import_dataset(tmp_path / "sets", tmp_path / "new")


def test_when_every_case_fails_the_reasons_are_listed(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.nii.gz").write_bytes(b"broken")
    with pytest.raises(TomokitError, match=r"nothing could be imported[\s\S]*a \(.*a\.nii\.gz can't be read"):
        import_dataset(tmp_path / "in", tmp_path / "new")
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]


def test_a_target_must_be_new_and_outside_the_source(tmp_path):
    write(tmp_path / "in/a.nii", noise())
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("x")
    for target in ("full", "full/x"):
        with pytest.raises(TomokitError, match=rf"{target} exists and is not an empty folder; give a new one"):
            import_dataset(tmp_path / "in", tmp_path / target)
    with pytest.raises(TomokitError, match=r"in/new lies in .*in, which an import never changes"):
        import_dataset(tmp_path / "in", tmp_path / "in/new")
    (tmp_path / "empty").mkdir()
    assert import_dataset(tmp_path / "in", tmp_path / "empty").target == tmp_path / "empty"
    with pytest.raises(TomokitError, match=r"can't write .*full/x/y: Not a directory; choose another folder"):
        import_dataset(tmp_path / "in", tmp_path / "full/x/y")


def test_an_interrupted_import_leaves_nothing(tmp_path, monkeypatch):
    write(tmp_path / "in/a.mha", noise())
    write(tmp_path / "in/b.mha", noise())

    def stop(path, *_):
        assert (tmp_path / ".partial-new").is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr("tomokit.importers.writing.write_volume", stop)
    with pytest.raises(KeyboardInterrupt):
        import_dataset(tmp_path / "in", tmp_path / "new")
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]


def test_names_are_safe_and_unique():
    assert safe_name("../a b/ü?*.x") == "a_b_ü_.x" and safe_name("..") == "case" and len(safe_name("x" * 400)) == 100
    cases = [Case(name, []) for name in ("a", "A", "a", "a_2")]
    name_cases(cases)
    assert [case.name for case in cases] == ["a", "A_2", "a_3", "a_2_2"]


def test_paths_may_not_leave_the_source(tmp_path):
    assert path_inside(tmp_path, "./b/../c.nii", "x") == tmp_path / "c.nii"
    assert path_inside(tmp_path, str(tmp_path / "d.nii"), "x") == tmp_path / "d.nii"
    for text in ("../c.nii", "/etc/passwd", "a/../../c.nii", r"..\c.nii", r"C:\c.nii", "a\0.nii"):
        with pytest.raises(TomokitError, match=r"row 1 names .* outside .*; write paths relative"):
            path_inside(tmp_path, text, "row 1")


def test_the_command_prints_what_it_found(tmp_path):
    write_all(tmp_path / "in", **{"a_ct.nii": noise(), "a_ct_seg.nii": mask(1)})
    done = CliRunner().invoke(app, ["import", str(tmp_path / "in"), str(tmp_path / "new")])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[1:6] == [
        "  training: 1 case of 1 patient, 1 labelled",
        "  modality: CT",
        "  labels: 0 background, 1 label_1",
        "  size: 5 × 4 × 3 voxels",
        "  spacing: 1.913 × 1.828 × 2.922 mm",
    ]
    assert lines[-1] == f"next: tomokit check {tmp_path / 'new'}"


def test_the_current_folder_can_be_the_target_and_is_made_whole(tmp_path, monkeypatch):
    write(tmp_path / "in" / "a.nii.gz", noise(1))
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    import_dataset(tmp_path / "in", ".")
    assert (tmp_path / "new" / "dataset.json").is_file()
