"""DICOM folders: each series that makes a volume is a case, its patient the PatientID."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tomokit.dicom import Series, find_series, read_series
from tomokit.errors import TomokitError
from tomokit.importers.records import Case, Plan, Source

FEWEST_SLICES = 3
SCANS = ("CT", "MRI", "PET")


def plan_dicom(folder: Path, modality: Sequence[str]) -> Plan:
    """Return a case per series of one modality; damaged series and localizers of 1 or 2 slices stay behind.

    Args:
        modality: picks the series where the folder has several kinds, such as ["CT"].

    Raises:
        TomokitError: when the folder has several kinds of which none is picked, or another than the one picked.
    """
    found, faults = find_series(folder)
    plan = Plan("DICOM folder")
    for fault in faults:
        plan.leave("DICOM files that give no volume", fault.text)
    picked = _pick_modality(plan, found, folder, modality)
    sound = []
    for series in picked:
        stopping = [fault.text for fault in series.faults if fault.stops]
        if stopping:
            plan.leave("series that can't become a volume", f"{_name(series)} ({'; '.join(stopping)})")
        else:
            sound.append(series)
    all_small = all(len(series.slices) < FEWEST_SLICES for series in sound)
    for series in sound:
        if len(series.slices) < FEWEST_SLICES and not all_small:
            plan.leave(f"series of fewer than {FEWEST_SLICES} slices, such as localizers", _name(series))
        else:
            plan.cases.append(_case(plan, series))
    return plan


def _pick_modality(plan: Plan, found: Sequence[Series], folder: Path, modality: Sequence[str]) -> list[Series]:
    """Return the series of the one kind there is, or of the kind that `modality` picks.

    Raises:
        TomokitError: when there are several kinds and none is picked, or only another kind.
    """
    counts = Counter(series.modality for series in found)
    asked = modality[0] if len(modality) == 1 else ""
    if len(counts) == 1 and (asked not in SCANS or asked in counts):
        plan.modality = list(counts)
        return list(found)
    if counts and asked not in counts:
        told = ", ".join(f"{kind} ({count})" for kind, count in sorted(counts.items()))
        given = f", not {asked}" if asked else ""
        raise TomokitError(
            f"{folder} has series of {told}{given}; a data set holds one kind of scan: import one at a time, such as "
            f"with --modality {min(counts)}"
        )
    plan.modality = [asked] if asked in counts else []
    for series in found:
        if series.modality != asked:
            plan.leave(f"series of other kinds than {asked}", f"{_name(series)} ({series.modality})")
    return [series for series in found if series.modality == asked]


def _case(plan: Plan, series: Series) -> Case:
    """Return the case of a series, named after its patient and description."""
    name = _name(series)
    if not series.patient:
        plan.note("series without a PatientID, each taken for a patient of its own", name)
    for fault in series.faults:
        plan.note("series read in spite of a fault", f"{name} ({fault.text})")
    keys = (series.uid, series.files[0].parent.name)
    return Case(name, [Source(name, partial(read_series, series))], patient=series.patient or None, keys=keys)


def _name(series: Series) -> str:
    """Return the name of a series: patient and description."""
    return "_".join(part for part in (series.patient, series.description) if part) or "series"
