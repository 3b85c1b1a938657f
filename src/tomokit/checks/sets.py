"""What only shows beside the other cases: domains, missing classes, stray pieces, labels that don't fit, records."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tomokit.checks.cases import Case
from tomokit.checks.findings import Finding
from tomokit.checks.fit import Fit
from tomokit.datasets import MISSING
from tomokit.labels import lateral_names

FEWEST_CASES = 5  # below, nothing is said of what is usual in a set
USUAL_SHARE = 0.9
SMALLEST_GAP = 0.5  # decades between two intensity domains; more in small sets
ISLAND_VOXELS, ISLAND_SHARE, ISLAND_LARGEST_SHARE = 8, 0.01, 0.1
MIRRORED_BETTER = 0.15  # more information; of sound cases, hippocampi reach −0.36, phantoms of 32³ voxels −0.03
MOVED_BETTER, MOVED_CLEARLY_BETTER = 0.02, 0.25
ENOUGH_VOXELS = 32**3  # in smaller volumes chance reaches further: phantoms of 24³ voxels +0.19
FAR, VERY_FAR = 3.0, 5.0  # robust standard deviations
SMALLEST_SPREAD = 0.05  # of the logarithm of the information
UNIT_DECADES = 0.8  # a factor of ten, less what values vary
LARGEST_UNIT_SPREAD = 0.15  # decades; where values vary more, a power of ten tells nothing
EMPTY_TEXTS = MISSING | {"none"}


def compare_cases(cases: Sequence[Case], labels: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is wrong with cases in comparison with the others; cases with errors are neither judged nor used.

    Args:
        cases: all cases of the set.
        labels: its label map, value to name.
    """
    sound = [case for case in cases if case.is_sound]
    yield from _missing_labels(cases)
    yield from _intensity_domains(sound)
    yield from _missing_classes(sound, labels)
    yield from _islands(sound, labels)
    swapped: dict[str | None, Finding] = {}
    for finding in _swaps(sound, labels):
        swapped.setdefault(finding.case, finding)
    yield from swapped.values()
    yield from (finding for finding in _misfits(sound) if finding.case not in swapped)
    yield from _lateral_labels(labels)
    yield from compare_records({case.name: case.entry.get("clinical") or {} for case in cases})


def _missing_labels(cases: Sequence[Case]) -> Iterator[Finding]:
    """Yield the training cases without a label in a set that has labels."""
    training = [case for case in cases if case.entry.get("section") == "training"]
    if any("label" in case.entry for case in training):
        for case in training:
            if "label" not in case.entry:
                yield Finding(case.name, "orphan", "an image in `training` without a label")


def _intensity_domains(cases: Sequence[Case]) -> Iterator[Finding]:
    """Yield the cases whose range of intensities is a gap of orders of magnitude away from most."""
    for number in range(max((len(case.channels) for case in cases), default=0)):
        having = [
            (case, channel)
            for case in cases
            if len(case.channels) > number and (channel := case.channels[number]) is not None
        ]
        if not having:
            continue
        ranges = [channel.high - channel.low for _, channel in having]
        # where nearly all voxels are background, the percentiles say nothing; the extremes do
        whole = [channel.maximum - channel.minimum for _, channel in having]
        decades = np.log10([a if a > 0 else b for a, b in zip(ranges, whole, strict=True)])
        domain = _domains(decades)
        usual = Counter(domain).most_common(1)[0][0]
        middle = 10 ** float(np.median(decades[np.array(domain) == usual]))
        for (case, channel), own, value in zip(having, domain, decades, strict=True):
            if own != usual:
                yield Finding(
                    case.name,
                    "intensity_domains",
                    f"image {number} has a range of {10**value:.3g} (1st to 99th percentile, "
                    f"{channel.dtype}); in {Counter(domain)[usual]} of {len(having)} cases it is about {middle:.3g}",
                )


def _domains(decades: np.ndarray) -> list[int]:
    """Return the number of each value's domain: values in order, parted where a gap is wide."""
    order = np.argsort(decades, kind="stable")
    widest = max(SMALLEST_GAP, 3 / math.sqrt(max(1, decades.size)))
    numbers = np.zeros(decades.size, dtype=int)
    numbers[order[1:]] = np.cumsum(np.diff(decades[order]) > widest)
    return [int(number) for number in numbers]


def _missing_classes(cases: Sequence[Case], labels: Mapping[str, str]) -> Iterator[Finding]:
    """Yield a class that no case has, and each case that lacks a class which the others have."""
    drawn = [case for case in cases if case.regions]
    classes = [case.entry["label"] for case in cases if isinstance(case.entry.get("label"), int)]
    multiple = [case.entry["label"] for case in cases if isinstance(case.entry.get("label"), list)]
    for text, name in labels.items():
        value = int(text)
        if (classes and value not in classes) or (
            multiple and not any(flags[place] for flags in multiple for place in [value] if place < len(flags))
        ):
            yield Finding(None, "class_missing", f"no case is of class {value} ({name})")
        if not drawn or value == 0:
            continue
        having = [case for case in drawn if value in (case.regions or {})]
        lacking = [case for case in drawn if case not in having]
        if not having:
            yield Finding(None, "class_missing", f"no label has {value} ({name})")
        elif len(drawn) >= FEWEST_CASES and len(lacking) <= max(1, (1 - USUAL_SHARE) * len(drawn)):
            for case in lacking:
                yield Finding(
                    case.name, "class_missing", f"no {name} ({value}), which {len(having)} of {len(drawn)} cases have"
                )


def _islands(cases: Sequence[Case], labels: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the cases with tiny second pieces of a structure that is one piece in most cases."""
    for text, name in labels.items():
        having = [(case, case.regions[int(text)]) for case in cases if case.regions and int(text) in case.regions]
        single = sum(len(region.pieces) == 1 for _, region in having)
        if len(having) < FEWEST_CASES or single < 0.8 * (len(having) - 1):
            continue
        for case, region in having:
            limit = min(max(ISLAND_VOXELS, ISLAND_SHARE * region.voxels), ISLAND_LARGEST_SHARE * region.pieces[0])
            small = [size for size in region.pieces[1:] if size <= limit]
            if small:
                yield Finding(
                    case.name,
                    "label_islands",
                    f"{name} has loose pieces of {', '.join(map(str, small[:5]))} voxels beside "
                    f"{region.pieces[0]}; it is one piece in {single} of {len(having)} cases",
                )


def _swaps(cases: Sequence[Case], labels: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the cases whose label fits better mirrored left to right, or whose structures lie the wrong way round."""
    for case in cases:
        if case.fit is None:
            continue
        times = case.fit.mirrored[0]
        if times > _limit(case.fit, MIRRORED_BETTER) and times == max(*case.fit.mirrored, case.fit.moved):
            evidence = f"mirrored left to right, the label tells {times:.2f} times as much of the image's intensities"
            yield Finding(case.name, "left_right_swap", evidence)
    values = sorted({value for case in cases for value in case.regions or {}})
    for position, first in enumerate(values):
        for second in values[position + 1 :]:
            yield from _reversed_order(cases, (first, second), labels)


def _limit(fit: Fit, better: float) -> float:
    """Return how many times the information must be, for it to be `better` by more than chance."""
    return 1 + better * max(1.0, ENOUGH_VOXELS / fit.voxels)


def _reversed_order(cases: Sequence[Case], pair: tuple[int, int], labels: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the cases in which two structures lie in the other left–right order than in all the others."""
    offsets = {
        case: case.regions[pair[0]].centre_mm[0] - case.regions[pair[1]].centre_mm[0]
        for case in cases
        if case.regions and pair[0] in case.regions and pair[1] in case.regions
    }
    if len(offsets) < FEWEST_CASES:
        return
    middle = float(np.median(list(offsets.values())))
    wrong = [case for case, offset in offsets.items() if offset * np.sign(middle) < -0.5 * abs(middle)]
    usual = [offset * np.sign(middle) for case, offset in offsets.items() if case not in wrong]
    if not wrong or len(wrong) > max(1, (1 - USUAL_SHARE) * len(offsets)) or min(usual) < 0.5 * abs(middle):
        return
    first, second = (labels.get(str(value), str(value)) for value in pair)
    side = "right" if middle > 0 else "left"
    for case in wrong:
        yield Finding(
            case.name,
            "left_right_swap",
            f"{first} lies {abs(offsets[case]):.0f} mm to the other side of {second}; in {len(usual)} cases it lies to "
            f"its {side}",
        )


def _misfits(cases: Sequence[Case]) -> Iterator[Finding]:
    """Yield the cases whose label and image don't belong together, by two of three signs or one that is clear."""
    having = [(case, case.fit) for case in cases if case.fit is not None]
    if not having:
        return
    informations = np.log([fit.information for _, fit in having])
    many = len(having) >= FEWEST_CASES
    deviations = _deviations(informations, SMALLEST_SPREAD) if many else np.zeros(len(having))
    ranks = _rank_deviations([fit.class_ranks for _, fit in having]) if many else np.zeros(len(having))
    usual = math.exp(float(np.median(informations)))
    for (case, fit), low, rank in zip(having, deviations, ranks, strict=True):
        mirrored = max(fit.mirrored)
        small = fit.voxels < ENOUGH_VOXELS
        moves = fit.moved > _limit(fit, MIRRORED_BETTER if small else MOVED_BETTER)
        turns = mirrored > _limit(fit, MIRRORED_BETTER)
        signs = sum(map(bool, (low < -FAR, moves, rank > VERY_FAR)))
        clear = low < -2 * FAR or fit.moved > _limit(fit, MOVED_CLEARLY_BETTER) or turns
        if signs < (3 if small else 2) and not clear:
            continue
        evidence = [f"the label explains {fit.information:.1%} of what it could of the intensities"]
        evidence += [f"usual is {usual:.1%}"] if many else []
        if moves:
            evidence.append(f"{fit.moved:.2f} times as much when moved by {fit.shift} voxels")
        if turns:
            evidence.append(f"{mirrored:.2f} times as much when mirrored along {'xyz'[fit.mirrored.index(mirrored)]}")
        yield Finding(case.name, "label_does_not_fit", "; ".join(evidence))


def _deviations(values: np.ndarray, smallest: float) -> np.ndarray:
    """Return how far values lie from their median, in robust standard deviations of at least `smallest`."""
    middle = np.nanmedian(values)
    spread = max(1.4826 * float(np.nanmedian(np.abs(values - middle))), smallest)
    return (values - middle) / spread


def _rank_deviations(class_ranks: Sequence[Mapping[int, tuple[float, float]]]) -> np.ndarray:
    """Return for each case the largest deviation of a class's mean or spread of intensity ranks from the set's."""
    worst = np.zeros(len(class_ranks))
    for value in {value for ranks in class_ranks for value in ranks}:
        for position in (0, 1):
            values = np.array([ranks[value][position] if value in ranks else np.nan for ranks in class_ranks])
            if np.isfinite(values).sum() >= FEWEST_CASES:
                worst = np.fmax(worst, np.abs(_deviations(values, 0.01)))
    return worst


def _lateral_labels(labels: Mapping[str, str]) -> Iterator[Finding]:
    """Yield one finding when the names of labels tell left from right."""
    names = lateral_names(labels)
    if names:
        yield Finding(None, "lateral_labels", f"labels of one side: {', '.join(names[:10])}")


# Clinical records


def compare_records(records: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Yield clinical fields that are empty, infinite or in another unit, by case.

    Args:
        records: for each case its fields; None or "" is empty, "inf" and "-inf" are infinite.
    """
    fields = list(dict.fromkeys(name for record in records.values() for name in record))
    empty: dict[str, list[str]] = {case: [] for case in records}
    for name in fields:
        missing = [case for case, record in records.items() if _is_empty(record.get(name))]
        if len(missing) > len(records) / 2:
            evidence = f"{name} is empty in {len(missing)} of {len(records)} cases"
            yield Finding(None, "clinical_missing", evidence)
        else:
            for case in missing:
                empty[case].append(name)
        yield from _odd_values(name, {case: record.get(name) for case, record in records.items()})
    for case, names in empty.items():
        if names:
            yield Finding(case, "clinical_missing", f"empty: {', '.join(names)}")


def _odd_values(name: str, values: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the infinite values of a field, and those off by a power of ten."""
    numbers = {case: number for case, value in values.items() if (number := _number(value)) is not None}
    for case, number in numbers.items():
        if math.isinf(number):
            yield Finding(case, "clinical_infinite", f"{name} is {number}")
    positive = {case: math.log10(number) for case, number in numbers.items() if 0 < number < math.inf}
    if len(positive) < FEWEST_CASES:
        return
    decades = np.array(list(positive.values()))
    middle = float(np.median(decades))
    spread = max(1.4826 * float(np.median(np.abs(decades - middle))), 0.02)
    for case, value in positive.items() if spread <= LARGEST_UNIT_SPREAD else ():
        away = value - middle
        if abs(away) >= UNIT_DECADES and abs(away) > VERY_FAR * spread and abs(away - round(away)) <= 2 * spread + 0.05:
            evidence = f"{name} is {10**value:.4g}, {10**away:.3g} times the median {10**middle:.4g}"
            yield Finding(case, "clinical_unit", evidence)


def _is_empty(value: Any) -> bool:
    """Return whether a field's value says nothing: null, NaN, or a text that stands for them."""
    if isinstance(value, str):
        return value.strip().lower() in EMPTY_TEXTS
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(value: Any) -> float | None:
    """Return a field's value as a number, or None when it is empty or a word."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number
