"""A progress bar with the time left, on a terminal; plain lines in a log."""

import sys
import time
from typing import Any

from ignite.engine import Engine, Events
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

LINE_SECONDS = 15.0


class ProgressBar:
    """Shows how far an engine is, with the time left.

    Args:
        title: what runs, such as `train`.
        unit: what is counted, such as `step` or `case`.
    """

    def __init__(self, title: str, unit: str) -> None:
        self.title = title
        self.unit = unit
        self.note = ""
        self.on_terminal = sys.stdout.isatty()
        self.bar: Progress | None = None
        self.task: Any = None
        self.total = 0
        self.first = 0
        self.began = self.told = 0.0

    def attach(self, engine: Engine) -> None:
        """Follow `engine` from its start to its end, an error included."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED, self._stop)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def tell(self, line: str) -> None:
        """Print a line above the bar."""
        if self.bar is not None:
            self.bar.console.print(line, highlight=False)
        else:
            print(line, flush=True)

    def _start(self, engine: Engine) -> None:
        self.total = (engine.state.max_epochs or 1) * (engine.state.epoch_length or 0)
        self.first = engine.state.iteration
        self.began = self.told = time.monotonic()
        if self.on_terminal:
            time_left = TimeRemainingColumn(table_column=Column(min_width=7, no_wrap=True))
            counts = (
                TextColumn("{task.description}"),
                BarColumn(12),
                MofNCompleteColumn(),
                TextColumn(self.unit + "s"),
            )
            rest = (time_left, TextColumn("left  {task.fields[note]}", table_column=Column(no_wrap=True)))
            self.bar = Progress(*counts, *rest, console=Console(), refresh_per_second=2, speed_estimate_period=120)
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=self.total, completed=self.first, note="")

    def _advance(self, engine: Engine) -> None:
        done = engine.state.iteration
        if self.bar is not None:
            self.bar.update(self.task, completed=done, note=self.note)
            return
        now = time.monotonic()
        if now - self.told >= LINE_SECONDS:
            self.told = now
            left = (now - self.began) / (done - self.first) * (self.total - done)
            self.tell(f"{self.title}: {self.unit} {done} of {self.total}, {format_seconds(left)} left  {self.note}")

    def _stop(self, _: Engine) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._stop(engine)
        raise error


def format_seconds(seconds: float) -> str:
    """Return a duration as `m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
