"""Images with clinical records, both of which tell the outcome in part: a known model, and the best one can do.

The model of a patient, with `u` and `w` normal, of mean 0 and deviation 1 (`u` clipped at ±2.5):

- the image shows `u`: the lesion's radius is 0.27 exp(0.16 u) of half the field of view;
- nobody sees `w`, the severity. A field of the record has `z = loading · w + sqrt(1 - loading²) · e`, with `e` normal
  and its own for each field. A number is `middle + spread · z`, or the exponential of it; a category is told by the
  cuts that `z` passes. A field of loading 0 says nothing;
- the outcome is 1 with probability 1 / (1 + exp(-(1.765 u + 1.973 w)));
- each field is missing with the same probability, whatever its value (completely at random).

So the probability of the outcome, given `u` and what the record holds, is an integral over `w` alone, and its AUC is
the best that any model can reach on average: about .87 with complete records, .85 with half the fields missing, and
.75 from the image or a complete record alone.
"""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr

from tomokit.errors import TomokitError, raise_problems
from tomokit.phantoms.lesions import move, paint_lesion, paint_organ
from tomokit.phantoms.scanner import NOMINAL_SPACING_MM, describe, draw_contrast, draw_grid, place_patient, scan
from tomokit.phantoms.sets import Phantom, check_case, check_modality, check_set, save_image, write_set
from tomokit.phantoms.shapes import Canvas, Generator

OUTCOME_LABELS = {"0": "well", "1": "ill"}
IMAGE_WEIGHT, RECORD_WEIGHT = 1.765, 1.973  # log-odds for a deviation of the image's factor, and of the severity
FACTOR_LIMIT = 2.5  # of an image's factor
RADIUS, RADIUS_GROWTH = 0.27, 0.16
# Places of a hidden normal variable, and their weights: integrals over it are sums, exact to about 1e-9.
HIDDEN = np.linspace(-6.0, 6.0, 481)
NORMAL = np.exp(-(HIDDEN**2) / 2) / np.exp(-(HIDDEN**2) / 2).sum()

Record = dict[str, float | str | None]


class Field(NamedTuple):
    """One field of a record: how much of the severity it shows, and how it is written.

    Attributes:
        loading: its correlation with the severity.
        middle: of a number, or of its logarithm, with `spread`.
        logarithmic: whether the number is an exponential.
        categories: of a field that is no number, one more than the `cuts` between them.
    """

    loading: float
    middle: float = 0.0
    spread: float = 1.0
    logarithmic: bool = False
    categories: tuple[str, ...] = ()
    cuts: tuple[float, ...] = ()


FIELDS = {
    "age": Field(0.55, 60.0, 9.0),  # years
    "crp": Field(0.75, math.log(12.0), 0.8, logarithmic=True),  # mg/l
    "ldh": Field(0.7, math.log(220.0), 0.3, logarithmic=True),  # U/l
    "haemoglobin": Field(-0.6, 13.2, 1.4),  # g/dl
    "smoking": Field(0.6, categories=("never", "former", "current"), cuts=(-0.2, 0.7)),
    "sex": Field(0.0, categories=("female", "male"), cuts=(0.0,)),
}


class Patient(NamedTuple):
    """A patient of the model: `image_factor` (u), `severity` (w), `record` (None where missing), `outcome` (0 or 1)."""

    image_factor: float
    severity: float
    record: Record
    outcome: int


def make_record_set(
    directory: str | Path,
    modality: str = "CT",
    *,
    cases: int = 1000,
    test_cases: int = 200,
    size: int = 32,
    seed: int = 0,
    missing: float = 0.2,
    progress: bool = True,
) -> None:
    """Write organs whose lesion, beside a clinical record, tells the outcome (0 or 1) in part, into `directory`.

    An entry's `label` is the outcome, `clinical` the record with None for each field that is missing, and
    `image_factor` what the image shows, for `best_probability`. Images and complete records of a seed are the same
    whatever the share `missing`.

    Raises:
        TomokitError: when an argument is impossible, or `directory` holds a data set already.
    """
    check_modality(modality)
    check_set(cases, test_cases, size, seed)
    _check_share(missing)

    def write(index: int, part: str) -> dict[str, Any]:
        case = make_record_case(modality, size, seed, index, missing)
        entry = {"image": save_image(directory, part, index, case), "label": case.truth["class"]}
        entry |= {"patient": f"patient_{index:03d}", "clinical": case.truth["clinical"]}
        return entry | {"image_factor": case.truth["image_factor"]}

    header = {
        "name": f"phantom-{modality.lower()}-records",
        "description": "Synthetic organs with a lesion and a clinical record, both of which tell the outcome in part",
        "modality": {"0": modality},
        "labels": OUTCOME_LABELS,
    }
    write_set(Path(directory), header, write, (cases, test_cases, seed), progress)


def make_record_case(
    modality: str = "CT", size: int = 32, seed: int = 0, index: int = 0, missing: float = 0.2
) -> Phantom:
    """Return case `index` in memory, image and label (size, size, size), units as in `make_segmentation_case`.

    The label is 1 in the lesion. `truth` has also `class` (the outcome), `image_factor`, `severity` and `clinical`.

    Raises:
        TomokitError: when `modality` is unknown, `size` is below 16, `seed` or `index` is negative, or `missing` is no
            share.
    """
    check_modality(modality)
    check_case(size, seed, index)
    patient = draw_patient(seed, index, missing)
    rng, scanner = np.random.default_rng([seed, index]).spawn(2)
    contrast_name, contrast = draw_contrast(scanner, modality)
    grid = draw_grid(rng, size)
    points, to_world = place_patient(rng, grid, size)
    canvas = Canvas(points, 1.1 * float(grid.spacing.mean()), contrast, "muscle", size * NOMINAL_SPACING_MM / 2)
    paint_organ(rng, canvas)
    aspect = np.array([1, 1, rng.uniform(1.0, 1.6)])
    radius = RADIUS * math.exp(RADIUS_GROWTH * patient.image_factor)
    lesion = paint_lesion(rng, canvas, radius * aspect / np.prod(aspect) ** (1 / 3))
    image, stored_as = scan(scanner, canvas.image, modality, grid)
    truth = describe(grid, modality, contrast_name, stored_as)
    truth |= {"class": patient.outcome, "image_factor": patient.image_factor, "severity": patient.severity}
    truth |= {"clinical": patient.record, "volumes_ml": {"lesion": lesion["volume_ml"]}}
    return Phantom(image, canvas.label, grid.affine, truth | {"lesions": [move(lesion, to_world)]})


def draw_patient(seed: int, index: int, missing: float = 0.0) -> Patient:
    """Return patient `index` of the model above, without an image; `missing` is the share of the fields to leave out.

    Raises:
        TomokitError: when `seed` or `index` is negative, or `missing` is no share.
    """
    check_case(32, seed, index)
    _check_share(missing)
    rng, gaps = np.random.default_rng([seed, index, 2]).spawn(2)
    factor = draw_factor(rng)
    severity = float(rng.normal())
    complete = {name: _write_field(field, severity, rng) for name, field in FIELDS.items()}
    outcome = int(rng.random() < expit(IMAGE_WEIGHT * factor + RECORD_WEIGHT * severity))
    record: Record = {name: None if gaps.random() < missing else value for name, value in complete.items()}
    return Patient(factor, severity, record, outcome)


def best_probability(image_factor: float | None, record: Mapping[str, float | str | None]) -> float:
    """Return the probability of outcome 1 given all that is known: no model can know more.

    Args:
        image_factor: what the image shows, an entry's `image_factor`; None for a model that sees the record alone.
        record: an entry's `clinical`, with None for what is missing; {} for a model that sees the image alone.

    Raises:
        TomokitError: when the record has a field or a category that the model has not.
    """
    _check_record(record)
    likelihood = np.zeros_like(HIDDEN)
    for name, value in record.items():
        if value is not None:
            likelihood += _log_likelihood(FIELDS[name], value)
    severity = NORMAL * np.exp(likelihood - likelihood.max())
    outcome = expit(IMAGE_WEIGHT * image_factor + RECORD_WEIGHT * HIDDEN) if image_factor is not None else _any_image()
    return float(outcome @ severity / severity.sum())


def draw_factor(rng: Generator) -> float:
    """Return what an image shows: normal, clipped at ±2.5, so that every lesion fits."""
    return float(np.clip(rng.normal(), -FACTOR_LIMIT, FACTOR_LIMIT))


def spread_factor(factor: float | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the values that an image's factor can have and their weights: one value where it is known."""
    if factor is None:
        return np.clip(HIDDEN, -FACTOR_LIMIT, FACTOR_LIMIT), NORMAL
    return np.array([factor]), np.ones(1)


@functools.cache
def _any_image() -> NDArray[np.float64]:
    """Return the probability of outcome 1 for each hidden severity, whatever the image shows."""
    factors, weights = spread_factor(None)
    return weights @ expit(IMAGE_WEIGHT * factors[:, None] + RECORD_WEIGHT * HIDDEN)


def _write_field(field: Field, severity: float, rng: Generator) -> float | str:
    """Return a field's value as it stands in the record."""
    z = field.loading * severity + math.sqrt(1 - field.loading**2) * float(rng.normal())
    if field.categories:
        return field.categories[int(np.searchsorted(field.cuts, z))]
    number = field.middle + field.spread * z
    return round(math.exp(number) if field.logarithmic else number, 2)


def _log_likelihood(field: Field, value: float | str) -> NDArray[np.float64]:
    """Return the logarithm of the likelihood of each hidden severity, but for a constant."""
    spread = math.sqrt(1 - field.loading**2)
    if field.categories:
        place = field.categories.index(str(value))
        cuts = np.array([-np.inf, *field.cuts, np.inf])
        low, high = ((cuts[place + side] - field.loading * HIDDEN) / spread for side in (0, 1))
        return np.log(np.maximum(ndtr(high) - ndtr(low), 1e-300))
    number = math.log(max(float(value), 1e-6)) if field.logarithmic else float(value)
    return -(((number - field.middle) / field.spread - field.loading * HIDDEN) ** 2) / (2 * spread**2)


def _check_share(missing: float) -> None:
    if not 0 <= missing <= 1:
        raise TomokitError(f"missing must be a share of the fields from 0 to 1, got {missing}")


def _check_record(record: Mapping[str, float | str | None]) -> None:
    """Raise when the model does not know a field, or a category of it."""
    problems = [f"unknown field {name!r}" for name in record if name not in FIELDS]
    for name, value in record.items():
        known = FIELDS[name].categories if name in FIELDS else ()
        if known and value is not None and value not in known:
            problems.append(f"{name} is {value!r}; the categories are {', '.join(known)}")
    raise_problems(f"this record is not of the phantoms' model, whose fields are {', '.join(FIELDS)}", problems)
