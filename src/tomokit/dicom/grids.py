"""Whether slices lie on one even grid, and the affine of that grid.

Slices come sorted along their normal, one per position. A grid is even when every slice lies where the first and
the last one, evenly divided, put it: gaps that each differ by little may still add up.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tomokit.dicom.faults import Fault, count
from tomokit.dicom.headers import Slice
from tomokit.geometry import check_affine
from tomokit.volumes import LPS_TO_RAS

SAME_PLACE_MM = 0.01
GRID_TOLERANCE = 0.01  # of the spacing
GRID_TOLERANCE_MM = 0.02  # positions with two decimals
ROUNDED_TOLERANCE_MM = 0.18  # positions with one decimal: a slice and the ends of its stack are each √3 × 0.05 mm off
TILT_TOLERANCE_DEGREES = 0.1
LARGEST_TILT_DEGREES = 45.0  # gantries tilt by 30° at most
SHOWN_GAPS = 3


def along_normal(slices: Sequence[Slice]) -> NDArray[np.float64]:
    """Return each slice's place along the normal of the first, (N,), mm."""
    return np.array([picture.position for picture in slices]) @ slices[0].normal


def places(slices: Sequence[Slice]) -> list[int]:
    """Return a number for each slice: equal where slices lie at one position along the normal, rising along it."""
    along = along_normal(slices)
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order], prepend=along[order[0]]) > SAME_PLACE_MM
    numbers = np.empty(len(slices), dtype=int)
    numbers[order] = np.cumsum(steps)
    return numbers.tolist()


def affine_of(slices: Sequence[Slice]) -> NDArray[np.float64]:
    """Return the affine (4, 4) from (column, row, slice) to world RAS, mm, sheared where the gantry was tilted."""
    first, last = slices[0], slices[-1]
    affine = np.eye(4)
    affine[:3, :2] = (first.axes * np.reshape(first.spacing, (2, 1))).T
    alone = len(slices) == 1
    affine[:3, 2] = first.normal * first.thickness if alone else (last.position - first.position) / (len(slices) - 1)
    affine[:3, 3] = first.position
    return check_affine(LPS_TO_RAS @ affine)


def grid_faults(slices: Sequence[Slice]) -> list[Fault]:
    """Return what is wrong with the positions: missing slices, uneven gaps, a tilted gantry."""
    if len(slices) < 2:
        return []
    along = along_normal(slices)
    gaps = np.diff(along)
    usual = np.sort(gaps)[(len(gaps) - 1) // 2]  # the lower of two middle ones: a gap can only be too wide
    steps = np.maximum(np.rint(gaps / usual), 1)
    index = np.concatenate([[0.0], np.cumsum(steps)])
    positions = np.array([picture.position for picture in slices])
    step = (positions[-1] - positions[0]) / index[-1]
    off = np.linalg.norm(positions - positions[0] - index[:, None] * step, axis=1)
    rounded = np.allclose(positions * 10, np.rint(positions * 10), atol=1e-6)
    smallest = ROUNDED_TOLERANCE_MM if rounded else GRID_TOLERANCE_MM
    if off.max() > max(smallest, GRID_TOLERANCE * float(np.linalg.norm(step))):
        return [_uneven(slices, gaps, off)]
    missing = [_missing(slices, along, steps)] if steps.max() > 1 else []
    return missing + _tilt(step, slices[0].normal)


def _uneven(slices: Sequence[Slice], gaps: NDArray[np.float64], off: NDArray[np.float64]) -> Fault:
    """Say how far the gaps differ and which slice lies farthest off."""
    worst = int(off.argmax())
    return Fault(
        "uneven_gaps",
        f"the gaps between slices vary from {gaps.min():.2f} to {gaps.max():.2f} mm, and {slices[worst].path} lies "
        f"{off[worst]:.2f} mm off an even grid; export the original series, or resample it in a program "
        "that knows uneven gaps",
        stops=True,
    )


def _missing(slices: Sequence[Slice], along: NDArray[np.float64], steps: NDArray[np.float64]) -> Fault:
    """Say how many slices are missing and where."""
    holes = np.flatnonzero(steps > 1)
    told = [
        f"{steps[hole] - 1:.0f} between {along[hole]:.2f} and {along[hole + 1]:.2f} mm along the slice normal "
        f"({slices[hole].path.name}, {slices[hole + 1].path.name})"
        for hole in holes[:SHOWN_GAPS]
    ]
    if len(holes) > SHOWN_GAPS:
        told.append(f"and in {count(len(holes) - SHOWN_GAPS, 'other place')}")
    total = float((steps - 1).sum())
    return Fault(
        "missing_slices",
        f"{count(total, 'slice')} missing: {', '.join(told)}; copy the series again from its source",
        stops=True,
    )


def _tilt(step: NDArray[np.float64], normal: NDArray[np.float64]) -> list[Fault]:
    """Say by which angle slices are shifted sideways, when they are."""
    up = float(step @ normal)
    angle = float(np.degrees(np.arctan2(np.linalg.norm(step - up * normal), up)))
    if angle <= TILT_TOLERANCE_DEGREES:
        return []
    if angle > LARGEST_TILT_DEGREES:
        text = (
            f"slices are stacked at {angle:.1f}° to their normal, more than any gantry tilts; export the series again"
        )
        return [Fault("gantry_tilt", text, stops=True)]
    text = (
        f"the gantry was tilted by {angle:.2f}°: slices are shifted sideways, and the affine is sheared; resample to "
        "an upright grid before using a program that takes no sheared affine"
    )
    return [Fault("gantry_tilt", text)]
