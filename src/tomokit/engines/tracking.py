"""Handlers that log a run with Weights & Biases or MLflow, on this machine unless the config says otherwise.

They get what TensorBoard gets of numbers, the config and the final scores, as `tomokit.engines.settings` tells them: no
pictures, and nothing that names a case or a folder.
"""

import hashlib
import importlib.util
import logging
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import torch
import yaml
from ignite.engine import Engine, Events

from tomokit.engines.settings import tell_config, tell_scores, tell_settings
from tomokit.errors import TomokitError
from tomokit.files import read_json
from tomokit.runs import is_main_process

Entries = Sequence[tuple[Mapping[str, float], int]]  # numbers by name, and their step

OFFLINE, ONLINE = "offline", "online"
IDENTITY_TAG = "tomokit_run"
SQLITE = "sqlite:///"
BATCH = 1000  # numbers that MLflow takes at once


class Tracker(ABC):
    """Logs losses, learning rate, seconds per step and validations of a run, its config, and its scores at the end.

    Subclasses say how: `start`, `log` and `finish`. A run that is resumed goes on in its own record.

    Args:
        evaluator: the trainer's, on the validation cases.
        run_dir: the run's folder.
    """

    def __init__(self, evaluator: Engine, run_dir: str | Path) -> None:
        self.evaluator = evaluator
        self.run_dir = Path(run_dir)
        self.losses: list[torch.Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Follow a trainer; of several processes the first one does."""
        if not is_main_process():
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log_epoch)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    @abstractmethod
    def start(self, identity: str, config: dict[str, Any]) -> None:
        """Open the record of the run of that identity, or go on with it."""

    @abstractmethod
    def log(self, entries: Entries) -> None:
        """Add numbers to the record, in the order of their steps."""

    @abstractmethod
    def finish(self, scores: dict[str, float], step: int) -> None:
        """Add the final scores and close the record."""

    def _start(self, engine: Engine) -> None:
        self.losses.clear()
        self.start(identify_run(self.run_dir), tell_config(self.run_dir))
        self.evaluator.add_event_handler(Events.COMPLETED, self._log_validation, engine)

    def _keep(self, engine: Engine) -> None:
        self.losses.append(engine.state.output["loss"].detach())

    def _log_epoch(self, engine: Engine) -> None:
        """Log what came since the last time; before a validation, so that the steps come in their order."""
        if self.losses:
            last = engine.state.iteration
            losses = torch.stack(self.losses).float().tolist()
            steps = range(last - len(losses) + 1, last + 1)
            numbers = {f"train/{key}": engine.state.metrics[key] for key in ("learning_rate", "seconds_per_step")}
            entries = [({"train/loss": loss}, step) for loss, step in zip(losses, steps, strict=True)]
            self.log([*entries, (numbers, last)])
            self.losses.clear()

    def _log_validation(self, evaluator: Engine, trainer: Engine) -> None:
        self._log_epoch(trainer)
        self.log(
            [({f"validation/{key}": float(v) for key, v in evaluator.state.metrics.items()}, trainer.state.iteration)]
        )

    def _finish(self, engine: Engine) -> None:
        self.evaluator.remove_event_handler(self._log_validation, Events.COMPLETED)  # later ones are no part of the run
        self.finish(tell_scores(read_json(self.run_dir / "validation.json")), engine.state.iteration)


class WandbTracker(Tracker):
    """Logs a run with Weights & Biases, in `<run_dir>/wandb`; `wandb sync` sends it later, if that is wanted.

    The program's output, its command line, the machine and its packages are not logged: they tell names and folders.

    Args:
        evaluator: the trainer's, on the validation cases.
        run_dir: the run's folder; its last part names the run.
        project: the project's name.
        mode: "offline", or "online", which sends everything to the server at once.

    Raises:
        TomokitError: when wandb is not installed, or there is no such mode.
    """

    def __init__(self, evaluator: Engine, run_dir: str | Path, project: str, mode: str = OFFLINE) -> None:
        super().__init__(evaluator, run_dir)
        if mode not in (OFFLINE, ONLINE):
            raise TomokitError(f"`wandb_mode` must be {OFFLINE} or {ONLINE}, got {mode!r}")
        check_installed("wandb")
        self.project, self.mode = project, mode
        self.run: Any = None

    def start(self, identity: str, config: dict[str, Any]) -> None:
        """Open a run; a resumed one has the identity, and online the record, of what was before."""
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # or a host is looked up even offline
        import wandb

        silent = {"console": "off", "save_code": False, "disable_code": True, "disable_git": True, "silent": True}
        silent |= {f"x_disable_{what}": True for what in ("meta", "stats", "machine_info")}
        self.run = wandb.init(
            project=self.project,
            name=self.run_dir.resolve().name,
            id=identity,
            dir=str(self.run_dir),
            mode=self.mode,
            config=config,
            resume="allow" if self.mode == ONLINE else None,
            reinit="create_new",
            settings=wandb.Settings(**silent, host="", x_save_requirements=False),
        )

    def log(self, entries: Entries) -> None:
        """Add numbers to the run's history."""
        for numbers, step in entries:
            self.run.log(dict(numbers), step=step)

    def finish(self, scores: dict[str, float], step: int) -> None:
        """Add the scores to the run's summary and write all of it."""
        self.run.summary.update(scores)
        self.run.finish()


class MlflowTracker(Tracker):
    """Logs a run with MLflow, in `<run_dir>/mlflow/mlflow.db`, a database of its own, or in a store that is named.

    Args:
        evaluator: the trainer's, on the validation cases.
        run_dir: the run's folder; its last part names the run.
        experiment: the experiment's name.
        store: the address of a store, such as that of a server; None is the run's own. What the environment says
            of MLflow's address is not read.

    Raises:
        TomokitError: when MLflow is not installed, or what its database needs.
    """

    def __init__(self, evaluator: Engine, run_dir: str | Path, experiment: str, store: str | None = None) -> None:
        super().__init__(evaluator, run_dir)
        check_installed("mlflow", *(["sqlalchemy", "alembic"] if store is None else []))
        self.experiment, self.store = experiment, store
        self.client: Any = None
        self.run_id = ""

    def start(self, identity: str, config: dict[str, Any]) -> None:
        """Open a run with its settings and config, or go on with the one of this identity."""
        store = self.store or self._own_store()
        self.client = _mlflow_client(store)
        known = self.client.get_experiment_by_name(self.experiment)
        number = known.experiment_id if known else self.client.create_experiment(self.experiment, _files_of(store))
        found = self.client.search_runs([number], f"tags.{IDENTITY_TAG} = '{identity}'")
        if found:
            self.run_id = found[0].info.run_id
            self.client.update_run(self.run_id, "RUNNING")
            return
        name = self.run_dir.resolve().name
        self.run_id = self.client.create_run(number, tags={IDENTITY_TAG: identity}, run_name=name).info.run_id
        for key, value in tell_settings(config).items():
            self.client.log_param(self.run_id, key, value)
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
        self.client.log_text(self.run_id, text, "config.yaml")

    def log(self, entries: Entries) -> None:
        """Add numbers to the run's metrics."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for numbers, step in entries for name, value in numbers.items()]
        for first in range(0, len(metrics), BATCH):
            self.client.log_batch(self.run_id, metrics=metrics[first : first + BATCH])

    def finish(self, scores: dict[str, float], step: int) -> None:
        """Add the scores to the run's metrics and end it."""
        self.log([(scores, step)])
        self.client.set_terminated(self.run_id)

    def _own_store(self) -> str:
        """Return the address of the run's own database, its folder made."""
        path = (self.run_dir / "mlflow" / "mlflow.db").absolute()
        path.parent.mkdir(exist_ok=True)
        return SQLITE + re.sub("[%?#]", lambda found: quote(found[0]), path.as_posix())


def check_installed(*packages: str) -> None:
    """Raise when one of the packages is not installed.

    Raises:
        TomokitError: that says how to get it.
    """
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        raise TomokitError(f"{' and '.join(absent)} not installed; pip install 'tomokit[tracking]'")


def identify_run(run_dir: Path) -> str:
    """Return what tells a run from all others, and stays when it is resumed: 16 letters and numbers."""
    environment = read_json(run_dir / "environment.json")
    text = f"{environment['started']} {environment['data_hash']} {run_dir.resolve()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _files_of(store: str) -> str | None:
    """Return where the files of a database's runs go, beside it; MLflow would put them in the current folder."""
    if not store.startswith(SQLITE):
        return None
    return (Path(unquote(store.removeprefix(SQLITE))).absolute().parent / "files").as_uri()


def _mlflow_client(store: str) -> Any:
    """Return a client of MLflow that does not report its use."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # tells of each table
    from mlflow import MlflowClient
    from mlflow.telemetry import set_telemetry_client

    set_telemetry_client()  # MONAI has imported it before: it looks at the environment once more
    return MlflowClient(tracking_uri=store)
