"""Write a bundle's artifact in Triton Inference Server's repository layout."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from vitdeploy._version import __version__
from vitdeploy.assess.inspection.inspection import artifact_named
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.labels import class_names, fits_a_line
from vitdeploy.bundle.manifest import CONFIG as MODEL_CONFIG
from vitdeploy.bundle.manifest import MANIFEST, Artifact, FileRecord
from vitdeploy.bundle.retry import retry_if_changed
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.bundle.staging import check_target
from vitdeploy.errors import BundleError, InputError, UsageError
from vitdeploy.exporters import EXPORTERS
from vitdeploy.exporting.engine_validation import is_pending
from vitdeploy.files.atomic import replace_folder, staged_folder, sync
from vitdeploy.files.locks import locked
from vitdeploy.files.regular_file import read_regular
from vitdeploy.serving.model_repository.model_config import LABELED_OUTPUT, LABELS, model_config, triton_backend
from vitdeploy.specs import PixelFormat, Task, TensorSpec
from vitdeploy.system.argument_types import typed
from vitdeploy.system.typed_lines import typed_line
from vitdeploy.trt.options import EngineOptions

CONFIG = "config.pbtxt"
_VERSION = "1"  # version of the model; Triton serves the largest
_MADE = "# Made by vitdeploy"
_BELOW = "of what is below"


@dataclasses.dataclass(frozen=True)
class TritonModel:
    """A model in a repository.

    Attributes:
        name: Name that clients use.
        path: The model's folder.
        artifact: Served artifact.
        files: Files in the folder, the configuration first.
    """

    name: str
    path: Path
    artifact: str
    files: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "path": str(self.path)}


@typed
@retry_if_changed
def write_triton_model(
    bundle: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    *,
    artifact: str | None = None,
    name: str | None = None,
    max_batch_size: int | None = None,
    device: str | None = None,
) -> TritonModel:
    """Write `<repository>/<name>`: a `config.pbtxt`, class names if there are any, and the model as version 1.

    The files are copies. An existing folder of that name is replaced if this function wrote it and nothing in it was
    altered. The same artifact and arguments give the same bytes.

    Args:
        bundle: The bundle; the files in use are verified.
        repository: Triton's model repository, created if missing.
        artifact: Name, such as "onnx-fp16". Default: the only one.
        name: Name of the model. Default: the bundle's and the artifact's, such as "vit-onnx-fp16".
        max_batch_size: See `vitdeploy.serving.model_repository.model_config.model_config`.
        device: See `vitdeploy.serving.model_repository.model_config.model_config`.

    Raises:
        BundleError: If there is no bundle, or one of its files was altered.
        UsageError: If Triton cannot serve the artifact, an argument is invalid, or the existing folder was not written
            by this function.
        OutputError: If the model cannot be written; existing files are unchanged.
    """
    opened = Bundle.open(bundle)
    chosen = artifact_named(opened, artifact)
    if is_pending(chosen):
        raise UsageError(
            f"{chosen.name} was {chosen.validation['status']}; it is served once it was compared with the reference",
            what="artifact", where=opened.path, found=chosen.name,
            hint=f"there: {typed_line('verify', opened.path, '--run')}",
        )  # fmt: skip
    chosen_name = _default_name(opened.path, chosen.name) if name is None else name
    _check_name(chosen_name)
    labels = _labels(opened, chosen)
    config = model_config(chosen, chosen_name, labeled=labels is not None, max_batch_size=max_batch_size, device=device)
    target = _checked_repository(repository, opened.path) / chosen_name
    _check_target(target)
    names = _model_files(chosen)
    digests = {name: file.sha256 for name, file in zip(names, chosen.files, strict=True)}
    if labels is not None:
        digests[LABELS] = hashlib.sha256(labels.encode()).hexdigest()
    with contextlib.ExitStack() as stack:
        sources = stack.enter_context(opened.opened_artifact(chosen))
        with staged_folder(target) as staging:
            # The configuration first: a polling server refuses a folder whose name differs from its model's.
            (staging / CONFIG).write_bytes((_header(digests, config) + config).encode())
            (staging / _VERSION).mkdir()
            for source, file in zip(sources, names, strict=True):
                shutil.copyfile(source.handle, staging / file)
            stack.close()  # checks that the copies have the verified content
            if labels is not None:
                (staging / LABELS).write_bytes(labels.encode())
            synced = sync(staging)  # slow: before the lock is taken
            with locked(target.parent):
                _check_target(target)
                replace_folder(staging, target, synced)
    return TritonModel(chosen_name, target, chosen.name, (CONFIG, *digests))


def check_place(
    bundle: str | os.PathLike[str] | None,
    repository: str | os.PathLike[str],
    to: str,
    precision: str,
    *,
    target: str | None = None,
    engine: EngineOptions | None = None,
) -> None:
    """Check before an export whether its artifact can be written to a repository.

    Args:
        bundle: Future folder of the artifact; None if not yet known.
        repository: Triton's model repository.
        to: Format of the artifact.
        precision: Precision of the artifact.
        target: int8 and fp8: runtime the graph is built for.
        engine: Build options of an engine; None for the defaults.

    Raises:
        UsageError: If Triton cannot serve such an artifact, its name is not a valid model name, the existing folder was
            not written by `write_triton_model`, `repository` is not a folder of models, or `bundle` is not a valid path
            for one.
    """
    options = (engine or EngineOptions()).to_dict() if EXPORTERS[to].made_from else {"target": target}
    images = TensorSpec("", "float32", ("batch", 3))  # the exporters' artifacts are batched along the first axis, too
    planned = Artifact(to, precision, (), (images,), (), PixelFormat(), {}, options, {}, {})
    model_config(planned, "", labeled=False)
    if bundle is not None:
        check_target(Path(bundle))
        name = _default_name(Path(bundle), planned.name)
        _check_name(name)
        _check_target(_checked_repository(repository, Path(bundle)) / name)


def check_labels_of(folder: str | os.PathLike[str], task: str | None) -> None:
    """Check before an export whether Triton can use a local checkpoint's or bundle's class names.

    Unreadable files are ignored: the export reports them.

    Args:
        folder: Folder with `config.json`.
        task: Task of the export; None for the checkpoint's.

    Raises:
        UsageError: If a name is not one line of text.
    """
    try:
        config = json.loads(read_regular(Path(folder).expanduser() / MODEL_CONFIG))
        labels = class_names(config) if config.get("problem_type") != ProblemType.REGRESSION else ()
        classifies = task == Task.CLASSIFICATION if task else "ForImageClassification" in str(config["architectures"])
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, InputError):
        return
    if classifies:
        _check_labels(labels)


def _default_name(bundle: Path, artifact: str) -> str:
    return f"{bundle.resolve().name}-{artifact}"


def _checked_repository(repository: str | os.PathLike[str], bundle: Path) -> Path:
    if not os.fspath(repository):
        raise UsageError("the repository has no name", what="repository", found=repository, hint="name a folder")
    try:
        place = Path(repository).resolve()
        wrong = (place / MANIFEST).exists() or (place.exists() and not place.is_dir())
    except (OSError, RuntimeError, ValueError) as exc:  # a name too long, a loop of links, a null byte
        message = f"{str(repository)!r:.80} cannot be a folder: {exc}"
        raise UsageError(message, what="repository", found=repository) from exc
    if wrong:
        raise UsageError(
            f"{repository} is a bundle or a file, not a folder of Triton's models",
            what="repository", where=place, hint="choose another",
        )  # fmt: skip
    if place.is_relative_to(bundle.resolve()):
        raise UsageError(f"{repository} lies in the bundle", what="repository", where=place, hint="choose another")
    return place


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name):
        raise UsageError(
            f"a Triton model's name has letters, digits and . _ - alone, a letter or a digit first, got {name!r:.220}",
            what="name", found=name, hint="choose another with --name",
        )  # fmt: skip


def _labels(bundle: Bundle, artifact: Artifact) -> str | None:
    """Content of the class name file, by which Triton ranks outputs; None without classes."""
    width = next((spec.shape[-1] for spec in artifact.outputs if spec.name == LABELED_OUTPUT), None)
    if bundle.manifest.task != Task.CLASSIFICATION or width is None:
        return None
    config = bundle.read_config()
    if config.problem_type is ProblemType.REGRESSION:
        return None
    labels = config.labels
    if len(labels) != width:
        raise BundleError(
            f"{bundle.path} names {len(labels)} classes for {width} logits",
            what="labels", where=bundle.path, expected=width, found=len(labels),
        )  # fmt: skip
    _check_labels(labels)
    return "".join(f"{label}\n" for label in labels)


def _check_labels(labels: Iterable[str]) -> None:
    for label in labels:
        if not fits_a_line(label):
            raise UsageError(
                f"the class {label!r:.80} is not one line of text, which Triton needs",
                what="labels", found=label, hint="rename it",
            )  # fmt: skip


def _model_files(artifact: Artifact) -> tuple[str, ...]:
    """Target path of each file; a model finds files beside it by their names."""
    first, *others = (PurePosixPath(file.path) for file in artifact.files)
    beside = (other.relative_to(first.parent).as_posix() for other in others)
    return tuple(f"{_VERSION}/{name}" for name in (triton_backend(artifact.format).model_file, *beside))


def _header(digests: Mapping[str, str], config: str) -> str:
    """Comments that record the folder's content, to detect later changes."""
    of_config = hashlib.sha256(config.encode()).hexdigest()
    lines = [f"{_MADE} {__version__}, which replaces this folder only if nothing in it was altered. SHA-256:"]
    lines += [f"# {digest} {name}" for name, digest in (*digests.items(), (_BELOW, of_config))]
    return "".join(f"{line}\n" for line in lines)


def _check_target(target: Path) -> None:
    """Raise UsageError unless a model may be written there: nothing exists, or an earlier model."""
    if target.is_symlink() or (target.exists() and not _is_made(target)):
        raise UsageError(
            f"{target} is not replaced, since vitdeploy did not write it as it is", what="name", where=target,
            hint="remove it, or choose another name with --name",
        )  # fmt: skip


def _is_made(folder: Path) -> bool:
    path = folder / CONFIG
    if not path.is_file():
        return folder.is_dir() and not any(folder.iterdir())
    header, _, config = path.read_bytes().decode(errors="replace").partition(f" {_BELOW}\n")
    *lines, last = header.splitlines() or [""]
    digests = {match[2]: match[1] for match in (re.fullmatch("# ([0-9a-f]{64}) (.+)", line) for line in lines) if match}
    files = {CONFIG, *digests}
    folders = {parent.as_posix() for name in files for parent in PurePosixPath(name).parents} - {"."}
    held = {entry.relative_to(folder).as_posix(): entry for entry in folder.rglob("*")}
    return (
        header.startswith(_MADE)
        and last == f"# {hashlib.sha256(config.encode()).hexdigest()}"
        and set(held) == files | folders
        and not any(entry.is_symlink() for entry in held.values())
        and all(held[name].is_file() for name in files)
        and all(FileRecord.of(folder, name).sha256 == digest for name, digest in digests.items())
    )
