import json

import nibabel
import numpy as np
import pytest

from tomokit.subgroups import group_by_size, read_subgroups, summarise_subgroups


@pytest.fixture
def folder(tmp_path):
    """A data set of six cases with a group and clinical fields."""
    (tmp_path / "images").mkdir()
    entries = []
    for i in range(6):
        name = f"images/c{i}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), tmp_path / name)
        clinical = {"sex": "FM"[i % 2], "age": 40 + i, "smoker": i < 2, "site": "one", "remark": f"text {i}{i}"}
        entry = {"image": name, "label": i % 2, "clinical": clinical if i else None}
        entries.append(entry | ({"group": "north" if i < 4 else "south"} if i != 1 else {}))
    dataset = {"modality": {"0": "CT"}, "labels": {"0": "a", "1": "b"}, "training": entries}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    return tmp_path


def test_kinds_are_read_from_groups_and_clinical_texts(folder):
    found = read_subgroups(folder, [f"c{i}" for i in range(6)])
    assert found == {
        "group": {"c0": "north", "c2": "north", "c3": "north", "c4": "south", "c5": "south"},
        "sex": {"c1": "M", "c2": "F", "c3": "M", "c4": "F", "c5": "M"},
        "smoker": {"c1": "True", "c2": "False", "c3": "False", "c4": "False", "c5": "False"},
        "remark": {f"c{i}": f"text {i}{i}" for i in range(1, 6)},
    }


def test_what_tells_the_asked_cases_apart_is_told(folder):
    assert set(read_subgroups(folder, ["c2", "c4"])) == {"group", "remark"}


def test_without_its_set_no_kinds_are_known_and_a_line_says_so(tmp_path, caplog):
    assert read_subgroups(tmp_path / "nowhere", ["c0"]) == {}
    assert "no kinds of cases are scored by themselves" in caplog.text and "nowhere" in caplog.text


def test_a_field_of_seven_texts_tells_no_kinds(folder):
    dataset = json.loads((folder / "dataset.json").read_text())
    for i, entry in enumerate(dataset["training"]):
        nibabel.save(nibabel.load(folder / entry["image"]), folder / f"images/d{i}.nii.gz")
    more = [entry | {"image": f"images/d{i}.nii.gz"} for i, entry in enumerate(dataset["training"])]
    for i, entry in enumerate([*dataset["training"], *more]):
        entry["clinical"] = {"remark": f"text {i}"}
    dataset["training"] += more
    (folder / "dataset.json").write_text(json.dumps(dataset))
    assert set(read_subgroups(folder, [f"{kind}{i}" for kind in "cd" for i in range(6)])) == {"group"}


def test_thirds_of_sizes():
    sizes = {"a": 5.0, "b": 1.0, "c": 9.0, "d": 2.0, "e": 7.0, "f": 3.0, "g": 8.0}
    found = group_by_size(sizes)
    assert [found[name] for name in "bdf"] == ["smallest third"] * 3
    assert [found[name] for name in "ae"] == ["middle third"] * 2
    assert [found[name] for name in "gc"] == ["largest third"] * 2
    assert group_by_size({"a": 1.0, "b": 2.0}) == {}


def test_kinds_are_summarised_and_small_ones_are_named():
    rows = [{"case": f"c{i}", "patient": f"p{i // 2}", "dice": i} for i in range(14)]
    kind_of = {f"c{i}": "largest third" if i < 10 else "smallest third" for i in range(14)}

    def total(own):
        return {"dice": sum(row["dice"] for row in own)}

    found = summarise_subgroups(rows, {"size": kind_of}, total)
    assert list(found["size"]) == ["smallest third", "largest third"]
    assert found["size"]["largest third"] == {"n": 5, "cases": 10, "summary": {"dice": 45}}
    assert found["size"]["smallest third"] == {"n": 2, "cases": 4, "summary": None}
