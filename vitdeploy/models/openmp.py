"""OpenMP, with which torch computes on the CPU: a fork loses its threads, and torch then waits for them for ever.

GNU's OpenMP keeps a set of threads for each thread that computes, from the first time on (libgomp/team.c). In a forked
child the thread that called fork still has its set, of threads that are not there; any new thread gets its own.
"""

from __future__ import annotations

import threading

import torch

from vitdeploy.errors import UsageError
from vitdeploy.forks import first_in_child


class _Threads(threading.local):
    """Whether this thread's set may have been started, and whether a fork lost it."""

    started = False
    lost = False


_threads = _Threads()


@first_in_child
def _lose() -> None:
    _threads.started, _threads.lost = False, _threads.started or _threads.lost


def check_openmp() -> None:
    """Raise UsageError where torch would wait for threads that a fork has lost."""
    if _threads.lost and torch.get_num_threads() > 1:
        raise UsageError(
            "torch computed before this process forked, with threads that are not in this process; open and run torch "
            "models after the fork only (with gunicorn --preload: in the post_fork hook), or call "
            "torch.set_num_threads(1) in this process"
        )


def use_openmp() -> None:
    """Note that this thread is about to compute.

    Raises:
        UsageError: see `check_openmp`.
    """
    check_openmp()
    _threads.started = _threads.started or torch.get_num_threads() > 1
