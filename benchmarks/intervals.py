"""How often intervals and sets hold the truth that they promise to hold, in simulated studies whose truth is known.

Command: make bench NAME=intervals [ONLY="dice auc"] [FULL=1]

Plain and FULL=1 alike: 2,000 studies of each kind and size, each summarised by the function that evaluation uses.
"""

import argparse
import math
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import scipy.special
import scipy.stats
from blocks import fill_blocks, markdown_table
from records import load_rows, save_rows
from rich.console import Console
from rich.markdown import Markdown

from tomokit.conformal import fit_label_sets, fit_volume_interval, label_sets, volume_interval
from tomokit.metrics import area_under_curve
from tomokit.statistics import bootstrap_mean, bootstrap_statistic, delong

NAME = "intervals"
STUDIES = 2000
DICE = scipy.stats.beta(17.6, 2.4)  # mean .88, deviation .07, a long tail to bad cases: like a test set's Dice
APART = 1.19  # deviations between the scores of two classes: an AUC of .80
WEAKER = 0.74  # of another classifier on the same cases: .70
ALIKE = 0.5  # the correlation of both classifiers' scores
ERROR_RATE = 0.1
NEW = 200  # cases that a set is tried on, in each study
Generator = np.random.Generator


class Study(NamedTuple):
    """A kind of simulated study.

    Attributes:
        told: what it is.
        promised: the share of studies, or cases, that should hold the truth.
        sizes: patients in a study.
        goal: how far the share may lie from what is promised, from 100 patients on.
        hold: draws a study of so many patients, and tells whether, or in what share of new cases, the truth is held.
    """

    told: str
    promised: float
    sizes: tuple[int, ...]
    goal: float
    hold: Callable[[int, Generator], float]


def hold_dice(count: int, generator: Generator) -> float:
    """Return whether the interval of a mean Dice holds the mean that the cases are drawn from."""
    found = bootstrap_mean(DICE.rvs(count, random_state=generator), range(count))
    return float(found.low <= DICE.mean() <= found.high)


def hold_paired_scans(count: int, generator: Generator) -> float:
    """Return the same of patients with one to three scans each, alike within a patient."""
    scans = generator.integers(1, 4, count)
    patients = np.repeat(np.arange(count), scans)
    values = generator.normal(0, 0.05, count)[patients] + generator.normal(0, 0.03, len(patients))
    found = bootstrap_mean(values, patients.tolist())
    return float(found.low <= 0 <= found.high)


def draw_scores(count: int, generator: Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the truth (cases,) of a study, a third of them positive, and the scores of two classifiers."""
    truth = np.arange(count) < count // 3
    noise = generator.multivariate_normal([0, 0], [[1, ALIKE], [ALIKE, 1]], count)
    return truth, noise[:, 0] + APART * truth, noise[:, 1] + WEAKER * truth


def hold_auc(count: int, generator: Generator) -> float:
    """Return whether the bootstrap's interval of an AUC holds that of the distributions."""
    truth, scores, _ = draw_scores(count, generator)
    found = bootstrap_statistic(area_under_curve, [truth, scores], range(count))
    return float(found.low <= auc_of(APART) <= found.high)


def hold_difference(count: int, generator: Generator) -> float:
    """Return whether DeLong's interval of a difference of AUCs holds the true one."""
    found = delong(*draw_scores(count, generator))
    return float(found.low <= auc_of(APART) - auc_of(WEAKER) <= found.high)


def auc_of(apart: float) -> float:
    """Return the AUC of two normal distributions of deviation 1 so far apart."""
    return float(scipy.stats.norm.cdf(apart / math.sqrt(2)))


def hold_sets(count: int, generator: Generator) -> float:
    """Return the share of new cases whose label set holds their class; the probabilities are too certain by half."""
    logits = generator.normal(0, 2, (count + NEW, 3))
    truth = (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)
    chances = scipy.special.softmax(1.5 * logits, axis=1)
    least = fit_label_sets(chances[:count], truth[:count], ERROR_RATE)
    return float(label_sets(chances[count:], least)[np.arange(NEW), truth[count:]].mean())


def hold_volumes(count: int, generator: Generator) -> float:
    """Return the share of new cases whose volume in ml lies in its interval; errors have a long tail and a bias."""
    truth = np.exp(generator.normal(1, 1, count + NEW))
    predicted = np.clip(truth + (0.1 * generator.standard_t(4, count + NEW) - 0.05) * truth ** (2 / 3), 0, None)
    reach = fit_volume_interval(predicted[:count], truth[:count], ERROR_RATE)
    ends = [volume_interval(volume, reach) for volume in predicted[count:]]
    return float(np.mean([low <= true <= high for (low, high), true in zip(ends, truth[count:], strict=True)]))


STUDY = {
    "dice": Study("mean Dice, bootstrap by patient", 0.95, (20, 50, 100, 300), 0.015, hold_dice),
    "scans": Study(
        "mean of several scans a patient, bootstrap by patient", 0.95, (20, 50, 100, 300), 0.015, hold_paired_scans
    ),
    "auc": Study("AUC, bootstrap by patient", 0.95, (50, 100, 300), 0.015, hold_auc),
    "difference": Study("difference of two AUCs, DeLong", 0.95, (50, 100, 300), 0.015, hold_difference),
    "sets": Study("conformal label sets", 1 - ERROR_RATE, (50, 100, 300), 0.02, hold_sets),
    "volumes": Study("conformal intervals of volumes", 1 - ERROR_RATE, (50, 100, 300), 0.02, hold_volumes),
}


def hold(name: str, count: int, number: int) -> float:
    """Return what one study of a kind holds, by its number."""
    return STUDY[name].hold(count, np.random.default_rng([number, count]))


def measure(name: str, pool: ProcessPoolExecutor) -> list[dict[str, Any]]:
    """Return the rows of a kind of study, one for each size."""
    rows = []
    for count in STUDY[name].sizes:
        found = np.array(list(pool.map(partial(hold, name, count), range(STUDIES), chunksize=20)))
        reach = 1.96 * float(found.std(ddof=1)) / math.sqrt(STUDIES)
        mean = float(found.mean())
        row = {"system": name, "dataset": f"{count} patients", "metric": "coverage", "value": mean}
        rows.append(row | {"ci95": [mean - reach, mean + reach], "n": STUDIES, "patients": count})
        print(f"{name}, {count} patients: {mean:.4f}", flush=True)
    return rows


def table(_words: Any) -> str:
    """Return the table of all kinds, a column per size."""
    rows = {(row["system"], row["patients"]): row for row in load_rows(NAME)}
    sizes = sorted({patients for _, patients in rows})
    lines = []
    for name, study in STUDY.items():
        if not any(system == name for system, _ in rows):
            continue
        shares = [f"{rows[name, size]['value']:.1%}" if (name, size) in rows else "–" for size in sizes]
        far = [
            abs(rows[name, size]["value"] - study.promised) for size in sizes if size >= 100 and (name, size) in rows
        ]
        met = "met" if max(far) <= study.goal else "missed"
        lines.append([study.told, f"{study.promised:.0%} ± {study.goal:.1%}", *shares, met])
    return markdown_table(["", "promised", *(f"n = {size}" for size in sizes), "from 100 on"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(STUDY))
    parser.add_argument("--full", action="store_true", help="as without")
    options = parser.parse_args()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name in options.only or list(STUDY):
            kept = [row for row in load_rows(NAME) if row["system"] != name]
            save_rows(NAME, f"make bench NAME={NAME}", kept, measure(name, pool))
    fill_blocks(NAME, table)
    Console().print(Markdown(table(())))


if __name__ == "__main__":
    main()
