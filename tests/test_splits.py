import json

import numpy as np
import pytest
from sklearn.model_selection import KFold

from tomokit.errors import TomokitError
from tomokit.splits import PARTS, check_disjoint, draw_nnunet_folds, draw_split, hold_out, read_split


def make_entries(patients: int, scans: int = 1) -> list[dict]:
    return [{"case": f"c{p:03d}_{s}", "patient": f"p{p:03d}"} for p in range(patients) for s in range(scans)]


def test_drawn_split_is_6_2_2_by_patient_and_independent_of_the_order():
    entries = make_entries(50, scans=2)
    split = draw_split(entries, seed=3)
    assert [len(split[part]) for part in PARTS] == [60, 20, 20]
    patients = {part: {name.split("_")[0] for name in split[part]} for part in PARTS}
    assert not patients["training"] & patients["validation"]
    assert not (patients["training"] | patients["validation"]) & patients["test"]
    assert draw_split(entries[::-1], seed=3) == split
    assert draw_split(entries, seed=4) != split


def test_split_is_not_a_slice_of_the_sorted_names():
    split = draw_split(make_entries(50), seed=0)
    assert split["test"] != sorted(sum(split.values(), []))[-10:]


def test_nnunet_folds_are_those_of_its_published_figures():
    entries = make_entries(26)
    names = np.array(sorted(entry["case"] for entry in entries))
    folds = draw_nnunet_folds(entries[::-1], 0.1, seed=0)
    expected = [names[test].tolist() for _, test in KFold(5, shuffle=True, random_state=12345).split(names)]
    assert [fold["test"] for fold in folds] == expected
    for fold in folds:
        assert sorted(fold["training"] + fold["validation"] + fold["test"]) == names.tolist()


def test_folds_keep_a_patients_cases_together():
    entries = make_entries(12, scans=3)
    folds = draw_nnunet_folds(entries, 0.1, seed=0)
    assert sorted(sum((fold["test"] for fold in folds), [])) == [entry["case"] for entry in entries]
    for fold in folds:
        patients = [{name.split("_")[0] for name in fold[part]} for part in PARTS]
        assert sum(map(len, patients)) == 12 == len(set.union(*patients))
    single = draw_nnunet_folds(make_entries(12), 0.1, seed=0)
    assert [{name[:4] for name in fold["test"]} for fold in folds] == [
        {name[:4] for name in fold["test"]} for fold in single
    ]


def test_folds_do_not_depend_on_the_patients_names():
    entries = [{"case": f"c{i:03d}", "patient": f"p{99 - i}"} for i in range(26)]
    by_case = [{**entry, "patient": entry["case"]} for entry in entries]
    tests = [[fold["test"] for fold in draw_nnunet_folds(each, 0.1, seed=0)] for each in (entries, by_case)]
    assert tests[0] == tests[1]


def test_folds_of_four_patients_are_refused():
    with pytest.raises(TomokitError, match=r"at least five patients, got 4; train without splits\.json"):
        draw_nnunet_folds(make_entries(4, scans=2), 0.1, seed=0)


def test_given_parts_stay_and_only_the_rest_is_drawn():
    entries, held = make_entries(20), [{"case": "t", "patient": "t"}]
    split = draw_split(entries, 0, {"test": held})
    assert split["test"] == ["t"] and [len(split[part]) for part in PARTS] == [15, 5, 1]
    split = draw_split(entries, 0, {"validation": held, "test": []})
    assert split["validation"] == ["t"] and [len(split[part]) for part in PARTS] == [15, 1, 5]
    split = draw_split(entries[:1], 0, {"validation": held, "test": entries[1:3]})
    assert split == {"training": ["c000_0"], "validation": ["t"], "test": ["c001_0", "c002_0"]}


def test_one_patient_can_not_be_split():
    with pytest.raises(TomokitError, match="at least two patients, got 1"):
        hold_out(make_entries(1, scans=5), 0.2, seed=0)


def test_leak_names_patient_and_both_parts():
    a, b = make_entries(2)
    with pytest.raises(TomokitError, match="patient p000 is in training and in test"):
        check_disjoint({"training": [a], "validation": [b], "test": [a]})


def test_split_file_is_read_and_refused(tmp_path):
    path = tmp_path / "splits.json"
    fold = {"training": ["a"], "validation": [], "test": ["b"]}
    path.write_text(json.dumps({"folds": [fold]}))
    assert read_split(path, 0) == fold
    with pytest.raises(TomokitError, match=r"fold 3 is not in .*which has 1"):
        read_split(path, 3)
    path.write_text(json.dumps({"folds": [{"training": []}]}))
    with pytest.raises(TomokitError, match="is not a split file"):
        read_split(path, 0)
    for names in (None, "abc", [1]):
        path.write_text(json.dumps({"folds": [fold, {**fold, "validation": names}]}))
        with pytest.raises(
            TomokitError, match=r"(?s)splits\.json is malformed.*fold 1: `validation` must be a list"
        ) as caught:
            read_split(path, 0)
        assert f"got {names!r}" in str(caught.value)
