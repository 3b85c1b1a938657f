"""Linear models of the histogram: they find what lies in the intensities, and name what they can't take."""

import nibabel as nib
import numpy as np
import pytest

from tomokit import rivals
from tomokit.errors import TomokitError


def write_entry(directory, name, image, label):
    path = directory / f"{name}.nii"
    nib.save(nib.Nifti1Image(image, np.eye(4)), path)
    return {"case": name, "image": path, "label": label}


def write_bright(tmp_path, labels, brightness):
    """Return entries with the given labels, whose images are noise about a brightness each."""
    rng = np.random.default_rng(3)
    images = [rng.normal(level, 30, (8, 8, 8)).astype(np.float32) for level in brightness]
    pairs = zip(images, labels, strict=True)
    return [write_entry(tmp_path, f"case_{number}", image, label) for number, (image, label) in enumerate(pairs)]


def test_a_histogram_tells_each_of_several_labels(tmp_path):
    flags = [[number % 2, number // 2 % 2, 0, 1] for number in range(24)]
    entries = write_bright(tmp_path, flags, [100 * bright for bright, *_ in flags])
    names = {"3": "always", "0": "bright", "1": "chance", "2": "never"}
    rows = rivals.score_histogram_labels(entries[:16], entries[16:], names)
    assert list(rows[0])[:5] == ["case", "patient", "truth_bright", "p_bright", "decided_bright"]
    for row, (bright, chance, *_) in zip(rows, flags[16:], strict=True):
        assert (row["truth_bright"], row["decided_bright"], row["truth_chance"]) == (bright, bright, chance)
        assert abs(row["p_bright"] - bright) < 0.2
        assert (row["p_never"], row["decided_never"], row["p_always"], row["decided_always"]) == (0, 0, 1, 1)


def test_a_rare_label_is_decided_at_its_share(tmp_path):
    labels = [[int(number % 8 == 0)] for number in range(24)]
    entries = write_bright(tmp_path, labels, [0] * 24)
    rows = rivals.score_histogram_labels(entries, entries, {"0": "rare"})
    assert [row["decided_rare"] for row in rows] == [int(row["p_rare"] >= 3 / 24) for row in rows]


def test_a_histogram_tells_a_value(tmp_path):
    values = [float(number) for number in np.random.default_rng(0).permutation(48)]
    entries = write_bright(tmp_path, values, [3 * value for value in values])
    rows = rivals.score_histogram_value(entries[:36], entries[36:])
    assert list(rows[0]) == ["case", "patient", "truth", "prediction"]
    assert [row["truth"] for row in rows] == values[36:]
    assert np.corrcoef(values[36:], [row["prediction"] for row in rows])[0, 1] > 0.9


@pytest.mark.parametrize("label", [1, [0, 1, 0], [0, 2]])
def test_a_label_that_is_no_list_of_flags_is_named(label, tmp_path):
    entry = write_entry(tmp_path, "case_1", np.ones((2, 2, 2), np.float32), label)
    with pytest.raises(TomokitError, match=r"case_1 has the label .*0 or 1 for each of \['a', 'b'\]"):
        rivals.score_histogram_labels([entry], [entry], {"0": "a", "1": "b"})


@pytest.mark.parametrize("label", ["high", True, [1.5]])
def test_a_label_that_is_no_number_is_named(label, tmp_path):
    entry = write_entry(tmp_path, "case_1", np.ones((2, 2, 2), np.float32), label)
    with pytest.raises(TomokitError, match=r"case_1 has the label .*; a regression needs a number"):
        rivals.score_histogram_value([entry], [entry])


def test_without_training_cases_there_is_no_rival(tmp_path):
    entry = write_entry(tmp_path, "case_1", np.ones((2, 2, 2), np.float32), [1, 0])
    with pytest.raises(TomokitError, match="the histogram's rival needs training cases, got none"):
        rivals.score_histogram_labels([], [entry], {"0": "a", "1": "b"})
    with pytest.raises(TomokitError, match="needs training cases, got none"):
        rivals.score_histogram_value([], [])
