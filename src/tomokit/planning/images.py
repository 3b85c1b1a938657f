"""The grid, batch and network of a classification plan: pure functions, each number with its reason."""

import math

from tomokit.errors import TomokitError
from tomokit.planning.fingerprint import Fingerprint
from tomokit.planning.network import Shape, image_gmacs, image_memory_gb
from tomokit.planning.rules import LEAST_EDGE, MANY_FILTERS, THIN, Budget, Choice, full_spacing, in_mm, rounded, times

IMAGE_VOXELS = {False: 48**3, True: 128**3}  # of a classified volume, the most


def choose_image(fingerprint: Fingerprint, budget: Budget) -> dict[str, Choice]:
    """Return spacing, image size, batch and network width of a classification plan.

    Raises:
        TomokitError: when not even two of the smallest images fit into the memory.
    """
    full = full_spacing(fingerprint)
    first = MANY_FILTERS if budget.cuda else MANY_FILTERS // 2
    cases = fingerprint.cases["training"]
    batch = min(8, max(2, cases // 8))
    told = f"an eighth of the {cases} training cases, 2 to 8"
    spacing, size = _shrink(fingerprint, budget, batch, first)
    if _memory(fingerprint, budget, size, batch, first) > budget.memory_gb:
        told = f"as many as fit into {budget.memory_gb:.3g} GB"
        while batch > 2 and _memory(fingerprint, budget, size, batch, first) > budget.memory_gb:
            batch -= 1
    memory = _memory(fingerprint, budget, size, batch, first)
    if memory > budget.memory_gb:
        raise TomokitError(
            f"{budget.memory_gb:.3g} GB are too few: two images of {times(size)} voxels, the smallest, need about "
            f"{memory:.2g} GB; give at least --memory {memory * 1.05:.2g}"
        )
    shrunk = f"coarser than {in_mm(full.value)}, so that a step with whole volumes fits"
    return {
        "spacing": Choice(rounded(spacing), full.reason if spacing == full.value else shrunk),
        "image_size": Choice(
            size,
            "holds nine volumes in ten whole; multiples of 8 where an axis is long; a step takes about "
            f"{memory:.2g} of {budget.memory_gb:.3g} GB",
        ),
        "batch_size": Choice(batch, told),
        "network_def::network::block_inplanes": Choice(
            [first * 2**stage for stage in range(4)], f"what {'a GPU' if budget.cuda else 'a CPU'} bears"
        ),
    }


def _shrink(fingerprint: Fingerprint, budget: Budget, batch: int, first: int) -> tuple[tuple[float, ...], Shape]:
    """Return a spacing at which a step with whole volumes fits, or the coarsest there is, and the volumes' size."""
    spacing = tuple(full_spacing(fingerprint).value)
    while True:
        size = tuple(_eights(length / mm) for length, mm in zip(fingerprint.extent_mm.p90, spacing, strict=True))
        fits = (
            math.prod(size) <= IMAGE_VOXELS[budget.cuda]
            and (budget.gmacs is None or image_gmacs(size, batch, first) <= budget.gmacs)
            and _memory(fingerprint, budget, size, batch, first) <= budget.memory_gb
        )
        if fits or max(size) <= LEAST_EDGE:
            return spacing, size
        finest = min(mm for mm, edge in zip(spacing, size, strict=True) if edge > THIN)
        spacing = tuple(max(mm, finest * 1.05) for mm in spacing)


def _memory(fingerprint: Fingerprint, budget: Budget, size: Shape, batch: int, first: int) -> float:
    """Return about how much memory a step takes, in GB."""
    return image_memory_gb(size, batch, first, len(fingerprint.modality), budget.cuda)


def _eights(length: float) -> int:
    """Return a length in voxels, a multiple of 8 unless the axis is short."""
    return max(1, round(length)) if length < 8 else 8 * round(length / 8 + 0.25)
