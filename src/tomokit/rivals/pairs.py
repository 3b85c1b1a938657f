"""Rivals of a network that compares two scans, and a control that must not know the answer.

"otsu" segments, then subtracts: the tissues that Otsu's thresholds tell apart are counted in both scans, and models of
the counts' ratios answer. "resampling" is the control: it sees noise and smoothness alone, in what is left of a scan
without its anatomy. Where it does better than chance, the pairs were made so that their order or their change shows in
the resampling, and a network may have learned that.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from tomokit.errors import TomokitError
from tomokit.pairs import answer_columns, choose_change_threshold, pair_target, truth_columns
from tomokit.rivals.cases import Volume, identify, read_scan

TISSUES = 3
LEAST_EDGE = 8  # voxels of an axis along which grain is looked at
LIMIT = 4.0  # times the median: what is beyond is an edge, not grain
TINY = 1e-6
Entry = Mapping[str, Any]
Table = NDArray[np.float64]


class PairModels(NamedTuple):
    """Three linear models of a pair's differences: those of order and amount change sign when the scans are swapped."""

    order: Pipeline
    change: Pipeline
    amount: Pipeline


def count_tissues(image: Volume) -> NDArray[np.float64]:
    """Return the logarithms of the volumes (6,) of three tissues, in the whole image and in its middle half.

    Source: Otsu, IEEE Transactions on Systems, Man, and Cybernetics 9 (1979).
    """
    import SimpleITK as sitk

    tissue = sitk.GetArrayFromImage(
        sitk.OtsuMultipleThresholds(sitk.GetImageFromArray(image.astype(np.float32, order="C")), TISSUES - 1)
    )
    middle = tissue[tuple(slice(size // 4, size - size // 4) for size in tissue.shape)]
    counts = [np.bincount(part.ravel(), minlength=TISSUES)[:TISSUES] for part in (tissue, middle)]
    return np.log1p(np.concatenate(counts))


def describe_resampling(image: Volume) -> NDArray[np.float64]:
    """Return the noise (its logarithm) and the likeness of neighbours in it along each axis (4,).

    Both are measured on the second differences along all axes at once: an edge is smooth along some axis, so that it
    hardly shows there, while noise and the blur of an interpolation do. Neighbours in pure noise have -2/3.

    Source: Immerkær, Fast noise variance estimation, Computer Vision and Image Understanding 64 (1996).
    """
    grain = image.astype(np.float64)
    axes = [axis for axis, size in enumerate(image.shape) if size >= LEAST_EDGE]
    if not axes:
        raise TomokitError(f"grain needs {LEAST_EDGE} voxels along some axis, got an image of {image.shape}")
    for axis in axes:
        grain = np.diff(grain, 2, axis)
    noise = float(np.median(np.abs(grain)))
    held = np.clip(grain, -LIMIT * noise, LIMIT * noise)
    power = float((held**2).mean()) + TINY
    alike = [_neighbours(held, axis) / power if axis in axes else 0.0 for axis in range(3)]
    return np.array([np.log(noise + TINY), *alike])


MEASURES: Mapping[str, Callable[[Volume], NDArray[np.float64]]] = {
    "otsu": count_tissues,
    "resampling": describe_resampling,
}


def score_pairs(
    cases: Mapping[str, Sequence[Entry]], measure: str, rate: float = 0.05
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return a row per test pair, as `summarise_pairs` takes them, and what the validation pairs decided on.

    The models are fitted on the training pairs; the probability above which a pair is called changed is chosen on the
    unchanged validation pairs as the network's is, and 0.5 where there are none (then None is returned).

    Args:
        cases: `{"training": entries, "validation": …, "test": …}` with both scans' files as `image`.
        measure: one of `MEASURES`.
        rate: of unchanged pairs that may be called changed.

    Raises:
        TomokitError: when there is no such measure, the training pairs are all changed or all unchanged, or an image
            can't be read.
    """
    if measure not in MEASURES:
        raise TomokitError(f"a rival of pairs must be one of {', '.join(MEASURES)}, got {measure!r}")
    tables = {part: pair_table(entries, measure) for part, entries in cases.items()}
    models = fit_pairs(tables["training"], cases["training"])
    still = [entry["label"] == 0 for entry in cases["validation"]]
    decision = None
    if any(still):
        decision = choose_change_threshold(chances_of_change(models, tables["validation"][still]), rate)
    threshold = 0.5 if decision is None else decision["threshold"]
    return answer_pairs(models, tables["test"], cases["test"], threshold), decision


def pair_table(entries: Sequence[Entry], measure: str) -> Table:
    """Return what a measure gives of the second scan, less what it gives of the first: (pairs, features)."""
    describe = MEASURES[measure]
    rows = [np.diff([describe(read_scan(path).array) for path in entry["image"]], axis=0)[0] for entry in entries]
    return np.array(rows) if rows else np.zeros((0, 0))


def fit_pairs(table: Table, entries: Sequence[Entry]) -> PairModels:
    """Return linear models of order, change and amount, fitted on training pairs.

    Each pair is learned from in both orders, so that the models of order and amount have no side; that of change sees
    the sizes of the differences.

    Raises:
        TomokitError: when the pairs are all changed or all unchanged.
    """
    targets = np.array([pair_target(entry["label"], entry.get("change")) for entry in entries]).reshape(-1, 3)
    changed, known = targets[:, 1] == 1, ~np.isnan(targets[:, 2])
    if changed.all() or not changed.any():
        kind = "changed" if changed.any() else "unchanged"
        raise TomokitError(
            f"the rivals need changed and unchanged training pairs, got {len(entries)} {kind} ones; set `rival: false`"
        )
    odd = make_pipeline(StandardScaler(with_mean=False), LogisticRegression(fit_intercept=False))
    even = make_pipeline(StandardScaler(), LogisticRegression())
    line = make_pipeline(StandardScaler(with_mean=False), Ridge(fit_intercept=False))
    order, amount = targets[changed, 0], targets[known, 2]  # of unchanged pairs it is known: 0
    return PairModels(
        odd.fit(_both_ways(table[changed]), np.concatenate([order, 1 - order])),
        even.fit(np.abs(table), changed),
        line.fit(_both_ways(table[known]), np.concatenate([amount, -amount])),
    )


def chances_of_change(models: PairModels, table: Table) -> NDArray[np.float64]:
    """Return the probability that each pair changed (pairs,)."""
    chances: NDArray[np.float64] = models.change.predict_proba(np.abs(table))[:, 1]
    return chances


def answer_pairs(
    models: PairModels, table: Table, entries: Sequence[Entry], threshold: float = 0.5
) -> list[dict[str, Any]]:
    """Return a row per pair: case, patient, truth, and the models' answers."""
    changes, orders = chances_of_change(models, table), models.order.predict_proba(table)[:, 1]
    amounts = models.amount.predict(table)
    return [
        identify(entry) | truth_columns(entry) | answer_columns(change, change > threshold, order, amount)
        for entry, change, order, amount in zip(entries, changes, orders, amounts, strict=True)
    ]


def _both_ways(table: Table) -> Table:
    """Return the pairs (2·pairs, features) as they are, then with their scans swapped."""
    return np.concatenate([table, -table])


def _neighbours(grain: NDArray[np.float64], axis: int) -> float:
    """Return the mean product of neighbours along an axis."""
    ahead, behind = np.delete(grain, 0, axis), np.delete(grain, -1, axis)
    return float((ahead * behind).mean())
