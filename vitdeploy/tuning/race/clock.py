"""Time trials in turns, each setting in its own process."""

from __future__ import annotations

import contextlib
import math
import statistics
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vitdeploy.assess.benchmark.capacity import MOST_ALIVE, peak_bytes, usable_bytes
from vitdeploy.assess.benchmark.setting import Load
from vitdeploy.assess.benchmark.timer import Job, Round
from vitdeploy.assess.benchmark.worker import worker
from vitdeploy.errors import VitDeployError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from vitdeploy.tuning.race.trial import Trial
    from vitdeploy.tuning.working_folder import WorkingFolder

_TURN_S = 0.3  # seconds of a turn, of each kind of run
_FEWEST, _MOST = 3, 40  # runs of a turn


class Turn(NamedTuple):
    """Milliseconds of each run from image files, and of each on preprocessed input."""

    images_ms: tuple[float, ...]
    ready_ms: tuple[float, ...]


class Session(Protocol):
    """Processes that live at the same time and take turns.

    Attributes:
        problems: Why a trial cannot run, by trial.
    """

    problems: dict[Trial, str]

    def round(self, number: int, trials: Sequence[Trial]) -> Mapping[Trial, Turn]:
        """One turn of each trial, in this order; without those that cannot run."""


class Clock(Protocol):
    """Times trials."""

    def session(self, name: str) -> contextlib.AbstractContextManager[Session]:
        """A session; its name is unique in a tuning."""


class WorkerClock:
    """Times trials in processes of their own.

    Args:
        images: Encoded image files.
        most_alive: Processes at a time.
    """

    def __init__(self, images: tuple[bytes, ...], most_alive: int = MOST_ALIVE) -> None:
        self._images, self._most_alive = images, most_alive

    @contextlib.contextmanager
    def session(self, name: str) -> Iterator[Session]:  # noqa: ARG002  (names matter to a clock that remembers)
        session = _WorkerSession(self._images, self._most_alive, usable_bytes())
        try:
            yield session
        finally:
            session.close()


class _WorkerSession:
    """As many processes at a time as fit into memory; for another, the one that waited longest is ended."""

    def __init__(self, images: tuple[bytes, ...], most_alive: int, most_bytes: float) -> None:
        self._images, self._most_alive, self._most_bytes = images, most_alive, most_bytes
        self.problems: dict[Trial, str] = {}
        self._alive: dict[object, _Process] = {}  # the one that waited longest first

    def round(self, number: int, trials: Sequence[Trial]) -> Mapping[Trial, Turn]:  # noqa: ARG002
        turns: dict[Trial, Turn] = {}
        for trial in trials:
            if trial in self.problems:
                continue
            try:
                turns[trial] = self._process(trial).time(Load(trial.batch_size))
            except VitDeployError as exc:
                self.problems[trial] = str(exc)
        return turns

    def close(self) -> None:
        while self._alive:
            self._alive.pop(next(iter(self._alive))).close()

    def _process(self, trial: Trial) -> _Process:
        key = (trial.variant.sha256, trial.setting)
        process = self._alive.pop(key, None)
        if process is None:
            need = peak_bytes(trial.variant.bundle, trial.setting)
            while self._alive and (len(self._alive) >= self._most_alive or self._used_bytes + need > self._most_bytes):
                self._alive.pop(next(iter(self._alive))).close()
            process = _Process(Job(trial.variant.bundle, trial.setting, "cpu", self._images), need)
        self._alive[key] = process
        return process

    @property
    def _used_bytes(self) -> int:
        return sum(process.peak_bytes for process in self._alive.values())


class _Process:
    """A process that times one setting, opened at its first turn."""

    def __init__(self, job: Job, peak_bytes: int) -> None:
        self.peak_bytes = peak_bytes
        self._stack = contextlib.ExitStack()
        self._ask: Callable[..., Any] = self._stack.enter_context(worker(job))
        self._estimates: dict[Load, float] = {}  # ms of a run
        self._is_open = False

    def time(self, load: Load) -> Turn:
        if not self._is_open:
            self._ask("open")
            self._is_open = True
        if load not in self._estimates:
            self._ask("first_run", load)
            self._ask("warm_up", load)
            self._estimates[load] = statistics.median(self._ask("time", load, 1).images_ms)
        self._ask("pause")
        runs = max(_FEWEST, min(_MOST, math.ceil(1e3 * _TURN_S / self._estimates[load])))
        turn: Round = self._ask("time", load, runs)
        self._estimates[load] = statistics.median(turn.images_ms)
        return Turn(turn.images_ms, turn.ready_ms)

    def close(self) -> None:
        self._stack.close()


class RememberingClock:
    """A clock whose rounds outlive a killed process.

    Args:
        clock: Times the rounds that are not remembered.
        work: Keeps the rounds.
        identity: All that times depend on, except the trials, as plain values.
    """

    def __init__(self, clock: Clock, work: WorkingFolder, identity: Sequence[Any]) -> None:
        self._clock, self._work, self._identity = clock, work, list(identity)

    @contextlib.contextmanager
    def session(self, name: str) -> Iterator[Session]:
        with contextlib.ExitStack() as stack:
            yield _RememberingSession(
                lambda: stack.enter_context(self._clock.session(name)), self._work, [*self._identity, name]
            )


class _RememberingSession:
    def __init__(self, start: Callable[[], Session], work: WorkingFolder, identity: Iterable[Any]) -> None:
        self._start, self._work, self._identity = start, work, list(identity)
        self._session: Session | None = None
        self.problems: dict[Trial, str] = {}

    def round(self, number: int, trials: Sequence[Trial]) -> Mapping[Trial, Turn]:
        waiting = [trial for trial in trials if trial not in self.problems]
        key = ("round", self._identity, number, [trial.identity for trial in waiting])
        known = self._work.recall(*key)
        if known is None:
            if self._session is None:
                self._session = self._start()
            turns = self._session.round(number, waiting)
            known = [
                turns[trial] if trial in turns else self._session.problems[trial]
                for trial in waiting
            ]  # fmt: skip
            self._work.remember(known, *key)
        found = dict(zip(waiting, known, strict=True))
        self.problems |= {trial: value for trial, value in found.items() if isinstance(value, str)}
        return {trial: Turn(*map(tuple, value)) for trial, value in found.items() if not isinstance(value, str)}
