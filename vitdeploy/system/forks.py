"""Forked processes: callbacks on fork, work in helper threads, and objects that outlive the interpreter.

A child has the parent's memory, but only the thread that called fork: an engine's threads are missing.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import queue
import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

P = ParamSpec("P")
T = TypeVar("T")

_FORKED = 0x40  # PF_FORKNOEXEC in Linux's include/linux/sched.h


def _find_forked() -> int | None:
    """The main thread if this process was forked before it imported this module, by Linux's flag."""
    with contextlib.suppress(OSError, IndexError, ValueError):  # another system
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        if int(fields[6]) & _FORKED:  # the 9th, proc_pid_stat(5)
            return threading.main_thread().ident
    return None


_forked: int | None = _find_forked()  # the thread of a child that called fork
_jobs: queue.SimpleQueue[Callable[[], None]] | None = None  # of that thread's helper, once there is one


def first_in_child(callback: Callable[[], None]) -> Callable[[], None]:
    """Decorator: call `callback` in every forked child before anything else; never on a system without fork.

    It also runs in a server that forks in C, such as uWSGI, through `PyOS_AfterFork_Child`.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=callback)
    return callback


@first_in_child
def _note_fork() -> None:
    global _forked, _jobs
    _forked, _jobs = threading.get_ident(), None


def call_with_threads(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `work`, which uses OpenMP; in a forked child's main thread, run it in a helper thread instead.

    GNU's OpenMP, torch's on Linux, keeps a team of threads for each computing thread (libgomp/team.c). The thread that
    called fork keeps its team, whose threads are missing in the child, and would wait for them forever; a new thread
    starts a new team. The helper is created at the first call, and stays until the process exits: a thread that ends
    while the process forks again can leave a lock to the grandchild. It has torch's settings for a new thread: the
    caller's grad mode, autocast and default device do not apply to `work`, nor does a later torch.set_num_threads.

    A signal interrupts the call only when `work` is done, as with any call of compiled code.
    """
    global _jobs
    if _forked is None or _forked != threading.get_ident():
        return work(*args, **kwargs)
    if _jobs is None:
        _jobs = queue.SimpleQueue()
        threading.Thread(target=_serve, args=(_jobs,), name="vitdeploy-after-fork", daemon=True).start()
    from concurrent import futures  # only in a child

    result: futures.Future[T] = futures.Future()

    def fulfil() -> None:
        try:
            result.set_result(work(*args, **kwargs))
        except BaseException as exc:  # noqa: BLE001  (raised in the caller)
            result.set_exception(exc)

    _jobs.put(fulfil)
    interrupt: BaseException | None = None
    while not result.done():
        try:
            futures.wait([result])
        except BaseException as exc:  # noqa: BLE001  (of a handler of signals: raised below)
            interrupt = exc
    if interrupt is not None:
        raise interrupt
    return result.result()


def _serve(jobs: queue.SimpleQueue[Callable[[], None]]) -> None:
    while True:
        jobs.get()()


def with_threads(work: Callable[P, T]) -> Callable[P, T]:
    """Decorator: `call_with_threads`."""

    @functools.wraps(work)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return call_with_threads(work, *args, **kwargs)

    return call


class ThreadPool:
    """Threads that start on first use, stay until `close`, and start anew in a forked child.

    All methods are thread-safe; callers share the threads. A function must not call `map` of the same pool.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._closed = False
        self._executor: ThreadPoolExecutor | None = None
        self._threads = 0
        self._forget_threads()
        _pools.add(self)

    def map(self, function: Callable[..., T], *arguments: Sequence[Any], threads: int) -> Generator[T, None, None]:
        """Yield results in order; close the iterator if it is left early.

        On an error, and when it is closed, it waits for the calls in progress, which use the caller's arguments. Once
        the pool is closed, the calling thread does the work.

        Args:
            function: Called once per item.
            arguments: One sequence per argument, of equal lengths.
            threads: Size of the pool; threads of another size are replaced when they have done their work.
        """
        futures = self._submit(function, list(zip(*arguments, strict=True)), threads)
        if futures is None:
            yield from map(function, *arguments)
            return
        try:
            while futures:
                result = futures[0].result()
                futures.popleft()  # holds the result
                yield result
        finally:
            _end_all(futures)  # and forget them: an error, which holds this frame, would hold itself and the arguments

    def close(self) -> None:
        """Wait for the work in progress, and for the threads' end."""
        with self._lock:
            self._closed, executor = True, self._executor
            self._executor = None
        if executor is not None:
            executor.shutdown()

    def _submit(
        self, function: Callable[..., T], calls: Sequence[tuple[Any, ...]], threads: int
    ) -> collections.deque[Future[T]] | None:
        from concurrent.futures import ThreadPoolExecutor  # not needed for one image

        with self._lock:
            if self._closed:
                return None
            if self._executor is None or threads != self._threads:
                if self._executor is not None:
                    self._executor.shutdown(wait=False)
                self._executor, self._threads = ThreadPoolExecutor(threads, self._name), threads
            return collections.deque(self._executor.submit(function, *call) for call in calls)

    def _forget_threads(self) -> None:
        """For a new pool, and for a forked child, which lacks the threads, and where another may have held the lock."""
        self._lock = threading.Lock()
        self._executor, self._threads = None, 0


def _end_all(futures: collections.deque[Future[T]]) -> None:
    """Cancel calls, wait for those in progress, and leave none in the deque."""
    for future in futures:
        future.cancel()
    while futures:
        if not futures[0].cancelled():
            futures[0].exception()
        futures.popleft()


_pools: weakref.WeakSet[ThreadPool] = weakref.WeakSet()


@first_in_child
def _forget_all_threads() -> None:
    for pool in tuple(_pools):
        pool._forget_threads()


def keep_until_exit(kept: object) -> None:
    """Leak an object and its references on purpose: unlike a global, it outlives the interpreter.

    For an engine whose destructor waits for threads that are missing in a child. The memory is shared with the parent.
    """
    import ctypes  # only in a child

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
