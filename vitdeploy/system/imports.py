"""Import optional packages, and modules that need them, on demand."""

from __future__ import annotations

import importlib
import threading
from typing import Any

from vitdeploy.errors import MissingDependencyError, UnavailableError, first_line
from vitdeploy.system.forks import first_in_child, keep_until_exit
from vitdeploy.system.telemetry import without_reporter

_core: Any = None
_core_lock = threading.Lock()


def load_package(name: str, what: str, extra: str, instead: str = "") -> Any:
    """Import another library's module.

    Args:
        name: Module name.
        what: Feature that needs it, such as "the tensorrt backend".
        extra: vitdeploy extra that installs it.
        instead: Alternative if it is not available.

    Raises:
        MissingDependencyError: If it is not installed.
        UnavailableError: If it is installed but does not load.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        raise MissingDependencyError(what, extra, instead) from exc
    except (ImportError, OSError) as exc:  # for example a shared library that it needs
        raise _does_not_load(what, name, exc) from exc


def load_target(target: str, what: str, extra: str, package: str = "package") -> Any:
    """Load the object named "module:name".

    Args:
        target: Name of a vitdeploy object.
        what: Feature that needs it, such as "the torch backend".
        extra: vitdeploy extra that installs its module's dependencies.
        package: Import name of the dependency.

    Raises:
        MissingDependencyError: If a required library is not installed.
        UnavailableError: If one is installed but does not load.
    """
    module, name = target.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] == "vitdeploy":
            raise
        raise MissingDependencyError(what, extra) from exc
    except (ImportError, OSError) as exc:  # for example a shared library that it needs
        if isinstance(exc, ImportError) and (exc.name or "").partition(".")[0] == "vitdeploy":
            raise
        raise _does_not_load(what, package, exc) from exc


def openvino_core() -> Any:
    """The only OpenVINO core of this process, which never ends; a forked child has its own.

    The CPU device of each core gives the thread that first uses it a stack for signal handlers, and at its end puts the
    previous one back. If two end in another order than that of a stack, the thread keeps one that was freed, and its
    next signal is a segmentation fault (2026.4).
    """
    global _core
    with _core_lock:
        if _core is None:
            with without_reporter():
                import openvino
            _core = openvino.Core()
        return _core


@first_in_child
def _leave_core() -> None:
    """Use a new core in a forked child: the parent's has threads that are missing there."""
    global _core, _core_lock
    if _core is not None:
        keep_until_exit(_core)
    _core, _core_lock = None, threading.Lock()


def _does_not_load(what: str, package: str, exc: Exception) -> UnavailableError:
    message = f"{what} needs {package}, and the installed one does not load: {first_line(exc)}"
    return UnavailableError(message, what=what, expected=package, hint="install it again")
