import json
import re

import pytest
from set_files import make_items, write_set

from tomokit.datasets import (
    case_name,
    find_dataset,
    images_of,
    misread,
    read_description,
    read_entries,
    select_cases,
    select_unlabelled,
    unlabelled,
)
from tomokit.errors import TomokitError


def test_a_set_is_found_by_folder_by_name_and_under_the_variable(tmp_path, monkeypatch):
    folder = write_set(tmp_path / "sets" / "mine", make_items(1))
    monkeypatch.setenv("TOMOKIT_DATA", str(tmp_path / "sets"))
    assert find_dataset("mine") == find_dataset(folder) == folder.resolve()
    with pytest.raises(TomokitError, match=r"no data set 'other'.*tomokit data get other --from FOLDER"):
        find_dataset("other")
    with pytest.raises(
        TomokitError, match=r"get it with `tomokit data get phantom-ct` if `tomokit data list` names it"
    ):
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


def test_a_description_has_labels_by_value_and_modality_by_channel(tmp_path):
    def read(**content):
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        return read_description(tmp_path)

    assert read() == {}
    assert read(labels={"0": "background", "01": "a"})["labels"] == {"0": "background", "1": "a"}
    kinds = {str(i): f"M{i}" for i in range(11)}
    assert read(modality=dict(sorted(kinds.items())))["modality"] == list(kinds.values())
    assert read(modality=["T1", "T2"])["modality"] == ["T1", "T2"] and read(modality="CT")["modality"] == ["CT"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"labels": {"background": 0, "a": 1}},
            "name -> value {'background': 0, 'a': 1}; swap them: {'0': 'background'",
        ),
        (
            {"labels": ["background"]},
            '`labels` must be an object {"0": "background", "1": "name"}, got [\'background\']',
        ),
        ({"labels": None}, '"1": "name"}, got None'),
        ({"labels": {"0": "background", "1": 5}}, "got '1': 5; write"),
        ({"labels": {"0": "background", "-1": "a"}}, "got '-1': 'a'; write"),
        ({"modality": {"ct": "CT"}}, "the numbers of the channels as keys, got {'ct': 'CT'}"),
        (
            {"modality": {"0": 3}},
            '`modality` must name the kind of each channel, as in {"0": "CT"} or ["CT"], got {\'0\': 3}',
        ),
        ({"modality": []}, "got []"),
        ({"modality": None}, "got None"),
        ({"training": None}, "`training` must be a list of entries, got None"),
        ({"training": [], "test": {}}, "`test` must be a list of entries, got {}"),
        ({"training": [7]}, "`training` entry 0: must be an object with `image` and `label`, got 7"),
        (
            {"training": [{"image": "", "label": 1}]},
            "`training` entry 0: `image` must be a path or a list of paths, got ''",
        ),
        ({"training": [{"image": None, "label": 1}]}, "list of paths, got None"),
        ({"training": [{"image": [], "label": 1}]}, "list of paths, got []"),
        ({"training": [{"image": ["a", 3], "label": 1}]}, "list of paths, got ['a', 3]"),
        ({"training": [{"label": 1}]}, "list of paths, got none"),
        ({"training": [{"image": "a", "label": None}]}, "`label` must be a path or a class, got None; leave"),
        ({"training": [{"image": "a", "label": True}]}, "a number, or a list of 0 and 1, got True"),
        ({"training": [{"image": "a", "label": [0, True]}]}, "a list of 0 and 1, got [0, True]"),
        ({"training": [{"image": "a", "label": float("nan")}]}, "a list of 0 and 1, got nan"),
        ({"training": [{"image": "a", "label": 1, "mask": ""}]}, "`mask` must be a path, got ''; leave"),
        (
            {"training": [{"image": "a", "label": 1, "patient": None}]},
            "`patient` must be a name or a number, got None; leave",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_file_and_key(tmp_path, content, message):
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(TomokitError, match=rf"(?s)/dataset\.json is malformed.*{re.escape(message)}"):
        read_entries(tmp_path)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("$exec('')", "as Python code"),
        ("@device", "as a reference"),
        ("%epochs", "as a macro"),
        ("a#1", "as 'a::1'"),
        ("5% of $ @ home", ""),
    ],
)
def test_a_name_that_a_config_would_not_take_as_text_is_told(name, told):
    assert told in misread(name) and bool(misread(name)) == bool(told)


def test_names_that_a_config_would_evaluate_are_refused_at_once(tmp_path):
    content = {"labels": {"0": "background", "1": "$exit()"}, "modality": ["CT#1"]}
    content |= {"training": [{"image": "a/@b.nii.gz", "label": 1}, {"image": ["%c_0000.nii"], "label": 1}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(TomokitError) as error:
        read_entries(tmp_path)
    for text in (
        "`labels` '$exit()': a config would read it as Python code; rename it",
        "`modality` 'CT#1': a config would read it as 'CT::1'; rename it",
        "`training` entry 0: `image` gives the case the name '@b': a config would read it as a reference",
        "`training` entry 1: `image` gives the case the name '%c': a config would read it as a macro",
    ):
        assert text in str(error.value)


def test_a_target_may_be_any_finite_number(tmp_path):
    items = [{"image": f"c{i}.nii.gz", "label": label} for i, label in enumerate((61.5, 62, -0.5, 1e-3))]
    entries = read_entries(write_set(tmp_path, items))
    assert [entry["label"] for entry in entries] == [61.5, 62, -0.5, 0.001]
    assert [type(entry["label"]) for entry in entries] == [float, int, float, float]


def test_paths_of_an_entry_are_absolute(tmp_path):
    folder = write_set(tmp_path, [{"image": "i.nii.gz", "label": 1, "mask": "m/i.nii.gz"}])
    assert read_entries(folder)[0]["mask"] == str(folder / "m" / "i.nii.gz")


def test_a_folder_whose_path_a_config_has_changed_is_told():
    with pytest.raises(TomokitError, match="no data set '/data/a::1': MONAI's configs read # as ::"):
        find_dataset("/data/a::1")


def test_labelled_test_and_validation_cases_are_never_drawn_into_training(tmp_path):
    items = make_items(14)
    folder = write_set(tmp_path, items[:12], items[12:])
    for seed in range(5):
        drawn = select_cases(folder, "splits.json", 0, seed=seed)
        assert [entry["case"] for entry in drawn["test"]] == ["c12", "c13"]
        assert [len(drawn[part]) for part in ("training", "validation")] == [9, 3]
    content = {"training": items[:8], "validation": items[8:10]}
    (folder / "dataset.json").write_text(json.dumps(content))
    drawn = select_cases(folder, "splits.json", 0)
    assert [entry["case"] for entry in drawn["validation"]] == ["c8", "c9"] and len(drawn["test"]) == 2
    (folder / "dataset.json").write_text(json.dumps(content | {"test": items[10:]}))
    assert [len(part) for part in select_cases(folder, "splits.json", 0).values()] == [8, 2, 4]


def test_a_patient_of_the_given_test_part_may_not_train(tmp_path):
    folder = write_set(tmp_path, make_items(3), [{"image": "t.nii.gz", "label": 1, "patient": "c0"}])
    with pytest.raises(TomokitError, match=r"patient c0 is in (training|validation) and in test"):
        select_cases(folder, "splits.json", 0)


def test_cases_come_from_lists_from_a_file_or_are_drawn(tmp_path):
    folder = write_set(tmp_path, make_items(10))
    drawn = select_cases(folder, "splits.json", 0, seed=1)
    assert [len(drawn[part]) for part in ("training", "validation", "test")] == [6, 2, 2]
    fold = {"training": ["c1"], "validation": ["c2"], "test": ["c3"]}
    (folder / "splits.json").write_text(json.dumps({"folds": [fold]}))
    read = select_cases(folder, "splits.json", 0)
    assert {part: [entry["case"] for entry in read[part]] for part in read} == fold
    joined = select_cases(folder, "splits.json", 0, join_validation=True)
    names = {part: [entry["case"] for entry in joined[part]] for part in joined}
    assert names == {"training": ["c1", "c2"], "validation": [], "test": ["c3"]}
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


def test_what_else_stands_in_an_entry_reaches_no_batch_unless_it_is_kept(tmp_path):
    """MONAI takes keys such as `image_id` for metadata of the image."""
    items = [{**item, "image_id": number, "weight": 2.5} for number, item in enumerate(make_items(5))]
    (entry,) = select_cases(write_set(tmp_path, items), "splits.json", 0, keep=["weight"])["test"]
    assert set(entry) == {"case", "patient", "image", "label", "weight"}


@pytest.mark.parametrize(("image", "name"), [("a/b.c.nii.gz", "b.c"), (["x_0.nii", "x_1.nii"], "x_0"), ("s.mha", "s")])
def test_a_case_is_named_by_its_first_file(image, name):
    assert case_name(image) == name


def test_what_a_split_sets_apart_is_not_trained_on_without_its_label_either(tmp_path):
    items = [{"image": f"c{i}.nii.gz", "label": i % 2, "patient": f"p{i}"} for i in range(6)]
    bare = [{"image": "u.nii.gz", "patient": "p5"}, {"image": "v.nii.gz", "patient": "p0"}, {"image": "w.nii.gz"}]
    folder = write_set(tmp_path, [*items, *bare])
    fold = {"training": ["c0", "c1", "c2"], "validation": ["c3"], "test": ["c4"]}
    (folder / "splits.json").write_text(json.dumps({"folds": [fold], "robustness": ["c5"]}))
    cases = select_cases(folder, "splits.json", 0, limit=2)
    found = select_unlabelled(folder, "splits.json", 0, 0, cases)
    (left_out,) = {"c0", "c1", "c2"} - {entry["case"] for entry in cases["training"]}
    assert [entry["case"] for entry in found] == [left_out, "v", "w"]  # u is of a patient set apart
