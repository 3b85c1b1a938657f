import pytest
import torch

from tomokit.transforms import OneHotClassd


@pytest.mark.parametrize("value", [2, torch.tensor(2), 2.0])
def test_a_class_becomes_a_one_hot_vector(value):
    result = OneHotClassd("label", 4)({"label": value, "case": "a"})
    assert result["label"].tolist() == [0, 0, 1, 0] and result["case"] == "a"
