"""Label maps written on their source's own grid."""

import logging
from collections.abc import Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import ArrayLike, NDArray

from tomokit.errors import TomokitError
from tomokit.files import replacing
from tomokit.inference.grids import turn_back
from tomokit.inference.scans import first_image
from tomokit.inference.slab_inferer import SlabInferer
from tomokit.volumes import ITK, NIFTI, suffix_of, write_volume

logger = logging.getLogger(__name__)

WRITTEN_AS = {".nrrd": ".nrrd", ".nhdr": ".nrrd", ".mha": ".mha", ".mhd": ".mha"}  # of others: NIfTI
MOST_WAITING = 1  # label maps held until they are written
_thread = ThreadPoolExecutor(1, "writing")
_waiting: list[Future[None]] = []


class WritePredictiond(MapTransform):
    """Writes a label map or an image on its source's own grid as `<output_dir>/<case>.nii.gz`, whole or not at all.

    Sources in NRRD or MetaImage get theirs in that format; DICOM gets NIfTI. What is written, (1, X, Y, Z), must be
    back on the source's grid; an image with an affine may lie on it turned, and is turned back. Affine, orientation and
    header are the source's; only the data type becomes the smallest unsigned integer that holds the labels, or float32
    of an image. It is written in a thread: `finish_writing` waits for the last one.

    Args:
        keys: the key of the label map or image.
        output_dir: the folder to write to.
        image_key: the key of the source image, whose file gives the grid; `case` beside it gives the name.
        folder_key: the key of a name: results lie in folders of these names.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        image_key: str = "image",
        folder_key: str | None = None,
    ) -> None:
        super().__init__(keys)
        self.output_dir = Path(output_dir)
        self.image_key = image_key
        self.folder_key = folder_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` unchanged; what is under each key is being written."""
        folder = self.output_dir if self.folder_key is None else self.output_dir / str(data[self.folder_key])
        for key in self.key_iterator(dict(data)):
            values = np.asarray(torch.as_tensor(data[key]).cpu())[0]
            image = data[self.image_key]
            if values.dtype.kind == "f" and isinstance(data[key], MetaTensor):
                shape = _source_shape(image, values.ndim)
                values = turn_back(values, data[key].affine, shape, image.meta["original_affine"])
            write_array_behind(values, image, folder, data["case"])
        return dict(data)


def _source_shape(image: Any, axes: int) -> tuple[int, ...]:
    """Return the shape (X, Y[, Z]) of an image's file."""
    shape = np.asarray(image.meta["spatial_shape"]).flatten()
    return tuple(int(length) for length in shape[:axes])


class WriteMapsd(MapTransform):
    """Writes the maps that an inferer found beside a label map, as `<output_dir>/<case>_<name>.nii.gz`, from 0 to 1.

    Args:
        keys: the key of the label map.
        inferer: a `SlabInferer` with `maps`.
        output_dir: the folder to write to.
        image_key: the key of the source image, whose file gives the grid; `case` beside it gives the name.
    """

    def __init__(
        self, keys: KeysCollection, inferer: SlabInferer, output_dir: str | Path, image_key: str = "image"
    ) -> None:
        super().__init__(keys)
        self.inferer = inferer
        self.output_dir = Path(output_dir)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` unchanged; the maps are being written."""
        for name, steps in self.inferer.found_maps.items():
            values = np.asarray(torch.as_tensor(steps).cpu())[0]
            write_array_behind(values, data[self.image_key], self.output_dir, f"{data['case']}_{name}", np.float32(255))
        return dict(data)


def write_array_behind(
    values: NDArray[Any], image: Any, output_dir: Path, name: str, steps: np.float32 | None = None
) -> None:
    """Have an array (X, Y, Z) written on the grid of a source image, once few enough others are waiting.

    With `steps` it is divided by that.
    """
    source = first_image(image.meta["filename_or_obj"])
    path = output_dir / (name + WRITTEN_AS.get(suffix_of(source), ".nii.gz"))
    affine = np.asarray(image.meta["original_affine"], float)
    finish_writing(MOST_WAITING)
    _waiting.append(_thread.submit(_write, values, source, path, affine, steps))


def finish_writing(left: int = 0) -> None:
    """Wait until at most `left` label maps are still to be written.

    Raises:
        TomokitError: when one could not be written.
    """
    while len(_waiting) > left or (_waiting and _waiting[0].done()):
        _waiting.pop(0).result()


def _write(
    values: NDArray[Any], source: str, path: Path, affine: NDArray[np.float64], steps: np.float32 | None
) -> None:
    """Write an array; an error is told at once, since it may be asked for much later."""
    try:
        write_on_source_grid(values if steps is None else values / steps, source, path, affine)
    except Exception as error:  # raised again
        logger.error("%s was not written: %s", path, error)
        raise


def write_on_source_grid(
    values: NDArray[Any], source: str | Path, path: str | Path, affine: ArrayLike | None = None
) -> None:
    """Write an array (X, Y, Z) in the source's index order, with its affine and header.

    Integers are labels, and get the smallest unsigned type that holds them; other numbers are float32.

    Args:
        values: on the source's grid.
        source: the scan: its file, or its DICOM folder.
        path: of the result, in the source's format.
        affine: voxel to RAS in mm of a source that is neither NIfTI nor of ITK.

    Raises:
        TomokitError: when the shape is not the source's, or `path` is the source itself.
    """
    if Path(path).resolve() == Path(source).resolve():
        raise TomokitError(f"the prediction would overwrite its source {source}; give another `output_dir`")
    whole = np.min_scalar_type(int(values.max(initial=0)))  # of 0 and more: the smallest unsigned one
    values = values.astype(whole if values.dtype.kind in "iub" else np.float32, copy=False)
    if suffix_of(source) in NIFTI:
        _write_nifti(values, source, path)
    elif suffix_of(source) in ITK:
        _write_itk(values, source, path)
    else:
        assert affine is not None, "a DICOM folder's affine is known when it has been read"
        write_volume(path, values, affine)


def _write_nifti(values: NDArray[Any], source: str | Path, path: str | Path) -> None:
    """Write an array with the header of a NIfTI file."""
    image = nibabel.load(source)
    _check_shape(values, source, image.shape[:3])
    header = image.header.copy()
    header.set_data_dtype(values.dtype)
    header.set_slope_inter(1, 0)
    result = image.__class__(values, image.affine, header)
    with replacing(path) as temporary:
        nibabel.save(result, temporary)


def _write_itk(values: NDArray[Any], source: str | Path, path: str | Path) -> None:
    """Write an array with the grid and the further fields of a MetaImage or NRRD file."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(source))
    reader.ReadImageInformation()
    dimension = reader.GetDimension()
    _check_shape(values, source, (*reader.GetSize(), 1)[:3])
    result = sitk.GetImageFromArray(np.ascontiguousarray(values.reshape(reader.GetSize()).T))
    result.SetSpacing(reader.GetSpacing())
    result.SetOrigin(reader.GetOrigin())
    result.SetDirection(reader.GetDirection())
    assert result.GetDimension() == dimension
    for key in reader.GetMetaDataKeys():
        if not key.startswith("ITK_"):  # what ITK itself found out of the source
            result.SetMetaData(key, reader.GetMetaData(key))
    with replacing(path) as temporary:
        sitk.WriteImage(result, str(temporary), useCompression=True)


def _check_shape(values: NDArray[Any], source: str | Path, shape: tuple[int, ...]) -> None:
    """Refuse a label map that does not lie on its source's grid."""
    if values.shape != tuple(shape):
        raise TomokitError(f"a prediction of shape {values.shape} does not lie on {source}, of shape {tuple(shape)}")
