"""Import optional packages, and modules that need them, on demand."""

from __future__ import annotations

import importlib
from typing import Any

from vitdeploy.errors import MissingDependencyError, UnavailableError, first_line


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


def _does_not_load(what: str, package: str, exc: Exception) -> UnavailableError:
    message = f"{what} needs {package}, and the installed one does not load: {first_line(exc)}"
    return UnavailableError(message, what=what, expected=package, hint="install it again")
