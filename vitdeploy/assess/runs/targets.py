"""Select artifacts and backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vitdeploy._version import __version__
from vitdeploy.errors import UnavailableError, UsageError, shown
from vitdeploy.runtimes import BACKENDS, open_recorded
from vitdeploy.specs import Precision

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.runtimes.base import Runtime

REFERENCE = "reference"  # replaces an artifact's name: every bundle has it unless it was packed


class Selected(NamedTuple):
    """An artifact and its backend: "" if no backend of this version runs it."""

    artifact: str
    backend: str
    precision: str

    def __str__(self) -> str:
        return f"{self.artifact} on {self.backend or 'no backend'}"

    def open(self, bundle: Bundle, options: Mapping[str, Any] | None = None, *, device: str | None = None) -> Runtime:
        """Open the artifact; UnavailableError if it cannot run here, else as `open_recorded`."""
        if not self.backend:
            kind = self.artifact.rpartition("-")[0]
            raise UnavailableError(
                f"no backend of vitdeploy {__version__} runs {kind}",
                what=self.artifact, hint="use the version that made it",
            )  # fmt: skip
        return open_recorded(bundle, self.backend, options, precision=self.precision, device=device)


def select(bundle: Bundle, backends: Sequence[str] | None = None) -> list[Selected]:
    """The reference, if the bundle has it, and every artifact; or the named ones.

    Args:
        bundle: The bundle.
        backends: Backends such as "onnxruntime", for every artifact that it runs, or "onnxruntime:fp16"; "torch" is the
            reference.

    Raises:
        UsageError: If a backend or artifact does not exist, or the list is empty.
    """
    if backends is None:
        reference = [Selected(REFERENCE, reference_backend(), "fp32")] if bundle.manifest.has_reference else []
        return [*reference, *artifacts(bundle)]
    if isinstance(backends, str) or not backends:
        raise UsageError(
            f"backends takes a list of names such as onnxruntime:fp16, got {shown(backends)}",
            what="backends", found=backends,
        )  # fmt: skip
    selection: dict[Selected, None] = {}
    for asked in backends:
        name, _, precision = asked.partition(":")
        if name not in BACKENDS:
            raise _unknown("backend", asked, BACKENDS)
        if precision and precision not in list(Precision):
            raise _unknown("precision", asked, Precision)
        formats = BACKENDS[name].artifact_formats
        if not formats:
            selection[Selected(REFERENCE, name, precision or "fp32")] = None
        elif precision:
            selection[Selected(bundle.artifact(formats, precision).name, name, precision)] = None
        else:
            of_backend = [Selected(artifact.name, name, artifact.precision) for artifact in bundle.artifacts(formats)]
            if not of_backend:
                raise UsageError(
                    f"{bundle.path} has no artifact for {name}",
                    what="backends", where=bundle.path, found=asked,
                    hint=f"make it: {bundle.export_line('--to', formats[0])}",
                )  # fmt: skip
            selection |= dict.fromkeys(of_backend)
    return list(selection)


def artifacts(bundle: Bundle, backends: Sequence[str] | None = None) -> list[Selected]:
    """Every artifact with each of its default backends, or "" without one; or the named ones.

    UsageError as `select`, or if only the reference is named.
    """
    if backends is not None:
        selection = [selected for selected in select(bundle, backends) if selected.artifact != REFERENCE]
        if not selection:
            raise UsageError(
                f"{', '.join(backends)} is the reference itself",
                what="backends",
                found=backends,
                hint="name an artifact",
            )
        return selection
    by_default = {name: row.artifact_formats[:1] for name, row in BACKENDS.items() if row.by_default}
    return [
        Selected(artifact.name, backend, artifact.precision)
        for artifact in bundle.manifest.artifacts
        for backend in [name for name, kinds in by_default.items() if artifact.format in kinds] or [""]
    ]


def _unknown(what: str, asked: str, known: Iterable[str]) -> UsageError:
    return UsageError(f"unknown {what} {shown(asked)}; known: {', '.join(known)}", what="backends", found=asked)


def no_artifact(bundle: Bundle, verb: str) -> UsageError:
    """The error for a bundle without artifacts."""
    return UsageError(
        f"{bundle.path} has no artifact to {verb}", where=bundle.path, hint=f"make one: {bundle.export_line()}"
    )


def reference_backend() -> str:
    """Name of the backend that runs the reference."""
    return next(name for name, row in BACKENDS.items() if not row.artifact_formats)
