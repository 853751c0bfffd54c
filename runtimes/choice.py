"""Choose the backend and the artifact of a bundle that are opened where not both are named."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vitdeploy.runtimes import BACKENDS

if TYPE_CHECKING:
    from vitdeploy.bundle.bundle import Bundle


class Choice(NamedTuple):
    """What is opened, and which other artifacts could have been."""

    backend: str
    precision: str
    others: tuple[str, ...] = ()


def choose(bundle: Bundle, backend: str | None, precision: str | None) -> Choice:
    """The artifact of a backend or precision; of several, ONNX Runtime's before others, and fp32 before the rest.

    Where the bundle has none that fits, the choice is the one that was asked for, and cannot be opened.
    """
    asked = Choice(backend or "onnxruntime", precision or "fp32")
    fits = {
        (name, artifact.precision): artifact.name
        for artifact in bundle.manifest.artifacts
        for name, row in BACKENDS.items()
        if artifact.format == row.artifact_format
        and (row.by_default if backend is None else name == backend)
        and precision in (None, artifact.precision)
    }
    if not fits:
        return asked
    key = min(fits, key=lambda pair: (pair[0] != asked.backend, pair[1] != asked.precision))  # the first of equals
    return Choice(*key, others=tuple(dict.fromkeys(name for name in fits.values() if name != fits[key])))
