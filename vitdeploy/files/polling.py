"""Wait for another process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_POLL_SECONDS = 0.05


def poll(attempt: Callable[[], T | None], seconds: float) -> T | None:
    """Call `attempt` until it returns a value, for at most `seconds`; None after the timeout."""
    last = time.monotonic() + seconds
    while (result := attempt()) is None and time.monotonic() < last:
        time.sleep(_POLL_SECONDS)
    return result
