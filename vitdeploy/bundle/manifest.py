"""A bundle's manifest: source, task, artifacts, and the checksum of every file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from vitdeploy.files.opened import hash_file
from vitdeploy.files.regular_file import open_regular
from vitdeploy.specs import AxisRange, PixelFormat, TensorSpec

MANIFEST = "manifest.json"
TUNING = "tuning.json"  # the evidence of a tuned choice
SCHEMA_VERSION = 3
CONFIG = "config.json"
_WEIGHTS = ".safetensors"


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """A file: path in the bundle (forward slashes), size in bytes, and hexadecimal SHA-256."""

    path: str
    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, root: Path, path: str) -> FileRecord:
        with open_regular(root / path) as file:
            return cls(path, *hash_file(file))


NOT_RECORDED = "not recorded (the bundle was made by an earlier version)"
# Origins of an image processor, as text.
_PROCESSOR_KINDS = {
    "checkpoint": "the checkpoint's own",
    "base": "that of the adapter's base",
    "timm": "timm's pretrained_cfg",
    "timm-defaults": "timm's defaults, since its configuration states none",
    "open_clip": "OpenCLIP's preprocess_cfg",
    "architecture": "that of the architecture",
    "npz": "that of Google's vit_jax for its .npz files: the whole image resized, (x - 127.5) / 127.5",
    "preset": "that of the preset: the whole image resized, (x - 127.5) / 127.5",
    "given": "--processor",
    "options": "stated with options",
}


@dataclasses.dataclass(frozen=True)
class ProcessorOrigin:
    """The origin of an image processor.

    Attributes:
        kind: "checkpoint", the checkpoint's file; "base", an adapter's base; "timm", timm's `pretrained_cfg`;
            "timm-defaults", timm's defaults without one; "open_clip", OpenCLIP's `preprocess_cfg`; "architecture", the
            named architecture's; "npz", the library of Google's files; "preset", random weights; "given", another
            processor than the checkpoint's; "options", settings only.
        id: For "given": Hub id, or name of the folder or file. For "architecture": its name.
        revision: For "given" from the Hub: commit.
        settings: Keys of preprocessor_config.json, or "image_size", that were set for this export.

    Raises:
        ValueError: If the kind is unknown.
    """

    kind: str
    id: str | None = None
    revision: str | None = None
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in _PROCESSOR_KINDS:
            raise ValueError(f"an image processor is from one of {', '.join(_PROCESSOR_KINDS)}, got {self.kind!r:.80}")

    def __str__(self) -> str:
        """One line of text."""
        origin = _PROCESSOR_KINDS[self.kind]
        if self.id is not None:
            origin += f" {self.id}" + (f"@{self.revision}" if self.revision else "")
        if not self.settings:
            return origin
        return f"{origin}{': ' if self.kind == 'options' else ', with '}{', '.join(self.settings)}"


@dataclasses.dataclass(frozen=True)
class Source:
    """The origin of a model.

    Attributes:
        id: Hub id, folder name, or preset name.
        revision: Commit on the Hub; None for other sources.
        weights: Files of the weights, an adapter's included; empty for random weights.
        processor: Origin of the image processor; None in a bundle of schema version 2, which does not record it.
        base: Hub id or name of an adapter's base model; None without an adapter.
        base_revision: The base's commit on the Hub.
        architecture: Name of the architecture in its library, if the weights had no configuration.
        license: Keys `license`, `license_name` and `license_link` of the checkpoint's model card; None without any.
    """

    id: str
    revision: str | None = None
    weights: tuple[FileRecord, ...] = ()
    processor: ProcessorOrigin | None = None
    base: str | None = None
    base_revision: str | None = None
    architecture: str | None = None
    license: dict[str, str] | None = None

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One deployable artifact.

    Attributes:
        format: "onnx", "torchscript", ...
        precision: "fp32", "fp16", ...
        files: Files of the artifact; the first one is opened.
        inputs: Input tensors, images first.
        outputs: Output tensors.
        pixels: Input image format.
        axes: Allowed sizes of dynamic axes, by name; an axis without an entry takes any size from 1 up.
        options: Export options.
        tools: Versions of the libraries that made it.
        validation: Comparison with the reference, and its result.
        hardware: GPUs that an engine was built for; None for a portable artifact.
    """

    format: str
    precision: str
    files: tuple[FileRecord, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    pixels: PixelFormat
    axes: dict[str, AxisRange]
    options: dict[str, Any]
    tools: dict[str, str]
    validation: dict[str, Any]
    hardware: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return f"{self.format}-{self.precision}"


@dataclasses.dataclass(frozen=True)
class PackedFrom:
    """The source bundle of a packed one.

    Attributes:
        manifest_sha256: SHA-256 of its manifest.
        files: Omitted files, by name.
        artifacts: Names of omitted artifacts.
    """

    manifest_sha256: str
    files: tuple[FileRecord, ...]
    artifacts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TunedChoice:
    """The setting that `vitdeploy tune` chose; `vitdeploy.load` opens it by default.

    Attributes:
        artifact: Name of the artifact.
        artifact_sha256: SHA-256 of its files when they were measured.
        backend: Backend that runs it.
        options: Runtime options of the backend, by name.
        batch_size: Images per run.
        machine: Machine on which it was measured: CPU, its instruction sets, number of CPUs, and engine.
        evidence: File with all measurements.
    """

    artifact: str
    artifact_sha256: tuple[str, ...]
    backend: str
    options: dict[str, Any]
    batch_size: int
    machine: dict[str, str]
    evidence: FileRecord

    def matches(self, artifact: Artifact) -> bool:
        """True for the artifact that was measured, with the same files."""
        return self.artifact == artifact.name and self.artifact_sha256 == sha256_of(artifact)


def sha256_of(artifact: Artifact) -> tuple[str, ...]:
    """SHA-256 of each file of an artifact."""
    return tuple(file.sha256 for file in artifact.files)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Source, task, files of the model repository, and artifacts.

    Attributes:
        packed_from: Source of a packed bundle; None for an exported one.
        tuned: The setting to open by default; None if none was chosen.
    """

    source: Source
    task: str
    files: tuple[FileRecord, ...]
    artifacts: tuple[Artifact, ...] = ()
    packed_from: PackedFrom | None = None
    tuned: TunedChoice | None = None

    @property
    def records(self) -> tuple[FileRecord, ...]:
        """Every file, once."""
        artifacts = (record for artifact in self.artifacts for record in artifact.files)
        evidence = () if self.tuned is None else (self.tuned.evidence,)
        return tuple({record.path: record for record in (*self.files, *artifacts, *evidence)}.values())

    @property
    def tuned_artifact(self) -> Artifact | None:
        """The artifact of the tuned choice; None without a choice, or if the artifact was replaced or removed."""
        tuned = self.tuned
        return None if tuned is None else next(filter(tuned.matches, self.artifacts), None)

    def with_valid_choice(self) -> Manifest:
        """The manifest without a choice whose artifact was replaced or removed."""
        return self if self.tuned_artifact is not None else dataclasses.replace(self, tuned=None)

    @property
    def processor(self) -> str | None:
        """Origin of the image processor as one line; None if the bundle does not record it."""
        return None if self.source.processor is None else str(self.source.processor)

    @property
    def configuration(self) -> tuple[FileRecord, ...]:
        """Files of the model and of the image processor, except weights."""
        return tuple(file for file in self.files if not _holds_weights(file))

    @property
    def model_files(self) -> dict[str, str]:
        """SHA-256 of each file of the model repository, by name, omitted weights included."""
        left_out = () if self.packed_from is None else filter(_holds_weights, self.packed_from.files)
        return {file.path: file.sha256 for file in (*self.files, *left_out)}

    @property
    def weights(self) -> dict[str, str]:
        """SHA-256 of each file of the reference's weights, by name, in the bundle or omitted."""
        return {path: sha256 for path, sha256 in self.model_files.items() if path.endswith(_WEIGHTS)}

    @property
    def has_reference(self) -> bool:
        """True if the bundle has the reference's weights."""
        return self.packed_from is None or any(map(_holds_weights, self.files))

    @property
    def reference(self) -> dict[str, str]:
        """SHA-256 of each file that defines the reference's computation, by name."""
        return {file.path: file.sha256 for file in self.files if file.path == "config.json"} | self.weights

    def to_dict(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        for name in ("packed_from", "tuned"):
            if fields[name] is None:
                del fields[name]
        for name in ("architecture", "license"):
            if fields["source"][name] is None:
                del fields["source"][name]
        return {"schema_version": SCHEMA_VERSION, **fields}

    def to_json(self) -> str:
        """Content of `manifest.json`."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


def _holds_weights(file: FileRecord) -> bool:
    return file.path.endswith(_WEIGHTS)
