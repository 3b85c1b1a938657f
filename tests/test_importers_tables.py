"""Tables give classes, several labels, patients, groups and clinical values; or the paths themselves."""

import csv
import json

import nibabel
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tomokit.cli import app
from tomokit.datasets import read_entries
from tomokit.errors import TomokitError
from tomokit.importers import import_dataset
from tomokit.importers.tables import read_table

NAMES = [f"c{number}" for number in range(10)]


def write_scans(root, names=NAMES):
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(np.ones((3, 3, 3), np.int16), np.eye(4)), root / f"{name}.nii")


def write_table(path, delimiter=",", **columns):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def bring(source, tmp_path, **options):
    report = import_dataset(source, tmp_path / "new", modality=["CT"], **options)
    content = json.loads((report.target / "dataset.json").read_text())
    entries = {entry["case"]: entry for entry in read_entries(report.target, labelled=False)}
    return report, content, entries


@pytest.mark.parametrize(("form", "delimiter"), [("{}", ","), ("{}.nii", ";"), ("./{}.nii", ","), ("x/{}", "\t")])
def test_the_column_with_the_images_names_is_found(tmp_path, form, delimiter):
    write_scans(tmp_path / "in")
    write_table(
        tmp_path / "in/table.csv",
        delimiter,
        number=range(10),
        file=[form.format(name) for name in NAMES],
        Patient_ID=[f"p{number // 2}" for number in range(10)],
        grade=["low", "high", "low", "", *["high"] * 6],
        age=["61", "NaN", "inf", "-inf", *["50.5"] * 6],
        sex=["f", "m", "n/a", *["f"] * 7],
    )
    report, content, entries = bring(tmp_path / "in", tmp_path, label_columns=["grade"])
    assert content["labels"] == {"0": "high", "1": "low"}
    assert entries["c0"]["label"] == 1 and entries["c1"]["label"] == 0 and "label" not in entries["c3"]
    assert entries["c4"]["patient"] == entries["c5"]["patient"] == "p2"
    assert entries["c1"]["clinical"] == {"number": 1.0, "age": None, "sex": "m"}
    assert [entries[f"c{number}"]["clinical"]["age"] for number in (0, 2, 3)] == [61.0, "inf", "-inf"]
    assert entries["c2"]["clinical"]["sex"] is None
    assert "table table.csv: file names 10 of 10 images, patients from Patient_ID" in report.found
    assert "images without a value of grade, kept without a label: c3" in report.found
    assert "clinical columns: 2 with numbers (number, age), 1 with texts (sex)" in report.found
    assert report.left_out == []


def test_numbers_are_classes_in_order_and_columns_can_be_named(tmp_path):
    write_scans(tmp_path / "in")
    path = write_table(
        tmp_path / "t.tsv", "\t", id=NAMES, who=list("aabbccddee"), site=list("xy" * 5), stage=[10, 9] * 5
    )
    options = {"table": path, "label_columns": ["stage"], "patient_column": "who", "group_column": "site"}
    _, content, entries = bring(tmp_path / "in", tmp_path, **options)
    assert content["labels"] == {"0": "9", "1": "10"} and entries["c0"]["label"] == 1
    assert (entries["c3"]["patient"], entries["c3"]["group"]) == ("b", "y") and "clinical" not in entries["c3"]


def test_several_columns_give_lists_and_events_are_filled_or_empty(tmp_path):
    write_scans(tmp_path / "in")
    table = {"id": NAMES, "cyst": ["1", "0"] * 5, "mass": ["yes", "no", "", *["no"] * 7], "death": ["3", *[""] * 9]}
    path = write_table(tmp_path / "in/t.csv", **table)
    report, content, entries = bring(tmp_path / "in", tmp_path, label_columns=["cyst", "mass"], event_columns=["death"])
    assert content["labels"] == {"0": "cyst", "1": "mass", "2": "death"}
    assert entries["c0"]["label"] == [1, 1, 1] and entries["c1"]["label"] == [0, 0, 0] and "label" not in entries["c2"]
    assert "several labels per case: cyst (4), mass (1), death (1)" in report.found
    one = import_dataset(tmp_path / "in", tmp_path / "one", table=path, event_columns=["death"])
    content = json.loads((one.target / "dataset.json").read_text())
    assert content["labels"] == {"0": "no death", "1": "death"}
    assert [entry["label"] for entry in content["training"]] == [1] + [0] * 9
    assert "death" not in content["training"][0]["clinical"]


def test_the_command_takes_columns(tmp_path):
    write_scans(tmp_path / "in")
    path = write_table(tmp_path / "t.csv", id=NAMES, a=[0, 1] * 5, b=[*"xxxxx", *[""] * 5], p=["q"] * 10, s=["z"] * 10)
    options = f"--table {path} --label a --event b --patient p --group s --modality CT".split()
    done = CliRunner().invoke(app, ["import", str(tmp_path / "in"), str(tmp_path / "new"), *options])
    assert done.exit_code == 0 and "training: 10 cases of 1 patient, 10 labelled" in done.output
    content = json.loads((tmp_path / "new/dataset.json").read_text())
    assert content["training"][1] == {"image": "imagesTr/c1.nii.gz", "label": [1, 1], "patient": "q", "group": "z"}
    assert content["labels"] == {"0": "a", "1": "b"} and content["modality"] == {"0": "CT"}


def test_classes_replace_label_files_and_say_so(tmp_path):
    write_scans(tmp_path / "in", ["a", "b", "a_seg"])
    write_table(tmp_path / "in/t.csv", id=["a", "b"], kind=["x", "y"])
    report, content, entries = bring(tmp_path / "in", tmp_path, label_columns=["kind"])
    assert entries["a"]["label"] == 0 and content["labels"] == {"0": "x", "1": "y"}
    assert report.left_out == ["label files, since kind gives the labels: a_seg.nii"]


def test_free_texts_are_left_out(tmp_path):
    names = [f"c{number}" for number in range(60)]
    write_scans(tmp_path / "in", names)
    write_table(tmp_path / "in/t.csv", id=names, note=[f"text {name}" for name in names], size=range(60))
    report, _, entries = bring(tmp_path / "in", tmp_path)
    assert entries["c7"]["clinical"] == {"size": 7.0}
    assert report.left_out == ["columns with more than 50 different texts: note (such as 'text c0')"]


def test_a_table_can_name_patients_by_their_folders(tmp_path):
    write_scans(tmp_path / "in", [f"{patient}/{name}" for patient in ("p1", "p2") for name in ("t1", "t2")])
    write_table(tmp_path / "in/t.csv", subject=["p1", "p2"], age=["3", "4"])
    report = import_dataset(tmp_path / "in", tmp_path / "new")
    entries = json.loads((report.target / "dataset.json").read_text())["training"]
    assert [entry["clinical"] for entry in entries] == [{"age": 3.0}, {"age": 4.0}]


def test_a_table_that_names_no_image(tmp_path):
    write_scans(tmp_path / "in")
    path = write_table(tmp_path / "in/t.csv", id=[*NAMES[:8], "x", "y"], kind=list("ab" * 5))
    report, content, _ = bring(tmp_path / "in", tmp_path)
    text = f"{path}: no column names the images (such as c0 or c0.nii); the nearest are id (8 of 10), kind (0 of 10)"
    assert report.left_out == [f"tables that fit no image: {text}"] and "clinical" not in content["training"][0]
    with pytest.raises(TomokitError, match=r"the nearest are id \(8 of 10\).*; give a table whose column"):
        import_dataset(tmp_path / "in", tmp_path / "other", label_columns=["kind"])


def test_rows_may_lack_but_not_contradict(tmp_path):
    write_scans(tmp_path / "in")
    write_table(tmp_path / "in/t.csv", id=[*NAMES[:9], "c8"], age=range(10))
    with pytest.raises(TomokitError, match=r"column id must name each image once.*\n  - c8 has 2 rows that differ"):
        import_dataset(tmp_path / "in", tmp_path / "new")
    write_table(tmp_path / "in/t.csv", id=NAMES[:9], age=range(9))
    report, _, entries = bring(tmp_path / "in", tmp_path)
    assert "images without a row in the table: c9" in report.found and "clinical" not in entries["c9"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"label_columns": ["grad"]}, r"t\.csv lacks columns\n  - no column 'grad'; did you mean 'grade'\?"),
        ({"group_column": "zzz"}, r"no column 'zzz'; it has id, grade, same"),
        ({"label_columns": ["same"]}, r"column same has 1 value \(q\), and classes need 2 to 50"),
        ({"label_columns": ["grade", "same"]}, r"column grade has the values 3, 4; with several --label"),
    ],
)
def test_unfit_columns_are_explained(tmp_path, options, text):
    write_scans(tmp_path / "in")
    write_table(tmp_path / "in/t.csv", id=NAMES, grade=["3", "4"] * 5, same=["q"] * 10)
    with pytest.raises(TomokitError, match=text):
        import_dataset(tmp_path / "in", tmp_path / "new", **options)


def test_columns_need_one_table(tmp_path):
    write_scans(tmp_path / "in")
    with pytest.raises(TomokitError, match=r"the columns grade need a table, and .*in has 0; give one with --table"):
        import_dataset(tmp_path / "in", tmp_path / "new", label_columns=["grade"])
    for name in ("a", "b"):
        write_table(tmp_path / f"in/{name}.csv", id=NAMES)
    report, _, _ = bring(tmp_path / "in", tmp_path)
    assert report.left_out == ["tables, of which one can be used with --table: a.csv, b.csv"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("id,age\n", "has no row; give a table"),
        ("id,id\na,b\n", "the column 'id' stands 2 times"),
        ("id,age\na,1\nb\n", "row 2 has 1 values, where there are 2 columns"),
        (b"id\n\xff\n", r"can't be read as a table .*; save it as CSV in UTF-8"),
    ],
)
def test_a_malformed_table_is_explained(tmp_path, content, text):
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TomokitError, match=text):
        read_table(tmp_path / "t.csv")


def test_a_table_of_paths_brings_in_what_it_names(tmp_path):
    write_scans(tmp_path / "in/scans", ["a", "b"])
    write_scans(tmp_path / "in/other", ["am", "bm"])
    write_table(
        tmp_path / "in/list.csv",
        scan=["scans/a.nii", "scans/b.nii", "scans/c.nii"],
        mask=["other/am.nii", "", ""],
        age=[1, 2, 3],
    )
    report, _, entries = bring(tmp_path / "in/list.csv", tmp_path)
    assert "label" in entries["a"] and "label" not in entries["b"] and report.kind == "table of paths"
    assert entries["b"]["clinical"] == {"age": 2.0}
    assert report.left_out == ["rows whose files do not exist: row 3 (scans/c.nii)"]
    channels = write_table(tmp_path / "in/two.csv", t1=["scans/a.nii"], t2=["scans/b.nii"], grade=["x"])
    report = import_dataset(channels, tmp_path / "two")
    content = json.loads((report.target / "dataset.json").read_text())
    assert content["modality"] == {"0": "t1", "1": "t2"} and len(content["training"][0]["image"]) == 2


def test_a_table_of_paths_may_not_leave_its_folder(tmp_path):
    write_scans(tmp_path / "in", ["a"])
    path = write_table(tmp_path / "in/list.csv", scan=["a.nii", "../b.nii", "/etc/x.nii"])
    with pytest.raises(TomokitError) as stopped:
        import_dataset(path, tmp_path / "new")
    assert "row 2 names '../b.nii', outside" in str(stopped.value) and "row 3 names '/etc/x.nii'" in str(stopped.value)
    path = write_table(tmp_path / "in/list.csv", name=["a"])
    with pytest.raises(TomokitError, match=r"the columns \[\] hold paths of volumes, of which \[\] are labels; give"):
        import_dataset(path, tmp_path / "new")


@pytest.mark.parametrize("form", ["{kind}/{number}.png", "{part}/{kind}/{kind}_{number}.png"])
def test_folders_of_pictures_are_classes_and_no_patients(tmp_path, form):
    for number in range(6):
        for kind in ("dog", "cat"):
            path = tmp_path / "in" / form.format(kind=kind, number=number, part="train" if number < 4 else "val")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((5, 4), 20 * number, np.uint8)).save(path)
    report, content, entries = bring(tmp_path / "in", tmp_path)
    assert content["labels"] == {"0": "cat", "1": "dog"} and len(entries) == 12
    assert sorted(entry["label"] for entry in entries.values()) == [0] * 6 + [1] * 6
    assert len({entry["patient"] for entry in entries.values()}) == 12
    assert "classes are the folders: cat, dog" in report.found


def test_folders_of_pictures_named_like_patients_are_no_classes(tmp_path):
    for patient in ("patient01", "patient02"):
        for number in range(3):
            path = tmp_path / "in" / patient / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((5, 4), 20 * number, np.uint8)).save(path)
    _, _, entries = bring(tmp_path / "in", tmp_path)
    assert len(entries) == 6 and not any("label" in entry for entry in entries.values())
