"""The best intensity threshold of each structure."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomokit.errors import TomokitError
from tomokit.rivals.cases import QUANTILES_PER_CASE, Volume, identify, load, normalise_intensity

Interval = tuple[float, float]
Pairs = Callable[[], Iterable[tuple[Volume, Volume]]]  # called once a pass: one case in memory at a time


class _Fit(NamedTuple):
    interval: Interval
    dice: float


def fit_thresholds(
    images: Sequence[Volume], labels: Sequence[Volume], label_count: int, bins: int = 200
) -> list[Interval]:
    """Return the best interval `(low, high)`, ends included, of each foreground label 1 … `label_count` - 1.

    The best interval has the highest mean Dice over the cases; its ends are sought among `bins` quantiles of
    the label's intensities. `images` and `labels` are volumes of any shape, pairwise alike; intensities are
    taken as they are, so pass `normalise_intensity(image)` where units are arbitrary. Only histograms are
    kept per case.

    Raises:
        TomokitError: when the counts or shapes of images and labels differ, or a label occurs in no case.
    """
    if len(images) != len(labels):
        raise TomokitError(f"each image needs one label map, got {len(images)} images and {len(labels)} label maps")
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        _check_shapes(f"case {number}", image, label)
    fits = _fit(lambda: zip(images, labels, strict=True), label_count, bins)
    return [fit.interval for fit in fits]


def apply_threshold(image: Volume, interval: Interval) -> NDArray[np.bool_]:
    """Return where `image` lies within the interval `(low, high)`, both ends included."""
    values = np.asarray(image, np.float64)  # the ends of a fitted interval are exact in this type alone
    return (values >= interval[0]) & (values <= interval[1])


def score_thresholds(
    training_entries: Sequence[Mapping[str, Any]],
    test_entries: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Return a row `{"case", "patient", "class", "dice"}` of the best threshold per test case and class.

    Intervals are fitted on the training cases alone, on stored and on normalised intensities; for each class
    the kind with the higher training Dice is used. Entries hold `case`, `image` and `label` (NIfTI files on
    one grid; of several modalities the first is used) and perhaps `patient`; `labels` is dataset.json's,
    `{"0": "background", "1": …}`. `dice` is in 0 … 1, or None where truth and prediction are both empty.

    Raises:
        TomokitError: when an image and its label differ in shape, or a label occurs in no training case.
    """
    names = {int(value): name for value, name in labels.items() if int(value) > 0}
    label_count = max(names, default=0) + 1
    stored = _fit(lambda: _load_pairs(training_entries), label_count, 200)
    normalised = _fit(lambda: _normalise_pairs(_load_pairs(training_entries)), label_count, 200)
    rows = []
    for entry, (image, label) in zip(test_entries, _load_pairs(test_entries), strict=True):
        alike = normalise_intensity(image)
        for value, name in names.items():
            raw, own = stored[value - 1], normalised[value - 1]
            if own.dice > raw.dice:
                found = apply_threshold(alike, own.interval)
            else:
                found = apply_threshold(image, raw.interval)
            rows.append(identify(entry) | {"class": name, "dice": _dice(found, label == value)})
    return rows


def _load_pairs(entries: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Volume, Volume]]:
    for entry in entries:
        image, label = load(entry["image"]), load(entry["label"])
        _check_shapes(entry["case"], image, label)
        yield image, label


def _normalise_pairs(pairs: Iterable[tuple[Volume, Volume]]) -> Iterator[tuple[Volume, Volume]]:
    for image, label in pairs:
        yield normalise_intensity(image), label


def _check_shapes(case: str, image: Volume, label: Volume) -> None:
    if image.shape != label.shape:
        raise TomokitError(f"{case}: image {image.shape} and label {label.shape} differ in shape; resample one of them")


def _dice(found: Volume, truth: Volume) -> float | None:
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else None


def _fit(pairs: Pairs, label_count: int, bins: int) -> list[_Fit]:
    """Return each foreground label's best interval and mean training Dice, in two passes over the cases."""
    edges = _label_edges(pairs, label_count, bins)
    dice_sums = [np.zeros((len(edge) - 1,) * 2) for edge in edges]
    dice_counts = [np.zeros((len(edge) - 1,) * 2) for edge in edges]
    for image, label in pairs():
        for value, edge in enumerate(edges, start=1):
            dice = _interval_dice(image, label == value, edge)
            dice_counts[value - 1] += ~np.isnan(dice)
            dice_sums[value - 1] += np.nan_to_num(dice)
    fits = []
    for edge, sums, counts in zip(edges, dice_sums, dice_counts, strict=True):
        mean = np.triu(sums / np.maximum(counts, 1))
        first, last = np.unravel_index(int(mean.argmax()), mean.shape)
        # A histogram's bins hold their lower edge and not their upper, except for the last bin, which holds both.
        high = edge[-1] if last == len(edge) - 2 else np.nextafter(edge[last + 1], -np.inf)
        fits.append(_Fit((float(edge[first]), float(high)), float(mean.max())))
    return fits


def _label_edges(pairs: Pairs, label_count: int, bins: int) -> list[NDArray[np.float64]]:
    """Return for each label the quantiles of its intensities, each case weighing the same."""
    samples: list[list[NDArray[np.float64]]] = [[] for _ in range(1, label_count)]
    for image, label in pairs():
        for value in range(1, label_count):
            inside = image[label == value]
            if inside.size:
                samples[value - 1].append(np.quantile(inside, np.linspace(0, 1, QUANTILES_PER_CASE)))
    absent = [str(value) for value in range(1, label_count) if not samples[value - 1]]
    if absent:
        raise TomokitError(f"label {', '.join(absent)} occurs in no training case; remove it from `labels`")
    edges = [np.unique(np.quantile(np.concatenate(each), np.linspace(0, 1, bins + 1))) for each in samples]
    return [edge if len(edge) > 1 else np.repeat(edge, 2) for edge in edges]


def _interval_dice(image: Volume, truth: Volume, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Dice (first bin, last bin) of every interval; NaN where truth and prediction are both empty."""
    image = np.asarray(image, np.float64)
    hits = np.concatenate([[0], np.cumsum(np.histogram(image[truth], edges)[0])])
    found = np.concatenate([[0], np.cumsum(np.histogram(image, edges)[0])])
    overlap = hits[None, 1:] - hits[:-1, None]
    total = found[None, 1:] - found[:-1, None] + int(truth.sum())
    return np.where(total > 0, 2 * overlap / np.maximum(total, 1), np.nan)
