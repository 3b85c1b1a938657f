"""Random changes of place: rotation, scale, shift and elastic deformation in one resampling, and flips."""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep
from torch import Tensor
from torch.nn import functional

from tomokit.augmentation.draws import change_samples, check_probability, check_range, draw_samples, draw_uniform
from tomokit.errors import TomokitError

MODES = ("bilinear", "nearest")


class BatchRandSpatiald(MapTransform):
    """Rotates, scales, shifts and deforms the drawn samples of a batch, all in one resampling per key.

    Args:
        keys: the keys, the image's first.
        mode: "bilinear" (trilinear in 3D) for images, "nearest" for labels: one, or one per key.
        rotate_prob: of a rotation.
        rotate_range: the largest angle in radians about each axis, one number or one per axis (2D: one angle).
        scale_prob: of a change of size.
        scale_range: the smallest and largest factor; above 1 enlarges.
        translate_prob: of a shift.
        translate_range: the largest shift along each axis in voxels, one number or one per axis.
        elastic_prob: of an elastic deformation.
        elastic_magnitude: the displacements' standard deviation in voxels, drawn from this range.
        elastic_spacing: the distance of the deformation's control points in voxels.
        spacing: the voxel's edges in mm, so that a rotation is one in space; None: all alike.
        padding_mode: what lies outside: "border", "zeros" or "reflection".
        spatial_size: the size of the result, around the centre; None keeps the size.

    Raises:
        TomokitError: when an argument is out of its range.
    Source: ranges and probabilities of rotation and scale as in nnU-Net (Isensee et al., Nature Methods 18, 2021);
        elastic deformation after Simard et al., ICDAR 2003.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mode: str | Sequence[str] = "bilinear",
        rotate_prob: float = 0.2,
        rotate_range: float | Sequence[float] = 0.52,
        scale_prob: float = 0.2,
        scale_range: Sequence[float] = (0.7, 1.4),
        translate_prob: float = 0.0,
        translate_range: float | Sequence[float] = 0.0,
        elastic_prob: float = 0.0,
        elastic_magnitude: Sequence[float] = (0.5, 2.0),
        elastic_spacing: float = 12.0,
        spacing: Sequence[float] | None = None,
        padding_mode: str = "border",
        spatial_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__(keys)
        self.modes = ensure_tuple_rep(mode, len(self.keys))
        wrong = [mode for mode in self.modes if mode not in MODES]
        if wrong:
            raise TomokitError(f"mode must be one of {', '.join(MODES)}, got {wrong[0]!r}")
        self.probs = {
            "rotate": check_probability("rotate_prob", rotate_prob),
            "scale": check_probability("scale_prob", scale_prob),
            "translate": check_probability("translate_prob", translate_prob),
            "elastic": check_probability("elastic_prob", elastic_prob),
        }
        self.rotate_range = rotate_range
        self.scale_range = check_range("scale_range", scale_range, 1e-3)
        self.translate_range = translate_range
        self.elastic_magnitude = check_range("elastic_magnitude", elastic_magnitude, 0.0)
        self.elastic_spacing = elastic_spacing
        self.spacing = None if spacing is None else tuple(float(edge) for edge in spacing)
        self.padding_mode = padding_mode
        self.spatial_size = None if spatial_size is None else tuple(int(edge) for edge in spatial_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with each key resampled on the same random grids."""
        result = dict(data)
        first: Tensor = result[self.first_key(result)]
        drawn = {name: draw_samples(len(first), prob) for name, prob in self.probs.items()}
        chosen = sorted({sample for samples in drawn.values() for sample in samples})
        size = self.spatial_size or tuple(first.shape[2:])
        if self.spatial_size is not None:
            chosen = list(range(len(first)))  # all get the new size
        if not chosen:
            return result
        matrices, offsets = self._draw_affine(chosen, drawn, first.ndim - 2)
        places = sampling_grid(matrices, offsets, tuple(first.shape[2:]), size, first.device)
        if drawn["elastic"]:
            places = places + self._draw_elastic(chosen, drawn["elastic"], first, size)
        for key, mode in self.key_iterator(result, self.modes):
            result[key] = change_samples(result[key], chosen, partial(self._resample, places=places, mode=mode))
        return result

    def _resample(self, x: Tensor, places: Tensor, mode: str) -> Tensor:
        """Return the samples at the places, in their own type."""
        moved = functional.grid_sample(
            x.float(), places, mode=mode, padding_mode=self.padding_mode, align_corners=False
        )
        return moved.to(x.dtype)

    def _draw_affine(
        self, chosen: Sequence[int], drawn: Mapping[str, Sequence[int]], dims: int
    ) -> tuple[Tensor, Tensor]:
        """Return matrices (k, dims, dims) and offsets (k, dims) in voxels, from the result's place to the source's."""
        count, planes = len(chosen), 3 if dims == 3 else 1
        switched = {
            name: torch.tensor([float(c in samples) for c in chosen])[:, None] for name, samples in drawn.items()
        }
        limits = torch.tensor(ensure_tuple_rep(self.rotate_range, planes), dtype=torch.float32)
        angles = draw_uniform((count, planes), (-1.0, 1.0)) * limits * switched["rotate"]
        scales = torch.where(switched["scale"] > 0, draw_uniform((count, 1), self.scale_range), torch.ones(count, 1))
        shifts = torch.tensor(ensure_tuple_rep(self.translate_range, dims), dtype=torch.float32)
        offsets = draw_uniform((count, dims), (-1.0, 1.0)) * shifts * switched["translate"]
        matrices = rotation_matrices(angles) / scales[:, :, None]
        if self.spacing is not None:
            edges = torch.tensor(self.spacing)
            matrices = matrices * edges / edges[:, None]
        return matrices, offsets

    def _draw_elastic(self, chosen: Sequence[int], drawn: Sequence[int], like: Tensor, size: Sequence[int]) -> Tensor:
        """Return displacements (k, *size, dims) in grid units; zero for samples that were not drawn."""
        dims = len(size)
        points = [max(2, round(edge / self.elastic_spacing) + 1) for edge in size]
        magnitudes = draw_uniform((len(chosen),), self.elastic_magnitude)
        magnitudes = magnitudes * torch.tensor([float(sample in drawn) for sample in chosen])
        coarse = torch.randn(len(chosen), dims, *points) * magnitudes.reshape(-1, *[1] * (dims + 1))
        coarse = coarse.to(like.device, non_blocking=True)
        mode = "trilinear" if dims == 3 else "bilinear"
        fine = functional.interpolate(coarse, size=list(size), mode=mode, align_corners=True)
        units = torch.tensor([2.0 / edge for edge in like.shape[2:]]).to(like.device, non_blocking=True)
        return (fine.movedim(1, -1) * units).flip(-1)


class BatchRandFlipd(MapTransform):
    """Mirrors the drawn samples of a batch along each axis by itself.

    Args:
        keys: the keys.
        spatial_axis: the axes of (X, Y, Z); empty for none.
        prob: of a flip along each axis.

    Raises:
        TomokitError: when the probability is not in 0–1.
    """

    def __init__(self, keys: KeysCollection, spatial_axis: int | Sequence[int], prob: float = 0.5) -> None:
        super().__init__(keys)
        self.axes = (spatial_axis,) if isinstance(spatial_axis, int) else tuple(spatial_axis)
        self.prob = check_probability("prob", prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with the same samples of each key mirrored."""
        result = dict(data)
        batch = len(result[self.first_key(result)])
        for axis in self.axes:
            chosen = draw_samples(batch, self.prob)
            for key in self.key_iterator(result):
                result[key] = change_samples(result[key], chosen, partial(torch.flip, dims=[2 + axis]))
        return result


def rotation_matrices(angles: Tensor) -> Tensor:
    """Return rotations (k, 3, 3) about x, y, then z by angles (k, 3) in radians, or (k, 2, 2) by angles (k, 1)."""
    cosine, sine = angles.cos(), angles.sin()
    if angles.shape[1] == 1:
        rows = [torch.stack([cosine[:, 0], -sine[:, 0]], -1), torch.stack([sine[:, 0], cosine[:, 0]], -1)]
        return torch.stack(rows, -2)
    total = torch.eye(3).repeat(len(angles), 1, 1)
    for axis, (a, b) in enumerate(((1, 2), (2, 0), (0, 1))):
        turn = torch.eye(3).repeat(len(angles), 1, 1)
        turn[:, a, a] = turn[:, b, b] = cosine[:, axis]
        turn[:, a, b], turn[:, b, a] = -sine[:, axis], sine[:, axis]
        total = turn @ total
    return total


def sampling_grid(
    matrices: Tensor, offsets: Tensor, source: Sequence[int], size: Sequence[int], device: torch.device
) -> Tensor:
    """Return where to sample (k, *size, dims), in `grid_sample`'s units and order (last axis first).

    `matrices` (k, dims, dims) and `offsets` (k, dims) take a place of the result to one of the source, both in voxels
    from the centre, axes X, Y, Z.
    """
    edges, wanted = torch.tensor(source, dtype=torch.float32), torch.tensor(size, dtype=torch.float32)
    scaled = matrices * wanted / edges[:, None]  # from units of half the result to units of half the source
    theta = torch.cat([scaled, (2 * offsets / edges)[..., None]], -1)
    theta = torch.cat([theta[:, :, :-1].flip(1, 2), theta[:, :, -1:].flip(1)], -1).to(device, non_blocking=True)
    return functional.affine_grid(theta, [len(theta), 1, *size], align_corners=False)
