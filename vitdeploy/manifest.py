"""The manifest of a bundle: what it holds, and what vouches for every file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, TypeVar

from vitdeploy.errors import BundleError
from vitdeploy.specs import AxisRange, PixelFormat, PixelStage, Task, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

MANIFEST = "manifest.json"
SCHEMA_VERSION = 2
# What is read of a bundle beside weights and artifacts: none of these may lie there unvouched for.
CONFIG = "config.json"
PROCESSOR_CONFIGS = ("preprocessor_config.json", "processor_config.json")


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """A file by its path in the bundle (forward slashes), its size in bytes and its SHA-256 in hexadecimal."""

    path: str
    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, root: Path, path: str) -> FileRecord:
        with (root / path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
        return cls(path, (root / path).stat().st_size, digest.hexdigest())


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model came from.

    Attributes:
        id: a Hub id, a folder's name, or a preset's.
        revision: the commit on the Hub; None elsewhere.
        weights: the files that held the weights; none for random ones.
    """

    id: str
    revision: str | None = None
    weights: tuple[FileRecord, ...] = ()


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One deployable thing.

    Attributes:
        format: "onnx", "torchscript", ...
        precision: "fp32", "fp16", ...
        files: its files, the one to open first.
        inputs: what it takes.
        outputs: what it gives.
        pixels: what it takes for an image.
        axes: the sizes that a free axis may have, by its name; one without an entry takes every size from 1 up.
        options: what it was exported with.
        tools: the version of each library that made it.
        validation: how it was compared with the reference, and the result.
        hardware: what an engine was built for; None for a portable artifact.
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
class Manifest:
    """What a bundle holds: the source, the task, the files of the model repository, and the artifacts."""

    source: Source
    task: str
    files: tuple[FileRecord, ...]
    artifacts: tuple[Artifact, ...] = ()

    @property
    def weights(self) -> dict[str, str]:
        """The SHA-256 of each file of the reference's weights, by name."""
        return {file.path: file.sha256 for file in self.files if file.path.endswith(".safetensors")}

    @property
    def reference(self) -> dict[str, str]:
        """The SHA-256 of each file that says what the reference computes, by name."""
        return {file.path: file.sha256 for file in self.files if file.path == "config.json"} | self.weights

    def to_dict(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """The content of its file."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """Read what `to_dict` gives.

        Raises:
            BundleError: a key is missing or its value is not what it must be, or the schema is a newer one.
        """
        version = data.get("schema_version")
        if type(version) is not int or version != SCHEMA_VERSION:
            raise BundleError(
                f"{MANIFEST}: schema_version must be {SCHEMA_VERSION}, got {version!r}; "
                f"use the vitdeploy version that wrote the bundle, or export it again"
            )
        try:
            source = data["source"]
            manifest = cls(
                source=Source(
                    _typed(source["id"], str),
                    None if source["revision"] is None else _typed(source["revision"], str),
                    _records(source["weights"]),
                ),
                task=Task(data["task"]).value,
                files=_records(data["files"]),
                artifacts=tuple(_artifact(item) for item in _typed(data["artifacts"], list)),
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as exc:
            raise BundleError(
                f"{MANIFEST} must have every field of its schema: {type(exc).__name__} {exc}; export the bundle again"
            ) from exc
        names = [artifact.name for artifact in manifest.artifacts]
        if len(set(names)) < len(names):
            raise BundleError(f"{MANIFEST} must name an artifact once, names {', '.join(names)}; export it again")
        return manifest


def _digest(file: Any) -> Any:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest


def _records(items: Any) -> tuple[FileRecord, ...]:
    records = tuple(
        FileRecord(
            _inside(_typed(item["path"], str)),
            _typed(item["size_bytes"], int),
            _typed(item["sha256"], str).lower(),
        )
        for item in _typed(items, list)
    )
    if len({record.path for record in records}) < len(records):
        raise ValueError("a file is named twice")
    for record in records:
        if not re.fullmatch("[0-9a-f]{64}", record.sha256) or not 0 <= record.size_bytes < 1 << 63:
            raise ValueError(f"{record.path} needs a SHA-256 in hexadecimal and a size in bytes")
    return records


def _inside(path: str) -> str:
    """`path`, when it is a plain relative one that cannot leave the bundle on any system."""
    plain = PurePosixPath(path)
    if (
        not plain.parts
        or plain.is_absolute()
        or plain.as_posix() != path
        or ".." in plain.parts
        or PureWindowsPath(path).anchor
        or "\\" in path
        or "\0" in path
    ):
        raise BundleError(f"{MANIFEST}: file names must stay inside the bundle, got {path!r}; do not use this bundle")
    return path


def _artifact(item: Mapping[str, Any]) -> Artifact:
    files = _records(item["files"])
    if not files:
        raise ValueError("an artifact has no file")
    artifact = Artifact(
        format=_typed(item["format"], str),
        precision=_typed(item["precision"], str),
        files=files,
        inputs=tuple(TensorSpec.from_dict(spec) for spec in _typed(item["inputs"], list)),
        outputs=tuple(TensorSpec.from_dict(spec) for spec in _typed(item["outputs"], list)),
        pixels=PixelFormat.from_dict(item["pixels"]),
        axes={name: AxisRange.from_dict(sizes) for name, sizes in _typed(item["axes"], dict).items()},
        options=_plain(item["options"]),
        tools=_plain(item["tools"]),
        validation=_validation(item["validation"]),
        hardware=None if item["hardware"] is None else _plain(item["hardware"]),
    )
    _check_pixels(artifact)
    return artifact


def _check_pixels(artifact: Artifact) -> None:
    """What is said of images and of free axes is true of the inputs."""
    free = {axis for spec in artifact.inputs for axis in spec.shape if isinstance(axis, str)}
    if not free.issuperset(artifact.axes):
        raise ValueError(f"axes must be free ones of the inputs, {', '.join(sorted(free))}, got {list(artifact.axes)}")
    images, pixels = artifact.inputs[0], artifact.pixels
    if len(images.shape) != 4:
        raise ValueError(f"the first input must be images, is {images}")
    height, width = pixels.size(images.shape)
    fixed = isinstance(height, int) or isinstance(width, int)
    of_channels = images.shape[1 if pixels.layout == "nchw" else 3]
    if images.dtype != pixels.dtype or of_channels != 3 or (fixed and pixels.stage is PixelStage.DECODED):
        raise ValueError(f"the first input must be {pixels.stage} {pixels.dtype} {pixels.layout} images, is {images}")


def _validation(item: Any) -> dict[str, Any]:
    """What `inspect` shows of a validation is there; an artifact without one has none of it."""
    if _typed(item, dict):
        for key, kind in (("tolerance", float), ("images", str), ("engine", str)):
            _typed(item[key], kind)
        for output in _typed(item["outputs"], list):
            _typed(output["output"], str)
            _typed(output["max_relative"], float)
        for output in _typed(item.get("calibration_images", []), list):
            _typed(output["output"], str)
            _typed(output["images"], int)
            _typed(output["mean_cosine"], float)
            if output["top1_agreement"] is not None:
                _typed(output["top1_agreement"], float)
    return dict(item)


def _plain(item: Any) -> dict[str, Any]:
    """Names and plain values, or lists of them."""
    for value in _typed(item, dict).values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, (dict, list)):
                raise TypeError("an option must be a plain value or a list of them")
    return dict(item)


def _typed(value: Any, kind: type[T]) -> T:
    """`value`, when it is a `kind`; a whole number is also a float, true and false are no numbers."""
    kinds = (int, float) if kind is float else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"expected {kind.__name__}, got {str(value)[:40]!r}")
    return value  # type: ignore[return-value]
