"""A U-Net with a head for each task, whose weights follow from the image and the task: for partly labelled data."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tomokit.errors import raise_problems
from tomokit.networks.blocks import (
    Body,
    Extent,
    check_lists,
    convolution,
    initialise,
    normalised,
    paired_body,
)

HIDDEN = 8  # features between a head's layers, as in the paper


class TaskHeads(nn.Module):
    """A body with a small head for each task, made for the image by one controller that all tasks share.

    A head is three 1×1×1 convolutions. Their weights are the controller's answer to the mean of the deepest features
    and the task's code, one 1 among zeros. Each task's head gives the logits of its own structures; the background's
    logit is 0, which costs nothing since a softmax does not change when all its logits do. So the softmax over the
    background and one task's structures follows from that task's head alone: a loss on a scan in which only some
    tasks are labelled can leave the others' logits out, or add their probabilities to the background's.

    Args:
        body: gives features of `channels` channels on the image's grid, and the deepest ones.
        channels: of the body's features.
        deepest: channels of the deepest features.
        tasks: the structures of each task, classes from 1.

    Raises:
        TomokitError: when the tasks do not hold each structure exactly once.
    Source: Zhang et al., DoDNet, CVPR 2021.
    """

    codes: Tensor
    places: Tensor

    def __init__(self, body: Body, channels: int, deepest: int, tasks: Sequence[Sequence[int]]) -> None:
        super().__init__()
        check_tasks(tasks)
        self.body = body
        self.widest = max(len(structures) for structures in tasks)
        self.widths = [channels, HIDDEN, HIDDEN, self.widest]
        count = sum((a + 1) * b for a, b in zip(self.widths[:-1], self.widths[1:], strict=True))
        self.apply(initialise)
        self.controller = nn.Linear(deepest + len(tasks), count)
        # where each structure's logit stands among the heads' outputs, all of the widest's length
        flat = {c: t * self.widest + i for t, structures in enumerate(tasks) for i, c in enumerate(structures)}
        self.register_buffer("codes", torch.eye(len(tasks)), persistent=False)
        self.register_buffer("places", torch.tensor([flat[c] for c in sorted(flat)]), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, 1 + structures, X, Y[, Z]), the background's 0, for an image (B, C, X, Y[, Z])."""
        features, deepest = self.body(image)
        batch, tasks = image.shape[0], self.codes.shape[0]
        mean = deepest.flatten(2).mean(2).unsqueeze(1).expand(batch, tasks, -1)
        codes = self.codes.to(mean.dtype).unsqueeze(0).expand(batch, tasks, tasks)
        weights = self.controller(torch.cat([mean, codes], 2)).flatten(0, 1)
        hidden = features.flatten(2).repeat_interleave(tasks, 0)
        hidden = self.head(hidden, weights)
        logits = hidden.reshape(batch, tasks * self.widest, -1).index_select(1, self.places)
        logits = torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)
        return logits.unflatten(2, list(image.shape[2:]))

    def head(self, hidden: Tensor, weights: Tensor) -> Tensor:
        """Return the heads' outputs (B·T, widest, N) for features (B·T, C, N) and each head's weights (B·T, count)."""
        start = 0
        for layer in range(3):
            ins, outs = self.widths[layer], self.widths[layer + 1]
            matrix = weights[:, start : start + ins * outs].reshape(-1, outs, ins)
            start += ins * outs
            hidden = torch.baddbmm(weights[:, start : start + outs].unsqueeze(2), matrix, hidden)
            start += outs
            if layer < 2:
                hidden = torch.relu(hidden)
        return hidden


def check_tasks(tasks: Sequence[Sequence[int]]) -> None:
    """Raise when the tasks do not hold each structure exactly once.

    Raises:
        TomokitError: that names each structure that is missing, repeated, or none.
    """
    given = [structure for structures in tasks for structure in structures]
    problems = [f"class {c} stands in `tasks` {given.count(c)} times" for c in sorted(set(given)) if given.count(c) > 1]
    problems += [f"class {c} is no structure: they count from 1" for c in given if c < 1]
    problems += [f"class {c} is in no task" for c in range(1, max(given, default=1)) if c not in given]
    problems += [f"task {i} has no structure" for i, structures in enumerate(tasks) if not structures]
    problems += [] if tasks else ["`tasks` is empty"]
    raise_problems(f"each structure must stand in one of the tasks, got {[list(task) for task in tasks]}", problems)


def task_head_unet(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    filters: Sequence[int],
    strides: Sequence[Extent],
    kernel_size: Sequence[Extent],
    tasks: Sequence[Sequence[int]],
    dropout: float = 0.0,
) -> TaskHeads:
    """Return a U-Net with a head for each task that one controller makes from the image and the task's code.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        filters: features of each level, from full resolution down.
        strides: of each level, one number or one per axis; the first is 1.
        kernel_size: of each level's convolutions, one odd number or one per axis.
        tasks: the structures of each task, such as [[1], [2, 3]]: what is always labelled together.
        dropout: share of the features that are dropped after each convolution.

    Raises:
        TomokitError: when the lists do not fit each other, or the tasks not the classes.
    Source: Zhang et al., DoDNet, CVPR 2021.
    """
    check_lists(spatial_dims, filters, strides=strides, kernel_size=kernel_size)
    count = sum(len(structures) for structures in tasks)
    problems = [f"{count} structures in {tasks}, {out_channels - 1} classes without the background"]
    raise_problems("`tasks` must hold every structure", problems if count != out_channels - 1 else [])

    def layer(level: int, channels: int, features: int, stride: Extent) -> nn.Module:
        return normalised(convolution(spatial_dims, channels, features, kernel_size[level], stride), features, dropout)

    body = paired_body(spatial_dims, in_channels, filters, strides, layer)
    return TaskHeads(body, filters[0], filters[-1], tasks)
