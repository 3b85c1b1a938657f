"""DICOM folders: known truth first, then each fault, then SimpleITK's own series reader and real scans."""

import copy
import random
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    MRImageStorage,
    RLELossless,
)

from tomokit.dicom import KINDS, codec, find_series, read_series
from tomokit.dicom import series as series_module
from tomokit.errors import TomokitError
from tomokit.volumes import Volume, read_volume, write_volume

COLUMNS, ROWS, COUNT = 24, 20, 12
SPACING = (0.8, 1.1, 2.5)  # between columns, rows, slices
ORIGIN = np.array([-31.5, 12.25, 104.0])
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """Return a rotation about the three axes, by degrees."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians([x, y, z])), np.sin(np.radians([x, y, z]))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    return np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]) @ about_y @ about_x


OBLIQUE = rotation(12, -7, 20)
STEP = OBLIQUE[:, 2] * SPACING[2]
STORED = np.random.default_rng(7).integers(0, 4096, (COLUMNS, ROWS, COUNT), dtype=np.uint16)
AFFINE = np.eye(4)
AFFINE[:3, :3], AFFINE[:3, 3] = OBLIQUE * SPACING, ORIGIN
AFFINE = LPS_TO_RAS @ AFFINE


def decimals(numbers) -> list[str]:
    """Return numbers as DICOM's decimal strings, of 16 characters at most."""
    return [f"{number:.11f}"[:16] for number in numbers]


def picture(index: int = 0, **changes) -> Dataset:
    """Return one CT slice of the known volume; a change to None removes an element."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values = {
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": f"1.2.3.4.{index + 1}",
        "Modality": "CT",
        "SeriesDescription": "thorax",
        "PatientName": "Doe^Jane",
        "PatientBirthDate": "19660101",
        "PatientID": "p-17",
        "SliceThickness": "9",
        "SpacingBetweenSlices": "7",
        "SeriesInstanceUID": "1.2.3.4",
        "InstanceNumber": 100 - index,
        "ImagePositionPatient": decimals(ORIGIN + index * STEP),
        "ImageOrientationPatient": decimals(OBLIQUE[:, :2].T.ravel()),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": ROWS,
        "Columns": COLUMNS,
        "PixelSpacing": [SPACING[1], SPACING[0]],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "RescaleIntercept": -1024,
        "RescaleSlope": 1,
        "PixelData": STORED[:, :, index % COUNT].T.tobytes(),
    }
    for keyword, value in (values | changes).items():
        if value is not None:
            setattr(header, keyword, value)
    header["PixelData"].VR = "OW"
    return header


def save(header: Dataset, path: Path) -> Path:
    """Write a file with preamble and meta data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def write(tmp_path):
    """Return a function that writes slices under shuffled names without a suffix, and returns their folder."""

    def to_folder(pictures=None, name: str = "scan") -> Path:
        pictures = [picture(index) for index in range(COUNT)] if pictures is None else pictures
        names = random.Random(3).sample(range(len(pictures)), len(pictures))
        for number, header in zip(names, pictures, strict=True):
            save(header, tmp_path / name / f"IM{number:04d}")
        return tmp_path / name

    return to_folder


def only(folder: Path):
    """Return the one series of a folder that leaves nothing out."""
    (series,), left = find_series(folder)
    assert left == []
    return series


def kinds(faults) -> list[str]:
    return [fault.kind for fault in faults]


def read_by_itk(folder: Path) -> tuple[Volume, sitk.Image]:
    """Return what SimpleITK's own series reader makes of a folder, as a volume in RAS."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image).T, LPS_TO_RAS @ affine), image


def assert_same_in_the_world(a: Volume, b: Volume, tolerance_mm: float = 1e-3, every: int = 1) -> None:
    """Look each voxel of `a` (or every so many) up in `b`, by its place in the world."""
    index = np.indices(a.array.shape).reshape(3, -1).T[::every]
    there = apply_affine(np.linalg.inv(b.affine), apply_affine(a.affine, index))
    nearest = np.rint(there).astype(int)
    apart = apply_affine(b.affine, nearest) - apply_affine(a.affine, index)
    assert np.abs(apart).max() <= tolerance_mm
    assert np.array_equal(b.array[tuple(nearest.T)], a.array[tuple(index.T)])
    assert a.array.shape == b.array.shape


# Known truth


def test_hounsfield_units_and_affine_are_exact(write):
    series = only(write())
    assert (series.uid, series.patient, series.modality, series.description) == ("1.2.3.4", "p-17", "CT", "thorax")
    assert series.faults == ()
    volume = read_series(series)
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, STORED.astype(int) - 1024)
    assert np.allclose(volume.affine, AFFINE, atol=1e-9)


def test_files_are_sorted_along_the_normal(write):
    series = only(write())
    numbers = [pydicom.dcmread(path).InstanceNumber for path in series.files]
    assert numbers == [100 - index for index in range(COUNT)]


def test_no_other_element_of_a_person_is_kept(write):
    text = repr(only(write()))
    assert "p-17" in text and "Doe" not in text and "19660101" not in text


@pytest.mark.parametrize(
    ("slopes", "intercept", "bits", "dtype"),
    [
        ([1], -1024, 12, np.int16),
        ([2], 0.0, 16, np.int32),
        ([1], 0, 16, np.int16),  # 16 bits could hold more, these values don't
        ([0.25], -3.5, 12, np.float32),
        ([1 + index / 8 for index in range(COUNT)], 0, 12, np.float32),  # as in PET, a slope per slice
    ],
)
def test_rescale_is_applied_once_and_per_slice(write, slopes, intercept, bits, dtype):
    slopes = np.resize(slopes, COUNT)
    factor = 15 if bits == 16 and dtype == np.int32 else 1
    stored = STORED * factor
    changes = {"BitsStored": bits, "HighBit": bits - 1, "RescaleIntercept": intercept}
    pictures = [
        picture(index, RescaleSlope=float(slopes[index]), PixelData=stored[:, :, index].T.tobytes(), **changes)
        for index in range(COUNT)
    ]
    array = read_series(only(write(pictures))).array
    assert array.dtype == dtype
    assert np.array_equal(array, (stored * slopes + intercept).astype(dtype))


def test_the_sign_and_bits_above_the_stored_ones_are_read_right(write):
    signed = STORED.astype(np.int16) - 2048
    overlaid = (signed.view(np.uint16) & 0x0FFF) | 0x5000  # an old overlay lies in the bits 12 to 15
    pictures = [
        picture(index, PixelRepresentation=1, PixelData=overlaid[:, :, index].T.tobytes()) for index in range(COUNT)
    ]
    assert np.array_equal(read_series(only(write(pictures))).array, signed.astype(int) - 1024)


def test_bytes_and_big_endian_words_are_read(write, tmp_path):
    small = (STORED // 16).astype(np.uint8)
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    bytewise = write([picture(index, PixelData=small[:, :, index].T.tobytes(), **bits) for index in range(COUNT)])
    assert np.array_equal(read_series(only(bytewise)).array, small.astype(int) - 1024)
    for index in range(COUNT):
        header = picture(index, PixelData=STORED[:, :, index].T.astype(">u2").tobytes())
        header.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        save(header, tmp_path / "big" / str(index))
    assert np.array_equal(read_series(only(tmp_path / "big")).array, STORED.astype(int) - 1024)


def test_spacing_comes_from_positions_with_a_sheared_affine_under_gantry_tilt(write):
    shift = STEP + OBLIQUE[:, 1] * SPACING[2] * np.tan(np.radians(15))
    pictures = [picture(index, ImagePositionPatient=decimals(ORIGIN + index * shift)) for index in range(COUNT)]
    series = only(write(pictures))
    (fault,) = series.faults
    assert fault.kind == "gantry_tilt" and "tilted by 15.00°" in fault.text and not fault.stops
    volume = read_series(series)
    corner = apply_affine(volume.affine, [3, 5, 11])
    truth = ORIGIN + 3 * SPACING[0] * OBLIQUE[:, 0] + 5 * SPACING[1] * OBLIQUE[:, 1] + 11 * shift
    assert np.allclose(corner, truth * [-1, -1, 1], atol=1e-8)


def test_slices_stacked_sideways_are_refused(write):
    pictures = [
        picture(index, ImagePositionPatient=decimals(ORIGIN + index * (STEP + OBLIQUE[:, 0] * 5)))
        for index in range(COUNT)
    ]
    with pytest.raises(TomokitError, match=r"stacked at 63\.4° to their normal"):
        read_series(only(write(pictures)))


def test_one_slice_is_a_volume_as_thick_as_it_says(write):
    volume = read_series(only(write([picture(4)])))
    assert volume.array.shape == (COLUMNS, ROWS, 1)
    assert np.allclose(np.linalg.norm(volume.affine[:3, :3], axis=0), [*SPACING[:2], 9])


def test_positions_rounded_to_a_tenth_are_an_even_grid(write):
    step = OBLIQUE[:, 2] * 0.625
    pictures = [
        picture(index, ImagePositionPatient=decimals(np.round(ORIGIN + index * step, 1))) for index in range(COUNT)
    ]
    assert "uneven_gaps" not in kinds(only(write(pictures)).faults)


# Which files are DICOM


def test_content_tells_dicom_not_the_name(write, tmp_path):
    folder = write()
    bare = tmp_path / "bare"
    bare.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        header = pydicom.dcmread(path)
        del header.file_meta, header.preamble
        name = bare / f"CT.1.3.12.{number}"
        header.save_as(name, implicit_vr=number % 2 == 0, little_endian=True, enforce_file_format=False)
        assert name.read_bytes()[128:132] != b"DICM"
    (bare / "notes.txt").write_text("none")
    (bare / "table.json").write_bytes(b"\0" * 128 + b"DICM")
    (bare / "README").write_text("a text without a suffix, and a long one at that " * 9)
    (bare / "empty").touch()
    (bare / "numbers").write_bytes(np.arange(8, 4000, 8, dtype="<u4").tobytes())  # looks like an element of group 8
    assert_same_in_the_world(read_series(only(bare)), read_series(only(folder)), tolerance_mm=1e-9)


def test_a_dicom_suffix_without_dicom_content_is_told(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"")
    (tmp_path / "b.dcm").write_text("<html>not found</html>")
    series, (fault,) = find_series(tmp_path)
    assert series == [] and fault.kind == "unreadable"
    assert "2 files left out: DICOM by suffix but not by content" in fault.text and "a.dcm" in fault.text


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(TomokitError, match="nowhere is not a folder"):
        find_series(tmp_path / "nowhere")
    assert find_series(tmp_path) == ([], [])


# Compressed pixels


def compressed(index: int) -> Dataset:
    """Return a slice in lossless JPEG, as GDCM writes it."""
    path = Path(codec.tempfile.mkdtemp()) / "jpeg.dcm"
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(path))
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    writer.Execute(sitk.GetImageFromArray(STORED[:, :, index].T[None]))
    jpeg = pydicom.dcmread(path)
    shutil.rmtree(path.parent)
    header = picture(index)
    header.file_meta.TransferSyntaxUID = jpeg.file_meta.TransferSyntaxUID
    header.PixelData = encapsulate([get_frame(jpeg.PixelData, 0, number_of_frames=1)])
    header["PixelData"].is_undefined_length = True
    return header


def test_compressed_slices_are_those_of_uncompressed_ones(write, capfd):
    mixed = [picture(index) for index in range(COUNT)]
    for header in mixed[:4]:
        header.compress(RLELossless)
    mixed[4:8] = [compressed(index) for index in range(4, 8)]
    assert np.array_equal(read_series(only(write(mixed))).array, STORED.astype(int) - 1024)
    assert capfd.readouterr() == ("", "")


def test_an_unreadable_transfer_syntax_is_named(write):
    pictures = [compressed(index) for index in range(3)]
    for header in pictures[:2]:
        header.file_meta.TransferSyntaxUID = HTJ2KLossless
    series = only(write(pictures))
    (fault,) = series.faults
    assert fault.kind == "unreadable_transfer_syntax" and fault.stops
    assert "2 files of 3: High-Throughput JPEG 2000" in fault.text
    with pytest.raises(TomokitError, match=r"series thorax in .* can't become a volume:\n.*High-Throughput"):
        read_series(series)


def test_deflated_files_are_left_out(tmp_path):
    header = picture()
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save(header, tmp_path / "a.dcm")
    series, (fault,) = find_series(tmp_path)
    assert series == [] and fault.kind == "unreadable_transfer_syntax" and "Deflated" in fault.text


def test_truncated_compressed_pixels_are_refused(write):
    folder = write([compressed(index) for index in range(3)])
    path = folder / "IM0001"
    path.write_bytes(path.read_bytes()[:-200])
    series = only(folder)
    assert kinds(series.faults) == ["unreadable"] and "1 file of 3: truncated" in series.faults[0].text


def test_compressed_pixels_of_another_size_or_damaged_are_refused(write):
    header = compressed(0)
    header.Rows, header.Columns = 40, 12
    with pytest.raises(TomokitError, match=r"\(12, 40, 1\) by the header, \(24, 20, 1\) by the pixels"):
        read_series(only(write([header])))
    broken = compressed(0)
    frame = bytearray(get_frame(broken.PixelData, 0, number_of_frames=1))
    frame[frame.index(b"\xff\xc4") :] = b"\xff\xd9"  # neither tables nor scan
    broken.PixelData = encapsulate([bytes(frame)])
    with pytest.raises(TomokitError, match=r"can't be read as JPEG Lossless"):
        read_series(only(write([broken], "broken")))
    nothing = compressed(0)
    nothing.PixelData = encapsulate([b"\xff\xd8\xff\xd9" + bytes(40)])
    with pytest.raises(TomokitError, match="None by the pixels"):
        read_series(only(write([nothing], "nothing")))


@pytest.mark.parametrize("script_text", ["import os, sys\nsys.stdin.readline()\nos.abort()\n", "1 / 0"])
def test_a_crash_of_the_decoder_is_an_error(write, tmp_path, monkeypatch, script_text):
    script = tmp_path / "crash.py"
    script.write_text(script_text)
    monkeypatch.setattr(codec, "__file__", str(script))
    with pytest.raises(TomokitError, match="GDCM crashed, or took longer than 60 s"):
        read_series(only(write([compressed(0)])))


# Faults of a series


@pytest.mark.parametrize("gone", [[5], [2, 3, 8]])
def test_missing_slices_are_counted_and_placed(write, gone):
    series = only(write([picture(index) for index in range(COUNT) if index not in gone]))
    (fault,) = series.faults
    assert fault.kind == "missing_slices"
    start = float(ORIGIN @ OBLIQUE[:, 2])
    first, last = (start + SPACING[2] * index for index in (gone[0] - 1, gone[0] + (1 if len(gone) == 1 else 2)))
    number = 1 if len(gone) == 1 else 2
    noun = "slice" if len(gone) == 1 else "slices"
    assert fault.text.startswith(
        f"{len(gone)} {noun} missing: {number} between {first:.2f} and {last:.2f} mm along the slice normal"
    )
    with pytest.raises(TomokitError, match=f"{len(gone)} {noun} missing"):
        read_series(series)


def test_every_gap_counts_but_few_are_shown(write):
    series = only(write([picture(index) for index in range(40) if index % 7 != 3]))
    assert "6 slices missing" in series.faults[0].text and "and in 3 other places" in series.faults[0].text


def test_a_slice_off_the_grid_is_named(write):
    pictures = [picture(index) for index in range(COUNT)]
    pictures[6].ImagePositionPatient = decimals(ORIGIN + 6.4 * STEP)
    series = only(write(pictures))
    assert kinds(series.faults) == ["uneven_gaps"]
    assert "vary from 1.50 to 3.50 mm" in series.faults[0].text and "1.00 mm off an even grid" in series.faults[0].text
    with pytest.raises(TomokitError, match=r"1\.00 mm off an even grid"):
        read_series(series)


def test_gaps_that_drift_are_uneven_though_each_differs_by_little(write):
    pictures = [
        picture(index, ImagePositionPatient=decimals(ORIGIN + index * (1 + 0.004 * index) * STEP))
        for index in range(COUNT)
    ]
    assert kinds(only(write(pictures)).faults) == ["uneven_gaps"]


def test_of_identical_copies_one_is_kept(write):
    folder = write()
    for name in ("IM0003", "IM0007"):
        (folder / "again").mkdir(exist_ok=True)
        shutil.copy(folder / name, folder / "again")
    series = only(folder)
    (fault,) = series.faults
    assert fault.kind == "duplicate_slices" and not fault.stops
    assert fault.text.startswith("2 slices left out as an exact copy of another") and len(series.files) == COUNT
    assert np.array_equal(read_series(series).array, STORED.astype(int) - 1024)


def test_different_pictures_at_one_position_are_refused(write):
    series = only(write([picture(index) for index in range(COUNT)] + [picture(4, PixelData=bytes(2 * COLUMNS * ROWS))]))
    assert kinds(series.faults) == ["duplicate_slices"] and series.faults[0].stops
    where = float((ORIGIN + 4 * STEP) @ OBLIQUE[:, 2])
    with pytest.raises(TomokitError, match=f"different pictures at 1 of 12 positions, .* at {where:.2f} mm"):
        read_series(series)


def test_a_copy_shifted_sideways_is_another_picture(write):
    moved = decimals(ORIGIN + 4 * STEP + OBLIQUE[:, 0])
    series = only(write([picture(index) for index in range(COUNT)] + [picture(4, ImagePositionPatient=moved)]))
    assert kinds(series.faults) == ["duplicate_slices"] and series.faults[0].stops


def test_ct_without_rescale_is_told(write):
    series = only(write([picture(index, RescaleSlope=None) for index in range(COUNT)]))
    assert kinds(series.faults) == ["rescale_missing"] and "12 files of 12: no rescale slope" in series.faults[0].text
    assert np.array_equal(read_series(series).array, STORED)
    mri = [picture(index, Modality="MR", RescaleSlope=None) for index in range(COUNT)]
    series = only(write(mri, "mri"))
    assert series.faults == () and series.modality == "MRI"


def test_rescale_in_some_slices_only_is_refused(write):
    pictures = [picture(index, RescaleIntercept=None if index == 2 else 0) for index in range(COUNT)]
    with pytest.raises(TomokitError, match="1 file of 12: no rescale slope and intercept, while other slices"):
        read_series(only(write(pictures)))


def test_truncated_files_stop_their_series(write):
    folder = write()
    paths = only(folder).files
    for path in paths[-2:]:  # the last ones leave no gap
        path.write_bytes(path.read_bytes()[:-100])
    series = only(folder)
    (fault,) = series.faults
    assert fault.kind == "unreadable" and "2 files of 12: truncated" in fault.text
    assert "24 × 20 × 1 pixels need 960 bytes, 860 are there" in fault.text
    with pytest.raises(TomokitError, match="2 files of 12: truncated"):
        read_series(series)


def test_a_file_cut_off_before_its_pixels_stops_its_series(write):
    folder = write()
    path = only(folder).files[-1]
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\xe0\x7f\x10\x00")])
    assert "the file ends before its pixels" in only(folder).faults[0].text
    path.write_bytes(content[: content.index(b"\x28\x00\x02\x00")])
    (series,), (left,) = find_series(folder)
    assert "1 file of this series left out: the file ends before its pixels" in series.faults[0].text
    assert left.kind == "unreadable" and not left.stops
    with pytest.raises(TomokitError, match="ends before its pixels"):
        read_series(series)


def test_a_file_that_is_cut_off_after_the_search_is_an_error(write):
    series = only(write())
    series.files[3].write_bytes(series.files[3].read_bytes()[:-100])
    with pytest.raises(TomokitError, match=rf"the pixels of {series.files[3]} can't be read as Explicit VR"):
        read_series(series)


def test_a_series_larger_than_any_scan_is_refused(write, monkeypatch):
    series = only(write())
    monkeypatch.setattr(series_module, "LARGEST_BYTES", 1000)
    with pytest.raises(TomokitError, match=r"series thorax in .* would take"):
        read_series(series)


# Files left out


def enhanced(frames: int = 2, **changes) -> Dataset:
    """Return an enhanced MR file whose frames lie in the opposite order."""
    header = picture(
        Modality="MR",
        SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1",
        NumberOfFrames=frames,
        PixelData=STORED[:, :, frames - 1 :: -1].T.tobytes() if frames > 1 else STORED[:, :, 0].T.tobytes(),
        **dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")),
        **dict.fromkeys(("RescaleSlope", "RescaleIntercept")),
    )
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [SPACING[1], SPACING[0]], 9
    orientation.ImageOrientationPatient = decimals(OBLIQUE[:, :2].T.ravel())
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    header.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for index in reversed(range(frames)):
        position, rescale, group = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = decimals(ORIGIN + index * STEP)
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1 + index, index, "US"
        group.PlanePositionSequence = Sequence([position])
        group.PixelValueTransformationSequence = Sequence([rescale])
        groups.append(group)
    header.PerFrameFunctionalGroupsSequence = Sequence(groups)
    for keyword, value in changes.items():
        setattr(header, keyword, value)
    return header


LEFT_OUT = {
    "colour": ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "colour", "in colour (RGB, 3 samples per"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour", "in colour (PALETTE COLOR, 1 sample per"),
    "no position": ({"ImagePositionPatient": None}, "no_geometry", "no ImagePositionPatient"),
    "no spacing": ({"PixelSpacing": None}, "no_geometry", "no PixelSpacing"),
    "frames": ({"NumberOfFrames": 3, "PixelData": bytes(3000)}, "no_geometry", "several frames without their"),
    "mosaic": ({"ImageType": ["ORIGINAL", "PRIMARY", "MOSAIC"]}, "no_geometry", "a mosaic, all slices in one picture"),
    "segmentation": ({"Modality": "SEG"}, "no_pixels", "no pixels of a scan but CT Image Storage"),
    "bits": ({"BitsAllocated": 64}, "unreadable", "pixels of 12 bits up to bit 11 in 64 are not 8, 16 or 32 bits"),
    "high bit": ({"HighBit": 3}, "unreadable", "pixels of 12 bits up to bit 3 in 16 are not"),
    "no rows": ({"Rows": 0}, "unreadable", "24 × 0 × 1 pixels of 16 bits"),
    "huge": ({"Rows": 65535, "Columns": 65535, "NumberOfFrames": 9}, "unreadable", "no pixels, or more than 8 GiB"),
    "axes": ({"ImageOrientationPatient": [1, 0, 0, 0.3, 1, 0]}, "unreadable", "not two perpendicular unit vectors"),
    "spacing": ({"PixelSpacing": [1, 0]}, "unreadable", "PixelSpacing is (1.0, 0.0)"),
    "far": ({"ImagePositionPatient": ["1e30", 0, 0]}, "unreadable", "3 finite numbers are expected, got (1e+30, 0"),
    "slope": ({"RescaleSlope": 0}, "unreadable", "RescaleSlope is 0"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_files_that_make_no_volume_are_left_out_with_the_reason(write, case):
    changes, kind, text = LEFT_OUT[case]
    series, (fault,) = find_series(write([picture(0, **changes), picture(1, **changes)]))
    assert series == [] and fault.kind == kind in KINDS and not fault.stops
    assert text in fault.text and fault.text.startswith("2 files left out: ") and "IM000" in fault.text


def test_absurd_sizes_are_refused_without_their_memory(write):
    series = only(write([picture(0, Rows=60000, Columns=60000)]))
    assert "truncated" in series.faults[0].text and "need 7200000000 bytes" in series.faults[0].text
    header = compressed(0)
    header.Rows = header.Columns = 60000
    assert "need 7200000000 bytes" in only(write([header], "compressed")).faults[0].text


def test_pixels_that_contradict_their_syntax_are_refused(write):
    header = picture(0)
    header.file_meta.TransferSyntaxUID = RLELossless
    folder = write([picture(0)])
    content = (folder / "IM0000").read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    (folder / "IM0000").write_bytes(content)
    assert "the pixels are not stored as RLE Lossless" in only(folder).faults[0].text


def test_reports_plans_and_directories_are_counted(write):
    def report(**changes):
        header = picture(**{keyword: None for keyword in ("Rows", "Columns", "BitsAllocated")}, **changes)
        del header.PixelData
        return header

    comprehensive, directory = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.1.3.10"
    headers = [report(SOPClassUID=comprehensive, Modality="SR"), report(SOPClassUID=comprehensive, Modality="SR")]
    series, left = find_series(write([*headers, report(SOPClassUID=directory, Modality=None)]))
    assert series == [] and kinds(left) == ["no_pixels", "no_pixels"]
    assert sorted(fault.text.split(" (such")[0] for fault in left) == [
        "1 file left out: no pixels of a scan but Media Storage Directory Storage",
        "2 files left out: no pixels of a scan but Comprehensive SR Storage",
    ]


def test_floating_point_maps_are_left_out(write):
    header = picture(0)
    del header.PixelData
    header.FloatPixelData = bytes(4 * COLUMNS * ROWS)
    assert "a floating-point map" in find_series(write([header]))[1][0].text


def test_what_was_left_out_of_a_series_is_told_with_it(write):
    series, left = find_series(
        write([picture(index, PixelSpacing=None if index == 11 else [1, 1]) for index in range(12)])
    )
    assert kinds(left) == ["no_geometry"]
    (fault,) = series[0].faults
    assert "1 file of this series left out: no PixelSpacing" in fault.text and not fault.stops
    assert read_series(series[0]).array.shape[2] == 11


@pytest.mark.parametrize("compress", [False, True])
def test_damaged_files_give_a_fault_or_an_error_and_nothing_else(tmp_path, capfd, recwarn, compress):
    path = tmp_path / "a.dcm"
    header = enhanced(3) if compress else picture(0)
    if compress:
        header.compress(RLELossless)
    sound = save(header, path).read_bytes()
    chance = random.Random(11)
    ends = {"found": 0, "left": 0, "read": 0}
    for _ in range(30 if compress else 250):
        content = bytearray(sound)
        for _ in range(chance.choice([1, 4, 30])):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content[: chance.choice([len(content), chance.randrange(len(content))])])
        series, left = find_series(tmp_path)
        ends["found"] += bool(series)
        ends["left"] += bool(left)
        for one in series:
            try:
                ends["read"] += read_series(one).array.size > 0
            except TomokitError as error:
                assert str(tmp_path) in str(error)
    assert min(ends.values()) > 2
    assert capfd.readouterr() == ("", "") and not recwarn.list


# Groups


def test_two_series_in_one_folder_are_two_volumes(write):
    others = [picture(index, SeriesInstanceUID="1.2.3.5", SeriesDescription="abdomen") for index in range(COUNT)]
    series, left = find_series(write([picture(index) for index in range(COUNT)] + others))
    assert sorted(one.description for one in series) == ["abdomen", "thorax"] and left == []
    assert all(len(one.files) == COUNT and one.faults == () for one in series)


def test_without_a_series_uid_a_folder_is_a_series(write, tmp_path):
    for name in ("case/a", "case/b"):
        write([picture(index, SeriesInstanceUID="") for index in range(COUNT)], name)
    series, _ = find_series(tmp_path / "case")
    assert [(one.uid, len(one.files), one.faults) for one in series] == [("", COUNT, ()), ("", COUNT, ())]


def test_two_sizes_in_one_series_are_two_volumes(write):
    small = [picture(index, Rows=10, PixelData=bytes(480)) for index in range(COUNT)]
    series, _ = find_series(write([picture(index) for index in range(COUNT)] + small))
    assert sorted(one.slices[0].pixels.rows for one in series) == [10, ROWS]


@pytest.mark.parametrize(
    ("keyword", "values"),
    [("EchoTime", [4.9, 20]), ("DiffusionBValue", [0, 800]), ("AcquisitionNumber", [3, 4])],
)
def test_volumes_at_the_same_positions_are_parted_by_a_tag(write, keyword, values):
    pictures = [
        picture(index, PixelData=(STORED[:, :, index] // (number + 1)).T.tobytes(), **{keyword: value})
        for number, value in enumerate(values)
        for index in range(COUNT - 3 * number)  # the second set is a shorter one
    ]
    series, left = find_series(write(pictures))
    assert left == [] and [one.faults for one in series] == [(), ()]
    by_text = {one.description: one for one in series}
    for number, value in enumerate(values):
        array = read_series(by_text[f"thorax, {keyword} {value}"]).array
        assert np.array_equal(array, STORED[:, :, : COUNT - 3 * number].astype(int) // (number + 1) - 1024)


def test_two_tags_part_four_volumes(write):
    pictures = [
        picture(index, PixelData=bytes([echo, phase]) * COLUMNS * ROWS, EchoTime=echo, TemporalPositionIdentifier=phase)
        for echo in (5, 9)
        for phase in (1, 2)
        for index in range(COUNT)
    ]
    series, _ = find_series(write(pictures))
    assert len(series) == 4 and {one.faults for one in series} == {()}
    assert {one.description for one in series} >= {"thorax, EchoTime 5, TemporalPositionIdentifier 2"}


@pytest.mark.parametrize("per_turn", [1, 4])
def test_acquisitions_of_one_slice_or_one_turn_stay_one_volume(write, per_turn):
    pictures = [picture(index, AcquisitionNumber=1 + index // per_turn) for index in range(COUNT)]
    assert only(write(pictures)).faults == ()
    again = [picture(index, AcquisitionNumber=50, PixelData=bytes(960)) for index in range(per_turn)]
    series = only(write(pictures + again, "again"))
    assert len(series.slices) == COUNT + per_turn
    assert kinds(series.faults) == ["duplicate_slices"]


def test_a_localizer_of_three_planes_is_told(write):
    planes = {"axial": np.eye(3), "sagittal": np.eye(3)[[1, 2, 0]].T, "coronal": np.eye(3)[[0, 2, 1]].T}
    axes = [decimals(np.round(plane, 6)[:, :2].T.ravel()) for plane in planes.values()]
    alone = [picture(0, ImageOrientationPatient=orientation) for orientation in axes]
    series, (fault,) = find_series(write(alone))
    assert series == [] and fault.kind == "mixed_orientations"
    assert "series thorax in" in fault.text and "3 slices alone in an orientation left out" in fault.text
    assert all(f"1 {plane}" in fault.text for plane in planes)
    pair = [picture(1, ImageOrientationPatient=axes[0], ImagePositionPatient=decimals(ORIGIN + np.array([0, 0, 5])))]
    (kept,), (fault,) = find_series(write(alone + pair, "pair"))
    assert "2 slices alone in an orientation" in fault.text and kinds(kept.faults) == ["mixed_orientations"]
    assert read_series(kept).array.shape == (COLUMNS, ROWS, 2)


def test_a_localizer_is_no_part_of_the_scan_it_lies_in(write):
    scout = picture(5, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], ImagePositionPatient=decimals(ORIGIN + STEP / 3))
    series, _ = find_series(write([picture(index) for index in range(COUNT)] + [scout]))
    assert sorted((len(one.files), one.faults) for one in series) == [(1, ()), (COUNT, ())]


# X-ray pictures and enhanced files


def xray(**changes) -> Dataset:
    place = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"))
    return picture(0, **{"Modality": "DX", **place, **changes})


def test_an_xray_picture_is_one_axial_slice(write):
    series = only(write([xray(ImagerPixelSpacing=[0.2, 0.1])]))
    volume = read_series(series)
    assert series.modality == "DX" and series.faults == ()
    assert np.array_equal(volume.array, STORED[:, :, :1])
    assert np.allclose(volume.affine, np.diag([-0.1, -0.2, 9, 1]))


def test_an_xray_picture_without_spacing_says_that_1_mm_is_taken(write):
    series = only(write([xray(SliceThickness=None)]))
    assert kinds(series.faults) == ["no_geometry"] and "no pixel spacing; 1 mm is taken" in series.faults[0].text
    assert np.allclose(read_series(series).affine, LPS_TO_RAS)


def test_inverted_xray_pictures_are_turned_and_each_is_its_own(write):
    views = [xray(PhotometricInterpretation="MONOCHROME1", PixelSpacing=[1, 1]), xray(PixelSpacing=[1, 1])]
    series, left = find_series(write(views))
    assert len(series) == 2 and left == []
    arrays = [read_series(one).array for one in series]
    assert np.array_equal(arrays[0].astype(int) + arrays[1], np.full((COLUMNS, ROWS, 1), 4095))
    ct = only(write([picture(0, PhotometricInterpretation="MONOCHROME1")], "ct"))
    assert np.array_equal(read_series(ct).array, STORED[:, :, :1].astype(int) - 1024)


@pytest.mark.parametrize("compress", [False, True])
def test_frames_of_an_enhanced_file_are_slices(tmp_path, compress):
    header = enhanced(5)
    if compress:
        header.compress(RLELossless)
    series = only(save(header, tmp_path / "scan" / "frames").parent)
    assert series.files == (tmp_path / "scan" / "frames",) and len(series.slices) == 5 and series.faults == ()
    volume = read_series(series)
    truth = STORED[:, :, :5].astype(int) * np.arange(1, 6) + np.arange(5)
    assert np.array_equal(volume.array, truth) and volume.array.dtype == np.int16
    assert np.allclose(volume.affine, AFFINE, atol=1e-9)


def test_echoes_and_gaps_in_an_enhanced_file_are_found(tmp_path):
    header = enhanced(10)
    for number, group in enumerate(header.PerFrameFunctionalGroupsSequence):
        echo = Dataset()
        echo.EffectiveEchoTime = 5.0 + number % 2
        group.MREchoSequence = Sequence([echo])
        group.PlanePositionSequence[0].ImagePositionPatient = decimals(ORIGIN + (number // 2 + (number > 5)) * STEP)
    series, _ = find_series(save(header, tmp_path / "scan" / "frames").parent)
    assert sorted(one.description[-19:] for one in series) == [f"EffectiveEchoTime {echo}" for echo in (5, 6)]
    assert [kinds(one.faults) for one in series] == [["missing_slices"]] * 2


def test_an_enhanced_file_that_leaves_frames_undescribed_is_left_out(tmp_path):
    series, (fault,) = find_series(save(enhanced(5, NumberOfFrames=4), tmp_path / "scan" / "frames").parent)
    assert series == [] and "not every frame is described" in fault.text and "5 for 4 frames" in fault.text


# The same as other readers, and on real scans


def test_the_same_as_simpleitk_in_every_voxel(write):
    folder = write()
    volume, other = read_series(only(folder)), read_by_itk(folder)[0]
    assert np.allclose(volume.affine, other.affine, atol=1e-6)
    assert_same_in_the_world(volume, other)


@pytest.mark.parametrize("directions", [(180, 0, 0), (90, 0, 90), (0, 0, 180), (100, 30, -80)])
def test_the_same_as_simpleitk_in_every_direction(write, directions):
    turned = rotation(*directions)
    pictures = [
        picture(
            index,
            SOPClassUID=MRImageStorage,
            Modality="MR",
            ImageOrientationPatient=decimals(turned[:, :2].T.ravel()),
            ImagePositionPatient=decimals(ORIGIN - index * turned[:, 2] * 1.7),
        )
        for index in range(COUNT)
    ]
    folder = write(pictures)
    assert_same_in_the_world(read_series(only(folder)), read_by_itk(folder)[0])


def check_copies(folder: Path, tmp_path: Path, every: int = 1) -> None:
    """Assert that DICOM, NIfTI and MetaImage copies of one scan give the same voxels at the same places."""
    volume = read_series(only(folder))
    write_volume(tmp_path / "copy.nii.gz", *volume)
    sitk.WriteImage(read_by_itk(folder)[1], str(tmp_path / "copy.mha"))
    for name in ("copy.nii.gz", "copy.mha"):
        assert_same_in_the_world(volume, read_volume(tmp_path / name), every=every)


def test_dicom_nifti_and_metaimage_copies_agree(write, tmp_path):
    check_copies(write(), tmp_path)


@pytest.mark.mirror
@pytest.mark.parametrize(
    ("name", "count", "modality"), [("reference_ct_mr/ct_dicom", 20, "CT"), ("dicom_t1_mr", 32, "MRI")]
)
def test_real_series_are_those_of_simpleitk(mirror, tmp_path, name, count, modality):
    series = only(mirror / name)
    assert (len(series.files), series.modality, series.faults) == (count, modality, ())
    volume, (other, _) = read_series(series), read_by_itk(mirror / name)
    assert np.array_equal(volume.array, other.array)
    corners = np.array(np.meshgrid(*[[0, length - 1] for length in volume.array.shape])).reshape(3, -1).T
    assert np.abs(apply_affine(volume.affine, corners) - apply_affine(other.affine, corners)).max() < 1e-3
    small = tmp_path / "few"
    small.mkdir()
    for path in series.files[:4]:
        shutil.copy(path, small)
    check_copies(small, tmp_path, every=11)


def test_the_order_of_files_and_a_second_search_change_nothing(write):
    headers = [picture(index) for index in range(COUNT)]
    first = read_series(only(write(headers, "one")))
    second = read_series(only(write(copy.deepcopy(headers)[::-1], "two")))
    assert np.array_equal(first.array, second.array) and np.array_equal(first.affine, second.affine)


def test_the_documented_kinds_are_the_known_ones():
    page = (Path(__file__).parents[1] / "docs" / "importing.md").read_text()
    assert [kind for kind, text in KINDS.items() if f"| `{kind}` | {text} |" not in page] == []
