"""The grid, batch and network of a classification plan: pure functions, each number with its reason."""

import math

from tomokit.planning.fingerprint import Fingerprint
from tomokit.planning.network import Shape, image_gmacs
from tomokit.planning.rules import LEAST_EDGE, MANY_FILTERS, THIN, Budget, Choice, full_spacing, in_mm, rounded

IMAGE_VOXELS = {False: 48**3, True: 128**3}  # of a classified volume, the most


def choose_image(fingerprint: Fingerprint, budget: Budget) -> dict[str, Choice]:
    """Return spacing, image size, batch and network width of a classification plan."""
    full, extent = full_spacing(fingerprint), fingerprint.extent_mm.p90
    first = MANY_FILTERS if budget.cuda else MANY_FILTERS // 2
    cases = fingerprint.cases["training"]
    batch = min(8, max(2, cases // 8))
    most = IMAGE_VOXELS[budget.cuda]
    spacing = list(full.value)

    def size() -> Shape:
        return tuple(_eights(length / mm) for length, mm in zip(extent, spacing, strict=True))

    while math.prod(size()) > most or not (budget.gmacs is None or image_gmacs(size(), batch, first) <= budget.gmacs):
        finest = min(mm for mm, edge in zip(spacing, size(), strict=True) if edge > THIN)
        if max(size()) <= LEAST_EDGE:
            break
        spacing = [max(mm, finest * 1.05) for mm in spacing]
    shrunk = tuple(spacing) != full.value
    return {
        "spacing": Choice(
            rounded(spacing),
            f"coarser than {in_mm(full.value)}, so that a step with whole volumes fits" if shrunk else full.reason,
        ),
        "image_size": Choice(size(), "holds nine volumes in ten whole; multiples of 8 where an axis is long"),
        "batch_size": Choice(batch, f"an eighth of the {cases} training cases, 2 to 8"),
        "network_def::network::block_inplanes": Choice(
            [first * 2**stage for stage in range(4)], f"what {'a GPU' if budget.cuda else 'a CPU'} bears"
        ),
    }


def _eights(length: float) -> int:
    """Return a length in voxels, a multiple of 8 unless the axis is short."""
    return max(1, round(length)) if length < 8 else 8 * round(length / 8 + 0.25)
