import importlib.util
import json
import os
import struct
import sys
from pathlib import Path

import pytest
import yaml
from bundle_runs import layer, train

from tomokit import phantoms
from tomokit.engines.settings import tell_config, tell_scores, tell_settings
from tomokit.engines.tracking import MlflowTracker, Tracker, WandbTracker, check_installed, identify_run
from tomokit.errors import TomokitError

LAYERS = {"wandb": "WandbTracker", "mlflow": "MlflowTracker"}
records = {}  # of the tracker below, by the run's folder


class KeptTracker(Tracker):
    """Keeps what a tracker is given."""

    def start(self, identity, config):
        self.record = records[str(self.run_dir)] = {
            "identity": identity,
            "config": config,
            "entries": [],
            "tracker": self,
        }

    def log(self, entries):
        self.record["entries"] += entries

    def finish(self, scores, step):
        self.record |= {"scores": scores, "step": step}


def installed(*packages):
    return all(importlib.util.find_spec(package) for package in packages)


needs_wandb = pytest.mark.skipif(
    not installed("wandb"), reason="wandb is not installed: pip install 'tomokit[tracking]'"
)
needs_mlflow = pytest.mark.skipif(
    not installed("mlflow", "sqlalchemy", "alembic"), reason="MLflow is not installed: pip install 'tomokit[tracking]'"
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    phantoms.make_classification_set(folder, cases=24, test_cases=6, size=32, progress=False)
    return str(folder)


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    """Return the folder of a run with the tracker above, and with those that are installed."""
    folder = tmp_path_factory.mktemp("runs")
    kept = folder / "kept.yaml"
    arguments = {"evaluator": "@validate::evaluator", "run_dir": "@run_dir"}
    kept.write_text(yaml.safe_dump({"+train::handlers": [{"_target_": "test_tracking.KeptTracker", **arguments}]}))
    names = [name for name in LAYERS if installed(name)]
    files = (str(kept), *map(layer, names))
    return train("classification", folder / "a b", files=files, dataset_dir=shapes)


@pytest.fixture(scope="module")
def expected(run):
    """Return the numbers of the run's record, by name: lists of (step, value)."""
    history = json.loads((run / "validation.json").read_text())["history"]
    steps = len(records[str(run)]["entries"]) and max(step for _, step in records[str(run)]["entries"]) // 2
    rows = {"train/learning_rate": "learning_rate", "train/seconds_per_step": "seconds_per_step"}
    rows["validation/val_auc"] = "metric"
    return {
        name: [(steps * number, pytest.approx(entry[key])) for number, entry in enumerate(history, 1)]
        for name, key in rows.items()
    }


def by_name(entries):
    """Return lists of (step, value) by the numbers' names."""
    found = {}
    for numbers, step in entries:
        for name, value in numbers.items():
            found.setdefault(name, []).append((step, value))
    return found


def scores_of(run):
    return tell_scores(json.loads((run / "validation.json").read_text()))


# What any tracker is given


def test_a_tracker_gets_the_numbers_of_the_record_in_the_order_of_their_steps(run, expected):
    record = records[str(run)]
    steps = [step for _, step in record["entries"]]
    assert steps == sorted(steps) and record["step"] == steps[-1]
    found = by_name(record["entries"])
    losses = found.pop("train/loss")
    assert found == expected
    history = json.loads((run / "validation.json").read_text())["history"]
    assert [step for step, _ in losses] == list(range(1, steps[-1] + 1))
    half = len(losses) // 2
    for entry, part in zip(history, (losses[:half], losses[half:]), strict=True):
        assert sum(value for _, value in part) / half == pytest.approx(entry["loss"])
    assert record["scores"] == scores_of(run)


def test_a_tracker_gets_the_config_without_cases_and_folders(run):
    record = records[str(run)]
    assert record["config"] == tell_config(run) != {}
    assert "case_" not in json.dumps(record["config"]) and str(run.parent) not in json.dumps(record["config"])


def test_a_resumed_run_is_the_same_and_another_is_not(run, shapes, tmp_path):
    first = records[str(run)]["identity"]
    assert first == identify_run(run) and len(first) == 16
    environment = json.loads((run / "environment.json").read_text())
    found = {first}
    for change in ({}, {"started": "2020-01-01"}, {"data_hash": "x"}):  # in another folder
        (tmp_path / "environment.json").write_text(json.dumps(environment | change))
        found.add(identify_run(tmp_path))
    assert len(found) == 4


def test_what_is_validated_after_the_run_is_no_part_of_it(run):
    tracker = records[str(run)]["tracker"]
    assert not tracker.evaluator.has_event_handler(tracker._log_validation)


# Packages that are absent


@pytest.mark.parametrize("name", LAYERS)
def test_a_package_that_is_not_installed_is_named_before_a_run_is_begun(name, shapes, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeError) as caught:
        train("classification", tmp_path / "run", files=(layer(name),), dataset_dir=shapes)
    error = caught.value
    while not isinstance(error, TomokitError):
        error = error.__cause__
    assert str(error) == f"{name} not installed; pip install 'tomokit[tracking]'"
    assert not (tmp_path / "run").exists()


def test_all_absent_packages_are_named():
    check_installed("json")
    with pytest.raises(TomokitError, match="no_such_a and no_such_b not installed"):
        check_installed("no_such_a", "json", "no_such_b")


def test_there_is_no_other_mode():
    with pytest.raises(TomokitError, match="`wandb_mode` must be offline or online, got 'disabled'"):
        WandbTracker(None, "run", "project", mode="disabled")


# Weights & Biases


def read_wandb(path):
    """Return the records of an offline file: blocks of 32 KiB, in which each part has its checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, found, part = path.read_bytes(), 7, [], b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(part))
            part = b""
    return found


def value_of(item):
    """Return the value of an item, which has it as JSON or, where it is a number, as such."""
    return json.loads(item.value_json) if item.value_json else item.double_value


@pytest.fixture(scope="module")
def wandb_file(run):
    (path,) = run.glob("wandb/offline-run-*/run-*.wandb")
    return path


@needs_wandb
def test_wandb_keeps_the_numbers_offline(run, wandb_file, expected):
    found = {}
    for record in read_wandb(wandb_file):
        if record.HasField("history"):
            values = {item.key or item.nested_key[0]: item for item in record.history.item}
            for name, item in values.items():
                if not name.startswith("_"):
                    found.setdefault(name, []).append((record.history.step.num, value_of(item)))
    kept = by_name(records[str(run)]["entries"])
    assert found.keys() == kept.keys()
    assert found.pop("train/loss") == [(step, pytest.approx(value)) for step, value in kept["train/loss"]]
    assert found == expected


@needs_wandb
def test_wandb_keeps_config_and_scores(run, wandb_file):
    runs = [record.run for record in read_wandb(wandb_file) if record.HasField("run")]
    assert (runs[0].run_id, runs[0].display_name, runs[0].project) == (identify_run(run), "a b", "tomokit")
    config = {item.key: json.loads(item.value_json) for one in runs for item in one.config.update}
    config.pop("_wandb", None)
    assert config == tell_config(run)
    summary = {}
    for record in read_wandb(wandb_file):
        for item in record.summary.update if record.HasField("summary") else ():
            summary[item.key or item.nested_key[0]] = value_of(item)
    assert {key: summary[key] for key in scores_of(run)} == pytest.approx(scores_of(run))


@needs_wandb
def test_wandb_keeps_nothing_of_the_machine(run, wandb_file):
    content = wandb_file.read_bytes()
    texts = (str(run.parent), "case_", str(Path.cwd()), sys.argv[0])
    assert [text for text in texts if text.encode() in content] == []
    assert {record.run.host for record in read_wandb(wandb_file) if record.HasField("run")} == {""}
    assert [path.name for path in (wandb_file.parent / "files").iterdir()] == []


# MLflow


@pytest.fixture(scope="module")
def mlflow_run(run):
    """Return a client of the run's own store, and its run."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("tomokit")
    (only,) = client.search_runs([experiment.experiment_id])
    return client, only


@needs_mlflow
def test_mlflow_keeps_the_numbers_in_the_runs_folder(run, mlflow_run, expected):
    client, kept = mlflow_run
    given = by_name(records[str(run)]["entries"])
    found = {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(kept.info.run_id, name)]
        for name in kept.data.metrics
    }
    scores = {name: found.pop(name)[0][1] for name in list(found) if name.startswith("final/")}
    assert scores == pytest.approx(scores_of(run))
    assert found.pop("train/loss") == [(step, pytest.approx(value)) for step, value in given["train/loss"]]
    assert found == expected
    assert kept.info.status == "FINISHED" and kept.info.run_name == "a b"
    assert sorted(path.name for path in run.parent.iterdir()) == ["a b", "kept.yaml"]


@needs_mlflow
def test_mlflow_keeps_settings_and_config(run, mlflow_run):
    _, kept = mlflow_run
    told = tell_config(run)
    assert kept.data.params == {key: str(value) for key, value in tell_settings(told).items()}
    (path,) = run.glob("mlflow/files/*/artifacts/config.yaml")
    assert yaml.safe_load(path.read_text()) == told


@needs_mlflow
def test_mlflow_goes_on_with_a_resumed_run_and_not_with_another_of_its_name(run, tmp_path):
    store = f"sqlite:///{tmp_path}/all.db"
    ids = []
    for identity in ("one", "two", "one"):
        tracker = MlflowTracker(None, run, "tomokit", store)
        tracker.start(identity, {"epochs": len(ids)})  # a resumed one may have other settings
        ids.append(tracker.run_id)
    assert ids[0] == ids[2] != ids[1]
    tracker.log([({"train/loss": 0.5}, step) for step in range(1, 1202)])  # more than it takes at once
    tracker.finish({"final/loss": 1.0}, 1201)
    kept = tracker.client.get_run(ids[2])
    assert kept.info.status == "FINISHED" and kept.data.params == {"epochs": "0"}
    assert len(list(tmp_path.glob("files/*/artifacts/config.yaml"))) == 2  # beside the store, not in the current folder
    assert len(tracker.client.get_metric_history(ids[2], "train/loss")) == 1201


@needs_mlflow
def test_mlflow_finds_its_store_in_a_folder_of_an_odd_name(tmp_path):
    folder = tmp_path / "100%25 a#b c?d"
    folder.mkdir()
    tracker = MlflowTracker(None, folder, "tomokit")
    tracker.start("one", {"epochs": 1})
    assert (folder / "mlflow" / "mlflow.db").is_file()
    assert len(list(folder.glob("mlflow/files/*/artifacts/config.yaml"))) == 1


@needs_mlflow
def test_mlflow_does_not_report_its_use(mlflow_run):
    from mlflow.telemetry.client import get_telemetry_client

    assert get_telemetry_client() is None and os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
