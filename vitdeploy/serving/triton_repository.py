"""An artifact of a bundle in the layout that Triton Inference Server loads."""

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
from vitdeploy.serving.triton_config import LABELED_OUTPUT, LABELS, model_config, triton_backend
from vitdeploy.specs import PixelFormat, Task, TensorSpec
from vitdeploy.system.argument_types import typed
from vitdeploy.system.typed_lines import typed_line
from vitdeploy.trt.options import EngineOptions

CONFIG = "config.pbtxt"
_VERSION = "1"  # of the model; Triton serves the largest
_MADE = "# Made by vitdeploy"
_BELOW = "of what is below"


@dataclasses.dataclass(frozen=True)
class TritonModel:
    """A model in a repository.

    Attributes:
        name: That clients ask for.
        path: Its folder.
        artifact: What it serves.
        files: In the folder, the configuration first.
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
    """Write `<repository>/<name>`: a `config.pbtxt`, the class names where there are some, and the model as version 1.

    The files are copies. A folder of that name is replaced, whole, if this function made it and nothing in it was
    altered since. The same artifact and arguments give the same bytes.

    Args:
        bundle: The bundle; what is used of it is verified.
        repository: The folder that Triton is given; it is made where there is none.
        artifact: Such as "onnx-fp16"; by default the only one.
        name: Of the model; by default the bundle's and the artifact's, such as "vit-onnx-fp16".
        max_batch_size: See `vitdeploy.serving.triton_config.model_config`.
        device: See there.

    Raises:
        BundleError: If there is no bundle, or a file of it was altered.
        UsageError: Triton cannot serve the artifact, or an argument is wrong, or what is at that place
            was not made by this function.
        OutputError: If the model cannot be written; what was there is untouched.
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
            # The configuration first: a server that polls refuses a folder that is not named as its model is.
            (staging / CONFIG).write_bytes((_header(digests, config) + config).encode())
            (staging / _VERSION).mkdir()
            for source, file in zip(sources, names, strict=True):
                shutil.copyfile(source.handle, staging / file)
            stack.close()  # which checks that the copies are of what was verified
            if labels is not None:
                (staging / LABELS).write_bytes(labels.encode())
            synced = sync(staging)  # which may take long: not while others wait
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
    """Whether an artifact that is to be made can have its model in a repository, as far as can be told before.

    Args:
        bundle: Where the artifact is to be; None where that is not known yet.
        repository: The folder that Triton is given.
        to: The artifact's format.
        precision: Its precision.
        target: Of int8 and fp8: what is to run the graph.
        engine: What an engine is to be built for; None for the usual.

    Raises:
        UsageError: Triton cannot serve such an artifact, or its name cannot be a model's, or what is at that place was
            not made by `write_triton_model`, or the repository is no folder of models, or `bundle` no place for one.
    """
    options = (engine or EngineOptions()).to_dict() if EXPORTERS[to].made_from else {"target": target}
    images = TensorSpec("", "float32", ("batch", 3))  # the exporters' own are batched along the first axis, too
    planned = Artifact(to, precision, (), (images,), (), PixelFormat(), {}, options, {}, {})
    model_config(planned, "", labeled=False)
    if bundle is not None:
        check_target(Path(bundle))
        name = _default_name(Path(bundle), planned.name)
        _check_name(name)
        _check_target(_checked_repository(repository, Path(bundle)) / name)


def check_labels_of(folder: str | os.PathLike[str], task: str | None) -> None:
    """Whether Triton can have the class names of a local checkpoint, or of a bundle, that is to be exported.

    What cannot be read is not judged: the export tells.

    Args:
        folder: With the `config.json`.
        task: That it is exported for; None for the one that it was made for.

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
    except (OSError, RuntimeError, ValueError) as exc:  # a name too long, links in a circle, a null byte
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
    """The content of the file of class names, by which Triton ranks outputs; None where nothing gives classes."""
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
    """Where each file of an artifact goes; a model finds what lies beside it by its own name."""
    first, *others = (PurePosixPath(file.path) for file in artifact.files)
    beside = (other.relative_to(first.parent).as_posix() for other in others)
    return tuple(f"{_VERSION}/{name}" for name in (triton_backend(artifact.format).model_file, *beside))


def _header(digests: Mapping[str, str], config: str) -> str:
    """Comments that say what the folder holds, so that it can be told later whether something was altered."""
    of_config = hashlib.sha256(config.encode()).hexdigest()
    lines = [f"{_MADE} {__version__}, which replaces this folder only if nothing in it was altered. SHA-256:"]
    lines += [f"# {digest} {name}" for name, digest in (*digests.items(), (_BELOW, of_config))]
    return "".join(f"{line}\n" for line in lines)


def _check_target(target: Path) -> None:
    """Raise UsageError unless a model may be written there: nothing is, or what was written before."""
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
