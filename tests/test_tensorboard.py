import io
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from bundle_runs import train
from ignite.engine import Engine
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter

from tomokit import phantoms
from tomokit.engines.settings import tell_config, tell_scores, tell_settings
from tomokit.engines.tensorboard import attach_class_plots, attach_overlays, open_events, write_config
from tomokit.errors import TomokitError
from tomokit.pictures import draw_counts, overlay_slice

NAMES = {"0": "compact", "1": "elongated"}
STEP = 7


def read_events(folder):
    """Return all events of a folder."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def decode(event):
    """Return the picture (H, W, 3) of an event, 0–255."""
    return np.round(imread(io.BytesIO(event.encoded_image_string))[..., :3] * 255).astype(np.uint8)


def show(attach, outputs, folder, **options):
    """Return the events of one validation whose cases have the outputs, one per iteration."""
    evaluator = Engine(lambda engine, batch: [batch])
    trainer = SimpleNamespace(state=SimpleNamespace(iteration=STEP))
    with SummaryWriter(str(folder)) as writer:
        attach(evaluator, trainer, writer, **options)
        evaluator.run(outputs)
    return read_events(folder)


def answers(chances, truths):
    """Return the outputs of cases, each with its probabilities and its truth."""
    rows = zip(torch.tensor(chances), torch.tensor(truths), strict=True)
    return [{"pred": chance, "label": truth} for chance, truth in rows]


# A real run of a classifier


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    phantoms.make_classification_set(folder, cases=24, test_cases=6, size=32, progress=False)
    return str(folder)


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    return train("classification", tmp_path_factory.mktemp("runs") / "run", dataset_dir=shapes)


@pytest.fixture(scope="module")
def events(run):
    return read_events(run / "tensorboard")


@pytest.fixture(scope="module")
def record(run):
    return json.loads((run / "validation.json").read_text())


def test_the_scalars_are_those_of_the_record(events, record):
    history = record["history"]
    losses = [event.value for event in events.Scalars("train/loss")]
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, len(losses) + 1))
    assert [np.mean(part) for part in np.split(np.array(losses), 2)] == pytest.approx([e["loss"] for e in history])
    for tag, key in (
        ("validation/val_auc", "metric"),
        ("train/learning_rate", "learning_rate"),
        ("train/seconds_per_step", "seconds_per_step"),
    ):
        found = events.Scalars(tag)
        assert [event.value for event in found] == pytest.approx([entry[key] for entry in history])
        assert [event.step for event in found] == [len(losses) // 2, len(losses)]


def test_each_validation_has_its_counts_and_curves(events, run):
    pictures = events.Images("validation/confusion")
    table = np.zeros((2, 2), dtype=int)
    empty = draw_counts(table, table, list(NAMES.values()), list(NAMES.values()), ("answer", "truth"))
    assert [decode(event).shape for event in pictures] == [empty.shape] * 2
    assert [len(events.Tensors(f"validation/pr/{name}")) for name in NAMES.values()] == [2, 2]
    assert [event.step for event in pictures] == [event.step for event in events.Scalars("validation/val_auc")]
    assert not [tag for tag in events.Tags()["images"] if tag != "validation/confusion"]  # no slices of a class


def test_the_config_is_told_at_the_start_without_cases_and_folders(events, run):
    (event,) = events.Tensors("config/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert event.step == 0 and text.startswith("```yaml\n") and text.endswith("\n```")
    told = yaml.safe_load(text.removeprefix("```yaml").removesuffix("```"))
    assert told == tell_config(run)
    assert [told["cases"][part] for part in ("training", "validation", "test")] == [16, 2, 6]
    assert (told["dataset_dir"], told["run_dir"]) == ("shapes", "run")
    assert "case_" not in text and str(run.parents[1]) not in text
    assert "<code" in markdown_to_safe_html(text) and "<p>" not in markdown_to_safe_html(text)


def test_settings_and_final_scores_are_in_the_run_itself(events, run, record):
    tags = events.PluginTagToContent("hparams")
    read = {name: HParamsPluginData.FromString(content) for name, content in tags.items()}
    assert set(read) == {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"}
    given = read["_hparams_/session_start_info"].session_start_info.hparams
    assert given["epochs"].number_value == 2 and given["learning_rate"].number_value == pytest.approx(0.004)
    assert given["deterministic"].string_value == "true" and given["task"].string_value == "classes"
    assert "device" not in given and "labels" not in given  # an expression, and no single value
    metrics = {info.name.tag for info in read["_hparams_/experiment"].experiment.metric_infos}
    assert metrics == {tag for tag in events.Tags()["scalars"] if tag.startswith("final/")}
    assert events.Scalars("final/val_auc")[0].value == pytest.approx(record["best"]["metric"])
    assert events.Scalars("final/best_epoch")[0].value == record["best"]["epoch"]
    assert events.Scalars("final/loss")[0].value == pytest.approx(record["history"][-1]["loss"])
    assert [path.is_file() for path in (run / "tensorboard").iterdir()] == [True]


def test_a_resumed_run_tells_its_config_once(events, run, shapes):
    before = events.Tags()
    train("classification", run, dataset_dir=shapes, resume=True)  # it is finished: nothing is trained again
    after = read_events(run / "tensorboard")
    assert len(after.Tensors("config/text_summary")) == 1 and after.Tags() == before


# What is drawn, by hand


def test_the_counts_of_classes(tmp_path):
    chances = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]]
    truths = [[1, 0], [1, 0], [0, 1], [1, 0]]
    events = show(attach_class_plots, answers(chances, truths), tmp_path, labels=NAMES, task="classes")
    names = list(NAMES.values())
    expected = draw_counts([[2, 1], [0, 1]], [[2 / 3, 1 / 3], [0, 1]], names, names, ("answer", "truth"))
    (event,) = events.Images("validation/confusion")
    assert event.step == STEP and np.array_equal(decode(event), expected)


def test_the_counts_of_labels_each_by_itself(tmp_path):
    chances = [[0.9, 0.1], [0.5, 0.8], [0.4, 0.6], [0.7, 0.3]]
    truths = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    events = show(attach_class_plots, answers(chances, truths), tmp_path, labels=NAMES, task="labels")
    shares = [[2 / 3, 1 / 3, 1, 0], [np.nan, np.nan, 0.5, 0.5]]
    columns = ("found", "missed", "false alarm", "cleared")
    axes = ("called at a probability of 0.5", "label")
    expected = draw_counts([[2, 1, 1, 0], [0, 0, 2, 2]], shares, list(NAMES.values()), columns, axes)
    assert np.array_equal(decode(events.Images("validation/confusion")[0]), expected)
    assert "validation/pr/compact" in events.Tags()["tensors"]
    assert "validation/pr/elongated" not in events.Tags()["tensors"]  # which no case has


def test_a_curve_by_hand(tmp_path):
    events = show(
        attach_class_plots,
        answers([[0.9], [0.6], [0.4], [0.1]], [[1.0], [0.0], [1.0], [0.0]]),
        tmp_path,
        labels={"0": "mass"},
        task="labels",
    )
    (event,) = events.Tensors("validation/pr/mass")
    table = np.array(event.tensor_proto.float_val).reshape(6, -1)  # of rising thresholds
    precision, recall = table[4:]
    assert event.step == STEP
    assert (precision[0], recall[0]) == (0.5, 1.0)  # all are called
    middle = table.shape[1] // 2
    assert (precision[middle], recall[middle]) == (0.5, 0.5)  # the first two
    assert (precision[-20], recall[-20]) == (1.0, 0.5)  # the first one


def test_of_pairs_what_is_not_known_is_left_out(tmp_path):
    logits = [[3.0, 3.0, 1.0, 0.5], [-3.0, 3.0, 1.0, 0.5], [3.0, -3.0, 1.0, 0.5]]
    truths = [[1.0, 1.0, -20.0], [1.0, 1.0, -20.0], [np.nan, 0.0, 0.0]]
    events = show(attach_class_plots, answers(logits, truths), tmp_path, labels=None, task="pairs")
    rows, columns = ("first is earlier", "changed"), ("found", "missed", "false alarm", "cleared")
    shares = [[0.5, 0.5, np.nan, np.nan], [1, 0, 0, 1]]
    axes = ("called at a probability of 0.5", "label")
    expected = draw_counts([[1, 1, 0, 0], [2, 0, 0, 1]], shares, rows, columns, axes)
    assert np.array_equal(decode(events.Images("validation/confusion")[0]), expected)
    (event,) = events.Tensors("validation/pr/first is earlier")
    assert np.array(event.tensor_proto.float_val).reshape(6, -1)[:4].sum(axis=0).tolist()[0] == 2  # cases


def test_each_validation_counts_its_own_cases(tmp_path):
    evaluator = Engine(lambda engine, batch: [batch])
    trainer = SimpleNamespace(state=SimpleNamespace(iteration=1))
    with SummaryWriter(str(tmp_path)) as writer:
        attach_class_plots(evaluator, trainer, writer, NAMES, "classes")
        evaluator.run(answers([[0.9, 0.1], [0.2, 0.8]], [[1, 0], [0, 1]]))
        evaluator.run(answers([[0.9, 0.1], [0.2, 0.8]], [[1, 0], [0, 1]]))
    first, second = read_events(tmp_path).Images("validation/confusion")
    assert np.array_equal(decode(first), decode(second))


@pytest.mark.parametrize(("labels", "task"), [(None, "classes"), (NAMES, "value")])
def test_what_has_no_classes_has_no_counts(labels, task, tmp_path):
    events = show(attach_class_plots, answers([[0.5]], [[1.0]]), tmp_path, labels=labels, task=task)
    assert events.Tags()["images"] == [] and events.Tags()["tensors"] == []


def test_answers_on_other_labels_are_refused(tmp_path):
    with pytest.raises(TomokitError, match=r"`pred` \(3,\) and `label` \(\) of a validation case .* the 2 labels"):
        show(attach_class_plots, answers([[0.1, 0.2, 0.7]], [1.0]), tmp_path, labels=NAMES, task="classes")


def test_three_planes_each_where_it_shows_most(tmp_path):
    image = torch.arange(6 * 5 * 4.0).reshape(1, 6, 5, 4)
    label, prediction = torch.zeros(1, 6, 5, 4), torch.zeros(1, 6, 5, 4)
    label[0, 2, 1:4, 3] = 1  # a line along y
    label[0, 1:4, 3, 3] = 1  # and one along x
    prediction[0, 2, 1, 3] = 2
    output = {"image": image, "label": label, "pred": prediction}
    events = show(attach_overlays, [output], tmp_path)
    planes = {"sagittal": (0, 2), "coronal": (1, 3), "axial": (2, 3)}
    for name, (axis, place) in planes.items():
        slices = (volume[0].select(axis, place).numpy() for volume in (image, prediction, label))
        small = overlay_slice(*slices)
        zoom = 480 // max(small.shape)
        (event,) = events.Images(f"validation/{name}")
        assert event.step == STEP
        assert np.array_equal(decode(event), small.repeat(zoom, axis=0).repeat(zoom, axis=1))


def test_regions_are_painted_over_each_other(tmp_path):
    image = torch.zeros(1, 4, 4, 4)
    whole, core = torch.zeros(4, 4, 4), torch.zeros(4, 4, 4)
    whole[:3, :3, :3] = 1
    core[1, 1, 1] = 1
    regions = torch.stack([whole, core])
    events = show(attach_overlays, [{"image": image, "label": regions, "pred": regions}], tmp_path)
    labels = (whole + core)[None]
    single = show(attach_overlays, [{"image": image, "label": labels, "pred": labels}], tmp_path / "single")
    for plane in ("axial", "coronal", "sagittal"):
        a, b = (found.Images(f"validation/{plane}")[0] for found in (events, single))
        assert a.encoded_image_string == b.encoded_image_string


# What is told of a run


def write_run(folder, **config):
    (folder / "configs").mkdir()
    (folder / "configs" / "train.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_nothing_is_told_that_names_a_case_or_a_folder(tmp_path):
    given = {
        "dataset_dir": "/data/hospital/set",
        "run_dir": "runs/a",
        "output_dir": "$@run_dir + '/predictions'",
        "cases": {"_target_": "x.y", "training": ["mueller"], "validation": [], "test": ["meier", 12]},
        "labels": {"0": "n/a", "1": "mueller"},
        "pretrained": "runs/earlier",
        "windows": "C:\\scans\\a",
        "first": "mueller",
        "file": "meier.nii.gz",
        "some": ["$'12' + 'x'", '$open("/data/x")', "$a['x'] / b['y']", "$@a + '/b'", "@first", 12],
        "epochs": 3,
    }
    told = tell_config(write_run(tmp_path, **given))
    assert told == given | {
        "dataset_dir": "set",
        "run_dir": "a",
        "cases": {"_target_": "x.y", "training": 1, "validation": 0, "test": 2},
        **dict.fromkeys(("pretrained", "windows", "first", "file"), "…"),
        "some": ["…", "…", "$a['x'] / b['y']", "$@a + '/b'", "@first", 12],
    }


def test_a_folder_without_a_config_tells_none(tmp_path):
    assert tell_config(tmp_path) == {}
    with SummaryWriter(str(tmp_path)) as writer:
        write_config(writer, {})
    assert read_events(tmp_path).Tags()["tensors"] == []


def test_settings_are_the_single_values_at_the_top():
    config = {"a": 1, "b": 0.5, "c": "x", "d": True, "e": None, "f": "$1", "g": "@a", "h": [1], "i": {"j": 1}, "k": "…"}
    assert tell_settings(config) == {"a": 1, "b": 0.5, "c": "x", "d": "true"}


def test_scores_of_a_training_without_validation_cases():
    record = {"metric": None, "best": None, "history": [{"loss": 2.0}, {"loss": 1.0}]}
    costs = {"seconds": 3.0, "peak_rss_gb": 1.5, "parameters": 10}
    final = {f"final/{key}": value for key, value in costs.items()}
    assert tell_scores(record | costs) == {"final/loss": 1.0, **final}


def test_a_full_disk_is_one_line(tmp_path, caplog, capsys):
    class Events(threading.Thread):
        def run(self):
            raise OSError(28, "No space left on device")

    Events.__module__ = "tensorboard.summary.writer"
    before = threading.excepthook
    open_events(str(tmp_path), 1).close()
    try:
        for thread in (Events(), threading.Thread(target=lambda: 1 / 0)):
            thread.start()
            thread.join()
    finally:
        threading.excepthook = before
    assert [record.message for record in caplog.records] == [
        "TensorBoard's events are not whole: [Errno 28] No space left on device"
    ]
    assert "ZeroDivisionError" in capsys.readouterr().err
