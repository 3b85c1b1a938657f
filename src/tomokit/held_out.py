"""What a run's validation cases promise of new ones: label sets, intervals, and what is referred to a human.

Training keeps its answers on the validation cases in the run's folder, without names. They also chose the epoch and the
temperature, so that promises are a little too good: evaluation counts on the test cases how often they were kept.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tomokit.conformal import (
    area_under_risk,
    check_share,
    choose_referral,
    conformal_quantile,
    fit_label_sets,
    fit_volume_interval,
    label_sets,
    risk_coverage,
    volume_interval,
)
from tomokit.errors import TomokitError
from tomokit.files import read_json, write_json
from tomokit.metrics import mean_entry

FILE = "held_out.json"
NONE_FITS = "no class fits"
SEVERAL_FIT = "several classes fit"
UNCERTAIN = "too uncertain"
BETWEEN = "|"  # the classes of a set, in a table's cell
Rows = Sequence[Mapping[str, Any]]


class Promise(NamedTuple):
    """What holds for new cases like a run's validation cases.

    Attributes:
        task: "classes", "value" or "segmentation".
        cases: that it rests on.
        error_rate: the share of sets or intervals that may miss the truth, 0–1.
        risk: of classes, the share of answers that may be wrong, 0–1.
        least: of classes, the least probability that belongs to a set.
        answered: of classes, the least probability of the likeliest class that is answered; infinite where all is
            referred.
        reach: of a value, how far the truth may lie away, in its unit; of each structure, what `volume_interval` takes.
    """

    task: str
    cases: int
    error_rate: float
    risk: float
    least: float = 0.0
    answered: float = math.inf
    reach: Mapping[str, float] = {}  # never changed


def keep_classes(run_dir: str | Path, probabilities: np.ndarray, truth: np.ndarray) -> None:
    """Write the calibrated probabilities (cases, classes) of the validation cases and their classes, indices."""
    _write(run_dir, {"task": "classes", "probabilities": probabilities.tolist(), "truth": truth.astype(int).tolist()})


def keep_values(run_dir: str | Path, predicted: np.ndarray, truth: np.ndarray) -> None:
    """Write the predicted and true values (cases,) of the validation cases, in their unit."""
    _write(run_dir, {"task": "value", "predicted": predicted.tolist(), "truth": truth.tolist()})


def keep_volumes(run_dir: str | Path, volumes: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Write of each structure the predicted and the true volumes in ml, of each validation case one."""
    found = {name: {"predicted_ml": list(own[0]), "truth_ml": list(own[1])} for name, own in volumes.items()}
    _write(run_dir, {"task": "segmentation", "volumes": found})


def _write(run_dir: str | Path, content: dict[str, Any]) -> None:
    """Write a run's file."""
    write_json(Path(run_dir) / FILE, content)


def read_promise(folder: str | Path, error_rate: float, risk: float) -> Promise | None:
    """Return what a run's file promises; None where there is none, as for a run without validation cases.

    Raises:
        TomokitError: when the file is malformed, or a share does not lie between 0 and 1.
    """
    check_share(error_rate, "error_rate")
    check_share(risk, "risk")
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        return _FITS[content["task"]](content, error_rate, risk)
    except (KeyError, TypeError, ValueError, TomokitError) as error:
        raise TomokitError(f"{path} is malformed ({json.dumps(content)[:80]}); delete it to promise nothing") from error


def _fit_classes(content: Mapping[str, Any], error_rate: float, risk: float) -> Promise:
    """Return what the answers on validation cases promise of classes."""
    chances, truth = np.array(content["probabilities"], dtype=float), np.array(content["truth"])
    wrong = chances.argmax(axis=1) != truth
    least = fit_label_sets(chances, truth, error_rate)
    answered = choose_referral(chances.max(axis=1), wrong, risk)
    return Promise("classes", len(truth), error_rate, risk, least, answered)


def _fit_value(content: Mapping[str, Any], error_rate: float, risk: float) -> Promise:
    """Return how far true values may lie from predicted ones."""
    errors = np.abs(np.array(content["predicted"], dtype=float) - np.array(content["truth"], dtype=float))
    reach = {"": conformal_quantile(errors, error_rate)}
    return Promise("value", len(errors), error_rate, risk, reach=reach)


def _fit_volumes(content: Mapping[str, Any], error_rate: float, risk: float) -> Promise:
    """Return how far each structure's true volume may lie from its predicted one."""
    reach = {
        name: fit_volume_interval(own["predicted_ml"], own["truth_ml"], error_rate)
        for name, own in content["volumes"].items()
    }
    cases = max(len(own["truth_ml"]) for own in content["volumes"].values())
    return Promise("segmentation", cases, error_rate, risk, reach=reach)


_FITS = {"classes": _fit_classes, "value": _fit_value, "segmentation": _fit_volumes}


def promise_classes(promise: Promise, probabilities: Mapping[str, float]) -> dict[str, str]:
    """Return the classes that a case may have, "a|b", and why it is referred to a human: `{"set", "refer"}`.

    `probabilities` are of each class by its name. "refer" is empty where the likeliest class may be answered.
    """
    held = label_sets(np.array([list(probabilities.values())]), promise.least)[0]
    names = [name for name, own in zip(probabilities, held, strict=True) if own]
    reason = NONE_FITS if not names else SEVERAL_FIT if len(names) > 1 else ""
    if not reason and max(probabilities.values()) < promise.answered:
        reason = UNCERTAIN
    return {"set": BETWEEN.join(names), "refer": reason}


def promise_interval(promise: Promise, predicted: float, structure: str = "") -> tuple[float, float]:
    """Return the lowest and highest true value, or of a structure the volume in ml, for a predicted one.

    Infinite where the validation cases were too few to promise anything.

    Raises:
        TomokitError: when the run promises nothing of that structure.
    """
    if structure not in promise.reach:
        raise TomokitError(f"the run promises nothing of {structure!r}, only of {', '.join(promise.reach)}")
    reach = promise.reach[structure]
    if promise.task == "segmentation":
        return volume_interval(predicted, reach)
    return predicted - reach, predicted + reach


def score_classes(promise: Promise, rows: Rows, names: Sequence[str]) -> dict[str, Any]:
    """Return how a promise on classes was kept over a test set.

    Rows carry "patient", "truth", a "p_<class>" each, and what `promise_classes` says. The scores, as elsewhere
    `{"mean", "ci95", "n", "cases"}`: "covered" (the set holds the truth), "set_size", "answered" (the share that is
    not referred) and "wrong_answers" (the share of answers that is wrong). "curve" has the risk at each coverage, and
    "area_under_risk" its mean.
    """
    patients = [str(row["patient"]) for row in rows]
    sets = [row["set"].split(BETWEEN) if row["set"] else [] for row in rows]
    chances = np.array([[float(row[f"p_{name}"]) for name in names] for row in rows])
    wrong = np.array([names[place] != row["truth"] for place, row in zip(chances.argmax(axis=1), rows, strict=True)])
    kept = [place for place, row in enumerate(rows) if not row["refer"]]
    curve = risk_coverage(chances.max(axis=1), wrong)
    return _told(promise) | {
        "risk": promise.risk,
        "covered": mean_entry([row["truth"] in own for row, own in zip(rows, sets, strict=True)], patients),
        "set_size": mean_entry([len(own) for own in sets], patients),
        "answered": mean_entry([not row["refer"] for row in rows], patients),
        "wrong_answers": mean_entry([wrong[place] for place in kept], [patients[place] for place in kept]),
        "curve": {"coverage": curve.coverage.tolist(), "risk": curve.risk.tolist()},
        "area_under_risk": area_under_risk(curve),
    }


def score_intervals(promise: Promise, rows: Rows, truth: str, unit: str = "") -> dict[str, Any]:
    """Return how a promise on a value or on volumes was kept over a test set.

    Rows carry "patient", the true value under `truth`, "low<unit>" and "high<unit>", and of structures "class". The
    scores are "covered" and the interval's mean "width<unit>", of segmentation for each structure.
    """
    groups = {
        row.get("class", ""): [own for own in rows if own.get("class", "") == row.get("class", "")] for row in rows
    }
    scores = {}
    for name, own in groups.items():
        patients = [str(row["patient"]) for row in own]
        ends = [(float(row[f"low{unit}"]), float(row[f"high{unit}"])) for row in own]
        inside = [low <= float(row[truth]) <= high for (low, high), row in zip(ends, own, strict=True)]
        widths = [high - low for low, high in ends]
        found = {"covered": mean_entry(inside, patients)}
        if all(map(math.isfinite, widths)):
            found[f"width{unit}"] = mean_entry(widths, patients)
        scores[name] = found
    return _told(promise) | (scores[""] if promise.task == "value" else {"per_class": scores})


def _told(promise: Promise) -> dict[str, Any]:
    """Return what a promise's scores begin with."""
    return {"error_rate": promise.error_rate, "calibration_cases": promise.cases}
