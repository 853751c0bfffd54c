"""The command line's process: streams, signals, and exit codes on errors."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vitdeploy.cli.annotations import annotate
from vitdeploy.cli.output import one_line, printable
from vitdeploy.cli.verbosity import is_verbose
from vitdeploy.errors import OutputError, VitDeployError, first_line
from vitdeploy.system.exhaustion import exhausted, lacking
from vitdeploy.system.quiet import DEBUG_VARIABLE, debugging

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

DEFECT = 70  # EX_SOFTWARE of sysexits.h: "an internal software error has been detected"
_FAILED, _UNAVAILABLE, _PACKAGE = 1, 3, Path(__file__).parents[1]
_EXIT_CODES = {"passed": 0, "failed": _FAILED, "skipped": _UNAVAILABLE}
_received: list[Interrupted] = []  # since `end_on_signals`


class Interrupted(SystemExit):
    """A signal asked the process to end; `code` is 128 plus its number, as in a shell."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


def end_on_signals() -> dict[int, Any]:
    """End as after any error on SIGINT, SIGTERM and SIGHUP, so that no partial output is left.

    Later signals are ignored, because they would interrupt the clean-up. A SIGHUP that is already ignored, as under
    nohup, stays ignored.

    Returns:
        Previous handlers, by signal.
    """
    ending = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ending.append(signal.SIGHUP)

    def stop(number: int, _frame: object) -> None:
        if not _received:
            _received.append(Interrupted(number))
            raise _received[0]

    _received.clear()
    return {signal_number: signal.signal(signal_number, stop) for signal_number in ending}


def guard_streams() -> None:
    r"""Handle failures of standard output and standard error in the command line's way.

    - The reader of standard output went away (`| head -1`): the work continues, output is dropped, and the exit code is
      unchanged.
    - Standard output is full or closed: an OutputError.
    - Standard error is full or closed: its output is dropped; the exit code is sufficient.

    A character that the encoding lacks is escaped as \x, \u or \U and its number. A closed descriptor is opened on the
    null device: otherwise the next opened file would take its number, and receive libraries' output.
    """
    closed = []
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            closed.append(descriptor)
    for descriptor in closed:
        null = os.open(os.devnull, os.O_RDWR)  # this is the lowest free one, unless another thread was faster
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)
        os.set_inheritable(descriptor, True)
    if sys.stdout is sys.__stdout__ and not _is_windows_console(sys.stdout):  # a test may have replaced it
        sys.stdout = _text(_StandardOutput(1, closed=1 in closed), sys.stdout)
    if sys.stderr is sys.__stderr__ and not _is_windows_console(sys.stderr):
        sys.stderr = _text(_StandardError(2, "wb", closefd=False), sys.stderr)


class _StandardOutput(io.FileIO):
    def __init__(self, descriptor: int, *, closed: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._was_closed = closed

    def write(self, data: Buffer) -> int:
        if self._was_closed:
            self._was_closed = False  # once: the buffer retries data that it could not write
            raise OutputError("cannot write to standard output: it is closed", where="standard output")
        try:
            return _write(super().write, self, data)
        except BrokenPipeError:
            _discard(self)
        except OSError as exc:
            _discard(self)
            raise OutputError(
                f"cannot write to standard output: {exc.strerror}", where="standard output", found=exc.strerror
            ) from exc
        return memoryview(data).nbytes


class _StandardError(io.FileIO):
    def write(self, data: Buffer) -> int:
        try:
            return _write(super().write, self, data)
        except OSError:
            _discard(self)
        return memoryview(data).nbytes


def _write(write: Callable[[Buffer], int | None], file: io.FileIO, data: Buffer) -> int:
    """Write, and wait on a non-blocking descriptor, which the parent process may have set."""
    while (count := write(data)) is None:
        select.select([], [file], [])
    return count


def _discard(file: io.FileIO) -> None:
    """Redirect the descriptor to the null device, for data still in buffers, C's included."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, file.fileno())
    os.close(null)


def _text(raw: io.FileIO, before: io.TextIOBase | None) -> io.TextIOWrapper:
    encoding = getattr(before, "encoding", None) or "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=raw.isatty() or raw.fileno() == 2
    )


def _is_windows_console(stream: io.TextIOBase | None) -> bool:
    """True for a Windows console: it shows any text, but bytes only in its code page."""
    return os.name == "nt" and stream is not None and stream.isatty()


def print_error(error: BaseException, more: str = "") -> int:
    """Print an error as one line on standard error; return its exit code.

    A vitdeploy error has its own code; refusals of the operating system and lack of memory have 3; a signal has 128
    plus its number; anything else is a bug, 70. With VITDEPLOY_DEBUG, the traceback precedes the line; with --verbose,
    the causes follow it.
    """
    text, code = explained(error)
    if sys.stderr is not None:
        if debugging():
            traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
        print(f"Error: {one_line(text + more)}", file=sys.stderr, flush=True)
        cause = error.__cause__
        while cause is not None and is_verbose():
            line = f"{type(cause).__name__} {first_line(cause)}"
            print(f"  cause: {printable(line):.400}", file=sys.stderr, flush=True)
            cause = cause.__cause__
        annotate(text + more)
    return code


def explained(error: BaseException) -> tuple[str, int]:
    """A description of the error for users, and its exit code.

    After a signal it is the signal's: a library whose import it interrupted raises an ImportError of its own.
    """
    error = _received[0] if _received else error
    again = f"set {DEBUG_VARIABLE}=1 for the traceback"
    if isinstance(error, VitDeployError):
        return str(error), error.exit_code
    if isinstance(error, Interrupted):
        return f"interrupted by {error.signal.name}", 128 + error.signal
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 128 + signal.SIGINT
    resource = lacking(error)
    if resource is not None:
        explained = exhausted(resource, f"vitdeploy stopped ({_place(error)})", error)
        return f"{explained}; {again}", explained.exit_code
    if isinstance(error, OSError) and error.errno is not None:
        name = "" if error.filename is None else f": {error.filename!s:.400}"
        return f"the operating system refused: {error.strerror or first_line(error)}{name}; {again}", _UNAVAILABLE
    what = f"{type(error).__name__} {first_line(error)}".strip()
    return (
        f"this is a defect in vitdeploy, please report it: {what:.400} ({_place(error)}); run the command again with "
        f"{DEBUG_VARIABLE}=1 for the traceback"
    ), DEFECT


def _place(error: BaseException) -> str:
    """The innermost line of vitdeploy's code in the error's traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)] or frames
    return f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}" if ours else "no traceback"


def conclude(status: str, *outputs: Callable[[], None]) -> NoReturn:
    """Write every output of a result, even if others fail, and exit.

    The exit code is 1 if the check failed, whatever else happened. Otherwise it is 70 for a bug in an output, 3 if an
    output failed, and the code of `status` (0 passed, 3 skipped) if all succeeded. Each failed output is reported in a
    line with the status, which standard output may not have received.
    """
    code = _EXIT_CODES[status]
    for give in outputs:
        try:
            give()
        except Exception as exc:  # noqa: BLE001  (told here in its line, so that the other outputs are given)
            printed = print_error(exc, f" (status: {status})")
            if code != _FAILED:
                code = max(code, DEFECT if printed == DEFECT else _UNAVAILABLE)
    sys.exit(code)
