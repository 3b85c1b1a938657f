import json

import pytest
from rich.console import Console

from tomokit.errors import TomokitError
from tomokit.report import print_run


def entry(mean, low=None, high=None, n=12):
    return {"mean": mean, "ci95": None if low is None else [low, high], "n": n, "cases": n}


SEGMENTATION = {
    "task": "segmentation",
    "summary": {"dice": entry(0.8, 0.75, 0.84)},
    "per_class": {"liver": {"dice": entry(0.9, 0.85, 0.94)}, "lesion [1]": {"dice": entry(None, n=0)}},
    "rivals": {
        "threshold": {
            "summary": {"dice": entry(0.4)},
            "per_class": {"liver": {"dice": entry(0.413, 0.3, 0.5)}},
        }
    },
    "seconds": 12.34,
    "peak_rss_gb": 1.234,
    "picture": "overlay.png",
}
CLASSIFICATION = {
    "task": "classification",
    "summary": {
        "auc": entry(0.95, 0.9, 1.0),
        "accuracy": entry(0.85),
        "balanced_accuracy": entry(0.84, 0.8, 0.9),
    },
    "per_class": {"benign": {"sensitivity": entry(0.7)}, "malignant": {"sensitivity": entry(0.6)}},
    "rivals": {"intensity": {"summary": {"auc": entry(0.61)}, "per_class": {}}},
}


def printed(run_dir, metrics, validation=None):
    """Return the lines that a run prints on a terminal of 80 columns."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "metrics.json").write_text(json.dumps(metrics))
    if validation is not None:
        (run_dir / "validation.json").write_text(json.dumps(validation))
    console = Console(width=80, record=True, quiet=False, file=(run_dir / "out.txt").open("w"))
    print_run(run_dir, console)
    console.file.close()
    return console.export_text().splitlines()


def cells(lines, title):
    """Return the cells of the table's row with this title."""
    found = [line for line in lines if line.startswith(f"│ {title} ")]
    assert len(found) == 1, lines
    return [cell.strip() for cell in found[0].strip("│").split("│")]


def test_a_segmentation_run(tmp_path):
    lines = printed(tmp_path, SEGMENTATION, {"seconds_per_step": 0.2512})
    assert cells(lines, "liver") == ["liver", "0.900 [0.850, 0.940]", "0.413", "12"]
    assert cells(lines, "lesion [1]") == ["lesion [1]", "–", "–", "0"]
    assert cells(lines, "mean") == ["mean", "0.800 [0.750, 0.840]", "0.400", "12"]
    assert "threshold, Dice" in "\n".join(lines)
    assert lines[-5:] == [
        "seconds per training step: 0.251",
        "seconds to evaluate: 12.3",
        "peak memory: 1.23 GB",
        f"results: {tmp_path}",
        f"picture: {tmp_path / 'overlay.png'}",
    ]


def test_a_segmentation_with_surfaces_shows_them_within_80_columns(tmp_path):
    metrics = json.loads(json.dumps(SEGMENTATION)) | {"tolerance_mm": 2.0}
    metrics["summary"]["nsd"] = entry(0.7, 0.6, 0.8)
    metrics["per_class"]["liver"]["nsd"] = entry(0.95, 0.9, 1.0)
    lines = printed(tmp_path, metrics)
    assert cells(lines, "liver") == ["liver", "0.900 [0.850, 0.940]", "0.950", "0.413", "12"]
    assert cells(lines, "lesion [1]") == ["lesion [1]", "–", "–", "–", "0"]
    assert cells(lines, "mean") == ["mean", "0.800 [0.750, 0.840]", "0.700", "0.400", "12"]
    assert "share of the surfaces within 2 mm" in " ".join(line.strip() for line in lines)
    assert max(map(len, lines[:10])) <= 80


def test_a_classification_run(tmp_path):
    lines = printed(tmp_path, CLASSIFICATION)
    assert cells(lines, "AUC") == ["AUC", "0.950 [0.900, 1.000]", "0.610", "12"]
    assert cells(lines, "accuracy") == ["accuracy", "0.850", "–", "12"]
    assert cells(lines, "balanced accuracy")[1] == "0.840 [0.800, 0.900]"
    assert cells(lines, "sensitivity, malignant")[1] == "0.600"
    assert "seconds per training step: not measured" in lines
    assert "peak memory: not measured" in lines
    assert not any("picture" in line for line in lines)


def test_a_run_without_rivals_has_no_column_for_them(tmp_path):
    lines = printed(tmp_path, {**SEGMENTATION, "rivals": {}})
    assert cells(lines, "liver") == ["liver", "0.900 [0.850, 0.940]", "12"]


def test_the_table_fits_80_columns_and_paths_stay_whole(tmp_path):
    long_name = "a structure whose name is far longer than the place that a table of 80 columns has for it"
    metrics = {**SEGMENTATION, "per_class": {long_name: {"dice": entry(0.9, 0.85, 0.94)}}}
    run_dir = tmp_path / ("deep" * 15) / ("deeper" * 10)
    lines = printed(run_dir, metrics)
    assert max(len(line) for line in lines if not line.startswith(("results", "picture"))) <= 80
    assert "0.900 [0.850, 0.940]" in "\n".join(lines)
    assert f"picture: {run_dir / 'overlay.png'}" in lines


def test_prints_to_the_terminal_by_default(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text(json.dumps(CLASSIFICATION))
    print_run(str(tmp_path))
    assert "AUC" in capsys.readouterr().out


def test_the_scored_checkpoint(tmp_path):
    lines = printed(tmp_path, {**SEGMENTATION, "checkpoint": "best.pt, epoch 15"})
    assert "scored checkpoint: best.pt, epoch 15" in lines
    assert not any(line.startswith("scored checkpoint") for line in printed(tmp_path, SEGMENTATION))


@pytest.mark.parametrize("run_dir", ["runs/demo", "runs/demo/", "runs/other/../demo"])
def test_a_run_that_was_not_evaluated(tmp_path, run_dir):
    with pytest.raises(TomokitError, match="does not exist; `make evaluate RUN=demo` makes it"):
        print_run(f"{tmp_path}/{run_dir}")


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({**SEGMENTATION, "task": "counting"}, "got 'counting'"),
        ({"summary": {}}, "got None"),
        ({"task": "segmentation", "summary": {}}, r"lacks \['per_class'\]; run `make evaluate RUN=demo` again"),
    ],
)
def test_metrics_that_are_not_a_runs(tmp_path, metrics, message):
    with pytest.raises(TomokitError, match=message):
        printed(tmp_path / "runs" / "demo", metrics)


def test_calibration_is_shown_where_it_was_measured(tmp_path):
    summary = CLASSIFICATION["summary"] | {"brier": entry(0.12), "ece": entry(0.04, 0.03, 0.09)}
    lines = printed(tmp_path, {**CLASSIFICATION, "summary": summary})
    assert cells(lines, "calibration error") == ["calibration error", "0.040 [0.030, 0.090]", "–", "12"]
    assert cells(lines, "Brier score")[1] == "0.120"
    assert not any("calibration error" in line for line in printed(tmp_path, CLASSIFICATION))


def test_a_run_of_several_labels(tmp_path):
    own = {"auc": entry(0.7), "sensitivity": entry(0.6), "specificity": entry(None, n=0), "positives": 4}
    metrics = {
        "task": "multi_label",
        "summary": {"auc": entry(0.8, 0.7, 0.9), "average_precision": entry(0.75), "f1": entry(0.5)},
        "per_class": {"large": own},
        "rivals": {"histogram": {"summary": {"auc": entry(0.6)}, "per_class": {"large": {"auc": entry(0.55)}}}},
    }
    lines = printed(tmp_path, metrics)
    assert cells(lines, "mean AUC") == ["mean AUC", "0.800 [0.700, 0.900]", "0.600", "12"]
    assert cells(lines, "AUC, large") == ["AUC, large", "0.700", "0.550", "12"]
    assert cells(lines, "specificity, large") == ["specificity, large", "–", "–", "0"]


def test_a_run_of_a_regression(tmp_path):
    summary = {"mae": entry(4.25, 3.5, 5.0), "mse": entry(30.0), "r2": entry(0.6), "bias": entry(-1.0)}
    lines = printed(tmp_path, {"task": "regression", "summary": summary, "per_class": {}})
    assert cells(lines, "mean absolute error") == ["mean absolute error", "4.250 [3.500, 5.000]", "12"]
    assert cells(lines, "R²")[1] == "0.600" and cells(lines, "mean error")[1] == "-1.000"


RIVALS = ("histogram", "threshold", "logistic", "tree", "perceptron")


def compared(names, found):
    """Return a classification's measures with several rivals and the comparisons with them."""
    per_class = {name: {"auc": entry(0.61)} for name in ("benign", "malignant")}
    rivals = {key: {"summary": {"auc": entry(0.61)}, "per_class": per_class} for key in names}
    return {**CLASSIFICATION, "rivals": rivals, "comparisons": dict.fromkeys(names, found)}


def difference(value, low, high, p, verdict):
    return {"malignant": {"difference": value, "ci95": [low, high], "p": p, "verdict": verdict, "n": 12}}


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (difference(0.0321, -0.01, 0.0742, 0.1312, "tie"), ["+0.032 [-0.010, +0.074]", "0.131", "tie"]),
        (difference(0.3, 0.2, 0.4, 1e-7, "better"), ["+0.300 [+0.200, +0.400]", "<.001", "better"]),
        (difference(-0.1, -0.15, -0.05, 0.001, "worse"), ["-0.100 [-0.150, -0.050]", "0.001", "worse"]),
    ],
)
def test_the_network_is_compared_with_each_rival(tmp_path, found, shown):
    lines = printed(tmp_path, compared(RIVALS, found))
    assert cells(lines, "perceptron") == ["perceptron", "malignant", "0.610", *shown]
    assert cells(lines, "AUC") == ["AUC", "0.950 [0.900, 1.000]", "12"]  # five more columns would not fit
    assert max(len(line) for line in lines if not line.startswith("results")) <= 80
    assert "DeLong's test on the same cases" in "\n".join(lines)


def test_few_rivals_stand_beside_the_scores_too(tmp_path):
    lines = printed(tmp_path, compared(["histogram"], difference(0.1, -0.1, 0.3, 0.4, "tie")))
    assert cells(lines, "AUC") == ["AUC", "0.950 [0.900, 1.000]", "0.610", "12"]
    assert cells(lines, "histogram")[3:] == ["+0.100 [-0.100, +0.300]", "0.400", "tie"]


def test_what_could_not_be_compared_is_left_out(tmp_path):
    lines = printed(tmp_path, compared(RIVALS, {}))
    assert not any("DeLong" in line for line in lines)
    assert len(cells(lines, "AUC")) == 8
