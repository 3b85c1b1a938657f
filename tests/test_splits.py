import json

import numpy as np
import pytest
from rich.console import Console
from sklearn.model_selection import KFold, StratifiedGroupKFold
from typer.testing import CliRunner

from tomokit.cli import app
from tomokit.datasets import select_cases
from tomokit.errors import TomokitError
from tomokit.splits import (
    PARTS,
    Split,
    check_disjoint,
    class_strata,
    draw_folds,
    draw_nnunet_folds,
    draw_split,
    hash_entries,
    hold_out,
    make_split,
    measure_labels,
    print_split,
    read_split,
    set_apart,
    volume_strata,
    write_split,
)

QUIET = Console(quiet=True)


def make_entries(patients: int, scans: int = 1) -> list[dict]:
    return [{"case": f"c{p:03d}_{s}", "patient": f"p{p:03d}"} for p in range(patients) for s in range(scans)]


def make_labelled(seed: int, several: bool = False) -> list[dict]:
    """Return cases of 8 to 60 patients with up to three scans: a class each, some changing, or five rare labels."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(int(rng.integers(2, 6)), 1.5))
    entries = []
    for patient in range(int(rng.integers(8, 60))):
        own = int(rng.choice(len(shares), p=shares))
        for scan in range(int(rng.integers(1, 4))):
            label = own if rng.random() < 0.9 else int(rng.choice(len(shares), p=shares))
            labels = (rng.random(5) < np.linspace(0.05, 0.5, 5)).astype(int).tolist()
            case = {"case": f"c{patient:03d}_{scan}", "patient": f"p{patient}", "label": labels if several else label}
            entries.append(case)
    return entries


def furthest(entries: list[dict], parts: list[list[str]]) -> float:
    """Return the largest difference, in cases, of a label's number in a part from its share by patients."""
    vectors = {case: np.array(vector) for case, vector in class_strata(entries).items()}
    patient = {entry["case"]: entry["patient"] for entry in entries}
    total, patients = sum(vectors.values()), len(set(patient.values()))
    shares = [len({patient[case] for case in part}) / patients for part in parts]
    sums = [sum((vectors[case] for case in part), 0 * total) for part in parts]
    return max(np.abs(own - share * total).max() for own, share in zip(sums, shares, strict=True))


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


@pytest.mark.parametrize("several", [False, True], ids=["classes", "labels"])
def test_each_part_has_its_share_of_each_class_within_a_patient(several):
    for seed in range(40):
        entries = make_labelled(seed, several)
        split = draw_split(entries, seed)
        folds = draw_folds(entries, 5, seed)
        assert furthest(entries, [split[part] for part in PARTS]) < 3  # cases: a patient has up to three
        assert furthest(entries, [fold["test"] for fold in folds]) < 3
        for fold in (split, *folds):
            assert sorted(sum(fold.values(), [])) == sorted(entry["case"] for entry in entries)
            by_name = {entry["case"]: entry for entry in entries}
            check_disjoint({part: [by_name[name] for name in fold[part]] for part in PARTS})


def test_folds_are_as_even_as_those_of_scikit_learn():
    ours, theirs = [], []
    for seed in range(40):
        entries = [entry for entry in make_labelled(seed) if entry["label"] < 2]
        labels = [entry["label"] for entry in entries]
        if min(labels.count(0), labels.count(1)) < 4:
            continue
        groups = [entry["patient"] for entry in entries]
        drawn = StratifiedGroupKFold(4, shuffle=True, random_state=seed).split(labels, labels, groups)
        theirs.append(furthest(entries, [[entries[i]["case"] for i in test] for _, test in drawn]))
        ours.append(furthest(entries, [fold["test"] for fold in draw_folds(entries, 4, seed)]))
    assert len(ours) > 20 and np.mean(ours) <= np.mean(theirs)


def test_a_stratified_split_follows_from_the_seed_and_not_from_the_order():
    for several in (False, True):
        entries = make_labelled(0, several)
        drawn = [draw_split(entries, seed) for seed in range(10)]
        assert drawn == [draw_split(entries[::-1], seed) for seed in range(10)]
        assert len({str(split) for split in drawn}) == 10
        assert draw_folds(entries, 4, 1) == draw_folds(entries[::-1], 4, 1) != draw_folds(entries, 4, 2)
    alone = [{"case": f"c{i:02d}", "patient": str(i), "label": [int(bit) for bit in f"{i:04b}"]} for i in range(16)]
    assert len({str(draw_split(alone, seed)) for seed in range(10)}) > 5  # where no two patients are alike


def test_the_only_case_of_a_class_trains():
    entries = [{**entry, "label": int(i == 4)} for i, entry in enumerate(make_entries(20))]
    for seed in range(10):
        assert "c004_0" in draw_split(entries, seed)["training"]


def test_label_volumes_are_shared_out_alike():
    rng = np.random.default_rng(0)
    entries = make_entries(60)
    volumes = {entry["case"]: float(volume) for entry, volume in zip(entries, rng.lognormal(3, 1.5, 60), strict=True)}
    ranks = {case: rank for rank, case in enumerate(sorted(volumes, key=volumes.get))}
    strata = volume_strata(volumes, 10)
    assert {tuple(vector).index(1) for vector in strata.values()} == set(range(10))
    for seed in range(10):
        split = draw_split(entries, seed, strata=strata)
        for part in PARTS:
            assert abs(np.mean([ranks[case] for case in split[part]]) - 29.5) < 3  # drawn freely: a deviation of 4.5


def test_folds_keep_a_given_part_and_draw_the_other():
    entries, held = make_entries(12), make_entries(15)[12:]
    folds = draw_folds(entries, 3, 0, {"test": held})
    assert all(fold["test"] == ["c012_0", "c013_0", "c014_0"] for fold in folds)
    assert sorted(sum((fold["validation"] for fold in folds), [])) == [entry["case"] for entry in entries]
    folds = draw_folds(entries, 3, 0, {"validation": held, "test": []})
    assert all(fold["validation"] == ["c012_0", "c013_0", "c014_0"] for fold in folds)
    assert sorted(sum((fold["test"] for fold in folds), [])) == [entry["case"] for entry in entries]
    folds = draw_nnunet_folds(entries, 0.08, 0, {"test": held})
    assert len(folds) == 5 and all(fold["test"] == ["c012_0", "c013_0", "c014_0"] for fold in folds)
    with pytest.raises(TomokitError, match=r"gives both the validation and the test part, so that no fold is left"):
        draw_folds(entries, 3, 0, {"validation": held, "test": held})


@pytest.mark.parametrize("count", [1, 5])
def test_as_many_folds_as_patients_at_most(count):
    with pytest.raises(TomokitError, match=rf"{count} folds can't be drawn from 4 patients; choose 2 to 4"):
        draw_folds(make_entries(4, scans=3), count, 0)


def with_groups() -> dict[str, list[dict]]:
    training = [{**entry, "label": i % 2, "group": "A"} for i, entry in enumerate(make_entries(20))]
    for entry in training[:3]:
        entry["group"] = "B"
    training[3]["patient"] = training[0]["patient"]
    return {"training": training, "validation": [], "test": []}


def test_a_robustness_set_is_apart_with_its_patients():
    kept, robustness, left_out = set_apart(with_groups(), ["B"])
    assert robustness == ["c000_0", "c001_0", "c002_0"] and left_out == ["c003_0"]
    assert [entry["case"] for entry in kept["training"]] == [f"c{i:03d}_0" for i in range(4, 20)]
    assert set_apart(with_groups(), [])[1:] == ([], [])
    with pytest.raises(TomokitError, match=r"no case has the group 'C'; the groups are: A, B"):
        set_apart(with_groups(), ["B", "C"])
    with pytest.raises(TomokitError, match=r"no case has the group 'C'; the groups are: none; give entries"):
        set_apart({"training": make_entries(3), "validation": [], "test": []}, ["C"])


def test_a_test_section_loses_its_robustness_cases_too():
    sections = with_groups()
    sections["test"], sections["training"] = sections["training"][:6], sections["training"][6:]
    split, _ = make_split(sections, 2, False, 0, ["B"], QUIET)
    assert split.robustness == ["c000_0", "c001_0", "c002_0"]
    assert all(fold["test"] == ["c004_0", "c005_0"] for fold in split.folds)
    assert split.method == "2 folds by patient, stratified by class; test as given; robustness set: group B"


def test_a_given_part_that_leaks_is_not_written_down():
    sections = with_groups()
    sections["test"] = [{"case": "t", "patient": "p007", "label": 1}]
    with pytest.raises(TomokitError, match=r"patient p007 is in (training|validation) and in test"):
        make_split(sections, 1, False, 0, [], QUIET)


def test_nnunets_folds_are_five():
    with pytest.raises(TomokitError, match=r"nnU-Net's folds are 5, got 3 folds"):
        make_split(with_groups(), 3, True, 0, [], QUIET)
    assert len(make_split(with_groups(), 5, True, 0, [], QUIET)[0].folds) == 5


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a.nii", 1], "class and file"),
        ([[0, 1], [0, 1, 1]], "list of 2 and list of 3"),
        ([True, True], "are bool; give"),
        ([], "not there"),
    ],
)
def test_labels_of_several_kinds_are_not_stratified(labels, message):
    entries = [{**entry, "label": label} for entry, label in zip(make_entries(2), labels, strict=False)]
    with pytest.raises(TomokitError, match=rf"labels can't be stratified.*{message}"):
        make_split({"training": entries, "validation": [], "test": []}, 1, False, 0, [], QUIET)


def test_the_foreground_of_a_label_is_measured_in_ml(write_volume):
    label = np.zeros((6, 6, 6), np.uint8)
    label[:2, :2, :5] = [1, 1, 2, 2, 3]
    affine = np.diag([-2.0, 3.0, 5.0, 1.0])
    entry = {"case": "a", "label": write_volume("a.nii.gz", label, affine)}
    assert measure_labels([entry], QUIET) == {"a": pytest.approx(20 * 30 / 1000)}


@pytest.mark.parametrize(
    "change",
    [
        lambda entries: entries.append({"case": "new", "patient": "new", "label": 0}),
        lambda entries: entries.pop(),
        lambda entries: entries[0].update(case="renamed"),
        lambda entries: entries[0].update(patient="p9"),
        lambda entries: entries[0].update(label=1),
        lambda entries: entries[0].update(group="A"),
        lambda entries: entries[1].update(label=[0, 1]),
    ],
)
def test_the_hash_tells_cases_patients_classes_and_groups(change):
    entries = [{**entry, "label": 0, "image": entry["case"]} for entry in make_entries(5)]
    before = hash_entries(entries)
    assert hash_entries(entries[::-1]) == before
    assert hash_entries([{**entry, "image": "elsewhere"} for entry in entries]) == before
    change(entries)
    assert hash_entries(entries) != before


def test_a_written_split_is_read_again_and_keeps_how_it_was_drawn(tmp_path):
    sections = with_groups()
    entries = sections["training"]
    split, _ = make_split(sections, 1, False, 7, ["B"], QUIET)
    write_split(tmp_path / "s.json", split, entries)
    content = json.loads((tmp_path / "s.json").read_text())
    assert list(content) == ["method", "seed", "hash", "stratified_by", "folds", "robustness", "left_out"]
    assert content["seed"] == 7 and content["stratified_by"] == "class" and content["hash"] == hash_entries(entries)
    assert read_split(tmp_path / "s.json", 0, entries) == split.folds[0] == content["folds"][0]


def write_set(folder, labels: dict[str, int]) -> None:
    items = [{"image": f"{name}.nii.gz", "label": label} for name, label in labels.items()]
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "a", "1": "b"}, "training": items}))


def test_training_refuses_a_split_of_other_cases(tmp_path):
    labels = {f"c{i}": i % 2 for i in range(12)}
    write_set(tmp_path, labels)
    assert CliRunner().invoke(app, ["split", str(tmp_path), "--seed", "3"]).exit_code == 0
    assert sum(map(len, select_cases(tmp_path, "splits.json", 0).values())) == 12
    write_set(tmp_path, {name: label for name, label in labels.items() if name != "c4"} | {"new": 1})
    with pytest.raises(TomokitError) as caught:
        select_cases(tmp_path, "splits.json", 0)
    text = str(caught.value)
    path = tmp_path / "splits.json"
    assert text.startswith(f"{path} was drawn for other cases than the data set has now; make it again with `tomokit")
    assert "it was: 6:2:2 by patient, stratified by class; seed 3" in text
    assert "  - new is in the data, not in the split" in text
    assert any(f"  - c4 ({part}) is in the split, not in the data" in text for part in PARTS)
    write_set(tmp_path, labels | {"c4": 1})
    with pytest.raises(TomokitError, match=r"the names are the same: a patient, class or group of a case"):
        select_cases(tmp_path, "splits.json", 0)
    content = json.loads(path.read_text())
    del content["hash"]
    path.write_text(json.dumps(content))  # others' files keep none
    assert sum(map(len, select_cases(tmp_path, "splits.json", 0).values())) == 12


def test_a_patient_of_the_robustness_set_may_not_train(tmp_path):
    path = tmp_path / "s.json"
    fold = {"training": ["c000_0"], "validation": [], "test": ["c001_0"]}
    path.write_text(json.dumps({"folds": [fold], "robustness": ["c000_1"]}))
    with pytest.raises(TomokitError, match="patient p000 is in training and in robustness"):
        read_split(path, 0, make_entries(2, scans=2))
    path.write_text(json.dumps({"folds": [fold], "robustness": "all"}))
    with pytest.raises(TomokitError, match="`robustness` must be a list of case names, got 'all'"):
        read_split(path, 0)


def test_the_command_prints_each_part_and_never_draws_again_in_silence(tmp_path):
    write_set(tmp_path, {f"c{i:02d}": i % 2 for i in range(20)})
    result = CliRunner().invoke(app, ["split", str(tmp_path)])
    lines = [[cell.strip() for cell in line.split("│")[2:6]] for line in result.output.splitlines() if "│" in line]
    assert lines == [
        ["training", "12", "12", "0: 6 (50%), 1: 6 (50%)"],
        ["validation", "4", "4", "0: 2 (50%), 1: 2 (50%)"],
        ["test", "4", "4", "0: 2 (50%), 1: 2 (50%)"],
    ]
    assert f"written: {tmp_path / 'splits.json'}" in result.output
    before = (tmp_path / "splits.json").read_bytes()
    again = CliRunner().invoke(app, ["split", str(tmp_path), "--seed", "1"])
    assert isinstance(again.exception, TomokitError) and "is there already; give another --out" in str(again.exception)
    assert (tmp_path / "splits.json").read_bytes() == before
    assert CliRunner().invoke(app, ["split", str(tmp_path), "--seed", "1", "--overwrite"]).exit_code == 0
    assert (tmp_path / "splits.json").read_bytes() != before
    assert (
        CliRunner().invoke(app, ["split", str(tmp_path), "--folds", "4", "--out", str(tmp_path / "k")]).exit_code == 0
    )
    assert len(json.loads((tmp_path / "k").read_text())["folds"]) == 4


def test_a_table_tells_several_labels_and_volumes(capsys):
    entries = [{**entry, "label": [1, i % 2]} for i, entry in enumerate(make_entries(2))]
    split = Split("as [given]", 0, None, [{"training": ["c000_0"], "validation": [], "test": ["c001_0"]}], ["c001_0"])
    console = Console(markup=False, highlight=False, width=100)
    print_split(split, entries, {}, console)
    print_split(split, entries, {"c000_0": 12.3456, "c001_0": 0.01}, console)
    output = capsys.readouterr().out
    assert "as [given]" in output and "robustness" in output
    assert "0: 1 (100%), 1: 0 (0%)" in output and "0: 1 (100%), 1: 1 (100%)" in output
    assert "12.3 " in output and "0.01 " in output


def test_too_few_patients_are_counted_right():
    entries = [{"case": name, "patient": name, "label": 0} for name in "ab"]
    with pytest.raises(TomokitError, match="needs labelled cases of at least 3 patients, got 2; add some"):
        draw_split(entries, 0)
    with pytest.raises(TomokitError, match="at least 2 patients, got 1"):
        draw_split(entries[:1], 0, {"test": entries[1:]})


def test_each_part_has_the_rare_class_though_two_patients_have_most_of_it():
    counts = {f"rare{number}": count for number, count in enumerate((22, 22, 2, 1, 1))} | {
        f"p{n}": 3 for n in range(65)
    }
    entries = [
        {"case": f"{patient}_{number}", "patient": patient, "label": int(patient.startswith("rare"))}
        for patient, count in counts.items()
        for number in range(count)
    ]
    label = {entry["case"]: entry["label"] for entry in entries}
    for seed in range(10):
        parts = draw_split(entries, seed)
        assert all(any(label[name] for name in names) for names in parts.values()), seed


# Values


def make_values(patients: int) -> list[dict]:
    """Return cases with a value each, every third of them a whole number."""
    return [{**entry, "label": i if i % 3 == 0 else i + 0.5} for i, entry in enumerate(make_entries(patients))]


def test_values_are_stratified_by_bins_of_about_as_many_cases():
    strata = class_strata(make_values(40))
    assert {tuple(vector) for vector in strata.values()} == {tuple(np.eye(8)[number]) for number in range(8)}
    assert [vector.index(1) for vector in strata.values()] == [number // 5 for number in range(40)]
    assert {len(vector) for vector in class_strata(make_values(200)).values()} == {10}
    assert {tuple(vector) for vector in class_strata(make_values(4)).values()} == {(1.0,)}
    files = [{**entry, "label": "a.nii.gz"} for entry in make_entries(4)]
    assert class_strata(files) is None and class_strata([*files[:2], *make_values(4)[2:]]) is None


def test_values_are_shared_out_alike():
    entries = make_values(60)
    values = {entry["case"]: entry["label"] for entry in entries}
    for seed in range(10):
        for fold in (draw_split(entries, seed), *draw_folds(entries, 3, seed)):
            for part in ("training", "test"):
                assert abs(np.mean([values[name] for name in fold[part]]) - np.mean(list(values.values()))) < 4


def test_a_split_of_values_says_so(capsys):
    entries = make_values(20)
    split, volumes = make_split({"training": entries, "validation": [], "test": []}, 1, False, 0, [], QUIET)
    assert split.stratified_by == "value" and split.method == "6:2:2 by patient, stratified by value" and not volumes
    print_split(split, entries, volumes, Console(markup=False, highlight=False, width=100))
    output = capsys.readouterr().out
    assert "values" in output and "cases per class" not in output
    median = np.median([entry["label"] for entry in entries if entry["case"] in split.folds[0]["test"]])
    assert f"median {median:.4g}" in output
