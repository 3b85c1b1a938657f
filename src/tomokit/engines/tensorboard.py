"""Slices with overlays of truth and prediction in TensorBoard."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from torch.utils.tensorboard import SummaryWriter

from tomokit.pictures import overlay_slice


def attach_overlays(evaluator: Engine, trainer: Engine, writer: SummaryWriter, labels: Mapping[str, str]) -> None:
    """Write the slice with the most foreground of the first validation case at each validation."""
    if not labels:
        return
    kept: dict[str, np.ndarray] = {}

    def keep_first(engine: Engine) -> None:
        if engine.state.iteration == 1:
            output = engine.state.output[0]
            kept.update({key: np.asarray(output[key].detach().cpu())[0] for key in ("image", "label", "pred")})

    def write(_: Engine) -> None:
        if kept["image"].ndim != 3:
            return
        z = int(np.argmax((kept["label"] > 0).sum(axis=(0, 1))))
        picture = overlay_slice(kept["image"][..., z], kept["pred"][..., z], kept["label"][..., z])
        writer.add_image("validation/slice", picture, trainer.state.iteration, dataformats="HWC")

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep_first)
    evaluator.add_event_handler(Events.COMPLETED, write)
