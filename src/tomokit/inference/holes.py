"""Regions of scans that are to be filled in: cut out by a mask, and put back into the scan once they are filled."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from tomokit.degradation import HOLE
from tomokit.errors import TomokitError
from tomokit.inference.grids import turn_back
from tomokit.volumes import read_volume


class CutHolesd(MapTransform):
    """Cuts out of a scaled image what its mask marks: `<masks>/<case>.nii.gz`, on the scan's own grid.

    Args:
        keys: the keys of the images, `MetaTensor`s (C, X, Y[, Z]), as shares of their range.
        masks: the folder of the masks, whose voxels other than 0 are cut out; None cuts nothing.

    Raises:
        TomokitError: when a scan has no mask, the mask lies on another grid, or it is empty.
    """

    def __init__(self, keys: KeysCollection, masks: str | Path | None = None) -> None:
        super().__init__(keys)
        self.masks = None if masks is None else Path(masks)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with holes in its images."""
        result = dict(data)
        if self.masks is None:
            return result
        path = self.masks / f"{data['case']}.nii.gz"
        if not path.is_file():
            raise TomokitError(f"no mask {path} of what to fill; write one on the scan's grid, 0 where it is kept")
        for key in self.key_iterator(result):
            image: MetaTensor = result[key].clone()
            mask = read_volume(path)
            array = mask.array.reshape(mask.array.shape[: image.ndim - 1])
            marked = turn_back(array, mask.affine, image.shape[1:], image.affine.cpu()) != 0
            if not marked.any():
                raise TomokitError(f"{path} marks no voxel to be filled; all are 0")
            image[:, torch.from_numpy(np.ascontiguousarray(marked))] = HOLE
            result[key] = image
        return result


class KeepKnownd(MapTransform):
    """Puts the image's own values back where nothing was cut out.

    Args:
        keys: the keys of what a network made of the image, as shares of its range.
        image_key: the key of the image, with its holes.
    """

    def __init__(self, keys: KeysCollection, image_key: str = "image") -> None:
        super().__init__(keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the network's answer in the holes alone."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = torch.as_tensor(result[self.image_key])
            result[key] = torch.where(image == HOLE, result[key], image)
        return result
