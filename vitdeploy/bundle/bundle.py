"""A bundle: a Hugging Face model folder with artifacts, and a manifest with the checksum of every file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import cast

from vitdeploy.bundle.configuration import Configuration
from vitdeploy.bundle.external_data import check_external_data
from vitdeploy.bundle.manifest import CONFIG, MANIFEST, Artifact, FileRecord, Manifest
from vitdeploy.bundle.manifest_parser import parse_manifest
from vitdeploy.bundle.signature import check_signature
from vitdeploy.errors import BundleChangedError, BundleError, UsageError, VitDeployError, shown, typed_line
from vitdeploy.files.file_kinds import PROCESSOR_CONFIGS, is_model_file_name
from vitdeploy.files.json_text import json_object, strict_json
from vitdeploy.files.opened import FileChangedError, FileDiffersError, OpenedFile, VerifiedFile, opened_folder
from vitdeploy.files.regular_file import MOST_TEXT_BYTES, read_regular
from vitdeploy.specs import PixelStage
from vitdeploy.system.argument_types import typed

EXPORT_AGAIN = "export the bundle again"


@dataclasses.dataclass(frozen=True, repr=False)
class Bundle:
    """A folder, and the manifest of its files and artifacts."""

    path: Path
    manifest: Manifest
    _config: Configuration | None = dataclasses.field(default=None, init=False, compare=False)
    _whole: Manifest | None = dataclasses.field(default=None, init=False, compare=False)

    def __repr__(self) -> str:
        names = ", ".join(artifact.name for artifact in self.manifest.artifacts)
        count = len(self.manifest.artifacts)
        artifacts = f"{count} artifact{'' if count == 1 else 's'}{names and f' ({names})'}"
        return f"<Bundle {str(self.path)!r}: {self.manifest.source.id!r}, {self.manifest.task}, {artifacts}>"

    @classmethod
    def of(cls, bundle: str | os.PathLike[str] | Bundle) -> Bundle:
        """The bundle itself, or the one in a folder; raises as `open`."""
        return bundle if isinstance(bundle, Bundle) else cls.open(bundle)

    @classmethod
    @typed
    def open(cls, path: str | os.PathLike[str], *, public_key: str | os.PathLike[str] | None = None) -> Bundle:
        """Read the manifest in `path`. Other files are verified on use.

        Args:
            path: The bundle's folder.
            public_key: Key that must have signed the manifest; see `vitdeploy.bundle.signature.check_signature`.

        Raises:
            BundleError: If the manifest cannot be used, or the key did not sign it.
            InputError: If the key cannot be read.
            MissingDependencyError: If a key is given, and model-signing is not installed.
        """
        folder = Path(path)
        try:
            exists = (folder / MANIFEST).exists()
        except (OSError, ValueError) as exc:  # a name too long, or with a null byte
            raise BundleError(f"{folder} cannot be read: {exc}", where=folder, hint="name another folder") from exc
        if not exists:
            message = f"{folder} is not a vitdeploy bundle (no {MANIFEST})"
            raise BundleError(message, where=folder, hint=_bundle_instead(folder))
        file = folder / MANIFEST
        try:
            content = read_regular(file)
        except OSError as exc:
            raise BundleError(f"{file} cannot be read: {exc.strerror}", where=file, hint=EXPORT_AGAIN) from exc
        if public_key is not None:
            check_signature(folder, content, public_key)
        return cls.parse(folder, content)

    @classmethod
    def parse(cls, folder: Path, manifest: bytes) -> Bundle:
        """The bundle in a folder with this content of its manifest; BundleError if it cannot be used."""
        file = folder / MANIFEST
        return cls(folder, parse_manifest(json_object(file, manifest, BundleError, strict_json, EXPORT_AGAIN), file))

    def reopened(self) -> Bundle:
        """Open the bundle that is now in the folder; it must have the same model and image processor.

        Raises:
            BundleChangedError: If it has another model or image processor.
            BundleError: As `open`.
        """
        now = Bundle.open(self.path)
        if (now.manifest.files, now.manifest.task) != (self.manifest.files, self.manifest.task):
            message = f"{self.path} was replaced by the bundle of another model"
            raise BundleChangedError(message, where=self.path, hint="open it again")
        return now

    def with_only(self, artifact: Artifact) -> Bundle:
        """The bundle with that artifact and those that it needs: a backend with several formats opens it."""
        needed = tuple(dict.fromkeys(other.name for other in self.needed_for(artifact)))
        kept = tuple(other for other in self.manifest.artifacts if other.name in needed)
        part = Bundle(self.path, dataclasses.replace(self.manifest, artifacts=kept).with_valid_choice())
        object.__setattr__(part, "_whole", self._whole or self.manifest)
        return part

    def read_config(self) -> Configuration:
        """Read `config.json` and the image processor's files; cached.

        Raises:
            BundleError: If one is missing or altered, or exists in the folder but not in the manifest; or `config.json`
                is not JSON.
        """
        if self._config is None:
            files = {record.path: self.read(record, MOST_TEXT_BYTES) for record in self._config_records()}
            object.__setattr__(self, "_config", Configuration.of(self.path, files, self.manifest.task))
        return cast("Configuration", self._config)

    def _config_records(self) -> list[FileRecord]:
        """Records of `config.json` and of the image processor's files; refuses such files without a record."""
        records = {record.path: record for record in self.manifest.files}
        for name in (CONFIG, *PROCESSOR_CONFIGS):
            if name not in records and (self.path / name).exists():
                if self._is_replaced():
                    raise _changed(self.path)
                path = self.path / name
                message = f"{path} is not recorded in {MANIFEST}"
                raise BundleError(message, where=path, hint="remove it, or export again")
        if CONFIG not in records:
            file = self.path / MANIFEST
            raise BundleError(f"{file} does not record {CONFIG}", where=file, expected=CONFIG, hint=EXPORT_AGAIN)
        return [records[name] for name in (CONFIG, *PROCESSOR_CONFIGS) if name in records]

    @property
    def dynamic_image_size(self) -> bool:
        """True if an artifact's model takes any image size; the reference then does too."""
        models = [artifact for artifact in self.manifest.artifacts if artifact.pixels.stage is not PixelStage.DECODED]
        axes = [axis for artifact in models for spec in artifact.inputs for axis in spec.shape[1:]]
        return any(isinstance(axis, str) for axis in axes)

    def artifacts(self, formats: Sequence[str]) -> list[Artifact]:
        """The artifacts in these formats; of two in the same precision, the one whose format comes first."""
        preferred: dict[str, Artifact] = {}
        for kind in formats:
            for artifact in self.manifest.artifacts:
                if artifact.format == kind:
                    preferred.setdefault(artifact.precision, artifact)
        return [artifact for artifact in self.manifest.artifacts if preferred.get(artifact.precision) is artifact]

    def artifact(self, format: str | Sequence[str], precision: str) -> Artifact:  # noqa: A002  (the manifest's word)
        """The artifact in that precision, and in that format or the first of these that the bundle has.

        Raises:
            UsageError: If the bundle has none.
        """
        formats = (format,) if isinstance(format, str) else format
        for artifact in self.artifacts(formats):
            if artifact.precision == precision:
                return artifact
        names = [artifact.name for artifact in self.manifest.artifacts]
        if not isinstance(precision, str):
            message = f"{shown(precision)} is not the name of a precision"
            raise UsageError(message, what="precision", found=precision, hint=f"{self.path} has {', '.join(names)}")
        raise UsageError(
            f"{self.path} has no artifact {formats[0]}-{precision}, only: {', '.join(names) or 'none'}",
            what="precision", where=self.path, expected=names, found=f"{formats[0]}-{precision}",
            hint=f"make it: {self.export_line('--to', formats[0], '--precision', precision)}",
        )  # fmt: skip

    def export_line(self, *options: object) -> str:
        """A shell command that exports the model again with these options, into this bundle if it has weights."""
        source = self.manifest.source
        if self.manifest.has_reference:
            return typed_line("export", self.path, *options, "-o", self.path)
        return typed_line("export", source.id, *(("--revision", source.revision) if source.revision else ()), *options)

    def needed_for(self, artifact: Artifact) -> tuple[Artifact, ...]:
        """The artifacts needed to run one: a weight-stripped engine takes its weights from the ONNX artifact."""
        if artifact.options.get("strip_weights") is not True:
            return (artifact,)
        return artifact, self.artifact("onnx", artifact.precision)

    def records_for(self, artifact: Artifact) -> tuple[FileRecord, ...]:
        """The files needed to run an artifact, the configuration's first."""
        needed = (record for other in self.needed_for(artifact) for record in other.files)
        return (*self.manifest.configuration, *needed)

    @contextlib.contextmanager
    def opened(self, records: Collection[FileRecord], *, by_name: bool = False) -> Iterator[tuple[OpenedFile, ...]]:
        """Open files for reading in this block, with sizes and checksums verified against the manifest.

        Each is opened once: its `handle` leads to the hashed content, even if the file is replaced meanwhile. At the
        end of the block, they are checked for writes.

        Args:
            records: Records in the manifest.
            by_name: See `opened_artifact`.

        Raises:
            BundleError: If a file is missing, unreadable or altered.
            BundleChangedError: If the bundle was replaced since its manifest was read, or a file was written to in this
                block.
        """
        names = {record.path: self.path / record.path for record in records} if by_name else None
        with self._open(records, names) as files:
            yield tuple(file.file for file in files)

    @contextlib.contextmanager
    def opened_artifact(self, artifact: Artifact, *, by_name: bool = False) -> Iterator[tuple[OpenedFile, ...]]:
        """As `opened`, for an artifact's files; several have handles in one folder, where the first finds the others.

        Args:
            artifact: Artifact in the manifest.
            by_name: Use the files' paths as handles, for a library that opens them again later; at the end of the
                block, they are checked to lead to the hashed content.

        Raises:
            BundleError: As `opened`; or if an ONNX model has external data in a file that the manifest does not record.
        """
        with contextlib.ExitStack() as stack:
            names = None
            if by_name:
                names = {record.path: self.path / record.path for record in artifact.files}
            elif len(artifact.files) > 1:
                names = self._names_in_a_folder(artifact, stack)
            files = stack.enter_context(self._open(artifact.files, names))
            if artifact.format == "onnx":
                check_external_data(artifact, files[0].file.path, files[0].stream)
            yield tuple(file.file for file in files)

    def read(self, record: FileRecord, most_bytes: int | None = None) -> bytes:
        """The verified content of a file; BundleError as `opened`, or if it exceeds `most_bytes`."""
        if most_bytes is not None and record.size_bytes > most_bytes:
            path, size = self.path / record.path, record.size_bytes
            message = f"{path} has {size:,} bytes; at most {most_bytes:,} are read"
            raise BundleError(message, where=path, expected=most_bytes, found=size)
        try:
            content = read_regular(self.path / record.path, record.size_bytes)
        except OSError as exc:
            raise self._refusal(record) from exc
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise self._refusal(record)
        return content

    def verify(self) -> None:
        """Check every file in the manifest.

        Raises:
            BundleError: As `read_config` and `opened_artifact`.
            BundleChangedError: If the bundle was replaced since its manifest was read.
        """
        self._config_records()
        with self.opened(self.manifest.files):
            pass
        for artifact in self.manifest.artifacts:
            with self.opened_artifact(artifact):
                pass
        if self.manifest.tuned is not None:
            with self.opened([self.manifest.tuned.evidence]):
                pass

    def _names_in_a_folder(self, artifact: Artifact, stack: contextlib.ExitStack) -> dict[str, Path]:
        """Paths of an artifact's files in one folder, valid even if the folder is renamed."""
        first = artifact.files[0]
        above = PurePosixPath(first.path).parent
        try:
            folder = stack.enter_context(opened_folder(self.path / above))
        except OSError as exc:
            raise self._refusal(first) from exc
        return {record.path: folder / PurePosixPath(record.path).relative_to(above) for record in artifact.files}

    @contextlib.contextmanager
    def _open(
        self, records: Iterable[FileRecord], names: Mapping[str, Path] | None = None
    ) -> Iterator[list[VerifiedFile]]:
        files: list[VerifiedFile] = []
        with contextlib.ExitStack() as stack:
            for record in records:
                path, name = self.path / record.path, None if names is None else names[record.path]
                try:
                    file = VerifiedFile(path, record.size_bytes, record.sha256, name=name, base=self.path)
                except (OSError, FileDiffersError) as exc:
                    raise self._refusal(record) from exc
                except FileChangedError as exc:
                    raise _changed(self.path / record.path) from exc
                stack.callback(file.close)
                files.append(file)
            try:
                yield files
            except VitDeployError:
                _check_unchanged(files)  # this may be why it failed
                raise
            _check_unchanged(files)

    def _refusal(self, record: FileRecord) -> BundleError:
        """The error for a file that differs from the manifest."""
        path, before = self.path / record.path, _place(self.path)
        try:
            VerifiedFile(path, record.size_bytes, record.sha256).close()
            error: BundleError = _changed(path)  # it is now
        except FileChangedError:
            error = _changed(path)
        except OSError as exc:
            error = BundleError(f"{path} cannot be read: {exc.strerror}", where=path, hint=EXPORT_AGAIN)
        except FileDiffersError as exc:
            message = f"{path} was altered: it is not the file that {MANIFEST} records ({exc})"
            error = BundleError(message, where=path, expected=record.sha256, hint="export or copy it again")
        return _changed(self.path) if self._is_replaced() or before != _place(self.path) else error

    def _is_replaced(self) -> bool:
        """True if the folder now has another bundle, or none."""
        try:
            return Bundle.open(self.path).manifest != (self._whole or self.manifest)
        except BundleError:
            return True


def _check_unchanged(files: Iterable[VerifiedFile]) -> None:
    for file in files:
        try:
            file.check()
        except (OSError, FileChangedError) as exc:
            raise _changed(file.file.path) from exc


def _changed(path: Path) -> BundleChangedError:
    message = f"{path} was replaced or written to while it was read"
    return BundleChangedError(message, where=path, hint="try again when whatever writes it is done")


def _place(folder: Path) -> tuple[tuple[int, int, int], ...] | None:
    """Identity and times of a bundle's folder and manifest, which change when it is replaced."""
    try:
        stats = folder.stat(), (folder / MANIFEST).stat()
    except OSError:
        return None
    return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)


def _bundle_instead(path: Path) -> str:
    """The remedy for a path that is not a bundle."""
    around = next((parent for parent in path.parents if (parent / MANIFEST).is_file()), None)
    if around is not None:
        return f"name the bundle that it is in: {around}"
    if is_model_file_name(path.name) and path.is_file():
        return "only bundles are opened: export the checkpoint that the file was made from"
    if (path / CONFIG).is_file():
        return f"make one of this checkpoint: {typed_line('export', path)}"
    if os.path.lexists(path):
        return "name a folder that vitdeploy export wrote"
    return f"make one: {typed_line('export', 'google/vit-base-patch16-224', '-o', path)}"
