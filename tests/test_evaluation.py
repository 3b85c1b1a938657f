import csv
import json

import pytest
import torch
from ignite.engine import Engine, Events

from tomokit.engines import attach_class_table, attach_classification_scores
from tomokit.engines.checkpoints import save
from tomokit.errors import TomokitError

NAMES = {"1": "round", "0": "long"}
# of each task: the truth of four cases, and what the network's output became
CLASSES = [0, 1, 1, 0], [{"pred": torch.tensor([1 - p, p])} for p in (0.25, 0.75, 0.375, 0.5)]
LABELS = (
    [[0, 1], [1, 1], [0, 0], [1, 0]],
    [
        {"pred": torch.tensor(pair), "pred_decided": torch.tensor(flags)}
        for pair, flags in (
            ([0.25, 0.75], [0, 1]),
            ([0.75, 0.5], [1, 0]),
            ([0.5, 0.125], [1, 0]),
            ([0.875, 0.25], [1, 0]),
        )
    ],
)
VALUES = [1, 2.5, 4.0, 8.0], [{"pred": torch.tensor([value])} for value in (2.0, 2.5, 3.0, 6.0)]


def make_engine(outputs):
    """Return an engine whose output, a batch of two cases at a time, is what an evaluator's became."""

    def step(engine, numbers):
        engine.state.batch = [{"case": f"c{i}", "patient": f"p{i}"} for i in numbers]
        return [outputs[i] for i in numbers]

    return Engine(step)


def read_table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def evaluate(run, task, truths, outputs):
    """Return what an evaluation of four cases writes: the rows and the measures."""
    save({}, run / "checkpoints" / "best.pt")
    entries = [{"case": f"c{i}", "patient": f"p{i}", "label": label} for i, label in enumerate(truths)]
    engine = make_engine(outputs)
    attach_classification_scores(engine, run, "best", NAMES, {"training": [], "test": entries}, False, task)
    engine.run([[0, 1], [2, 3]])
    return read_table(run / "cases.csv"), json.loads((run / "metrics.json").read_text())


def infer(folder, task, outputs):
    engine = make_engine(outputs)
    attach_class_table(engine, folder, NAMES, task)
    engine.run([[0, 1], [2, 3]])
    return read_table(folder / f"{task}.csv")


def test_classes(tmp_path, capsys):
    rows, measures = evaluate(tmp_path, "classes", *CLASSES)
    assert f"scores: {tmp_path / 'metrics.json'}, each case: {tmp_path / 'cases.csv'}" in capsys.readouterr().out
    assert rows[2] == {"case": "c2", "patient": "p2", "truth": "round", "p_long": "0.625", "p_round": "0.375"}
    assert measures["task"] == "classification" and measures["checkpoint"] == "best.pt"
    assert measures["summary"]["auc"]["mean"] == 0.75 and measures["summary"]["accuracy"]["mean"] == 0.75
    assert infer(tmp_path, "classes", CLASSES[1])[1] == {
        "case": "c1",
        "class": "round",
        "p_long": "0.25",
        "p_round": "0.75",
    }


def test_what_was_found_before_an_error_is_kept(tmp_path, caplog):
    engine = make_engine(CLASSES[1])
    attach_class_table(engine, tmp_path, NAMES, "classes")

    def fail(engine):
        raise OSError("the next scan is damaged")

    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), fail)
    with pytest.raises(OSError, match="the next scan is damaged"):
        engine.run([[0, 1], [2, 3]])
    assert [row["case"] for row in read_table(tmp_path / "classes.csv")][:2] == ["c0", "c1"]
    assert "classes.csv holds the 4 cases before OSError" in caplog.text


def test_several_labels(tmp_path):
    rows, measures = evaluate(tmp_path, "labels", *LABELS)
    assert list(rows[0]) == [
        *("case", "patient", "truth_long", "truth_round", "p_long", "p_round", "decided_long", "decided_round")
    ]
    assert list(rows[1].values()) == ["c1", "p1", "1", "1", "0.75", "0.5", "1", "0"]
    assert measures["task"] == "multi_label"
    assert measures["per_class"]["long"]["specificity"]["mean"] == 0.5
    assert measures["per_class"]["round"]["sensitivity"]["mean"] == 0.5
    assert list(infer(tmp_path, "labels", LABELS[1])[2].values()) == ["c2", "0.5", "0.125", "1", "0"]


def test_one_half_decides_on_labels_where_nothing_else_did(tmp_path):
    outputs = [{"pred": output["pred"]} for output in LABELS[1]]
    assert [row["decided_round"] for row in infer(tmp_path, "labels", outputs)] == ["1", "1", "0", "0"]


def test_values(tmp_path):
    rows, measures = evaluate(tmp_path, "value", *VALUES)
    assert rows[0] == {"case": "c0", "patient": "p0", "truth": "1.0", "prediction": "2.0"}
    assert measures["task"] == "regression"
    assert measures["summary"]["mae"]["mean"] == 1 and measures["summary"]["bias"]["mean"] == -0.5
    assert infer(tmp_path, "value", VALUES[1])[3] == {"case": "c3", "prediction": "6.0"}


def test_an_unknown_task(tmp_path):
    with pytest.raises(TomokitError, match="`task` must be one of classes, labels, value, got 'regions'"):
        infer(tmp_path, "regions", VALUES[1])
    with pytest.raises(TomokitError, match="got 'regions'"):
        evaluate(tmp_path, "regions", *VALUES)
