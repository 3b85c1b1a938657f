import json

import pytest

from tomokit import phantoms
from tomokit.datasets import case_name, find_dataset, get_dataset, images_of, read_entries, select_cases, unlabelled
from tomokit.errors import TomokitError


def write_set(folder, training, test=()):
    folder.mkdir(parents=True, exist_ok=True)
    content = {"labels": {"0": "background", "1": "a"}, "training": list(training), "test": list(test)}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def make_items(count, **more):
    return [{"image": f"./imagesTr/c{i}.nii.gz", "label": f"./labelsTr/c{i}.nii.gz", **more} for i in range(count)]


def test_a_set_is_found_by_folder_by_name_and_under_the_variable(tmp_path, monkeypatch):
    folder = write_set(tmp_path / "sets" / "mine", make_items(1))
    monkeypatch.setenv("TOMOKIT_DATA", str(tmp_path / "sets"))
    assert find_dataset("mine") == find_dataset(folder) == folder.resolve()
    with pytest.raises(TomokitError, match=r"no data set 'other'.*tomokit data get other --from FOLDER"):
        find_dataset("other")
    with pytest.raises(TomokitError, match=r"get it with `tomokit data get phantom-ct`$"):
        find_dataset("phantom-ct")


def test_entries_have_absolute_paths_a_name_and_a_patient(tmp_path):
    items = [*make_items(1, patient="p1"), {"image": ["t1/x.nii", "t2/x.nii"], "label": 1}, {"image": "u.nii.gz"}]
    folder = write_set(tmp_path, items, ["imagesTs/unlabelled.nii.gz"])
    first, second = read_entries(folder)
    assert first == {
        "case": "c0",
        "patient": "p1",
        "image": str(tmp_path / "imagesTr" / "c0.nii.gz"),
        "label": str(tmp_path / "labelsTr" / "c0.nii.gz"),
    }
    assert second["patient"] == second["case"] == "x" and second["label"] == 1
    assert second["image"] == [str(tmp_path / "t1" / "x.nii"), str(tmp_path / "t2" / "x.nii")]
    assert images_of([first]) == [first["image"]]
    assert unlabelled([first])[0] == {("truth" if key == "label" else key): first[key] for key in first}


def test_an_empty_a_malformed_and_an_ambiguous_set_are_refused(tmp_path):
    with pytest.raises(TomokitError, match="lists no labelled case"):
        read_entries(write_set(tmp_path, []))
    with pytest.raises(TomokitError, match="c0 stands 2 times"):
        read_entries(write_set(tmp_path, make_items(1) * 2))
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(TomokitError, match="must hold an object"):
        read_entries(tmp_path)


def test_cases_come_from_lists_from_a_file_or_are_drawn(tmp_path):
    folder = write_set(tmp_path, make_items(10))
    drawn = select_cases(folder, "splits.json", 0, seed=1)
    assert [len(drawn[part]) for part in ("training", "validation", "test")] == [6, 2, 2]
    fold = {"training": ["c1"], "validation": ["c2"], "test": ["c3"]}
    (folder / "splits.json").write_text(json.dumps({"folds": [fold]}))
    read = select_cases(folder, "splits.json", 0)
    assert {part: [entry["case"] for entry in read[part]] for part in read} == fold
    given = select_cases(folder, "splits.json", 0, training=["c5"], validation=[], test=["c6"])
    assert [entry["case"] for entry in given["training"]] == ["c5"]
    with pytest.raises(TomokitError, match=r"c77 \(test\)"):
        select_cases(folder, "splits.json", 0, training=["c5"], validation=[], test=["c77"])
    with pytest.raises(TomokitError, match="has no training case"):
        select_cases(folder, "splits.json", 0, training=[], validation=[], test=["c1"])
    with pytest.raises(TomokitError, match=r"no split file 'mine\.json'"):
        select_cases(folder, "mine.json", 0)


def test_a_patient_on_two_sides_is_refused(tmp_path):
    folder = write_set(tmp_path, make_items(3, patient="same"))
    with pytest.raises(TomokitError, match="patient same is in training and in test"):
        select_cases(folder, "splits.json", 0, training=["c0"], validation=[], test=["c1"])


def test_a_phantom_set_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TOMOKIT_DATA", str(tmp_path))
    monkeypatch.setattr(
        "tomokit.datasets.PHANTOMS",
        {
            "phantom-small": (
                lambda to, modality: phantoms.make_segmentation_set(
                    to, modality, cases=4, test_cases=1, size=16, progress=False
                ),
                "MRI",
            )
        },
    )
    folder = get_dataset("phantom-small")
    stamp = (folder / "dataset.json").stat().st_mtime_ns
    assert get_dataset("phantom-small") == folder
    assert (folder / "dataset.json").stat().st_mtime_ns == stamp
    assert len(read_entries(folder)) == 4


def test_a_local_set_is_copied_whole_with_its_folds(tmp_path, monkeypatch):
    source = write_set(tmp_path / "mirror" / "task", make_items(20))
    (source / "imagesTr").mkdir()
    (source / "imagesTr" / "c0.nii.gz").write_bytes(b"x")
    monkeypatch.setenv("TOMOKIT_DATA", str(tmp_path / "sets"))
    folder = get_dataset("task", source=tmp_path / "mirror")
    assert folder == tmp_path / "sets" / "task" and (folder / "imagesTr" / "c0.nii.gz").read_bytes() == b"x"
    folds = json.loads((folder / "splits.json").read_text())["folds"]
    assert len(folds) == 5 and sorted(sum((fold["test"] for fold in folds), [])) == sorted(f"c{i}" for i in range(20))
    assert not list(folder.parent.glob(".partial*")) and not (source / "splits.json").exists()


def test_getting_what_is_not_there_says_where_to_look(tmp_path, monkeypatch):
    monkeypatch.setenv("TOMOKIT_DATA", str(tmp_path))
    with pytest.raises(TomokitError, match=r"'task' is not a phantom \(phantom-ct, .*--from FOLDER"):
        get_dataset("task")
    with pytest.raises(TomokitError, match=r"neither .*nowhere/task nor .*nowhere has a dataset\.json"):
        get_dataset("task", source=tmp_path / "nowhere")


@pytest.mark.parametrize(("image", "name"), [("a/b.c.nii.gz", "b.c"), (["x_0.nii", "x_1.nii"], "x_0"), ("s.mha", "s")])
def test_a_case_is_named_by_its_first_file(image, name):
    assert case_name(image) == name
