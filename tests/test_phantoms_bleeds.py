"""Bleeds and orders of slices: the truth of each slice, and what thresholds and shuffled slices can't tell."""

import nibabel as nib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tomokit import phantoms
from tomokit.datasets import read_entries, select_cases
from tomokit.errors import TomokitError
from tomokit.phantoms import orders

SIZE = 32
HU_EDGES = np.linspace(-20, 160, 19)


@pytest.fixture(scope="module")
def heads():
    return [phantoms.make_bleed_case(SIZE, seed=0, index=index) for index in range(100)]


@pytest.fixture(scope="module")
def tubes():
    return [phantoms.make_order_case(24, seed=0, index=index) for index in range(100)]


def classes_of(cases):
    return [case.truth["class"] for case in cases]


def intensity_shares(cases):
    """The shares of voxels in bins of intensity, (cases, bins)."""
    return np.array([np.histogram(case.image, HU_EDGES)[0] / case.image.size for case in cases])


def best_interval_auc(shares, classes):
    """The highest AUC of any interval, chosen on the even pairs of cases and scored on the odd ones."""
    classes, chosen = np.array(classes), np.arange(len(classes)) // 2 % 2 == 0
    sums = np.concatenate([np.zeros((len(shares), 1)), np.cumsum(shares, axis=1)], axis=1)
    width = sums.shape[1]
    intervals = [(low, high, sign) for low in range(width) for high in range(low + 1, width) for sign in (-1, 1)]

    def auc(interval, part):
        low, high, sign = interval
        return roc_auc_score(classes[part], sign * (sums[part, high] - sums[part, low]))

    return auc(max(intervals, key=lambda interval: auc(interval, chosen)), ~chosen)


def histogram_auc(shares, classes):
    """The AUC of a logistic regression on the histogram, cross-validated."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return roc_auc_score(classes, cross_val_predict(model, shares, classes, cv=5, method="predict_proba")[:, 1])


# Bleeds


def test_each_slice_is_labelled_by_what_it_shows(heads):
    for case in heads:
        shown = [int((case.label[..., number] == 1).any()) for number in range(case.label.shape[2])]
        assert case.truth["slice_labels"] == shown
        assert case.truth["class"] == max(shown) and set(np.unique(case.label)) <= {0, 1}
        assert "".join(nib.aff2axcodes(case.affine))[2] == "S"  # slices from feet to head


def test_a_bleed_lies_on_a_few_slices_that_follow_each_other(heads):
    for case in heads:
        found = np.flatnonzero(case.truth["slice_labels"])
        if case.truth["class"]:
            assert np.array_equal(found, np.arange(found[0], found[-1] + 1))
            assert 6 <= len(found) * case.truth["spacing_mm"][2] <= 42
            assert len(found) <= len(case.truth["slice_labels"]) / 2


def test_heads_have_16_to_40_slices_and_half_of_them_a_bleed(heads):
    counts = [case.image.shape[2] for case in heads]
    assert 16 <= min(counts) < 20 and 36 < max(counts) <= 40 and len(set(counts)) > 15
    assert {case.image.shape[:2] for case in heads} == {(SIZE, SIZE)}
    assert sum(classes_of(heads)) == 50


def test_bleed_volume_agrees_with_the_truth(heads):
    bleeding = [case for case in heads if case.truth["class"]]
    measured = np.array([np.sum(case.label) * np.prod(case.truth["spacing_mm"]) / 1000 for case in bleeding])
    known = np.array([case.truth["volumes_ml"]["bleed"] for case in bleeding])
    # a bleed is three to four voxels wide here
    assert np.abs(measured / known - 1).max() < 0.5
    assert measured.sum() == pytest.approx(known.sum(), rel=0.12)
    assert not any(case.truth["volumes_ml"] for case in heads if not case.truth["class"])


def test_blood_is_denser_than_brain_and_no_denser_than_falx_and_sinus(heads):
    levels = [np.median(case.image[case.label == 1]) for case in heads if case.truth["class"]]
    assert np.mean(levels) == pytest.approx(62, abs=8)
    alike = [np.sum((case.image > 50) & (case.image < 80)) for case in heads if not case.truth["class"]]
    bleeds = [np.sum(case.label) for case in heads if case.truth["class"]]
    assert np.std(alike) > np.mean(bleeds)


def test_no_threshold_and_no_histogram_finds_the_bleeds(heads):
    shares, classes = intensity_shares(heads), classes_of(heads)
    assert best_interval_auc(shares, classes) <= 0.8
    assert histogram_auc(shares, classes) <= 0.8


def test_the_rivals_find_classes_that_differ_in_intensity(heads):
    classes = classes_of(heads)
    shares = intensity_shares(heads) + np.outer(classes, np.arange(len(HU_EDGES) - 1) == 9)
    assert best_interval_auc(shares, classes) == 1 and histogram_auc(shares, classes) == 1


def test_files_of_bleeds_have_labels_of_slices(tmp_path):
    phantoms.make_bleed_set(tmp_path, cases=8, test_cases=2, size=16, seed=2, progress=False)
    entries = read_entries(tmp_path)
    assert len(entries) == 8
    for index, entry in enumerate(entries):
        case = phantoms.make_bleed_case(16, seed=2, index=index)
        image = nib.load(entry["image"])
        assert np.array_equal(np.asanyarray(image.dataobj), case.image) and image.get_data_dtype() == np.int16
        assert entry["label"] == case.truth["class"] and entry["slice_labels"] == case.truth["slice_labels"]
        assert len(entry["slice_labels"]) == image.shape[2]
    parts = select_cases(tmp_path, "splits.json", 0)
    assert [len(parts[part]) for part in ("training", "validation", "test")] == [4, 2, 2]


# Orders


def test_the_class_says_on_which_side_of_the_wide_part_the_plug_lies(tubes):
    for case in tubes:
        plug, wide = (np.flatnonzero((case.label == value).any(axis=(0, 1))) for value in (1, 2))
        assert 2 <= len(plug) <= 3 and 2 <= len(wide) <= 4
        above = plug.min() > wide.max()
        gap = plug.min() - wide.max() - 1 if above else wide.min() - plug.max() - 1
        assert case.truth["class"] == above and 2 <= gap <= 3
    assert sum(classes_of(tubes)) == 50


def test_both_classes_have_the_same_slices(monkeypatch):
    for index in range(4):
        pair = []
        for value in (0, 1):
            monkeypatch.setattr(orders, "draw_class", lambda seed, index, value=value: value)
            pair.append(phantoms.make_order_case(24, seed=3, index=index))
        assert np.array_equal(pair[0].image, pair[1].image[..., ::-1])
        assert np.array_equal(pair[0].label, pair[1].label[..., ::-1])
        assert np.array_equal(pair[0].affine, pair[1].affine)
        assert (pair[0].truth["class"], pair[1].truth["class"]) == (0, 1)


def test_nothing_that_forgets_the_order_tells_the_class(tubes):
    shares, classes = intensity_shares(tubes), classes_of(tubes)
    assert best_interval_auc(shares, classes) <= 0.8  # of few cases; the mirror images above prove it
    assert histogram_auc(shares, classes) <= 0.7
    brightest = np.array([np.sort(case.image.mean(axis=(0, 1)))[[0, 5, -5, -1]] for case in tubes])
    assert histogram_auc(brightest, classes) <= 0.7


def test_the_place_of_the_plug_alone_tells_the_class_only_in_part(tubes):
    places = [np.mean(np.nonzero(case.label == 1)[2]) / case.label.shape[2] for case in tubes]
    assert 0.6 < roc_auc_score(classes_of(tubes), places) < 0.9


def test_files_of_orders_hold_the_cases(tmp_path):
    phantoms.make_order_set(tmp_path, cases=6, test_cases=2, size=16, seed=2, progress=False)
    for index, entry in enumerate(read_entries(tmp_path)):
        case = phantoms.make_order_case(16, seed=2, index=index)
        assert np.array_equal(np.asanyarray(nib.load(entry["image"]).dataobj), case.image)
        assert entry["label"] == case.truth["class"]


# Both


@pytest.mark.parametrize("make", [phantoms.make_bleed_case, phantoms.make_order_case])
def test_the_same_seed_and_index_give_the_same_bytes(make):
    first, again, other = make(16, 5, 2), make(16, 5, 2), make(16, 6, 2)
    assert first.image.tobytes() == again.image.tobytes() and first.label.tobytes() == again.label.tobytes()
    assert np.array_equal(first.affine, again.affine) and first.truth == again.truth
    assert first.image.shape != other.image.shape or not np.array_equal(first.image, other.image)
    assert np.isfinite(first.image).all() and first.image.dtype == np.float32
    assert first.truth["stored_as"] == "int16"


@pytest.mark.parametrize("make", [phantoms.make_bleed_set, phantoms.make_order_set])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 15}, "at least 16 voxels, got 15"),
        ({"seed": -1}, "got seed -1"),
        ({"test_cases": 0}, "test_cases must be at least 1, got 0"),
        ({"cases": 9, "test_cases": 8}, "got cases 9 and test_cases 8"),
    ],
)
def test_impossible_arguments_are_named(make, arguments, message, tmp_path):
    with pytest.raises(TomokitError, match=message):
        make(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("make", [phantoms.make_bleed_case, phantoms.make_order_case])
def test_a_negative_index_is_named(make):
    with pytest.raises(TomokitError, match="index -2"):
        make(index=-2)
