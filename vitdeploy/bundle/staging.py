"""Replace a bundle by a staged folder, with the bundle's other artifacts and files."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.kept_files import KeptFiles
from vitdeploy.bundle.manifest import MANIFEST, NOT_RECORDED, TUNING, Artifact, Manifest
from vitdeploy.errors import BundleError, UsageError, first_line
from vitdeploy.files.atomic import replace_folder, sync
from vitdeploy.files.file_kinds import PROCESSOR_CONFIGS, is_license_name
from vitdeploy.files.locks import locked


def check_target(target: Path) -> None:
    """Raise UsageError unless `target` can become a bundle: absent, an empty folder, or a bundle.

    The working directory must not be in it, because the folder is replaced as a whole.
    """

    def refusal(message: str, hint: str = "choose another output") -> UsageError:
        return UsageError(message, what="output", where=target, hint=hint)

    try:
        resolved = target.resolve()
        exists = resolved.exists()
    except (OSError, RuntimeError, ValueError) as exc:  # a name too long, a loop of links, a null byte
        raise refusal(f"{target!s:.400} cannot be made: {first_line(exc)}") from exc
    if not exists:
        return
    if not target.is_dir():
        raise refusal(f"{target} is a file, not a folder")
    with contextlib.suppress(OSError):  # there is none
        if Path.cwd().is_relative_to(resolved):
            raise refusal(f"the folder {target} is replaced, and holds the working directory", "cd out of it")
    try:
        is_free = (target / MANIFEST).exists() or not any(target.iterdir())
    except OSError as exc:
        raise refusal(f"{target} cannot be read: {exc.strerror}") from exc
    if not is_free:
        raise refusal(f"{target} is neither empty nor a bundle: it holds other files")


def commit(staging: Path, target: Path, manifest: Manifest, *, made_from: Artifact | None = None) -> Bundle:
    """Replace `target` by `staging`, the content of a bundle with one artifact.

    Other artifacts and files of `target` are kept; an artifact of the same format and precision is replaced, and with
    it a tuned choice of it is removed. See `vitdeploy.bundle.kept_files` for links.

    Args:
        staging: Folder with the files of the new artifacts, and the evidence of a new tuned choice.
        target: Path of the bundle.
        manifest: Manifest of the files in `staging`.
        made_from: Source artifact in `target` of the new one.

    Raises:
        BundleError: If `target` no longer has that artifact, because another process replaced it.
        UsageError: If `target` has another model, or other files.
        OSError: If a file cannot be written; `target` is unchanged.
    """
    target = target.resolve()
    synced = sync(staging)  # slow: before the lock is taken
    with locked(target.parent):
        check_target(target)
        is_addition = made_from is not None or manifest.tuned is not None
        old = Bundle.open(target) if is_addition or (target / MANIFEST).exists() else None
        if old is not None:
            kept = [(artifact.name, artifact.files) for artifact in old.manifest.artifacts]
            if made_from is not None and (made_from.name, made_from.files) not in kept:
                message = f"{target} no longer has the {made_from.name} that the export began with"
                raise BundleError(message, what=made_from.name, where=target, hint="export again")
            manifest = _with_existing(staging, old, manifest)
        (staging / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        replace_folder(staging, target, synced)
    return Bundle(target, manifest)


def check_same_model(old: Bundle, files: Mapping[str, str], task: str) -> None:
    """Check that a model's artifact can be added to a bundle.

    Args:
        old: The bundle.
        files: SHA-256 of the model's files, by name, with or without its weights.
        task: The model's task.

    Raises:
        UsageError: If the bundle has another model, or the same model with another image processor.
    """
    old_files = old.manifest.model_files
    if not any(name in old.manifest.weights for name in files):
        old_files = {name: digest for name, digest in old_files.items() if name not in old.manifest.weights}
    names = {**old_files, **files}  # a license changes no model
    changed = {name for name in names if old_files.get(name) != files.get(name) and not is_license_name(name)}
    if changed and changed <= set(PROCESSOR_CONFIGS):
        processor = old.manifest.processor or NOT_RECORDED
        raise UsageError(
            f"{old.path} holds this model with another image processor: {processor}",
            what="processor", where=old.path, found=processor, hint="choose another output or give the same processor",
        )  # fmt: skip
    if changed or old.manifest.task != task:
        model = old.manifest.source.id
        raise UsageError(
            f"{old.path} holds another model: {model} ({old.manifest.task})",
            what="model", where=old.path, found=model, hint="choose another output or remove it",
        )  # fmt: skip


def _with_existing(staging: Path, old: Bundle, new: Manifest) -> Manifest:
    check_same_model(old, {record.path: record.sha256 for record in new.files}, new.task)
    names = {artifact.name for artifact in new.artifacts}
    kept = [artifact for artifact in old.manifest.artifacts if artifact.name not in names]
    replaced = [artifact for artifact in old.manifest.artifacts if artifact.name in names]
    artifacts = tuple(sorted((*kept, *new.artifacts), key=lambda artifact: artifact.name))
    is_tuned = (staging / TUNING).exists()
    joined = dataclasses.replace(new, artifacts=artifacts, tuned=(new if is_tuned else old.manifest).tuned)
    if is_tuned and joined.tuned_artifact is None:
        message = f"{old.path} no longer has the artifact that was measured"
        raise BundleError(message, what="tuned", where=old.path, hint="tune it again")
    joined = joined.with_valid_choice()
    dropped = {MANIFEST, *(record.path for artifact in replaced for record in artifact.files)}
    if old.manifest.tuned is not None and joined.tuned != old.manifest.tuned:
        dropped.add(old.manifest.tuned.evidence.path)
    named = dropped.union(record.path for record in old.manifest.records)
    KeptFiles(old.path, staging, named, dropped).take()
    return joined
