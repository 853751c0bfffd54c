"""Give a worker one input after another, end it where it hangs or takes too much, and keep each input that failed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Self

MOST_BYTES = 2 << 30  # that one input may add to the process
MOST_SECONDS = 30.0  # for one input; on a quiet machine the slowest takes about two
_START_S = 90.0  # a class is imported and set up with its first input
_REAL_S = 180.0
_LOOK_S = 0.05
_TESTS, _ROOT = Path(__file__).parents[1], Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Failure:
    """An input with a wrong outcome.

    Attributes:
        name: of the class.
        seed: of the run.
        index: of the input.
        note: how it was made.
        problem: the outcome.
        kept: the folder that holds it.
        trace: the traceback, where there was one.
    """

    name: str
    seed: int
    index: int
    note: str
    problem: str
    kept: Path
    trace: str | None = None

    def __str__(self) -> str:
        """With the command that makes the input again, alone."""
        again = f"make fuzz CLASS={self.name} SEED={self.seed} INDEX={self.index}"
        return f"{self.name} {self.index} ({self.note}): {self.problem}\n    kept in {self.kept}; again: {again}"


@dataclasses.dataclass
class Summary:
    """The outcomes of one class."""

    name: str
    inputs: int = 0
    accepted: int = 0
    refused: dict[int, int] = dataclasses.field(default_factory=dict)
    slowest: tuple[float, int] = (0.0, 0)
    most_bytes: tuple[int, int] = (0, 0)
    failures: list[Failure] = dataclasses.field(default_factory=list)

    def add(self, index: int, found: dict[str, Any]) -> None:
        self.inputs += 1
        if found["code"] == 0:
            self.accepted += 1
        elif found["code"] is not None:
            self.refused[found["code"]] = self.refused.get(found["code"], 0) + 1
        self.slowest = max(self.slowest, (found["seconds"], index))
        self.most_bytes = max(self.most_bytes, (found["peak_bytes"], index))

    def __str__(self) -> str:
        refused = ", ".join(f"{code}: {count}" for code, count in sorted(self.refused.items())) or "none"
        return (
            f"{self.name:<12} {self.inputs:>6} inputs, {self.accepted:>5} accepted, refused {refused}; "
            f"slowest {self.slowest[0]:.1f} s (input {self.slowest[1]}), "
            f"peak {self.most_bytes[0] / 1e6:.0f} MB (input {self.most_bytes[1]}), {len(self.failures)} failed"
        )


def fuzz(
    worker: Worker,
    name: str,
    indices: Iterable[int],
    *,
    real_every: int = 0,
    on_failure: Callable[[Failure], None] = lambda _failure: None,
) -> Summary:
    """Run inputs of a class.

    Args:
        worker: what reads them.
        name: of the class.
        indices: of the inputs; the same index is the same input, whatever else is run.
        real_every: one input in so many also goes through the command in a process of its own; 0 for none.
        on_failure: called with each failure as it happens.
    """
    summary = Summary(name)
    for index in indices:
        answer = worker.ask(name, index, real=bool(real_every) and index % real_every == 0)
        summary.add(index, answer)
        if answer["problem"] is None and answer["peak_bytes"] > worker.most_bytes:
            answer["problem"] = f"took {answer['peak_bytes'] / 1e9:.1f} GB"
        if answer["problem"] is not None:
            failure = worker.keep(name, index, answer)
            summary.failures.append(failure)
            on_failure(failure)
    return summary


class Worker:
    """A process that reads inputs, started again where one ended it. A context manager.

    Args:
        work: a folder with the undamaged files in `base`; failed inputs go into its `failures`.
        seed: of all inputs.
        seconds: for one input.
        most_bytes: that one input may add to the process.
    """

    def __init__(
        self, work: Path, seed: int = 0, *, seconds: float = MOST_SECONDS, most_bytes: int = MOST_BYTES
    ) -> None:
        self.most_bytes = most_bytes
        self._work, self._seed, self._seconds = work, seed, seconds
        self._scratch = work / "scratch"
        self._process: subprocess.Popen[str] | None = None
        self._reports = -1
        self._ready: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
        _remove(self._scratch)

    def ask(self, name: str, index: int, *, real: bool = False) -> dict[str, Any]:
        """The outcome of one input, whatever becomes of the process."""
        _remove(self._scratch)
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps([name, index, real]) + "\n")
        process.stdin.flush()
        limit = (self._seconds if name in self._ready else _START_S) + (_REAL_S if real else 0)
        start, base_bytes = time.monotonic(), _rss(process.pid)
        lines, problem = b"", None
        while problem is None:
            if select.select([self._reports], [], [], _LOOK_S)[0]:
                part = os.read(self._reports, 1 << 16)
                lines += part
                if lines.count(b"\n") == 2:
                    self._ready.add(name)
                    return _merged(lines)
                if not part:
                    problem = f"the process ended with {process.wait()}"
            elif name in self._ready and _rss(process.pid) - base_bytes > self.most_bytes:
                problem = f"took more than {self.most_bytes / 1e9:.1f} GB"
            elif time.monotonic() - start > limit:
                problem = f"no end after {limit:.0f} s"
        self._end()
        ended = {"code": None, "seconds": time.monotonic() - start, "peak_bytes": 0, "problem": problem, "trace": None}
        return {"note": "", "args": []} | _merged(lines) | ended

    def keep(self, name: str, index: int, found: dict[str, Any]) -> Failure:
        """Keep the last input, and its outcome beside it."""
        kept = self._work / "failures" / f"{name.rpartition(':')[2]}-{self._seed}-{index}"
        _remove(kept)
        kept.parent.mkdir(exist_ok=True)
        if self._scratch.exists():
            self._scratch.rename(kept)
        else:
            kept.mkdir()
        (kept.parent / f"{kept.name}.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
        return Failure(name, self._seed, index, found["note"], found["problem"], kept, found["trace"])

    def _start(self) -> subprocess.Popen[str]:
        self._reports, write = os.pipe()
        home = self._work / "home"
        home.mkdir(exist_ok=True)
        path = os.pathsep.join(map(str, (_ROOT, _TESTS, _TESTS / "support")))
        folders = {"PYTHONPATH": path, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
        settings = dict.fromkeys(("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "OMP_NUM_THREADS"), "1")
        environment = {**os.environ, **folders, **settings}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fuzz.worker", str(self._work / "base"), str(self._seed), str(write)],
            stdin=subprocess.PIPE, pass_fds=[write], env=environment, text=True, cwd=_ROOT,
        )  # fmt: skip
        os.close(write)
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            os.close(self._reports)
        self._process, self._ready = None, set()


def _merged(lines: bytes) -> dict[str, Any]:
    """The objects of whole lines of JSON, as one."""
    merged: dict[str, Any] = {}
    for line in lines.split(b"\n")[:-1]:
        merged |= json.loads(line)
    return merged


def _rss(pid: int) -> int:
    """Resident bytes of a process; 0 where it has ended."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _remove(folder: Path) -> None:
    """Remove what an input left, whatever its permissions are."""
    if folder.exists():
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(folder)
