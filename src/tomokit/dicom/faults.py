"""What can be wrong with DICOM files, and how it is told."""

import contextlib
import logging
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

KINDS = {
    "missing_slices": "a gap is a multiple of the usual one; stops",
    "uneven_gaps": "slices lie off every even grid; stops",
    "duplicate_slices": "several files at one position: copies (one is kept), or different pictures (stops)",
    "gantry_tilt": "slices are shifted sideways; the affine is sheared, beyond 45° it stops",
    "mixed_orientations": "a series holds several orientations; each with two slices or more is one volume",
    "rescale_missing": "CT without slope and intercept is not in HU; stops when only some slices lack them",
    "unreadable": "truncated or damaged; stops the series that it still names, else left out",
    "unreadable_transfer_syntax": "compressed in a way that can't be read; stops",
    "colour": "colour pictures; left out",
    "no_geometry": "no position, orientation or spacing; left out, except for an X-ray picture",
    "no_pixels": "no pixels of a scan: reports, plans, segmentations, DICOMDIR; left out",
}
ADVICE = {
    "rescale_missing": "export the series again with its rescale slope and intercept",
    "unreadable": "copy again from the source",
    "unreadable_transfer_syntax": "decompress with `gdcmconv --raw` or `dcmconv`",
    "colour": "export the original grey series",
    "no_geometry": "export the original series, not a screenshot or mosaic",
    "no_pixels": "no loss, unless a scan was expected",
}


class Fault(NamedTuple):
    """Something wrong with a series, or with files that belong to none.

    Attributes:
        kind: a key of `KINDS`.
        text: what is wrong, where, and what to do.
        stops: whether `read_series` refuses the series for it.
    """

    kind: str
    text: str
    stops: bool = False


class Problem(NamedTuple):
    """What is wrong with one file: a `reason` that several may share, and its own `detail`."""

    kind: str
    reason: str
    detail: str = ""
    stops: bool = True


class LeftOut(Exception):  # noqa: N818  a decision, not an error
    """Says that a file gives no slice; `uid` is its SeriesInstanceUID, "" where unknown."""

    def __init__(self, kind: str, reason: str, detail: str = "", uid: str = "") -> None:
        super().__init__(reason)
        self.problem = Problem(kind, reason, detail, stops=kind == "unreadable")  # a slice that its series lacks
        self.uid = uid


def gather(problems: Iterable[tuple[Path, Problem]], what: str) -> list[Fault]:
    """Return one fault per kind and reason, with the number of files and an example; `what` ends "3 files …"."""
    groups: dict[tuple[str, str, bool], list[tuple[Path, str]]] = defaultdict(list)
    for path, problem in problems:
        groups[problem.kind, problem.reason, problem.stops].append((path, problem.detail))
    faults = []
    for (kind, reason, stops), cases in groups.items():
        path, detail = cases[0]
        example = f"{path}: {detail}" if detail else str(path)
        text = f"{count(len({path for path, _ in cases}), 'file')} {what}: {reason} (such as {example}); {ADVICE[kind]}"
        faults.append(Fault(kind, text, stops))
    return faults


def count(number: float, noun: str) -> str:
    """Return "1 file", "2 files"."""
    return f"{number:.0f} {noun}" + ("" if number == 1 else "s")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom from printing what a fault says."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
