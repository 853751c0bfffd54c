"""Processes that were forked: their first act, and objects that must not be destroyed in them.

A child has the parent's memory and, of its threads, the one that called fork: an engine's own threads are not there.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def first_in_child(callback: Callable[[], None]) -> Callable[[], None]:
    """A decorator: call `callback` in every forked child before anything else; where a system cannot fork, never.

    A server that forks in C, such as uWSGI, calls it as well: through `PyOS_AfterFork_Child`.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=callback)
    return callback


def keep_until_exit(kept: object) -> None:
    """Leak an object, with all that it refers to, on purpose: it outlives the interpreter, unlike one in a global.

    For an engine whose destructor waits for threads that a child does not have. The memory is shared with the parent.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
