"""Limit the runs of a session at a time."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Turns:
    """At most `limit` threads have their turn at a time, first come, first served.

    `threading.Semaphore` is not fair: a thread that leaves and comes back can overtake those that wait. It also loses a
    place if a signal handler raises between the acquisition and the block. Here the state is the order of arrival
    alone, and its first `limit` threads have their turn: after such an exception, the next thread that comes or goes
    calls them.

    Args:
        limit: Threads at a time, at least 1; None for any number.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._order: list[threading.Lock] = []  # one each, which is held until its turn

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, which ends with the block."""
        if self._limit is None:
            yield
            return
        turn = threading.Lock()
        turn.acquire()
        try:
            self._order.append(turn)
            self._call_first()
            turn.acquire()
            yield
        finally:
            if turn in self._order:
                self._order.remove(turn)
            self._call_first()

    def _call_first(self) -> None:
        with self._lock:
            for turn in self._order[: self._limit]:
                if turn.locked():
                    turn.release()
