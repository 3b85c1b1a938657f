"""Slices with overlays of truth and prediction in TensorBoard."""

import numpy as np
from ignite.engine import Engine, Events
from torch.utils.tensorboard import SummaryWriter

from tomokit.pictures import overlay_slice

PICTURE_PIXELS = 480


def attach_overlays(evaluator: Engine, trainer: Engine, writer: SummaryWriter) -> None:
    """Write the slice with the most foreground of the first validation case at each validation.

    Tasks whose label is no volume on the image's grid have no such picture.
    """
    kept: dict[str, np.ndarray] = {}

    def keep_first(engine: Engine) -> None:
        if engine.state.iteration == 1:
            kept.update({key: np.asarray(engine.state.output[0][key].cpu()) for key in ("image", "label", "pred")})

    def write(_: Engine) -> None:
        image, label, prediction = (kept[key] for key in ("image", "label", "pred"))
        if image.ndim != 4 or label.shape[1:] != image.shape[1:]:
            return
        z = int(np.argmax((label[0] > 0).sum(axis=(0, 1))))
        picture = overlay_slice(image[0, ..., z], prediction[0, ..., z], label[0, ..., z])
        zoom = max(1, PICTURE_PIXELS // max(picture.shape))
        picture = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
        writer.add_image("validation/slice", picture, trainer.state.iteration, dataformats="HWC")

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep_first)
    evaluator.add_event_handler(Events.COMPLETED, write)
