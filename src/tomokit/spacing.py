"""Resampling to another spacing, axis by axis: MONAI's `Spacingd` in a fraction of its time and memory."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import compute_shape_offset, to_affine_nd, zoom_affine
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import ensure_tuple_rep
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tomokit.errors import TomokitError

MODES = ("bilinear", "nearest")
BLOCK_VOXELS = 1 << 24  # resampled at once: larger blocks than glibc keeps when they are freed
MOST_LEAN = 0.1  # voxels that one grid's whole length may lean along another axis of the other


class SeparableSpacingd(MapTransform, InvertibleTransform):
    """Resamples volumes to a spacing, along one axis after the other, in float32.

    The grid and its affine are those of MONAI's `Spacingd`, the values too, to rounding: a change of spacing is
    separable, where the axes are at right angles. `Spacingd` computes a place in float64 for every voxel, which takes
    24 bytes each and most of the time.

    Args:
        keys: the keys of the volumes (C, X, Y[, Z]), `MetaTensor`s.
        pixdim: the spacing in mm, of each axis or of all; an axis that has it stays as it is.
        mode: "bilinear" (linear along each axis) or "nearest", of each key or of all.
        allow_missing_keys: pass over absent keys.

    Raises:
        TomokitError: when a spacing is not positive, or a mode is none of these.
    """

    def __init__(
        self,
        keys: KeysCollection,
        pixdim: Sequence[float] | float,
        mode: str | Sequence[str] = "bilinear",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.pixdim = [float(edge) for edge in np.atleast_1d(np.asarray(pixdim, float))]
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        if not all(np.isfinite(edge) and edge > 0 for edge in self.pixdim):
            raise TomokitError(f"pixdim must be positive numbers in mm, got {pixdim}")
        for name in self.mode:
            if name not in MODES:
                raise TomokitError(f"mode must be one of {', '.join(MODES)}, got {name!r}")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with each volume resampled, float32.

        Raises:
            TomokitError: when a volume's axes are not at right angles, as behind a tilted gantry.
        """
        result = dict(data)
        for key, mode in self.key_iterator(result, self.mode):
            image = result[key]
            dims = image.ndim - 1
            affine = to_affine_nd(dims, np.asarray(image.affine, float))
            edges = [*self.pixdim, *[self.pixdim[-1]] * dims][:dims]
            wanted = zoom_affine(affine, edges, diagonal=False)
            shape, offset = compute_shape_offset(image.shape[1:], affine, wanted, False)
            wanted[:dims, -1] = offset[:dims]
            result[key] = resample(image, wanted, [int(length) for length in shape], mode)
            extra = {"shape": tuple(image.shape[1:]), "affine": affine.tolist(), "mode": mode}
            self.push_transform(result[key], extra_info=extra)
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with each volume on the grid that it was resampled from."""
        result = dict(data)
        for key in self.key_iterator(result):
            extra = self.pop_transform(result[key])["extra_info"]
            result[key] = resample(result[key], np.asarray(extra["affine"]), extra["shape"], extra["mode"])
        return result


def resample(image: MetaTensor, affine: ArrayLike, shape: Sequence[int], mode: str) -> MetaTensor:
    """Return a volume (C, X, Y[, Z]) on a grid whose axes are the same, float32; beyond its border, the border.

    Args:
        image: whose affine tells its own grid.
        affine: of the wanted grid, voxel to world.
        shape: of the wanted grid.
        mode: "bilinear" or "nearest".

    Raises:
        TomokitError: when the axes are not the same.
    """
    dims = image.ndim - 1
    own = to_affine_nd(dims, np.asarray(image.affine, float))
    places = np.linalg.solve(own, to_affine_nd(dims, np.asarray(affine, float)))
    lean = np.abs(places[:dims, :dims] - np.diag(np.diag(places)[:dims])) * np.asarray(shape)
    if lean.max() > MOST_LEAN:
        raise TomokitError(
            f"{image.meta.get('filename_or_obj', 'the volume')}: its axes are not at right angles (they lean by up to "
            f"{lean.max():.3g} voxels, as behind a tilted gantry); resample it upright first"
        )
    values: Tensor = image.as_tensor().float()
    # the axes that shrink most come first: less is left for the others
    for axis in sorted(range(dims), key=lambda axis: shape[axis] / image.shape[1 + axis]):
        along = places[axis, axis] * np.arange(shape[axis]) + places[axis, -1]
        values = _along(values, 1 + axis, along.clip(0, values.shape[1 + axis] - 1), mode)
    meta = {key: value for key, value in image.meta.items() if key != "affine"}
    return MetaTensor(
        values,
        affine=torch.as_tensor(to_affine_nd(len(image.affine) - 1, np.asarray(affine, float))),
        meta=meta,
        applied_operations=list(image.applied_operations),
    )


def _along(values: Tensor, axis: int, places: NDArray[np.float64], mode: str) -> Tensor:
    """Return values interpolated at places along one axis."""
    if len(places) == values.shape[axis] and np.allclose(places, np.arange(len(places)), atol=1e-6):
        return values
    if mode == "nearest":
        nearest = np.floor(places.round(6) + 0.5).astype(np.int64).clip(0, values.shape[axis] - 1)
        return values.index_select(axis, torch.from_numpy(nearest).to(values.device))
    low = np.floor(places).astype(np.int64)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    shape = [-1 if number == axis else 1 for number in range(values.ndim)]
    part = torch.from_numpy((places - low).astype(np.float32)).to(values.device).view(shape)
    indices = [torch.from_numpy(index).to(values.device) for index in (low, high)]
    result = values.index_select(axis, indices[0])
    block = max(1, BLOCK_VOXELS * result.shape[axis] // result.numel())
    for first in range(0, len(places), block):  # the other neighbours take the memory of a block, not of a volume
        rows = slice(first, first + block)
        there, length = result.narrow(axis, first, len(low[rows])), part.narrow(axis, first, len(low[rows]))
        there.lerp_(values.index_select(axis, indices[1][rows]), length)
    return result
