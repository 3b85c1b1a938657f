"""Losses of a registration: how unlike both volumes are, how bent the displacement is, how labels meet."""

from collections.abc import Callable, Sequence

import torch
from monai.losses import GlobalMutualInformationLoss
from torch import Tensor, nn

from tomokit.augmentation.separable import along_axes
from tomokit.errors import TomokitError
from tomokit.losses.targets import one_hot, split_target
from tomokit.networks.registration import warp

TINY = 1e-5  # of a variance: intensities lie in 0–1
MOSTLY = 0.5  # of a moved voxel is image


class RegistrationLoss(nn.Module):
    """Gives how unlike the moved scan is to the fixed one, and how bent the displacement; of labels, how far they miss.

    Args:
        similarity: takes (moved, fixed, mask), such as `LocalCorrelation` or `MutualInformation`.
        smoothness: weight of the bending energy, in voxels of the network's grid.
        structures: the values of the structures in the label maps; empty where a target has no label maps.
        label_weight: weight of 1 less the structures' soft Dice; 0 registers by the images alone.

    Raises:
        TomokitError: when labels weigh something and there are none.
    Source: Balakrishnan et al., VoxelMorph, IEEE Transactions on Medical Imaging 38 (2019).
    """

    def __init__(
        self,
        similarity: Callable[[Tensor, Tensor, Tensor], Tensor],
        smoothness: float = 1.0,
        structures: Sequence[int] = (),
        label_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if label_weight and not structures:
            raise TomokitError(
                f"`label_weight` is {label_weight}, but `structures` names no label; name some, or set it to 0"
            )
        self.similarity = similarity
        self.smoothness, self.label_weight = smoothness, label_weight
        self.structures = tuple(structures)

    def forward(self, displacement: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            displacement: (B, d, X, Y[, Z]) in voxels.
            target: of the pair, as `tomokit.registration.join_target` makes it.
        """
        fixed, moving = split_target(target, bool(self.structures))
        assisted = [one_hot(moving.label, self.structures)] if self.label_weight else []
        channels = fixed.image.shape[1]
        moved = warp(torch.cat([moving.image, moving.mask, *assisted], 1), displacement, padding_mode="zeros")
        mask = fixed.mask * moved[:, channels : channels + 1].detach()  # else less image would be a way to be alike
        loss = self.similarity(moved[:, :channels], fixed.image, mask) + self.smoothness * bending_energy(displacement)
        if assisted:
            missed = 1 - overlap(moved[:, channels + 1 :], one_hot(fixed.label, self.structures))
            loss = loss + self.label_weight * missed
        return loss


class LocalCorrelation(nn.Module):
    """Gives 1 less the mean squared local correlation of two images, where there is image: 0 is the best.

    MONAI's `LocalNormalizedCrossCorrelationLoss` sees the empty border as image, and took five times as long.

    Args:
        window: edge of the cube in which both are compared, in voxels, odd.

    Raises:
        TomokitError: when the window is even or below 3.
    Source: Avants et al., Symmetric diffeomorphic image registration with cross-correlation, Medical Image Analysis 12
        (2008).
    """

    def __init__(self, window: int = 7) -> None:
        super().__init__()
        if window < 3 or window % 2 == 0:
            raise TomokitError(f"`window` must be an odd number of voxels, 3 or more, got {window}")
        self.window = window

    def forward(self, moved: Tensor, fixed: Tensor, mask: Tensor) -> Tensor:
        """Return the loss, a scalar, for images (B, C, X, Y[, Z]) and a mask (B, 1, X, Y[, Z]), 1 where both are."""
        matrices = [_box_matrix(size, self.window, moved) for size in moved.shape[2:]]
        parts = [torch.ones_like(moved), moved, fixed, moved * moved, fixed * fixed, moved * fixed]
        sums = along_axes(torch.cat(parts, 1) * mask, matrices).chunk(len(parts), 1)
        one, two, ones, twos, both = (part / sums[0].clamp(min=TINY) for part in sums[1:])
        shared = both - one * two
        spreads = (ones - one.square()).clamp(min=TINY) * (twos - two.square()).clamp(min=TINY)
        return 1 - (shared.square() / spreads * mask).sum() / mask.expand_as(shared).sum().clamp(min=1.0)


class MutualInformation(nn.Module):
    """Gives the negative mutual information of two images where there is image, for scans of different modalities.

    It is MONAI's `GlobalMutualInformationLoss` on the voxels of the mask; images must lie in 0–1.

    Args:
        bins: of the intensities.
        most: voxels of a pair that are looked at, evenly spread over the mask; each takes memory in every bin.

    Source: Viola and Wells, International Journal of Computer Vision 24 (1997).
    """

    def __init__(self, bins: int = 24, most: int = 30000) -> None:
        super().__init__()
        self.loss = GlobalMutualInformationLoss(num_bins=bins)
        self.most = most

    def forward(self, moved: Tensor, fixed: Tensor, mask: Tensor) -> Tensor:
        """Return the loss, a scalar, for images (B, C, X, Y[, Z]) and a mask (B, 1, X, Y[, Z]), 1 where both are."""
        found = []
        for one, two, own in zip(moved.flatten(2), fixed.flatten(2), mask.flatten(2), strict=True):
            places = (own[0] > MOSTLY).nonzero().flatten()
            if len(places):  # else the pair does not overlap
                places = places[:: -(-len(places) // self.most)]
                found.append(self.loss(one[None, :, places], two[None, :, places]))
        return torch.stack(found).mean() if found else moved.sum() * 0


def _box_matrix(size: int, window: int, like: Tensor) -> Tensor:
    """Return (size, size): the sum over a window about each place."""
    places = torch.arange(size, device=like.device)
    return ((places - places[:, None]).abs() <= window // 2).to(like.dtype)


def bending_energy(displacement: Tensor) -> Tensor:
    """Return the mean squared second differences of a displacement (B, d, X, Y[, Z]): 0 of an affine map."""
    dims = range(2, displacement.ndim)
    slopes = {axis: displacement.diff(dim=axis) for axis in dims}
    energy = displacement.new_zeros(())
    for axis in dims:
        energy = energy + slopes[axis].diff(dim=axis).square().mean()
        for other in range(axis + 1, displacement.ndim):
            energy = energy + 2 * slopes[axis].diff(dim=other).square().mean()
    return energy / len(dims)


def overlap(moved: Tensor, fixed: Tensor) -> Tensor:
    """Return the mean soft Dice (scalar) of structures (B, K, X, Y[, Z]), 0 to 1, those that neither has left out."""
    dims = tuple(range(2, fixed.ndim))
    sums = moved.sum(dims) + fixed.sum(dims)
    scores = 2 * (moved * fixed).sum(dims) / sums.clamp(min=1.0)
    there = sums > 0
    return (scores * there).sum() / there.sum().clamp(min=1)
