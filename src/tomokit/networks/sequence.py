"""A network that reads a volume of any length as a sequence of windows of slices."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tomokit.errors import TomokitError, raise_problems
from tomokit.networks.cnn import mean_features

CELLS = ("gru", "lstm")
POOLINGS = ("rnn", "attention", "max", "logsumexp")
NEVER = -1e4  # a logit whose probability is 0 in any precision, and which float16 still holds


class WindowSequence(nn.Module):
    """A 2D network on each window of slices, an RNN over the windows, and logits of each window and of the volume.

    A window stands for `stride` slices and is centred on their middle; it shows `window` neighbouring slices as
    channels (2.5D). Volumes of a batch may differ in length: beyond its own length nothing of a volume is read, so
    padding has no influence, not on a batch norm in the encoder either.

    The volume's logits come, by `pooling`, from:
    - `rnn`: the RNN's last state, of both directions where it has two;
    - `attention`: the RNN's states, or without an RNN the windows' features, weighted by a gated attention;
    - `max` and `logsumexp`: the windows' logits, class 0 being "nothing found": the log odds of each other class
      against it are those of the most suspicious window, or their odds are summed over the windows. A volume's label
      then teaches which window shows it. The classes exclude each other.

    No RNN is built where nothing would read it (`max` or `logsumexp` without `context`).

    Args:
        encoder: takes (N, window·C, H, W) and gives features (N, features), or maps of them, whose mean is taken.
        features: channels of what the encoder gives.
        out_channels: classes.
        window: neighbouring slices of a window, odd.
        stride: slices from a window to the next.
        axis: of (X, Y, Z), along which the slices lie.
        cell: of the RNN, `gru` or `lstm`; None: there is no RNN.
        hidden: size of the RNN's state, in each direction.
        bidirectional: whether a second RNN reads from the end.
        pooling: above.
        context: whether a window's logits see the other windows through the RNN; without window labels they had
            better not, since what one window shows would count for all.
        dropout: share of the values that are dropped before each head.

    Raises:
        TomokitError: when an argument is out of its range; later, when the lengths or the encoder do not fit.
    Source: Cho et al., EMNLP 2014 (GRU); Hochreiter & Schmidhuber, Neural Computation 9, 1997 (LSTM); Pinheiro &
        Collobert, CVPR 2015 (log-sum-exp as a pooling).
    """

    absent: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        features: int,
        out_channels: int,
        window: int = 3,
        stride: int = 1,
        axis: int = -1,
        cell: str | None = "gru",
        hidden: int = 64,
        bidirectional: bool = True,
        pooling: str = "rnn",
        context: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_arguments(out_channels, window, stride, axis, cell, pooling, context)
        self.encoder = encoder
        self.features = features
        self.window = window
        self.stride = stride
        self.axis = axis % 3 + 2
        self.context = context
        read = context or pooling in ("rnn", "attention")
        self.rnn = Recurrence(cell, features, hidden, bidirectional) if read and cell is not None else None
        width = features if self.rnn is None else hidden * (1 + bidirectional)
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.Linear(width if context else features, out_channels)
        self.fc = _volume_head(pooling, width, bidirectional, out_channels, dropout)
        absent = torch.full((1, out_channels, 1), NEVER)
        absent[:, 0] = 0
        self.register_buffer("absent", absent, persistent=False)

    def forward(self, image: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits (B, classes, 1 + T): first the volume's, then each window's; T is slices over `stride`.

        A window beyond its volume's end has the logits of class 0, for sure.

        Args:
            image: (B, C, X, Y, Z).
            lengths: (B,), slices of each volume, the first ones along the axis; None: all are the volume's.
        """
        features, states, known = self.read(image, lengths)
        windows = self.logits(self.dropout(states if self.context else features)).float()
        windows = torch.where(known.unsqueeze(1), windows.movedim(2, 1), self.absent)
        volume = self.fc(windows, states, known).float()
        return torch.cat([volume.unsqueeze(2), windows], 2)

    def read(self, image: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the windows' features (B, T, features), their states (B, T, width), and which there are (B, T).

        Without an RNN the states are the features. What is not there is 0.
        """
        slices = image.movedim(self.axis, 1)
        if lengths is None:
            lengths = torch.full([slices.shape[0]], slices.shape[1], dtype=torch.int64)
        lengths = lengths.to(image.device, torch.int64)
        if not torch.jit.is_scripting():
            _check_lengths(lengths, slices.shape[1])
        counts = torch.div(lengths + (self.stride - 1), self.stride, rounding_mode="floor")
        numbers = torch.arange((slices.shape[1] + self.stride - 1) // self.stride, device=image.device)
        known = numbers < counts.unsqueeze(1)
        features = self.encode(slices, lengths, numbers, known)
        states = features
        if self.rnn is not None:
            states = self.rnn(features, counts)
        return features, states, known

    def encode(self, slices: Tensor, lengths: Tensor, numbers: Tensor, known: Tensor) -> Tensor:
        """Return features (B, T, features) of the windows with these numbers (T,) that are known (B, T), 0 elsewhere.

        Args:
            slices: (B, S, C, H, W). At a volume's ends its outer slice is repeated.
            lengths: (B,), slices of each volume.
            numbers: (T,), from 0.
            known: (B, T), which windows are within their volume.
        """
        offsets = torch.arange(self.window, device=slices.device) - self.window // 2
        places = (numbers * self.stride + self.stride // 2).unsqueeze(1) + offsets
        places = torch.minimum(places.clamp(min=0).unsqueeze(0), (lengths - 1).view(-1, 1, 1))
        volumes = known.nonzero()[:, :1]
        encoded = mean_features(self.encoder(slices[volumes, places[known]].flatten(1, 2)))
        if not torch.jit.is_scripting() and encoded.shape[1] != self.features:
            raise TomokitError(f"the encoder gives {encoded.shape[1]} features, `features` is {self.features}")
        features = encoded.new_zeros([known.shape[0], known.shape[1], encoded.shape[1]])
        features[known] = encoded
        return features


class Recurrence(nn.Module):
    """The states of an RNN over sequences of different length, 0 beyond their ends.

    Args:
        cell: `gru` or `lstm`.
        features: of each step.
        hidden: size of the state, in each direction.
        bidirectional: whether a second RNN reads from the end.
    """

    def __init__(self, cell: str, features: int, hidden: int, bidirectional: bool) -> None:
        super().__init__()
        options = {"batch_first": True, "bidirectional": bidirectional}
        gru = cell == "gru"
        self.cell: nn.Module = nn.GRU(features, hidden, **options) if gru else nn.LSTM(features, hidden, **options)

    def forward(self, features: Tensor, counts: Tensor) -> Tensor:
        """Return (B, T, hidden or 2·hidden) for features (B, T, F), of which counts (B,) are each sequence's own."""
        packed = pack_padded_sequence(features.float(), counts.cpu(), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.cell(packed)[0], batch_first=True, total_length=features.shape[1])[0]


class LastStateHead(nn.Module):
    """The volume's logits from the state in which each direction of the RNN has read all windows.

    Args:
        width: of the states.
        bidirectional: whether their second half belongs to the RNN that reads from the end.
        out_channels: classes.
        dropout: share of the values that are dropped.
    """

    def __init__(self, width: int, bidirectional: bool, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.forwards = width // 2 if bidirectional else width
        self.layers = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, out_channels))

    def forward(self, windows: Tensor, states: Tensor, known: Tensor) -> Tensor:
        """Return logits (B, classes) for states (B, T, width) of the known (B, T) windows."""
        ends = (known.sum(1) - 1).view(-1, 1, 1).expand(-1, 1, states.shape[2])
        last = states.gather(1, ends).squeeze(1)
        return self.layers(torch.cat([last[:, : self.forwards], states[:, 0, self.forwards :]], 1))


class AttentionHead(nn.Module):
    """The volume's logits from the states, weighted by a gated attention.

    Args:
        width: of the states.
        out_channels: classes.
        dropout: share of the values that are dropped.

    Source: Ilse et al., Attention-based deep multiple instance learning, ICML 2018.
    """

    def __init__(self, width: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        inner = max(width // 2, 1)
        self.value = nn.Linear(width, inner)
        self.gate = nn.Linear(width, inner)
        self.score = nn.Linear(inner, 1, bias=False)  # the weights would not see a bias
        self.layers = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, out_channels))

    def weights(self, states: Tensor, known: Tensor) -> Tensor:
        """Return weights (B, T) of sum 1 for each volume, 0 where a window is not known."""
        scores = self.score(torch.tanh(self.value(states)) * torch.sigmoid(self.gate(states))).squeeze(2)
        return scores.float().masked_fill(~known, float("-inf")).softmax(1)

    def forward(self, windows: Tensor, states: Tensor, known: Tensor) -> Tensor:
        """Return logits (B, classes) for states (B, T, width) of the known (B, T) windows."""
        weights = self.weights(states, known).unsqueeze(2)
        return self.layers((weights * states).sum(1))


class PooledWindows(nn.Module):
    """The volume's logits from its windows' logits.

    Args:
        pooling: `max` or `logsumexp`.
    """

    def __init__(self, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, windows: Tensor, states: Tensor, known: Tensor) -> Tensor:
        """Return logits (B, classes) for the windows' logits (B, classes, T)."""
        return pool_windows(windows, self.pooling)


def pool_windows(windows: Tensor, pooling: str = "logsumexp") -> Tensor:
    """Return a volume's logits (B, classes) from its windows' (B, classes, T): 0 for class 0, "nothing found".

    The log odds of another class against class 0 are the greatest of a window (`max`), or the logarithm of the sum
    of the windows' odds (`logsumexp`).
    """
    odds = windows[:, 1:] - windows[:, :1]
    found = odds.amax(2) if pooling == "max" else odds.logsumexp(2)
    return torch.cat([torch.zeros_like(windows[:, :1, 0]), found], 1)


def _volume_head(pooling: str, width: int, bidirectional: bool, out_channels: int, dropout: float) -> nn.Module:
    """Return what makes a volume's logits, by the pooling's name."""
    if pooling == "rnn":
        return LastStateHead(width, bidirectional, out_channels, dropout)
    return AttentionHead(width, out_channels, dropout) if pooling == "attention" else PooledWindows(pooling)


def _check_arguments(
    out_channels: int, window: int, stride: int, axis: int, cell: str | None, pooling: str, context: bool
) -> None:
    """Raise when an argument of the network is out of its range.

    Raises:
        TomokitError: that names each of them.
    """
    problems = [] if out_channels > 1 else [f"`out_channels` must be 2 or more, one per class, got {out_channels}"]
    problems += [] if window > 0 and window % 2 else [f"`window` must be odd, centred on its slice, got {window}"]
    problems += [] if stride > 0 else [f"`stride` must be 1 slice or more, got {stride}"]
    problems += [] if -3 <= axis < 3 else [f"`axis` must be -3 to 2, got {axis}"]
    if cell is None and (context or pooling == "rnn"):
        problems.append("`cell` is None: without an RNN there are no states for `pooling: rnn` or `context`")
    words: Sequence[tuple[str, str | None, tuple[str | None, ...]]]
    words = (("cell", cell, (*CELLS, None)), ("pooling", pooling, POOLINGS))
    for name, word, of in words:
        problems += [] if word in of else [f"`{name}` must be one of {', '.join(map(str, of))}, got {word!r}"]
    raise_problems("the network of windows can't be made", problems)


def _check_lengths(lengths: Tensor, slices: int) -> None:
    """Raise when a volume has no slice, or more than the batch holds.

    Raises:
        TomokitError: that gives the lengths.
    """
    if ((lengths < 1) | (lengths > slices)).any():
        raise TomokitError(f"each of `lengths` must be 1 to {slices}, the slices in the batch, got {lengths.tolist()}")
