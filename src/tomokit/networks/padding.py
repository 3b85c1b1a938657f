"""A network that asks for sizes in multiples of a number, or for a smallest one, made to take any."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from tomokit.errors import TomokitError


class PaddedNetwork(nn.Module):
    """A network whose input is padded to multiples of a size, and its output cropped back.

    The last voxels along each axis are repeated at the far end: zeros would look like tissue where air is not 0.

    Args:
        network: takes (B, C, X, Y[, Z]) and gives one tensor on the same grid.
        multiple: of which each axis' size must be one, one number or one per axis: 2 per halving of the network.
        minimum: the smallest size of an axis; two voxels are needed where the network normalises by instance.

    Raises:
        TomokitError: when a multiple is below 1.
    """

    def __init__(self, network: nn.Module, multiple: int | Sequence[int], minimum: int = 1) -> None:
        super().__init__()
        self.network = network
        self.multiple = [multiple] * 3 if isinstance(multiple, int) else list(multiple)
        self.minimum = minimum
        if min(self.multiple) < 1:
            raise TomokitError(f"`multiple` must be 1 or more along each axis, got {multiple}")

    def forward(self, image: Tensor) -> Tensor:
        """Return the network's output (B, classes, X, Y[, Z]) for an image (B, C, X, Y[, Z]) of any size."""
        amounts: list[int] = []
        for axis in range(image.ndim - 1, 1, -1):
            size, step = image.shape[axis], self.multiple[axis - 2]
            amounts += [0, (max(size, self.minimum) + step - 1) // step * step - size]
        if sum(amounts) == 0:
            return self.network(image)
        output = self.network(functional.pad(image, amounts, mode="replicate"))
        for axis in range(2, image.ndim):
            output = output.narrow(axis, 0, image.shape[axis])
        return output


class MinimumSize(nn.Module):
    """A network whose input is padded where it is too small; for outputs that have no grid, such as a classifier's.

    The voxels of the edge are repeated on both sides, so that the image stays at the centre; zeros would look like
    tissue where air is not 0.

    Args:
        network: takes (B, C, X, Y[, Z]).
        minimum: the smallest size of an axis in voxels.

    Raises:
        TomokitError: when the minimum is below 1.
    """

    def __init__(self, network: nn.Module, minimum: int) -> None:
        super().__init__()
        if minimum < 1:
            raise TomokitError(f"`minimum` must be 1 voxel or more, got {minimum}")
        self.network = network
        self.minimum = minimum

    def forward(self, image: Tensor) -> Tensor:
        """Return the network's output for an image (B, C, X, Y[, Z]) of any size."""
        amounts: list[int] = []
        for axis in range(image.ndim - 1, 1, -1):
            lacking = max(self.minimum - image.shape[axis], 0)
            amounts += [lacking // 2, lacking - lacking // 2]
        if sum(amounts) == 0:
            return self.network(image)
        return self.network(functional.pad(image, amounts, mode="replicate"))
