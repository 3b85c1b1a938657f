"""From the inner validation to the test: the best trial's network scored alike on both, and the difference."""

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tomokit import configs
from tomokit.errors import TomokitError
from tomokit.files import read_json, write_json
from tomokit.search.trials import run_stage

# what an evaluation leaves in a run
SCORES = ("metrics.json", "cases.csv", "lesions.csv", "overlay.png", "configs/evaluate.yaml")


def score_network(
    run: Path, evaluate: Path, parts: Mapping[str, Sequence[str]], metric: str, folder: Path, deadline: float | None
) -> dict[str, Any]:
    """Return the scores of a run's network on the validation and the test cases, and their difference.

    Both are scored by the bundle's `evaluate.yaml`, so that the difference is that of the cases alone. The run's own
    `metrics.json` and predictions are those of the test cases; it has none when these could not be scored.

    Args:
        run: the trained run's folder.
        evaluate: the bundle's `evaluate.yaml`.
        parts: the case names of `validation` and `test`.
        metric: the validation's key metric, such as `val_dice`; the evaluation's measure is named without `val_`.
        folder: where the two evaluations' measures are kept, as `validation.json` and `test.json`.
        deadline: `time.monotonic()` at which the scoring is stopped.

    Raises:
        TomokitError: when an evaluation fails, is not done in time, or has no such measure.
    """
    scores = {}
    for part in ("validation", "test"):
        with tempfile.TemporaryDirectory() as scratch:
            layer = folder / f"{part}.yaml"
            configs.write_config(_layer(run, evaluate, parts[part], part, scratch), layer, f"Score the {part} cases.")
            files = [str(run / "configs" / "train.yaml"), str(evaluate), str(layer)]
            outcome = run_stage(files, folder / f"{part}.log", deadline)
        done = outcome.state == "done"
        if done:
            shutil.copy(run / "metrics.json", folder / f"{part}.json")
        if part == "validation" or not done:
            for name in SCORES:
                (run / name).unlink(missing_ok=True)
        if not done:
            why = "the time was over" if outcome.state == "late" else outcome.problem
            raise TomokitError(f"the {part} cases could not be scored: {why} (see {folder / f'{part}.log'})")
        scores[part] = _measure(read_json(folder / f"{part}.json"), metric)
    difference = difference_interval(scores["validation"], scores["test"])
    write_json(folder / "difference.json", {**scores, "difference": difference})
    return {**scores, "measure": metric.removeprefix("val_"), "difference": difference}


def difference_interval(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return `first` - `second` of two independent means with their intervals: `{"mean", "ci95"}`.

    The interval is None where one of the two has none.

    Source: Zou and Donner, Construction of confidence limits about effect measures, Statistics in Medicine 27 (2008).
    """
    mean = first["mean"] - second["mean"]
    if first.get("ci95") is None or second.get("ci95") is None:
        return {"mean": mean, "ci95": None}
    (low_1, high_1), (low_2, high_2) = first["ci95"], second["ci95"]
    down = math.hypot(first["mean"] - low_1, high_2 - second["mean"])
    up = math.hypot(high_1 - first["mean"], second["mean"] - low_2)
    return {"mean": mean, "ci95": [mean - down, mean + up]}


def _layer(run: Path, evaluate: Path, names: Sequence[str], part: str, scratch: str) -> dict[str, Any]:
    """Return the keys of one evaluation: which cases, without rivals, what is not test's away from the run."""
    known = configs.read_config(run / "configs" / "train.yaml") | configs.read_config(evaluate)
    layer: dict[str, Any] = {"run_dir": str(run), "cases::test": list(names)}
    if part == "validation":
        layer |= {"cases::validation": [], "output_dir": scratch}
    without = {"rival": False, "feature_models": []}
    return {key: value for key, value in (layer | without).items() if "::" in key or key in known}


def _measure(metrics: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return the measure that validation's key metric names."""
    name = metric.removeprefix("val_")
    summary = metrics.get("summary") or {}
    if not isinstance(summary.get(name), dict) or summary[name].get("mean") is None:
        told = ", ".join(summary) or "none"
        raise TomokitError(f"the evaluation has no measure `{name}` to compare with {metric}; it has {told}")
    return {key: summary[name].get(key) for key in ("mean", "ci95", "n", "cases")}
