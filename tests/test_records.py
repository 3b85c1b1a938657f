"""Clinical records as numbers: known values, what is missing, parity with scikit-learn, and a run that uses them."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from bundle_runs import follow, train
from monai.data import DataLoader
from monai.transforms import Compose
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from tomokit import phantoms
from tomokit.caching import cached_dataset
from tomokit.datasets import read_entries, select_cases
from tomokit.errors import TomokitError
from tomokit.files import write_json
from tomokit.inputs import list_cases, read_records_of
from tomokit.records import (
    RecordVectord,
    check_fields,
    check_records,
    count_numbers,
    encode_record,
    fields_of,
    find_doubts,
    find_fields,
    fit_records,
    is_missing,
    name_numbers,
    read_number,
    read_records,
    read_text,
    write_records,
)
from tomokit.report import write_case_page
from tomokit.rivals.histogram_tasks import PENALTIES
from tomokit.rivals.record import score_record

NAN = math.nan
AGE = {"name": "age", "kind": "number", "log": False, "least": 20.0, "mean": 50.0, "sd": 10.0}
CRP = {"name": "crp", "kind": "number", "log": True, "least": 1.0, "mean": math.log(10), "sd": math.log(10)}
SEX = {"name": "sex", "kind": "category", "categories": ["f", "m"]}
FITTED = {"fields": [AGE, CRP, SEX]}
FIELDS = {"age": "number", "crp": "number", "sex": ["f", "m"]}


def entries_of(*records):
    names = ({"case": f"c{i}", "patient": f"p{i}", "label": i % 2} for i in range(len(records)))
    return [name | {"clinical": record} for name, record in zip(names, records, strict=True)]


def drawn(count=200, seed=0):
    """Return entries with a normal, a skewed, a skewed one with zeros, and a text, a quarter of each missing."""
    rng = np.random.default_rng(seed)
    columns = {
        "age": rng.normal(60, 9, count),
        "crp": np.exp(rng.normal(2, 0.8, count)),
        "count": np.floor(np.exp(rng.normal(0.5, 1, count))),
        "stage": rng.choice(["early", "late", "middle"], count),
    }
    gone = rng.random((count, len(columns))) < 0.25
    records = [{name: values[i].item() for name, values in columns.items()} for i in range(count)]
    for record, lost in zip(records, gone, strict=True):
        record.update({name: None for name, missing in zip(columns, lost, strict=True) if missing})
    return entries_of(*records)


def column(entries, name):
    """Return the known values of a field."""
    return [entry["clinical"][name] for entry in entries if entry["clinical"][name] is not None]


# Values


@pytest.mark.parametrize("value", [None, NAN, math.inf, -math.inf, "", " ", "nan", "NA", "n/a", "null", "-", "-inf"])
def test_what_says_nothing_is_missing(value):
    assert is_missing(value) and read_number(value) is None and read_text(value) is None


@pytest.mark.parametrize(
    ("value", "number", "text"),
    [
        (3, 3.0, "3"),
        (3.0, 3.0, "3"),
        ("3.0", 3.0, "3"),
        ("-2.5", -2.5, "-2.5"),
        (" late ", None, "late"),
        ("none", None, "none"),
        (True, None, "true"),
        ("True", None, "true"),
        (0, 0.0, "0"),
    ],
)
def test_a_value_is_read_as_a_number_or_a_text(value, number, text):
    assert not is_missing(value) and read_number(value) == number and read_text(value) == text


# Which fields


def test_kinds_are_told_by_the_training_cases():
    records = [
        {"age": 61, "code": "7", "sex": "f", "stage": 1, "alive": True, "site": "a", "empty": None, "x_offset": 3},
        {"age": "58.5", "code": "9", "sex": "m", "stage": "IV", "alive": False, "site": "a", "x_offset": 4},
        {"age": None, "sex": None, "stage": 2.0, "late": 1},
        {"late": 2},
        None,
    ]
    found = find_fields(entries_of(*records), exclude=["*_offset"])
    assert found == {
        "age": "number",
        "code": "number",
        "sex": ["f", "m"],
        "stage": ["1", "2", "IV"],
        "alive": ["false", "true"],
        "late": "number",
    }
    assert count_numbers(found) == [1, 1, 2, 3, 2, 1]


def test_fields_that_tell_nothing_are_named_in_the_log(caplog):
    caplog.set_level("INFO", "tomokit.records")
    find_fields(entries_of({"age": 1, "site": "a", "empty": None}, {"age": 2, "site": "a"}))
    assert "record: age; without a word: site, empty" in caplog.text


def test_a_pattern_that_fits_no_field_is_a_mistake():
    entries = entries_of({"a_offset": 1, "b": 1}, {"a_offset": 2, "b": 2})
    with pytest.raises(TomokitError) as caught:
        find_fields(entries, ["*_offset", "*_ofset"])
    assert "no field is called like '*_ofset'" in str(caught.value) and "which are a_offset, b" in str(caught.value)


def test_free_text_and_empty_records_are_refused():
    notes = entries_of(*({"note": f"text {i}", "age": i} for i in range(30)))
    with pytest.raises(TomokitError, match="note has 30 different texts, such as 'text 0'; a field may have 20"):
        find_fields(notes)
    assert find_fields(notes, ["note"]) == {"age": "number"}
    for records in ([None, None], [{}, {"age": None}], [{"age": 3}, {"age": 3.0}]):
        with pytest.raises(TomokitError, match="records of the 2 training cases have no field that tells anything"):
            find_fields(entries_of(*records))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (None, "`number` or a list of its categories, got None; the layer modes/all_fields.yaml takes all"),
        ({"age": "numeric"}, "age must be `number` or a list of two categories or more, got 'numeric'"),
        ({"sex": ["f"]}, r"sex must be `number` or a list of two categories or more, got \['f'\]"),
        ({"sex": ["f", "f"]}, r"got \['f', 'f'\]"),
        ({"sex": ["f", None]}, r"got \['f', None\]"),
    ],
)
def test_kinds_that_are_none_are_refused(fields, message):
    with pytest.raises(TomokitError, match=message):
        check_fields(fields)


def test_categories_are_texts_however_yaml_reads_them():
    found = check_fields({"smokes": [False, True], "stage": [1, 2.0]})
    assert found == {"smokes": ["false", "true"], "stage": ["1", "2"]}


# Encoding


def test_a_record_is_the_numbers_of_its_fields():
    assert encode_record({"age": 60, "crp": 100, "sex": "m"}, FITTED).tolist() == [1, 1, 0, 1]
    assert encode_record({"age": "45.0", "crp": "1", "sex": "f", "other": 7}, FITTED).tolist() == [-0.5, -1, 1, 0]
    assert encode_record({"age": 60, "crp": 100, "sex": "m"}, FITTED).dtype == np.float32
    assert name_numbers(FITTED) == ["age", "crp", "sex: f", "sex: m"]
    assert fields_of(FITTED) == FIELDS


@pytest.mark.parametrize(
    "record", [None, {}, {"age": None, "crp": NAN, "sex": ""}, {"age": "old", "crp": "inf", "sex": "x"}]
)
def test_what_is_missing_or_unknown_is_nan_in_all_of_the_field_s_numbers(record):
    assert np.isnan(encode_record(record, FITTED)).all()


def test_a_value_far_away_counts_as_five_deviations():
    assert encode_record({"age": 1e300, "crp": 1e300}, FITTED)[:2].tolist() == [5, 5]
    assert encode_record({"age": -1e300, "crp": -3}, FITTED)[:2].tolist() == [-5, -1]  # below all seen: the least seen


def test_no_field_is_an_empty_vector():
    assert encode_record({"age": 3}, {"fields": []}).shape == (0,) and count_numbers({}) == []


# Fitting


def test_what_is_fitted_is_scikit_learn_s():
    training, others = drawn(), drawn(50, 1)
    fitted = fit_records(training, find_fields(training))
    assert [field["name"] for field in fitted["fields"]] == ["age", "crp", "count", "stage"]
    table = np.array([encode_record(entry["clinical"], fitted) for entry in others])
    pipelines = {
        "age": StandardScaler(),
        "crp": make_pipeline(FunctionTransformer(np.log), StandardScaler()),
        "count": StandardScaler(),  # skewed, but with zeros
    }
    for place, (name, pipeline) in enumerate(pipelines.items()):
        pipeline.fit(np.array(column(training, name))[:, None])
        values = np.array([[NAN if entry["clinical"][name] is None else entry["clinical"][name]] for entry in others])
        least = min(column(training, name))
        expected = pipeline.transform(np.maximum(values, least) if name == "crp" else values)[:, 0]
        np.testing.assert_allclose(table[:, place], np.clip(expected, -5, 5), rtol=1e-5, atol=1e-5)
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    encoder.fit(np.array(column(training, "stage"))[:, None])
    known = [i for i, entry in enumerate(others) if entry["clinical"]["stage"] is not None]
    stages = np.array([others[i]["clinical"]["stage"] for i in known])[:, None]
    np.testing.assert_array_equal(table[known, 3:], encoder.transform(stages))
    assert np.isnan(np.delete(table[:, 3:], known, axis=0)).all()


def test_known_numbers_of_the_training_cases_have_mean_0_and_deviation_1():
    training = drawn()
    fitted = fit_records(training, {"age": "number", "crp": "number"})
    table = np.array([encode_record(entry["clinical"], fitted) for entry in training])
    np.testing.assert_allclose(np.nanmean(table, axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(np.nanstd(table, axis=0), 1, atol=1e-2)
    assert [field["log"] for field in fitted["fields"]] == [False, True]


def test_the_unit_of_a_skewed_field_does_not_matter():
    training = drawn()
    scaled = entries_of(*({"crp": entry["clinical"]["crp"] and 1000 * entry["clinical"]["crp"]} for entry in training))
    own, other = (fit_records(entries, {"crp": "number"}) for entries in (training, scaled))
    for entry, same in zip(training, scaled, strict=True):
        given = encode_record(entry["clinical"], own), encode_record(same["clinical"], other)
        np.testing.assert_allclose(*given, rtol=1e-4, atol=1e-4)


def test_a_field_with_one_value_becomes_0():
    fitted = fit_records(entries_of({"age": 3}, {"age": 3}), {"age": "number"})
    assert encode_record({"age": 3}, fitted).tolist() == [0]


def test_the_phantoms_severity_is_in_the_numbers_of_their_records():
    patients = [phantoms.draw_patient(0, index) for index in range(400)]
    entries = entries_of(*(patient.record for patient in patients))
    fitted = fit_records(entries, find_fields(entries))
    by_name = {field["name"]: field for field in fitted["fields"]}
    assert by_name["crp"]["log"] and not by_name["age"]["log"] and by_name["sex"]["categories"] == ["female", "male"]
    table = np.array([encode_record(entry["clinical"], fitted) for entry in entries])
    severity = [patient.severity for patient in patients]
    assert np.corrcoef(table[:, list(by_name).index("crp")], severity)[0, 1] == pytest.approx(0.75, abs=0.1)


def test_all_that_does_not_fit_the_fields_is_told():
    entries = entries_of({"age": "old", "sex": "f", "crp": None}, {"age": 3, "sex": "d", "crp": "-inf"}, {"sex": "x"})
    with pytest.raises(TomokitError) as caught:
        fit_records(entries, FIELDS | {"height": "number"})
    for text in (
        "does not fit the records of the 3 training cases, which have age, sex, crp",
        "age is a number, not 'old'",
        "no training case has a value of crp",
        "sex has the categories f, m, not 'd', 'x'",
        "no training case has a value of height",
    ):
        assert text in str(caught.value)
    with pytest.raises(TomokitError, match="which have no field"):
        fit_records(entries_of(None), FIELDS)


# The file


def test_what_was_fitted_is_plain_json_and_comes_back(tmp_path):
    fitted = fit_records(drawn(), find_fields(drawn()))
    write_records(tmp_path, fitted)
    assert read_records(tmp_path) == fitted == json.loads((tmp_path / "records.json").read_text())


def test_the_first_process_alone_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    write_records(tmp_path, FITTED)
    assert not (tmp_path / "records.json").exists()


def test_a_run_s_metadata_tells_the_numbers(tmp_path):
    inputs = {"image": {"num_channels": 1}, "record": {"num_channels": 9, "dtype": "float32", "channel_def": {}}}
    path = tmp_path / "configs" / "metadata.json"
    write_json(path, {"network_data_format": {"inputs": inputs}})
    write_records(tmp_path, FITTED)
    told = json.loads(path.read_text())["network_data_format"]["inputs"]["record"]
    names = {"0": "age", "1": "crp", "2": "sex: f", "3": "sex: m"}
    assert told == {"num_channels": 4, "dtype": "float32", "channel_def": names}
    write_records(tmp_path, {"fields": []})
    assert list(json.loads(path.read_text())["network_data_format"]["inputs"]) == ["image"]


def test_a_run_without_the_file_says_where_it_comes_from(tmp_path):
    with pytest.raises(TomokitError, match=r"records\.json does not exist, .* train the run, or copy the file with it"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"must hold a list `fields`, got \[\]"),
        ({"fields": 3}, r"must hold a list `fields`, got {'fields': 3}"),
        ({"fields": [{"kind": "number"}]}, "field 0: it has no name"),
        ({"fields": [AGE, AGE]}, "age stands 2 times"),
        ({"fields": [AGE | {"kind": "date"}]}, "age must be of the kind number or category, got 'date'"),
        ({"fields": [AGE | {"log": "no"}]}, "age must have `log` true or false, got 'no'"),
        ({"fields": [AGE | {"sd": 0}]}, "`sd` above 0, .*'sd': 0"),
        ({"fields": [AGE | {"mean": NAN}]}, "finite numbers, .*'mean': nan"),
        ({"fields": [CRP | {"least": 0.0}]}, "`least` above 0 where `log` is true, .*'least': 0.0"),
        ({"fields": [SEX | {"categories": ["f"]}]}, r"sex must have two different `categories` or more, got \['f'\]"),
        ({"fields": [SEX | {"categories": [1, 2]}]}, r"got \[1, 2\]"),
    ],
)
def test_a_file_that_is_damaged_is_told(content, message):
    with pytest.raises(TomokitError, match=message):
        check_records(content, "records.json")


# The transform


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_records_of_cases_make_batches(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("TOMOKIT_CACHE", str(tmp_path))
    entries = drawn(12)
    del entries[3]["clinical"]
    fitted = fit_records(entries, find_fields(entries))
    dataset = cached_dataset(entries, Compose([RecordVectord("clinical", fitted)]), cache)
    for _ in range(2):
        (batch,) = DataLoader(dataset, batch_size=12)
        assert type(batch["record"]) is torch.Tensor and batch["record"].dtype == torch.float32
        expected = torch.from_numpy(np.array([encode_record(entry.get("clinical"), fitted) for entry in entries]))
        torch.testing.assert_close(batch["record"], expected, equal_nan=True)
        assert batch["record"][3].isnan().all() and "clinical" not in batch and batch["case"][3] == "c3"


def test_a_case_has_one_record():
    with pytest.raises(TomokitError, match=r"got the keys \['clinical', 'other'\]; give one key"):
        RecordVectord(["clinical", "other"], FITTED)
    with pytest.raises(TomokitError, match="`records` is malformed"):
        RecordVectord("clinical", {"fields": [AGE | {"sd": -1}]})


# The rival


def test_the_rival_is_scikit_learn_s_regression_on_what_the_network_sees():
    training, test = drawn(80), drawn(20, 1)
    fitted = fit_records(training, find_fields(training))
    rows = score_record(training, test, {"0": "well", "1": "ill"}, fitted)
    tables = [np.array([encode_record(e["clinical"], fitted) for e in entries], float) for entries in (training, test)]
    filled = [np.hstack([np.nan_to_num(table), np.isnan(table)]) for table in tables]
    expected = LogisticRegression(max_iter=2000).fit(filled[0], [e["label"] for e in training]).predict_proba(filled[1])
    np.testing.assert_allclose([[row["p_well"], row["p_ill"]] for row in rows], expected, atol=1e-4)
    assert [row["truth"] for row in rows] == ["ill" if entry["label"] else "well" for entry in test]
    for entry in [*training, *test]:
        entry["label"] = float(entry["label"]) + 0.5
    values = score_record(training, test, {"0": "score"}, fitted, "value")
    imputer = SimpleImputer(strategy="constant", fill_value=0.0, add_indicator=True)
    ridge = make_pipeline(imputer, RidgeCV(alphas=PENALTIES)).fit(tables[0], [e["label"] for e in training])
    np.testing.assert_allclose([row["prediction"] for row in values], ridge.predict(tables[1]), rtol=1e-6)


def test_a_rival_that_can_not_be_is_told():
    training = drawn(10)
    fitted = fit_records(training, {"age": "number"})
    with pytest.raises(TomokitError, match=r"needs fields, and classes or a value; got \['age'\] and 'labels'"):
        score_record(training, training, {"0": "a", "1": "b"}, fitted, "labels")
    with pytest.raises(TomokitError, match=r"got \[\] and 'classes'"):
        score_record(training, training, {"0": "a", "1": "b"}, {"fields": []})
    with pytest.raises(TomokitError, match="needs training cases, got none"):
        score_record([], training, {"0": "a", "1": "b"}, fitted)


# New cases


@pytest.fixture
def scans(write_volume):
    """Return the folder of two scans, `a` and `b`."""
    for name in ("a", "b"):
        path = write_volume(f"scans/{name}.nii.gz", np.zeros((3, 3, 3), np.float32))
    return path.rpartition("/")[0]


@pytest.mark.parametrize("form", ["csv", "tsv", "json"])
def test_a_table_gives_new_scans_their_records(form, scans, tmp_path):
    path = tmp_path / f"table.{form}"
    if form == "json":
        write_json(path, {"b": {"age": 61, "sex": None}, "other": {"age": 3}})
    else:
        comma = "," if form == "csv" else "\t"
        path.write_text(comma.join(["site", "case", "age", "sex"]) + "\n" + comma.join(["x", "b", "61", ""]) + "\n")
    first, second = list_cases(scans, FITTED, path)
    assert (first["case"], second["case"]) == ("a", "b") and not first["clinical"]
    vector = encode_record(second["clinical"], FITTED)
    assert vector[0] == pytest.approx(1.1) and np.isnan(vector[1:]).all()


def test_without_a_column_case_the_first_one_names_the_cases(tmp_path):
    (tmp_path / "t.csv").write_text("scan,age\na,3\nb,4\n")
    assert read_records_of(tmp_path / "t.csv") == {"a": {"age": "3"}, "b": {"age": "4"}}
    (tmp_path / "t.csv").write_text("age,case\n3,a\n4,a\n5,\n")
    with pytest.raises(TomokitError) as caught:
        read_records_of(tmp_path / "t.csv")
    assert "a stands in 2 rows" in str(caught.value) and "no case stands in 1 rows" in str(caught.value)
    write_json(tmp_path / "t.json", [1])
    with pytest.raises(TomokitError, match="must hold an object of records by case"):
        read_records_of(tmp_path / "t.json")


def test_a_table_of_other_cases_is_refused(scans, tmp_path):
    write_json(tmp_path / "t.json", {"x": {"age": 3}})
    with pytest.raises(TomokitError, match="no record of any case, such as a; it names x"):
        list_cases(scans, FITTED, tmp_path / "t.json")


def test_what_will_not_be_understood_is_logged(scans, tmp_path, caplog):
    write_json(tmp_path / "t.json", {"a": {"age": 6000, "sex": "w"}, "b": {"age": "old", "sex": "f"}})
    list_cases(scans, FITTED, tmp_path / "t.json")
    for text in (
        "no record has a value of crp, which counts as missing",
        "age counts as missing where it is not among numbers: 'old' in b",
        "age is far from all that training saw, perhaps in another unit: 6000 in a",
        "sex counts as missing where it is not among f, m: 'w' in a",
    ):
        assert text in caplog.text
    caplog.clear()
    list_cases(scans, FITTED)
    assert "no record of 2 of 2 cases, all their fields are missing: a, b" in caplog.text
    many = {f"c{i}": {"sex": "w"} for i in range(7)}
    assert find_doubts(many, {"fields": [SEX]})[0].endswith("'w' in c4 and 2 more")


def test_entries_of_a_set_keep_their_records():
    entries = [entry | {"image": f"{entry['case']}.nii.gz"} for entry in drawn(2)]
    cases = list_cases(entries, FITTED)
    assert cases == [{key: entry[key] for key in ("case", "image", "clinical")} for entry in entries]


# A run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return the folder of a small set of images with records, half of the fields missing."""
    folder = tmp_path_factory.mktemp("data") / "set"
    phantoms.make_record_set(folder, cases=26, test_cases=6, size=16, missing=0.5, progress=False)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train("fusion", tmp_path_factory.mktemp("runs") / "run", dataset_dir=str(data))


def read_table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_keeps_what_it_fitted_on_its_training_cases(run, data):
    config = json.loads((run / "configs" / "metadata.json").read_text())
    assert config["network_data_format"]["inputs"]["record"]["num_channels"] == 9
    cases = select_cases(data, "splits.json", 0, keep=["clinical"])
    kinds = fields_of(read_records(run))
    assert read_records(run) == fit_records(cases["training"], kinds)
    assert read_records(run) != fit_records([*cases["training"], *cases["validation"], *cases["test"]], kinds)


def test_later_stages_read_the_file_and_need_no_training_cases(run, data, tmp_path):
    follow("fusion", run, "evaluate")
    rows = read_table(run / "cases.csv")
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"histogram", "record"} <= metrics["rivals"].keys() and metrics["task"] == "classification"
    copy, scans = tmp_path / "copy", tmp_path / "scans"
    shutil.copytree(run, copy)
    entries = {entry["case"]: entry for entry in read_entries(data)}
    scans.mkdir()
    for row in rows:
        shutil.copy(entries[row["case"]]["image"], scans)
    write_json(tmp_path / "table.json", {row["case"]: entries[row["case"]]["clinical"] for row in rows})
    nowhere = {"run_dir": str(copy), "dataset_dir": str(tmp_path / "nowhere"), "input": str(scans)}
    follow("fusion", copy, "inference", **nowhere, table=str(tmp_path / "table.json"))
    answers = read_table(copy / "inference" / "classes.csv")
    assert [row["p_ill"] for row in answers] == [row["p_ill"] for row in rows]
    follow("fusion", copy, "inference", **nowhere)
    assert [row["p_ill"] for row in read_table(copy / "inference" / "classes.csv")] != [row["p_ill"] for row in rows]
    scan, place = str(scans / f"{rows[0]['case']}.nii.gz"), tmp_path / "page.html"
    page = write_case_page(scan, copy, "fusion", tmp_path / "table.json", place).read_text()
    assert "table.json" in page and f"{float(rows[0]['p_ill']):.3f}" in page
    assert f"{float(rows[0]['p_ill']):.3f}" not in write_case_page(scan, copy, "fusion", out=place).read_text()
    fitted = read_records(copy)
    fitted["fields"][0]["mean"] += 1e3
    write_records(copy, fitted)
    follow("fusion", copy, "inference", **nowhere, table=str(tmp_path / "table.json"))
    assert read_table(copy / "inference" / "classes.csv") != answers


def test_all_fields_may_be_taken_but_those_of_a_pattern(data, tmp_path):
    run = train("fusion", tmp_path / "run", "modes/all_fields", dataset_dir=str(data), exclude=["s*"])
    assert list(fields_of(read_records(run))) == ["age", "crp", "ldh", "haemoglobin"]
    follow("fusion", run, "evaluate")
    follow("fusion", run, "inference")
    assert read_table(run / "inference" / "classes.csv")[0]["p_ill"] == read_table(run / "cases.csv")[0]["p_ill"]


def test_a_value_is_learned_from_image_and_record(data, tmp_path):
    shutil.copytree(data, tmp_path / "set")
    content = json.loads((tmp_path / "set" / "dataset.json").read_text())
    for number, entry in enumerate([*content["training"], *content["test"]]):
        entry["label"] = 100.5 + number
    write_json(tmp_path / "set" / "dataset.json", content | {"labels": {"0": "score"}})
    (tmp_path / "set" / "splits.json").unlink()
    given = {"dataset_dir": str(tmp_path / "set"), "labels": {"0": "score"}}
    run = train("fusion", tmp_path / "run", "modes/regression", **given)
    follow("fusion", run, "evaluate")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["task"] == "regression" and {"histogram", "record"} <= metrics["rivals"].keys()


def test_the_layer_of_radiographs_has_no_date_among_its_fields():
    from tomokit.bundles import find_bundle
    from tomokit.configs import read_config

    config = read_config(find_bundle("fusion") / "configs" / "data" / "chest_xray_clinical.yaml")
    fields = check_fields(config["fields"])
    assert len(fields) == 9 and count_numbers(fields) == [2, *[1] * 8]
    assert not any("offset" in name or name in ("projection", "modality") for name in fields)


@pytest.mark.mirror
def test_radiographs_with_records_train_and_are_scored(mirror, tmp_path):
    from tomokit.catalogue import get_dataset

    folder = get_dataset("chest_xray_clinical", tmp_path / "chest", mirror)
    by_patient = {}
    for entry in read_entries(folder):
        by_patient.setdefault(entry["patient"], set()).add(entry["label"])
        assert "icu_admission_offset" not in entry["clinical"]
    assert len(by_patient) == 71 and all(len(labels) == 1 for labels in by_patient.values())
    assert sum(labels == {1} for labels in by_patient.values()) == 29  # ever in intensive care
    run = train("fusion", tmp_path / "run", "data/chest_xray_clinical", dataset_dir=str(folder), batch_size=16)
    follow("fusion", run, "evaluate")
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["summary"]["auc"]["mean"] <= 1 and "record" in metrics["rivals"]
