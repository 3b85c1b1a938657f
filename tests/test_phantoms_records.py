"""Records and modalities: the model behind them, the best one can do, and what the images show of it."""

import math

import nibabel as nib
import numpy as np
import pytest
from scipy import integrate
from scipy.special import expit
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from tomokit import phantoms
from tomokit.datasets import read_entries
from tomokit.errors import TomokitError
from tomokit.phantoms.records import FIELDS, IMAGE_WEIGHT, RECORD_WEIGHT

DRAWS = 3000


@pytest.fixture(scope="module")
def patients():
    return [phantoms.draw_patient(seed=0, index=index) for index in range(DRAWS)]


@pytest.fixture(scope="module")
def halves():
    return [phantoms.draw_patient(seed=0, index=index, missing=0.5) for index in range(DRAWS)]


@pytest.fixture(scope="module")
def lesions():
    return [phantoms.make_record_case("CT", 24, seed=0, index=index) for index in range(60)]


@pytest.fixture(scope="module")
def bodies():
    return [phantoms.make_modalities_case(32, seed=0, index=index) for index in range(10)]


def auc(patients, probabilities):
    return roc_auc_score([patient.outcome for patient in patients], probabilities)


def check_calibration(outcomes, probabilities):
    """In each fifth of the probabilities, the mean outcome is the mean probability."""
    order = np.argsort(probabilities)
    for part in np.array_split(order, 5):
        expected = np.mean(np.array(probabilities)[part])
        error = math.sqrt(expected * (1 - expected) / len(part))
        assert np.mean(np.array(outcomes)[part]) == pytest.approx(expected, abs=3.5 * error)


def levels_near_lesion(case, name):
    """The intensities within 11 mm of the lesion, where there is white matter alone beside it."""
    affine, shape = case.affines[name], case.images[name].shape
    places = np.tensordot(affine[:3, :3], np.indices(shape), 1) + affine[:3, 3].reshape(3, 1, 1, 1)
    away = np.linalg.norm(places - np.reshape(case.truth["centre_mm"], (3, 1, 1, 1)), axis=0)
    return case.images[name][away < 11]


# The model


def test_the_best_probability_is_calibrated(patients, halves):
    for drawn in (patients, halves):
        probabilities = [phantoms.best_probability(patient.image_factor, patient.record) for patient in drawn]
        check_calibration([patient.outcome for patient in drawn], probabilities)


def test_each_arm_alone_stays_below_both(patients, halves):
    image = auc(patients, [phantoms.best_probability(patient.image_factor, {}) for patient in patients])
    record = auc(patients, [phantoms.best_probability(None, patient.record) for patient in patients])
    both = auc(patients, [phantoms.best_probability(p.image_factor, p.record) for p in patients])
    half = auc(halves, [phantoms.best_probability(p.image_factor, p.record) for p in halves])
    assert 0.72 < image <= 0.8 and 0.72 < record <= 0.8
    assert both == pytest.approx(0.87, abs=0.02) and both > max(image, record) + 0.07
    assert both - 0.05 < half < both


def test_no_single_field_is_better_than_the_record(patients):
    some = patients[:1500]
    for name, field in FIELDS.items():
        only = auc(some, [phantoms.best_probability(None, {name: patient.record[name]}) for patient in some])
        assert 0.58 < only < 0.76 if field.loading else only == 0.5


def test_probability_without_a_record_is_the_integral_over_the_severity():
    for factor in (-2.0, 0.0, 0.7):
        integral, _ = integrate.quad(
            lambda w, factor=factor: expit(IMAGE_WEIGHT * factor + RECORD_WEIGHT * w) * norm.pdf(w), -9, 9
        )
        assert phantoms.best_probability(factor, {}) == pytest.approx(integral, abs=1e-6)
        assert phantoms.best_probability(factor, dict.fromkeys(FIELDS)) == pytest.approx(integral, abs=1e-6)
    assert phantoms.best_probability(None, {}) == pytest.approx(0.5)


def test_probability_with_numbers_is_that_of_the_normal_posterior():
    record = {"age": 71.0, "crp": 40.0, "ldh": None, "haemoglobin": 11.0}
    z = {"age": 11 / 9, "crp": (math.log(40) - math.log(12)) / 0.8, "haemoglobin": -2.2 / 1.4}
    weights = {name: FIELDS[name].loading / (1 - FIELDS[name].loading ** 2) for name in z}
    precision = 1 + sum(weights[name] * FIELDS[name].loading for name in z)
    mean, spread = sum(weights[name] * z[name] for name in z) / precision, 1 / math.sqrt(precision)
    integral, _ = integrate.quad(
        lambda w: expit(IMAGE_WEIGHT * 0.4 + RECORD_WEIGHT * w) * norm.pdf(w, mean, spread), -9, 9, points=[mean]
    )
    assert phantoms.best_probability(0.4, record) == pytest.approx(integral, abs=1e-6)


def test_probability_with_a_category_is_that_of_its_share_of_the_population():
    field = FIELDS["smoking"]
    spread = math.sqrt(1 - field.loading**2)

    def given(w):
        return 1 - norm.cdf((field.cuts[1] - field.loading * w) / spread)

    above, _ = integrate.quad(lambda w: expit(RECORD_WEIGHT * w) * given(w) * norm.pdf(w), -9, 9)
    whole, _ = integrate.quad(lambda w: given(w) * norm.pdf(w), -9, 9)
    assert whole == pytest.approx(1 - norm.cdf(0.7), abs=1e-6)
    assert phantoms.best_probability(0.0, {"smoking": "current"}) == pytest.approx(above / whole, abs=1e-6)
    assert phantoms.best_probability(0.0, {"sex": "male"}) == pytest.approx(0.5)


def test_fields_have_the_distributions_of_the_model(patients):
    severity = np.array([patient.severity for patient in patients])
    assert severity.mean() == pytest.approx(0, abs=0.08) and severity.std() == pytest.approx(1, abs=0.06)
    for name in ("age", "haemoglobin"):
        values = np.array([patient.record[name] for patient in patients])
        assert values.mean() == pytest.approx(FIELDS[name].middle, abs=0.1 * FIELDS[name].spread)
        assert np.corrcoef(values, severity)[0, 1] == pytest.approx(FIELDS[name].loading, abs=0.06)
    logarithms = np.log([patient.record["crp"] for patient in patients])
    assert np.corrcoef(logarithms, severity)[0, 1] == pytest.approx(0.75, abs=0.06)
    share = np.mean([patient.record["smoking"] == "never" for patient in patients])
    assert share == pytest.approx(norm.cdf(-0.2), abs=0.04)
    assert np.mean([patient.outcome for patient in patients]) == pytest.approx(0.5, abs=0.04)


def test_fields_are_missing_at_random_and_nothing_else_changes(patients, halves):
    gone = np.array([[patient.record[name] is None for name in FIELDS] for patient in halves])
    assert gone.mean(0) == pytest.approx(0.5, abs=0.04)
    assert np.abs(np.corrcoef(gone.T) - np.eye(len(FIELDS))).max() < 0.08
    severity = [patient.severity for patient in patients]
    assert max(abs(np.corrcoef(column, severity)[0, 1]) for column in gone.T) < 0.08
    for whole, half in zip(patients, halves, strict=True):
        assert whole[:2] == half[:2] and whole.outcome == half.outcome
        assert all(value in (None, whole.record[name]) for name, value in half.record.items())
    assert not any(None in patient.record.values() for patient in patients)
    assert set(phantoms.draw_patient(0, 0, missing=1.0).record.values()) == {None}


# Images with records


def test_the_image_shows_its_factor(lesions):
    half_mm = 24 * phantoms.NOMINAL_SPACING_MM / 2
    for case in lesions:
        radius = half_mm * 0.27 * math.exp(0.16 * case.truth["image_factor"])
        assert case.truth["volumes_ml"]["lesion"] == pytest.approx(4e-3 / 3 * math.pi * radius**3)
        measured = np.sum(case.label) * abs(np.linalg.det(case.affine[:3, :3])) / 1000
        assert measured == pytest.approx(case.truth["volumes_ml"]["lesion"], rel=0.2)


def test_cases_are_the_patients_of_the_model(lesions):
    for index, case in enumerate(lesions):
        patient = phantoms.draw_patient(0, index, 0.2)
        assert case.truth["clinical"] == patient.record and case.truth["class"] == patient.outcome
        assert (case.truth["image_factor"], case.truth["severity"]) == patient[:2]
    assert 0.3 < np.mean([case.truth["class"] for case in lesions]) < 0.7


@pytest.mark.parametrize("modality", phantoms.MODALITIES)
def test_the_same_seed_and_index_give_the_same_bytes(modality):
    first, again = (phantoms.make_record_case(modality, 16, 5, 2) for _ in range(2))
    other, fuller = phantoms.make_record_case(modality, 16, 6, 2), phantoms.make_record_case(modality, 16, 5, 2, 0.0)
    assert first.image.tobytes() == again.image.tobytes() and first.truth == again.truth
    assert first.image.tobytes() == fuller.image.tobytes() and None not in fuller.truth["clinical"].values()
    assert not np.array_equal(first.image, other.image)


def test_files_hold_images_records_and_factors(tmp_path):
    phantoms.make_record_set(tmp_path, "MRI", cases=8, test_cases=2, size=16, seed=3, missing=0.5, progress=False)
    entries = read_entries(tmp_path)
    for index, entry in enumerate(entries):
        case = phantoms.make_record_case("MRI", 16, seed=3, index=index, missing=0.5)
        assert np.array_equal(np.asanyarray(nib.load(entry["image"]).dataobj), case.image)
        assert entry["clinical"] == case.truth["clinical"] and list(entry["clinical"]) == list(FIELDS)
        assert entry["label"] == case.truth["class"] and entry["image_factor"] == case.truth["image_factor"]
    gone = [value is None for entry in entries for value in entry["clinical"].values()]
    assert 0.3 < np.mean(gone) < 0.7


# Modalities


def test_the_best_probability_of_two_modalities_is_calibrated_and_above_each():
    rng = np.random.default_rng(0)
    factors = np.clip(rng.normal(size=(DRAWS, 2)), -2.5, 2.5)
    outcomes = rng.random(DRAWS) < expit(1.587 * factors.sum(1))
    scores = {
        names: [
            phantoms.best_probability_of_modalities(u if "T1" in names else None, v if "FLAIR" in names else None)
            for u, v in factors.tolist()
        ]
        for names in (("T1",), ("FLAIR",), ("T1", "FLAIR"))
    }
    for probabilities in scores.values():
        check_calibration(outcomes, probabilities)
    single = [roc_auc_score(outcomes, scores[names]) for names in (("T1",), ("FLAIR",))]
    assert min(single) > 0.72 and max(single) <= 0.8
    assert roc_auc_score(outcomes, scores["T1", "FLAIR"]) == pytest.approx(0.87, abs=0.02)


def test_modalities_have_their_own_grids(bodies):
    for case in bodies:
        assert case.images["T1"].shape == (32, 32, 32) and sorted(case.images["FLAIR"].shape) == [11, 32, 32]
        for name, thickness in (("T1", 1.0), ("FLAIR", 3.0)):
            assert case.images[name].dtype == np.float32 and np.isfinite(case.images[name]).all()
            codes = "".join(nib.aff2axcodes(case.affines[name]))
            for code, spacing in zip(codes, nib.affines.voxel_sizes(case.affines[name]), strict=True):
                assert spacing == pytest.approx(thickness if code in "IS" else 1.0)
        assert not np.allclose(case.affines["T1"], case.affines["FLAIR"])


def test_both_modalities_show_the_same_lesion_in_the_same_place(bodies):
    for case in bodies:
        for name, affine in case.affines.items():
            image = case.images[name]
            place = np.linalg.solve(affine, [*case.truth["centre_mm"], 1])[:3]
            around = tuple(slice(max(0, round(c) - 1), round(c) + 2) for c in place.tolist())
            level = np.median(image[around]) / np.median(image)
            assert level < 0.75 if name == "T1" else level > 1.3


def test_each_modality_shows_its_own_factor():
    """The core is dark in T1, whatever the oedema; the oedema bright in FLAIR, whatever the core."""
    cases = [phantoms.make_modalities_case(32, seed=1, index=index) for index in range(30)]
    dark, bright = [], []
    for case in cases:
        t1, flair = (levels_near_lesion(case, name) for name in ("T1", "FLAIR"))
        dark.append(np.mean(t1 < (np.percentile(t1, 0.2) + np.median(t1)) / 2))
        bright.append(np.mean(flair > np.percentile(flair, [10, 95]).mean()))
    core, oedema = ([case.truth[name] for case in cases] for name in ("t1_factor", "flair_factor"))
    assert np.corrcoef(dark, core)[0, 1] > 0.7 and abs(np.corrcoef(dark, oedema)[0, 1]) < 0.5
    assert np.corrcoef(bright, oedema)[0, 1] > 0.7 and abs(np.corrcoef(bright, core)[0, 1]) < 0.5


def test_bodies_are_the_same_again():
    first, again, other = (phantoms.make_modalities_case(16, seed, 4) for seed in (1, 1, 2))
    for name in ("T1", "FLAIR"):
        assert first.images[name].tobytes() == again.images[name].tobytes()
        assert first.images[name].shape != other.images[name].shape or (
            not np.array_equal(first.images[name], other.images[name])
        )
    assert first.truth == again.truth


def test_files_of_modalities_are_lists(tmp_path):
    phantoms.make_modalities_set(tmp_path, cases=6, test_cases=2, size=16, seed=3, progress=False)
    entries = read_entries(tmp_path)
    assert [entry["case"] for entry in entries] == [f"case_{index:03d}" for index in range(6)]
    for index, entry in enumerate(entries):
        case = phantoms.make_modalities_case(16, seed=3, index=index)
        for path, name in zip(entry["image"], ("T1", "FLAIR"), strict=True):
            assert np.array_equal(np.asanyarray(nib.load(path).dataobj), case.images[name])
            assert np.allclose(nib.load(path).affine, case.affines[name], atol=1e-4)
        assert entry["label"] == case.truth["class"]
        assert (entry["t1_factor"], entry["flair_factor"]) == (case.truth["t1_factor"], case.truth["flair_factor"])


# Errors


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (phantoms.make_record_set, {"modality": "PET"}, "unknown modality 'PET'; choose one of CT, MRI"),
        (phantoms.make_record_set, {"missing": 1.5}, "missing must be a share of the fields from 0 to 1, got 1.5"),
        (phantoms.make_record_set, {"size": 15}, "at least 16 voxels, got 15"),
        (phantoms.make_modalities_set, {"seed": -1}, "got seed -1"),
        (phantoms.make_modalities_set, {"cases": 9, "test_cases": 8}, "got cases 9 and test_cases 8"),
    ],
)
def test_impossible_arguments_are_named(make, arguments, message, tmp_path):
    with pytest.raises(TomokitError, match=message):
        make(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_impossible_patients_are_named():
    with pytest.raises(TomokitError, match=r"from 0 to 1, got -0.1"):
        phantoms.draw_patient(0, 0, missing=-0.1)
    with pytest.raises(TomokitError, match="index -2"):
        phantoms.draw_patient(0, -2)
    with pytest.raises(TomokitError, match="index -2"):
        phantoms.make_modalities_case(index=-2)


def test_a_record_that_the_model_does_not_know_is_told_of_in_full():
    with pytest.raises(TomokitError) as caught:
        phantoms.best_probability(0.0, {"height": 1.8, "smoking": "cigars", "sex": None})
    for fact in ("unknown field 'height'", "smoking is 'cigars'; the categories are never, former, current"):
        assert fact in str(caught.value)
