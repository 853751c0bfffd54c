"""A process that times one setting: sessions in one process disturb each other."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.benchmark.timer import Job, Timer
from vitdeploy.errors import UnavailableError, VitDeployError
from vitdeploy.system.quiet import quiet_libraries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextlib.contextmanager
def worker(job: Job, timer: type[Timer] = Timer) -> Iterator[Callable[..., Any]]:
    """Start a process for a job; yield a function that sends a request to its timer and returns the answer.

    It is spawned, so a script that measures needs the usual `if __name__ == "__main__":`. It does not outlive the
    block.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, timer))

    def ask(*request: Any) -> Any:
        try:
            ours.send(request)
            answer = ours.recv()
        except (EOFError, ConnectionError) as exc:
            process.join(timeout=10)
            raise UnavailableError(
                f"the process that times {job.setting} ended with exit code {process.exitcode}",
                what=str(job.setting), found=process.exitcode,
                hint="see its messages on stderr; free memory, or put what a script calls under "
                'if __name__ == "__main__":',
            ) from exc  # fmt: skip
        if isinstance(answer, VitDeployError):
            raise answer
        return answer

    with ours:
        # Close `theirs` here once the worker has its copy, so that each side notices the other's end.
        with theirs, _signals_wait():
            process.start()
        try:
            # Not an argument of the process: its start would wait forever for one that ended before it read all.
            with contextlib.suppress(ConnectionError):  # it ended; `ask` says so
                ours.send(job)
            yield ask
        finally:
            process.kill()
            process.join()


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Block signals: a half-started process would read half of its job and report an error.

    Processes started here inherit the mask.
    """
    if not hasattr(signal, "pthread_sigmask"):  # not POSIX
        yield
        return
    resource_tracker.ensure_running()  # otherwise the first process start does this, and lets signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """End this process with its parent, even in the middle of a long request."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _serve(connection: Connection, timer_type: type[Timer]) -> None:
    """Answer each request after the job (a method name of the timer, its arguments) with the result or an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this process
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    quiet_libraries()  # as the command line does
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        timer = timer_type(connection.recv())
        while True:
            name, *arguments = connection.recv()
            try:
                answer = getattr(timer, name)(*arguments)
            except VitDeployError as exc:
                answer = exc
            connection.send(answer)
