"""Limit the runs of a session at a time."""

from __future__ import annotations

import collections
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class Turns:
    """A context manager that at most `limit` threads are in at a time, first come, first served.

    `threading.Semaphore` is not fair: a thread that leaves and comes back can overtake those that wait.

    Args:
        limit: Threads at a time, at least 1.
    """

    def __init__(self, limit: int) -> None:
        self._lock, self._free = threading.Lock(), limit
        self._waiting: collections.deque[threading.Lock] = collections.deque()  # one each, held until its turn

    def __enter__(self) -> None:
        with self._lock:
            if self._free:  # then nobody waits
                self._free -= 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            turn.acquire()
        except BaseException:  # raised by a signal handler
            with self._lock:
                has_turn = turn not in self._waiting
                if not has_turn:
                    self._waiting.remove(turn)
            if has_turn:
                self.__exit__(None, None, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1
