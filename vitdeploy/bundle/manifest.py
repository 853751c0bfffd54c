"""The manifest of a bundle: source, task, artifacts, and the checksum of every file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from vitdeploy.files.opened import hash_file
from vitdeploy.files.regular_file import open_regular
from vitdeploy.specs import AxisRange, PixelFormat, TensorSpec

MANIFEST = "manifest.json"
SCHEMA_VERSION = 3
CONFIG = "config.json"
_WEIGHTS = ".safetensors"


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """A file by its path in the bundle (forward slashes), its size in bytes and its SHA-256 in hexadecimal."""

    path: str
    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, root: Path, path: str) -> FileRecord:
        with open_regular(root / path) as file:
            return cls(path, *hash_file(file))


NOT_RECORDED = "not recorded (the bundle was made by an earlier version)"
# The kinds of origin of an image processor, in words.
_PROCESSOR_KINDS = {
    "checkpoint": "the checkpoint's own",
    "base": "that of the adapter's base",
    "timm": "timm's pretrained_cfg",
    "timm-defaults": "timm's defaults, since its configuration states none",
    "npz": "that of Google's vit_jax for its .npz files: the whole image resized, (x - 127.5) / 127.5",
    "preset": "that of the preset: the whole image resized, (x - 127.5) / 127.5",
    "given": "--processor",
    "options": "stated with options",
}


@dataclasses.dataclass(frozen=True)
class ProcessorOrigin:
    """Where an image processor came from.

    Attributes:
        kind: "checkpoint", its own file; "base", that of an adapter's base; "timm", its `pretrained_cfg`;
            "timm-defaults", what timm does where that states nothing; "npz", stated by the library of Google's files;
            "preset", that of random weights; "given", another one than the checkpoint's; "options", settings alone.
        id: Of a given one: the Hub id, or the name of the folder or file.
        revision: Of a given one from the Hub: the commit.
        settings: The keys of preprocessor_config.json, or "image_size", that were stated for this export.

    Raises:
        ValueError: If there is no such kind.
    """

    kind: str
    id: str | None = None
    revision: str | None = None
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in _PROCESSOR_KINDS:
            raise ValueError(f"an image processor is from one of {', '.join(_PROCESSOR_KINDS)}, got {self.kind!r:.80}")

    def __str__(self) -> str:
        """One line for people."""
        origin = _PROCESSOR_KINDS[self.kind]
        if self.id is not None:
            origin += f" {self.id}" + (f"@{self.revision}" if self.revision else "")
        if not self.settings:
            return origin
        return f"{origin}{': ' if self.kind == 'options' else ', with '}{', '.join(self.settings)}"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model came from.

    Attributes:
        id: A Hub id, a folder's name, or a preset's.
        revision: The commit on the Hub; None elsewhere.
        weights: The files that held the weights, an adapter's too; none for random ones.
        processor: Where the image processor came from; None in a bundle of schema version 2, which does not say it.
        base: The Hub id or name of the model that an adapter was merged into; None without an adapter.
        base_revision: Its commit on the Hub.
    """

    id: str
    revision: str | None = None
    weights: tuple[FileRecord, ...] = ()
    processor: ProcessorOrigin | None = None
    base: str | None = None
    base_revision: str | None = None

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One deployable thing.

    Attributes:
        format: "onnx", "torchscript", ...
        precision: "fp32", "fp16", ...
        files: Its files, the one to open first.
        inputs: Its input tensors, the images first.
        outputs: Its output tensors.
        pixels: The format of its images.
        axes: The sizes that a free axis may have, by its name; one without an entry takes every size from 1 up.
        options: The options of its export.
        tools: The version of each library that made it.
        validation: The comparison with the reference, and its result.
        hardware: The GPUs that an engine was built for; None for a portable artifact.
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
    """The bundle that another one is a part of.

    Attributes:
        manifest_sha256: Of its manifest.
        files: Those that were left out, by name.
        artifacts: The names of those that were left out.
    """

    manifest_sha256: str
    files: tuple[FileRecord, ...]
    artifacts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The source, the task, the files of the model repository, and the artifacts.

    Attributes:
        packed_from: The bundle that this one is a part of; None for one that was exported.
    """

    source: Source
    task: str
    files: tuple[FileRecord, ...]
    artifacts: tuple[Artifact, ...] = ()
    packed_from: PackedFrom | None = None

    @property
    def processor(self) -> str | None:
        """Where the image processor came from, in a line; None in a bundle that does not say."""
        return None if self.source.processor is None else str(self.source.processor)

    @property
    def configuration(self) -> tuple[FileRecord, ...]:
        """The files of the model and of the image processor that are no weights."""
        return tuple(file for file in self.files if not _holds_weights(file))

    @property
    def model_files(self) -> dict[str, str]:
        """The SHA-256 of each file of the model repository, by name; also of weights that were left out."""
        left_out = () if self.packed_from is None else filter(_holds_weights, self.packed_from.files)
        return {file.path: file.sha256 for file in (*self.files, *left_out)}

    @property
    def weights(self) -> dict[str, str]:
        """The SHA-256 of each file of the reference's weights, by name, whether they are in the bundle or left out."""
        return {path: sha256 for path, sha256 in self.model_files.items() if path.endswith(_WEIGHTS)}

    @property
    def has_reference(self) -> bool:
        """Whether the reference's weights are in the bundle."""
        return self.packed_from is None or any(map(_holds_weights, self.files))

    @property
    def reference(self) -> dict[str, str]:
        """The SHA-256 of each file that says what the reference computes, by name."""
        return {file.path: file.sha256 for file in self.files if file.path == "config.json"} | self.weights

    def to_dict(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        if self.packed_from is None:
            del fields["packed_from"]
        return {"schema_version": SCHEMA_VERSION, **fields}

    def to_json(self) -> str:
        """The content of `manifest.json`."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


def _holds_weights(file: FileRecord) -> bool:
    return file.path.endswith(_WEIGHTS)
