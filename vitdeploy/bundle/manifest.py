"""The manifest of a bundle: what it holds, and what vouches for every file."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, TypeVar

from vitdeploy.errors import BundleError
from vitdeploy.files.opened import hash_file
from vitdeploy.files.regular_file import open_regular
from vitdeploy.specs import (
    ENGINE_FORMATS,
    MODES,
    AxisRange,
    PixelFormat,
    PixelStage,
    Precision,
    Task,
    TensorSpec,
    read_range,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

T = TypeVar("T")

MANIFEST = "manifest.json"
SCHEMA_VERSION = 3
_READABLE = (2, SCHEMA_VERSION)  # 2 does not say where the image processor came from
# What is read of a bundle beside weights and artifacts: none of these may lie there unvouched for.
CONFIG = "config.json"


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
# The kinds of origin of an image processor, and how people are told.
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
        id: of a given one: the Hub id, or the name of the folder or file.
        revision: of a given one from the Hub: the commit.
        settings: the keys of preprocessor_config.json, or "image_size", that were stated for this export.

    Raises:
        ValueError: there is no such kind.
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
        id: a Hub id, a folder's name, or a preset's.
        revision: the commit on the Hub; None elsewhere.
        weights: the files that held the weights, an adapter's too; none for random ones.
        processor: where the image processor came from; None in a bundle of schema version 2, which does not say it.
        base: the Hub id or name of the model that an adapter was merged into; None without an adapter.
        base_revision: its commit on the Hub.
    """

    id: str
    revision: str | None = None
    weights: tuple[FileRecord, ...] = ()
    processor: ProcessorOrigin | None = None
    base: str | None = None
    base_revision: str | None = None


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
    def processor(self) -> str | None:
        """Where the image processor came from, in a line; None in a bundle that does not say."""
        return None if self.source.processor is None else str(self.source.processor)

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
        if type(version) is not int or version not in _READABLE:
            raise BundleError(
                f"{MANIFEST}: schema_version must be {' or '.join(map(str, _READABLE))}, got {version!r}; "
                f"use the vitdeploy version that wrote the bundle, or export it again"
            )
        try:
            source = data["source"]
            manifest = cls(
                source=Source(
                    _typed(source["id"], str),
                    _text_or_none(source["revision"]),
                    _records(source["weights"]),
                    None if version == 2 else _processor_origin(source["processor"]),
                    _text_or_none(source.get("base")),  # which older manifests do not have
                    _text_or_none(source.get("base_revision")),
                ),
                task=Task(data["task"]).value,
                files=_records(data["files"]),
                artifacts=tuple(_artifact(item) for item in _typed(data["artifacts"], list)),
            )
            manifest.to_json()  # which has no numbers that are not finite
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as exc:
            raise BundleError(
                f"{MANIFEST} must have every field of its schema: {type(exc).__name__} {exc}; export the bundle again"
            ) from exc
        names = [artifact.name for artifact in manifest.artifacts]
        if len(set(names)) < len(names):
            raise BundleError(f"{MANIFEST} must name an artifact once, names {', '.join(names)}; export it again")
        return manifest


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
    """`path`, when it is a plain relative one, of one line of text, that cannot leave the bundle on any system."""
    plain = PurePosixPath(path)
    if (
        not plain.parts
        or plain.is_absolute()
        or plain.as_posix() != path
        or ".." in plain.parts
        or PureWindowsPath(path).anchor
        or "\\" in path
        or not path.isprintable()
    ):
        raise BundleError(
            f"{MANIFEST}: file names must be printable and stay inside the bundle, got {path!r}; do not use this bundle"
        )
    return path


def _processor_origin(item: Any) -> ProcessorOrigin | None:
    if item is None:  # an artifact was added to a bundle of version 2
        return None
    name, revision = (None if item[key] is None else _typed(item[key], str) for key in ("id", "revision"))
    return ProcessorOrigin(_typed(item["kind"], str), name, revision, tuple(_texts(item["settings"])))


def _artifact(item: Mapping[str, Any]) -> Artifact:
    artifact = Artifact(
        format=_typed(item["format"], str),
        precision=_typed(item["precision"], str),
        files=_records(item["files"]),
        inputs=_tensors(item["inputs"]),
        outputs=_tensors(item["outputs"]),
        pixels=PixelFormat.from_dict(item["pixels"]),
        axes={name: AxisRange.from_dict(sizes) for name, sizes in _typed(item["axes"], dict).items()},
        options=_plain(item["options"]),
        tools={name: _typed(version, str) for name, version in _typed(item["tools"], dict).items()},
        validation=_validation(item["validation"]),
        hardware=None if item["hardware"] is None else _plain(item["hardware"]),
    )
    _check_files(artifact)
    _check_pixels(artifact)
    _check_engine(artifact)
    return artifact


def _tensors(items: Any) -> tuple[TensorSpec, ...]:
    """What goes in or comes out: one tensor or more, each with a name of its own and axes."""
    specs = tuple(TensorSpec.from_dict(spec) for spec in _typed(items, list))
    for spec in specs:
        spec.name.encode()  # which raises ValueError where it is no text
        if not spec.shape or any(isinstance(axis, int) and axis < 0 for axis in spec.shape):
            raise ValueError(f"a tensor must have axes, and sizes from 0 up, is {spec}")
    if len({spec.name for spec in specs}) < max(1, len(specs)):
        raise ValueError(f"tensors must have names of their own, got {[spec.name for spec in specs]}")
    return specs


def _check_files(artifact: Artifact) -> None:
    """There is a file to open, and the others are where it finds them."""
    if not artifact.files:
        raise ValueError(f"{artifact.name} has no file")
    first, *others = (PurePosixPath(file.path) for file in artifact.files)
    if not all(other.is_relative_to(first.parent) for other in others):
        raise ValueError(f"the files of {artifact.name} must lie beside {first}, got {', '.join(map(str, others))}")


def _check_engine(artifact: Artifact) -> None:
    """An engine is one file of a known precision, with profiles; nothing else waits to be run."""
    engine = artifact.format in ENGINE_FORMATS
    if engine and len(artifact.files) != 1:
        raise ValueError(f"{artifact.name} must be one file, has {len(artifact.files)}")
    if engine:
        Precision(artifact.precision)  # ValueError
    if not engine and "status" in artifact.validation:
        raise ValueError(f"{artifact.name} must have been run, and is no engine: {', '.join(ENGINE_FORMATS)}")
    sizes = artifact.pixels.free_size(artifact.inputs[0].shape)
    for axis in ("batch", *sizes):
        if engine or axis in artifact.options:
            profiles = _texts(artifact.options[axis])
            if not profiles:
                raise ValueError(f"{axis} of {artifact.name} must be one or more of MIN:OPT:MAX, is none")
            for profile in profiles:
                read_range(profile)
    if engine and len({len(artifact.options[axis]) for axis in sizes}) > 1:
        raise ValueError(f"{' and '.join(sizes)} of {artifact.name} must be of as many profiles")
    _texts((artifact.hardware or {}).get("compute_capabilities", []))


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
    channels = pixels.channels(images.shape)
    if images.dtype != pixels.dtype or channels not in MODES or (fixed and pixels.stage is PixelStage.DECODED):
        raise ValueError(f"the first input must be {pixels.stage} {pixels.dtype} {pixels.layout} images, is {images}")


def _validation(item: Any) -> dict[str, Any]:
    """What `inspect` shows of a validation is there; an artifact without one has none of it."""
    if _typed(item, dict):
        for key in ("images", "engine"):
            _typed(item[key], str)
        if item["tolerance"] is not None:  # as where a cosine judges
            _typed(item["tolerance"], float)
        _typed(item.get("status", ""), str)
        for output in _typed(item["outputs"], list):
            _typed(output["output"], str)
            _typed(output["max_relative"], float)
        for left_out in _typed(item.get("left_out", {}), dict).values():
            _typed(left_out["files"], int)
            _texts(left_out["empty_folders"])
            for reason in _typed(left_out["reasons"], list):
                _typed(reason["reason"], str)
                _typed(reason["files"], int)
        for output in _typed(item.get("calibration_images", []), list):
            _typed(output["output"], str)
            _typed(output["images"], int)
            for name in ("mean_cosine", "top1_agreement"):
                if output[name] is not None:
                    _typed(output[name], float)
            for name in ("p5_cosine", "relative_error", "neighbour_agreement"):
                if output.get(name) is not None:
                    _typed(output[name], float)
    return dict(item)


def _text_or_none(item: Any) -> str | None:
    return None if item is None else _typed(item, str)


def _texts(items: Any) -> list[str]:
    return [_typed(item, str) for item in _typed(items, list)]


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
    if kind is float:
        float(value)  # type: ignore[arg-type]  # which raises OverflowError where it is too large for one
    return value  # type: ignore[return-value]
