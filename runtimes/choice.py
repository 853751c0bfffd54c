"""Choose the backend and the artifact of a bundle if not both are named."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vitdeploy.runtimes import BACKENDS

if TYPE_CHECKING:
    from vitdeploy.bundle.bundle import Bundle


class Choice(NamedTuple):
    """The choice, and the other artifacts that could have been opened."""

    backend: str
    precision: str
    others: tuple[str, ...] = ()


def choose(bundle: Bundle, backend: str | None, precision: str | None) -> Choice:
    """The artifact for a backend or precision; of several, ONNX Runtime's first, and fp32 first.

    If the bundle has none, the choice is the requested one, which cannot be opened.
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
