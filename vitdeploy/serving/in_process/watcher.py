"""A thread that calls a function at regular times."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable


class Watcher:
    """Calls a method every `interval` seconds, from `interval` seconds on, while its object lives and until `end`."""

    def __init__(self, look: Callable[[], None], interval: float) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_call, args=(weakref.WeakMethod(look), interval, self._stop), name="vitdeploy-watcher", daemon=True
        )
        self._thread.start()
        # A thread that still opens an engine while the interpreter ends could crash the process.
        self._at_exit = weakref.finalize(self, _end, self._stop, self._thread, os.getpid())

    def end(self) -> None:
        """Wait for the call in progress."""
        self._at_exit()


def _call(look: weakref.WeakMethod[Callable[[], None]], interval: float, stop: threading.Event) -> None:
    while not stop.wait(interval):
        method = look()
        if method is None:
            return
        method()
        del method  # it holds the object


def _end(stop: threading.Event, thread: threading.Thread, process: int) -> None:
    if os.getpid() != process:
        return
    stop.set()
    if threading.current_thread() is not thread:
        thread.join()
