"""A network that compares two scans of one patient."""

import torch
from torch import Tensor, nn

from tomokit.errors import TomokitError
from tomokit.networks.cnn import mean_features

OUTPUTS = ("order", "change", "amount", "distance")  # the columns of what the network gives
TINY = 1e-8  # under the root: its slope at 0 is finite
RECENT = 20.0  # steps over which the usual size of a difference is averaged


class SiameseNetwork(nn.Module):
    """One encoder on both scans of a pair, and a head that knows which way round they are.

    With the scans swapped, order and amount of change change their sign, and change and distance stay, bit for bit in
    evaluation.

    Args:
        encoder: takes (N, C, X, Y[, Z]) and gives features (N, features), or maps of them, whose mean is taken.
        features: channels of what the encoder gives.
        spatial_dims: 2 or 3.
        hidden: units of the head.
        dropout: share of the head's units that are dropped.

    Raises:
        TomokitError: when an image is no pair.
    Source: Bromley et al., Signature verification using a "siamese" time delay neural network, NeurIPS 1993.
    """

    def __init__(
        self, encoder: nn.Module, features: int, spatial_dims: int = 3, hidden: int = 64, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.spatial_dims = spatial_dims
        self.fc = PairHead(features, hidden, dropout)

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, 4): logits of "the first scan is the earlier one" and of "changed", amount, and distance.

        The amount is that from the first scan to the second, in the units it is trained in; the distance is that of
        the scans' features, root mean square, as a multiple of what it was on average in training.

        Args:
            image: (B, 2, C, X, Y[, Z]), or (B, 2·C, X, Y[, Z]) with all channels of the first scan first.
        """
        if not torch.jit.is_scripting():
            _check_pair(image, self.spatial_dims)
        if image.ndim == self.spatial_dims + 3:
            image = image.flatten(1, 2)
        first, second = image.chunk(2, 1)
        if self.training:  # together, so that a batch norm sees both alike
            first, second = mean_features(self.encoder(torch.cat([first, second]))).chunk(2, 0)
        else:  # each by itself, in memory of its own: where a scan lies can change its last bit
            first = mean_features(self.encoder(first.clone()))
            second = mean_features(self.encoder(second.clone()))
        return self.fc(first, second)


class PairHead(nn.Module):
    """What two scans' features tell of each other.

    Order and amount are layers without a bias on the difference, weighted by what does not depend on the order: the
    difference's size and the product. So they are odd in the difference by their form. The difference is divided by
    its root mean square over the batch (in evaluation by that of training): a few per cent of a structure move
    features by far less than patients differ in them, and a head would need most of a training to amplify that.

    Args:
        features: of each scan.
        hidden: units.
        dropout: share of the units that are dropped.
    """

    size: Tensor
    steps: Tensor

    def __init__(self, features: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.even = nn.Sequential(nn.Linear(2 * features, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.odd = nn.Linear(features, hidden, bias=False)
        self.order = nn.Linear(hidden, 1, bias=False)
        self.amount = nn.Linear(hidden, 1, bias=False)
        self.change = nn.Linear(hidden, 1)
        self.tiny, self.recent = TINY, RECENT  # a script knows no globals
        self.register_buffer("size", torch.ones(()))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return (B, 4), the columns `OUTPUTS`, for features (B, F) of each scan."""
        difference = self.scale(second.float() - first.float())
        even = self.even(torch.cat([difference.abs(), first * second], 1))
        odd = self.odd(difference) * even
        distance = (difference.square().mean(1, keepdim=True) + self.tiny).sqrt()
        columns = [self.order(odd), self.change(even), self.amount(odd)]
        return torch.cat([torch.cat(columns, 1).float(), distance], 1)

    def scale(self, difference: Tensor) -> Tensor:
        """Return a difference (B, F) divided by its usual size, which training keeps."""
        if not self.training:
            return difference / self.size
        size = (difference.square().mean() + self.tiny).sqrt()
        with torch.no_grad():
            self.steps.add_(1.0)
            self.size.lerp_(size, self.steps.clamp(max=self.recent).reciprocal())
        return difference / size


def _check_pair(image: Tensor, spatial_dims: int) -> None:
    """Raise when an image does not hold two scans of as many channels.

    Raises:
        TomokitError: that gives its shape.
    """
    stacked = image.ndim == spatial_dims + 3 and image.shape[1] == 2
    joined = image.ndim == spatial_dims + 2 and image.shape[1] % 2 == 0
    if not (stacked or joined):
        raise TomokitError(
            f"a pair of {spatial_dims}D scans must be (B, 2, C, …) or (B, 2·C, …), got shape {tuple(image.shape)}"
        )
