"""What takes detail away: blur, thick slices and coarse grids, slices that are missing."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from tomokit.augmentation.draws import check_axes, check_axis, check_probability, check_range, draw_uniform
from tomokit.augmentation.intensity import change_drawn
from tomokit.augmentation.separable import along_axes, gaussian_matrix
from tomokit.degradation.units import spacing_of

FWHM = 2.3548  # full width at half maximum of a Gaussian, in standard deviations
LEAST_SIGMA = 0.05  # voxels, at which a Gaussian's neighbours weigh nothing


def blur(image: Tensor, sigmas: Tensor) -> Tensor:
    """Return the image (B, C, …) smoothed by Gaussians of `sigmas` (B, C, dimensions) voxels."""
    return along_axes(image, [gaussian_matrix(size, sigmas[..., axis]) for axis, size in enumerate(image.shape[2:])])


def thick_matrix(size: int, count: int, like: Tensor) -> Tensor:
    """Return (size, size): to `count` slices that each take the mean of their thickness, and back by interpolation.

    Linear between the slices' middles, constant beyond the outermost. Device and dtype are those of `like`.
    """
    edges = torch.arange(count + 1, device=like.device, dtype=like.dtype) * size / count
    voxels = torch.arange(size, device=like.device, dtype=like.dtype)
    shares = torch.minimum(edges[1:, None], voxels + 1) - torch.maximum(edges[:-1, None], voxels)
    means = shares.clamp(min=0) * count / size
    place = ((voxels + 0.5) * count / size - 0.5).clamp(0, count - 1)
    back = (1 - (place[:, None] - torch.arange(count, device=like.device, dtype=like.dtype)).abs()).clamp(min=0)
    return back @ means


def thicken(image: Tensor, counts: Tensor) -> Tensor:
    """Return the image (B, C, …) as seen in `counts` (B, C, dimensions) slices along each axis, on its own grid."""
    matrices = []
    for axis, size in enumerate(image.shape[2:]):
        own = [thick_matrix(size, int(count), image) for count in counts[..., axis].flatten().tolist()]
        matrices.append(torch.stack(own).reshape(*image.shape[:2], size, size))
    return along_axes(image, matrices)


class BatchRandBlurd(MapTransform):
    """Smooths by a Gaussian whose width is told in mm, alike along all axes.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        fwhm_mm_range: range of the Gaussian's full width at half maximum, in mm.

    Raises:
        TomokitError: when an argument is out of its range, or the batch does not tell its spacing.
    """

    def __init__(self, keys: KeysCollection, prob: float = 1.0, fwhm_mm_range: Sequence[float] = (1.0, 4.0)) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)
        self.fwhm_mm_range = check_range("fwhm_mm_range", fwhm_mm_range, 0)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with the drawn samples blurred."""
        spacing = spacing_of(data, self)

        def draw(shape: torch.Size) -> Tensor:
            widths = draw_uniform((shape[0], 1, 1), self.fwhm_mm_range).expand(*shape[:2], 1)
            return (widths / FWHM / spacing[:, None]).clamp(min=LEAST_SIGMA)

        return change_drawn(self, data, draw, blur)


class BatchRandThickSlicesd(MapTransform):
    """Takes the mean over thick slices, one after the other, and interpolates between them, on the image's own grid.

    Along one axis it is a scan of thick slices, along all of them one of coarse voxels.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        slice_mm_range: range of the slices' thickness, which is their distance too, in mm; at least the voxels' own.
        axes: of (X, Y, Z), those along which slices are thick.

    Raises:
        TomokitError: when an argument is out of its range, or the batch does not tell its spacing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 1.0,
        slice_mm_range: Sequence[float] = (2.0, 5.0),
        axes: Sequence[int] = (2,),
    ) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)
        self.slice_mm_range = check_range("slice_mm_range", slice_mm_range, 0.01)
        self.axes = check_axes("axes", axes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with the drawn samples in thick slices."""
        spacing = spacing_of(data, self)

        def draw(shape: torch.Size) -> Tensor:
            sizes = torch.tensor(shape[2:], dtype=torch.float32)
            thickness = draw_uniform((shape[0], 1, 1), self.slice_mm_range).expand(*shape[:2], 1)
            counts = torch.minimum((sizes * spacing[:, None] / thickness).round().clamp(min=1), sizes)
            kept = torch.tensor([axis not in self.axes for axis in range(len(sizes))])
            return torch.where(kept, sizes, counts)

        return change_drawn(self, data, draw, thicken)


class BatchRandMissingSlicesd(MapTransform):
    """Sets single slices to 0, as where the scanner or the archive lost them.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        share_range: range of the slices that are lost, as a share of all, 0 to 1; the same of every channel.
        axis: of (X, Y, Z), along which the slices lie.

    Raises:
        TomokitError: when an argument is out of its range.
    """

    def __init__(
        self, keys: KeysCollection, prob: float = 1.0, share_range: Sequence[float] = (0.05, 0.2), axis: int = 2
    ) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)
        self.share_range = check_range("share_range", share_range, 0, 1)
        self.axis = check_axis(axis)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with slices missing in the drawn samples."""

        def draw(shape: torch.Size) -> Tensor:
            kept = torch.rand(shape[0], 1, shape[2 + self.axis]) >= draw_uniform((shape[0], 1, 1), self.share_range)
            own = [1] * (len(shape) - 2)
            own[self.axis] = shape[2 + self.axis]
            return kept.reshape(shape[0], 1, *own).float()

        return change_drawn(self, data, draw, torch.mul)
