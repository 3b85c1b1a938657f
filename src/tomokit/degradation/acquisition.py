"""What a patient's motion does to MRI: lines of its spatial frequencies that do not belong together."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from tomokit.augmentation.draws import check_axis, check_probability, check_range, draw_uniform
from tomokit.augmentation.intensity import change_drawn
from tomokit.degradation.units import spacing_of
from tomokit.errors import TomokitError


def weigh_lines(image: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Return the magnitude of an image (B, C, …) whose lines of frequencies along an axis are weighed.

    `weights` (B, 1, lines) lie in the order of acquisition: from the most negative frequency to the highest.
    """
    shape = [1] * image.ndim
    shape[0], shape[2 + axis] = len(image), image.shape[2 + axis]
    own = torch.fft.ifftshift(weights, dim=-1).reshape(shape)
    frequencies = torch.fft.fft(image, dim=2 + axis) * own
    return torch.fft.ifft(frequencies, dim=2 + axis).abs()


def move(image: Tensor, shifts: Tensor, axis: int) -> Tensor:
    """Return the magnitude of an image (B, C, …) that lay elsewhere while each line of frequencies was measured.

    Args:
        image: the image.
        shifts: (B, 1, lines, dimensions) in voxels, in the order of acquisition, from the most negative frequency up.
        axis: of (X, Y, Z), along which the lines lie one after the other.
    """
    dims = image.ndim - 2
    frequencies = torch.fft.fftn(image, dim=tuple(range(2, image.ndim)))
    turns = torch.zeros_like(image)
    for own in range(dims):
        size = image.shape[2 + own]
        ramp = torch.fft.fftfreq(size, device=image.device, dtype=image.dtype)
        shape = [1] * image.ndim
        shape[2 + own] = size
        line = [1] * image.ndim
        line[0], line[2 + axis] = len(image), image.shape[2 + axis]
        turns = turns + ramp.reshape(shape) * torch.fft.ifftshift(shifts[..., own], dim=-1).reshape(line)
    turned = frequencies * torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)
    return torch.fft.ifftn(turned, dim=tuple(range(2, image.ndim))).abs()


class BatchRandMotiond(MapTransform):
    """Moves the patient between the lines of frequencies, some times during the scan: ringing and doubled edges.

    A move is a shift that stays until the next one. The lines at the middle of the scan, which make most of the image,
    are taken as at rest, so that the image stays where it is. Turns are not simulated.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        shift_mm_range: range of the size of each move, in mm, in any direction.
        moves: how often the patient moves.
        axis: of (X, Y, Z), that of the phase encoding, along which the lines follow each other.

    Raises:
        TomokitError: when an argument is out of its range, or the batch does not tell its spacing.
    Source: Shaw et al., MRI k-space motion artefact augmentation, MIDL 2019.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 1.0,
        shift_mm_range: Sequence[float] = (0.5, 3.0),
        moves: int = 3,
        axis: int = 1,
    ) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)
        self.shift_mm_range = check_range("shift_mm_range", shift_mm_range, 0)
        if moves < 1:
            raise TomokitError(f"moves must be at least 1, got {moves}")
        self.moves = moves
        self.axis = check_axis(axis)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with the drawn samples moved."""
        spacing = spacing_of(data, self)

        def draw(shape: torch.Size) -> Tensor:
            batch, lines, dims = shape[0], shape[2 + self.axis], len(shape) - 2
            directions = torch.nn.functional.normalize(torch.randn(batch, self.moves, dims), dim=-1)
            sizes = draw_uniform((batch, self.moves, 1), self.shift_mm_range)
            times = torch.randint(lines, (batch, self.moves))
            after = torch.arange(lines)[None, :, None] >= times[:, None]  # (B, lines, moves)
            places = after.float() @ (directions * sizes / spacing[:, None])
            return (places - places[:, lines // 2 : lines // 2 + 1])[:, None]

        return change_drawn(self, data, draw, lambda image, shifts: move(image, shifts, self.axis))


class BatchRandGhostsd(MapTransform):
    """Weakens every n-th line of frequencies: faint copies of the image along the phase encoding, as of breathing.

    Args:
        keys: the images' keys.
        prob: the probability for each sample.
        strength_range: range of what those lines lose, as a share, 0 to 1.
        period: n: how many lines pass from one weakened line to the next, at least 2.
        axis: of (X, Y, Z), that of the phase encoding.

    Raises:
        TomokitError: when an argument is out of its range.
    Source: Axel et al., Respiratory effects in two-dimensional Fourier transform MR imaging, Radiology 160 (1986).
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 1.0,
        strength_range: Sequence[float] = (0.1, 0.5),
        period: int = 4,
        axis: int = 1,
    ) -> None:
        super().__init__(keys)
        self.prob = check_probability("prob", prob)
        self.strength_range = check_range("strength_range", strength_range, 0, 1)
        if period < 2:
            raise TomokitError(f"period must be at least 2 lines, got {period}")
        self.period = period
        self.axis = check_axis(axis)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with ghosts in the drawn samples."""

        def draw(shape: torch.Size) -> Tensor:
            lines = shape[2 + self.axis]
            # the constant part, the middle line, is not weakened: the image keeps its brightness
            weakened = ((torch.arange(lines) - lines // 2) % self.period == self.period // 2).float()
            return 1 - draw_uniform((shape[0], 1, 1), self.strength_range) * weakened

        return change_drawn(self, data, draw, lambda image, weights: weigh_lines(image, weights, self.axis))
