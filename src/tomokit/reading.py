"""Scans of any format, as MONAI's `LoadImaged` takes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys
from numpy.typing import NDArray

from tomokit.dicom import find_series, read_series
from tomokit.errors import TomokitError
from tomokit.geometry import grid_difference
from tomokit.volumes import Volume, read_volume

FEWEST_SLICES = 3  # of a series beside others: localizers have 1 or 2


class ScanReader(ImageReader):
    """Reads NIfTI, MetaImage, NRRD, pictures, and a folder with one DICOM series.

    MONAI's readers differ in axes and affines from format to format; here each gives (X, Y, Z[, C]) and RAS in mm.
    """

    def verify_suffix(self, filename: Any) -> bool:
        """Return that any file may be tried: what can't be read is told when it is."""
        return True

    def read(self, data: Any, **kwargs: Any) -> list[Any]:
        """Return a path, or several, the channels of one case, as a list: `get_data` reads them.

        MONAI passes over an error of this method and tries its other readers, which take more than is right: two DICOM
        series as one, channels of two grids. And it holds what this method returns beside what `get_data` makes of it.
        """
        return [data] if isinstance(data, str | Path) else list(data)

    def get_data(self, img: Sequence[Any]) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Return the voxels of paths, of several as the first axis, and the first one's grid.

        They are float32 in C order, as MONAI's `LoadImaged` makes them by default, which holds a second copy to do so.

        Raises:
            TomokitError: when a path can't be read, is a folder without exactly one DICOM series, or several lie on two
                grids.
        """
        first = read_scan(img[0])
        affine, shape = first.affine, first.array.shape
        array = _as_float32(first)
        if len(img) > 1:
            array = np.stack([array, *(_as_float32(_on_grid(path, img[0], affine, shape)) for path in img[1:])])
        place: float = 0 if len(img) > 1 else -1 if len(shape) == 4 else float("nan")
        meta = {
            MetaKeys.AFFINE: affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(shape[:3]),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: place,
        }
        return array, {str(key.value): value for key, value in meta.items()}


def _as_float32(volume: Volume) -> NDArray[np.float32]:
    """Return a volume's voxels as float32 in C order."""
    return np.ascontiguousarray(volume.array, np.float32)


def _on_grid(path: Any, first: Any, affine: NDArray[np.float64], shape: Sequence[int]) -> Volume:
    """Return the volume of a path that lies on the grid of the case's first one.

    Raises:
        TomokitError: when it doesn't.
    """
    volume = read_scan(path)
    if difference := grid_difference(affine, shape[:3], volume.affine, volume.array.shape[:3]):
        raise TomokitError(f"{first} and {path} lie on two grids: {difference}; bring them to one first")
    return volume


def read_scan(path: str | Path) -> Volume:
    """Return the volume of a file, or of the one DICOM series in a folder.

    Raises:
        TomokitError: when it can't be read, or the folder has not exactly one series that makes a volume.
    """
    if not Path(path).is_dir():
        return read_volume(path)
    found, faults = find_series(path)
    large = [series for series in found if len(series.slices) >= FEWEST_SLICES] or found
    if len(large) != 1:
        told = "; ".join(fault.text for fault in faults[:3]) if not large else ", ".join(s.description for s in large)
        raise TomokitError(
            f"{path} has {len(large)} DICOM series ({told}); give the folder of one, or use `tomokit import`"
        )
    return read_series(large[0])
