import pytest
import torch

from tomokit.errors import TomokitError
from tomokit.transforms import OneHotClassd, class_ratios


@pytest.mark.parametrize("value", [2, torch.tensor(2), 2.0])
def test_a_class_becomes_a_one_hot_vector(value):
    result = OneHotClassd("label", 4)({"label": value, "case": "a"})
    assert result["label"].tolist() == [0, 0, 1, 0] and result["case"] == "a"


def test_the_foregrounds_share_is_divided_among_the_structures():
    assert class_ratios({"0": "background", "1": "liver", "2": "tumour"}, 0.5) == [0.5, 0.25, 0.25]
    assert class_ratios({"0": "background", "1": "liver"}, 1) == [0, 1]


def test_a_share_out_of_range_is_named():
    with pytest.raises(TomokitError, match=r"0–1, got 1\.5"):
        class_ratios({"0": "background", "1": "liver"}, 1.5)
