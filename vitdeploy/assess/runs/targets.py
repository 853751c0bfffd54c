"""Which artifacts of a bundle are assessed, and with which backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vitdeploy._version import __version__
from vitdeploy.errors import UnavailableError, UsageError
from vitdeploy.runtimes import BACKENDS, open_recorded
from vitdeploy.specs import Precision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.runtimes.base import Runtime

REFERENCE = "reference"  # in the place of an artifact's name: what every bundle holds


class Selected(NamedTuple):
    """An artifact and what runs it: "" where no backend of this version does."""

    artifact: str
    backend: str
    precision: str

    def __str__(self) -> str:
        return f"{self.artifact} on {self.backend or 'no backend'}"

    def open(self, bundle: Bundle, options: Mapping[str, Any] | None = None, *, device: str | None = None) -> Runtime:
        """Open the artifact.

        Raises:
            UnavailableError: it cannot run here.
            BundleError, UsageError: as `open_recorded`.
        """
        if not self.backend:
            kind = self.artifact.rpartition("-")[0]
            raise UnavailableError(f"no backend of vitdeploy {__version__} runs {kind}; use the version that made it")
        return open_recorded(bundle, self.backend, options, precision=self.precision, device=device)


def select(bundle: Bundle, backends: Sequence[str] | None = None) -> list[Selected]:
    """The reference and every artifact, or those asked for.

    Args:
        bundle: the bundle.
        backends: such as "onnxruntime", which stands for every artifact that it runs, or "onnxruntime:fp16"; "torch"
            is the reference.

    Raises:
        UsageError: there is no such backend or artifact, or none is asked for.
    """
    if backends is None:
        return [Selected(REFERENCE, reference_backend(), "fp32"), *artifacts(bundle)]
    if isinstance(backends, str) or not backends:
        raise UsageError(f"backends must be one or more names, such as onnxruntime:fp16, got {backends!r}")
    found: dict[Selected, None] = {}
    for asked in backends:
        name, _, precision = asked.partition(":")
        if name not in BACKENDS:
            raise UsageError(f"a backend must be one of {', '.join(BACKENDS)}, got {asked!r}")
        if precision and precision not in list(Precision):
            raise UsageError(f"a precision must be one of {', '.join(Precision)}, got {asked!r}")
        kind = BACKENDS[name].artifact_format
        if kind is None:
            found[Selected(REFERENCE, name, precision or "fp32")] = None
        elif precision:
            found[Selected(bundle.artifact(kind, precision).name, name, precision)] = None
        else:
            of_backend = [
                Selected(artifact.name, name, artifact.precision)
                for artifact in bundle.manifest.artifacts
                if artifact.format == kind
            ]
            if not of_backend:
                raise UsageError(f"{bundle.path} has no artifact for {name}; make it: vitdeploy export --to {kind}")
            found |= dict.fromkeys(of_backend)
    return list(found)


def artifacts(bundle: Bundle, backends: Sequence[str] | None = None) -> list[Selected]:
    """Every artifact with each backend that runs it by default, with "" where none does; or those asked for.

    Raises:
        UsageError: as `select`, or only the reference is asked for.
    """
    if backends is not None:
        found = [selected for selected in select(bundle, backends) if selected.artifact != REFERENCE]
        if not found:
            raise UsageError(
                f"an artifact must be compared with the reference, got {', '.join(backends)} alone; name another"
            )
        return found
    by_default = {name: row.artifact_format for name, row in BACKENDS.items() if row.by_default}
    return [
        Selected(artifact.name, backend, artifact.precision)
        for artifact in bundle.manifest.artifacts
        for backend in [name for name, kind in by_default.items() if kind == artifact.format] or [""]
    ]


def reference_backend() -> str:
    """The name of the backend that runs what every bundle holds."""
    return next(name for name, row in BACKENDS.items() if row.artifact_format is None)
