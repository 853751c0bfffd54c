"""Pack a slim bundle: artifacts with the files that they need in production."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from vitdeploy.assess.inspection.inspection import artifact_named
from vitdeploy.assess.runs.targets import reference_backend
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST, FileRecord, Manifest, PackedFrom
from vitdeploy.bundle.retry import retry_if_changed
from vitdeploy.bundle.signature import unrecorded
from vitdeploy.bundle.staging import check_target
from vitdeploy.errors import BundleChangedError, UsageError, readable
from vitdeploy.files.atomic import replace_folder, staged_folder, sync
from vitdeploy.files.locks import locked
from vitdeploy.runtimes import check_reference
from vitdeploy.system.argument_types import typed


@typed
@retry_if_changed
def pack(
    bundle: str | os.PathLike[str] | Bundle, artifacts: str | Sequence[str], *, output: str | os.PathLike[str]
) -> Bundle:
    """Write a bundle with these artifacts, the configuration, the image processor and the labels.

    The reference's weights are omitted unless "torch" is among the artifacts. A signature is not copied: it is of the
    whole bundle's manifest. The manifest keeps source, options and
    validation, and records omitted files. The same bundle and artifacts give the same bytes.

    Args:
        bundle: The bundle or its folder; every copied file is verified.
        artifacts: Names such as "onnx-int8"; "torch" for the reference.
        output: Folder that does not exist, is empty, or was packed before and is replaced.

    Raises:
        BundleError: If there is no bundle, or one of its files was altered.
        UsageError: If it has no such artifact, or `output` has other content.
        NoReferenceError: If "torch" is requested, and the bundle was packed without the weights.
        OutputError: If the bundle cannot be written; existing files are unchanged.
    """
    opened = Bundle.of(bundle)
    manifest = _part(opened, [artifacts] if isinstance(artifacts, str) else artifacts)
    check_target(Path(output))  # which tells of a path that cannot be resolved
    target = Path(output).resolve()
    _check_output(target, opened.path.resolve())
    names = [record.path for record in manifest.records]
    with staged_folder(target) as staging:
        with opened.opened(manifest.records) as files:
            for name, file in zip(names, files, strict=True):
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.handle, staging / name)
        (staging / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        synced = sync(staging)  # slow: before the lock is taken
        with locked(target.parent):
            _check_output(target, opened.path.resolve())
            replace_folder(staging, target, synced)
    return Bundle(target, manifest)


def _part(bundle: Bundle, names: Sequence[str]) -> Manifest:
    """The manifest of a packed bundle."""
    whole, reference = bundle.manifest, reference_backend()
    known = (*(artifact.name for artifact in whole.artifacts), reference)
    if not names:
        raise UsageError("pack needs an artifact", what="artifacts", expected=known, hint=f"one of {', '.join(known)}")
    if reference in names:
        check_reference(bundle)
    named = [artifact_named(bundle, name) for name in names if name != reference]
    needed = {source.name for artifact in named for source in bundle.needed_for(artifact)}
    artifacts = tuple(artifact for artifact in whole.artifacts if artifact.name in needed)
    part = Manifest(whole.source, whole.task, whole.files if reference in names else whole.configuration, artifacts)
    part = dataclasses.replace(part, tuned=whole.tuned).with_valid_choice()
    kept = {record.path for record in part.records}
    before = whole.packed_from or PackedFrom(_manifest_sha256(bundle), (), ())
    left_out = [record for record in whole.records if record.path not in kept]
    packed_from = PackedFrom(
        before.manifest_sha256,
        tuple(sorted((*before.files, *left_out), key=lambda record: record.path)),
        tuple(sorted({*before.artifacts, *(source.name for source in whole.artifacts if source not in artifacts)})),
    )
    return dataclasses.replace(part, packed_from=packed_from)


def _manifest_sha256(bundle: Bundle) -> str:
    with readable(bundle.path / MANIFEST, "a manifest"):
        record = FileRecord.of(bundle.path, MANIFEST)
    if Bundle.open(bundle.path).manifest != bundle.manifest:
        raise BundleChangedError(
            f"{bundle.path} was replaced while it was read", where=bundle.path, hint="try again when its writer is done"
        )
    return record.sha256


def _check_output(target: Path, source: Path) -> None:
    """Raise UsageError unless `target` can become a packed bundle: absent, empty, or packed before."""
    check_target(target)
    if target.is_relative_to(source) or source.is_relative_to(target):
        problem = f"{target} is the bundle that is packed, or one of them lies in the other"
    elif (target / MANIFEST).exists() and (problem_there := _problem_of(target)) is not None:
        problem = f"{target} is not replaced: {problem_there}"
    else:
        return
    raise UsageError(problem, what="output", where=target, hint="choose another output")


def _problem_of(target: Path) -> str | None:
    """Reason not to replace a bundle: it was exported, or has other files."""
    manifest = Bundle.open(target).manifest
    if manifest.packed_from is None:
        return "it is a bundle that was exported, not packed"
    others = unrecorded(target, manifest)
    return f"it holds {others[0]}, which is not part of the bundle" if others else None
