"""Scans of any format, as MONAI's `LoadImaged` takes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys

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

    def read(self, data: Any, **kwargs: Any) -> list[Volume] | Exception:
        """Return the volumes of a path, or of several, the channels of one case; or what keeps them from being read.

        MONAI passes over an error of this method and tries its other readers, which take more than is right: two DICOM
        series as one, channels of two grids. So the error is raised by `get_data`.
        """
        paths = [data] if isinstance(data, str | Path) else list(data)
        try:
            return _on_one_grid(paths, [read_scan(path) for path in paths])
        except Exception as error:  # whatever it is, it is raised by `get_data`
            return error

    def get_data(self, img: Sequence[Volume] | Exception) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the voxels, of several volumes as the first axis, and the first one's grid.

        Raises:
            TomokitError: when a path could not be read, is a folder without exactly one DICOM series, or several lie on
                two grids.
        """
        if isinstance(img, Exception):
            raise img
        first = img[0]
        several, channels = len(img) > 1, first.array.ndim == 4
        array = np.stack([volume.array for volume in img]) if several else first.array
        place: float = 0 if several else -1 if channels else float("nan")
        meta = {
            MetaKeys.AFFINE: first.affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: first.affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(first.array.shape[:3]),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: place,
        }
        return array, {str(key.value): value for key, value in meta.items()}


def _on_one_grid(paths: Sequence[str | Path], volumes: list[Volume]) -> list[Volume]:
    """Return the channels of one case when they lie on one grid.

    Raises:
        TomokitError: when they don't.
    """
    first = volumes[0]
    for path, volume in zip(paths[1:], volumes[1:], strict=True):
        grids = (first.affine, first.array.shape[:3], volume.affine, volume.array.shape[:3])
        if difference := grid_difference(*grids):
            raise TomokitError(f"{paths[0]} and {path} lie on two grids: {difference}; bring them to one first")
    return volumes


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
