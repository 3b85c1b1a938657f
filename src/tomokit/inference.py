"""From an image file to a label map on that file's own grid."""

import itertools
from collections import Counter
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
from tomokit.errors import TomokitError, raise_problems
from tomokit.files import replacing

NIFTI = (".nii", ".nii.gz")


class MixedPrecisionInferer(Inferer):
    """Runs another inferer in a lower precision where the hardware has it; what comes back is float32.

    A network that gives a list in training (deep supervision) gives a list here.

    Args:
        inferer: the MONAI inferer that calls the network.
        dtype: `torch.bfloat16`, `torch.float16`, or `torch.float32` for none.
    """

    def __init__(self, inferer: Inferer, dtype: torch.dtype) -> None:
        super().__init__()
        self.inferer = inferer
        self.dtype = dtype

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the network's output for `inputs` (B, C, X, Y[, Z]), in float32."""
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        with torch.autocast(plain.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output = self.inferer(plain, network, *args, **kwargs)
        return [logits.float() for logits in output] if isinstance(output, list) else output.float()


class MirroredInferer(Inferer):
    """Gives the mean of another inferer's logits over the image and its mirror images.

    Logits that lie on the image's axes are flipped back; those of a whole image (B, classes) need not be.

    Args:
        inferer: the MONAI inferer that calls the network.
        spatial_axis: the axes of (X, Y, Z) to mirror, in every combination: n axes cost 2^n passes; empty for none.
    """

    def __init__(self, inferer: Inferer, spatial_axis: Sequence[int]) -> None:
        super().__init__()
        self.inferer = inferer
        axes = [2 + axis for axis in spatial_axis]
        self.flips = [flip for count in range(len(axes) + 1) for flip in itertools.combinations(axes, count)]

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the mean logits, (B, classes, X, Y[, Z]) or (B, classes), for `inputs` (B, C, X, Y[, Z])."""
        total: Tensor | None = None
        for flip in self.flips:
            logits = self.inferer(inputs.flip(flip), network, *args, **kwargs)
            logits = logits.flip(flip) if logits.ndim == inputs.ndim else logits
            total = logits if total is None else total + logits
        assert total is not None
        return total / len(self.flips)


def list_inputs(inputs: str | Path | Sequence[str | Path | Sequence[str]]) -> list[Entry]:
    """Return an entry `{"case", "image"}` for each NIfTI file: one path, several, or a folder's.

    An element that is itself a list is one case of several modalities, in the order of the network's channels.

    Raises:
        TomokitError: when a path is absent or no NIfTI file, a folder holds none, or two files have one name.
    """
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    images: list[str | list[str]] = []
    for item in given:
        if not isinstance(item, str | Path):
            images.append([_check_input(Path(path)) for path in item])
        elif Path(item).is_dir():
            files = sorted(Path(item).iterdir())
            images += [str(file) for file in files if file.name.endswith(NIFTI) and file.name[0] != "."]
        else:
            images.append(_check_input(Path(item)))
    if not images:
        raise TomokitError(f"no NIfTI file (.nii, .nii.gz) in {', '.join(map(str, given))}")
    entries = [{"case": case_name(image), "image": image} for image in images]
    counts = Counter(entry["case"] for entry in entries)
    raise_problems(
        "inputs of one file name would overwrite each other's result; rename them",
        [f"{case} stands {count} times" for case, count in counts.items() if count > 1],
    )
    return entries


def first_image(image: str | Sequence[str]) -> str:
    """Return the file whose grid stands for the case: the modalities of a case share one."""
    return image if isinstance(image, str) else image[0]


def _check_input(path: Path) -> str:
    """Return the path as text when it is a NIfTI file that exists."""
    if not path.is_file():
        raise TomokitError(f"input {path} does not exist; give a NIfTI file or a folder of them")
    if not path.name.endswith(NIFTI):
        raise TomokitError(f"input {path} is not NIfTI (.nii, .nii.gz); convert it first")
    return str(path)


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
