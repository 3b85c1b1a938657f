"""Label files of any numbering and orientation, brought to values 0, 1, 2, … on their image's grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import ArrayLike, NDArray

from tomokit.geometry import check_affine, grid_difference
from tomokit.importers.records import Plan, shorten
from tomokit.volumes import Volume

BACKGROUND = "background"


@dataclass
class Numbering:
    """Which value of the source becomes which.

    Attributes:
        names: new value -> name.
        new_of: old value -> new value; empty when nothing changes.
    """

    names: dict[int, str]
    new_of: dict[int, int] = field(default_factory=dict)


def number_labels(plan: Plan, values: set[int]) -> Numbering:
    """Return the numbering without gaps of the values that the source tells or its label files hold.

    Values stay as they are when they are 0, 1, 2, … already. A value without a name is called after its old
    number, `label_17`; the only structure takes the name that its files have.
    """
    names = {0: BACKGROUND} | (plan.labels or {})
    held = sorted({*names, *values} - plan.ignored)
    new_of = {old: new for new, old in enumerate(held)}
    only = plan.structure if len(held) == 2 and plan.structure else None
    named = {new: names.get(old, only or f"label_{old}") for old, new in new_of.items()}
    unnamed = [str(old) for old in held if old not in names]
    if plan.labels and unnamed:
        plan.told.append(f"label values without a name in the source: {shorten(unnamed)}")
    if all(old == new for old, new in new_of.items()):
        return Numbering(named)
    moved = shorten([f"{old} → {new}" for old, new in new_of.items() if old != new])
    plan.told.append(f"label values renumbered without gaps: {moved}; the names keep the old numbers")
    return Numbering(named, new_of)


def whole_values(array: NDArray[Any]) -> set[int] | None:
    """Return the values of a label map, or None when one is negative or no whole number."""
    values: set[float] = set()
    for place in range(array.shape[-1]):  # slice by slice: sorting all voxels at once is slow
        values.update(np.unique(array[..., place]).tolist())
    if any(not np.isfinite(value) or value < 0 or value != int(value) for value in values):
        return None
    return {int(value) for value in values}


def renumber(array: NDArray[Any], new_of: Mapping[int, int]) -> NDArray[Any]:
    """Return the label map with its values exchanged; a value that `new_of` lacks stays."""
    old = np.array(sorted(new_of))
    new = np.array([new_of[int(value)] for value in old])
    places = np.searchsorted(old, array).clip(max=len(old) - 1)
    changed = np.where(old[places] == array, new[places], array)
    return changed.astype(np.min_scalar_type(int(changed.max(initial=0))))


def flips_to(
    image_affine: ArrayLike, shape: Sequence[int], affine: ArrayLike, label_shape: Sequence[int]
) -> Any | None:
    """Return the exchange and flips of axes that put a label on its image's grid, or None when none does.

    The result is nibabel's (3, 2) orientation: for each axis of the label, the image's axis and the direction.
    """
    image_affine, affine = check_affine(image_affine), check_affine(affine)
    turn = nibabel.io_orientation(np.linalg.inv(image_affine) @ affine)
    if np.isnan(turn).any():
        return None
    turned_shape = [0, 0, 0]
    for axis, (target, _) in enumerate(turn):
        turned_shape[int(target)] = int(label_shape[axis])
    turned = affine @ inv_ornt_aff(turn, label_shape)
    return None if grid_difference(image_affine, shape, turned, turned_shape) else turn


def turn_label(label: Volume, turn: Any, image_affine: NDArray[np.float64]) -> Volume:
    """Return the label with its voxels reordered, each at the world point where it was."""
    return Volume(np.ascontiguousarray(apply_orientation(label.array, turn)), image_affine)
