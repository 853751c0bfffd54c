"""The process that reads bad inputs: it receives an input's class and index on stdin, and answers in JSON on a pipe."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fuzz.cases import DAMAGED, FAILED, PASSED, UNAVAILABLE, USAGE, Case, InputClass, generator
from fuzz.classes import CLASSES
from vitdeploy.cli import main
from vitdeploy.errors import VitDeployError
from vitdeploy.system.quiet import quiet_libraries

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_DATA_BYTES = 8 << 30  # a backstop: the runner ends this process long before
_REAL_LIMIT_S = 120.0
_NOTE = re.compile(r"  cause: |\[ *[0-9]+\.[0-9] s\] |.*, [0-9]+ s so far$")  # of --verbose, and of a slow step
_KNOWN_CODES = frozenset({PASSED, FAILED, USAGE, UNAVAILABLE, DAMAGED})


class Answer(NamedTuple):
    """What came of one input: an exit code, standard output and error, a result, and a traceback if there was one."""

    code: int | None
    out: str
    err: str
    result: Any = None
    trace: str | None = None


def serve(base: Path, seed: int, report: int) -> None:
    """Answer until stdin ends. `base` has the undamaged files, and `scratch` beside it takes those of one input."""
    logging.getLogger("vitdeploy").addHandler(logging.NullHandler())  # our own notes are not looked at
    quiet_libraries()  # as in the process of the command line, but for warnings, which hint at a check that is missing
    for category in (UserWarning, RuntimeWarning):
        warnings.simplefilter("always", category)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # as the command line does
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_DATA_BYTES, _MOST_DATA_BYTES))
    scratch, made = base.parent / "scratch", dict[str, InputClass]()
    with os.fdopen(report, "w") as reports:
        for line in sys.stdin:
            name, index, real = json.loads(line)
            if name not in made:
                module, attribute = CLASSES.get(name, name).split(":")
                made[name] = getattr(importlib.import_module(module), attribute)(base)
            for answer in _run(made[name], name, seed, index, scratch, real):
                reports.write(json.dumps(answer) + "\n")
                reports.flush()


def _run(inputs: InputClass, name: str, seed: int, index: int, scratch: Path, real: bool) -> Iterator[dict[str, Any]]:
    """What the input is, which is known even if this process is ended meanwhile; then what came of it."""
    scratch.mkdir()
    os.chdir(scratch)
    case = inputs.make(generator(name, seed, index), scratch)
    yield {"note": case.note, "args": case.args}
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from now on: proc(5)
    before, start = _status("VmRSS"), time.perf_counter()
    answer = _call(case) if case.call is not None else _command(case.args)
    seconds, grown = time.perf_counter() - start, _status("VmHWM") - before
    problem = _judge(case, answer)
    if problem is None and real:
        problem = _judge_real(case, answer)
    os.chdir(scratch.parent)
    yield {"code": answer.code, "seconds": seconds, "peak_bytes": grown, "problem": problem, "trace": answer.trace}


def _status(key: str) -> int:
    """A size of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


def _call(case: Case) -> Answer:
    assert case.call is not None
    with _captured() as streams:
        try:
            result, code, trace = case.call(), PASSED, None
        except VitDeployError as exc:
            result, code, trace = None, exc.exit_code, None
            sys.stderr.write(f"Error: {' '.join(str(exc).split())}\n")
        except BaseException:  # noqa: BLE001  (that is what is looked for)
            result, code, trace = None, None, traceback.format_exc()
    return Answer(code, streams[0], streams[1], result, trace)


def _command(args: tuple[str, ...]) -> Answer:
    code: Any = None
    trace = None
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with _captured() as streams:
        try:
            main(list(args))
            code = PASSED
        except SystemExit as exc:
            code = exc.code if exc.code is not None else PASSED
        except BaseException:  # noqa: BLE001
            trace = traceback.format_exc()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return Answer(code, streams[0], streams[1], streams[0], trace)


@contextlib.contextmanager
def _captured() -> Iterator[list[str]]:
    """Standard output and error of this process, its libraries' too; the list is filled when the block ends."""
    streams: list[str] = []
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    files = [os.memfd_create(name) for name in ("out", "err")]
    for number, file in zip((1, 2), files, strict=True):
        os.dup2(file, number)
    try:
        yield streams
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor, file in zip((1, 2), saved, files, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
            with os.fdopen(file, "rb") as content:
                content.seek(0)
                streams.append(content.read().decode(errors="replace"))


def _judge(case: Case, answer: Answer) -> str | None:
    """The problem with the outcome of an input; None if there is none."""
    if answer.trace is not None:
        return f"traceback: {answer.trace.strip().splitlines()[-1][:300]}"
    if answer.code not in case.allowed:
        wanted = " or ".join(map(str, sorted(case.allowed)))
        return f"exit code {answer.code} in place of {wanted}: {(answer.err or answer.out)[-300:].strip()}"
    return _misprint(answer) or (case.check(answer.result) if answer.code == PASSED else None)


def _misprint(answer: Answer) -> str | None:
    """A refusal is one line, or click's words on how a command is used; what passes says nothing on stderr.

    A report that cannot be written has a line of its own before the refusal.
    """
    lines = [line for line in answer.err.splitlines() if not _NOTE.match(line)]
    if "Traceback" in answer.err:
        return f"traceback: {lines[-1][:300]}"
    tables = answer.code in (PASSED, FAILED, UNAVAILABLE)  # a check that failed or was skipped is told in a table
    refusals = [line for line in lines if " could not be written: " not in line] or lines
    one_line = len(refusals) == 1 and refusals[0].startswith("Error: ") and len(refusals[0]) > len("Error: ")
    of_click = answer.code == USAGE and lines and lines[0].startswith("Usage: ") and lines[-1].startswith("Error: ")
    if not ((one_line and answer.code != PASSED) or of_click or (tables and not lines)):
        return f"stderr, of exit code {answer.code}: {answer.err[:400]!r}"
    return None


def _judge_real(case: Case, answer: Answer) -> str | None:
    """The same input to the real command; where `answer` is of the library, an accepted one may still be refused."""
    command = [sys.executable, "-m", "vitdeploy", *case.args]
    if any("\0" in part for part in command):
        return None  # which no system passes on
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_REAL_LIMIT_S, check=False)
    if "Traceback" in done.stderr:
        return f"the command's traceback: {done.stderr.strip().splitlines()[-1][:300]}"
    if done.returncode not in _KNOWN_CODES:
        return f"the command's exit code {done.returncode}: {done.stderr[-300:]}"
    if done.returncode != answer.code and (case.call is None or answer.code != PASSED):
        return f"the command's exit code {done.returncode} in place of {answer.code}: {done.stderr[-300:]}"
    if done.returncode >= USAGE and not done.stdout and "Error: " not in done.stderr:
        return f"the command says no error: {done.stderr[-300:]!r}"
    return None


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
