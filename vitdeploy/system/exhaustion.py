"""Distinguish a machine without memory, threads or open files from corrupt input."""

from __future__ import annotations

import errno
import re

from vitdeploy.errors import ExhaustedError, first_line

_ERRNOS = {errno.ENOMEM: "memory", errno.EAGAIN: "threads", errno.EMFILE: "open files", errno.ENFILE: "open files"}
# Texts in libraries' errors of no specific type, anchored to their position in the message: quoted file names and parts
# of a model can be anything.
_NUMBERS = {11: "threads", 12: "memory", 23: "open files", 24: "open files"}  # of Linux, in texts
_NUMBERED = re.compile(
    r"^open file failed because of errno (\d+) on "  # torch's archives
    r"|failed:system error number (\d+)$"  # ONNX Runtime's files
    r"|: [\w' ]+ \((?:os error )?(\d+)\)$"  # torch's maps of files; libraries in Rust
)
_MESSAGES = (
    (re.compile(r"^can't start new thread$"), "threads"),  # Python
    (re.compile(r"pthread_create failed, error code: \d+ error msg: [\w ]+$"), "threads"),  # ONNX Runtime
    (re.compile(r"^Thread creation failed: ", re.IGNORECASE), "threads"),
    (re.compile(r"(?:^|failed:)(?:std::bad_alloc|bad allocation)$"), "memory"),  # C++, inside other messages
    (re.compile(r"Failed to allocate memory for requested buffer of size \d+$"), "memory"),  # ONNX Runtime's arenas
    (
        re.compile(
            r"^(?:\[enforce fail at [\w.]+:\d+\] .{,40})?DefaultCPUAllocator: "
            r"(?:can't allocate memory|not enough memory): you tried to allocate \d+ bytes"
        ),
        "memory",
    ),  # torch
)
_WANT = {
    "memory": "this machine has not enough memory",
    "threads": "no more threads can be started",
    "open files": "too many files are open",
}
_ADVICE = {
    "memory": "free some, raise the limit of this process (ulimit -v, or the container's), or use a larger machine",
    "threads": "end other processes, raise the limit of threads or of memory (ulimit -u, ulimit -v, or the "
    "container's), or use fewer: OMP_NUM_THREADS",
    "open files": "raise the limit of open files: ulimit -n",
}


def lacking(exc: BaseException) -> str | None:
    """The exhausted resource behind an error, "memory", "threads" or "open files"; None for another error."""
    if isinstance(exc, MemoryError):
        return "memory"
    if isinstance(exc, OSError) and exc.errno is not None:
        return _ERRNOS.get(exc.errno)
    text = str(exc).strip()
    numbered = _NUMBERED.search(text)
    if numbered is not None:
        return _NUMBERS.get(int(numbered[numbered.lastindex or 0]))
    return next((resource for pattern, resource in _MESSAGES if pattern.search(text)), None)


def check_exhaustion(exc: BaseException, doing: str) -> None:
    """Raise ExhaustedError if a library failed for lack of a resource, before its error is attributed to the input.

    `doing` is a phrase for the message, such as "loading model.onnx".
    """
    resource = lacking(exc)
    if resource is not None:
        raise exhausted(resource, doing, exc) from exc


def exhausted(resource: str, doing: str, exc: BaseException) -> ExhaustedError:
    """The error for a resource from `lacking`."""
    reason = first_line(exc)
    message = f"{doing}: {_WANT[resource]}{f' ({reason:.200})' if reason else ''}"
    return ExhaustedError(message, what=resource, hint=_ADVICE[resource])
