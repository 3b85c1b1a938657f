"""Classifiers on measures: a table per case, and rows as the other rivals give them."""

import json

import nibabel as nib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_rivals import read_entries

from tomokit import phantoms, rivals
from tomokit.errors import TomokitError
from tomokit.measure import feature_names, measure_features
from tomokit.rivals.features import MODELS, best_feature, rank_features

CLASSES = {"0": "round", "1": "long"}
OBLIQUE = np.array([[0.9, -0.4, 0.1, -20], [0.4, 0.9, 0.2, 7], [-0.2, 0.1, 2.0, 30], [0, 0, 0, 1]])


def save(path, volume, affine=None):
    nib.save(nib.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)
    return str(path)


def draw(stretch, rng):
    """Return an ellipsoid (16, 16, 20) of 0 and 1, its size drawn, longer along the last axis by `stretch`."""
    radius = rng.uniform(3, 4.5)
    x, y, z = (np.indices((16, 16, 20)).T - (7.5, 7.5, 9.5)).T
    return (x**2 + y**2 + (z / stretch) ** 2 <= radius**2).astype(np.uint8)


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    """Return 24 cases whose images are masks, long ones of class 1, and 8 more of 4 patients."""
    folder, rng, made = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0), []
    for number in range(32):
        image = save(folder / f"case_{number:02d}.nii", draw(2 if number % 2 else 1, rng))
        made.append({"case": f"case_{number:02d}", "patient": f"p{number // 2}", "image": image, "label": number % 2})
    return made


@pytest.fixture
def masked(tmp_path):
    """Return 8 cases with a grey image and a mask on an oblique grid, bright ones of class 1."""
    rng, made = np.random.default_rng(1), []
    for number in range(8):
        mask = draw(1.5, rng)
        image = rng.normal(50 + 100 * (number % 2) * mask, 3).astype(np.float32)
        files = {"image": save(tmp_path / f"image_{number}.nii", image, OBLIQUE)}
        files["mask"] = save(tmp_path / f"mask_{number}.nii", mask, OBLIQUE)
        made.append({"case": f"case_{number}", **files, "label": number % 2})
    return made


# The table


def test_the_table_holds_the_measures_of_each_case(masked):
    names, table = rivals.feature_table(masked)
    assert names == feature_names(masked=True) and table.shape == (8, len(names)) and np.isfinite(table).all()
    image, mask = (nib.load(masked[1][key]) for key in ("image", "mask"))
    found = measure_features(image.get_fdata(), image.affine, mask.get_fdata())
    assert table[1] == pytest.approx(list(found.values()), rel=1e-5)


def test_images_can_be_masks_or_stand_for_themselves(entries):
    names, table = rivals.feature_table(entries[:3], mask_above=0)
    assert names == feature_names(masked=False, mask_above=0)
    for entry, row in zip(entries[:3], table, strict=True):
        assert row[names.index("volume_ml")] == pytest.approx(nib.load(entry["image"]).get_fdata().sum() / 1000)
    names, table = rivals.feature_table(entries[:3])
    assert names == feature_names(masked=False) and table.shape == (3, len(names))


def test_of_several_modalities_and_channels_the_first_counts(tmp_path, entries):
    volume = nib.load(entries[0]["image"]).get_fdata().astype(np.float32)
    _, expected = rivals.feature_table(entries[:1])
    other = save(tmp_path / "other.nii", np.zeros_like(volume))
    channels = save(tmp_path / "channels.nii", np.stack([volume, volume - 9], axis=-1))
    for image in ([entries[0]["image"], other], channels):
        assert rivals.feature_table([{"case": "a", "image": image}])[1] == pytest.approx(expected)


def test_an_empty_structure_measures_nothing(tmp_path):
    image = save(tmp_path / "a.nii", np.zeros((5, 5, 5), np.uint8))
    _, table = rivals.feature_table([{"case": "a", "image": image}], mask_above=0.5)
    assert not table.any()


# The classifiers


@pytest.mark.parametrize("model", MODELS)
def test_shapes_are_told_apart_by_their_shape(entries, model):
    rows = rivals.score_features(entries[:24], entries[24:], CLASSES, model, mask_above=0)
    assert [row["truth"] for row in rows] == ["round", "long"] * 4
    sure = 0.5 if model == "threshold" else 0.7  # a regression of one measure is less so
    assert all(row[f"p_{row['truth']}"] > sure for row in rows)
    assert rows == rivals.score_features(entries[:24], entries[24:], CLASSES, model, mask_above=0)


def test_rows_are_those_of_the_histogram(entries):
    classes = {**CLASSES, "2": "absent"}
    rows = rivals.score_features(entries[:24], entries[24:], classes, mask_above=0)
    others = rivals.score_histogram(entries[:24], entries[24:], classes)
    assert [list(row) for row in rows] == [list(row) for row in others]
    assert list(rows[0]) == ["case", "patient", "truth", "p_round", "p_long", "p_absent"]
    assert [(row["case"], row["patient"]) for row in rows] == [(row["case"], row["patient"]) for row in others]
    for row in rows:
        assert row["p_absent"] == 0 and row["p_round"] + row["p_long"] == pytest.approx(1)


def test_the_regression_is_scikit_learns_on_standardised_measures(entries):
    _, table = rivals.feature_table(entries, mask_above=0)
    targets = [entry["label"] for entry in entries]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(table[:24], targets[:24])
    rows = rivals.score_features(entries[:24], entries[24:], CLASSES, mask_above=0)
    assert [row["p_long"] for row in rows] == pytest.approx(model.predict_proba(table[24:])[:, 1])


def test_intensities_within_the_mask_count(masked):
    rows = rivals.score_features(masked[:6], masked[6:], {"0": "dark", "1": "bright"})
    assert rows[0]["p_dark"] > 0.5 < rows[1]["p_bright"]
    assert rows[0]["patient"] == "case_6"


@pytest.mark.parametrize("modality", phantoms.MODALITIES)
def test_no_intensity_solves_the_classification_phantom(modality, tmp_path):
    phantoms.make_classification_set(tmp_path, modality, cases=100, test_cases=40, size=24, progress=False)
    classes = json.loads((tmp_path / "dataset.json").read_text())["labels"]
    rows = rivals.score_features(read_entries(tmp_path, "training"), read_entries(tmp_path, "test"), classes)
    truth = [row["truth"] == "elongated" for row in rows]
    assert len(rows) == 40 and sum(truth) == 20
    assert roc_auc_score(truth, [row["p_elongated"] for row in rows]) <= 0.8


# Errors


def test_an_unknown_model_is_named(entries):
    with pytest.raises(TomokitError, match="one of threshold, logistic, tree, perceptron, got 'forest'"):
        rivals.score_features(entries[:4], entries[4:6], CLASSES, "forest")


def test_wrong_labels_are_named_before_anything_is_measured():
    cases = [{"case": f"case_{number}", "image": "a.nii", "label": label} for number, label in enumerate((0, 0, 7))]
    with pytest.raises(TomokitError, match="case_2 has the label 7; the classes are 0, 1"):
        rivals.score_features(cases[:2], cases[2:], CLASSES)
    with pytest.raises(TomokitError, match="got only: round"):
        rivals.score_features(cases[:2], cases[:1], CLASSES)
    with pytest.raises(TomokitError, match="got only: none"):
        rivals.score_features([], cases[:1], CLASSES)


def test_masks_are_for_all_cases_or_for_none(masked):
    plain = [{key: entry[key] for key in entry if key != "mask"} for entry in masked]
    with pytest.raises(TomokitError, match=r"2 of 4 cases have no `mask` \(case_0, case_1\)"):
        rivals.feature_table([*plain[:2], *masked[2:4]])
    many = [*plain[:4], *plain[:4], *masked[:4]]
    with pytest.raises(TomokitError, match=r"8 of 12 .* \(case_0, case_1, case_2, case_3, case_0, …\)"):
        rivals.feature_table(many)


def test_an_image_and_a_mask_of_other_grids_are_named(masked, tmp_path):
    other = save(tmp_path / "other.nii", nib.load(masked[1]["mask"]).get_fdata(), np.diag([1, 1, 2, 1.0]))
    with pytest.raises(TomokitError, match="case_1: image and mask do not lie on one grid: corresponding"):
        rivals.feature_table([masked[0], {**masked[1], "mask": other}])


def test_what_can_not_be_measured_is_named(tmp_path):
    broken = save(tmp_path / "a.nii", np.full((4, 4, 4), np.nan, np.float32))
    with pytest.raises(TomokitError, match="case_5: the image has 64 intensities that are not finite"):
        rivals.feature_table([{"case": "case_5", "image": broken}])
    with pytest.raises(TomokitError, match=r"case_6: .*absent\.nii does not exist"):
        rivals.feature_table([{"case": "case_6", "image": str(tmp_path / "absent.nii")}])


def test_no_case_is_named():
    with pytest.raises(TomokitError, match="no case to measure, got 0 entries"):
        rivals.feature_table([])


# Several models, and the best single measure


def test_several_models_are_those_alone(entries):
    together = rivals.score_feature_models(entries[:24], entries[24:], CLASSES, mask_above=0)
    assert list(together) == list(MODELS)
    for model in ("threshold", "tree"):
        assert together[model] == rivals.score_features(entries[:24], entries[24:], CLASSES, model, mask_above=0)


def test_the_threshold_takes_the_measure_that_ranks_best(entries):
    names, table = rivals.feature_table(entries, mask_above=0)
    targets = np.array([entry["label"] for entry in entries])
    model = rivals.make_classifier("threshold").fit(table, targets)
    areas = [abs(roc_auc_score(targets, column) - 0.5) for column in table.T]
    assert rank_features(table, targets) == pytest.approx(areas)
    chosen = names.index(best_feature(model, names))
    assert areas[chosen] == max(areas) == 0.5  # of round and long shapes
    chances = model.predict_proba(table)[:, 1]
    assert roc_auc_score(targets, chances) == pytest.approx(0.5 + areas[chosen])


def test_a_measure_is_ranked_by_every_class():
    targets = np.repeat([0, 1, 2], 10)
    table = np.column_stack([targets, targets == 1, np.zeros(30), -targets]).astype(float)
    ranks = rank_features(table, targets)
    # the middle class of the first stands half above, half below the others; a constant tells nothing
    assert ranks == pytest.approx([(0.5 + 0 + 0.5) / 3, (0.25 + 0.5 + 0.25) / 3, 0, (0.5 + 0 + 0.5) / 3])
