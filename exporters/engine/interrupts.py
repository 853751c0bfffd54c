"""Hold back signals while another library runs."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextlib.contextmanager
def interrupts_held() -> Iterator[list[int]]:
    """Hold back SIGINT, SIGTERM and SIGHUP until the block ends.

    A library that calls back into Python would swallow a handler's exception. Outside the main thread, where no handler
    runs, nothing is held.

    Yields:
        The signals received so far, so that the work can end early.
    """
    came: list[int] = []
    handlers: dict[int, Any] = {}

    def hold(number: int, _frame: object) -> None:
        came.append(number)

    if threading.current_thread() is threading.main_thread():
        # A handler not installed from Python could not be restored, and an ignored signal ends nothing.
        current = {number: signal.getsignal(number) for number in _ENDING}
        handlers = {number: action for number, action in current.items() if action not in (None, signal.SIG_IGN)}
    try:
        for number in handlers:
            signal.signal(number, hold)
        yield came
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)
