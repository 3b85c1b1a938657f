"""A network that brings a moving volume onto a fixed one: an affine map, then a dense displacement that does not fold.

A displacement is (B, 3, X, Y, Z), or (B, 2, X, Y), in voxels of its own grid, along X, Y, Z: the fixed grid's voxel x
looks at the place x + displacement(x) of the moving grid. So the moved volume is `warp(moving, displacement)`.
"""

import itertools
from collections.abc import Sequence

import torch
from monai.networks.layers import Conv
from torch import Tensor, nn
from torch.nn import functional

from tomokit.errors import TomokitError
from tomokit.networks.blocks import InstanceNorm

SLOPE = 0.1  # of leaky ReLU below 0
FIRST = 1e-3  # deviation of the first weights of what becomes a displacement: a run starts at the identity
CAREFUL = 0.1  # a velocity is this times what a convolution gives: else the optimizer's first steps take it far away


def voxel_places(like: Tensor) -> Tensor:
    """Return each voxel's place (d, X, Y[, Z]) in voxels from the centre of the grid of an image (B, C, X, Y[, Z])."""
    axes = [torch.arange(n, device=like.device, dtype=like.dtype) - (n - 1) / 2 for n in like.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def warp(image: Tensor, displacement: Tensor, mode: str = "bilinear", padding_mode: str = "border") -> Tensor:
    """Return the image (B, C, X, Y[, Z]) at the places that a displacement (B, d, X, Y[, Z]) in voxels looks at.

    The values are those of MONAI's `Warp`, which took 1.4 times as long.

    Args:
        image: what is looked at.
        displacement: on a grid of the same size.
        mode: "bilinear" (trilinear in 3D) or "nearest".
        padding_mode: what is seen outside: "border", the nearest voxel, or "zeros".
    """
    sizes = displacement.shape[2:]
    half = torch.tensor([n / 2 for n in sizes], device=image.device, dtype=image.dtype)
    places = voxel_places(displacement) + displacement
    grid = (places.movedim(1, -1) / half).flip(-1)
    return functional.grid_sample(image, grid, mode, padding_mode, align_corners=False)


def compose(first: Tensor, then: Tensor) -> Tensor:
    """Return the displacement (B, d, X, Y[, Z]) that looks where `first` looks, and from there where `then` does."""
    return first + warp(then, first)


def integrate(velocity: Tensor, steps: int) -> Tensor:
    """Return the displacement that follows a constant velocity (B, d, X, Y[, Z]) for a time of 1, both in voxels.

    It is one to one as long as the velocity is smooth enough for 2^`steps` steps; its inverse follows `-velocity`. The
    values are those of MONAI's `DVF2DDF`, which took 1.4 times as long.

    Source: Arsigny et al., A log-Euclidean framework for statistics on diffeomorphisms, MICCAI 2006.
    """
    displacement = velocity / 2**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement


class RegistrationPyramid(nn.Module):
    """Gives the displacement of a pair, coarse to fine: an affine map, then a dense part at each level.

    One encoder sees both scans. An affine map is read from the coarsest features, and at each level, from the coarsest
    to half resolution, a velocity is told from the fixed features, the moving ones as they are aligned so far, and (but
    at the finest level, where it would cost most) how alike both are at neighbouring places; followed for a time of 1
    it joins what was found before. So a level has to find no more than a few of its own voxels, however far the
    structures lie apart.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of both scans together, the fixed one's first.
        filters: features of each level, from half resolution down.
        hidden: features of what tells a velocity, at each level.
        steps: a velocity is followed in 2^steps steps; 0 takes it as the displacement, which then may fold.
        affine: whether there is an affine map.

    Raises:
        TomokitError: when the channels are odd, or an image's size is no multiple of the coarsest voxels.
    Source: Balakrishnan et al., VoxelMorph, IEEE Transactions on Medical Imaging 38 (2019); Sun et al., PWC-Net, CVPR
        2018 (likeness of neighbours, coarse to fine).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        filters: Sequence[int] = (16, 32, 48),
        hidden: Sequence[int] = (24, 48, 48),
        steps: int = 5,
        affine: bool = True,
    ) -> None:
        super().__init__()
        if in_channels % 2:
            raise TomokitError(f"`in_channels` must be those of two scans of as many channels, got {in_channels}")
        if len(hidden) != len(filters):
            raise TomokitError(f"`hidden` must have {len(filters)} entries, as `filters` has, got {list(hidden)}")
        self.levels, self.steps = len(filters), steps
        self.encoder = nn.ModuleList()
        for channels, features in itertools.pairwise([in_channels // 2, *filters]):
            self.encoder.append(_encoder_level(spatial_dims, channels, features))
        self.affine = AffineHead(spatial_dims, 2 * filters[-1], hidden[-1]) if affine else None
        below = [*hidden[1:], 0]
        self.decoder = nn.ModuleList(
            VelocityLevel(spatial_dims, *sizes, likeness=level > 0)
            for level, sizes in enumerate(zip(filters, below, hidden, strict=True))
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the displacement (B, d, X, Y[, Z]) for a pair (B, 2·C, X, Y[, Z]), the fixed scan's channels first."""
        self._check_size(image)
        features = torch.cat(image.chunk(2, 1))
        pairs = []
        for level in self.encoder:
            features = level(features)
            pairs.append(features.chunk(2))
        map_of = None if self.affine is None else self.affine(torch.cat(pairs[-1], 1))
        dense: Tensor | None = None
        state: Tensor | None = None
        for level, (fixed, moving) in reversed(list(enumerate(pairs))):
            scale = 2.0 ** (level + 1)
            shape = (len(fixed), fixed.ndim - 2, *fixed.shape[2:])
            dense = fixed.new_zeros(shape) if dense is None else 2 * enlarge(dense)
            aligned = warp(moving, join_affine(dense, map_of, scale))
            velocity, state = self.decoder[level](fixed, aligned, state)
            dense = compose(integrate(velocity, self.steps), dense)
        assert dense is not None
        return join_affine(2 * enlarge(dense), map_of, 1.0)

    def _check_size(self, image: Tensor) -> None:
        """Raise when an image can't be halved as often as there are levels."""
        whole = 2**self.levels
        if any(size % whole or size < 2 * whole for size in image.shape[2:]):
            raise TomokitError(
                f"a pair's size must be a multiple of {whole}, and two times that or more, along each axis, got "
                f"{tuple(image.shape[2:])}; set `image_size`"
            )


def enlarge(field: Tensor) -> Tensor:
    """Return a field (B, C, X, Y[, Z]) on a grid of twice as many voxels, by linear interpolation."""
    mode = "trilinear" if field.ndim == 5 else "bilinear"
    return functional.interpolate(field, scale_factor=2.0, mode=mode, align_corners=False)


def join_affine(dense: Tensor, affine: Tensor | None, scale: float) -> Tensor:
    """Return the displacement that follows a dense one (B, d, X, Y[, Z]), then an affine map, in voxels of its grid.

    Args:
        dense: in voxels of its grid.
        affine: (B, d, d + 1): the displacement is its matrix times the place from the grid's centre, and its last
            column, in voxels of full resolution; None for no map.
        scale: voxels of full resolution along a voxel of the grid.
    """
    if affine is None:
        return dense
    places = voxel_places(dense) + dense
    turned = torch.einsum("bij,bj...->bi...", affine[..., :-1], places)
    shift = affine[..., -1].reshape(*affine.shape[:2], *[1] * (dense.ndim - 2))
    return dense + turned + shift / scale


class AffineHead(nn.Module):
    """Gives an affine map as the linear part of a coarse displacement that convolutions tell.

    The regression on a regular grid is a mean and the first moments, so it takes images of any size.

    Args:
        spatial_dims: 2 or 3.
        channels: of the features of both scans.
        hidden: features of the convolutions.
    """

    def __init__(self, spatial_dims: int, channels: int, hidden: int) -> None:
        super().__init__()
        make = Conv["conv", spatial_dims]
        self.body = nn.Sequential(
            *(make(channels, hidden, 3, padding=1), nn.LeakyReLU(SLOPE)),
            *(make(hidden, hidden, 3, padding=1), nn.LeakyReLU(SLOPE)),
        )
        self.last = make(hidden, spatial_dims, 1)
        nn.init.normal_(self.last.weight, std=FIRST)
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, d, d + 1): matrix and shift, as `join_affine` takes them, for features (B, C, X, Y[, Z])."""
        field = self.last(self.body(features)).flatten(2)
        places = voxel_places(features).flatten(1)
        spread = places.square().mean(1)
        moments = torch.einsum("biv,jv->bij", field, places) / places.shape[1] / spread
        return torch.cat([moments, field.mean(2, keepdim=True)], 2)


class VelocityLevel(nn.Module):
    """Gives the velocity that a level finds, and the features that the next finer one goes on with.

    Args:
        spatial_dims: 2 or 3.
        features: of each scan.
        below: features that the coarser level hands on; 0 for none.
        hidden: features of the convolutions.
        likeness: whether it sees how alike both scans are at neighbouring places.
    """

    def __init__(self, spatial_dims: int, features: int, below: int, hidden: int, likeness: bool) -> None:
        super().__init__()
        make = Conv["conv", spatial_dims]
        self.likeness = likeness
        self.handed = make(below, features, 1) if below else None
        channels = (3 if below else 2) * features + (3**spatial_dims if likeness else 0)
        self.body = nn.Sequential(
            *(make(channels, hidden, 3, padding=1), nn.LeakyReLU(SLOPE)),
            *(make(hidden, hidden, 3, padding=1), nn.LeakyReLU(SLOPE)),
        )
        self.last = make(hidden, spatial_dims, 3, padding=1)
        nn.init.normal_(self.last.weight, std=FIRST)
        nn.init.zeros_(self.last.bias)

    def forward(self, fixed: Tensor, aligned: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the velocity (B, d, X, Y[, Z]) and features, for those of both scans and the coarser level's."""
        parts = [fixed, aligned]
        if self.likeness:
            parts.append(neighbour_likeness(fixed, aligned))
        if self.handed is not None and state is not None:
            parts.append(enlarge(self.handed(state)))
        state = self.body(torch.cat(parts, 1))
        return CAREFUL * self.last(state), state


def neighbour_likeness(fixed: Tensor, moving: Tensor) -> Tensor:
    """Return the mean product (B, 3^d, X, Y[, Z]) of fixed features with the moving ones of each neighbour."""
    dims = fixed.ndim - 2
    padded = functional.pad(moving, [1] * (2 * dims))
    found = []
    for steps in itertools.product(range(3), repeat=dims):
        own = padded
        for axis, step in enumerate(steps, start=2):
            own = own.narrow(axis, step, fixed.shape[axis])
        found.append((fixed * own).mean(1))
    return torch.stack(found, 1)


def _encoder_level(spatial_dims: int, channels: int, features: int) -> nn.Sequential:
    """Return what halves the grid, then sees each voxel with its neighbours."""
    make = Conv["conv", spatial_dims]
    return nn.Sequential(
        *(make(channels, features, 2, stride=2), InstanceNorm(features), nn.LeakyReLU(SLOPE)),
        *(make(features, features, 3, padding=1), InstanceNorm(features), nn.LeakyReLU(SLOPE)),
    )
