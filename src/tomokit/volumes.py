"""Volumes on disk, in any format: NIfTI, MetaImage, NRRD, and PNG or JPEG as one slice.

Arrays are (X, Y, Z), or (X, Y, Z, C) where a file holds several channels, in the index order of the file; an
affine is a (4, 4) matrix from voxel index to world, in mm, RAS. A header is believed only as far as the file's
size bears it out, so that a damaged one can't ask for more memory than the file could fill. SimpleITK takes 100 MB:
it is imported where a file or a measure needs it.
"""

import contextlib
import gzip
import itertools
import logging
import re
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import nibabel
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import ArrayLike, NDArray
from PIL import Image, UnidentifiedImageError

from tomokit.errors import TomokitError
from tomokit.files import replacing
from tomokit.geometry import check_affine

NIFTI = (".nii.gz", ".nii")
ITK = (".mha", ".mhd", ".nrrd", ".nhdr")
ITK_TYPES = ("UInt8", "Int8", "UInt16", "Int16", "UInt32", "Int32", "UInt64", "Int64", "Float32", "Float64")
PICTURES = (".png", ".jpg", ".jpeg")
SUFFIXES = (*NIFTI, *ITK, *PICTURES)
LARGEST_BYTES = 8 << 30  # 2048 × 2048 × 1024 voxels of int16
DEFLATE_RATIO = 1032  # the most that deflate shrinks
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
READ_CHUNK = 1 << 20
LARGEST_TEXT_HEADER = 1 << 16
LONGEST_LINE = 1024  # bytes of a field in a text header


class Header(NamedTuple):
    """What a file says before its voxels are read.

    Attributes:
        shape: (X, Y, Z), or (X, Y, Z, C) with several channels.
        affine: (4, 4) from voxel index to world RAS, in mm.
        dtype: of the voxels as they are read, after scaling.
        pixdim: NIfTI's own spacing fields, as stored; None in other formats.
        unit: NIfTI's unit of length ("mm", "meter", "micron", "unknown"); "mm" in other formats.
        qform_away_mm: how far a corner voxel lies apart by NIfTI's qform and sform, where both are there.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]
    pixdim: tuple[float, float, float] | None = None
    unit: str = "mm"
    qform_away_mm: float = 0.0


class Volume(NamedTuple):
    """Voxels with their place: `array` (X, Y, Z[, C]), and `affine` (4, 4) to world RAS in mm."""

    array: NDArray[Any]
    affine: NDArray[np.float64]


def suffix_of(path: str | PurePath) -> str:
    """Return the known suffix of a file name, in lower case (".nii.gz"), or "" when it is no volume's."""
    name = PurePath(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def stem_of(path: str | PurePath) -> str:
    """Return the file name without the suffix of its format: "case_1" for `imagesTr/case_1.nii.gz`."""
    name = PurePath(path).name
    suffix = suffix_of(name)
    return name[: -len(suffix)] if suffix else PurePath(name).stem


def read_header(path: str | Path) -> Header:
    """Return the shape, affine and type of a volume without reading its voxels.

    Raises:
        TomokitError: when the file is absent, of no known format, damaged, larger than `LARGEST_BYTES`, or
            promises more voxels than the file can hold.
    """
    path = Path(path)
    with _explained(path):
        header = _READERS[_kind(path)][0](path)
        _check_size(path, header.shape, header.dtype.itemsize)
        return header


def read_volume(path: str | Path, header: Header | None = None) -> Volume:
    """Return the voxels of a file, scaled as its header says, and their affine; `header` is the file's, if known.

    NIfTI's integers stay integers where slope and intercept are 1 and 0. A picture is one axial slice (X, Y, 1)
    of 1 mm, grey; a colour picture becomes its luminance.

    Raises:
        TomokitError: as `read_header`, or when the voxels are truncated or damaged.
    """
    path = Path(path)
    header = header or read_header(path)
    with _explained(path):
        return Volume(_READERS[_kind(path)][1](path, header), header.affine)


def write_volume(path: str | Path, array: ArrayLike, affine: ArrayLike) -> None:
    """Write an array (X, Y, Z) as NIfTI with its affine (voxel to RAS, mm) as both sform and qform.

    Raises:
        TomokitError: when the affine is not invertible or the file can't be written.
    """
    affine = check_affine(affine)
    image = nibabel.Nifti1Image(np.asarray(array), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    with replacing(path) as temporary:
        nibabel.save(image, temporary)


def _kind(path: Path) -> str:
    """Return the family of a file's format."""
    suffix = suffix_of(path)
    for kind, suffixes in (("nifti", NIFTI), ("itk", ITK), ("picture", PICTURES)):
        if suffix in suffixes:
            return kind
    raise TomokitError(f"{path} is none of {', '.join(SUFFIXES)}; convert it, or import its folder if it is DICOM")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the libraries raise on a damaged file into one text that names it."""
    if not path.is_file():
        raise TomokitError(f"{path} does not exist; correct dataset.json or restore the file")
    _reading.here = True
    try:
        yield
    except MemoryError as error:
        raise TomokitError(f"the memory does not suffice to read {path}; close other programs") from error
    except _LIBRARY_ERRORS as error:
        text = _ITK_PREAMBLE.sub("", " ".join(str(error).split()))[:200]
        raise TomokitError(
            f"{path} can't be read ({type(error).__name__}: {text}); restore or remove the file"
        ) from error
    finally:
        _reading.here = False


def _is_not_ours(record: logging.LogRecord) -> bool:
    """Return whether nibabel's message about a header comes from another reader: ours raises, or returns as stored."""
    return not getattr(_reading, "here", False)


_reading = threading.local()
logging.getLogger("nibabel.global").addFilter(_is_not_ours)


_ITK_PREAMBLE = re.compile(r"^Exception thrown in SimpleITK.*?ERROR: (\w+\(0x\w+\): )?")  # its own source files
_LIBRARY_ERRORS = (
    ImageFileError,
    HeaderDataError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    IndexError,
    KeyError,
    zlib.error,
)


def _check_size(path: Path, shape: tuple[int, ...], itemsize: int) -> None:
    """Raise when a header promises more voxels than its file can hold, or than any scan has."""
    promised = itemsize
    for length in shape:
        promised *= int(length)
    if promised <= 0:
        raise TomokitError(f"{path} has no voxels: its header gives the shape {shape}; restore or remove the file")
    if promised > LARGEST_BYTES:
        raise TomokitError(
            f"{path} is said to hold {shape} voxels, {promised / 2**30:.0f} GiB, more than any scan "
            f"({LARGEST_BYTES >> 30} GiB); its header is damaged: restore or remove the file"
        )
    available = sum(file.stat().st_size for file in voxel_files(path)) * DEFLATE_RATIO
    if promised > available:
        raise TomokitError(
            f"{path} can't be read: its header gives {shape} voxels, {promised} bytes, more than the file can hold; "
            "it is truncated or damaged: restore or remove the file"
        )


# NIfTI


def _nifti_header(path: Path) -> Header:
    """Return what a NIfTI header says; pixdim is read as stored, since nibabel mends it in silence."""
    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):
        raise TomokitError(f"{path} is a {type(image).__name__}, not NIfTI; convert it")
    dtype = image.get_data_dtype()
    _check_kind(path, dtype)
    scaled = _is_scaled(image)
    with _open(path) as stream:
        header = type(image.header).from_fileobj(stream, check=False)
    x, y, z = (float(size) for size in header["pixdim"][1:4])
    shape = tuple(int(length) for length in image.shape)
    unit = image.header.get_xyzt_units()[0]
    affine = _check_affine(path, image.affine)
    away = _qform_away_mm(image, affine)
    return Header(shape, affine, np.dtype(np.float32) if scaled else dtype, (x, y, z), unit, away)


def _qform_away_mm(image: nibabel.Nifti1Image, affine: NDArray[np.float64]) -> float:
    """Return how far a corner voxel's centre by the qform lies from that by the sform, or 0 where one is not set."""
    if not (image.header["qform_code"] > 0 and image.header["sform_code"] > 0):
        return 0.0
    sizes = (*image.shape, 1, 1, 1)[:3]
    corners = np.array(list(itertools.product(*((0, size - 1) for size in sizes))))
    apart = apply_affine(image.header.get_qform(), corners) - apply_affine(affine, corners)
    return float(np.linalg.norm(apart, axis=1).max())


def _nifti_array(path: Path, header: Header) -> NDArray[Any]:
    """Return the voxels of a NIfTI file; a compressed one is read to its end, so that its checksum is checked."""
    kind = type(nibabel.load(path))
    with _open(path) as stream:
        image = kind.from_stream(stream)
        if _is_scaled(image):
            array = image.get_fdata(dtype=np.float32, caching="unchanged")
        else:
            array = np.asarray(image.dataobj.get_unscaled())
        while stream.read(READ_CHUNK):
            pass
    return array


def _is_scaled(image: nibabel.Nifti1Image) -> bool:
    """Return whether stored values must be multiplied or shifted."""
    return (image.dataobj.slope, image.dataobj.inter) != (1, 0)


def _open(path: Path) -> Any:
    """Return a stream of a file's bytes, decompressed by its name."""
    return _GzipFile(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


class _GzipFile(gzip.GzipFile):
    """A compressed file that is read into an array piece by piece; Python's holds a second copy of all that is read."""

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, and return how many bytes there were."""
        view, done = memoryview(buffer).cast("B"), 0
        while part := self.read(min(READ_CHUNK, len(view) - done)):
            view[done : done + len(part)] = part
            done += len(part)
        return done


def _check_affine(path: Path, affine: ArrayLike) -> NDArray[np.float64]:
    """Return the affine as `check_affine` does, its error led by the file."""
    try:
        return check_affine(affine)
    except TomokitError as error:
        raise TomokitError(f"{path}: {error}") from None


def _check_kind(path: Path, dtype: np.dtype[Any]) -> None:
    """Raise when voxels are not one real number each."""
    if dtype.kind not in "biuf":
        raise TomokitError(f"{path} has voxels of the type {dtype}, not one number each; store grey values or labels")


# MetaImage and NRRD


def _itk_header(path: Path) -> Header:
    """Return what ITK reads from a MetaImage or NRRD header, turned from LPS to RAS."""
    import SimpleITK as sitk

    voxel_files(path)  # before ITK opens them
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    dimension = reader.GetDimension()
    pixel = reader.GetPixelID()
    dtype = next((name.lower() for name in ITK_TYPES if pixel in _itk_numbers(sitk, name)), None)
    if dtype is None:
        kind = sitk.GetPixelIDValueAsString(pixel)
        raise TomokitError(f"{path} has voxels of the type {kind}, not one number each; store grey values or labels")
    channels = reader.GetNumberOfComponents()
    if dimension not in (2, 3):
        raise TomokitError(f"{path} has {dimension} dimensions; store one volume per file")
    size = (*reader.GetSize(), 1)[:3]
    affine = np.eye(4)
    direction = np.eye(3)
    direction[:dimension, :dimension] = np.reshape(reader.GetDirection(), (dimension, dimension))
    affine[:3, :3] = direction * (*reader.GetSpacing(), 1.0)[:3]
    affine[:3, 3] = (*reader.GetOrigin(), 0.0)[:3]
    shape = tuple(map(int, size)) + ((channels,) if channels > 1 else ())
    return Header(shape, _check_affine(path, LPS_TO_RAS @ affine), np.dtype(dtype))


def _itk_array(path: Path, header: Header) -> NDArray[Any]:
    """Return the voxels ITK reads, as (X, Y, Z[, C])."""
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    channels = len(header.shape) == 4
    spatial = tuple(reversed(range(array.ndim - channels)))
    turned = array.transpose(*spatial, *([array.ndim - 1] if channels else []))
    return turned.reshape(header.shape)


def _itk_numbers(sitk: Any, name: str) -> tuple[int, ...]:
    """Return ITK's numbers for voxels of that type: of one channel, and of several where it knows them."""
    several = () if name.endswith("Int64") else (getattr(sitk, f"sitkVector{name}"),)
    return (getattr(sitk, f"sitk{name}"), *several)


def itk_image(array: ArrayLike, affine: ArrayLike) -> Any:
    """Return an array (X, Y, Z) of numbers, not bool, on its grid as SimpleITK's image: axes z, y, x and LPS inside.

    Raises:
        TomokitError: when `affine` is not an invertible (4, 4) matrix.
    """
    import SimpleITK as sitk

    turned = LPS_TO_RAS @ check_affine(affine)
    spacing = voxel_sizes(turned)
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.transpose(array)))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((turned[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(turned[:3, 3].tolist())
    return image


def voxel_files(path: Path) -> list[Path]:
    """Return the files that hold a volume's voxels: the file itself, or the data file that its text header names.

    Raises:
        TomokitError: when the named file is absent, lies outside the header's folder, or is one of several.
    """
    if suffix_of(path) not in ITK:
        return [path]
    fields = _read_text_header(path)
    if suffix_of(path) in (".mhd", ".nhdr") and not fields.keys() & {"elementdatafile", "data file", "datafile"}:
        raise TomokitError(
            f"{path} names no data file in its first {LARGEST_TEXT_HEADER >> 10} KiB; restore the header"
        )
    name = fields.get("elementdatafile") or fields.get("data file") or fields.get("datafile") or "LOCAL"
    if name.upper() == "LOCAL":
        return [path]
    if name.upper().startswith("LIST") or "%" in name:
        raise TomokitError(f"{path} spreads its voxels over several files ({name}); store one data file")
    target = (path.parent / name).resolve()
    if path.parent.resolve() not in target.parents:
        raise TomokitError(f"{path} points to {name}, outside its own folder; keep header and data together")
    if not target.is_file():
        raise TomokitError(f"{path} needs its data file {name}, which does not exist; copy both files")
    return [target]


def _read_text_header(path: Path) -> dict[str, str]:
    """Return the fields of a MetaImage or NRRD header, names in lower case, once ITK can be trusted with it.

    Raises:
        TomokitError: when a field that holds numbers holds something else, or more of them than there are axes, or
            a line is longer than any field; ITK's readers were seen to crash on such headers.
    """
    with path.open("rb") as file:
        start = file.read(LARGEST_TEXT_HEADER)
    fields: dict[str, str] = {}
    is_nrrd = suffix_of(path) in (".nrrd", ".nhdr")
    for line in start.splitlines():
        field = _FIELD.match(line)
        if "elementdatafile" in fields or (is_nrrd and not line.strip()):
            break  # the header ends here, the voxels begin
        if len(line) > LONGEST_LINE and b":=" not in line:
            raise TomokitError(
                f"{path} can't be read: its header has a line of {len(line)} bytes; restore or remove the file"
            )
        if field is not None:
            name, value = (part.decode("utf-8", "replace").strip() for part in field.groups())
            fields[name.lower()] = value
    for name, most in _NUMBERS.items():
        numbers = re.sub(r"[(),]|\bnone\b", " ", fields.get(name, "")).split()
        if len(numbers) > most or not all(map(_NUMBER.fullmatch, numbers)):
            shown = fields[name][:60]
            raise TomokitError(f"{path} can't be read: its header has `{name}` {shown!r}; restore or remove the file")
    return fields


_FIELD = re.compile(rb"[ \t]*([A-Za-z][A-Za-z ]*?)[ \t]*(?:=|:(?!=))(.*)")
_NUMBER = re.compile(r"[+-]?(\d{1,10}(\.\d{0,20})?|\.\d{1,20})([eE][+-]?\d{1,3})?|nan", re.I)
# Fields of a MetaImage and an NRRD header that hold numbers, and how many at most (four axes).
_NUMBERS = {
    **dict.fromkeys(("ndims", "headersize", "elementnumberofchannels", "dimension", "space dimension"), 1),
    **dict.fromkeys(("byte skip", "line skip", "byteskip", "lineskip"), 1),
    **dict.fromkeys(("dimsize", "elementspacing", "elementsize", "offset", "position", "origin"), 4),
    **dict.fromkeys(("centerofrotation", "sizes", "spacings", "thicknesses", "space origin"), 4),
    **dict.fromkeys(("axis mins", "axismins", "axis maxs", "axismaxs"), 4),
    **dict.fromkeys(("transformmatrix", "rotation", "orientation", "space directions", "measurement frame"), 16),
}


# Pictures


def _picture_header(path: Path) -> Header:
    """Return a picture's size as one axial slice, columns to the patient's left, rows to the back."""
    with Image.open(path) as picture:
        width, height = picture.size
        dtype = _DEEP_MODES.get(picture.mode, np.uint8)
    return Header((width, height, 1), LPS_TO_RAS.copy(), np.dtype(dtype))


def _picture_array(path: Path, header: Header) -> NDArray[Any]:
    """Return the grey values of a picture as (X, Y, 1)."""
    with Image.open(path) as picture:
        grey = picture if picture.mode in _DEEP_MODES else picture.convert("L")
        return np.asarray(grey).T[:, :, None]


_DEEP_MODES = {"I;16": np.uint16, "I;16B": np.uint16, "I": np.int32, "F": np.float32}  # Pillow's


_READERS: dict[str, Any] = {
    "nifti": (_nifti_header, _nifti_array),
    "itk": (_itk_header, _itk_array),
    "picture": (_picture_header, _picture_array),
}
