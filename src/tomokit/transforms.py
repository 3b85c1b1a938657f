"""Transforms that MONAI lacks, in its dictionary form."""

from collections.abc import Hashable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import MapTransform, RandCropByLabelClassesd
from monai.utils import convert_to_dst_type, fall_back_tuple
from numpy.typing import NDArray
from scipy import ndimage

from tomokit.errors import TomokitError
from tomokit.measure import feature_names, measure_features


class OneHotClassd(MapTransform):
    """Turns a case's class, an integer, into a one-hot vector (C,) as MONAI's metrics take it.

    MONAI's `AsDiscreted` needs a channel axis, which a single number does not have.

    Args:
        keys: the keys of the classes.
        num_classes: the number of classes C.
    """

    def __init__(self, keys: KeysCollection, num_classes: int) -> None:
        super().__init__(keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with each class as a vector (C,), float32."""
        result = dict(data)
        for key in self.key_iterator(result):
            classes = torch.as_tensor(result[key]).long()
            result[key] = torch.nn.functional.one_hot(classes, self.num_classes).float()
        return result


class RandPatchByLabelClassesd(RandCropByLabelClassesd):
    """MONAI's crop around a voxel of a drawn class, the same draws, as plain tensors without a record of the crop.

    MONAI writes the crop into each tensor's metadata, which takes longer than the crop of a small patch itself.
    Takes MONAI's arguments; `num_samples` patches come back for each case.
    """

    copies_input = True  # the cache then hands out its cases as they are

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> list[dict[Hashable, Any]]:
        """Return `num_samples` dictionaries, each key's image (C, X, Y[, Z]) cut to (C, *spatial_size), copied."""
        rest = {key: value for key, value in data.items() if key != self.indices_key}
        self._check(data)
        self.randomize(data.get(self.label_key), data.get(self.indices_key), data.get(self.image_key))
        size = self.cropper.spatial_size
        patches: list[dict[Hashable, Any]] = []
        for centre in self.cropper.centers or ():
            patch = dict(rest)
            for key in self.key_iterator(patch):
                patch[key] = _cut(torch.as_tensor(rest[key]).as_subclass(torch.Tensor), centre, size)
            patches.append(patch)
        return patches

    def _check(self, data: Mapping[Hashable, Any]) -> None:
        """Raise when a case with known places has none of the classes that are drawn.

        Raises:
            TomokitError: that names the case.
        """
        places = data.get(self.indices_key)
        if places is None:
            return
        ratios = self.cropper.ratios or [1.0] * len(places)
        if any(len(own) and ratio > 0 for own, ratio in zip(places, ratios, strict=True)):
            return
        raise TomokitError(
            f"{data.get('case', 'a case')} has no voxel of a class that patches are centred on; leave it out of the "
            "training cases, or set foreground_share below 1"
        )


def _cut(image: torch.Tensor, centre: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """Return the part (C, *size) of an image (C, X, Y[, Z]) about a voxel, moved inside at the edges, copied."""
    for axis, (place, wanted) in enumerate(zip(centre, fall_back_tuple(size, image.shape[1:]), strict=True), start=1):
        first = max(int(place) - wanted // 2, 0)
        image = image.narrow(axis, first, min(wanted, image.shape[axis] - first))
    return image.clone(memory_format=torch.contiguous_format)


def class_ratios(labels: Sized, foreground_share: float) -> list[float]:
    """Return how often a patch shall be centred on each class: the background, then all structures alike.

    Args:
        labels: the label map, background first.
        foreground_share: the part of the patches that is centred on a structure, 0–1.

    Raises:
        TomokitError: when the share is not in 0–1.
    """
    if not 0 <= foreground_share <= 1:
        raise TomokitError(f"foreground_share must lie in 0–1, got {foreground_share}")
    structures = len(labels) - 1
    return [1 - foreground_share] + [foreground_share / structures] * structures


class DepthMapd(MapTransform):
    """Turns a mask into the depth of each voxel in it: its distance in mm from the nearest voxel outside; 0 elsewhere.

    A network then reads thickness in place of a flat 1, and what is interpolated between voxels stays a depth. MONAI's
    `DistanceTransformEDTd` counts voxels and gives double precision, which networks do not take.

    Args:
        keys: the keys of the masks (C, X, Y[, Z]).
        above: voxels above this value are in the mask.
    """

    def __init__(self, keys: KeysCollection, above: float = 0.0) -> None:
        super().__init__(keys)
        self.above = above

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with each key's depths (C, X, Y[, Z]), float32; 1 in a mask without an outside."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            masks = torch.as_tensor(image).as_subclass(torch.Tensor).cpu().numpy() > self.above
            edges = image.pixdim.tolist()[: masks.ndim - 1] if isinstance(image, MetaTensor) else None
            depths = np.stack([self.measure(mask, edges) for mask in masks])
            result[key] = convert_to_dst_type(depths, image, dtype=torch.float32)[0]
        return result

    def measure(self, mask: NDArray[np.bool_], edges: Sequence[float] | None) -> NDArray[np.float64]:
        """Return the depth of each voxel of a mask (X, Y[, Z]); 1 where there is no outside to measure from."""
        if mask.all():
            return np.ones(mask.shape)
        depth = np.zeros(mask.shape)
        if boxes := ndimage.find_objects(mask.view(np.uint8)):
            box = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in boxes[0])  # the nearest outside too
            depth[box] = ndimage.distance_transform_edt(mask[box], sampling=edges)
        return depth


class MeasureFeaturesd(MapTransform):
    """Measures an image, or the structure in it, into the key `features`: a vector (F,), float32.

    Nothing in it is random, so that a cache keeps the vector. It measures what it is given: put it after loading and
    orientation, before resampling and cropping, where the values are those of `tomokit.rivals.feature_table`.

    Args:
        keys: the key of the image (C, X, Y[, Z]), a `MetaTensor`; of several channels the first is measured.
        mask_above: without a mask, voxels above this value are the structure, whose shape is measured; without either,
            the intensities of the whole image are.
        mask_key: the key of the structure's mask (1, X, Y[, Z]) on the image's grid; what is not 0 in it is the
            structure. Its shape and the intensities within it are measured.

    Raises:
        TomokitError: when there are several keys, a case has no mask, or the image does not know its grid or can't be
            measured.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mask_above: float | None = None,
        mask_key: str | None = None,
    ) -> None:
        super().__init__(keys)
        if len(self.keys) != 1:
            raise TomokitError(f"one image of a case is measured, got the keys {list(self.keys)}; give one key")
        self.mask_above, self.mask_key = mask_above, mask_key
        self.names = feature_names(mask_key is not None, mask_above)
        self.measure = measure_features  # a part of the state, so that a cache on the disk knows its source

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with `features`."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            name = data.get("case", key)
            if not isinstance(image, MetaTensor):
                raise TomokitError(f"{name} has no grid to measure on; put MeasureFeaturesd before track_meta: false")
            affine = to_affine_nd(3, image.affine.cpu().numpy())
            if self.mask_key is not None and self.mask_key not in result:
                raise TomokitError(
                    f"{name} has no `{self.mask_key}` to measure in (key `mask_key`); add it to dataset.json"
                )
            mask = None if self.mask_key is None else _first_channel(result[self.mask_key]) != 0
            try:
                found = self.measure(_first_channel(image), affine, mask, self.mask_above)
            except TomokitError as error:
                raise TomokitError(f"{name}: {error}") from error
            result["features"] = torch.tensor(list(found.values()), dtype=torch.float32)
        return result


def _first_channel(image: Any) -> NDArray[Any]:
    """Return the first channel of an image (C, X, Y[, Z]) as (X, Y, Z), a flat image as one slice."""
    array: NDArray[Any] = torch.as_tensor(image).as_subclass(torch.Tensor).cpu().numpy()[0]
    return array[..., None] if array.ndim == 2 else array
