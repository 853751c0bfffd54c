"""The time limit, and work that ends when it is reached."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vitdeploy.system.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable


class TimeIsUpError(Exception):
    """The time for this part of the work is over; never leaves `vitdeploy.tuning`."""


class Budget:
    """Seconds since the start, and what is left of the limit.

    Args:
        limit_s: The limit.
        now: Clock in seconds.
    """

    def __init__(self, limit_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self.limit_s, self._now, self._start = limit_s, now, now()

    @property
    def spent_s(self) -> float:
        return self._now() - self._start

    def has(self, share: float) -> bool:
        """True until this share of the limit is spent."""
        return self.spent_s < share * self.limit_s

    def fits(self, seconds: float) -> bool:
        """True if work of this duration ends within the limit."""
        return self.spent_s + seconds <= self.limit_s

    def progress(self, outer: Progress, share: float) -> Progress:
        """Progress for `outer`, which raises `TimeIsUpError` at the first report after this share of the limit."""
        return _Limited(outer, self, share)


class _Limited(Progress):
    def __init__(self, outer: Progress, budget: Budget, share: float) -> None:
        self._outer, self._budget, self._share = outer, budget, share

    def step(self, text: str) -> None:
        self._check()
        self._outer.step(text)

    def advance(self, done: int, total: int) -> None:
        self._check()
        self._outer.advance(done, total)

    def _check(self) -> None:
        if not self._budget.has(self._share):
            raise TimeIsUpError
