"""From an image file to a label map on that file's own grid."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform
from torch import Tensor

from tomokit.datasets import Entry, case_name
from tomokit.errors import TomokitError
from tomokit.files import replacing

NIFTI = (".nii", ".nii.gz")


class MixedPrecisionInferer(Inferer):
    """Runs another inferer in a lower precision where the hardware has it; what comes back is float32.

    Args:
        inferer: the MONAI inferer that calls the network.
        dtype: `torch.bfloat16`, `torch.float16`, or `torch.float32` for none.
    """

    def __init__(self, inferer: Inferer, dtype: torch.dtype) -> None:
        super().__init__()
        self.inferer = inferer
        self.dtype = dtype

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the network's output for `inputs` (B, C, X, Y[, Z]), in float32."""
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        with torch.autocast(plain.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.inferer(plain, network, *args, **kwargs).float()


def list_inputs(inputs: str | Path | Sequence[str | Path]) -> list[Entry]:
    """Return an entry `{"case", "image"}` for each NIfTI file: one path, several, or a folder's.

    Raises:
        TomokitError: when a path is absent or no NIfTI file, or a folder holds none.
    """
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    files: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            files += sorted(file for file in path.iterdir() if file.name.endswith(NIFTI) and file.name[0] != ".")
        elif not path.is_file():
            raise TomokitError(f"input {path} does not exist; give a NIfTI file or a folder of them")
        elif not path.name.endswith(NIFTI):
            raise TomokitError(f"input {path} is not NIfTI (.nii, .nii.gz); convert it first")
        else:
            files.append(path)
    if not files:
        raise TomokitError(f"no NIfTI file (.nii, .nii.gz) in {', '.join(map(str, given))}")
    return [{"case": case_name(str(file)), "image": str(file)} for file in files]


class WritePredictiond(MapTransform):
    """Writes a label map on its source's own grid as `<output_dir>/<case>.nii.gz`, whole or not at all.

    The label map (1, X, Y, Z) must be back on the source's grid (MONAI's `Invertd`). Affine, orientation and
    header are the source's; only the data type becomes the smallest unsigned integer that holds the labels.

    Args:
        keys: the key of the label map.
        output_dir: the folder to write to.
        image_key: the key of the source image, whose file gives the grid.
    """

    def __init__(self, keys: KeysCollection, output_dir: str | Path, image_key: str = "image") -> None:
        super().__init__(keys)
        self.output_dir = Path(output_dir)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` unchanged, with the label map of each key written."""
        files = data[self.image_key].meta["filename_or_obj"]
        source = files if isinstance(files, str) else files[0]  # the modalities of a case share one grid
        for key in self.key_iterator(dict(data)):
            labels = np.asarray(torch.as_tensor(data[key]).cpu())
            write_on_source_grid(labels[0], source, self.output_dir / f"{case_name(source)}.nii.gz")
        return dict(data)


def write_on_source_grid(labels: np.ndarray, source: str | Path, path: str | Path) -> None:
    """Write integer labels (X, Y, Z) in the source file's index order with the source's affine and header.

    Raises:
        TomokitError: when the shape is not the source's.
    """
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
