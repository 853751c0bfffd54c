"""Progress of a builder, from the library's monitor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

OF = 1000  # total, as reported


@dataclasses.dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildProgress:
    """Nested phases with numbers of steps, combined into one monotonic number.

    Args:
        report: Called with the progress and the total, `OF`.
    """

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self._report = report
        self._phases: dict[str, _Phase] = {}
        self._told = -1

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._phases[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, index: int) -> None:
        """Record a completed step of a phase; steps start at 0."""
        self._phases[name].done = max(self._phases[name].done, index + 1)
        self._tell()

    def finish(self, name: str) -> None:
        phase = self._phases.pop(name)
        if phase.parent is None:
            self._tell(1.0)

    def _tell(self, share: float | None = None) -> None:
        now = int(OF * (self._share(None) if share is None else share))
        if now > self._told:
            self._told = now
            self._report(now, OF)

    def _share(self, parent: str | None) -> float:
        """Fraction of a phase's current step, or of the total, that its subphases have completed."""
        below = [(name, phase) for name, phase in self._phases.items() if phase.parent == parent]
        shares = [min((phase.done + self._share(name)) / phase.steps, 1.0) for name, phase in below]
        return min(shares, default=0.0)


def make_monitor(trt: Any, report: Callable[[int, int], None], came: Sequence[int]) -> Any:
    """The library's monitor, which calls `report`, and ends the build after a signal.

    An exception cannot pass through the library: the build is cancelled, and the exception is stored as the monitor's
    `error`.
    """
    progress = BuildProgress(report)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base is known when the library is
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._guarded(progress.start, phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._guarded(progress.step, phase_name, step)
            return self.error is None and not came

        def phase_finish(self, phase_name: str) -> None:
            self._guarded(progress.finish, phase_name)

        def _guarded(self, function: Callable[..., None], *arguments: Any) -> None:
            try:
                function(*arguments)
            except BaseException as exc:  # noqa: BLE001  (raised again after the build)
                self.error = self.error or exc

    return Monitor()
