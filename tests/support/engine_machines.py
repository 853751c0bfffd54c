"""TensorRT libraries that run engines on this machine; tests of the others are skipped with the reason."""

from __future__ import annotations

import functools

import pytest

from vitdeploy.errors import UnavailableError
from vitdeploy.runtimes import runtime_class


@functools.cache
def why_not(backend: str) -> str | None:
    """Why a backend of engines cannot run here; None where it can."""
    try:
        problems = runtime_class(backend).probe()
    except UnavailableError as exc:
        return str(exc)
    return next(iter(problems.values()))


def gpu_marks(backend: str) -> tuple[pytest.MarkDecorator, ...]:
    """The marks of a test that runs engines: `make gpu-check` asks for it, and it is skipped where it cannot run."""
    reason = why_not(backend)
    return (pytest.mark.gpu, *([] if reason is None else [pytest.mark.skip(reason=reason)]))
