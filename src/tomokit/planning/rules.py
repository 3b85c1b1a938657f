"""From a fingerprint and a budget to the numbers of a plan: pure functions, each number with its reason.

Source: the rules start from nnU-Net's published ones (Isensee et al., Nature Methods 2021); docs/planning.md tells
where these differ and why.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tomokit.errors import TomokitError
from tomokit.planning.fingerprint import ZERO_SHARE, Fingerprint, Structure
from tomokit.planning.network import Shape, Stages, memory_gb, step_gmacs

CT = {"CT", "CBCT", "CCTA", "CECT", "CTA", "CTPA", "HRCT", "LDCT", "MDCT", "NCCT"}  # words for scans in HU
OTHER = ("MR", "PET", "PT", "T1", "T2", "FLAIR", "ADC", "DWI", "SPECT")  # how words for a body's other scans begin
ANISOTROPIC = 3.0  # a coarsest axis this many times the next is planned apart
THIN = 3  # an axis with no more voxels is not convolved
LEAST_FEATURES = 4  # voxels an axis keeps in the deepest stage
LEAST_EDGE = 16  # voxels of a patch's edge, two halvings
GOOD_EDGE = 32  # rather fewer filters than a smaller patch
START_VOXELS = 256**3
COARSER = 1.1  # a spacing's next coarser one
COVERED = 0.25  # of the median volume, what a patch should see
VOXELS_ACROSS = 6.0  # of the smallest structure's typical piece, at the least
SET_SHARE = 0.05  # of the set's voxels, the most in one batch
MOST_IN_BATCH = {False: 2, True: 16}  # on a CPU more steps are worth more than more in a step (docs/experiments.md)
MANY_FILTERS = 32
SAME_HALF = 0.85  # of the cases: a structure in one half in more of them keeps to one side
OFF_MIDDLE = 0.05  # of the extent: a centre that is no farther away lies in no half


class Choice(NamedTuple):
    """One number of a plan and why it is so."""

    value: Any
    reason: str


class Budget(NamedTuple):
    """What a training step may take.

    Attributes:
        memory_gb: of the device.
        cuda: whether the device is a GPU.
        minutes: for everything from the files to the last prediction; None leaves it open.
        gmacs: 10⁹ multiplications and additions that a step may take, by the device's speed and the time; None is
            without a bound.
    """

    memory_gb: float
    cuda: bool = False
    minutes: float | None = None
    gmacs: float | None = None


class Geometry(NamedTuple):
    """The grid and the network of a segmentation plan, and which axes are thin."""

    spacing: Choice
    patch_size: Choice
    stages: Stages
    batch_size: Choice


# The grid


def full_spacing(fingerprint: Fingerprint) -> Choice:
    """Return the voxel size in mm at which nothing is lost: the median of each axis, finer for a very coarse one."""
    median, shape = list(fingerprint.spacing.median), fingerprint.shape.median
    worst = max(range(len(median)), key=lambda axis: median[axis])
    others = [axis for axis in range(len(median)) if axis != worst]
    next_mm = max(median[axis] for axis in others)
    flat = shape[worst] * ANISOTROPIC < min(shape[axis] for axis in others)
    if median[worst] > ANISOTROPIC * next_mm and flat:
        median[worst] = max(fingerprint.spacing.p10[worst], next_mm)
        return Choice(
            tuple(median),
            f"the median of each axis; {'xyz'[worst]} is more than {ANISOTROPIC:g} times coarser, so its 10th "
            "percentile, which keeps what the finer scans show",
        )
    return Choice(tuple(median), "the median of each axis: half of the cases lose nothing, half gain nothing")


def size_at(fingerprint: Fingerprint, spacing: Sequence[float]) -> Shape:
    """Return the median volume's size in voxels at a spacing."""
    extent = fingerprint.extent_mm.median
    return tuple(max(1, round(length / mm)) for length, mm in zip(extent, spacing, strict=True))


def coarsest_mm(fingerprint: Fingerprint) -> float:
    """Return the coarsest voxel edge in mm at which a typical piece of the smallest structure is still seen."""
    pieces_mm = [(6000 * structure.piece_ml / math.pi) ** (1 / 3) for structure in fingerprint.structures]
    return min(pieces_mm) / VOXELS_ACROSS


def choose_geometry(fingerprint: Fingerprint, budget: Budget) -> Geometry:
    """Return spacing, patch, network and batch size within the budget; the time of a step is kept if any patch can.

    On a CPU the spacing is made coarser until a patch sees enough of the volume: there is no time for a second, finer
    network.

    Raises:
        TomokitError: when not even the smallest patch fits into the memory.
    """
    full = full_spacing(fingerprint)
    spacing, limit = list(full.value), coarsest_mm(fingerprint)
    thick = [axis for axis, length in enumerate(fingerprint.shape.median) if length > THIN]
    geometry = _fit(fingerprint, full, budget)
    while not budget.cuda and (seen := covered(fingerprint, geometry)) < COVERED:
        finest = min(spacing[axis] for axis in thick)
        if finest >= limit:
            break
        for axis in thick:
            spacing[axis] = max(spacing[axis], min(finest * COARSER, limit))
        geometry = _fit(fingerprint, Choice(tuple(spacing), ""), budget)
    if tuple(spacing) != full.value:
        seen = covered(fingerprint, geometry)
        reason = (
            f"full resolution is {in_mm(full.value)}; coarser, so that a patch sees {seen:.0%} of the volume: a CPU "
            f"has no time for a second, finer network; at {limit:.3g} mm the smallest structure is still "
            f"{VOXELS_ACROSS:g} voxels wide"
        )
        return geometry._replace(spacing=Choice(rounded(spacing), reason))
    return geometry._replace(spacing=Choice(rounded(spacing), full.reason))


def covered(fingerprint: Fingerprint, geometry: Geometry) -> float:
    """Return the share of the median volume that a patch sees."""
    return _share(geometry.patch_size.value, size_at(fingerprint, geometry.spacing.value))


def _share(patch: Shape, shape: Shape) -> float:
    """Return the share of a volume that a patch sees."""
    return math.prod(min(1.0, edge / length) for edge, length in zip(patch, shape, strict=True))


def _fit(fingerprint: Fingerprint, spacing: Choice, budget: Budget) -> Geometry:
    """Return the largest patch, network and batch at a spacing that the budget allows, with fewer filters if it must.

    Raises:
        TomokitError: when not even the smallest patch fits into the memory.
    """
    shape = size_at(fingerprint, spacing.value)
    channels, classes = len(fingerprint.modality), len(fingerprint.labels)
    memory, patch, stages = math.inf, shape, Stages((), (), ())
    largest, bound = None, ""
    for patch, stages in _candidates(shape, spacing.value, budget.cuda):
        largest = largest or patch
        memory = memory_gb(patch, stages, 2, channels, classes, budget.cuda)
        affordable = memory <= budget.memory_gb
        if affordable and _in_time(patch, stages, 2, channels, classes, budget):
            break
        bound = f"as much as the {'time of a step' if affordable else 'memory'} allows"
    else:
        bound = "the smallest there is: a step has no time for more"
    if memory > budget.memory_gb:
        raise TomokitError(
            f"{budget.memory_gb:.3g} GB are too few: two patches of {times(patch)} voxels, the smallest, need about "
            f"{memory:.2g} GB; give at least --memory {memory * 1.05:.2g}"
        )
    batch = _choose_batch(patch, stages, fingerprint, shape, budget)
    reason = _patch_reason(patch, shape, memory, budget, "" if patch == largest else bound)
    return Geometry(spacing, Choice(patch, reason), stages, batch)


def _candidates(shape: Shape, spacing: Sequence[float], cuda: bool) -> Iterator[tuple[Shape, Stages]]:
    """Return patches with their networks from large to small; on a CPU narrow networks before small patches."""
    patches = _patches(shape, spacing)
    for first, least in ((32, LEAST_EDGE),) if cuda else ((16, GOOD_EDGE), (8, GOOD_EDGE), (8, LEAST_EDGE)):
        for patch in patches:
            # the largest patch always will do: a volume of 17 voxels is rounded down to 16
            if all(edge >= min(least, most) for edge, most in zip(patch, patches[0], strict=True)):
                yield patch, choose_stages(patch, spacing, first, cuda)


def _in_time(patch: Shape, stages: Stages, batch: int, channels: int, classes: int, budget: Budget) -> bool:
    """Return whether a step stays within the time of the budget."""
    return budget.gmacs is None or step_gmacs(patch, stages, batch, channels, classes) <= budget.gmacs


def _patches(shape: Shape, spacing: Sequence[float]) -> list[Shape]:
    """Return patches from large to small: first as wide in mm along all axes, then alike in share of the volume."""
    thick = [axis for axis, length in enumerate(shape) if length > THIN] or [0]
    thin = math.prod(length for axis, length in enumerate(shape) if axis not in thick)
    longest = (START_VOXELS / thin * math.prod(spacing[axis] for axis in thick)) ** (1 / len(thick))
    edges = [min(length, longest / spacing[axis]) if axis in thick else length for axis, length in enumerate(shape)]
    patches = [_whole(edges, spacing)]
    while True:
        patch = list(patches[-1])
        able = [axis for axis in range(len(patch)) if patch[axis] > LEAST_EDGE]
        if not able:
            return patches
        widest = max(able, key=lambda axis: patch[axis] / shape[axis])
        step = _multiples(patch, spacing)[widest]
        patch[widest] = max(LEAST_EDGE, patch[widest] - step)
        patches.append(_whole(patch, spacing))


def _whole(edges: Sequence[float], spacing: Sequence[float]) -> Shape:
    """Return edges in voxels that can be halved as often as the network halves them, thin axes as they are."""
    finest = min((mm for edge, mm in zip(edges, spacing, strict=True) if edge > THIN), default=math.inf)
    able = [
        max(edge, LEAST_EDGE) if edge > THIN and mm < 2 * finest else edge
        for edge, mm in zip(edges, spacing, strict=True)
    ]
    multiples = _multiples(able, spacing)
    return tuple(
        round(edge) if edge <= THIN else max(1, math.ceil(edge / multiple - 0.25)) * multiple
        for edge, multiple in zip(able, multiples, strict=True)
    )


def _multiples(edges: Sequence[float], spacing: Sequence[float]) -> list[int]:
    """Return how often each axis is halved in all, as a factor."""
    strides = halvings(edges, spacing, 6)
    return [math.prod(stride[axis] for stride in strides) for axis in range(len(edges))]


# The network


def halvings(patch: Sequence[float], spacing: Sequence[float], most: int) -> list[tuple[int, ...]]:
    """Return each stage's strides: an axis is halved while it is no coarser than twice the finest, and long enough."""
    edges, mm = list(patch), list(spacing)
    strides: list[tuple[int, ...]] = [(1,) * len(edges)]
    while len(strides) < most:
        able = [axis for axis in range(len(edges)) if edges[axis] >= 2 * LEAST_FEATURES]
        finest = min((mm[axis] for axis in able), default=math.inf)
        halved = [axis for axis in able if mm[axis] < 2 * finest]
        if not halved:
            break
        strides.append(tuple(2 if axis in halved else 1 for axis in range(len(edges))))
        for axis in halved:
            edges[axis], mm[axis] = edges[axis] / 2, mm[axis] * 2
    return strides


def choose_stages(patch: Sequence[int], spacing: Sequence[float], first: int, cuda: bool) -> Stages:
    """Return strides, kernels and filters: a coarse axis has kernels of 1 until the others are as coarse."""
    strides = halvings(patch, spacing, 6 if cuda else 5)
    strides += [(1,) * len(strides[0])] * (3 - len(strides))  # the network has at least three stages
    mm = list(spacing)
    wide = [False] * len(mm)
    kernels = []
    for stride in strides:
        mm = [length * factor for length, factor in zip(mm, stride, strict=True)]
        thick = [edge > THIN for edge in patch]
        finest = min((length for length, able in zip(mm, thick, strict=True) if able), default=1.0)
        wide = [thick[axis] and (wide[axis] or mm[axis] < 2 * finest) for axis in range(len(mm))]
        kernels.append(tuple(3 if whole else 1 for whole in wide))
    filters = tuple(min(first * 2**stage, 10 * first if cuda else 8 * first) for stage in range(len(strides)))
    return Stages(tuple(strides), tuple(kernels), filters)


def explain_network(stages: Stages, cuda: bool) -> dict[str, Choice]:
    """Return the network's numbers with their reasons, by their keys in the config."""
    apart = any(1 in kernel for kernel in stages.kernels)
    convolved = "1 along an axis that is thin, or coarse until the others are within twice as coarse"
    uneven = any(len(set(stride)) > 1 for stride in stages.strides)
    halved = "an axis is left alone while it is twice as coarse as the finest, or too short" if uneven else "all alike"
    where = "a GPU" if cuda else "a CPU"
    least = f"{LEAST_FEATURES} voxels of each axis stay in the deepest stage"
    return {
        "filters": Choice(
            stages.filters, f"doubled per stage from {stages.filters[0]} to {max(stages.filters)}, what {where} bears"
        ),
        "strides": Choice(stages.strides, f"halved while {least}; {halved}"),
        "kernel_size": Choice(stages.kernels, convolved if apart else "3 along all axes, which are about as fine"),
    }


def _choose_batch(patch: Shape, stages: Stages, fingerprint: Fingerprint, shape: Shape, budget: Budget) -> Choice:
    """Return the batch size: two, more where memory and time are left and a batch stays a small part of the set."""
    channels, classes = len(fingerprint.modality), len(fingerprint.labels)
    cases = fingerprint.cases["training"]
    greatest = MOST_IN_BATCH[budget.cuda]
    bounds = {
        f"{greatest}{'' if budget.cuda else ' on a CPU, where more steps are worth more'}": greatest,
        f"{SET_SHARE:.0%} of the set's voxels": int(SET_SHARE * cases * math.prod(shape) / math.prod(patch)),
        f"a quarter of the {cases} training cases": cases // 4,
    }
    tightest = min(bounds, key=lambda name: bounds[name])
    bound = f"{'at most' if bounds[tightest] >= 2 else 'though that is over'} {tightest}"
    batch = 2
    while batch < bounds[tightest]:
        if memory_gb(patch, stages, batch + 1, channels, classes, budget.cuda) > budget.memory_gb:
            bound = "the memory allows no more"
            break
        if not _in_time(patch, stages, batch + 1, channels, classes, budget):
            bound = "the time of a step allows no more"
            break
        batch += 1
    return Choice(batch, f"at least 2, so that a step sees two cases; {bound}")


def _patch_reason(patch: Shape, shape: Shape, memory: float, budget: Budget, bound: str) -> str:
    """Return why the patch is so large and no larger; `bound` tells what allowed no larger one, if anything did."""
    seen = _share(patch, shape)
    size = "the whole of" if seen == 1 else f"{seen:.0%} of"
    if not bound:
        rounded_alone = all(edge > 0.9 * length for edge, length in zip(patch, shape, strict=True))
        bound = "rounded to what can be halved" if rounded_alone else "a cube of 256³ voxels at the most"
    text = f"{size} the median volume of {times(shape)} voxels{'' if seen == 1 else ', ' + bound}"
    text += f"; two patches take about {memory:.2g} of {budget.memory_gb:.3g} GB"
    return text if seen >= COVERED or not budget.cuda else f"{text}; compare with a plan at a coarser spacing"


# Intensities and augmentation


def is_ct(kind: str) -> bool:
    """Return whether a channel's kind, such as "CT", "CTA" or "CT portal", is in HU; "PET/CT" is not."""
    words = _words(kind)
    return bool(CT.intersection(words)) and not any(word.startswith(OTHER) for word in words)


def is_body(kind: str) -> bool:
    """Return whether a channel's kind is a scan of a body, which has a front, a back, a head and feet."""
    return is_ct(kind) or any(word.startswith(OTHER) for word in _words(kind))


def _words(kind: str) -> list[str]:
    """Return the words of a channel's kind in upper case."""
    return re.findall("[A-Z0-9]+", kind.upper())


def choose_intensity(fingerprint: Fingerprint) -> Choice:
    """Return MONAI's transform of the intensities, as a component."""
    kinds = fingerprint.modality
    if all(map(is_ct, kinds)):
        return _window(fingerprint)
    nonzero = all(share > ZERO_SHARE for share in fingerprint.zero_share)
    component: dict[str, Any] = {"_target_": "NormalizeIntensityd", "keys": "image"}
    component |= {"channel_wise": True} if len(kinds) > 1 else {}
    component |= {"nonzero": True} if nonzero else {}
    reason = "only HU are the same in every scan, so each volume is brought to mean 0 and deviation 1"
    if any(map(is_ct, kinds)):
        reason = (
            "channels of several kinds: each by itself to mean 0 and deviation 1; a window would act on all of them"
        )
    elif len(kinds) > 1:
        reason += ", each channel by itself"
    if nonzero:
        reason += "; the zeros around the cut-out are left out"
    return Choice(component, reason)


def _window(fingerprint: Fingerprint) -> Choice:
    """Return a window in HU: what the structures hold, scaled by their mean and deviation."""
    low = min(channel.p0_5 for channel in fingerprint.inside)
    high = max(channel.p99_5 for channel in fingerprint.inside)
    mean = sum(channel.mean for channel in fingerprint.inside) / len(fingerprint.inside)
    sd = max(sum(channel.sd for channel in fingerprint.inside) / len(fingerprint.inside), 1.0)
    high = max(high, low + 1.0)
    component = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": low, "a_max": high}
    component |= {"b_min": round((low - mean) / sd, 4), "b_max": round((high - mean) / sd, 4), "clip": True}
    where = "of the structures" if fingerprint.structures else "of the volumes"
    return Choice(
        component,
        f"HU are absolute: the 0.5 and 99.5 percentiles {where}, then minus their mean {mean:.4g}, by their "
        f"deviation {sd:.4g}",
    )


def choose_flips(fingerprint: Fingerprint) -> Choice:
    """Return the axes along which a mirror image could be another case of the set."""
    if fingerprint.lateral:
        return Choice([], f"{fingerprint.lateral[0]!r} tells a side, which a mirror image would swap")
    body = all(map(is_body, fingerprint.modality))
    axes = [0] if body else [axis for axis in range(3) if fingerprint.shape.median[axis] > THIN]
    sided = {axis: structure for axis in axes for structure in _sided(fingerprint, axis)}
    kept = [axis for axis in axes if axis not in sided]
    told = [
        f"{structure.name} lies in the same half along {'xyz'[axis]} in nearly all cases, "
        f"{abs(structure.offset[axis]):.0%} of the extent off the middle"
        for axis, structure in sided.items()
    ]
    if kept:
        held = "no structure keeps to one side" if fingerprint.structures else "no class names a side"
        told.insert(0, f"{held} along {', '.join('xyz'[axis] for axis in kept)}")
    told += ["front and back, head and feet are never alike"] if body else []
    return Choice(kept, "; ".join(told))


def _sided(fingerprint: Fingerprint, axis: int) -> list[Structure]:
    """Return the structures that keep to one half of the volume along an axis, and off its middle."""
    return [
        structure
        for structure in fingerprint.structures
        if abs(structure.offset[axis]) > OFF_MIDDLE
        and max(structure.upper_share[axis], 1 - structure.upper_share[axis]) > SAME_HALF
    ]


def choose_foreground_share(fingerprint: Fingerprint) -> Choice:
    """Return the part of the patches that is centred on a structure, more for small ones."""
    smallest = min(fingerprint.structures, key=lambda structure: structure.share)
    # a third where it fills a tenth of the volume, two thirds where a thousandth
    level = (-1 - math.log10(max(smallest.share, 1e-9))) / 2
    share = round(0.33 + 0.34 * min(1.0, max(0.0, level)), 2)
    chance = "would seldom meet it" if level > 0 else "meets it often"
    return Choice(share, f"{smallest.name} fills {smallest.share:.2%} of a volume, and chance {chance}")


def choose_overlap(fingerprint: Fingerprint, geometry: Geometry) -> Choice:
    """Return the overlap of the windows in prediction."""
    windows = 1 / max(covered(fingerprint, geometry), 1e-9)
    if windows > 64:
        return Choice(0.25, f"a volume takes more than {64} windows: a quarter less than halves the time")
    return Choice(0.5, "each voxel is seen by several windows, and by the middle of one")


def choose_partial(
    fingerprint: Fingerprint, packaged: Mapping[str, Any], layer: Mapping[str, Any]
) -> dict[str, Choice]:
    """Return the keys that a set with partly annotated cases needs: those of the packaged layer for such sets.

    The packaged config has no place for the layer's `mark`, which thus is one of the steps of the preparation.
    """
    if not fingerprint.partly_labelled:
        return {}
    steps = [*packaged["train"]["preparation"]["transforms"], layer["mark"]]
    checked = dict(layer["validate::preprocessing"])
    checked["transforms"] = checked["transforms"].replace("@mark", f"@train::preparation::transforms::{len(steps) - 1}")
    why = f"{fingerprint.partly_labelled} cases are annotated in part, and what was not annotated is no background"
    return {
        "partly_labelled": Choice(
            layer["partly_labelled"], f"{why}: the unknown classes' probabilities join the background's"
        ),
        "train::preparation::transforms": Choice(steps, why),
        "validate::preprocessing": Choice(checked, f"{why}: it is not scored"),
    }


def choose_learning_rate(filters: Sequence[int], small: float) -> Choice:
    """Return the learning rate: `small` for a small network, less for a wide one."""
    if filters[0] >= MANY_FILTERS:
        return Choice(round(small / 3, 4), f"{max(filters)} filters: a wide network takes smaller steps")
    return Choice(small, f"up to {max(filters)} filters: a small network takes larger steps")


def rounded(spacing: Sequence[float]) -> tuple[float, ...]:
    """Return a spacing to four digits."""
    return tuple(float(f"{mm:.4g}") for mm in spacing)


def in_mm(spacing: Sequence[float]) -> str:
    """Return a spacing as readable text."""
    return f"{times(spacing)} mm"


def times(values: Sequence[float]) -> str:
    """Return numbers with × between them."""
    return " × ".join(f"{value:.4g}" for value in values)


def plain(value: Any) -> Any:
    """Return a value as YAML and JSON know it: tuples as lists."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
