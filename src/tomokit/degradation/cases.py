"""A case's own degradation: the same each time, by the case's name."""

import re
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from tomokit.datasets import Entry
from tomokit.degradation.units import SPACING
from tomokit.errors import TomokitError

KIND = "degradation"  # the key of an entry that tells by what it is degraded
CLEAN = "label"
Degradation = Callable[[Mapping[Hashable, Any]], Mapping[Hashable, Any]]


def case_seed(case: str) -> int:
    """Return the number at the end of a case's name, by which its noise is drawn; of other names their checksum."""
    number = re.search(r"(\d+)$", case)
    return int(number[1]) if number else zlib.crc32(case.encode())


def list_degraded(entries: Sequence[Mapping[str, Any]], degradations: Mapping[str, Any]) -> list[Entry]:
    """Return an entry for each case and each kind of degradation, which it names as `degradation`.

    Args:
        entries: the cases.
        degradations: by their names.

    Raises:
        TomokitError: when there is none.
    """
    if not degradations:
        raise TomokitError("`tests` names no degradation to score; give one, such as gaussian5")
    return [{**entry, KIND: name} for name in degradations for entry in entries]


class NoteSpacingd(MapTransform):
    """Notes the voxels' size of an image as `spacing` (dimensions,) in mm, before it becomes a plain tensor.

    Args:
        keys: the key of the image, a `MetaTensor`.

    Raises:
        TomokitError: when the image does not know its grid.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with `spacing`, float32."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            if not isinstance(image, MetaTensor):
                raise TomokitError(f"{data.get('case', key)} has no grid; put NoteSpacingd before track_meta: false")
            result[SPACING] = torch.as_tensor(image.pixdim, dtype=torch.float32).cpu()[: image.ndim - 1]
        return result


class DegradeCased(MapTransform):
    """Degrades a case, drawn by its own name, so that it is the same each time; the clean image becomes `label`.

    Args:
        keys: the key of the image (C, X, Y[, Z]).
        degradation: a transform of batches, or several by name, of which the case's `degradation` names one.

    Raises:
        TomokitError: when a case names none of them.
    """

    def __init__(self, keys: KeysCollection, degradation: Degradation | Mapping[str, Degradation]) -> None:
        super().__init__(keys)
        self.degradation = degradation

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the degraded image, and the clean one as `label`."""
        result = dict(data)
        change = self._choose(data)
        for key in self.key_iterator(result):
            image = result[key]
            batch: dict[Hashable, Any] = {key: _plain(image)[None]}
            if SPACING in data:
                batch[SPACING] = torch.as_tensor(data[SPACING])[None]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(case_seed(str(data["case"])))
                degraded = change(batch)[key][0]
            result[CLEAN] = image
            result[key] = MetaTensor(degraded, meta=image.meta) if isinstance(image, MetaTensor) else degraded
        return result

    def _choose(self, data: Mapping[Hashable, Any]) -> Degradation:
        """Return the degradation of a case."""
        if not isinstance(self.degradation, Mapping):
            return self.degradation
        name = data.get(KIND)
        if name not in self.degradation:
            known = ", ".join(self.degradation)
            raise TomokitError(f"{data.get('case')} is to be degraded by {name!r}, which is none of {known}")
        return self.degradation[str(name)]


def _plain(image: Any) -> Tensor:
    """Return an image without MONAI's metadata."""
    return image.as_tensor() if isinstance(image, MetaTensor) else torch.as_tensor(image)
