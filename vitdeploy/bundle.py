"""A bundle: a Hugging Face model folder with artifacts and a manifest that vouches for every file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.atomic import exclusive, replace_folder, sync
from vitdeploy.errors import BundleError, UsageError
from vitdeploy.file_kinds import PROCESSOR_CONFIGS
from vitdeploy.kept_files import KeptFiles
from vitdeploy.labels import class_names
from vitdeploy.manifest import CONFIG, MANIFEST, NOT_RECORDED, Artifact, FileRecord, Manifest
from vitdeploy.scores import ProblemType, problem_type_of
from vitdeploy.specs import PixelStage

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping


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
        try:
            found = (folder / MANIFEST).exists()
        except (OSError, ValueError) as exc:  # a name too long, or with a null byte
            raise BundleError(f"{folder} must be a bundle, and cannot be read: {exc}") from exc
        if not found:
            raise BundleError(f"{folder} must be a bundle, but has no {MANIFEST}; make one: vitdeploy export")
        data = _read_json(folder / MANIFEST)
        try:
            return cls(folder, Manifest.from_dict(data))
        except BundleError as exc:
            raise BundleError(f"{folder}: {exc}") from exc

    @property
    def config(self) -> dict[str, Any]:
        """The verified content of `config.json`."""
        return _read_json(self.verified_configs()[CONFIG])

    def verified_configs(self) -> dict[str, Path]:
        """The verified paths of `config.json` and of the image processor's files, by name.

        Raises:
            BundleError: one is missing or altered, or lies in the folder although the manifest does not name it.
        """
        records = {record.path: record for record in self.manifest.files}
        for name in (CONFIG, *PROCESSOR_CONFIGS):
            if name not in records and (self.path / name).exists():
                raise BundleError(f"{self.path / name} must be named in {MANIFEST}, is not; remove it or export again")
        if CONFIG not in records:
            raise BundleError(f"{self.path / MANIFEST} must name {CONFIG}, does not; export the bundle again")
        names = [name for name in (CONFIG, *PROCESSOR_CONFIGS) if name in records]
        return dict(zip(names, self.verified(records[name] for name in names), strict=True))

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return class_names(self.config)

    @property
    def problem_type(self) -> ProblemType:
        """How `logits` are read: as classes of which one is the best, each by itself, or as values.

        Raises:
            CheckpointError: `config.json` has an unknown problem type.
        """
        return problem_type_of(self.manifest.task, self.config)

    @property
    def dynamic_image_size(self) -> bool:
        """Whether the model of an artifact takes images of other sizes than its own; the reference then does too."""
        models = [artifact for artifact in self.manifest.artifacts if artifact.pixels.stage is not PixelStage.DECODED]
        axes = [axis for artifact in models for spec in artifact.inputs for axis in spec.shape[1:]]
        return any(isinstance(axis, str) for axis in axes)

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
                if path.exists() and not path.is_file():  # a pipe or a device would never end
                    raise BundleError(f"{path} must be a file, is something else; export the bundle again")
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
        self.verified_configs()
        self.verified(self.manifest.files)
        for artifact in self.manifest.artifacts:
            self.verified(artifact.files)


def check_target(target: Path) -> None:
    """Raise UsageError unless `target` may take a bundle: absent, an empty folder, or a bundle.

    Nor may the working directory be in it: the folder is replaced whole, and who is there would be nowhere.
    """
    try:
        resolved = target.resolve()
        exists = resolved.exists()
    except (OSError, RuntimeError) as exc:  # a name too long, a loop of links
        raise UsageError(f"{target} must be a folder that can be made: {exc}; choose another output") from exc
    if not exists:
        return
    if not target.is_dir():
        raise UsageError(f"{target} must be a folder, is a file; choose another output")
    with contextlib.suppress(OSError):  # there is none
        if Path.cwd().is_relative_to(resolved):
            raise UsageError(
                f"a bundle must not be the working directory, nor around it, since its folder is replaced: got "
                f"{target}; cd out of it, and name it from there"
            )
    try:
        is_free = (target / MANIFEST).exists() or not any(target.iterdir())
    except OSError as exc:
        raise UsageError(f"{target} cannot be read: {exc.strerror}; choose another output") from exc
    if not is_free:
        raise UsageError(f"{target} must be empty or a bundle, holds other files; choose another output")


def commit(staging: Path, target: Path, manifest: Manifest, *, made_from: Artifact | None = None) -> Bundle:
    """Make `staging`, the content of a bundle with one artifact, take the place of `target`.

    Artifacts and other files that `target` has already are kept; an artifact of the same format and precision is
    replaced. See `vitdeploy.kept_files` for links.

    Args:
        staging: a folder with every file that `manifest` names.
        target: where the bundle is to be.
        manifest: of what is in `staging`.
        made_from: an artifact of `target` that the new one was made from, and has need of.

    Raises:
        BundleError: `target` has that no more: another process has replaced it, or the bundle.
        UsageError: `target` holds another model, or files that are no bundle.
        OSError: a file cannot be written; `target` is as it was.
    """
    target = target.resolve()
    sync(staging)  # which may take long: not while others wait
    with exclusive(target):
        check_target(target)
        old = Bundle.open(target) if made_from is not None or (target / MANIFEST).exists() else None
        if old is not None:
            kept = [(artifact.name, artifact.files) for artifact in old.manifest.artifacts]
            if made_from is not None and (made_from.name, made_from.files) not in kept:
                raise BundleError(f"{target} must still have the {made_from.name} that was begun with; export again")
            manifest = _with_existing(staging, old, manifest)
        (staging / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        replace_folder(staging, target)
    return Bundle(target, manifest)


def check_same_model(old: Bundle, files: Mapping[str, str], task: str) -> None:
    """Whether a bundle can take an artifact of a model.

    Args:
        old: the bundle.
        files: the SHA-256 of the model's files, by name, with or without those of its weights.
        task: of the model.

    Raises:
        UsageError: the bundle holds another model, or the same with another image processor.
    """
    old_files = {record.path: record.sha256 for record in old.manifest.files}
    if not any(name in old.manifest.weights for name in files):
        old_files = {name: digest for name, digest in old_files.items() if name not in old.manifest.weights}
    changed = {name for name in {**old_files, **files} if old_files.get(name) != files.get(name)}
    if changed and changed <= set(PROCESSOR_CONFIGS):
        raise UsageError(
            f"{old.path} holds this model with another image processor: {old.manifest.processor or NOT_RECORDED}; "
            f"choose another output or give the same processor"
        )
    if changed or old.manifest.task != task:
        raise UsageError(
            f"{old.path} must hold the same model, holds {old.manifest.source.id} ({old.manifest.task}); "
            f"choose another output or remove it"
        )


def _with_existing(staging: Path, old: Bundle, new: Manifest) -> Manifest:
    check_same_model(old, {record.path: record.sha256 for record in new.files}, new.task)
    names = {artifact.name for artifact in new.artifacts}
    replaced = [artifact for artifact in old.manifest.artifacts if artifact.name in names]
    kept = [artifact for artifact in old.manifest.artifacts if artifact.name not in names]
    dropped = {MANIFEST, *(record.path for artifact in replaced for record in artifact.files)}
    records = (*old.manifest.files, *(record for artifact in kept for record in artifact.files))
    named = dropped.union(record.path for record in records)
    KeptFiles(old.path, staging, named, dropped).take()
    artifacts = sorted((*kept, *new.artifacts), key=lambda artifact: artifact.name)
    return dataclasses.replace(new, artifacts=tuple(artifacts))


def _read_json(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        raise BundleError(f"{path} must be a file, is something else; export the bundle again")
    try:
        data = json.loads(path.read_bytes())
    except OSError as exc:
        raise BundleError(f"{path} must be readable: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise BundleError(f"{path} must hold JSON: {exc}; export the bundle again") from exc
    if not isinstance(data, dict):
        raise BundleError(f"{path} must hold a JSON object, got {type(data).__name__}; export the bundle again")
    return data
