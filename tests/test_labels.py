import pytest

from tomokit.errors import TomokitError
from tomokit.labels import check_label_map, find_lesions, foreground, lateral_names


def test_text_and_number_keys_in_any_order():
    assert check_label_map({"1": "liver", "0": "background", "2": "spleen"}) == {
        0: "background",
        1: "liver",
        2: "spleen",
    }
    assert list(check_label_map({2: "spleen", 0: "background", 1: "liver"})) == [0, 1, 2]


def test_checking_twice_changes_nothing():
    once = check_label_map({"0": "background", "1": "liver"})
    assert check_label_map(once) == once


def test_foreground_leaves_out_the_background():
    assert foreground({"0": "background", "1": "liver"}) == {1: "liver"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"0": "background", "2": "liver"}, r"without gaps, got \[0, 2\]"),
        ({"1": "liver", "2": "spleen"}, r"without gaps, got \[1, 2\]"),
        ({"0": "background"}, r"at least one structure are needed, got \{0: 'background'\}"),
        ({}, r"at least one structure are needed, got \{\}"),
        ({"background": 0, "liver": 1}, "got 'background': 0"),
        ({"-1": "x", "0": "background"}, "got '-1': 'x'"),
        ({0: "background", "0": "air", 1: "liver"}, "value 0 is given twice, as 'background' and 'air'"),
        ({"0": "background", "1": " "}, "not empty, got ' '"),
        ({"0": "background", "1": None}, "not empty, got None"),
        ({"0": "background", "1": "liver", "2": "liver"}, "the name 'liver' is used 2 times"),
    ],
)
def test_wrong_label_maps(labels, message):
    with pytest.raises(TomokitError, match=message):
        check_label_map(labels)


def test_all_problems_are_shown_together():
    with pytest.raises(TomokitError) as caught:
        foreground({"0": "background", "2": "", "3": "liver", "4": "liver"})
    for part in ("[0, 2, 3, 4]", "not empty, got ''", "'liver' is used 2 times"):
        assert part in str(caught.value)


def test_names_of_one_side_are_known():
    lateral = [
        "kidney_left",
        "Right lung",
        "leftkidney",
        "KidneyL",
        "KidneyR",
        "lung-r",
        "lung-l",
        "LH",
        "RH",
        "lt_eye",
    ]
    lateral += ["rt_eye", "hippocampus-lh", "hippocampus-rh"]
    others = ["background", "liver", "upright", "cleft", "colon", "vertebrae_L1", "vertebrae_L2", "T1 r", "bright"]
    names = [*others, *lateral]
    assert lateral_names({str(value): name for value, name in enumerate(names)}) == lateral
    assert lateral_names({"0": "background", "1": "lung-r"}) == []


def test_names_of_lesions_are_known():
    ill = ["tumour", "liver_tumor", "TumourCore", "lesions", "bone-metastasis", "lung_nodules", "kidney cyst", "Bleed"]
    ill += ["haemorrhage", "intracranial hemorrhage", "hematoma", "cancer", "GTV", "necrotic tumor core", "infarct"]
    well = ["background", "liver", "cystic_duct", "lymph_node", "urinary_bladder", "stump", "module", "brain"]
    names = [*well, *ill]
    assert find_lesions({str(value): name for value, name in enumerate(names)}) == ill
    assert find_lesions({0: "background", 1: "liver"}) == []
