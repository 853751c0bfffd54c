"""Write a bundle's artifact in Triton Inference Server's repository layout."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from vitdeploy.assess.inspection.inspection import artifact_named
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.labels import class_names, fits_a_line
from vitdeploy.bundle.manifest import CONFIG as MODEL_CONFIG
from vitdeploy.bundle.manifest import Artifact
from vitdeploy.bundle.retry import retry_if_changed
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.bundle.staging import check_target
from vitdeploy.errors import BundleError, InputError, UsageError
from vitdeploy.exporters import EXPORTERS
from vitdeploy.files.regular_file import read_regular
from vitdeploy.serving.model_repository.model_config import LABELED_OUTPUT, LABELS, model_config, triton_backend
from vitdeploy.serving.model_repository.model_folder import (
    TritonModel,
    check_name,
    check_ran,
    check_replaceable,
    checked_repository,
    write_folder,
)
from vitdeploy.specs import PixelFormat, Task, TensorSpec
from vitdeploy.system.argument_types import typed
from vitdeploy.trt.options import EngineOptions

_VERSION = "1"  # version of the model; Triton serves the largest


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
    threads: int = 0,
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
        threads: See `vitdeploy.serving.model_repository.model_config.model_config`.

    Raises:
        BundleError: If there is no bundle, or one of its files was altered.
        UsageError: If Triton cannot serve the artifact, an argument is invalid, or the existing folder was not written
            by this function.
        OutputError: If the model cannot be written; existing files are unchanged.
    """
    opened = Bundle.open(bundle)
    chosen = artifact_named(opened, artifact)
    check_ran(opened, chosen)
    chosen_name = _default_name(opened.path, chosen.name) if name is None else name
    check_name(chosen_name)
    labels = _labels(opened, chosen)
    config = model_config(
        chosen, chosen_name, labeled=labels is not None, max_batch_size=max_batch_size, device=device, threads=threads
    )
    target = checked_repository(repository, opened.path) / chosen_name
    names = _model_files(chosen)
    digests = {name: file.sha256 for name, file in zip(names, chosen.files, strict=True)}
    if labels is not None:
        digests[LABELS] = hashlib.sha256(labels.encode()).hexdigest()

    with contextlib.ExitStack() as stack:
        sources = stack.enter_context(opened.opened_artifact(chosen))

        def fill(staging: Path) -> Mapping[str, str]:
            (staging / _VERSION).mkdir()
            for source, file in zip(sources, names, strict=True):
                shutil.copyfile(source.handle, staging / file)
            stack.close()  # checks that the copies have the verified content
            if labels is not None:
                (staging / LABELS).write_bytes(labels.encode())
            return digests

        return TritonModel(chosen_name, target, chosen.name, write_folder(target, config, fill))


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
        check_name(name)
        check_replaceable(checked_repository(repository, Path(bundle)) / name)


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
