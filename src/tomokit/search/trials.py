"""One trial: a training in a process of its own, which tells each validation and may be told to stop.

A process of its own, since a crash, a full memory or a deadline must end the trial and not the search. The
forkserver has imported MONAI once, so that a trial starts in a fraction of a second.
"""

import contextlib
import faulthandler
import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import monai.bundle
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from tomokit.errors import TomokitError

POLL_SECONDS = 0.05
# what every training imports; torch imports its compiler when it is told to be deterministic
PRELOADED = (
    "tomokit.checks",
    "tomokit.engines",
    "tomokit.inference",
    "tomokit.transforms",
    "monai.optimizers",
    "torch._inductor",
)
Report = Callable[[int, float], bool]


@dataclass
class Outcome:
    """What became of a process: `done`, `stopped` (by the report's answer), `failed`, or `late` (at the deadline).

    What was told to stop is `stopped`, however its process ends: its values are all that counts.
    """

    state: str = "failed"
    problem: str = ""
    seconds: float = 0.0
    values: dict[int, float] = field(default_factory=dict)  # the validation metric by epoch
    times: dict[str, float] = field(default_factory=dict)  # seconds: start, epoch, validation
    began: float = field(default_factory=time.monotonic)  # without the server's own start, which the first waits for


def run_training(files: Sequence[str], log: Path, report: Report, deadline: float | None = None) -> Outcome:
    """Return the outcome of training the merged config `files`.

    Args:
        files: train.yaml and its layers, in order.
        log: what the training prints goes to this file.
        report: gets each validation's epoch and metric; the training stops when it answers True.
        deadline: `time.monotonic()` at which the training is stopped.
    """
    return _supervise(_train, files, log, report, deadline)


def run_stage(files: Sequence[str], log: Path, deadline: float | None = None) -> Outcome:
    """Return the outcome of running the merged config `files` (an evaluation); its print goes to `log`."""
    return _supervise(_run, files, log, lambda epoch, value: False, deadline)


def _supervise(
    work: Callable[[Sequence[str], Connection], None],
    files: Sequence[str],
    log: Path,
    report: Report,
    deadline: float | None,
) -> Outcome:
    """Start a process, answer its reports, and see how it ends."""
    log.parent.mkdir(parents=True, exist_ok=True)
    own, other = _context().Pipe()
    process = _context().Process(target=_child, args=(work, [str(path) for path in files], str(log), other))
    outcome = Outcome()
    ended = False
    process.start()
    other.close()
    try:
        ended = _follow(own, report, deadline, outcome)
    finally:
        if not ended or outcome.state == "failed":
            process.terminate()
        process.join(10)
        process.kill()
        process.join()
        own.close()
        outcome.seconds = time.monotonic() - outcome.began
    if outcome.state == "failed" and not outcome.problem:
        outcome.problem = f"its process ended with exit code {process.exitcode} (see {log})"
    return outcome


def _follow(pipe: Connection, report: Report, deadline: float | None, outcome: Outcome) -> bool:
    """Return whether a process told that it ended; read what it tells until then, or until the time is over."""
    stopped = False
    while True:
        if deadline is not None and time.monotonic() > deadline:
            outcome.state = "stopped" if stopped else "late"
            return False
        try:
            if not pipe.poll(POLL_SECONDS):
                continue
            kind, content = pipe.recv()
        except (EOFError, OSError):
            outcome.state = "stopped" if stopped else "failed"
            return False  # the process is gone without a word
        if kind == "value":
            epoch, value = content
            outcome.values[epoch] = value
            stopped = stopped or report(epoch, value)
            with contextlib.suppress(OSError):
                pipe.send(stopped)
        elif kind == "times":
            outcome.times = content
        elif kind == "begun":
            outcome.began = time.monotonic()
        else:
            outcome.state, outcome.problem = ("stopped", "") if stopped else (kind, content)
            return True


def _context() -> Any:
    """Return how processes are started: from a server that has imported this module, where the system has one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *PRELOADED])
    return context


def _child(work: Callable[[Sequence[str], Connection], None], files: Sequence[str], log: str, pipe: Connection) -> None:
    """Do the work in a new process, its output in the log; tell how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the search's own business
    with Path(log).open("a", encoding="utf-8") as file, _printing_to(file.fileno()):
        faulthandler.enable(file)
        try:
            pipe.send(("begun", ""))
            work(files, pipe)
            pipe.send(("done", ""))
        except BaseException as error:
            traceback.print_exc()
            with contextlib.suppress(OSError):
                pipe.send(("failed", _explain(error)))


@contextlib.contextmanager
def _printing_to(descriptor: int) -> Iterator[None]:
    """Send standard output and error, those of libraries in C too, to a file."""
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    yield
    sys.stdout.flush()


def _train(files: Sequence[str], pipe: Connection) -> None:
    """Train, telling each validation."""
    config_file = list(files)  # the config's check looks for this name to tell which file a mistake is in
    marks = {"begun": time.monotonic()}
    workflow = ConfigWorkflow(config_file=config_file, workflow_type="train")
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train::trainer")
    evaluator = workflow.parser.get_parsed_content("validate::evaluator")

    def mark(_: Any, name: str) -> None:
        marks.setdefault(name, time.monotonic())

    def tell(engine: Any) -> None:
        if "validated" not in marks:
            mark(engine, "validated")
            pipe.send(("times", _times(marks)))
        pipe.send(("value", (trainer.state.epoch, float(engine.state.metrics[engine.state.key_metric_name]))))
        if pipe.recv():
            trainer.terminate()

    trainer.add_event_handler(Events.EPOCH_STARTED, mark, "started")
    trainer.add_event_handler(Events.EPOCH_STARTED(once=2), mark, "epoch")
    evaluator.add_event_handler(Events.STARTED, mark, "validating")
    evaluator.add_event_handler(Events.COMPLETED, tell)
    workflow.run()
    workflow.finalize()


def _times(marks: dict[str, float]) -> dict[str, float]:
    """Return how long the start, the first epoch and the first validation took, in seconds."""
    end = min(marks.get("epoch", math.inf), marks["validating"])
    return {
        "start": marks["started"] - marks["begun"],
        "epoch": end - marks["started"],
        "validation": marks["validated"] - marks["validating"],
    }


def _run(files: Sequence[str], _: Connection) -> None:
    """Run a config as the command does."""
    monai.bundle.run(config_file=list(files))


def _explain(error: BaseException) -> str:
    """Return what happened in a line: our own error's text where there is one, else the first cause's."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    own = next((str(link) for link in chain if isinstance(link, TomokitError)), None)
    text = " ".join((own or f"{type(chain[-1]).__name__}: {chain[-1]}").split())
    return text if len(text) <= 500 else text[:500] + " …"
