"""Wait for something that another process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_POLL_SECONDS = 0.05


def poll(attempt: Callable[[], T | None], seconds: float) -> T | None:
    """Call `attempt` until it returns something, for at most so many seconds; None where it did not."""
    last = time.monotonic() + seconds
    while (result := attempt()) is None and time.monotonic() < last:
        time.sleep(_POLL_SECONDS)
    return result
