"""Parse a manifest; refuse one that is incomplete, contradictory or names files outside the bundle."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from vitdeploy.bundle.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    Artifact,
    FileRecord,
    Manifest,
    PackedFrom,
    ProcessorOrigin,
    Source,
    TunedChoice,
)
from vitdeploy.errors import BundleError, shown
from vitdeploy.specs import (
    ENGINE_FORMATS,
    MODES,
    MOST_A_BATCH,
    AxisRange,
    PixelFormat,
    PixelStage,
    Precision,
    Task,
    TensorSpec,
    read_range,
)

T = TypeVar("T")

_READABLE = (2, SCHEMA_VERSION)  # version 2 does not record the image processor's origin


def parse_manifest(data: Mapping[str, Any], file: Path = Path(MANIFEST)) -> Manifest:
    """Parse the output of `Manifest.to_dict`; `file` is named in errors.

    Raises:
        BundleError: If a key is missing or invalid, or the schema version is newer; `what` is the key, such as
            "artifacts[0].files".
    """
    version = data.get("schema_version")
    if type(version) is not int or version not in _READABLE:
        raise BundleError(
            f"{file} has schema version {shown(version)}; this vitdeploy reads {' and '.join(map(str, _READABLE))}",
            what="schema_version", where=file, expected=_READABLE, found=version,
            hint="use the vitdeploy version that wrote the bundle, or export it again",
        )  # fmt: skip
    root = _Node(data, "", file)
    source = root["source"]
    manifest = Manifest(
        source=Source(
            source["id"].typed(str),
            source["revision"].optional(str),
            _records(source["weights"]),
            None if version == 2 else _processor_origin(source["processor"]),
            source.get("base").optional(str),  # missing in older manifests
            source.get("base_revision").optional(str),
            source.get("architecture").optional(str),
            _license(source.get("license")),
        ),
        task=root["task"].read(Task).value,
        files=_records(root["files"]),
        artifacts=tuple(map(_artifact, root["artifacts"].items())),
        packed_from=_packed_from(root.get("packed_from")),
        tuned=_tuned(root.get("tuned")),
    )
    names = [artifact.name for artifact in manifest.artifacts]
    if len(set(names)) < len(names):
        raise root["artifacts"].error(f"names an artifact twice: {', '.join(names)}")
    if manifest.tuned is not None and manifest.tuned_artifact is None:
        problem = f"chooses {manifest.tuned.artifact}, which is not the artifact that was measured"
        raise root["tuned"].error(problem, "remove the key from the manifest, and tune the bundle again")
    return manifest


def _license(node: _Node) -> dict[str, str] | None:
    return None if node.value is None else {key: value.typed(str) for key, value in node.values().items()}


@dataclasses.dataclass(frozen=True)
class _Node:
    """A value in a manifest, and the keys that lead to it."""

    value: Any
    place: str
    file: Path

    def __getitem__(self, key: str) -> _Node:
        node = self.get(key)
        if key not in self.value:
            raise node.error("is missing")
        return node

    def get(self, key: str) -> _Node:
        """The value of a key, or None."""
        place = f"{self.place}.{key if key.isprintable() else ascii(key)}"
        return _Node(self.typed(dict).get(key), place.lstrip("."), self.file)

    def items(self) -> list[_Node]:
        return [_Node(item, f"{self.place}[{index}]", self.file) for index, item in enumerate(self.typed(list))]

    def values(self) -> dict[str, _Node]:
        return {key: self[key] for key in self.typed(dict)}

    def texts(self) -> list[str]:
        return [node.typed(str) for node in self.items()]

    def typed(self, kind: type[T]) -> T:
        """The value, if it is a `kind`; an integer is also a float, booleans are not numbers."""
        kinds = (int, float) if kind is float else (kind,)
        if not isinstance(self.value, kinds) or (isinstance(self.value, bool) and kind is not bool):
            raise self.error(f"is {shown(self.value)}, not a value of type {kind.__name__}")
        if kind is float:
            self.read(float)  # an integer may be too large for a float
        return self.value  # type: ignore[return-value]

    def optional(self, kind: type[T]) -> T | None:
        return None if self.value is None else self.typed(kind)

    def read(self, parse: Callable[[Any], T]) -> T:
        try:
            return parse(self.value)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as exc:
            raise self.error(f"is not valid: {exc}") from exc

    def plain(self) -> dict[str, Any]:
        """Names with plain values, or lists of them."""
        for node in self.values().values():
            for part in node.value if isinstance(node.value, list) else [node.value]:
                if isinstance(part, (dict, list)):
                    raise node.error("is neither a plain value nor a list of them")
        return dict(self.value)

    def error(self, problem: str, hint: str = "export the bundle again") -> BundleError:
        message = f"{self.file}: {self.place} {problem}"
        return BundleError(message, what=self.place, where=self.file, found=self.value, hint=hint)


def _records(node: _Node) -> tuple[FileRecord, ...]:
    records = tuple(map(_record, node.items()))
    if len({record.path for record in records}) < len(records):
        raise node.error("names a file twice")
    return records


def _record(node: _Node) -> FileRecord:
    path, size = node["path"], node["size_bytes"]
    _check_inside(path)
    if not 0 <= size.typed(int) < 1 << 63:
        raise size.error("is not a size in bytes")
    return FileRecord(path.value, size.value, _sha256(node["sha256"]))


def _check_inside(node: _Node) -> None:
    """Check that a path is plain, relative, one line of text, and cannot leave the bundle on any system."""
    path = node.typed(str)
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
        raise node.error(f"is {shown(path)}, which is not the name of a file in the bundle", "do not use this bundle")


def _processor_origin(node: _Node) -> ProcessorOrigin | None:
    if node.value is None:  # an artifact was added to a bundle of version 2
        return None
    fields = node["id"].optional(str), node["revision"].optional(str), tuple(node["settings"].texts())
    return node["kind"].read(lambda kind: ProcessorOrigin(kind, *fields))


def _packed_from(node: _Node) -> PackedFrom | None:
    if node.value is None:  # it was exported
        return None
    sha256 = _sha256(node["manifest_sha256"])
    return PackedFrom(sha256, _records(node["files"]), tuple(node["artifacts"].texts()))


def _tuned(node: _Node) -> TunedChoice | None:
    if node.value is None:  # it was never tuned
        return None
    batch_size = node["batch_size"]
    if not 1 <= batch_size.typed(int) <= MOST_A_BATCH:
        raise batch_size.error(f"is not a number of images from 1 to {MOST_A_BATCH}")
    return TunedChoice(
        artifact=node["artifact"].typed(str),
        artifact_sha256=tuple(map(_sha256, node["artifact_sha256"].items())),
        backend=node["backend"].typed(str),
        options=node["options"].plain(),
        batch_size=batch_size.value,
        machine={name: value.typed(str) for name, value in node["machine"].values().items()},
        evidence=_record(node["evidence"]),
    )


def _sha256(node: _Node) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", node.typed(str)):
        raise node.error("is not a SHA-256 in hexadecimal")
    return str(node.value).lower()


def _artifact(node: _Node) -> Artifact:
    artifact = Artifact(
        format=node["format"].typed(str),
        precision=node["precision"].typed(str),
        files=_records(node["files"]),
        inputs=_tensors(node["inputs"]),
        outputs=_tensors(node["outputs"]),
        pixels=node["pixels"].read(PixelFormat.from_dict),
        axes={name: sizes.read(AxisRange.from_dict) for name, sizes in node["axes"].values().items()},
        options=node["options"].plain(),
        tools={name: version.typed(str) for name, version in node["tools"].values().items()},
        validation=_validation(node["validation"]),
        hardware=None if node["hardware"].value is None else node["hardware"].plain(),
    )
    _check_files(node["files"], artifact)
    _check_pixels(node, artifact)
    _check_engine(node, artifact)
    return artifact


def _tensors(node: _Node) -> tuple[TensorSpec, ...]:
    """One tensor or more, each with a unique name and axes."""
    specs = tuple(item.read(TensorSpec.from_dict) for item in node.items())
    for spec, item in zip(specs, node.items(), strict=True):
        item["name"].read(str.encode)  # half of a surrogate pair is not text
        if not spec.shape or any(isinstance(axis, int) and axis < 0 for axis in spec.shape):
            raise item["shape"].error(f"is {spec.shape}: a tensor has axes, and sizes from 0 up")
    if len({spec.name for spec in specs}) < max(1, len(specs)):
        raise node.error(f"has no tensors, or two of the same name: {[spec.name for spec in specs]}")
    return specs


def _check_files(node: _Node, artifact: Artifact) -> None:
    """Check that there is a main file, and that it finds the others."""
    if not artifact.files:
        raise node.error("is empty")
    first, *others = (PurePosixPath(file.path) for file in artifact.files)
    if not all(other.is_relative_to(first.parent) for other in others):
        raise node.error(f"has files that do not lie beside {first}: {', '.join(map(str, others))}")


def _check_engine(node: _Node, artifact: Artifact) -> None:
    """Check that an engine is one file of a known precision, with profiles; only engines may be unvalidated."""
    engine = artifact.format in ENGINE_FORMATS
    if engine and len(artifact.files) != 1:
        raise node["files"].error(f"has {len(artifact.files)} files; an engine is one")
    if engine:
        node["precision"].read(Precision)
    if not engine and "status" in artifact.validation:
        raise node["validation"]["status"].error(f"is for engines alone: {', '.join(ENGINE_FORMATS)}")
    options, sizes = node["options"], artifact.pixels.free_size(artifact.inputs[0].shape)
    for axis in ("batch", *sizes):
        if engine or axis in artifact.options:
            profiles = options[axis].items()
            if not profiles:
                raise options[axis].error("has no profile, such as 1:8:32")
            for profile in profiles:
                profile.typed(str)
                profile.read(read_range)
    if engine and len({len(artifact.options[axis]) for axis in sizes}) > 1:
        raise options.error(f"has not as many profiles of {sizes[0]} as of {sizes[1]}")
    if artifact.hardware is not None and "compute_capabilities" in artifact.hardware:
        node["hardware"]["compute_capabilities"].texts()


def _check_pixels(node: _Node, artifact: Artifact) -> None:
    """Check that the pixel format and the dynamic axes fit the inputs."""
    free = {axis for spec in artifact.inputs for axis in spec.shape if isinstance(axis, str)}
    if not free.issuperset(artifact.axes):
        raise node["axes"].error(f"has {list(artifact.axes)}; the free axes of the inputs are {sorted(free)}")
    images, pixels = artifact.inputs[0], artifact.pixels
    if len(images.shape) != 4:
        raise node["inputs"].error(f"begins with {images}, which are no images")
    height, width = pixels.size(images.shape)
    fixed = isinstance(height, int) or isinstance(width, int)
    channels = pixels.channels(images.shape)
    if images.dtype != pixels.dtype or channels not in MODES or (fixed and pixels.stage is PixelStage.DECODED):
        raise node["pixels"].error(f"are {pixels.stage} {pixels.dtype} {pixels.layout} images, the input is {images}")


def _validation(node: _Node) -> dict[str, Any]:
    """Check the fields of a validation that `inspect` shows; an artifact without one has none of them."""
    if node.typed(dict):
        for key in ("images", "engine"):
            node[key].typed(str)
        node["tolerance"].optional(float)  # None if judged by cosine
        if "status" in node.value:
            node["status"].typed(str)
        for output in node["outputs"].items():
            output["output"].typed(str)
            output["max_relative"].typed(float)
        for left_out in (node["left_out"].values() if "left_out" in node.value else {}).values():
            left_out["files"].typed(int)
            left_out["empty_folders"].texts()
            for reason in left_out["reasons"].items():
                reason["reason"].typed(str)
                reason["files"].typed(int)
        for output in node["calibration_images"].items() if "calibration_images" in node.value else []:
            output["output"].typed(str)
            output["images"].typed(int)
            for name in ("mean_cosine", "top1_agreement"):
                output[name].optional(float)
            for name in ("p5_cosine", "relative_error", "neighbour_agreement"):
                output.get(name).optional(float)
    return dict(node.value)
