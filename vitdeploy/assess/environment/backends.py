"""Try every backend on every device of its engine."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from vitdeploy.errors import MissingDependencyError, UnavailableError
from vitdeploy.runtimes import BACKENDS, runtime_class

READY = "ready"
BUILDS_ONLY = "builds engines only (no GPU here)"
NOT_INSTALLED = "not installed"
NOT_AVAILABLE = "not available"
LISTED_ONLY = "listed only"
# Every ONNX Runtime wheel lists it. It calls a remote service and runs no graph here.
_REMOTE_PROVIDERS = frozenset({"AzureExecutionProvider"})


@dataclasses.dataclass(frozen=True)
class BackendCheck:
    """The result of a small computation with a backend on a device.

    Attributes:
        backend: One of `BACKENDS`.
        device: Device or execution provider; "" if the engine is missing or does not load.
        ready: True if the computation ran.
        note: Engine version, or the problem and its remedy.
        state: `READY`, `BUILDS_ONLY`, `NOT_INSTALLED`, `NOT_AVAILABLE`, or `LISTED_ONLY` for a provider that every
            package of the engine lists and no command uses.
        engine: Package and version of the engine; "" under the same condition as `device`.
    """

    backend: str
    device: str
    ready: bool
    note: str
    state: str
    engine: str = ""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def check_backends() -> list[BackendCheck]:
    """Try every backend on every device or provider of its engine."""
    return [check for name in BACKENDS for check in _checks(name)]


def _checks(name: str) -> list[BackendCheck]:
    package = BACKENDS[name].package
    try:
        cls = runtime_class(name)
    except MissingDependencyError as exc:
        return [BackendCheck(name, "", False, str(exc), NOT_INSTALLED)]
    except UnavailableError as exc:
        return [BackendCheck(name, "", False, str(exc), NOT_AVAILABLE)]
    # Not the metadata's version: onnxruntime also comes in packages of other names.
    engine = f"{package} {importlib.import_module(package).__version__}"
    problems = cls.probe()
    otherwise = BUILDS_ONLY if all(problems.values()) and cls.builds_here() else NOT_AVAILABLE
    return [_check(name, device, problem, engine, otherwise) for device, problem in problems.items()]


def _check(name: str, device: str, problem: str | None, engine: str, otherwise: str) -> BackendCheck:
    if problem is None:
        return BackendCheck(name, device, True, engine, READY, engine)
    state = LISTED_ONLY if device in _REMOTE_PROVIDERS else otherwise
    return BackendCheck(name, device, False, problem, state, engine)
