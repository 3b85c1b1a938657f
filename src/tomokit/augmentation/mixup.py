"""Mixtures of two cases of a batch and of their labels."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor
from torch.distributions import Beta
from torch.nn import functional

from tomokit.augmentation.draws import change_samples, check_probability, draw_events
from tomokit.errors import TomokitError


class BatchRandMixupd(MapTransform):
    """Mixes a sample with another one of its batch, and their labels alike.

    It stands last, since a mixture of two volumes has no place of its own. Classes (B,) become (B, K), one-hot where
    nothing is mixed, as torch's cross-entropy takes them; labels with a fraction are mixed as they are.

    Args:
        keys: the images' keys.
        label_key: the key of the classes (B,), or of labels (B, …) with a fraction.
        num_classes: K.
        prob: the probability for each sample.
        alpha: both parameters of the beta distribution of a sample's own share: small ones leave most samples nearly
            as they are, 1 makes all shares alike.

    Raises:
        TomokitError: when an argument is out of its range, or the labels do not fit.
    Source: Zhang et al., mixup: beyond empirical risk minimization, ICLR 2018.
    """

    def __init__(
        self, keys: KeysCollection, label_key: str, num_classes: int, prob: float = 1.0, alpha: float = 0.2
    ) -> None:
        super().__init__(keys)
        self.label_key = label_key
        self.num_classes = num_classes
        self.prob = check_probability("prob", prob)
        if not alpha > 0:
            raise TomokitError(f"alpha must be above 0, got {alpha}")
        self.alpha = float(alpha)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the batch with the drawn samples mixed with their partners."""
        result = dict(data)
        labels = self._soft(result[self.label_key])
        count = len(labels)
        events = draw_events(count, self.prob)
        shares = torch.where(events, Beta(self.alpha, self.alpha).sample((count,)), 1.0)
        partners = torch.randperm(count).tolist()
        samples = events.nonzero().flatten().tolist()
        result[self.label_key] = mix(labels, samples, partners, shares)
        for key in self.key_iterator(result):
            result[key] = mix(result[key], samples, partners, shares)
        return result

    def _soft(self, labels: Tensor) -> Tensor:
        """Return classes (B,) as (B, K), one-hot, and other labels as they are."""
        if labels.is_floating_point():
            return labels
        # on a GPU the values are not looked at here, since that would wait for it
        outside = (labels < 0) | (labels >= self.num_classes)
        if labels.ndim != 1 or (labels.device.type == "cpu" and outside.any()):
            raise TomokitError(
                f"mixup takes classes (B,) from 0 to {self.num_classes - 1}, got shape {tuple(labels.shape)} with "
                f"values from {labels.min()} to {labels.max()}; set num_classes to the network's"
            )
        return functional.one_hot(labels.long(), self.num_classes).float()


def mix(batch: Tensor, samples: list[int], partners: list[int], shares: Tensor) -> Tensor:
    """Return the batch (B, …) with these samples mixed with their partners.

    Args:
        batch: (B, …).
        samples: which are mixed; the others keep every bit.
        partners: the number of each sample's partner, for all samples.
        shares: (B,), each sample's own share, 0–1, on the CPU.
    """

    def change(chosen: Tensor) -> Tensor:
        others = torch.stack([batch[partners[number]] for number in samples]).to(chosen.dtype)
        weights = shares[samples].to(chosen.device, chosen.dtype, non_blocking=True)
        return torch.lerp(others, chosen, weights.reshape(-1, *[1] * (chosen.ndim - 1)))

    return change_samples(batch, samples, change)
