"""Tell a machine that ran out of memory, threads or open files from an input that is corrupt."""

from __future__ import annotations

import errno
import re

from vitdeploy.errors import ExhaustedError, first_line

_ERRNOS = {
    errno.ENOMEM: "memory",
    errno.EAGAIN: "threads",
    errno.EMFILE: "open files",
    errno.ENFILE: "open files",
}
# What libraries raise as errors of no kind of their own: Python's threading; ONNX Runtime's thread pool and arenas; the
# CPU allocator of torch on each system, and its maps of files; C++'s own bad_alloc inside a message.
_MESSAGES = (
    (re.compile(r"can't start new thread|pthread_create failed|thread creation failed", re.IGNORECASE), "threads"),
    (
        re.compile(
            r"std::bad_alloc|bad allocation|can't allocate memory|cannot allocate memory|not enough memory|"
            r"failed to allocate memory|unable to allocate|out of memory",
            re.IGNORECASE,
        ),
        "memory",
    ),
    (re.compile(r"too many open files", re.IGNORECASE), "open files"),
)
_ADVICE = {
    "memory": "free some, raise the limit of this process (ulimit -v, or the container's), or use a larger machine",
    "threads": "end other processes, raise the limit of threads or of memory (ulimit -u, ulimit -v, or the "
    "container's), or use fewer: OMP_NUM_THREADS",
    "open files": "raise the limit of open files: ulimit -n",
}


def lacking(exc: BaseException) -> str | None:
    """The resource that an error is about, "memory", "threads" or "open files"; None where it is about none."""
    if isinstance(exc, MemoryError):
        return "memory"
    if isinstance(exc, OSError) and exc.errno is not None:
        return _ERRNOS.get(exc.errno)
    return next((resource for pattern, resource in _MESSAGES if pattern.search(str(exc))), None)


def check_exhaustion(exc: BaseException, doing: str) -> None:
    """Raise ExhaustedError where a library failed for want of a resource, before its error is called another's fault.

    Args:
        exc: the library's error.
        doing: a phrase for the message, such as "loading model.onnx".
    """
    resource = lacking(exc)
    if resource is not None:
        raise exhausted(resource, doing, exc) from exc


def exhausted(resource: str, doing: str, exc: BaseException) -> ExhaustedError:
    """The error for a resource that `lacking` names."""
    reason = first_line(exc)
    return ExhaustedError(
        f"{doing}: this machine has not enough {resource}{f' ({reason:.200})' if reason else ''}; {_ADVICE[resource]}"
    )
