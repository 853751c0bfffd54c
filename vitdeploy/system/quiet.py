"""Keep the libraries' own lines off standard error, in a process that is the command line's.

A warning of Pillow or torch, a log line of onnxscript, libtiff's "Warning, unknown field": the user can do nothing
with them, and what stops the work is told as an error of vitdeploy's own. A process that only imports vitdeploy keeps
its settings: nothing here is called then.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import sys
import warnings

DEBUG_VARIABLE = "VITDEPLOY_DEBUG"
_FATAL, _WARNING = 4, 2  # of ONNX Runtime
_quiet = False


def debugging() -> bool:
    """Whether the user asked for tracebacks, and for the libraries' lines: VITDEPLOY_DEBUG is set, and not to 0."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def quiet_libraries() -> None:
    """Show no warning, log line or C message of a library; what vitdeploy logs is shown as a note, a line each.

    Warnings are ignored even where PYTHONWARNINGS turns them into errors, since those are raised in the middle of the
    libraries' work. Nothing is changed where the user is `debugging`.
    """
    global _quiet
    if debugging():
        return
    _quiet = True
    warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())  # else Python's last resort prints them
    ours = logging.getLogger("vitdeploy")
    if not ours.handlers:
        ours.addHandler(_Notes())
        ours.propagate = False


def onnxruntime_severity() -> int:
    """The least severe of ONNX Runtime's messages that go to standard error: 4 (fatal) where libraries are quiet."""
    return _FATAL if _quiet else _WARNING


def is_quiet() -> bool:
    """Whether `quiet_libraries` was called."""
    return _quiet


class _Notes(logging.Handler):
    """Write each record in a line to standard error, as it is at that time."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):  # it is full or closed: a note has nowhere else to go
                print(f"Note: {' '.join(record.getMessage().split())}", file=sys.stderr, flush=True)


@functools.cache
def quiet_libtiff() -> None:
    """Where libraries are quiet, take away libtiff's handlers, which print to file descriptor 2.

    Called when an image is opened, and no earlier, since it imports Pillow.

    The symbol is looked up in Pillow's extension module and what that depends on. Where libtiff is linked into it and
    exports nothing, as on Windows, its messages stay.
    https://libtiff.gitlab.io/libtiff/functions/TIFFError.html: a handler of NULL prints nothing.
    """
    if not _quiet:
        return
    import ctypes  # not for the help

    with contextlib.suppress(OSError, AttributeError):
        pillow = ctypes.CDLL(importlib.import_module("PIL._imaging").__file__)
        for name in ("TIFFSetWarningHandler", "TIFFSetErrorHandler"):
            set_handler = getattr(pillow, name)
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)
