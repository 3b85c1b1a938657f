"""A slice's pixels: read straight from an uncompressed file, decoded by GDCM from a compressed one."""

import struct
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import UID, SecondaryCaptureImageStorage, generate_uid

from tomokit.dicom.codec import Decoder
from tomokit.dicom.headers import BIG_ENDIAN, NATIVE, RLE, Pixels, Slice
from tomokit.errors import TomokitError

JPEG_2000 = b"\xff\x4f\xff\x51"  # start of the codestream and of its size segment
JPEG_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})  # markers of the frame header, JPEG-LS last


def read_pixels(picture: Slice, decoder: Decoder) -> NDArray[Any]:
    """Return a slice's stored integers (rows, columns), before rescaling; an X-ray's MONOCHROME1 is inverted.

    Raises:
        TomokitError: when the file is gone, truncated or damaged.
    """
    pixels = picture.pixels
    try:
        stored = _native(picture) if pixels.syntax in NATIVE else _decoded(picture, decoder)
    except Exception as error:  # pydicom and GDCM raise nearly anything on damaged pixels
        text = " ".join(str(error).split())[-200:]
        raise TomokitError(
            f"the pixels of {picture.path} can't be read as {UID(pixels.syntax).name} "
            f"({type(error).__name__}: {text}); copy the file again from its source"
        ) from error
    # overlays may lie above the stored bits, and the sign is the highest of these
    above = pixels.bits_allocated - 1 - pixels.high_bit
    stored = (stored << above) >> (pixels.bits_allocated - pixels.bits_stored)
    if pixels.inverted:
        lowest, highest = bounds(pixels)
        stored = lowest + highest - stored.astype(np.int64)
    return stored


def bounds(pixels: Pixels) -> tuple[int, int]:
    """Return the lowest and the highest number that the stored bits can hold."""
    levels = 1 << pixels.bits_stored
    return (-levels // 2, levels // 2 - 1) if pixels.signed else (0, levels - 1)


def _type(pixels: Pixels) -> np.dtype[Any]:
    """Return the type of the stored numbers."""
    order = ">" if pixels.syntax == BIG_ENDIAN else "<"
    return np.dtype(f"{order}{'i' if pixels.signed else 'u'}{pixels.bits_allocated // 8}")


def _native(picture: Slice) -> NDArray[Any]:
    """Return uncompressed pixels."""
    pixels, dtype = picture.pixels, _type(picture.pixels)
    count = pixels.rows * pixels.columns
    stored: NDArray[Any] = np.fromfile(
        picture.path, dtype, count, offset=pixels.offset + picture.frame * count * dtype.itemsize
    )
    return stored.reshape(pixels.rows, pixels.columns)


def _decoded(picture: Slice, decoder: Decoder) -> NDArray[Any]:
    """Return the pixels that GDCM decodes from a file that holds nothing but one compressed frame."""
    pixels = picture.pixels
    with picture.path.open("rb") as source:
        source.seek(pixels.offset)
        frame = get_frame(source, picture.frame, number_of_frames=pixels.frames)
    size = (pixels.columns, pixels.rows, 1)
    if pixels.syntax != RLE and _coded_size(frame) != size:  # GDCM would allocate what a damaged frame asks for
        raise ValueError(f"columns, rows and channels are {size} by the header, {_coded_size(frame)} by the pixels")
    file = BytesIO()
    _bare(pixels, frame).save_as(file, enforce_file_format=True)
    return decoder.decode(file.getvalue()).reshape(pixels.rows, pixels.columns).astype(_type(pixels))


def _coded_size(frame: bytes) -> tuple[int, int, int] | None:
    """Return columns, rows and channels as a JPEG, JPEG-LS or JPEG 2000 frame gives them; None when it is none."""
    start = frame.find(JPEG_2000, 0, 1024)
    if start >= 0:
        right, bottom, left, top, channels = struct.unpack_from(">8x4I16xH", frame, start)
        return right - left, bottom - top, channels
    place = 2
    while place + 10 <= len(frame):
        marker, length, rows, columns, channels = struct.unpack_from(">xBHxHHB", frame, place)
        if marker in JPEG_FRAMES:
            return columns, rows, channels
        place += 2 + length
    return None


def _bare(pixels: Pixels, frame: bytes) -> Dataset:
    """Return a DICOM object that holds one compressed frame, without rescale or anything of the patient."""
    bare = Dataset()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = UID(pixels.syntax)
    bare.SOPClassUID = SecondaryCaptureImageStorage
    bare.SOPInstanceUID = generate_uid()
    bare.SamplesPerPixel = 1
    bare.PhotometricInterpretation = "MONOCHROME2"
    bare.Rows = pixels.rows
    bare.Columns = pixels.columns
    bare.BitsAllocated = pixels.bits_allocated
    bare.BitsStored = pixels.bits_stored
    bare.HighBit = pixels.high_bit
    bare.PixelRepresentation = int(pixels.signed)
    bare.PixelData = encapsulate([frame])
    bare["PixelData"].is_undefined_length = True
    return bare
