"""A teacher that is the moving average of the network's weights, with which the network learns to agree."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.engines import IterationEvents
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, DistributedSampler

from tomokit.datasets import KEPT, Entry
from tomokit.engines.hardware import PrepareBatch, to_channels_last, unwrap
from tomokit.errors import TomokitError

Change = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
STEEPNESS = 5.0  # of the ramp: the weight begins at exp(-5) of what it becomes


class MeanTeacher:
    """Adds to each step's loss how far the network is from its teacher on images without labels: a trainer's handler.

    The teacher is the moving average of the weights that `attach_training` keeps, validates and saves, so
    `weight_averaging` must be above 0. Student and teacher see the same images, each with random changes of its own;
    the loss is the mean squared difference of their probabilities. No gradient reaches the teacher. Both normalise by
    the batch and drop what dropout drops, as in training. What is drawn follows from the seed and the epoch alone.

    Args:
        evaluator: MONAI's evaluator on the validation cases; its network is the teacher.
        dataloader: gives batches with `image`, of labelled and unlabelled cases alike.
        views: random changes of `{"image": (B, C, X, Y[, Z])}`, drawn anew for the student and for the teacher; for
            segmentation of intensities alone, since both must lie on one grid.
        weight: of the loss, at the end of the ramp.
        ramp_up: the part of the training over which the weight rises, 0–1.
        seed: with the epoch's number it decides which images come.
        sigmoid: whether each channel is a probability by itself (several labels, regions); else all channels together
            are, and a single one is a value, compared as it is.
        inputs: keys of what the network takes beside the image, in the order of its arguments.

    Raises:
        TomokitError: when the weight is negative or the ramp no part; at the start, when no average is kept.
    Source: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017; the ramp: Laine and Aila,
        Temporal ensembling for semi-supervised learning, ICLR 2017.
    """

    def __init__(
        self,
        evaluator: Any,
        dataloader: DataLoader,
        views: Change,
        weight: float = 1.0,
        ramp_up: float = 0.3,
        seed: int = 0,
        sigmoid: bool = False,
        inputs: Sequence[str] = (),
    ) -> None:
        if weight < 0 or not 0 <= ramp_up <= 1:
            raise TomokitError(
                f"the weight of the teacher must be at least 0, its ramp from 0 to 1; got {weight} and {ramp_up}"
            )
        self.evaluator, self.dataloader, self.views = evaluator, dataloader, views
        self.weight, self.ramp_up, self.seed, self.sigmoid = weight, ramp_up, seed, sigmoid
        self.prepare = PrepareBatch(extra=inputs)
        self.epoch = 0
        self.batches: Iterator[Any] = iter(())

    def attach(self, engine: Engine) -> None:
        """Add to the loss of each of the trainer's steps."""
        engine.add_event_handler(Events.STARTED, self.check)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.add_loss)

    def check(self, engine: Any) -> None:
        """Raise when the teacher is the student."""
        if self.evaluator.network is unwrap(engine.network):
            raise TomokitError(
                "the mean teacher is the moving average of the weights, of which none is kept; set weight_averaging "
                "above 0, such as 0.99"
            )

    def add_loss(self, engine: Any) -> None:
        """Add the difference from the teacher, weighted, to the loss of the step."""
        image, _, *more = self.prepare(self.draw(engine.state.epoch), engine.state.device, engine.non_blocking)
        further = more[0] if more else ()
        with torch.no_grad():
            target = self.chances(engine, self.evaluator.network.train(), image, *further)
        found = self.chances(engine, unwrap(engine.network), image, *further)
        steps = engine.state.max_epochs * engine.state.epoch_length
        weight = self.weight * ramp(engine.state.iteration, self.ramp_up * steps)
        engine.state.output["loss"] = engine.state.output["loss"] + weight * functional.mse_loss(found, target)

    def draw(self, epoch: int) -> Any:
        """Return the next batch; an epoch begins with a new order, in which the cases come as often as needed."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._shuffle()
            self.batches = iter(self.dataloader)
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.dataloader)
            batch = next(self.batches)
        return batch

    def chances(self, engine: Any, network: nn.Module, image: Tensor, *further: Tensor) -> Tensor:
        """Return a network's probabilities (B, C, …), or values (B, 1), of a view of the images."""
        view = to_channels_last(self.views({"image": image})["image"])
        logits = leading_head(engine.inferer(view, network, *further), image.ndim)
        if self.sigmoid:
            return logits.sigmoid()
        return logits.softmax(1) if logits.shape[1] > 1 else logits

    def _shuffle(self) -> None:
        """Let the order, and what is random in the preprocessing, follow from the seed and the epoch."""
        sampler = self.dataloader.sampler
        rank = 0
        if isinstance(sampler, DistributedSampler):
            sampler.set_epoch(self.epoch)
            rank = sampler.rank
        state = np.random.SeedSequence([self.seed, self.epoch, rank, 1]).generate_state(1)  # not the trainer's own
        set_rnd(self.dataloader.dataset, seed=int(state[0]))


def images_alone(entries: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """Return entries with nothing of their labels: `case`, `patient`, `image`, and `mask` where there is one."""
    return [{key: entry[key] for key in KEPT if key in entry} for entry in entries]


def ramp(step: int, length: float) -> float:
    """Return the part of the weight that counts in a step: from exp(-5) at the start to 1 after `length` steps."""
    progress = min(step / length, 1.0) if length > 0 else 1.0
    return math.exp(-STEEPNESS * (1 - progress) ** 2)


def leading_head(output: Any, ndim: int) -> Tensor:
    """Return the logits of full resolution: of a list of heads the first, of a DynUNet's stack (B, heads, …) too."""
    logits: Tensor = output[0] if isinstance(output, list | tuple) else output
    return logits[:, 0] if logits.ndim == ndim + 1 else logits
