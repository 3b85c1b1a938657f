"""The study on disk: a journal that several processes and machines share, with what each of them is at.

Every process keeps a marker under `workers/`, touched each few seconds. A trial whose process has no fresh marker
was killed: it is told failed and its settings are put in the queue again.
"""

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from tomokit.errors import TomokitError

try:
    import optuna
except ImportError as problem:
    raise TomokitError(
        f"`tomokit search` needs Optuna, which can't be imported ({problem}); pip install 'tomokit[search]'"
    ) from problem
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from tomokit.search.space import Parameter, default_draw, draw

STUDY = "search"
JOURNAL = "study.journal"
BEAT_SECONDS = 3.0
SILENT_SECONDS = 60.0  # a marker of this age, or a trial of this age without a process, is what a kill left
RETRIES = 2  # times that a trial whose process was killed is tried again
LEAST_STARTUP, MOST_STARTUP = 3, 10  # trials drawn at random before the sampler learns, and before any is pruned


class Store:
    """A study in a folder, and this process's part in it; use it in a `with` block.

    Args:
        folder: the search's folder, shared by all processes.
        greater_is_better: the direction, where the study is new.
    """

    def __init__(self, folder: Path, greater_is_better: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder = folder.resolve()  # a lock is a link: to a relative path it would dangle, and never go stale
        # the journal comes first: by it another process knows the folder as a search
        backend = JournalFileBackend(str(self.folder / JOURNAL))
        (self.folder / "turn").touch()
        self.storage = optuna.storages.JournalStorage(backend)
        self.study = optuna.create_study(
            storage=self.storage,
            study_name=STUDY,
            direction="maximize" if greater_is_better else "minimize",
            load_if_exists=True,
        )
        self.maximize = self.study.direction == optuna.study.StudyDirection.MAXIMIZE
        self.worker = f"{_machine()}.{os.getpid()}.{_birth(os.getpid())}.{secrets.token_hex(3)}"
        self._marker = self.folder / "workers" / self.worker
        self._ended = threading.Event()

    def __enter__(self) -> "Store":
        self._marker.parent.mkdir(exist_ok=True)
        self._marker.touch()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._marker.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._marker)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of all processes; what is done inside takes far less than its 30 s of grace."""
        lock = JournalFileSymlinkLock(str(self.folder / "turn"))
        lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def is_alive(self, worker: str) -> bool:
        """Return whether a process is at work: on this machine by its id, elsewhere by its marker's age."""
        if worker == self.worker:
            return True
        marker = self._marker.with_name(worker)
        with contextlib.suppress(FileNotFoundError):
            machine, pid, birth, _ = worker.rsplit(".", 3)
            if machine == _machine() and _birth(int(pid)) != int(birth):
                marker.unlink(missing_ok=True)
                return False
            os.utime(self._marker)  # both times are then of the same clock, the file server's
            return self._marker.stat().st_mtime - marker.stat().st_mtime < SILENT_SECONDS
        return False

    def claim(self, task: str) -> bool:
        """Return whether this process shall do a task that only one does at a time."""
        with self.lock():
            other = self.study.user_attrs.get(task)
            if other and self.is_alive(other):
                return other == self.worker
            self.study.set_user_attr(task, self.worker)
            return True

    def trials(self) -> list[FrozenTrial]:
        """Return all trials as the store knows them now."""
        return self.study.get_trials(deepcopy=False)

    def recover(self) -> list[int]:
        """Return the numbers of trials whose process was killed; each is queued again, at most twice."""
        lost = []
        for trial in self.trials():
            if trial.state is not TrialState.RUNNING or self._is_tended(trial):
                continue
            if self.put_back(trial.number, "its process was killed", limited=True):
                lost.append(trial.number)
        return lost

    def put_back(self, number: int, reason: str, limited: bool = False) -> bool:
        """End a running trial without a result and queue its settings again; return whether it was running.

        With `limited`, a trial that was lost twice before counts as failed.
        """
        trial = self.trials()[number]  # anew, since its process may have finished it, and then ended, by now
        if trial.state is not TrialState.RUNNING:
            return False
        attempts = trial.user_attrs.get("attempts", 0) + limited
        again = attempts <= RETRIES
        self.note(number, "problem", reason)
        self.note(number, "lost", again)
        self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        if again:
            kept = {"defaults": True} if trial.user_attrs.get("defaults") else {}
            self.study.enqueue_trial(trial.params, user_attrs=kept | {"attempts": attempts, "again": number})
        return True

    def note(self, number: int, key: str, value: Any) -> None:
        """Keep something with a trial, unless it is finished: given up by another process while this one slept."""
        study_id = self.storage.get_study_id_from_name(STUDY)
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, number)
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self.storage.set_trial_user_attr(trial_id, key, value)

    def next_trial(
        self, parameters: Sequence[Parameter], wanted: int | None, seed: int
    ) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """Return the next trial with what it draws, or None when the study has all it was asked for."""
        with self.lock():
            self.recover()
            if wanted is not None and len(self.counted()) >= wanted:
                return None
            self._queue_defaults(parameters)
            # a new sampler each time, so that a search that was interrupted draws as if it had not been
            self.study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=_startup(wanted), seed=seed + len(self.counted())
            )
            self.study.pruner = optuna.pruners.MedianPruner(n_startup_trials=_startup(wanted))
            trial = self.study.ask()
            trial.set_user_attr("worker", self.worker)
            drawn = draw(trial, parameters, bool(trial.user_attrs.get("defaults")))
            return trial, drawn

    def _queue_defaults(self, parameters: Sequence[Parameter]) -> None:
        """Queue the bundle's own settings, unless they were tried, or are being tried."""
        tried = [t for t in self.trials() if t.user_attrs.get("defaults") and t.state is not TrialState.FAIL]
        if not tried:
            self.study.enqueue_trial(default_draw(parameters), user_attrs={"defaults": True})

    def counted(self) -> list[FrozenTrial]:
        """Return the trials that count: finished or running, not those that were lost and are tried again."""
        return [t for t in self.trials() if t.state is not TrialState.WAITING and not t.user_attrs.get("lost")]

    def running(self) -> list[FrozenTrial]:
        """Return the trials that a process is at."""
        return [t for t in self.trials() if t.state is TrialState.RUNNING]

    def seconds(self) -> list[float]:
        """Return how long each complete trial took."""
        return [t.user_attrs["seconds"] for t in self.trials() if t.state is TrialState.COMPLETE]

    def best(self) -> FrozenTrial | None:
        """Return the best complete trial; the earliest of equals."""
        complete = [t for t in self.trials() if t.state is TrialState.COMPLETE and t.value is not None]
        sign = -1.0 if self.maximize else 1.0
        return min(complete, key=lambda t: (sign * float(t.value or 0.0), t.number), default=None)

    def _is_tended(self, trial: FrozenTrial) -> bool:
        """Tell whether a running trial's process lives."""
        worker = trial.user_attrs.get("worker")
        if worker:
            return self.is_alive(worker)
        return trial.datetime_start is not None and time.time() - trial.datetime_start.timestamp() < SILENT_SECONDS


def _startup(wanted: int | None) -> int:
    """Return how many trials are drawn at random first: a quarter, from 3 to 10."""
    return MOST_STARTUP if wanted is None else max(LEAST_STARTUP, min(MOST_STARTUP, wanted // 4))


def _machine() -> str:
    """Return this machine's name, with the container's part of it where Linux tells."""
    try:
        return f"{socket.gethostname()}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return socket.gethostname()


def _birth(pid: int) -> int:
    """Return when a process began, since its id may be another's now; 0 when there is none."""
    try:
        return int(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0
