"""Patches of other cases blended into a batch: what a detector of anomalies learns from, where there are none."""

import contextlib
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor
from torch.nn import functional

from tomokit.augmentation.draws import (
    check_axes,
    check_probability,
    check_range,
    draw_events,
    draw_factors,
    draw_uniform,
)
from tomokit.errors import TomokitError

COARSE = 4  # nodes along each axis of the noise that dents a patch
DENT = 0.25  # of a patch's radius, one deviation
POWERS = (2, 8)  # of a patch's norm: an ellipsoid, or nearly a box
REACH = 1.6  # of its greatest radius; the corners of a box reach further, and are cut


class BatchRandForeignPatchesd(MapTransform):
    """Blends patches of another case of the batch into each image, and gives the other's weight at each voxel.

    A patch comes from any place of the other case, which is mirrored and moved, and half the time turned and scaled;
    half the time its contrast is changed about its mean, so that patches are smoother than what is around them, or
    rougher. Of a batch of one it is another place of the same case. Patches are ellipsoids and rounded boxes at any
    angle, half of them dented, with sharp or soft edges. No constant is ever added to an image, no voxels are permuted.

    Args:
        keys: the images' keys (B, C, X, Y[, Z]).
        label_key: where the weights (B, 1, X, Y[, Z]) are put, 0 outside the patches.
        prob: the probability of patches in each sample.
        most: patches in a sample, from 1.
        radius_range: in voxels, along each axis of a patch by itself.
        weight_range: of the other case in the blend.
        edge_range: over how many voxels a patch fades in.
        scale_range: of the other case.
        contrast_range: of the other case; below 0 bright is dark.
        flip_axes: of (x, y, z) along which the other case may be mirrored.
        seed: of patches that are the same in every batch, as validation wants them; None draws anew.

    Raises:
        TomokitError: when an argument is out of its range.
    Source: Tan et al., Detecting outliers with foreign patch interpolation, MELBA 1 (2022).
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str,
        prob: float = 1.0,
        most: int = 3,
        radius_range: Sequence[float] = (2.0, 7.0),
        weight_range: Sequence[float] = (0.2, 0.6),
        edge_range: Sequence[float] = (0.5, 2.0),
        scale_range: Sequence[float] = (0.35, 1.5),
        contrast_range: Sequence[float] = (-1.0, 2.0),
        detail_range: Sequence[float] = (0.0, 4.0),
        visible: float = 0.1,
        flip_axes: Sequence[int] = (0, 1, 2),
        seed: int | None = None,
    ) -> None:
        super().__init__(keys)
        self.label_key = label_key
        self.prob = check_probability("prob", prob)
        if most < 1:
            raise TomokitError(f"most must be a number of patches of at least 1, got {most}")
        self.most = int(most)
        self.radius_range = check_range("radius_range", radius_range, least=0.5)
        self.weight_range = check_range("weight_range", weight_range, 0.0, 1.0)
        self.edge_range = check_range("edge_range", edge_range, least=0.1)
        self.scale_range = check_range("scale_range", scale_range, least=0.1)
        self.contrast_range = check_range("contrast_range", contrast_range)
        self.detail_range = check_range("detail_range", detail_range)
        if not visible > 0:
            raise TomokitError(f"visible must be above 0, got {visible}")
        self.visible = float(visible)
        self.flip_axes = check_axes("flip_axes", flip_axes)
        self.seed = seed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with patches, and their weights."""
        result = dict(data)
        with _own_draws(self.seed):
            for key in self.key_iterator(result):
                image: Tensor = result[key]
                with torch.autocast(image.device.type, enabled=False):
                    weights = self._draw_weights(image)
                    others = self._draw_others(image.float())
                    blended = torch.lerp(image.float(), others, weights)
                    result[self.label_key] = self._tell_change(blended - image.float(), weights)
                result[key] = blended.to(image.dtype)
        return result

    def _tell_change(self, change: Tensor, weights: Tensor) -> Tensor:
        """Return how visible a change (B, C, X, Y[, Z]) is, from 0 to 1, within the patches (B, 1, X, Y[, Z])."""
        size = mean_of_neighbours(change.abs().mean(1, keepdim=True))
        return -torch.expm1(-size / self.visible) * (weights > 0)

    def _draw_weights(self, image: Tensor) -> Tensor:
        """Return the weights (B, 1, X, Y[, Z]) of patches at random places; where they overlap the larger one's."""
        shape = image.shape[2:]
        weights = image.new_zeros((len(image), 1, *shape), dtype=torch.float32)
        counts = torch.randint(1, self.most + 1, (len(image),)) * draw_events(len(image), self.prob)
        for sample, count in enumerate(counts.tolist()):
            for _ in range(count):
                box, patch = self._draw_patch(shape, image.device)
                part = weights[sample, 0][box]
                part.copy_(torch.maximum(part, patch * draw_uniform((), self.weight_range).item()))
        return weights

    def _draw_patch(self, shape: Sequence[int], device: torch.device) -> tuple[tuple[slice, ...], Tensor]:
        """Return the box that holds a patch, and the patch in it: 1 inside, 0 outside."""
        axes = len(shape)
        centre = torch.rand(axes) * (torch.tensor(shape) - 1)
        radii, edge = draw_uniform(axes, self.radius_range), draw_uniform((), self.edge_range).item()
        power, dented = POWERS[int(draw_events((), 0.5))], bool(draw_events((), 0.5))
        reach = REACH * radii.max().item() + edge  # only there is anything, which is a tenth of the work
        ranges = [
            (max(math.floor(middle - reach), 0), min(math.ceil(middle + reach) + 1, size))
            for middle, size in zip(centre.tolist(), shape, strict=True)
        ]
        places = [torch.arange(low, high, device=device) for low, high in ranges]
        offsets = torch.stack(torch.meshgrid(*places, indexing="ij"), -1) - centre.to(device)
        turned = offsets @ (draw_rotation(axes) / radii[:, None]).T.to(device)
        distance = turned.abs().pow(power).sum(-1).pow(1 / power)
        if dented:
            coarse = torch.randn(1, 1, *[COARSE] * axes).clamp(-2, 2).to(device) * DENT
            mode = "bilinear" if axes == 2 else "trilinear"
            distance = distance + functional.interpolate(coarse, size=distance.shape, mode=mode)[0, 0]
        box = tuple(slice(*ends) for ends in ranges)
        return box, ((1 - distance) * radii.mean().item() / edge + 0.5).clamp(0, 1)

    def _draw_others(self, image: Tensor) -> Tensor:
        """Return for each sample another one (B, C, X, Y[, Z]), mirrored and moved, every second one turned too."""
        step = int(torch.randint(1, len(image), ())) if len(image) > 1 else 0
        others = []
        for other in image.roll(step, 0):
            flips = [1 + axis for axis in self.flip_axes if axis < image.ndim - 2 and draw_events((), 0.5)]
            shifts = [int(torch.randint(size, ())) for size in other.shape[1:]]
            mirrored = other.flip(flips)
            # whole voxels keep the noise as it is, which an interpolation smooths
            turned = draw_events((), 0.5)
            moved = self._turn(mirrored) if turned else mirrored.roll(shifts, list(range(1, other.ndim)))
            others.append(self._change_look(moved))
        return torch.stack(others)

    def _change_look(self, image: Tensor) -> Tensor:
        """Return an image (C, X, Y[, Z]) with other detail, other contrast, both or neither, within its own range."""
        spatial = list(range(1, image.ndim))
        changed = image
        if draw_events((), 0.5):
            smooth = mean_of_neighbours(image[None])[0]
            changed = torch.lerp(smooth, changed, draw_uniform((), self.detail_range).item())
        if draw_events((), 0.5):
            mean = image.mean(spatial, keepdim=True)
            changed = torch.lerp(mean, changed, draw_uniform((), self.contrast_range).item())
        return torch.maximum(
            torch.minimum(changed, image.amax(spatial, keepdim=True)), image.amin(spatial, keepdim=True)
        )

    def _turn(self, image: Tensor) -> Tensor:
        """Return an image (C, X, Y[, Z]) turned, scaled and moved; what lies beyond its edge is mirrored."""
        axes = image.ndim - 1
        sizes = torch.tensor(image.shape[1:], dtype=torch.float32)
        turn = draw_rotation(axes) / draw_factors((), self.scale_range)
        # rigid in voxels; torch's grid runs from -1 to 1 along each axis, the last one first
        matrix = (turn * sizes / sizes[:, None]).flip(0, 1)
        matrix = torch.cat([matrix, draw_uniform((axes, 1), (-1.0, 1.0))], 1)[None].to(image.device)
        grid = functional.affine_grid(matrix, [1, *image.shape], align_corners=False)
        return functional.grid_sample(image[None], grid, padding_mode="reflection", align_corners=False)[0]


def mean_of_neighbours(image: Tensor) -> Tensor:
    """Return the mean of each voxel of (B, C, X, Y[, Z]) and of those beside it."""
    pool = functional.avg_pool2d if image.ndim == 4 else functional.avg_pool3d
    return pool(image, 3, stride=1, padding=1, count_include_pad=False)


def draw_rotation(axes: int) -> Tensor:
    """Return a rotation matrix (axes, axes) by any angle about each axis."""
    turn = torch.eye(axes)
    for one, two in [(0, 1)] if axes == 2 else [(0, 1), (0, 2), (1, 2)]:
        angle = draw_uniform((), (-math.pi, math.pi)).item()
        plane = torch.eye(axes)
        plane[one, one] = plane[two, two] = math.cos(angle)
        plane[one, two], plane[two, one] = -math.sin(angle), math.sin(angle)
        turn = turn @ plane
    return turn


@contextlib.contextmanager
def _own_draws(seed: int | None) -> Iterator[None]:
    """Draw within it from a seed, and leave the generator as it was; without a seed nothing changes."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
