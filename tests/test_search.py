"""A search: its space, its store shared by processes, its trials, and what it leaves."""

import importlib.util
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
import yaml
from bundle_runs import config
from optuna.trial import TrialState
from rich.console import Console

from tomokit import phantoms
from tomokit.errors import TomokitError
from tomokit.files import read_json
from tomokit.lint import lint_bundle
from tomokit.search import search
from tomokit.search import store as store_module
from tomokit.search.plan import compare_settings, fit_epochs, make_plan
from tomokit.search.results import count_states, draw_search, importances, state_of
from tomokit.search.scoring import difference_interval, score_network
from tomokit.search.searching import _close
from tomokit.search.space import default_draw, draw, read_space, settings_of
from tomokit.search.store import RETRIES, SILENT_SECONDS, Store
from tomokit.search.trials import Outcome, _context, _follow, _supervise, run_stage, run_training

CONFIG = {"learning_rate": 0.002, "batch_size": 8, "weight_decay": "1e-2", "size": [16, 16], "depth": "@batch_size"}
CONFIG |= {"network": {"_target_": "ResNet", "dropout": "@rate"}, "rate": 0.1, "epochs": "$3 + 4"}
CONFIG |= {"run": ["$(@learning_rate, @batch_size, @weight_decay, @size, @depth, @network, @epochs)"]}
SPACE = {
    "learning_rate": {"low": "1e-4", "high": 1.0e-2, "log": True},
    "batch_size": {"choices": [2, 4]},
    "optimizer": {"layers": {"own": {}, "sgd": "sgd.yaml"}},
}
NETWORK = {
    "_target_": "ResNet", "block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 4, 8, 8], "spatial_dims": 3,
    "n_input_channels": 1, "num_classes": 2, "conv1_t_size": 3, "conv1_t_stride": 2, "no_max_pool": True,
}  # fmt: skip


def write_space(folder: Path, space: object) -> Path:
    """Return the path of a space file, with a layer beside it."""
    (folder / "sgd.yaml").write_text("learning_rate: 0.5\nnetwork::dropout: 0.4\n")
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({"search": space}, sort_keys=False))
    return path


def parameters_of(folder: Path, space: object = SPACE, given: dict | None = None):
    return read_space(write_space(folder, space), CONFIG if given is None else given)


# ------------------------------------------------------------------------------------------------ space


def test_the_space_knows_the_bundles_own_settings(tmp_path):
    rate, size, optimizer = parameters_of(tmp_path)
    assert (rate.low, rate.high, rate.log, rate.whole, rate.default, rate.inside) == (
        1e-4,
        1e-2,
        True,
        False,
        0.002,
        True,
    )
    assert (size.default, size.inside) == (8, False)
    assert (optimizer.default, optimizer.inside) == ("own", True)
    own = {"learning_rate": 0.002, "optimizer": "own"}
    assert default_draw([rate, size, optimizer]) == own
    assert draw(optuna.trial.FixedTrial(own | {"batch_size": 4}), [rate, size, optimizer], True) == own


def test_a_searched_key_wins_over_a_layers(tmp_path):
    parameters = parameters_of(tmp_path)
    settings = settings_of(parameters, {"optimizer": "sgd", "learning_rate": 0.003})
    assert settings == {"learning_rate": 0.003, "network::dropout": 0.4}
    assert settings_of(parameters, {"optimizer": "sgd"})["learning_rate"] == 0.5
    assert settings_of(parameters, {"optimizer": "own"}) == {}


@pytest.mark.parametrize(
    ("entry", "value", "whole"),
    [
        ({"low": 2, "high": 8, "step": 2}, 8, True),
        ({"low": 1, "high": 9, "step": 2}, 8, True),
        ({"low": 1, "high": 9.5}, 8, False),
    ],
)
def test_whole_numbers_and_steps(tmp_path, entry, value, whole):
    parameter = parameters_of(tmp_path, {"batch_size": entry})[0]
    assert (parameter.default, parameter.whole) == (value, whole)
    assert parameter.inside == (entry != {"low": 1, "high": 9, "step": 2})
    trial = optuna.create_study().ask()
    assert isinstance(draw(trial, [parameter], False)["batch_size"], int if whole else float)


def test_a_list_is_a_choice_too_and_references_are_followed(tmp_path):
    space = {
        "size": {"choices": [[16, 16], [32, 32]]},
        "depth": {"choices": [8, 16]},
        "network#dropout": {"low": 0, "high": 0.5},
    }
    size, depth, dropout = parameters_of(tmp_path, space)
    assert (depth.default, dropout.name, dropout.default, dropout.whole) == (8, "network::dropout", 0.1, False)
    drawn = draw(optuna.trial.FixedTrial({"size": "[32, 32]"}), [size], False)
    assert settings_of([size], drawn) == {"size": [32, 32]}
    assert default_draw([size]) == {"size": "[16, 16]"}


MALFORMED = [
    ("learning_rat", {"low": 0, "high": 1}, r"`learning_rat` is not a key of the config; did you mean `learning_rate`"),
    ("learning_rate", 3, r"`learning_rate` must be .*got 3"),
    ("learning_rate", {"lo": 0, "high": 1}, r"has the key `lo`; did you mean `low`"),
    ("learning_rate", {"low": 2, "high": 1}, r"needs `low` below `high`, got .*'high': 1"),
    ("learning_rate", {"low": "a", "high": 1}, r"`low` must be a number, got 'a'"),
    ("learning_rate", {"low": 0, "high": 1, "log": True}, r"`log` is true or false, and needs `low` above 0"),
    ("learning_rate", {"low": 0, "high": 1, "step": 2}, r"`step` must be above 0 and at most high - low, got .*2"),
    ("epochs", {"low": 1, "high": 2}, r"`epochs` holds '\$3 \+ 4' in the config"),
    ("network", {"low": 1, "high": 2}, r"`network` holds .*ResNet"),
    ("batch_size", {"choices": [2]}, r"two or more values, got .*\[2\]"),
    ("batch_size", {"choices": [2, 2, 4]}, r"holds a value twice, got \[2, 2, 4\]"),
    ("net", {"layers": {"a": {}}}, r"two or more names to a file or keys, got .*'a'"),
    ("net", {"layers": {"a": {}, "b": 3}}, r"the layer 'b' must be a file or a mapping of keys, got 3"),
    ("net", {"layers": {"a": {}, "b": {"rat": 1}}}, r"the layer 'b' sets `rat`, .*did you mean `rate`"),
    ("net", {"layers": {"a": {}, "b": "none.yaml"}}, r"none.yaml does not exist"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "entry", "message"), MALFORMED)
def test_a_malformed_entry_is_named_with_its_value(tmp_path, key, entry, message):
    with pytest.raises(TomokitError, match=message):
        parameters_of(tmp_path, {key: entry})


def test_the_common_space_leaves_out_what_a_bundle_lacks(tmp_path):
    path = write_space(tmp_path, {"weight_decay": {"low": 0, "high": 1}, "none": {"low": 0, "high": 1}, **SPACE})
    given = {"learning_rate": 0.002, "batch_size": 8, "weight_decay": 0.1, "network": {"dropout": 0.1}}
    config = given | {"run": ["$train(@learning_rate, @batch_size, @network)"]}
    assert [p.name for p in read_space(path, config, lenient=True)] == ["learning_rate", "batch_size", "optimizer"]
    with pytest.raises(
        TomokitError, match=r"`weight_decay` is read by nothing in the config, so that 0.1(.|\n)*`none`"
    ):
        read_space(path, config)


def test_all_mistakes_of_a_space_come_at_once(tmp_path):
    with pytest.raises(TomokitError, match="3 problems") as caught:
        parameters_of(tmp_path, {"a": 1, "rate": {"low": 3, "high": 2}, "batch_size": {"choices": 7}})
    assert all(f"`{key}`" in str(caught.value) for key in ("a", "rate", "batch_size"))


def test_a_file_without_the_one_key_is_no_space(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("learning_rate: {low: 0, high: 1}\n")
    with pytest.raises(TomokitError, match=r"must hold one key, `search`.*learning_rate"):
        read_space(path, CONFIG)


@pytest.mark.parametrize("bundle", ["segmentation", "classification"])
def test_the_space_that_comes_along_suits_every_bundle(bundle, tmp_path):
    content = yaml.safe_load(Path(config(bundle, "train")[0]).read_text())
    space = Path(config(bundle, "train")[0]).parents[2] / "_layers" / "search.yaml"
    parameters = {parameter.name: parameter for parameter in read_space(space, content)}
    assert set(parameters) == {"learning_rate", "weight_decay", "dropout", "batch_size", "optimizer"}
    assert all(parameter.inside for parameter in parameters.values())
    assert parameters["optimizer"].options["sgd"]["train::optimizer"]["nesterov"] is True
    own = {name: settings_of(parameters.values(), {"optimizer": name}) for name in ("adamw", "sgd")}
    assert own["adamw"]["learning_rate"] == 0.003 and "weight_decay" not in own["adamw"]
    assert (own["sgd"]["learning_rate"], own["sgd"]["weight_decay"]) == (0.01, 3e-5)
    drawn = {"optimizer": "sgd", "learning_rate": 0.02, "weight_decay": 0.1}
    assert {"learning_rate": 0.02, "weight_decay": 0.1}.items() <= settings_of(parameters.values(), drawn).items()


# ------------------------------------------------------------------------------------------------ store


def objective(params: dict) -> float:
    """Return a score that is best, 1, at a learning rate of 1e-3."""
    return 1 - abs(math.log10(params["learning_rate"]) + 3) / 3


def work(folder: str, wanted: int, die: bool) -> None:
    """Do trials until there are so many; or die in the middle of the first."""
    given = read_space(Path(folder) / "space.yaml", CONFIG)
    with Store(Path(folder) / "store", True) as store:
        while (turn := store.next_trial(given, wanted, seed=0)) is not None:
            if die:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.02)
            store.study.tell(turn[0].number, objective(turn[1]), skip_if_finished=True)


def run_workers(folder: Path, wanted: int, count: int, die: bool = False) -> list[int | None]:
    write_space(folder, SPACE)
    workers = [_context().Process(target=work, args=(str(folder), wanted, die)) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    return [worker.exitcode for worker in workers]


def test_processes_share_a_store_to_the_exact_number_of_trials(tmp_path):
    assert run_workers(tmp_path, 9, 3) == [0, 0, 0]
    trials = Store(tmp_path / "store", True).trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 9
    assert len({trial.user_attrs["worker"] for trial in trials}) > 1
    assert len({json.dumps(trial.params) for trial in trials}) == 9  # two processes don't draw the same
    assert [trial.number for trial in trials if trial.user_attrs.get("defaults")] == [0]
    assert run_workers(tmp_path, 10, 1) == [0]
    assert len(Store(tmp_path / "store", True).trials()) == 10


def test_a_killed_trial_is_tried_again_with_its_settings(tmp_path):
    for _ in range(RETRIES):
        assert run_workers(tmp_path, 2, 1, die=True) == [-signal.SIGKILL]
    assert run_workers(tmp_path, 2, 1) == [0]
    trials = Store(tmp_path / "store", True).trials()
    assert [trial.state.name for trial in trials] == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials[0].params == trials[1].params == trials[2].params
    assert [trial.user_attrs.get("lost") for trial in trials] == [True, True, None, None]
    assert trials[2].user_attrs["defaults"] and trials[2].user_attrs["again"] == 1
    assert trials[0].user_attrs["problem"] == "its process was killed"


def test_a_trial_that_is_always_killed_fails_in_the_end(tmp_path):
    parameters = parameters_of(tmp_path)
    with Store(tmp_path / "store", True) as store:
        for _ in range(RETRIES + 1):
            number = store.next_trial(parameters, 1, 0)[0].number
            store.note(number, "worker", "nowhere.1.1.x")
            assert store.recover() == [number]
        assert store.next_trial(parameters, 1, 0) is None
        assert [trial.user_attrs["lost"] for trial in store.trials()] == [True, True, False]


def test_a_trial_that_another_process_gave_up_is_left_alone(tmp_path):
    parameters = parameters_of(tmp_path)
    with Store(tmp_path / "store", True) as store:
        trial, _ = store.next_trial(parameters, 9, 0)
        assert store.put_back(trial.number, "asleep")
        assert not store.put_back(trial.number, "again")
        assert _close(store, trial, Outcome("done", values={1: 0.9})).user_attrs["problem"] == "asleep"
        again, _ = store.next_trial(parameters, 9, 0)
        store.study.tell(again.number, 0.5)
        assert not store.put_back(again.number, "its process ended, after it had told the value")
        assert [trial.state.name for trial in store.trials()] == ["FAIL", "COMPLETE"]


def test_a_process_elsewhere_lives_as_long_as_its_marker_is_fresh(tmp_path):
    with Store(tmp_path, True) as store:
        other = tmp_path / "workers" / "elsewhere.7.7.x"
        assert not store.is_alive(other.name)
        other.touch()
        assert store.is_alive(other.name)
        os.utime(other, (time.time() - SILENT_SECONDS - 1,) * 2)
        assert not store.is_alive(other.name)
        assert store.is_alive(store.worker)
        assert store.claim("task") and store.claim("task")
    with Store(tmp_path, True) as second:
        assert second.claim("task")  # the first has ended
        with Store(tmp_path, True) as third:
            assert not third.claim("task")


def test_a_folder_is_known_as_a_search_from_its_first_file_on(tmp_path, monkeypatch):
    seen = []
    touch = Path.touch
    monkeypatch.setattr(Path, "touch", lambda path: (seen.extend(path.parent.iterdir()), touch(path)))
    Store(tmp_path, True)
    assert seen == [tmp_path / "study.journal"]


@pytest.mark.parametrize("maximize", [True, False])
def test_bad_trials_are_pruned_and_the_best_is_found(tmp_path, maximize):
    parameters = parameters_of(tmp_path)
    sign = 1 if maximize else -1
    with Store(tmp_path / "store", maximize) as store:
        for level in (0.5, 0.6, 0.7, 0.7, 0.1, 0.65):
            trial, _ = store.next_trial(parameters, None if level == 0 else 12, 0)
            for step in (1, 2, 3):
                trial.report(sign * level * step, step)
                if trial.should_prune():
                    store.study.tell(trial.number, state=TrialState.PRUNED)
                    break
            else:
                store.study.tell(trial.number, sign * level)
        states = [trial.state.name for trial in store.trials()]
        assert states == ["COMPLETE"] * 4 + ["PRUNED"] + ["COMPLETE"]
        assert list(store.trials()[4].intermediate_values) == [1]
        assert store.best().number == 2  # the earlier of two equals


def test_importance_and_picture(tmp_path):
    parameters = parameters_of(tmp_path)
    with Store(tmp_path / "store", True) as store:
        assert importances(store, parameters) == {}
        for _ in range(16):
            trial, drawn = store.next_trial(parameters, None, 0)
            store.study.tell(trial.number, objective(drawn))
        shares = importances(store, parameters)
        assert shares["learning_rate"] > 0.8 and sum(shares.values()) == pytest.approx(1)
        draw_search(store, parameters, "val_score")
        assert (store.folder / "search.png").stat().st_size > 10_000


def test_without_optuna_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    spec = importlib.util.spec_from_file_location("fresh_store", store_module.__file__)
    with pytest.raises(TomokitError, match=r"needs Optuna.*pip install 'tomokit\[search\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# ------------------------------------------------------------------------------------------------ arithmetic


def test_the_interval_of_a_difference():
    equal = difference_interval({"mean": 0.9, "ci95": [0.8, 1.0]}, {"mean": 0.7, "ci95": [0.6, 0.8]})
    assert equal["mean"] == pytest.approx(0.2)
    assert equal["ci95"] == pytest.approx([0.2 - 0.1 * math.sqrt(2), 0.2 + 0.1 * math.sqrt(2)])
    skewed = difference_interval({"mean": 0.9, "ci95": [0.6, 0.9]}, {"mean": 0.5, "ci95": [0.5, 0.9]})
    assert skewed["ci95"] == pytest.approx([0.4 - 0.5, 0.4])
    assert difference_interval({"mean": 1, "ci95": None}, {"mean": 0.5, "ci95": [0, 1]}) == {"mean": 0.5, "ci95": None}


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize(("state", "why"), [("late", "the time was over"), ("failed", "no memory")])
def test_a_run_keeps_no_scores_but_those_of_the_test(part, state, why, tmp_path, monkeypatch):
    run = tmp_path / "run"
    evaluate = run / "configs" / "evaluate.yaml"
    evaluate.parent.mkdir(parents=True)
    (run / "configs" / "train.yaml").write_text("seed: 0\n")
    (tmp_path / "evaluate.yaml").write_text("rival: true\n")

    def run_stage(files, *_):
        for path in (run / "metrics.json", run / "cases.csv", evaluate):
            path.write_text('{"summary": {"dice": {"mean": 0.5, "n": 1, "cases": 1}}}')
        return Outcome(state, "no memory") if Path(files[-1]).stem == failing else Outcome("done")

    monkeypatch.setattr("tomokit.search.scoring.run_stage", run_stage)
    given = (run, tmp_path / "evaluate.yaml", {"validation": ["a"], "test": ["b"]}, "val_dice", tmp_path / "e", None)
    failing = part
    with pytest.raises(TomokitError, match=f"the {part} cases could not be scored: {why}"):
        score_network(*given)
    assert not (run / "metrics.json").exists() and not (run / "cases.csv").exists() and not evaluate.exists()
    assert (tmp_path / "e" / "validation.json").exists() == (part == "test")
    failing = ""
    assert score_network(*given)["test"]["mean"] == 0.5
    assert (run / "metrics.json").exists() and evaluate.exists()


# ------------------------------------------------------------------------------------------------ searches


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "classes"
    phantoms.make_classification_set(folder, cases=16, test_cases=4, size=16, progress=False)
    return folder


def options(data: Path, **more) -> dict:
    """Return overrides for a network that trains an epoch in a moment."""
    return {"dataset_dir": str(data), "network_def": NETWORK, "image_size": [16, 16, 16]} | more


def quiet() -> Console:
    return Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: PTH123


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("space")
    entry = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    common = Path(config("classification", "train")[0]).parents[2] / "_layers"
    return write_space(folder, entry | {"optimizer": {"layers": {"own": {}, "sgd": str(common / "sgd.yaml")}}})


@pytest.fixture(scope="module")
def found(data, space, tmp_path_factory):
    """Return the folder, summaries and text of a search in three calls: stopped, gone on with, then tested."""
    folder = tmp_path_factory.mktemp("runs") / "found"
    hidden = [path for case in read_json(data / "dataset.json")["test"] for path in [data / case["image"]]]
    for path in hidden:
        path.rename(path.with_suffix(".hidden"))
    given = {"overrides": options(data), "space": space, "run_dir": folder, "epochs": 1}

    def stop_the_first_trial() -> None:
        while not (folder / "trials" / "0.log").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_the_first_trial, daemon=True).start()
    stopped = search("classification", trials=2, console=quiet(), **given)
    with Store(folder, True) as store:
        store.study.enqueue_trial({"learning_rate": 1e-3, "optimizer": "own"})
    resumed = search("classification", trials=2, test=False, console=quiet(), **given)
    for path in hidden:
        path.with_suffix(".hidden").rename(path)
    console = quiet()
    ended = search("classification", trials=3, console=console, **given)
    return folder, [stopped, resumed, ended], console.export_text()


def test_a_stopped_search_goes_on_without_reading_a_test_case(found):
    folder, (stopped, resumed, _), _ = found
    assert stopped["ended"] == "interrupted" and stopped["counts"]["interrupted"] == 1
    assert resumed["ended"] == "finished" and resumed["counts"] == {
        "complete": 2, "pruned": 0, "failed": 0, "interrupted": 1, "running": 0,
    }  # fmt: skip
    assert resumed["test"] is None and resumed["test_readings"] == 0
    kept = yaml.safe_load((folder / "trials" / str(resumed["best"]["trial"]) / "configs" / "train.yaml").read_text())
    assert kept["cases"]["test"] == [] and len(kept["cases"]["training"]) > 5


def test_a_call_adds_only_the_trials_that_lack(found):
    folder, (_, resumed, ended), _ = found
    assert ended["counts"]["complete"] == 3
    assert "stopped by the user" in (folder / "trials.csv").read_text().splitlines()[1]
    assert resumed["defaults"]["parameters"] == {"learning_rate": 0.004, "optimizer": "own"}
    rows = (folder / "trials.csv").read_text().splitlines()
    assert rows[0].startswith("trial,state,value,epoch,seconds,defaults,again,problem") and len(rows) == 5


def test_the_best_is_scored_alike_on_validation_and_test(found):
    folder, (_, _, ended), text = found
    test = read_json(folder / "search.json")["test"]
    assert ended["test_readings"] == 1 and test["trial"] == ended["best"]["trial"]
    assert not list(folder.glob("trials/*/checkpoints/last.pt"))
    assert test["test"]["n"] == 4 and test["measure"] == "auc"
    assert test["difference"]["mean"] == pytest.approx(test["validation"]["mean"] - test["test"]["mean"])
    assert read_json(folder / "trials" / str(test["trial"]) / "metrics.json")["summary"]["auc"]["n"] == 4
    assert "validation - test" in text and "train with it: " in text


def test_the_objective_is_the_inner_validation(found):
    folder, (_, _, ended), _ = found
    run = folder / "trials" / str(ended["best"]["trial"])
    assert read_json(run / "validation.json")["best"]["metric"] == ended["best"]["value"]
    assert ended["metric"] == "val_auc" and ended["epochs"] == 1


def test_the_layer_it_writes_passes_the_linter(found):
    folder, (_, _, ended), _ = found
    best = folder / "best.yaml"
    assert lint_bundle([*config("classification", "train"), best]) == []
    assert yaml.safe_load(best.read_text())["learning_rate"] == ended["best"]["parameters"]["learning_rate"]
    assert f"trial {ended['best']['trial']}, val_auc" in best.read_text().splitlines()[0]


def test_a_trial_that_fails_is_told_and_the_search_goes_on(data, tmp_path, space):
    with Store(tmp_path / "run", True) as store:
        store.study.enqueue_trial({"learning_rate": 0.002, "optimizer": "own"}, user_attrs={"defaults": True})
        store.study.enqueue_trial({"learning_rate": 0.009, "optimizer": "sgd"})
    bad = write_space(tmp_path, {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "optimizer": {
        "layers": {"own": {}, "sgd": {"train::optimizer::lr": 1e30}}}})  # fmt: skip
    console = quiet()
    given = {"overrides": options(data), "space": bad, "run_dir": tmp_path / "run", "epochs": 2, "test": False}
    summary = search("classification", trials=2, console=console, **given)
    assert summary["counts"]["failed"] == 1 and summary["counts"]["complete"] == 1
    text = console.export_text()
    assert "the loss became" in text and "failed" in text
    with pytest.raises(TomokitError, match=r"`seed` is 1, the search began with 0"):
        search("classification", trials=2, seed=1, console=quiet(), **given)
    assert "epoch" in (tmp_path / "run" / "trials" / "1.log").read_text()


def test_what_ends_a_process(tmp_path):
    crash = tmp_path / "crash.yaml"
    crash.write_text("run: ['$__import__(\"os\")._exit(3)']\n")
    outcome = run_stage([str(crash)], tmp_path / "log")
    assert (outcome.state, "exit code 3" in outcome.problem) == ("failed", True)
    slow = tmp_path / "slow.yaml"
    slow.write_text("run: ['$__import__(\"time\").sleep(60)']\n")
    began = time.monotonic()
    assert run_stage([str(slow)], tmp_path / "log", time.monotonic() + 0.5).state == "late"
    assert time.monotonic() - began < 10
    outcome = run_training([str(tmp_path / "none.yaml")], tmp_path / "log", lambda epoch, value: False)
    assert outcome.state == "failed" and "none.yaml" in outcome.problem


def test_a_trial_stops_where_its_report_says_so(data, space, tmp_path):
    plan = make_plan("classification", space, (), options(data))
    files = plan.files_of_trial(tmp_path / "layer.yaml", tmp_path / "run", 4, {"learning_rate": 0.001})
    told = []
    outcome = run_training(files, tmp_path / "log", lambda epoch, value: bool(told.append(epoch)) or epoch == 2)
    assert (outcome.state, told, list(outcome.values)) == ("stopped", [1, 2], [1, 2])
    assert set(outcome.times) == {"start", "epoch", "validation"} and min(outcome.times.values()) > 0
    assert sum(outcome.times.values()) < outcome.seconds


def die(_, pipe) -> None:
    pipe.send(("value", (1, 0.5)))
    pipe.recv()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("stop", "state"), [(True, "stopped"), (False, "failed")])
def test_a_process_that_dies_after_its_report_is_stopped_if_it_was_told_to(stop, state, tmp_path):
    outcome = _supervise(die, [], tmp_path / "log", lambda epoch, value: stop, None)
    assert (outcome.state, outcome.values) == (state, {1: 0.5})
    assert ("exit code -9" in outcome.problem) == (not stop)


@pytest.mark.parametrize(("stop", "state"), [(True, "stopped"), (False, "late")])
def test_a_process_that_was_told_to_stop_is_not_late(stop, state):
    own, other = multiprocessing.Pipe()
    other.send(("value", (1, 0.5)))
    outcome = Outcome()
    assert not _follow(own, lambda epoch, value: stop, time.monotonic() + 0.3, outcome)
    assert outcome.state == state and other.recv() is stop


def test_an_error_after_the_word_to_stop_changes_nothing():
    own, other = multiprocessing.Pipe()
    other.send(("value", (1, 0.5)))
    other.send(("failed", "no memory"))
    outcome = Outcome()
    assert _follow(own, lambda epoch, value: True, None, outcome)
    assert (outcome.state, outcome.problem) == ("stopped", "")


def test_what_becomes_of_a_trial(tmp_path):
    parameters = parameters_of(tmp_path)
    outcomes = [
        Outcome("done", values={1: 0.3, 2: 0.6, 3: math.nan, 4: 0.5}),
        Outcome("late", values={1: 0.9}),
        Outcome("done", values={1: math.nan}),
        Outcome("failed", "no memory", values={1: 0.9}),
        Outcome("stopped", values={1: 0.1}),
    ]
    with Store(tmp_path / "store", True) as store:
        ended = [_close(store, store.next_trial(parameters, 9, 0)[0], outcome) for outcome in outcomes]
        assert [state_of(trial) for trial in ended] == "complete interrupted failed failed pruned".split()
        assert (ended[0].value, ended[0].user_attrs["epoch"]) == (0.6, 2)
        problems = [trial.user_attrs.get("problem") for trial in ended]
        assert problems == [None, "the minutes were over", "no validation has a number: [nan]", "no memory", None]
        assert ended[2].params == ended[1].params  # the interrupted one was next in the queue
        assert count_states(store.trials())["interrupted"] == 1 and len(store.counted()) == 4


def test_the_minutes_may_be_over_before_the_first_trial(data, space, tmp_path):
    summary = search(
        "classification",
        minutes=1e-6,
        epochs=1,
        overrides=options(data),
        space=space,
        run_dir=tmp_path / "run",
        console=quiet(),
    )
    assert (summary["ended"], summary["best"], summary["counts"]["complete"]) == ("time", None, 0)


def test_the_bundles_own_settings_must_train(data, space, tmp_path):
    given = {"space": space, "console": quiet()}
    with pytest.raises(TomokitError, match=r"own settings can't be trained: .*`patience` must be .*got 'never'"):
        search(
            "classification",
            trials=2,
            epochs=1,
            overrides=options(data, patience="never"),
            run_dir=tmp_path / "a",
            **given,
        )
    with pytest.raises(TomokitError, match="can't be trained: one epoch takes longer than the minutes"):
        search("classification", minutes=1e-6, overrides=options(data), run_dir=tmp_path / "c", **given)
    with pytest.raises(TomokitError, match=r"own settings can't be trained: .*`patience` must be .*got 'never'"):
        search("classification", minutes=5, overrides=options(data, patience="never"), run_dir=tmp_path / "b", **given)


# ------------------------------------------------------------------------------------------------ plans


def test_epochs_fill_a_trials_share_of_the_time(data, space):
    plan = make_plan("classification", space, (), options(data))
    times = {"start": 10.0, "epoch": 2.0, "validation": 1.0}
    assert plan.interval(20) == 1 and plan.config["epochs"] == 70
    assert [fit_epochs(plan, times, seconds) for seconds in (0, 13, 16, 25, 1e6)] == [1, 1, 2, 5, 70]


def test_a_planned_bundle_takes_the_networks_of_the_packaged_one(data, space, tmp_path):
    packaged = Path(config("classification", "train")[0]).parent
    shutil.copytree(packaged, tmp_path / "configs", ignore=shutil.ignore_patterns("networks"))
    (tmp_path / "fingerprint.json").write_text('{"task": "classification"}')
    files = make_plan(tmp_path, space, ["networks/densenet", "sgd"], options(data)).files
    assert files[1:] == [
        str(packaged / "networks" / "densenet.yaml"),
        str(packaged.parents[1] / "_layers" / "sgd.yaml"),
    ]


def test_a_plan_tells_what_is_wrong(data, space, tmp_path):
    with pytest.raises(TomokitError, match=r"`run_dir` is set by the search itself, got 'x'"):
        make_plan("classification", space, (), {"run_dir": "x"})
    with pytest.raises(TomokitError, match="no layer 'sgdd'"):
        make_plan("classification", space, ["sgdd"], {})
    with pytest.raises(TomokitError, match=r"no configs/train.yaml"):
        (tmp_path / "configs").mkdir()
        make_plan(tmp_path, space, (), {})
    split = tmp_path / "split.json"
    names = [case["image"].split("/")[-1].split(".")[0] for case in read_json(data / "dataset.json")["training"]]
    split.write_text(json.dumps({"folds": [{"training": names, "validation": [], "test": []}]}))
    with pytest.raises(TomokitError, match=r"12 training cases and 0 to validate"):
        make_plan("classification", space, ["sgd"], options(data, split=str(split)))


def test_what_differs_from_the_search_that_is_there(data, space):
    plan = make_plan("classification", space, ["sgd"], options(data))
    began = plan.settings(0) | {"epochs": 2}
    compare_settings(Path("x"), began, plan.settings(0))
    other = make_plan("classification", space, (), options(data, fold="0", image_size=[8, 8, 8])).settings(1)
    with pytest.raises(TomokitError, match=r"`image_size` \(config\) is \[8, 8, 8\].*\[16, 16, 16\]") as caught:
        compare_settings(Path("x"), began, other | {"epochs": 3, "data_hash": "0"})
    told = str(caught.value)
    assert "`train`" in told and "`epochs` is 3" in told and "`seed` is 1" in told and "files" in told
    assert "`fold`" not in told


def test_a_metric_may_be_better_when_lower(data, space, tmp_path):
    assert make_plan("classification", space, (), options(data)).greater_is_better
    layer = tmp_path / "lower.yaml"
    layer.write_text("imports: [$import operator]\nvalidate::evaluator::metric_cmp_fn: $operator.lt\n")
    assert not make_plan("classification", space, [layer], options(data)).greater_is_better


def test_a_search_needs_an_end_and_a_folder_of_its_own(data, space, tmp_path):
    with pytest.raises(TomokitError, match="give --trials, --minutes"):
        search("classification")
    with pytest.raises(TomokitError, match=r"trials must be above 0, got 0(.|\n)*minutes must be above 0, got -1"):
        search("classification", trials=0, minutes=-1)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(TomokitError, match="holds something else than a search"):
        search("classification", trials=1, overrides=options(data), space=space, run_dir=tmp_path)
    shutil.rmtree(tmp_path)
