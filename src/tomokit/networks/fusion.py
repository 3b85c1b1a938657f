"""A network that reads an image and a record, parts of which may be missing."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tomokit.errors import raise_problems
from tomokit.networks.cnn import mean_features

MODES = ("concatenate", "film", "add")


class FusionNetwork(nn.Module):
    """Logits of an image and a record: a clinical one, or features measured by hand.

    A missing field is NaN: it counts as 0, the mean of a standardised field, and the network is told which fields are
    missing. Where the image has several modalities, `presence` says which are there; an absent one's channels count
    as 0, and the network is told. With `hide`, fields and modalities that are there are hidden at random in training,
    so that the network learns to do without them.

    The mode says how image and record meet:
    - `concatenate`: features of both, side by side, go through a perceptron;
    - `film`: the record scales and shifts each of the image's features. At the start it leaves them as they are;
    - `add`: a linear model of the record is added to the image's logits, with weights of 0 at the start.

    Args:
        image_network: gives features (B, image_features), or maps of them (B, image_features, X, Y[, Z]), whose mean is
            taken; `film` modulates maps before it.
        image_features: channels of what the image network gives.
        record_features: how many numbers a record has, each a field; or how many each field has, in their order (a
            field of several classes is one number per class): they are missing together. Empty: there is no record,
            but several modalities.
        out_channels: classes, labels or values.
        mode: above.
        modalities: channels of each modality, in their order; empty: the image is always complete.
        hidden: units of the perceptrons.
        hide: share of the fields and modalities that are hidden in training.
        dropout: share of the values that are dropped before the last layer.

    Raises:
        TomokitError: when an argument is out of its range; later, when image or record do not fit.
    Source: Perez et al., FiLM, AAAI 2018; Pölsterl et al., DAFT, MICCAI 2021, and Wolf et al., NeuroImage 260 (2022),
        which compare such unions of volumes and records.
    """

    fields: Tensor
    modality: Tensor

    def __init__(
        self,
        image_network: nn.Module,
        image_features: int,
        record_features: int | Sequence[int],
        out_channels: int,
        mode: str = "concatenate",
        modalities: Sequence[int] = (),
        hidden: int = 32,
        hide: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = [1] * record_features if isinstance(record_features, int) else list(record_features)
        _check_arguments(sizes, list(modalities), mode, hide)
        self.image_network = image_network
        self.image_features = image_features
        self.modalities = len(modalities)
        self.hide = hide
        # which field each number of the record belongs to, as rows of one 1; which modality each channel belongs to
        self.register_buffer("fields", torch.eye(len(sizes))[_owners(sizes)], persistent=False)
        self.register_buffer("modality", _owners(modalities), persistent=False)
        told = sum(sizes) + len(sizes) + len(modalities)
        self.fc = _join(mode, image_features, told, out_channels, hidden, dropout)

    def forward(self, image: Tensor, record: Tensor | None = None, presence: Tensor | None = None) -> Tensor:
        """Return logits (B, out_channels).

        Args:
            image: (B, C, X, Y[, Z]); what an absent modality's channels hold does not count.
            record: (B, numbers), standardised, NaN where a field is missing; None: all of them are.
            presence: (B, modalities), above 0 where one is there; None: all are.
        """
        if record is None:
            record = torch.full([image.shape[0], self.fields.shape[0]], float("nan"), device=image.device)
        if not torch.jit.is_scripting():
            self.check(image, record, presence)
        told = self.read_record(record)
        if self.modalities > 0:
            if presence is None:
                presence = torch.ones([image.shape[0], self.modalities], device=image.device)
            present = self.choose_present(presence > 0)
            absent = ~present[:, self.modality]
            image = image.masked_fill(absent.reshape(list(absent.shape) + [1] * (image.ndim - 2)), 0.0)
            told = torch.cat([told, (~present).to(told.dtype)], 1)
        return self.fc(self.image_network(image), told)

    def read_record(self, record: Tensor) -> Tensor:
        """Return the record with 0 for what is missing, and a 1 for each missing field: (B, numbers + fields)."""
        missing = (record.isnan().float() @ self.fields) > 0
        if self.training and self.hide > 0:
            missing = missing | (torch.rand(missing.shape, device=record.device) < self.hide)
        told = missing.float()
        return torch.cat([record.float().masked_fill((told @ self.fields.t()) > 0, 0.0), told], 1)

    def choose_present(self, present: Tensor) -> Tensor:
        """Return which modalities (B, modalities) the network gets to see: in training some are hidden, never all."""
        if not self.training or self.hide == 0:
            return present
        kept = present & (torch.rand(present.shape, device=present.device) >= self.hide)
        return torch.where(kept.any(1, keepdim=True), kept, present)

    def check(self, image: Tensor, record: Tensor, presence: Tensor | None) -> None:
        """Raise when the parts of a batch do not fit the network.

        Raises:
            TomokitError: that names each of them.
        """
        numbers, channels = self.fields.shape[0], self.modality.shape[0]
        problems = []
        if record.ndim != 2 or record.shape[1] != numbers:
            problems.append(f"a record must hold {numbers} numbers, (B, {numbers}), got shape {tuple(record.shape)}")
        if self.modalities and image.shape[1] != channels:
            problems.append(f"`modalities` count {channels} channels, the image has {image.shape[1]}")
        if presence is not None and tuple(presence.shape) != (image.shape[0], self.modalities):
            wanted = (image.shape[0], self.modalities)
            problems.append(f"`presence` must have the shape {wanted}, got {tuple(presence.shape)}")
        raise_problems("image and record do not fit the network", problems)


class NoFeatures(nn.Module):
    """Features of an image that nobody looks at: zeros, so that a fusion sees the record alone.

    Args:
        features: how many.
    """

    def __init__(self, features: int = 1) -> None:
        super().__init__()
        self.features = features

    def forward(self, image: Tensor) -> Tensor:
        """Return zeros (B, features) for an image (B, C, X, Y[, Z])."""
        return image.new_zeros([image.shape[0], self.features])


class Concatenation(nn.Module):
    """Logits of a perceptron on the image's mean features and features of the record, side by side.

    Args:
        image_features: channels of the image's features.
        told: numbers of the record.
        out_channels: of the output.
        hidden: units of the record's layer, and of the joint one.
        dropout: share of the values that are dropped before the last layer.
    """

    def __init__(self, image_features: int, told: int, out_channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.record = nn.Sequential(nn.Linear(told, hidden), nn.ReLU())
        self.joint = nn.Sequential(nn.Linear(image_features + hidden, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.last = nn.Linear(hidden, out_channels)

    def forward(self, features: Tensor, told: Tensor) -> Tensor:
        """Return (B, out_channels) for features (B, F[, X, Y[, Z]]) and a record (B, told)."""
        image = mean_features(features)
        return self.last(self.joint(torch.cat([image, self.record(told).to(image.dtype)], 1)))


class Modulation(nn.Module):
    """Logits of the image's features, each scaled and shifted by what a perceptron makes of the record.

    Args:
        image_features: channels of the image's features.
        told: numbers of the record.
        out_channels: of the output.
        hidden: units of the perceptron.
        dropout: share of the values that are dropped before the last layer.

    Source: Perez et al., FiLM, AAAI 2018.
    """

    def __init__(self, image_features: int, told: int, out_channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        changes = nn.Linear(hidden, 2 * image_features)
        nn.init.zeros_(changes.weight)
        nn.init.zeros_(changes.bias)
        self.changes = nn.Sequential(nn.Linear(told, hidden), nn.ReLU(), changes)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(image_features, out_channels)

    def forward(self, features: Tensor, told: Tensor) -> Tensor:
        """Return (B, out_channels) for features (B, F[, X, Y[, Z]]) and a record (B, told)."""
        scale, shift = self.changes(told).chunk(2, 1)
        size = list(scale.shape) + [1] * (features.ndim - 2)
        features = features * (1 + scale.reshape(size)) + shift.reshape(size)
        if features.ndim > 2:  # of maps it changes which voxels count, of their mean it can't any more
            features = torch.relu(features)
        return self.last(self.dropout(mean_features(features)))


class Addition(nn.Module):
    """Logits of the image's mean features, plus those of a linear model of the record.

    Args:
        image_features: channels of the image's features.
        told: numbers of the record.
        out_channels: of the output.
        dropout: share of the image's features that are dropped.
    """

    def __init__(self, image_features: int, told: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.image = nn.Linear(image_features, out_channels)
        self.record = nn.Linear(told, out_channels, bias=False)
        nn.init.zeros_(self.record.weight)

    def forward(self, features: Tensor, told: Tensor) -> Tensor:
        """Return (B, out_channels) for features (B, F[, X, Y[, Z]]) and a record (B, told)."""
        return self.image(self.dropout(mean_features(features))) + self.record(told)


def _join(mode: str, image_features: int, told: int, out_channels: int, hidden: int, dropout: float) -> nn.Module:
    """Return the module that joins image and record, by the mode's name."""
    if mode == "add":
        return Addition(image_features, told, out_channels, dropout)
    kind = Modulation if mode == "film" else Concatenation
    return kind(image_features, told, out_channels, hidden, dropout)


def _owners(sizes: Sequence[int]) -> Tensor:
    """Return the number of the part that each element belongs to, for parts of these sizes."""
    return torch.tensor([number for number, size in enumerate(sizes) for _ in range(size)], dtype=torch.int64)


def _check_arguments(sizes: list[int], modalities: list[int], mode: str, hide: float) -> None:
    """Raise when an argument of the network is out of its range.

    Raises:
        TomokitError: that names each of them.
    """
    problems = [] if mode in MODES else [f"`mode` must be one of {', '.join(MODES)}, got {mode!r}"]
    if min(sizes, default=1) < 1 or not (sizes or modalities):
        problems.append(f"`record_features` must count one number or more for each field, got {sizes}")
    if min(modalities, default=1) < 1:
        problems.append(f"`modalities` must count one channel or more for each modality, got {modalities}")
    problems += [] if 0 <= hide < 1 else [f"`hide` must be a share from 0 up to, but not including, 1, got {hide}"]
    raise_problems("image and record can't be joined", problems)
