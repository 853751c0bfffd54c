"""Import optional packages, and the modules that need them, on demand."""

from __future__ import annotations

import importlib
from typing import Any

from vitdeploy.errors import MissingDependencyError, UnavailableError, first_line


def load_package(name: str, what: str, extra: str, instead: str = "") -> Any:
    """Import another library's module.

    Args:
        name: The module's.
        what: The feature that needs it, such as "the tensorrt backend".
        extra: The extra of vitdeploy that installs it.
        instead: The alternative where it cannot be had.

    Raises:
        MissingDependencyError: If it is not installed.
        UnavailableError: If it is installed, and does not load.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        raise MissingDependencyError(what, extra, instead) from exc
    except (ImportError, OSError) as exc:  # a shared library that it needs, for example
        raise _does_not_load(what, name, exc) from exc


def load_target(target: str, what: str, extra: str, package: str = "package") -> Any:
    """The object that "module:name" stands for.

    Args:
        target: Of vitdeploy.
        what: The feature that needs it, such as "the torch backend".
        extra: The extra of vitdeploy that installs what its module imports.
        package: The import name of what that is.

    Raises:
        MissingDependencyError: If a library that it needs is not installed.
        UnavailableError: If one is installed, and does not load.
    """
    module, name = target.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] == "vitdeploy":
            raise
        raise MissingDependencyError(what, extra) from exc
    except (ImportError, OSError) as exc:  # a shared library that it needs, for example
        if isinstance(exc, ImportError) and (exc.name or "").partition(".")[0] == "vitdeploy":
            raise
        raise _does_not_load(what, package, exc) from exc


def _does_not_load(what: str, package: str, exc: Exception) -> UnavailableError:
    message = f"{what} needs {package}, and the installed one does not load: {first_line(exc)}"
    return UnavailableError(message, what=what, expected=package, hint="install it again")
