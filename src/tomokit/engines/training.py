"""What every training engine does besides MONAI's step: resume, checkpoints, early stopping, logs."""

import logging
import math
import statistics
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from torch.utils.tensorboard import SummaryWriter

from tomokit import configs
from tomokit.engines.checkpoints import TrainingState, WeightAverage, load, save
from tomokit.engines.hardware import seed_epoch, unwrap
from tomokit.engines.progress import ProgressBar
from tomokit.engines.settings import tell_config
from tomokit.engines.tensorboard import (
    attach_class_plots,
    attach_overlays,
    attach_restored,
    open_events,
    write_config,
    write_settings,
)
from tomokit.errors import TomokitError
from tomokit.files import write_json
from tomokit.memory import keep_freed_memory
from tomokit.runs import is_main_process, peak_memory_gb

logger = logging.getLogger(__name__)

SAVE_SECONDS = 20.0


def attach_training(
    trainer: Any,
    evaluator: Any,
    lr_scheduler: Any,
    run_dir: str | Path,
    resume: bool,
    seed: int,
    patience: int,
    max_grad_norm: float,
    weight_averaging: float = 0.0,
    labels: Mapping[str, str] | None = None,
    task: str = "classes",
) -> TrainingState:
    """Attach seeding, clipping, checkpoints, early stopping, logs and progress, and return what is saved.

    The order of the handlers is the order of what happens at the end of an epoch: validation (attached by the
    config), best weights, logs, then `last.pt`, so that a checkpoint always holds whole epochs.

    Args:
        trainer: MONAI's trainer.
        evaluator: MONAI's evaluator on the inner validation cases, with a key metric.
        lr_scheduler: the schedule, stepped by the config's handler.
        run_dir: the run's folder.
        resume: go on from `checkpoints/last.pt` where there is one.
        seed: with the epoch's number it decides everything random.
        patience: validations without a better one before training stops; 0 never stops early.
        max_grad_norm: the gradients' norm is clipped to this; 0 leaves it.
        weight_averaging: the decay per step of the moving average of the weights, which is then what is validated
            and kept; 0 averages nothing.
        labels: of a classifier the names of what it tells, `{"0": name, …}`: TensorBoard then gets its counts and
            curves (`tomokit.engines.tensorboard.attach_class_plots`).
        task: of a classifier, as there; "pretraining" shows what was restored.

    Raises:
        TomokitError: when the checkpoint to resume from is damaged or of another network.
    """
    run_dir = Path(run_dir)
    if str(trainer.state.device) == "cpu":
        keep_freed_memory()
    state = TrainingState(trainer, lr_scheduler)
    if weight_averaging != 0:
        state.average = WeightAverage(state.network, weight_averaging)
    evaluator.network = state.result  # not joined with other processes': their shares of the cases differ in length
    last = run_dir / "checkpoints" / "last.pt"
    content = load(last) if resume and last.is_file() else None
    if content is not None:
        _restore(state, content, last)
    _attach_scaler(trainer, content)
    _attach_seeds(trainer, seed)
    if max_grad_norm > 0:
        trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, _clip_gradients, max_grad_norm)
    if state.average is not None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: state.average.update(state.network))
    progress = ProgressBar("train", "step")
    if is_main_process():
        progress.attach(trainer)
    _attach_records(state, evaluator, progress)
    if not len(evaluator.data_loader):
        logger.info("no validation cases: the weights at the end of the last epoch are used")
        warnings.filterwarnings("ignore", message="`dataloader` is empty")  # MONAI's, in each validation
    if is_main_process():
        writer = open_events(str(run_dir / "tensorboard"), trainer.state.iteration + 1)
        (attach_restored if task == "pretraining" else attach_overlays)(evaluator, trainer, writer)
        attach_class_plots(evaluator, trainer, writer, labels, task)
        _attach_files(state, evaluator, run_dir, writer)
    _attach_stop(state, patience)
    return state


def _restore(state: TrainingState, content: dict[str, Any], path: Path) -> None:
    """Restore a run from its last checkpoint, and tell where it goes on."""
    try:
        state.restore(content)
    except (KeyError, RuntimeError, ValueError) as error:
        raise TomokitError(
            f"can't resume from {path}: it was trained with another network or optimizer "
            f"({str(error).splitlines()[0]}); use the run's own config, or another run_dir"
        ) from error
    logger.info("resumed after epoch %d of %d", content["epoch"], state.trainer.state.max_epochs)


def _attach_scaler(trainer: Any, content: dict[str, Any] | None) -> None:
    """Restore the loss scale of a float16 run once MONAI's trainer has made its scaler."""
    if content is None or content["scaler"] is None:
        return

    def restore_scaler(engine: Any) -> None:
        if engine.scaler is not None:
            engine.scaler.load_state_dict(content["scaler"])

    trainer.add_event_handler(Events.STARTED, restore_scaler)


def _attach_seeds(trainer: Any, seed: int) -> None:
    """Seed each epoch before its batches are drawn, and say what an interruption would lose."""

    def start_epoch(engine: Engine) -> None:
        seed_epoch(seed, engine.state.epoch, trainer.data_loader.dataset)
        configs.on_interrupt(
            f"interrupted in epoch {engine.state.epoch} of {engine.state.max_epochs}; go on with --resume true"
        )

    trainer.add_event_handler(Events.EPOCH_STARTED, start_epoch)
    trainer.add_event_handler(Events.COMPLETED, lambda _: configs.on_interrupt())


def _clip_gradients(engine: Any, max_grad_norm: float) -> None:
    """Clip the norm of all gradients, at their true scale."""
    if engine.scaler is not None:
        engine.scaler.unscale_(engine.optimizer)
    torch.nn.utils.clip_grad_norm_(engine.network.parameters(), max_grad_norm)


def _attach_records(state: TrainingState, evaluator: Any, progress: ProgressBar) -> None:
    """Keep the losses of an epoch on the device, then add the epoch to the history."""
    losses: list[torch.Tensor] = []
    began = 0.0

    def start(_: Engine) -> None:
        nonlocal began
        began = time.perf_counter()
        losses.clear()

    def add(engine: Engine) -> None:
        losses.append(engine.state.output["loss"].detach())
        if engine.state.iteration % engine.state.epoch_length == 0:
            close(engine)  # here, since the config's validation handler comes first at the epoch's end

    def close(engine: Engine) -> None:
        entry = _epoch_entry(engine, losses, time.perf_counter() - began)
        state.history.append(entry)
        engine.state.metrics.update({key: entry[key] for key in ("learning_rate", "seconds_per_step")})
        progress.note = f"epoch {engine.state.epoch} loss {state.history[-1]['loss']:.3f}" + _best_note(state)

    def validated(engine: Engine) -> None:
        if not state.history:  # a validation without a training
            return
        metric = float(engine.state.metrics[engine.state.key_metric_name])
        state.history[-1]["metric"] = metric
        if math.isnan(metric):
            logger.warning(
                "%s is undefined on the validation cases: no epoch can be best", engine.state.key_metric_name
            )
        # of equals the later one: few cases soon have an AUC of 1, long before the training is over
        elif state.best_metric is None or not evaluator.metric_cmp_fn(state.best_metric, metric):
            state.keep_best(metric)

    trainer = state.trainer
    trainer.add_event_handler(Events.EPOCH_STARTED, start)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, add)
    evaluator.add_event_handler(Events.COMPLETED, validated)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, _validate_last_epoch, state, evaluator)


def _validate_last_epoch(engine: Any, state: TrainingState, evaluator: Any) -> None:
    """Validate after the last epoch where the config's interval does not fall on it."""
    if engine.state.epoch == engine.state.max_epochs and "metric" not in state.history[-1]:
        evaluator.run()


def _epoch_entry(engine: Any, losses: list[torch.Tensor], seconds: float) -> dict[str, Any]:
    """Return an epoch's history entry; a loss that is not finite ends the training."""
    values = torch.stack(losses).float().cpu()
    if not torch.isfinite(values).all():
        raise TomokitError(
            f"the loss became {values[~torch.isfinite(values)][0].item()} in epoch {engine.state.epoch}; lower "
            "learning_rate, or set amp to false, and go on from the last checkpoint with --resume true"
        )
    return {
        "epoch": engine.state.epoch,
        "loss": values.mean().item(),
        "learning_rate": engine.optimizer.param_groups[0]["lr"],
        "seconds": seconds,
        "seconds_per_step": seconds / len(losses),
        "losses": values.tolist(),
    }


def _best_note(state: TrainingState) -> str:
    """Return the best validation so far, for the progress bar."""
    return "" if state.best_metric is None else f" best {state.best_metric:.3f} in {state.best_epoch}"


def _attach_files(state: TrainingState, evaluator: Any, run_dir: Path, writer: SummaryWriter) -> None:
    """Write TensorBoard events, the best and last checkpoint, and `validation.json`."""
    folder = run_dir / "checkpoints"
    trainer = state.trainer
    config = tell_config(run_dir)
    if trainer.state.iteration == 0:  # a resumed run's is there
        write_config(writer, config)
    saved = time.monotonic()
    best_on_disk = 0
    record: dict[str, Any] = {}

    def save_epoch(engine: Engine) -> None:
        nonlocal saved, best_on_disk
        entry = state.history[-1]
        _log_scalars(writer, engine, entry, evaluator)
        ends = engine.state.epoch == engine.state.max_epochs
        if "metric" in entry or ends or time.monotonic() - saved > SAVE_SECONDS:
            if state.best_epoch > best_on_disk:
                save(state.best_weights, folder / "best.pt")
                best_on_disk = state.best_epoch
            save(state.content(), folder / "last.pt")
            record.update(_summarise(state, evaluator))
            write_json(run_dir / "validation.json", record)
            saved = time.monotonic()

    def restore_best(_: Engine) -> None:
        # the file may be of an epoch that the last checkpoint does not know
        if state.best_weights is not None:
            save(state.best_weights, folder / "best.pt")

    def close(engine: Engine) -> None:
        if record:  # a finished run that is resumed told them before
            write_settings(writer, config, record, engine.state.iteration)
        writer.close()
        logger.info("trained: %s%s", run_dir, _best_note(state))

    trainer.add_event_handler(Events.STARTED, restore_best)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, save_epoch)
    trainer.add_event_handler(Events.COMPLETED, close)


def _log_scalars(writer: SummaryWriter, engine: Any, entry: dict[str, Any], evaluator: Any) -> None:
    """Write an epoch's losses, learning rate and metrics, each at its iteration."""
    losses = entry.pop("losses")
    last = engine.state.iteration
    for step, loss in enumerate(losses, start=last - len(losses) + 1):
        writer.add_scalar("train/loss", loss, step)
    writer.add_scalar("train/learning_rate", entry["learning_rate"], last)
    writer.add_scalar("train/seconds_per_step", entry["seconds_per_step"], last)
    if "metric" in entry:
        for name, value in evaluator.state.metrics.items():
            writer.add_scalar(f"validation/{name}", value, last)


def _summarise(state: TrainingState, evaluator: Any) -> dict[str, Any]:
    """Return what training measured: the best epoch, the history, time and memory."""
    history = [{key: _finite(value) for key, value in entry.items()} for entry in state.history]
    return {
        "metric": evaluator.state.key_metric_name,
        "best": {"epoch": state.best_epoch, "metric": _finite(state.best_metric)} if state.best_epoch else None,
        "epochs": state.trainer.state.epoch,
        "seconds": sum(entry["seconds"] for entry in history),
        "seconds_per_step": statistics.median(entry["seconds_per_step"] for entry in history),
        "peak_rss_gb": peak_memory_gb(),
        "parameters": sum(parameter.numel() for parameter in unwrap(state.network).parameters()),
        "history": history,
    }


def _finite(value: Any) -> Any:
    """Return the value, or None for a number that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _attach_stop(state: TrainingState, patience: int) -> None:
    """Stop when validation has not improved for `patience` times, or when a resumed run was finished before."""
    trainer = state.trainer
    finished = trainer.state.epoch >= trainer.state.max_epochs
    exhausted = 0 < patience <= state.validations_since_best()

    def stop_at_start(engine: Engine) -> None:
        logger.info("this run is finished; nothing is left to train")
        engine.terminate()

    def stop_early(engine: Engine) -> None:
        if 0 < patience <= state.validations_since_best():
            logger.info("stopped early: no better validation since epoch %d", state.first_best_epoch())
            engine.terminate()

    if finished or exhausted:
        trainer.add_event_handler(Events.STARTED, stop_at_start)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, stop_early)
