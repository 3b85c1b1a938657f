import gzip
import re
import struct

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from tomokit import volumes
from tomokit.errors import TomokitError
from tomokit.volumes import itk_image, read_header, read_volume, stem_of, suffix_of, write_volume

SHAPE = (7, 6, 5)
OBLIQUE = np.array([[1.2, -0.3, 0.1, -20], [0.4, 0.9, 0.2, 7], [-0.2, 0.1, 2.5, 30], [0, 0, 0, 1]])


def orthogonal():
    """Return an oblique affine with right angles, as ITK's formats need it."""
    turn, _ = np.linalg.qr(OBLIQUE[:3, :3])
    affine = np.eye(4)
    affine[:3, :3] = turn * (1.2, 0.9, 2.5)
    affine[:3, 3] = (-20, 7, 30)
    return affine


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(-1000, 3000, SHAPE).astype(np.int16)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_formats_keep_voxels_grid_and_type(tmp_path, array, suffix, dtype):
    array, affine, path = array.astype(dtype), orthogonal(), tmp_path / f"scan.b{suffix}"
    write_volume(tmp_path / "scan.nii.gz", array, affine)
    if suffix.startswith(".nii"):
        write_volume(path, array, affine)
    else:
        sitk.WriteImage(sitk.ReadImage(str(tmp_path / "scan.nii.gz")), str(path))
    header, volume = read_header(path), read_volume(path)
    assert header.shape == volume.array.shape == SHAPE and header.dtype == volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(header.affine, volume.affine)


def test_a_written_volume_has_both_forms_and_millimetres(tmp_path, array):
    write_volume(tmp_path / "a.nii.gz", array, orthogonal())
    header = nibabel.load(tmp_path / "a.nii.gz").header
    assert header["sform_code"] == header["qform_code"] == 1 and header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(header.get_qform(), orthogonal(), atol=1e-5)
    assert read_header(tmp_path / "a.nii.gz").pixdim == pytest.approx((1.2, 0.9, 2.5))
    with pytest.raises(TomokitError, match="must be an invertible"):
        write_volume(tmp_path / "b.nii.gz", array, np.zeros((4, 4)))


def test_slope_and_intercept_are_applied(tmp_path, array):
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.header.set_slope_inter(0.5, -1024)
    nibabel.save(image, tmp_path / "a.nii")
    stored = nibabel.load(tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, np.asarray(stored.dataobj.get_unscaled()) * 0.5 - 1024, rtol=1e-6)


def test_big_endian_files_and_sheared_grids_are_read(tmp_path, array):
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    nibabel.save(nibabel.Nifti1Image(array, OBLIQUE, header), tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)


def test_channels_are_the_last_axis(tmp_path):
    array = np.arange(5 * 6 * 7 * 2, dtype=np.int16).reshape(5, 6, 7, 2)  # z, y, x, channel
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / "a.mha"))
    volume = read_volume(tmp_path / "a.mha")
    np.testing.assert_array_equal(volume.array, array.transpose(2, 1, 0, 3))
    assert read_header(tmp_path / "a.mha").shape == (7, 6, 5, 2)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
def test_a_picture_is_one_slice_with_the_viewers_left_to_the_right(tmp_path, suffix):
    rows = np.tile(np.arange(0, 240, 8, dtype=np.uint8), (20, 1))
    Image.fromarray(rows).save(tmp_path / f"a{suffix}")
    volume = read_volume(tmp_path / f"a{suffix}")
    assert volume.array.shape == read_header(tmp_path / f"a{suffix}").shape == (30, 20, 1)
    np.testing.assert_allclose(volume.array[:, 0, 0].astype(int), rows[0], atol=3)
    assert nibabel.aff2axcodes(volume.affine) == ("L", "P", "S")


def test_a_colour_picture_becomes_grey_and_a_deep_one_stays_deep(tmp_path):
    Image.fromarray(np.full((4, 6, 3), (200, 100, 0), np.uint8)).save(tmp_path / "a.png")
    assert np.unique(read_volume(tmp_path / "a.png").array).tolist() == [118]
    Image.fromarray(np.arange(24, dtype=np.uint16).reshape(4, 6) * 1000).save(tmp_path / "b.png")
    volume = read_volume(tmp_path / "b.png")
    assert volume.array.max() == 23000 and volume.array.dtype == read_header(tmp_path / "b.png").dtype


def test_names_lose_the_suffix_of_their_format():
    assert [stem_of(name) for name in ("a/b.c.nii.gz", "b.mhd", "x.NRRD", "y.txt")] == ["b.c", "b", "x", "y"]
    assert [suffix_of(name) for name in ("a.NII.GZ", "a.nii", "a.gz", "a")] == [".nii.gz", ".nii", "", ""]


def damage_header(path, offset, form, value):
    raw = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(form, raw, offset, value)
    path.write_bytes(gzip.compress(bytes(raw)))


def test_a_header_is_believed_as_far_as_the_file_bears_it_out(tmp_path, array, monkeypatch):
    path = tmp_path / "a.nii.gz"
    write_volume(path, array, np.eye(4))
    damage_header(path, 42, "<h", 32000)  # dim[1]
    with pytest.raises(
        TomokitError, match=r"a\.nii\.gz can't be read: its header gives \(32000, 6, 5\) voxels, 1920000 b"
    ):
        read_header(path)
    monkeypatch.setattr(volumes, "LARGEST_BYTES", 1 << 10)
    with pytest.raises(TomokitError, match=r"is said to hold \(32000, 6, 5\) voxels, 0 GiB, more than any scan"):
        read_header(path)
    write_volume(path, array, np.eye(4))
    damage_header(path, 42, "<h", 0)
    with pytest.raises(TomokitError, match=r"has no voxels: its header gives the shape \(0, 6, 5\)"):
        read_header(path)


def test_what_nibabel_mends_is_read_as_stored_and_not_printed(tmp_path, array, caplog):
    path = tmp_path / "a.nii.gz"
    write_volume(path, array, np.eye(4))
    damage_header(path, 80, "<f", -2.0)  # pixdim[1]
    assert read_header(path).pixdim == (-2.0, 1.0, 1.0) and caplog.text == ""
    nibabel.load(path)
    assert "pixdim" in caplog.text


def test_a_wrong_checksum_is_seen_though_all_voxels_are_there(tmp_path):
    path = tmp_path / "a.nii.gz"
    write_volume(path, np.random.default_rng(0).normal(size=(40, 40, 40)), np.eye(4))
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(bytes(content))
    assert read_header(path).shape == (40, 40, 40)
    with pytest.raises(TomokitError, match=r"a\.nii\.gz can't be read \(BadGzipFile: CRC check failed"):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd", ".png"])
def test_what_is_no_volume_is_named(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    for content in (b"", b"no volume at all", b"\x1f\x8b\x08\x00" + b"x" * 400):
        path.write_bytes(content)
        with pytest.raises(TomokitError, match=re.escape(str(path))):
            read_volume(path)


def test_other_files_and_absent_ones_are_refused(tmp_path, array):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(TomokitError, match=r"a\.txt is none of \.nii\.gz, \.nii, .*import its folder if it is DICOM"):
        read_header(tmp_path / "a.txt")
    with pytest.raises(TomokitError, match=r"b\.nii does not exist"):
        read_header(tmp_path / "b.nii")
    nibabel.save(nibabel.Nifti1Image(array.astype(np.complex64), np.eye(4)), tmp_path / "c.nii")
    with pytest.raises(TomokitError, match=r"c\.nii has voxels of the type complex64, not one number each"):
        read_header(tmp_path / "c.nii")
    nibabel.save(nibabel.MGHImage(array.astype(np.float32), np.eye(4)), tmp_path / "d.mgz")
    (tmp_path / "d.mgz").rename(tmp_path / "d.nii.gz")
    with pytest.raises(TomokitError, match=r"d\.nii\.gz"):
        read_header(tmp_path / "d.nii.gz")


def write_metaimage(folder, data_file, size="7 6 5"):
    text = f"ObjectType = Image\nNDims = 3\nDimSize = {size}\nElementType = MET_SHORT\nElementDataFile = {data_file}\n"
    (folder / "a.mhd").write_text(text)
    return folder / "a.mhd"


def test_a_text_header_may_only_name_a_file_beside_it(tmp_path, array):
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "a.raw").write_bytes(array.transpose(2, 1, 0).tobytes())
    np.testing.assert_array_equal(read_volume(write_metaimage(folder, "a.raw")).array, array)
    (tmp_path / "secret.raw").write_bytes(array.tobytes())
    with pytest.raises(TomokitError, match=r"a\.mhd points to \.\./secret\.raw, outside its own folder"):
        read_header(write_metaimage(folder, "../secret.raw"))
    with pytest.raises(TomokitError, match=r"points to /etc/passwd, outside its own folder"):
        read_header(write_metaimage(folder, "/etc/passwd"))
    with pytest.raises(TomokitError, match=r"needs its data file b\.raw, which does not exist"):
        read_header(write_metaimage(folder, "b.raw"))
    with pytest.raises(TomokitError, match=r"spreads its voxels over several files \(slice%03d\.raw 1 5 1\)"):
        read_header(write_metaimage(folder, "slice%03d.raw 1 5 1"))
    with pytest.raises(TomokitError, match=r"its header gives \(7000, 6000, 5000\) voxels|more than any scan"):
        read_header(write_metaimage(folder, "a.raw", "7000 6000 5000"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("NDims", "99999999999 = True", "its header has `ndims` '99999999999 = True'"),
        ("DimSize", "7 6 5 4 3 2", "its header has `dimsize` '7 6 5 4 3 2'"),
        ("ElementSpacing", "1 one 1", "its header has `elementspacing` '1 one 1'"),
        ("Comment", "[" * 5000, "its header has a line of 5010 bytes"),
    ],
)
def test_a_text_header_that_itk_would_crash_on_is_refused(tmp_path, array, field, value, message):
    path = write_metaimage(tmp_path, "a.raw")
    (tmp_path / "a.raw").write_bytes(array.tobytes())
    lines = [line for line in path.read_text().splitlines() if not line.startswith(field)]
    path.write_text("\n".join([*lines[:1], f"{field} = {value}", *lines[1:]]))
    with pytest.raises(TomokitError, match=re.escape(message)):
        read_header(path)


@pytest.mark.parametrize("before", [" ", "\t", "\n"])
def test_blanks_and_empty_lines_hide_no_data_file(tmp_path, array, before):
    folder = tmp_path / "scans"
    folder.mkdir()
    (tmp_path / "secret.raw").write_bytes(array.tobytes())
    path = write_metaimage(folder, "../secret.raw")
    path.write_text(path.read_text().replace("ElementDataFile", f"{before}ElementDataFile"))
    with pytest.raises(TomokitError, match=r"points to \.\./secret\.raw, outside its own folder"):
        read_header(path)
    path.write_text("Comment = x\n" * 10_000 + path.read_text())
    with pytest.raises(TomokitError, match="names no data file in its first 64 KiB"):
        read_header(path)


def test_an_itk_image_comes_back_as_it_went(tmp_path, array):
    image = itk_image(array, orthogonal())
    assert image.GetSize() == array.shape and image[2, 3, 4] == array[2, 3, 4]
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    back = read_volume(tmp_path / "a.mha")
    np.testing.assert_array_equal(back.array, array)
    np.testing.assert_allclose(back.affine, orthogonal(), atol=1e-5)


def test_an_itk_image_needs_a_grid(array):
    with pytest.raises(TomokitError, match=r"an affine must be an invertible \(4, 4\) matrix"):
        itk_image(array, np.zeros((4, 4)))
