"""Random changes of place: rotation, scale, shift and elastic deformation in one resampling; flips."""

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep
from torch import Tensor
from torch.nn import functional

from tomokit.augmentation.draws import (
    change_samples,
    check_axes,
    check_probability,
    check_range,
    draw_events,
    draw_factors,
    draw_uniform,
    per_axis,
)
from tomokit.augmentation.separable import along_axes, spline_matrix, spline_points
from tomokit.errors import TomokitError

MODES = ("bilinear", "nearest")
PADDINGS = ("border", "reflection", "zeros")
# a displacement stays one to one while control points move by less than their distance over this (3D's; 2D's is lower)
FOLD = 2.4795

# ------------------------------------------------------------------------- changes with given values


def rotation_matrices(angles: Tensor) -> Tensor:
    """Return rotations (B, 3, 3) by angles (B, 3) in radians about z, then y, then x, or (B, 2, 2) by angles (B, 1).

    The order and the signs are those of MONAI's Affine.
    """
    if angles.shape[1] == 1:
        return _turned(angles[:, 0], 0, 1)[:, :2, :2]
    about_x, about_y, about_z = (_turned(angles[:, axis], (axis + 1) % 3, (axis + 2) % 3) for axis in range(3))
    return about_x @ about_y @ about_z


def _turned(angle: Tensor, first: int, second: int) -> Tensor:
    """Return rotations (B, 3, 3) in the plane of two axes."""
    matrix = torch.eye(3).repeat(len(angle), 1, 1)
    matrix[:, first, first] = matrix[:, second, second] = angle.cos()
    matrix[:, second, first] = angle.sin()
    matrix[:, first, second] = -angle.sin()
    return matrix


def affine_matrices(angles: Tensor, scales: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Return matrices (B, d, d) from an offset of the result to that of its source, in voxels from the centre.

    `angles` as in `rotation_matrices`; `scales` (B,) above 1 enlarge. `spacing` in mm makes it a rotation in space: in
    voxels of unequal edges a rotation would shear.
    """
    matrices = rotation_matrices(angles) / scales[:, None, None]
    if spacing is None:
        return matrices
    edges = torch.tensor(spacing, dtype=torch.float32)
    return matrices * (edges / edges[:, None])


def sampling_grid(
    matrices: Tensor,
    shifts: Tensor,
    source: Sequence[int],
    size: Sequence[int],
    device: torch.device | str = "cpu",
    controls: Tensor | None = None,
    distances: Sequence[float] = (),
) -> Tensor:
    """Return where to sample (B, *size, d), for `grid_sample` with `align_corners=False`.

    Args:
        matrices: (B, d, d), as `affine_matrices` returns them, on the CPU.
        shifts: (B, d), how far the content moves, in voxels of the result, on the CPU.
        source: the image's size in voxels.
        size: the result's, a window at the centre.
        device: the image's.
        controls: (B, d, *points), displacements in voxels at the control points of a cubic B-spline, on the CPU.
        distances: of the control points along each axis, in voxels.
    """
    edges, wanted = (torch.tensor(list(sizes), dtype=torch.float32) for sizes in (source, size))
    centre = (edges - wanted).div(2).floor() + (wanted - edges) / 2  # odd differences: the window is half a voxel off
    offsets = centre - (matrices @ shifts[..., None]).squeeze(-1)
    columns = torch.cat([(matrices * wanted / edges[:, None]).flip(1, 2), (2 * offsets / edges).flip(1)[..., None]], 2)
    theta = columns.to(device, non_blocking=True)
    grid = functional.affine_grid(theta, [len(theta), 1, *size], align_corners=False)
    if controls is None:
        return grid
    # displaced first, then turned: what doesn't fold then still doesn't, however small the scale
    turned = torch.einsum("bij,bj...->bi...", matrices * (2 / edges[:, None]), controls).flip(1)
    turned = turned.to(device, non_blocking=True)
    splines = zip(size, turned.shape[2:], distances, strict=True)
    field = along_axes(turned, [spline_matrix(edge, points, gap, turned) for edge, points, gap in splines])
    return grid.add_(field.movedim(1, -1))


def crop_centre(image: Tensor, size: Sequence[int]) -> Tensor:
    """Return the window (B, C, *size) at the image's centre, a view."""
    for axis, wanted in enumerate(size, start=2):
        image = image.narrow(axis, (image.shape[axis] - wanted) // 2, wanted)
    return image


def resample(image: Tensor, grid: Tensor, mode: str, padding_mode: str) -> Tensor:
    """Return the image (B, C, X, Y[, Z]) at the places of a grid."""
    return functional.grid_sample(
        image, grid.to(image.dtype), mode=mode, padding_mode=padding_mode, align_corners=False
    )


# ------------------------------------------------------------------------------- changes of drawn samples


class BatchRandSpatiald(MapTransform):
    """Rotates, scales, shifts and deforms, all in one resampling for each key.

    Rotation, scale, shift and deformation are drawn each with its own probability; a sample without any keeps every
    bit. Whole-number labels are exact up to 2**24.

    Args:
        keys: the keys, all of one spatial shape.
        mode: "bilinear" (trilinear in 3D) for images, "nearest" for labels; one, or one for each key.
        rotate_prob: the probability of a rotation, for each sample.
        rotate_range: the largest angle about each axis in radians, one number or one for each (2D: one); `[0, 0, 0.5]`
            turns in the plane of x and y alone.
        scale_prob: the probability of a scale.
        scale_range: range of the factor; above 1 enlarges, and as many lie below as above.
        translate_prob: the probability of a shift.
        translate_range: the largest shift along each axis in voxels, one number or one for each axis.
        elastic_prob: the probability of an elastic deformation.
        elastic_magnitude: range of the largest displacement along an axis, in voxels (the shortest edge's).
        elastic_spacing: the distance of the deformation's control points, in voxels (the shortest edge's).
        spacing: the voxels' edges in mm, so that all is as in space; None where they are alike.
        padding_mode: what lies outside: "border", "reflection" or "zeros"; one, or one for each key.
        spatial_size: the size of the result in voxels, cut from the centre of a larger image, so that what turns in
            is image and not padding; None keeps the size.
        allow_missing_keys: whether a batch may lack a key.

    Raises:
        TomokitError: when an argument is out of its range, or a deformation could fold the image.
    Source: rotation and scale as in nnU-Net (Isensee et al., Nature Methods 18, 2021), which deforms nothing; no
        folds: Choi & Lee, Graphical Models 62, 2000.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mode: str | Sequence[str] = "bilinear",
        rotate_prob: float = 0.2,
        rotate_range: float | Sequence[float] = math.pi / 6,
        scale_prob: float = 0.2,
        scale_range: Sequence[float] = (0.7, 1.4),
        translate_prob: float = 0.0,
        translate_range: float | Sequence[float] = 0.0,
        elastic_prob: float = 0.0,
        elastic_magnitude: Sequence[float] = (0.0, 4.0),
        elastic_spacing: float = 16.0,
        spacing: Sequence[float] | None = None,
        padding_mode: str | Sequence[str] = "border",
        spatial_size: Sequence[int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.modes = _check_words("mode", mode, MODES, len(self.keys))
        self.padding_modes = _check_words("padding_mode", padding_mode, PADDINGS, len(self.keys))
        self.rotate_prob = check_probability("rotate_prob", rotate_prob)
        self.scale_prob = check_probability("scale_prob", scale_prob)
        self.translate_prob = check_probability("translate_prob", translate_prob)
        self.elastic_prob = check_probability("elastic_prob", elastic_prob)
        self.rotate_range = _check_sizes("rotate_range", rotate_range, "radians", 2 * math.pi)
        self.translate_range = _check_sizes("translate_range", translate_range, "voxels")
        self.scale_range = check_range("scale_range", scale_range, 0.1)
        self.elastic_magnitude = check_range("elastic_magnitude", elastic_magnitude, 0)
        self.elastic_spacing = float(elastic_spacing)
        if self.elastic_magnitude[1] * FOLD > self.elastic_spacing:
            raise TomokitError(
                f"elastic_magnitude up to {self.elastic_magnitude[1]:g} voxels folds the image at an elastic_spacing "
                f"of {self.elastic_spacing:g}; set it to {self.elastic_spacing / FOLD:.3g} or less"
            )
        self.spacing = None if spacing is None else tuple(float(edge) for edge in spacing)
        if self.spacing is not None and min(self.spacing) <= 0:
            raise TomokitError(f"spacing must be positive numbers in mm, got {self.spacing}")
        self.spatial_size = None if spatial_size is None else tuple(spatial_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with each key resampled on the same random grids."""
        result = dict(data)
        image: Tensor = result[self.first_key(result)]
        source = tuple(image.shape[2:])
        self._check_shapes(result, source)
        size = self.spatial_size or source
        matrices, shifts, controls, distances = self._draw(len(image), size)
        moved = (matrices != torch.eye(len(size))).flatten(1).any(1) | (shifts != 0).any(1)
        if controls is not None:
            moved |= (controls != 0).flatten(1).any(1)
        samples = moved.nonzero().flatten().tolist()
        if samples:
            deformed = None if controls is None else controls[samples]
            place = (matrices[samples], shifts[samples], source, size, image.device, deformed, distances)
            grid = sampling_grid(*place)
        for key, mode, padding_mode in self.key_iterator(result, self.modes, self.padding_modes):
            whole = result[key]
            base = whole if size == source else crop_centre(whole, size).clone()
            result[key] = base
            if samples:
                change = partial(resample, grid=grid, mode=mode, padding_mode=padding_mode)
                result[key] = change_samples(whole, samples, change, base)
        return result

    def _check_shapes(self, data: Mapping[Hashable, Any], source: Sequence[int]) -> None:
        shapes = {str(key): tuple(data[key].shape) for key in self.key_iterator(data)}
        if len(source) not in (2, 3) or any(tuple(shape[2:]) != source for shape in shapes.values()):
            raise TomokitError(f"BatchRandSpatiald takes (B, C, X, Y[, Z]) of one spatial shape, got {shapes}")
        size = self.spatial_size or source
        if len(size) != len(source) or any(wanted > edge for wanted, edge in zip(size, source, strict=True)):
            raise TomokitError(f"spatial_size must be within the image's {source}, got {size}")
        if self.spacing is not None and len(self.spacing) != len(source):
            raise TomokitError(f"spacing must be {len(source)} numbers in mm, got {self.spacing}")

    def _draw(self, count: int, size: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None, list[float]]:
        """Return matrices, shifts, control points (None: no deformation) and their distances for every sample."""
        dims = len(size)
        turns = per_axis("rotate_range", self.rotate_range, 3 if dims == 3 else 1)
        angles = draw_uniform((count, len(turns)), (-1.0, 1.0)) * torch.tensor(turns)
        angles = angles * draw_events((count, 1), self.rotate_prob)
        scales = torch.where(draw_events(count, self.scale_prob), draw_factors(count, self.scale_range), 1.0)
        steps = torch.tensor(per_axis("translate_range", self.translate_range, dims))
        shifts = draw_uniform((count, dims), (-1.0, 1.0)) * steps * draw_events((count, 1), self.translate_prob)
        matrices = affine_matrices(angles, scales, self.spacing)
        deformed = draw_events(count, self.elastic_prob)
        if not deformed.any():
            return matrices, shifts, None, []
        edges = torch.tensor(self.spacing or (1.0,) * dims)
        shares = edges.min() / edges  # a millimetre is fewer voxels along a longer edge
        distances = (self.elastic_spacing * shares).tolist()
        points = [spline_points(*pair) for pair in zip(size, distances, strict=True)]
        strengths = (draw_uniform(count, self.elastic_magnitude) * deformed)[:, None] * shares
        controls = draw_uniform((count, dims, *points), (-1.0, 1.0)) * strengths.reshape(count, dims, *[1] * dims)
        return matrices, shifts, controls, distances


class BatchRandFlipd(MapTransform):
    """Mirrors, along each axis with a probability of its own.

    Args:
        keys: the keys.
        spatial_axis: the axes of (X, Y, Z), 0 to 2; an empty list mirrors nothing.
        prob: the probability of a mirroring for each sample and each axis.

    Raises:
        TomokitError: when the probability is not in 0–1 or an axis is not one of the image's.
    """

    def __init__(self, keys: KeysCollection, spatial_axis: int | Sequence[int], prob: float = 0.5) -> None:
        super().__init__(keys)
        self.axes = check_axes("spatial_axis", spatial_axis)
        self.prob = check_probability("prob", prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with the same samples of each key mirrored."""
        result = dict(data)
        image: Tensor = result[self.first_key(result)]
        events = draw_events((len(image), len(self.axes)), self.prob).tolist()
        for key in self.key_iterator(result):
            batch = result[key]
            if any(axis + 2 >= batch.ndim for axis in self.axes):
                raise TomokitError(f"spatial_axis {self.axes} is not within {key!r} of shape {tuple(batch.shape)}")
            if any(map(any, events)):
                result[key] = batch.clone()
            for number, drawn in enumerate(events):
                axes = [axis + 1 for axis, flipped in zip(self.axes, drawn, strict=True) if flipped]
                if axes:
                    result[key][number].copy_(batch[number].flip(axes))
        return result


def _check_words(name: str, value: str | Sequence[str], words: Sequence[str], count: int) -> tuple[str, ...]:
    values: tuple[str, ...] = ensure_tuple_rep(value, count)
    wrong = [word for word in values if word not in words]
    if wrong:
        raise TomokitError(f"{name} must be one of {', '.join(words)}, got {wrong[0]!r}")
    return values


def _check_sizes(
    name: str, value: float | Sequence[float], unit: str, greatest: float = math.inf
) -> float | tuple[float, ...]:
    values = (value,) if isinstance(value, int | float) else tuple(value)
    if not all(0 <= number <= greatest and math.isfinite(number) for number in values):
        limit = "" if math.isinf(greatest) else f" of at most {greatest:.4g}"
        raise TomokitError(f"{name} must be numbers{limit} in {unit}, not negative, got {value}")
    return float(value) if isinstance(value, int | float) else tuple(map(float, values))
