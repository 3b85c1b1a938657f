"""A DICOM file's header, read without its pixels: one `Slice` per picture it holds.

Positions, orientations and distances are DICOM's own here: LPS, mm.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.encaps import parse_fragments
from pydicom.filereader import read_partial
from pydicom.multival import MultiValue
from pydicom.uid import UID

from tomokit.dicom.faults import LeftOut, Problem, count
from tomokit.volumes import LARGEST_BYTES, suffix_of

MODALITIES = {"MR": "MRI", "PT": "PET"}
XRAY = ("CR", "DX", "MG", "IO", "PX", "RG", "RF", "XA")
NO_SCANS = ("SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "REG")
IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN)
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
# with JPEG, JPEG-LS and JPEG 2000, what SimpleITK 2.5 was seen to read; its GDCM has no video, JPEG XL or HTJ2K
GDCM = (RLE, *(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91)))

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
OTHER_SUFFIXES = (
    *(".json", ".txt", ".csv", ".tsv", ".xml", ".html", ".md", ".pdf", ".zip", ".gz", ".tar", ".log", ".tif", ".tiff"),
    *(".bmp", ".gif", ".npy", ".npz", ".py", ".yaml", ".xlsx"),
)
# a first element of group 2 or 8, explicit or implicit, for files that have neither preamble nor magic
BARE = re.compile(rb"[\x02\x08]\x00[\x00-\x18]\x00(?:[A-Z]{2}|..\x00\x00)|\x00\x08\x00[\x00-\x18][A-Z]{2}", re.DOTALL)
PIXEL_DATA = 0x7FE00010
PIXEL_TAGS = (PIXEL_DATA, 0x7FE00008, 0x7FE00009)  # grey values, float, double
UNDEFINED_LENGTH = 0xFFFFFFFF
UNIT_TOLERANCE = 2e-3  # direction cosines are often written with three decimals
LARGEST_MM = 1e6
LARGEST_RESCALE = 1e25  # times 2^32 still fits float32
LARGEST_RATIO = 100_000  # JPEG 2000 shrinks a blank slice of 2048 × 2048 by 57,000

RESCALE = ("RescaleSlope", "RescaleIntercept")
PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
XRAY_SPACING = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
# what may tell volumes apart whose slices lie at the same positions, the most telling first
SEPARATING = (
    *("StackID", "EchoTime", "EffectiveEchoTime", "EchoNumbers", "DiffusionBValue", "DiffusionGradientOrientation"),
    *("InversionTime", "TemporalPositionIdentifier", "TemporalPositionIndex", "TriggerTime", "FrameReferenceTime"),
    *("NominalPercentageOfCardiacPhase", "AcquisitionNumber", "FrameAcquisitionNumber", "ComplexImageComponent"),
    *("ImageType", "FrameType", "ConvolutionKernel", "KVP"),
)
# where an enhanced file keeps, frame by frame, what a plain one keeps at its top
FRAME_GROUPS = (
    ("PlanePositionSequence", "ImagePositionPatient"),
    ("PlaneOrientationSequence", "ImageOrientationPatient"),
    ("PixelMeasuresSequence", "PixelSpacing"),
    ("PixelMeasuresSequence", "SliceThickness"),
    ("PixelValueTransformationSequence", "RescaleSlope"),
    ("PixelValueTransformationSequence", "RescaleIntercept"),
    ("FrameContentSequence", "StackID"),
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("FrameContentSequence", "FrameAcquisitionNumber"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("MRDiffusionSequence", "DiffusionGradientDirectionSequence", "DiffusionGradientOrientation"),
    ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    ("MRImageFrameTypeSequence", "ComplexImageComponent"),
    ("MRImageFrameTypeSequence", "FrameType"),
    ("CTImageFrameTypeSequence", "FrameType"),
    ("PETFrameTypeSequence", "FrameType"),
)
SLICE_KEYWORDS = (*PLACE, "SliceThickness", *RESCALE, *SEPARATING, *XRAY_SPACING[1:])
FILE_KEYWORDS = (
    *("SOPClassUID", "Modality", "PatientID", "SeriesInstanceUID", "SeriesDescription", "Rows", "Columns"),
    *("NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
TAGS: list[Any] = [tag_for_keyword(keyword) for keyword in (*SLICE_KEYWORDS, *FILE_KEYWORDS)]


class Pixels(NamedTuple):
    """How a file stores its pixels, `offset` bytes from its start (-1 where they are absent)."""

    columns: int
    rows: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    inverted: bool
    syntax: str
    offset: int


class Owner(NamedTuple):
    """What all slices of a series share."""

    uid: str
    patient: str
    modality: str
    description: str


class Slice(NamedTuple):
    """One slice: a file, or one frame of it.

    Attributes:
        position: centre of the first pixel, (3,), mm.
        axes: directions in which the column's and the row's index grow, (2, 3), unit vectors.
        spacing: between columns and between rows, mm.
        thickness: for a slice that stands alone, mm.
        rescale: slope and intercept, None where they are absent.
        placed: whether the file gives position and orientation.
        tags: the values of `SEPARATING`.
        problem: what is wrong with the file.
    """

    path: Path
    frame: int
    position: NDArray[np.float64]
    axes: NDArray[np.float64]
    spacing: tuple[float, float]
    thickness: float
    rescale: tuple[float, float] | None
    placed: bool
    tags: Mapping[str, str]
    owner: Owner
    pixels: Pixels
    problem: Problem | None

    @property
    def normal(self) -> NDArray[np.float64]:
        """Return the unit vector across the slice, (3,)."""
        normal: NDArray[np.float64] = np.cross(*self.axes)
        return np.divide(normal, np.linalg.norm(normal))


def read_slices(path: Path) -> list[Slice]:
    """Return the slices of a file, none when it is not DICOM.

    Raises:
        LeftOut: when it is DICOM (by content, or by a suffix such as .dcm) and gives no slice.
    """
    uid, surely = "", True
    try:
        with path.open("rb") as file:
            likely, surely = _is_dicom(path, file)
            if not likely:
                return []
            header, place = _read_header(file)
            if not surely and "SOPClassUID" not in header and "Rows" not in header:
                return []
            surely, uid = True, _text(header, "SeriesInstanceUID")
            return _slices(path, header, _read_pixels(file, header, place))
    except LeftOut as left:
        left.uid = uid
        raise
    except Exception as error:  # pydicom raises nearly anything on a damaged file
        if not surely:
            return []
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise LeftOut("unreadable", "can't be opened, or the header is damaged", detail, uid) from error


def _is_dicom(path: Path, file: BinaryIO) -> tuple[bool, bool]:
    """Return whether a file looks like DICOM by its first bytes, and whether these or its suffix leave no doubt."""
    suffix = path.suffix.lower()
    if suffix_of(path) or suffix in OTHER_SUFFIXES:
        return False, True
    head = file.read(1024)
    file.seek(0)
    if DEFLATED.encode() in head:  # before pydicom inflates it whole
        raise LeftOut("unreadable_transfer_syntax", UID(DEFLATED).name)
    marked, bare = head[128:132] == b"DICM", BARE.match(head) is not None
    if suffix in DICOM_SUFFIXES and not marked and not bare:
        raise LeftOut("unreadable", "DICOM by suffix but not by content")
    return marked or bare, marked or suffix in DICOM_SUFFIXES


class _Place(NamedTuple):
    """Where a header ends: the tag, length and first byte of the pixels; the tag is 0 where there are none."""

    tag: int
    length: int
    offset: int


def _read_header(file: BinaryIO) -> tuple[Dataset, _Place]:
    """Return the elements that matter, and where the pixels lie."""
    found: list[tuple[int, str | None, int]] = []

    def is_pixels(tag: int, vr: str | None, length: int) -> bool:
        if int(tag) in PIXEL_TAGS:
            found.append((int(tag), vr, length))
        return bool(found)

    header = read_partial(file, is_pixels, force=True, specific_tags=TAGS)
    if not found:
        return header, _Place(0, 0, -1)
    tag, vr, length = found[0]
    return header, _Place(tag, length, file.tell() + (12 if vr in ("OB", "OW", "UN", "OF", "OD") else 8))


def _text(header: Any, keyword: str) -> str:
    """Return a value as text, several joined by backslashes as in the file, "" where absent."""
    value = header.get(keyword)
    if value is None:
        return ""
    if isinstance(value, int | float):
        return f"{value:.10g}"
    return "\\".join(map(str, value)) if isinstance(value, list | MultiValue) else str(value).strip()


def _integer(header: Dataset, keyword: str, default: int) -> int:
    """Return a count or a size, `default` where it is absent."""
    value = header.get(keyword)
    return default if value in (None, "") else int(value)


def _numbers(value: Any, length: int, limit: float) -> tuple[float, ...] | None:
    """Return finite numbers below a limit, None where they are absent; a value that is none of these raises."""
    if value is None or value == "" or (hasattr(value, "__len__") and len(value) == 0):
        return None
    numbers = tuple(float(number) for number in np.atleast_1d(np.asarray(value, dtype=np.float64)))
    if len(numbers) != length or not all(abs(number) < limit for number in numbers):
        raise ValueError(f"{length} finite numbers are expected, got {numbers}")
    return numbers


# Pixels: what they are, and whether the file holds them


def _read_pixels(file: BinaryIO, header: Dataset, place: _Place) -> tuple[Pixels, Problem | None]:
    """Return how the pixels are stored and what is wrong with them; colour and other things are left out."""
    _check_is_picture(header, place)
    syntax = _text(header.file_meta, "TransferSyntaxUID")
    if not syntax:
        implicit, little = header.original_encoding
        syntax = IMPLICIT if implicit else EXPLICIT if little else BIG_ENDIAN
    bits = _integer(header, "BitsAllocated", 0)
    stored = _integer(header, "BitsStored", bits)
    pixels = Pixels(
        columns=_integer(header, "Columns", 0),
        rows=_integer(header, "Rows", 0),
        frames=max(_integer(header, "NumberOfFrames", 1), 1),
        bits_allocated=bits,
        bits_stored=stored,
        high_bit=_integer(header, "HighBit", stored - 1),
        signed=_integer(header, "PixelRepresentation", 0) == 1,
        inverted=_text(header, "PhotometricInterpretation") == "MONOCHROME1" and _text(header, "Modality") in XRAY,
        syntax=syntax,
        offset=place.offset,
    )
    _check_layout(pixels)
    return pixels, _pixel_problem(file, pixels, place)


def _check_is_picture(header: Dataset, place: _Place) -> None:
    """Leave out what is no grey picture of a scan."""
    kind = UID(_text(header, "SOPClassUID") or _text(header.file_meta, "MediaStorageSOPClassUID"))
    if _text(header, "Modality") in NO_SCANS or (not place.tag and "Rows" not in header):
        if "Image Storage" in kind.name and not place.tag:
            raise LeftOut("unreadable", "the file ends before its pixels")
        raise LeftOut("no_pixels", f"no pixels of a scan but {kind.name or 'another object'}")
    if place.tag not in (0, PIXEL_DATA):
        raise LeftOut("no_pixels", "a floating-point map, not grey values")
    colours = _text(header, "PhotometricInterpretation")
    samples = _integer(header, "SamplesPerPixel", 1)
    if samples != 1 or not (colours or "MONOCHROME").startswith("MONOCHROME"):
        raise LeftOut("colour", f"in colour ({colours or 'unknown'}, {count(samples, 'sample')} per pixel)")


def _check_layout(pixels: Pixels) -> None:
    """Leave out pixels that no scanner writes."""
    bits, stored, high = pixels.bits_allocated, pixels.bits_stored, pixels.high_bit
    if bits not in (8, 16, 32) or not stored - 1 <= high < bits or stored < 1:
        reason = f"pixels of {stored} bits up to bit {high} in {bits} are not 8, 16 or 32 bits wide"
        raise LeftOut("unreadable", reason)
    size = pixels.columns * pixels.rows * pixels.frames * bits // 8
    if not 0 < size <= LARGEST_BYTES:
        detail = f"{pixels.columns} × {pixels.rows} × {pixels.frames} pixels of {bits} bits"
        reason = f"the header promises no pixels, or more than {LARGEST_BYTES >> 30} GiB"
        raise LeftOut("unreadable", reason, detail)


def _pixel_problem(file: BinaryIO, pixels: Pixels, place: _Place) -> Problem | None:
    """Return what keeps the pixels from being read: their syntax, or fewer bytes than promised."""
    available = os.fstat(file.fileno()).st_size - place.offset
    promised = pixels.columns * pixels.rows * pixels.frames * pixels.bits_allocated // 8
    if pixels.syntax not in (*NATIVE, *GDCM) or (pixels.syntax == BIG_ENDIAN and pixels.bits_allocated == 8):
        return Problem("unreadable_transfer_syntax", UID(pixels.syntax).name)
    if not place.tag:
        return Problem("unreadable", "the file ends before its pixels")
    if (pixels.syntax in GDCM) != (place.length == UNDEFINED_LENGTH):
        return Problem("unreadable", f"the pixels are not stored as {UID(pixels.syntax).name}")
    if pixels.syntax in NATIVE:
        short = min(available, place.length)
    else:
        file.seek(place.offset)
        short = promised if _fragments_end(file) <= available and promised <= available * LARGEST_RATIO else available
    if short >= promised:
        return None
    detail = f"{pixels.columns} × {pixels.rows} × {pixels.frames} pixels need {promised} bytes, {short} are there"
    return Problem("unreadable", "truncated", detail)


def _fragments_end(file: BinaryIO) -> int:
    """Return how many bytes the compressed fragments take, from the file's position on, by their own lengths."""
    start = file.tell()
    last: int = parse_fragments(file)[1][-1]
    file.seek(last + 4)
    return last + 8 + int.from_bytes(file.read(4), "little") - start


# Slices: one per frame


def _slices(path: Path, header: Dataset, stored: tuple[Pixels, Problem | None]) -> list[Slice]:
    """Return a slice per frame with its own place, rescale and tags."""
    pixels = stored[0]
    values = {keyword: header.get(keyword) for keyword in SLICE_KEYWORDS}
    frames = [values]
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if groups:
        if len(groups) != pixels.frames:
            detail = f"{len(groups)} for {pixels.frames} frames"
            raise LeftOut("unreadable", "not every frame is described", detail)
        shared = header.get("SharedFunctionalGroupsSequence")
        values |= _frame_values(shared[0]) if shared else {}
        frames = [values | _frame_values(group) for group in groups]
    elif pixels.frames > 1:
        raise LeftOut("no_geometry", "several frames without their positions")
    if "MOSAIC" in _text(header, "ImageType"):
        raise LeftOut("no_geometry", "a mosaic, all slices in one picture")
    modality = _text(header, "Modality")
    owner = Owner(
        _text(header, "SeriesInstanceUID"),
        _text(header, "PatientID"),
        MODALITIES.get(modality, modality),
        _text(header, "SeriesDescription"),
    )
    return [_slice(path, frame, values, owner, *stored) for frame, values in enumerate(frames)]


def _frame_values(group: Dataset) -> dict[str, Any]:
    """Return what one functional group says, by the keywords of plain files."""
    found = {}
    for *sequences, keyword in FRAME_GROUPS:
        item: Any = group
        for sequence in sequences:
            items = item.get(sequence)
            item = items[0] if items else Dataset()
        if keyword in item:
            found[keyword] = item.get(keyword)
    return found


def _slice(
    path: Path, frame: int, values: Mapping[str, Any], owner: Owner, pixels: Pixels, problem: Problem | None
) -> Slice:
    """Return one slice; one without a place is left out unless it is an X-ray picture."""
    position = _numbers(values["ImagePositionPatient"], 3, LARGEST_MM)
    axes = _numbers(values["ImageOrientationPatient"], 6, 2.0)
    spacing = _spacing(values, owner.modality)
    placed = position is not None and axes is not None
    if owner.modality in XRAY:
        if spacing is None:
            problem = problem or Problem("no_geometry", "no pixel spacing; 1 mm is taken", stops=False)
            spacing = (1.0, 1.0)
    elif not placed or spacing is None:
        missing = [keyword for keyword in PLACE if not values[keyword]]
        raise LeftOut("no_geometry", f"no {', '.join(missing)}")
    thickness = _numbers(values["SliceThickness"], 1, LARGEST_MM)
    rescale = [_numbers(values[keyword], 1, LARGEST_RESCALE) for keyword in RESCALE]
    if rescale[0] == (0.0,):
        raise ValueError("RescaleSlope is 0")
    return Slice(
        path=path,
        frame=frame,
        position=np.array(position if placed else (0.0, 0.0, 0.0)),
        axes=_unit_vectors(axes if placed and axes else (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)),
        spacing=(spacing[1], spacing[0]),  # DICOM gives the distance between rows first
        thickness=thickness[0] if thickness and thickness[0] > 0 else 1.0,
        rescale=(rescale[0][0], rescale[1][0]) if rescale[0] and rescale[1] else None,
        placed=placed,
        tags={keyword: _text(values, keyword) for keyword in SEPARATING},
        owner=owner,
        pixels=pixels,
        problem=problem,
    )


def _spacing(values: Mapping[str, Any], modality: str) -> tuple[float, ...] | None:
    """Return the distances between rows and between columns in mm, None where they are absent."""
    for keyword in XRAY_SPACING if modality in XRAY else XRAY_SPACING[:1]:
        spacing = _numbers(values[keyword], 2, LARGEST_MM)
        if spacing is not None:
            if min(spacing) <= 0:
                raise ValueError(f"{keyword} is {spacing}")
            return spacing
    return None


def _unit_vectors(numbers: tuple[float, ...]) -> NDArray[np.float64]:
    """Return two perpendicular unit vectors, (2, 3); numbers that are none raise."""
    axes = np.reshape(np.array(numbers, dtype=np.float64), (2, 3))
    if np.abs(axes @ axes.T - np.eye(2)).max() > UNIT_TOLERANCE:
        raise ValueError(f"ImageOrientationPatient {numbers} is not two perpendicular unit vectors")
    unit: NDArray[np.float64] = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    return unit
