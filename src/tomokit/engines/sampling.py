"""Which cases an epoch draws, where it is not each of them once."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, DistributedSampler

from tomokit.engines.hardware import make_sampler
from tomokit.errors import TomokitError


class BalancedSampler(DistributedSampler):
    """Draws each class equally often in an epoch, in an order that follows from the seed and the epoch alone.

    An epoch is as long as the data set, filled up to a multiple of the processes, of which each draws its own share.
    The shares of the classes differ by one at most. A case of a common class is drawn once at most, another part of
    them in each epoch; one of a rare class comes again only when all of its class have come. The base class is what
    MONAI's trainer tells the number of the epoch.

    Args:
        dataset: the data set, for its length.
        classes: the class of each of its cases.
        count: the number of processes.
        rank: this process.
        seed: of the draws, the same in all processes.
    """

    def __init__(self, dataset: Dataset, classes: Sequence[int], count: int, rank: int, seed: int) -> None:
        super().__init__(dataset, num_replicas=count, rank=rank, shuffle=True, seed=seed)
        own = torch.tensor(list(classes))
        self.members = [torch.nonzero(own == value).flatten() for value in sorted(set(classes))]

    def __iter__(self) -> Iterator[int]:
        """Yield this process's places in the data set for the epoch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        share, rest = divmod(self.total_size, len(self.members))
        # which classes come once more, where the shares are not even, changes with the epoch
        favoured = set(torch.randperm(len(self.members), generator=generator)[:rest].tolist())
        drawn = [_draw(own, share + (i in favoured), generator) for i, own in enumerate(self.members)]
        places = torch.cat(drawn)[torch.randperm(self.total_size, generator=generator)]
        return iter(places[self.rank : self.total_size : self.num_replicas].tolist())


def make_balanced_sampler(dataset: Dataset, entries: Sequence[Mapping[str, Any]], seed: int) -> BalancedSampler:
    """Return a sampler that draws each class equally often; it stands where `make_sampler` does.

    Args:
        dataset: the training data set.
        entries: its cases in their order, with a class as `label`.
        seed: with the epoch's number it decides the order.

    Raises:
        TomokitError: when a label is no class, or all cases are of one class.
    """
    wrong = [entry for entry in entries if not isinstance(entry["label"], int) or isinstance(entry["label"], bool)]
    if wrong:
        raise TomokitError(
            f"balanced sampling needs a class as `label` of each case, got {wrong[0]['label']!r} for "
            f"{wrong[0]['case']}; leave the layer modes/balanced.yaml out"
        )
    classes = [entry["label"] for entry in entries]
    if len(set(classes)) < 2:
        raise TomokitError(f"balanced sampling needs training cases of two classes, got only {sorted(set(classes))}")
    alike = make_sampler(dataset, seed)  # knows how many processes there are, and which one this is
    return BalancedSampler(dataset, classes, alike.num_replicas, alike.rank, seed)


def _draw(places: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return `count` of the places in random order, each again only when all have come."""
    rounds = -(-count // len(places))
    return torch.cat([places[torch.randperm(len(places), generator=generator)] for _ in range(rounds)])[:count]
