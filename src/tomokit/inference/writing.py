"""Label maps written on their source's own grid."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from tomokit.errors import TomokitError
from tomokit.files import replacing
from tomokit.inference.scans import first_image


class WritePredictiond(MapTransform):
    """Writes a label map on its source's own grid as `<output_dir>/<case>.nii.gz`, whole or not at all.

    The label map (1, X, Y, Z) must be back on the source's grid (MONAI's `Invertd`). Affine, orientation and
    header are the source's; only the data type becomes the smallest unsigned integer that holds the labels.

    Args:
        keys: the key of the label map.
        output_dir: the folder to write to.
        image_key: the key of the source image, whose file gives the grid; `case` beside it gives the name.
    """

    def __init__(self, keys: KeysCollection, output_dir: str | Path, image_key: str = "image") -> None:
        super().__init__(keys)
        self.output_dir = Path(output_dir)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` unchanged, with the label map of each key written."""
        source = first_image(data[self.image_key].meta["filename_or_obj"])
        for key in self.key_iterator(dict(data)):
            labels = np.asarray(torch.as_tensor(data[key]).cpu())
            write_on_source_grid(labels[0], source, self.output_dir / f"{data['case']}.nii.gz")
        return dict(data)


def write_on_source_grid(labels: np.ndarray, source: str | Path, path: str | Path) -> None:
    """Write integer labels (X, Y, Z) in the source file's index order with the source's affine and header.

    Raises:
        TomokitError: when the shape is not the source's, or `path` is the source itself.
    """
    if Path(path).resolve() == Path(source).resolve():
        raise TomokitError(f"the prediction would overwrite its source {source}; give another `output_dir`")
    image = nibabel.load(source)
    if labels.shape != image.shape[:3]:
        raise TomokitError(f"a prediction of shape {labels.shape} does not lie on {source}, of shape {image.shape}")
    header = image.header.copy()
    dtype = np.uint8 if labels.max(initial=0) < 256 else np.uint16
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    result = image.__class__(labels.astype(dtype), image.affine, header)
    with replacing(path) as temporary:
        nibabel.save(result, temporary)
