"""Choose the backend and the artifact of a bundle if not both are named."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vitdeploy.runtimes import BACKENDS

if TYPE_CHECKING:
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.bundle.manifest import Artifact


class Choice(NamedTuple):
    """The choice, and the other artifacts that could have been opened."""

    backend: str
    precision: str
    others: tuple[str, ...] = ()


def choose(bundle: Bundle, backend: str | None, precision: str | None) -> Choice:
    """The artifact for a backend or precision; of several, ONNX Runtime's, the backend's first format, and fp32 first.

    If the bundle has none, the choice is the requested one, which cannot be opened.
    """
    asked = Choice(backend or "onnxruntime", precision or "fp32")
    formats = {
        name: row.artifact_formats[:1] if backend is None else row.artifact_formats
        for name, row in BACKENDS.items()
        if (row.by_default if backend is None else name == backend)
    }
    runnable = {name: bundle.artifacts(kinds) for name, kinds in formats.items()}
    fits = [
        (name, artifact)
        for artifact in bundle.manifest.artifacts
        for name in formats
        if artifact in runnable[name] and precision in (None, artifact.precision)
    ]
    if not fits:
        return asked

    def rank(fit: tuple[str, Artifact]) -> tuple[bool, int, bool]:
        name, artifact = fit
        return name != asked.backend, formats[name].index(artifact.format), artifact.precision != asked.precision

    name, chosen = min(fits, key=rank)  # the first of equals
    others = dict.fromkeys(artifact.name for _, artifact in fits if artifact.name != chosen.name)
    return Choice(name, chosen.precision, tuple(others))
