"""Progress that tests read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.system.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable


class Told(Progress):
    """Records progress, and passes it to callbacks."""

    def __init__(
        self, on_step: Callable[[str], object] | None = None, on_advance: Callable[[int, int], object] | None = None
    ) -> None:
        self.steps: list[str] = []
        self.advances: list[tuple[int, int]] = []
        self._on_step, self._on_advance = on_step, on_advance

    def step(self, text: str) -> None:
        self.steps.append(text)
        if self._on_step is not None:
            self._on_step(text)

    def advance(self, done: int, total: int) -> None:
        self.advances.append((done, total))
        if self._on_advance is not None:
            self._on_advance(done, total)


class Interrupted(Progress):
    """Interrupts the work once this many images are done."""

    def __init__(self, after: int) -> None:
        self.after = after

    def advance(self, done: int, total: int) -> None:
        if done >= self.after:
            raise KeyboardInterrupt
