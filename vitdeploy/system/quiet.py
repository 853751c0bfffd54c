"""Keep libraries' messages off standard error in the command line's process.

A user cannot act on a warning from Pillow or torch, a log line from onnxscript, or libtiff's "Warning, unknown field";
real failures are reported as vitdeploy errors. A process that only imports vitdeploy keeps its settings: nothing here
is called.
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
    """True if VITDEPLOY_DEBUG is set and not 0: the user wants tracebacks and the libraries' messages."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def quiet_libraries() -> None:
    """Hide libraries' warnings, log lines and C messages; show vitdeploy's log records as one-line notes.

    Warnings are ignored even if PYTHONWARNINGS turns them into errors, which would be raised in the middle of a
    library's work. Nothing is changed when `debugging`.
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
    """Lowest severity of ONNX Runtime's messages on standard error: 4 (fatal) if libraries are quiet."""
    return _FATAL if _quiet else _WARNING


def is_quiet() -> bool:
    """True if `quiet_libraries` was called."""
    return _quiet


class _Notes(logging.Handler):
    """Writes each record as a line to the current standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):  # it is full or closed: there is nowhere else for a note
                print(f"Note: {' '.join(record.getMessage().split())}", file=sys.stderr, flush=True)


@functools.cache
def quiet_libtiff() -> None:
    """If libraries are quiet, remove libtiff's handlers, which print to file descriptor 2.

    Called when an image is opened, because it imports Pillow.

    The symbol is looked up in Pillow's extension module and its dependencies. If libtiff is statically linked without
    exports, as on Windows, its messages stay. https://libtiff.gitlab.io/libtiff/functions/TIFFError.html: a handler of
    NULL prints nothing.
    """
    if not _quiet:
        return
    import ctypes  # not needed for the help

    with contextlib.suppress(OSError, AttributeError):
        pillow = ctypes.CDLL(importlib.import_module("PIL._imaging").__file__)
        for name in ("TIFFSetWarningHandler", "TIFFSetErrorHandler"):
            set_handler = getattr(pillow, name)
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)
