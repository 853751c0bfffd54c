"""A bundle: a Hugging Face model folder with artifacts and a manifest that vouches for every file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from vitdeploy.atomic import exclusive, replace_folder
from vitdeploy.errors import BundleError, UsageError
from vitdeploy.labels import class_names
from vitdeploy.specs import Task, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1


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

    def to_dict(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """Read what `to_dict` gives.

        Raises:
            BundleError: a key is missing or its value is not what it must be, or the schema is a newer one.
        """
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{MANIFEST}: schema_version must be {SCHEMA_VERSION}, got {version!r}; "
                f"use the vitdeploy version that wrote the bundle, or export it again"
            )
        try:
            source = data["source"]
            return cls(
                source=Source(str(source["id"]), source["revision"], _records(source["weights"])),
                task=Task(data["task"]).value,
                files=_records(data["files"]),
                artifacts=tuple(_artifact(item) for item in data["artifacts"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise BundleError(f"{MANIFEST} must have every field of its schema: {type(exc).__name__} {exc}") from exc


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A folder and its manifest.

    Attributes:
        path: the folder.
        manifest: what the folder vouches for.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read the manifest in `path`; the other files are verified when they are used.

        Raises:
            BundleError: there is no bundle at `path`, or its manifest is corrupt.
        """
        folder = Path(path)
        file = folder / MANIFEST
        try:
            data = json.loads(file.read_bytes())
        except FileNotFoundError as exc:
            raise BundleError(f"{folder} must be a bundle, but has no {MANIFEST}; make one: vitdeploy export") from exc
        except OSError as exc:
            raise BundleError(f"{file} must be readable: {exc.strerror}") from exc
        except (ValueError, RecursionError) as exc:
            raise BundleError(f"{file} must hold JSON: {exc}; export the bundle again") from exc
        if not isinstance(data, dict):
            raise BundleError(f"{file} must hold a JSON object, got {type(data).__name__}; export the bundle again")
        return cls(folder, Manifest.from_dict(data))

    @property
    def config(self) -> dict[str, Any]:
        """The verified content of `config.json`."""
        (path,) = self.verified(record for record in self.manifest.files if record.path == "config.json")
        config: dict[str, Any] = json.loads(path.read_bytes())
        return config

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return class_names(self.config)

    def artifact(self, format: str, precision: str) -> Artifact:  # noqa: A002  (the manifest's word)
        """The artifact of that format and precision.

        Raises:
            UsageError: the bundle has none.
        """
        for artifact in self.manifest.artifacts:
            if (artifact.format, artifact.precision) == (format, precision):
                return artifact
        names = ", ".join(artifact.name for artifact in self.manifest.artifacts) or "none"
        raise UsageError(
            f"{self.path} has no artifact {format}-{precision}, only: {names}; make it: "
            f"vitdeploy export --to {format} --precision {precision}"
        )

    def verified(self, records: Iterable[FileRecord]) -> tuple[Path, ...]:
        """The paths of files whose sizes and checksums are those of the manifest.

        Raises:
            BundleError: a file is missing, unreadable or altered.
        """
        records = tuple(records)
        for record in records:
            path = self.path / record.path
            try:
                found = FileRecord.of(self.path, record.path)
            except OSError as exc:
                raise BundleError(f"{path} must be readable: {exc.strerror}; export the bundle again") from exc
            if found != record:
                raise BundleError(
                    f"{path} must have SHA-256 {record.sha256[:12]}… and {record.size_bytes} bytes, "
                    f"has {found.sha256[:12]}… and {found.size_bytes}; it was altered: export or copy it again"
                )
        return tuple(self.path / record.path for record in records)

    def verify(self) -> None:
        """Check every file that the manifest names.

        Raises:
            BundleError: as `verified`.
        """
        self.verified(self.manifest.files)
        for artifact in self.manifest.artifacts:
            self.verified(artifact.files)


def check_target(target: Path) -> None:
    """Raise UsageError unless `target` may take a bundle: absent, an empty folder, or a bundle."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} must be a folder, is a file; choose another output")
    if not (target / MANIFEST).exists() and any(target.iterdir()):
        raise UsageError(f"{target} must be empty or a bundle, holds other files; choose another output")


def commit(staging: Path, target: Path, manifest: Manifest) -> Bundle:
    """Make `staging`, the content of a bundle with one artifact, take the place of `target`.

    Artifacts and other files that `target` has already are kept; an artifact of the same format and precision is
    replaced.

    Args:
        staging: a folder with every file that `manifest` names.
        target: where the bundle is to be.
        manifest: of what is in `staging`.

    Raises:
        UsageError: `target` holds another model, or files that are no bundle.
        OSError: a file cannot be written; `target` is as it was.
    """
    with exclusive(target):
        check_target(target)
        if (target / MANIFEST).exists():
            manifest = _with_existing(staging, Bundle.open(target), manifest)
        text = json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False) + "\n"
        (staging / MANIFEST).write_text(text, encoding="utf-8")
        replace_folder(staging, target)
    return Bundle(target, manifest)


def _with_existing(staging: Path, old: Bundle, new: Manifest) -> Manifest:
    old_files = {record.path: record.sha256 for record in old.manifest.files}
    new_files = {record.path: record.sha256 for record in new.files}
    if old_files != new_files or old.manifest.task != new.task:
        raise UsageError(
            f"{old.path} must hold the same model, holds {old.manifest.source.id} ({old.manifest.task}); "
            f"choose another output or remove it"
        )
    names = {artifact.name for artifact in new.artifacts}
    replaced = [artifact for artifact in old.manifest.artifacts if artifact.name in names]
    kept = [artifact for artifact in old.manifest.artifacts if artifact.name not in names]
    dropped = {record.path for artifact in replaced for record in artifact.files} | {MANIFEST}
    for folder, _, files in os.walk(old.path):
        for file in files:
            source = Path(folder, file)
            path = source.relative_to(old.path)
            if path.as_posix() in dropped or (staging / path).exists():
                continue
            (staging / path).parent.mkdir(parents=True, exist_ok=True)
            _link(source, staging / path)
    artifacts = sorted((*kept, *new.artifacts), key=lambda artifact: artifact.name)
    return dataclasses.replace(new, artifacts=tuple(artifacts))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a filesystem without hard links
        shutil.copy2(source, target)


def _digest(file: Any) -> Any:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest


def _records(items: Any) -> tuple[FileRecord, ...]:
    return tuple(
        FileRecord(_inside(item["path"]), int(item["size_bytes"]), str(item["sha256"]).lower()) for item in items
    )


def _inside(path: Any) -> str:
    """`path`, when it is a plain relative one that cannot leave the bundle on any system."""
    parts = PurePosixPath(path).parts
    if (
        not parts
        or PurePosixPath(path).is_absolute()
        or PureWindowsPath(path).anchor
        or "\\" in path
        or "\0" in path
        or ".." in parts
    ):
        raise BundleError(f"{MANIFEST}: file names must stay inside the bundle, got {path!r}; do not use this bundle")
    return str(path)


def _artifact(item: Mapping[str, Any]) -> Artifact:
    return Artifact(
        format=str(item["format"]),
        precision=str(item["precision"]),
        files=_records(item["files"]),
        inputs=tuple(TensorSpec.from_dict(spec) for spec in item["inputs"]),
        outputs=tuple(TensorSpec.from_dict(spec) for spec in item["outputs"]),
        options=dict(item["options"]),
        tools=dict(item["tools"]),
        validation=dict(item["validation"]),
        hardware=item["hardware"],
    )
