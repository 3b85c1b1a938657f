"""A scan is the same whatever format it is in."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from grids import oblique_affine
from monai.transforms import LoadImaged

from tomokit.errors import TomokitError
from tomokit.inference import ReadAhead
from tomokit.reading import ScanReader, read_scan
from tomokit.volumes import READ_CHUNK, itk_image

SHAPE = (12, 10, 8)


def load(path, reader):
    return LoadImaged("image", reader=reader, ensure_channel_first=True)({"image": path})["image"]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_nifti_is_read_as_monai_reads_it(codes, dtype, write_volume):
    array = np.random.default_rng(0).normal(0, 100, SHAPE).astype(dtype)
    path = write_volume("scan.nii.gz", array, oblique_affine(codes, SHAPE))
    ours, monai = load(path, ScanReader()), load(path, "NibabelReader")
    assert ours.shape == monai.shape == (1, *SHAPE) and ours.dtype == monai.dtype
    assert (ours == monai).all() and np.allclose(ours.affine, monai.affine)
    for key in ("original_affine", "spatial_shape"):
        assert np.allclose(ours.meta[key], monai.meta[key])


def test_voxels_are_held_once_while_they_are_read_and_once_more_as_float32(write_volume):
    shape = (160, 150, 140)
    path = write_volume("scan.nii.gz", np.random.default_rng(0).integers(-9, 9, shape).astype(np.int16))
    for read, each in ((read_scan, 2), (lambda path: load(path, ScanReader()), 2 + 4)):
        tracemalloc.start()
        read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1.1 * each * np.prod(shape) + 2 * READ_CHUNK


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".mhd"])
def test_other_formats_are_the_same_volume(suffix, write_volume, tmp_path):
    affine = oblique_affine("LPS", SHAPE)
    array = np.random.default_rng(0).normal(0, 100, SHAPE).astype(np.int16)
    sitk.WriteImage(itk_image(array, affine), str(tmp_path / f"scan{suffix}"))
    nifti = load(write_volume("scan.nii.gz", array, affine), ScanReader())
    other = load(str(tmp_path / f"scan{suffix}"), ScanReader())
    assert (nifti == other).all() and np.allclose(nifti.affine, other.affine)


def test_channels_of_one_file_and_files_of_one_case_come_first(write_volume):
    array = np.random.default_rng(0).normal(size=(*SHAPE, 2)).astype(np.float32)
    together = load(write_volume("both.nii.gz", array), ScanReader())
    apart = load([write_volume(f"{n}.nii.gz", array[..., n]) for n in range(2)], ScanReader())
    assert together.shape == apart.shape == (2, *SHAPE)
    assert (together == apart).all()


def test_a_folder_without_a_series_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TomokitError, match="empty has 0 DICOM series"):
        read_scan(tmp_path / "empty")


def test_monais_other_readers_do_not_take_what_is_refused(tmp_path, write_volume):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TomokitError, match="empty has 0 DICOM series"):
        load(str(tmp_path / "empty"), ScanReader())
    path = write_volume("cut.nii.gz", np.zeros(SHAPE))
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[:-6] + bytes(6))  # its checksum is wrong
    with pytest.raises(TomokitError, match=r"cut\.nii\.gz"):
        load(str(path), ScanReader())


def test_channels_on_two_grids_are_refused(write_volume):
    one = write_volume("t1.nii.gz", np.zeros(SHAPE), oblique_affine("RAS", SHAPE))
    other = write_volume("flair.nii.gz", np.zeros(SHAPE), oblique_affine("LPS", SHAPE))
    with pytest.raises(TomokitError, match=r"t1.nii.gz and .*flair.nii.gz lie on two grids: corresponding corner"):
        load([str(one), str(other)], ScanReader())


def test_a_dicom_folder_is_its_one_series(mirror):
    image = load(str(mirror / "reference_ct_mr" / "ct_dicom"), ScanReader())
    assert image.ndim == 4 and image.shape[0] == 1
    assert image.min() >= -3100 and image.max() > 200  # HU


class Cases:
    """Cases of which one can't be read."""

    def __init__(self, bad=None):
        self.bad = bad

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if index == self.bad:
            raise TomokitError(f"case {index} can't be read")
        return np.full(3, index)


def test_reading_ahead_keeps_the_order():
    assert [int(batch[0, 0]) for batch in ReadAhead(Cases(), batch_size=1)] == [0, 1, 2, 3, 4]


def test_what_cannot_be_read_ahead_is_told():
    seen = []
    with pytest.raises(TomokitError, match="case 3 can't be read"):
        seen.extend(int(batch[0, 0]) for batch in ReadAhead(Cases(bad=3), batch_size=1))
