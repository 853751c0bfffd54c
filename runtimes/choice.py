"""Choose the backend and the artifact of a bundle if not both are named, and open them: the tuned choice first."""

from __future__ import annotations

import hashlib
import importlib
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from vitdeploy.errors import UnavailableError, UsageError, shown
from vitdeploy.runtimes import BACKENDS, BESIDE_OTHERS, formats_of, open_recorded, runtime_class
from vitdeploy.system.processor import processor_identity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.bundle.manifest import Artifact, FileRecord, TunedChoice
    from vitdeploy.runtimes.base import Runtime


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


class TunedElsewhereWarning(UserWarning):
    """A bundle was tuned on another machine, or its tuned choice cannot run on this one."""


class Opening(NamedTuple):
    """The artifact that `vitdeploy.load` opens, and how.

    Attributes:
        bundle: The bundle; with the artifact alone if it was named, or is the tuned choice.
        backend, precision: The backend, and the precision of its artifact.
        others: Names of the other artifacts that could have been opened.
        options: Options of the backend.
        tuned: The bundle's tuned choice, if it is the choice.
        usual: With a tuned choice, the opening where that cannot run.
    """

    bundle: Bundle
    backend: str
    precision: str
    others: tuple[str, ...]
    options: Mapping[str, Any]
    tuned: TunedChoice | None = None
    usual: Opening | None = None

    def beside_decoding(self) -> Opening:
        """With the options of `BESIDE_OTHERS` that are not set."""
        usual = None if self.usual is None else self.usual.beside_decoding()
        return self._replace(options={**BESIDE_OTHERS.get(self.backend, {}), **self.options}, usual=usual)

    @property
    def artifact(self) -> Artifact | None:
        """The artifact, None for a backend that runs the reference; UsageError if there is none, or no such backend."""
        if self.tuned is not None:
            return self.bundle.manifest.tuned_artifact
        formats = formats_of(self.backend)
        return self.bundle.artifact(formats, self.precision) if formats else None

    @property
    def records(self) -> tuple[FileRecord, ...]:
        """The files to open; UsageError as `artifact`."""
        artifact = self.artifact
        return self.bundle.manifest.files if artifact is None else self.bundle.records_for(artifact)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the checksums of these files."""
        return hashlib.sha256("".join(record.sha256 for record in self.records).encode()).hexdigest()


def choose_opening(
    bundle: Bundle,
    backend: str | None,
    precision: str | None,
    device: str | None,
    options: Mapping[str, Any],
    *,
    artifact: str | None = None,
    beside_decoding: bool = False,
) -> Opening:
    """The tuned choice, unless the bundle has none or the caller asks for anything else; then the artifact of `choose`.

    With `beside_decoding`, as `Opening.beside_decoding`.

    Raises:
        UsageError: If the bundle has no artifact of the name `artifact`, or it does not fit the backend or precision.
    """
    tuned, tuned_artifact = bundle.manifest.tuned, bundle.manifest.tuned_artifact
    if artifact is not None:
        name, named = _named(bundle, artifact, backend, precision)
        opening = _opening_of(bundle, named, name, options)
    else:
        opening = Opening(bundle, *choose(bundle, backend, precision), options)
        asked = backend or precision or options or device not in (None, "cpu")
        if tuned is not None and tuned_artifact is not None and not asked:
            first = _opening_of(bundle, tuned_artifact, tuned.backend, tuned.options)
            opening = first._replace(tuned=tuned, usual=opening)
    return opening.beside_decoding() if beside_decoding else opening


def _opening_of(bundle: Bundle, artifact: Artifact, backend: str, options: Mapping[str, Any]) -> Opening:
    others = tuple(other.name for other in bundle.manifest.artifacts if other is not artifact)
    return Opening(bundle.with_only(artifact), backend, artifact.precision, others, options)


def _named(bundle: Bundle, name: str, backend: str | None, precision: str | None) -> tuple[str, Artifact]:
    """An artifact, and the backend, or the first that runs it; UsageError if they do not fit."""
    names = [artifact.name for artifact in bundle.manifest.artifacts]
    if name not in names:
        raise UsageError(
            f"{bundle.path} has no artifact {shown(name)}, only: {', '.join(names) or 'none'}",
            what="artifact", where=bundle.path, expected=names, found=name, hint="choose one of them",
        )  # fmt: skip
    artifact = bundle.manifest.artifacts[names.index(name)]
    if precision not in (None, artifact.precision):
        raise UsageError(
            f"{name} has precision {artifact.precision}, got {shown(precision)}",
            what="precision", expected=artifact.precision, found=precision, hint="leave the precision out",
        )  # fmt: skip
    backends = [row for row, values in BACKENDS.items() if artifact.format in values.artifact_formats]
    if not backends or backend not in (None, *backends):
        raise UsageError(
            f"{name} runs on {', '.join(backends) or 'no backend of this version'}, got {shown(backend)}",
            what="backend", expected=backends, found=backend, hint="choose one of them, or another artifact",
        )  # fmt: skip
    return backend or backends[0], artifact


class Opened(NamedTuple):
    """An open runtime.

    Attributes:
        opening: The artifact that is open.
        tuned: The bundle's tuned choice, whether it is in use, and how this machine differs; None without a choice.
    """

    runtime: Runtime
    opening: Opening
    tuned: dict[str, Any] | None = None


def open_choice(opening: Opening, device: str | None) -> Opened:
    """Open the artifact of `choose_opening`, on its device.

    A tuned choice that cannot run here is replaced by the usual one. That, and a machine that differs from the one
    measured, give one `TunedElsewhereWarning`.

    Raises:
        UsageError, UnavailableError, BundleError: As `vitdeploy.runtimes.open_recorded`.
    """
    record: dict[str, Any] | None = None
    if opening.tuned is not None and opening.usual is not None:
        choice = opening.tuned
        record = {
            "artifact": choice.artifact, "backend": choice.backend, "options": choice.options,
            "batch_size": choice.batch_size, "in_use": True, "machine": [], "note": None,
        }  # fmt: skip
        try:
            runtime = open_recorded(opening.bundle, choice.backend, opening.options, precision=opening.precision)
        except (UnavailableError, UsageError) as exc:  # also a backend or an option of another version
            _warn(record, f"its tuned choice, {choice.backend} {opening.precision}, cannot run here: {exc}")
            record["in_use"] = False
            opening = opening.usual
        else:
            differences = differing(choice)
            record["machine"] = differences
            if differences:
                _warn(record, f"it was tuned on another machine: {'; '.join(differences)}; tune it again here")
            return Opened(runtime, opening, record)
    runtime = open_recorded(
        opening.bundle, opening.backend, opening.options, precision=opening.precision, device=device
    )
    return Opened(runtime, opening, record)


def engine_version(backend: str) -> str:
    """Package and version of a backend's engine; raises as `runtime_class`."""
    runtime_class(backend)
    package = BACKENDS[backend].package
    return f"{package} {importlib.import_module(package).__version__}"


def differing(choice: TunedChoice) -> list[str]:
    """How this machine and the engine differ from those measured, one text each; raises as `runtime_class`."""
    here = processor_identity() | {"engine": engine_version(choice.backend)}
    return [
        f"{name} {value or 'unknown'} here, {choice.machine.get(name) or 'unknown'} there"
        for name, value in here.items()
        if value != choice.machine.get(name)
    ]


def loads(backend: str) -> bool:
    """True if the backend's engine is installed and loads."""
    try:
        runtime_class(backend)
    except (UnavailableError, UsageError):
        return False
    return True


def _warn(record: dict[str, Any], note: str) -> None:
    record["note"] = note
    warnings.warn(f"this bundle is not at its fastest: {note}", TunedElsewhereWarning, stacklevel=4)
