"""Pairs of cases that are too alike, and patients on both sides of a split."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomokit.checks.cases import Case
from tomokit.checks.findings import Finding

# Correlation of two descriptors, less the set's mean one: different hippocampi reach 0.63, phantoms 0.89; of copies
# that were rescaled, flipped, resampled or made noisy, 97 % and more pass 0.9 (docs/findings.md). In few cases there is
# no mean to speak of, and whole descriptors of different patients reach 0.99.
NEARLY_SAME, NEARLY_SAME_OF_FEW = 0.9, 0.995
FEW = 8
SHORTLISTED = 0.75  # of coarse descriptors, whose noise is averaged away: copies have 0.9 and more
PAIRS_AT_A_TIME = 1000
FLIPS = tuple(itertools.product((1, -1), repeat=3))

Fold = Mapping[str, Sequence[str]]


def compare_pairs(cases: Sequence[Case], folds: Sequence[Fold]) -> Iterator[Finding]:
    """Yield duplicates, and what lies on both sides of a split: patients, images, near-duplicates.

    A pair across a split is told as a leak only; images of one patient that are alike only as the patient's.

    Args:
        cases: all cases of the set.
        folds: for each fold, the names of the cases in each of its parts.
    """
    sides = _sides(folds)
    yield from _patient_leaks(cases, sides)
    yield from _same_channels(cases)
    told: set[frozenset[str]] = set()
    for first, second in _same(cases, lambda case: case.image_digests, told):
        across = _across(first, second, sides)
        yield from _both(first, second, "image_leak" if across else "duplicate_image", "the same image as", across)
    for number in range(max((len(case.descriptors) for case in cases), default=0)):
        for first, second, correlation in _nearly_same(cases, number):
            pair, across = frozenset((first.name, second.name)), _across(first, second, sides)
            if across and pair not in told and first.patient != second.patient:
                told.add(pair)
                evidence = f"image {number} correlates {correlation:.4f} with that of"
                yield from _both(first, second, "near_duplicate_leak", evidence, across)
    for first, second in _same(cases, lambda case: [case.label_digest] if case.label_digest else [], told):
        yield from _both(first, second, "duplicate_label", "the same label as")


def _both(first: Case, second: Case, kind: str, evidence: str, across: str | None = None) -> Iterator[Finding]:
    """Yield a finding for each case of a pair, since which of them is wrong can't be known."""
    place = f" ({across})" if across else ""
    yield Finding(first.name, kind, f"{evidence} {second.name}{place}")
    yield Finding(second.name, kind, f"{evidence} {first.name}{place}")


def _sides(folds: Sequence[Fold]) -> dict[str, list[str | None]]:
    """Return for each case the part it is in, fold by fold."""
    names = {name for fold in folds for part in fold.values() for name in part}
    return {
        name: [next((part for part, members in fold.items() if name in members), None) for fold in _as_sets(folds)]
        for name in names
    }


def _as_sets(folds: Sequence[Fold]) -> list[dict[str, set[str]]]:
    """Return the folds with sets of names."""
    return [{part: set(names) for part, names in fold.items()} for fold in folds]


def _across(first: Case, second: Case, sides: Mapping[str, Sequence[str | None]]) -> str | None:
    """Return where two cases are on two sides of a split, or None."""
    for fold, (a, b) in enumerate(zip(sides.get(first.name, []), sides.get(second.name, []), strict=False)):
        if a is not None and b is not None and a != b:
            return f"fold {fold}: {second.name} in {b}, {first.name} in {a}"
    return None


def _patient_leaks(cases: Sequence[Case], sides: Mapping[str, Sequence[str | None]]) -> Iterator[Finding]:
    """Yield the first two cases of each patient who is on two sides."""
    of_patient: dict[str, list[Case]] = {}
    for case in cases:
        of_patient.setdefault(case.patient, []).append(case)
    for patient, members in of_patient.items():
        for first, second in itertools.combinations(members, 2):
            if across := _across(first, second, sides):
                yield from _both(first, second, "patient_leak", f"the same patient {patient} as", across)
                break


def _same_channels(cases: Sequence[Case]) -> Iterator[Finding]:
    """Yield the cases that have one image under two channels."""
    for case in cases:
        if case.is_sound and len(set(case.image_digests)) < len(case.image_digests):
            yield Finding(case.name, "duplicate_image", "two of its own images are the same")


def _same(
    cases: Sequence[Case], digests: Callable[[Case], Sequence[str]], told: set[frozenset[str]]
) -> Iterator[tuple[Case, Case]]:
    """Yield the first case and each later one with an equal digest, and note the pair as told; told ones are left."""
    first_with: dict[str, Case] = {}
    for case in cases:
        for digest in digests(case):
            first = first_with.setdefault(digest, case)
            pair = frozenset((first.name, case.name))
            if first is not case and pair not in told:
                told.add(pair)
                yield first, case


def _nearly_same(cases: Sequence[Case], number: int) -> Iterator[tuple[Case, Case, float]]:
    """Yield the pairs of cases whose images of one channel correlate, in any of eight flips, with the correlation."""
    by_shape: dict[tuple[int, ...], list[tuple[Case, NDArray[np.float16]]]] = {}
    for case in cases:
        descriptor = case.descriptors[number] if len(case.descriptors) > number else None
        if descriptor is not None:
            by_shape.setdefault(descriptor.shape, []).append((case, descriptor))
    for members in by_shape.values():
        descriptors = np.stack([descriptor for _, descriptor in members])
        limit = NEARLY_SAME if len(members) >= FEW else NEARLY_SAME_OF_FEW
        first, second = np.nonzero(np.triu(correlate(_coarsen(descriptors)), 1) > SHORTLISTED)
        best = _correlate_pairs(descriptors, first, second)
        for place in np.flatnonzero(best > limit):
            yield members[first[place]][0], members[second[place]][0], float(best[place])


def _coarsen(descriptors: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return descriptors (N, X, Y, Z) with each three voxels along an axis averaged, where it can be cut so."""
    coarse = descriptors.astype(np.float32)
    for axis in (1, 2, 3):
        if coarse.shape[axis] % 3 == 0:
            parts = (*coarse.shape[:axis], -1, 3, *coarse.shape[axis + 1 :])
            coarse = coarse.reshape(parts).mean(axis=axis + 1)
    return coarse


def _correlate_pairs(
    descriptors: NDArray[np.floating[Any]], first: NDArray[np.intp], second: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Return the largest correlation over flips of the listed pairs, as `correlate` does of all."""
    count = len(descriptors)
    mean = descriptors.mean(axis=0, dtype=np.float32).ravel() if count >= FEW else np.float32(0)
    best = np.full(first.size, -1, np.float32)
    for start in range(0, first.size, PAIRS_AT_A_TIME):
        part = slice(start, start + PAIRS_AT_A_TIME)
        own = _unit(descriptors[first[part]].reshape(-1, descriptors[0].size) - mean)
        for x, y, z in FLIPS:
            turned = descriptors[second[part], ::x, ::y, ::z].reshape(own.shape)
            best[part] = np.maximum(best[part], np.einsum("ij,ij->i", own, _unit(turned - mean)))
    return best


def correlate(descriptors: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return the largest correlation, over eight flips, of each pair of images.

    Args:
        descriptors: (N, X, Y, Z), each with mean 0 and length 1; from `FEW` images on, their mean is taken off.
    """
    count = len(descriptors)
    mean = descriptors.mean(axis=0, dtype=np.float32).ravel() if count >= FEW else np.float32(0)
    flat = _unit(descriptors.reshape(count, -1) - mean)
    best = np.full((count, count), -1, np.float32)
    for x, y, z in FLIPS:
        turned = descriptors[:, ::x, ::y, ::z].reshape(count, -1)
        np.maximum(best, flat @ _unit(turned - mean).T, out=best)
    return best


def _unit(rows: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return rows scaled to length 1; rows of zeros stay."""
    rows = rows.astype(np.float32, copy=False)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, np.where(lengths > 0, lengths, 1), dtype=np.float32)
