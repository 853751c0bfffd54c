"""Progress of a command on standard error: a bar on a terminal, periodic lines in a log."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

import click

from vitdeploy.cli.verbosity import is_quiet, is_verbose
from vitdeploy.errors import UsageError, shown
from vitdeploy.system.closing import ClosedOnExit
from vitdeploy.system.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EVERY_VARIABLE = "VITDEPLOY_PROGRESS_EVERY"
_EVERY_S = 10.0
_LONGEST_NAME = 32


class CommandProgress(Progress, ClosedOnExit):
    """Shows the steps of a command and their progress.

    - On a terminal: a line per step, and a bar with the step's name and the time left, from the first advance until it
      is done. No live display hides a download's progress bars. Steps that begin meanwhile are printed above.
    - In a log: a line every ten seconds, so that short work prints nothing. VITDEPLOY_PROGRESS_EVERY sets the interval
      in seconds; 0 prints none.
    - With --verbose a line per step, with --quiet nothing.

    Args:
        what: Counted things, such as "images".

    Raises:
        UsageError: If the variable is not a number of seconds.
    """

    def __init__(self, what: str) -> None:
        self._what, self._every_s = what, _seconds()
        self._quiet, self._verbose = is_quiet(), is_verbose()
        self._terminal = sys.stderr is not None and sys.stderr.isatty()  # it is None if it was closed
        self._start = self._step_start = time.monotonic()
        self._step, self._done = "", (0, 0)
        self._bar = contextlib.ExitStack()
        self._update: Callable[[int, int], None] | None = None
        self._ended = threading.Event()
        self._logger: threading.Thread | None = None

    def step(self, text: str) -> None:
        self._step, self._done, self._step_start = text, (0, 0), time.monotonic()
        if self._quiet:
            return
        if self._verbose:
            self._print(f"[{time.monotonic() - self._start:7.1f} s] {text}")
        elif self._terminal:
            self._print(f"{text} …")
        self._log()

    def advance(self, done: int, total: int) -> None:
        if self._done[0] > done:  # another pass
            self._step_start = time.monotonic()
        self._done = done, total
        if self._quiet:
            return
        self._log()
        if self._terminal:
            if self._update is None:
                self._update = self._bar.enter_context(_bar(self._step, self._what, total))
            self._update(done, total)
            if done == total:
                self._close_bar()

    def close(self) -> None:
        self._close_bar()
        self._ended.set()
        if self._logger is not None:
            self._logger.join()

    def _close_bar(self) -> None:
        self._bar.close()
        self._update = None

    def _log(self) -> None:
        """Print lines from now on, unless there are bars."""
        if self._logger is None and self._every_s and not self._terminal:
            self._logger = threading.Thread(target=self._print_lines, name="progress", daemon=True)
            self._logger.start()

    def _print_lines(self) -> None:
        while not self._ended.wait(self._every_s):
            self._print(self._line())

    def _line(self) -> str:
        (done, total), now = self._done, time.monotonic()
        line = self._step or "working"
        if total:
            line += f": {done} of {total} {self._what}"
        line += f", {_duration(now - self._start)} so far"
        if 0 < done < total:
            line += f", about {_duration((now - self._step_start) * (total - done) / done)} left"
        return line

    @staticmethod
    def _print(line: str) -> None:
        click.echo(line, err=True)


def _seconds() -> float:
    text = os.environ.get(EVERY_VARIABLE, "")
    try:
        seconds = float(text or _EVERY_S)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= threading.TIMEOUT_MAX:
        problem = f"{EVERY_VARIABLE} is not a number of seconds: {shown(text)}"
        raise UsageError(problem, what=EVERY_VARIABLE, found=text, hint="0 prints no progress")
    return seconds


def _duration(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes else f"{left} s"


@contextlib.contextmanager
def _bar(name: str, what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    from rich import progress
    from rich.console import Console
    from rich.table import Column

    columns = (
        progress.TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", max_width=_LONGEST_NAME),
        ),
        progress.BarColumn(bar_width=None),
        progress.MofNCompleteColumn(),
        progress.TextColumn(what),
        progress.TimeRemainingColumn(),
        progress.TextColumn("left"),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)
