"""What TensorBoard shows beside the scalars: overlays, a classifier's errors and curves, the config and settings."""

import logging
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from scipy.special import expit
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from tomokit.engines.settings import tell_scores, tell_settings
from tomokit.errors import TomokitError
from tomokit.panels import middle_slice
from tomokit.pictures import draw_counts, grey_range, overlay_slice

logger = logging.getLogger(__name__)

PICTURE_PIXELS = 480
PLANES = ("sagittal", "coronal", "axial")  # by the axis (x, y, z) across them
PAIR_LABELS = {"0": "first is earlier", "1": "changed"}  # of two scans, as `tomokit.pairs.pair_target` orders them
OUTCOMES = ("found", "missed", "false alarm", "cleared")
DECIDED = 0.5


def open_events(folder: str, first_step: int) -> SummaryWriter:
    """Return a writer of a run's events; what it wrote from `first_step` on in an earlier training is hidden.

    Where the disk is full, a line says so: TensorBoard writes in a thread, whose traceback would tell users little.
    """
    threading.excepthook = _tell_lost_events
    return SummaryWriter(folder, purge_step=first_step, flush_secs=10)


def _tell_lost_events(failed: threading.ExceptHookArgs) -> None:
    """Log in one line that a thread of TensorBoard can't write; other threads' errors are told as ever."""
    if isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard."):
        logger.error("TensorBoard's events are not whole: %s", failed.exc_value)
    else:
        threading.__excepthook__(failed)


def attach_overlays(evaluator: Engine, trainer: Engine, writer: SummaryWriter) -> None:
    """Write three slices of the first validation case at each validation, those with the most foreground.

    They are `validation/axial`, `validation/coronal` and `validation/sagittal`; a voxel of the network's grid is square
    in them. Tasks whose label is no volume on the image's grid have no such pictures.
    """
    kept: dict[str, np.ndarray] = {}

    def keep_first(engine: Engine) -> None:
        if engine.state.iteration == 1:
            kept.update({key: np.asarray(engine.state.output[0][key].cpu()) for key in ("image", "label", "pred")})

    def write(_: Engine) -> None:
        image, label, prediction = (kept[key] for key in ("image", "label", "pred"))
        if image.ndim != 4 or label.shape[1:] != image.shape[1:]:
            return
        volumes = image[0], _as_labels(prediction), _as_labels(label)
        for axis, plane in enumerate(PLANES):
            others = tuple(other for other in range(3) if other != axis)
            place = int(np.argmax((volumes[2] > 0).sum(axis=others)))
            picture = overlay_slice(*(volume.take(place, axis=axis) for volume in volumes))
            zoom = max(1, PICTURE_PIXELS // max(picture.shape))
            picture = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
            writer.add_image(f"validation/{plane}", picture, trainer.state.iteration, dataformats="HWC")

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep_first)
    evaluator.add_event_handler(Events.COMPLETED, write)


def attach_restored(evaluator: Engine, trainer: Engine, writer: SummaryWriter) -> None:
    """Write the first validation case as it was, distorted and restored, side by side, at each validation."""
    kept: dict[str, np.ndarray] = {}

    def keep_first(engine: Engine) -> None:
        if engine.state.iteration == 1:
            kept.update({key: np.asarray(engine.state.output[0][key].cpu()) for key in ("label", "image", "pred")})

    def write(_: Engine) -> None:
        picture = np.hstack([middle_slice(own[0]) for own in kept.values()])
        low, high = grey_range(kept["label"][0])
        grey = (np.clip((picture - low) / (high - low), 0, 1) * 255).astype(np.uint8)
        zoom = max(1, PICTURE_PIXELS // len(grey))
        grey = grey.repeat(zoom, axis=0).repeat(zoom, axis=1)
        writer.add_image("validation/restored", grey, trainer.state.iteration, dataformats="HW")

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep_first)
    evaluator.add_event_handler(Events.COMPLETED, write)


def attach_class_plots(
    evaluator: Engine, trainer: Engine, writer: SummaryWriter, labels: Mapping[str, str] | None, task: str
) -> None:
    """Write the counts of right and wrong answers and precision against recall at each validation of a classifier.

    `validation/confusion` has, of classes, a row for each true class and a column for each answer; of several labels,
    and of pairs of scans, a row for each label, decided at a probability of 0.5. `validation/pr/<name>` is the curve of
    each class or label that some validation case has.

    Args:
        evaluator: its output holds, of each case, `pred` and `label`, both (C,): probabilities and 0 or 1. Of pairs
            `pred` are logits, and a `label` that is not known is NaN.
        trainer: tells the step.
        writer: takes the pictures.
        labels: the names of the classes or labels, `{"0": name, …}`; None writes nothing.
        task: "classes", "labels", "pairs", which needs no names, or "value", of which nothing is written.
    """
    names = list(PAIR_LABELS.values() if task == "pairs" else (labels or {}).values())
    if not names or task == "value":
        return
    chances: list[NDArray[Any]] = []
    truths: list[NDArray[Any]] = []

    def keep(engine: Engine) -> None:
        if engine.state.iteration == 1:
            chances.clear()
            truths.clear()
        for output in engine.state.output:
            chance, truth = _answer(output, task, len(names))
            chances.append(chance)
            truths.append(truth)

    def write(_: Engine) -> None:
        if not chances:
            return
        chance, truth, step = np.stack(chances), np.stack(truths), trainer.state.iteration
        draw = _draw_classes if task == "classes" else _draw_labels
        writer.add_image("validation/confusion", draw(chance, truth, names), step, dataformats="HWC")
        for name, own, flags in zip(names, chance.T, truth.T, strict=True):
            known = ~np.isnan(flags)
            if (flags[known] > 0).any():
                writer.add_pr_curve(f"validation/pr/{name}", flags[known], own[known], step)

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep)
    evaluator.add_event_handler(Events.COMPLETED, write)


def write_config(writer: SummaryWriter, config: Mapping[str, Any]) -> None:
    """Write a config as text, the tag `config`; nothing where there is none."""
    if config:
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
        writer.add_text("config", f"```yaml\n{text}```", 0)


def write_settings(writer: SummaryWriter, config: Mapping[str, Any], record: Mapping[str, Any], step: int) -> None:
    """Write a run's settings and final scores for TensorBoard's table of runs, into the run's own folder.

    `SummaryWriter.add_hparams` would make a sub-folder, which shows as a run of its own.
    """
    scores = tell_scores(record)
    for summary in hparams(tell_settings(config), scores):
        writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]  # None only once it is closed
    for name, value in scores.items():
        writer.add_scalar(name, value, step)


def _as_labels(volume: NDArray[Any]) -> NDArray[Any]:
    """Return a label map (X, Y, Z) of labels (1, X, Y, Z), or of regions (C, X, Y, Z), later ones over earlier ones."""
    if len(volume) == 1:
        return volume[0]
    numbers = np.arange(1, len(volume) + 1).reshape(-1, 1, 1, 1)
    return ((volume > 0) * numbers).max(axis=0)


def _answer(output: Mapping[str, Any], task: str, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the probabilities and the truth (C,) of one case.

    Raises:
        TomokitError: when they are not of so many labels.
    """
    chance, truth = (np.asarray(output[key].float().cpu()) for key in ("pred", "label"))
    if task == "pairs":
        chance, truth = expit(chance[:count]), truth[:count]
    if chance.shape != (count,) or truth.shape != (count,):
        raise TomokitError(
            f"`pred` {chance.shape} and `label` {truth.shape} of a validation case must hold one number for each of "
            f"the {count} labels; correct validate::postprocessing, or leave `labels` out of attach_training"
        )
    return chance, truth


def _draw_classes(chance: NDArray[Any], truth: NDArray[Any], names: list[str]) -> NDArray[np.uint8]:
    """Return a picture of how many cases of each class got which answer."""
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, (truth.argmax(axis=1), chance.argmax(axis=1)), 1)
    return draw_counts(counts, _shares(counts), names, names, ("answer", "truth"))


def _draw_labels(chance: NDArray[Any], truth: NDArray[Any], names: list[str]) -> NDArray[np.uint8]:
    """Return a picture of how many cases with each label, and without, were called so at 0.5."""
    called = chance >= DECIDED
    has, lacks = truth > 0, truth == 0  # neither where it is not known
    counts = np.stack([(has & called), (has & ~called), (lacks & called), (lacks & ~called)], axis=-1).sum(axis=0)
    shares = np.concatenate([_shares(counts[:, :2]), _shares(counts[:, 2:])], axis=1)
    return draw_counts(counts, shares, names, OUTCOMES, (f"called at a probability of {DECIDED}", "label"))


def _shares(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Return each count as part of its row's sum; NaN in a row without any."""
    total = counts.sum(axis=1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), np.nan)
