"""Write a bundle for Triton's Python backend: `model.py`, its settings in `config.pbtxt`, and the bundle beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST, Artifact, FileRecord
from vitdeploy.bundle.retry import retry_if_changed
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.delivery.packing import pack
from vitdeploy.errors import UsageError
from vitdeploy.models.layers.pooling import Pooling
from vitdeploy.runtimes.choice import choose_opening
from vitdeploy.serving.model_repository.batch_answers import EMBEDDING, INDICES, LABELS, SCORES
from vitdeploy.serving.model_repository.model_config import Word, checked_batch_size, tensor_field, text_format
from vitdeploy.serving.model_repository.model_folder import (
    TritonModel,
    check_name,
    check_ran,
    checked_repository,
    write_folder,
)
from vitdeploy.serving.model_repository.python_options import DEFAULTS, PythonBackend
from vitdeploy.specs import Task
from vitdeploy.system.argument_types import typed

IMAGE = "image"  # the input that takes encoded images
MODEL_FILE, _BUNDLE = "model.py", "bundle"
_SOURCE = Path(__file__).with_name("python_model.py")


class Served(NamedTuple):
    """The artifact to serve, and the arguments of `vitdeploy.load` that open it."""

    artifact: Artifact
    opening: dict[str, str]


@typed
@retry_if_changed
def write_python_model(
    bundle: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    options: PythonBackend = DEFAULTS,
    *,
    name: str | None = None,
    version: int = 1,
) -> TritonModel:
    """Write `<repository>/<name>`, a model for Triton's Python backend that answers as `predict` or `embed` does.

    The input is `image`, BYTES of shape (N, 1): one encoded image an element; or the artifact's `pixel_values`. The
    outputs of a classifier are `labels` (BYTES), `scores` (FP32) and `indices` (INT32) of shape (N, K), the best first;
    those of a regression are in the model's order. Other models have `embedding`, FP32 (N, D), a vector an image.

    The bundle's files are copies, with those alone that are opened. An existing folder of that name is replaced if
    vitdeploy wrote it and nothing in it was altered. The same bundle and arguments give the same bytes.

    Args:
        bundle: The bundle; the files in use are verified.
        repository: Triton's model repository, created if missing.
        options: Artifact, batches, queue, CPUs and limits.
        name: Name of the model. Default: the bundle's.
        version: Version of the model.

    Raises:
        BundleError: If there is no bundle, or one of its files was altered.
        UsageError: If the artifact gives neither classes nor vectors, an argument is invalid, or the existing folder
            was not written by vitdeploy.
        OutputError: If the model cannot be written; existing files are unchanged.
    """
    opened = Bundle.open(bundle)
    artifact, opening = served_artifact(opened, options)
    check_ran(opened, artifact)
    chosen_name = opened.path.resolve().name if name is None else name
    check_name(chosen_name)
    target = checked_repository(repository, opened.path) / chosen_name
    config = text_format(_config(opened, artifact, opening, options, chosen_name))

    def fill(staging: Path) -> Mapping[str, str]:
        folder = staging / str(version)
        folder.mkdir()
        (folder / MODEL_FILE).write_bytes(_SOURCE.read_bytes())
        records = pack(opened, artifact.name, output=folder / _BUNDLE).manifest.records
        own = {path: FileRecord.of(folder, path).sha256 for path in (MODEL_FILE, f"{_BUNDLE}/{MANIFEST}")}
        copied = {f"{_BUNDLE}/{record.path}": record.sha256 for record in records}
        return {f"{version}/{path}": digest for path, digest in {**own, **copied}.items()}

    return TritonModel(chosen_name, target, artifact.name, write_folder(target, config, fill))


def served_artifact(bundle: Bundle, options: PythonBackend) -> Served:
    """The artifact that `vitdeploy.load` opens with these options; UsageError if there is none."""
    given = {name: getattr(options, name) for name in ("backend", "precision", "device")}
    chosen = choose_opening(bundle, **given, options={})
    artifact = chosen.artifact
    if artifact is None:
        raise UsageError(
            f"Triton serves artifacts, and {chosen.backend} runs the reference", what="backend", found=chosen.backend,
            hint=f"make an artifact: {bundle.export_line('--to', 'onnx')}",
        )  # fmt: skip
    if chosen.tuned is not None:
        return Served(artifact, {})
    opening = {**given, "backend": chosen.backend, "precision": artifact.precision}
    return Served(artifact, {name: value for name, value in opening.items() if value is not None})


def _config(
    bundle: Bundle, artifact: Artifact, opening: Mapping[str, str], options: PythonBackend, name: str
) -> dict[str, Any]:
    image = {"name": IMAGE, "data_type": Word("TYPE_STRING"), "dims": [1]}
    settings = {
        **opening,
        **{name: str(getattr(options, name)) for name in ("threads", "top_k", "max_image_bytes", "max_image_pixels")},
    }
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": checked_batch_size(artifact, options.max_batch_size),
        "input": [image if options.input == "images" else tensor_field(artifact.inputs[0])],
        "output": _outputs(bundle, artifact, options.top_k),
        "instance_group": [{"count": options.instances, "kind": Word("KIND_CPU")}],  # the runtime opens its device
        "dynamic_batching": {
            "max_queue_delay_microseconds": 1000 * options.max_delay_ms,
            "default_queue_policy": {"max_queue_size": options.max_queue},
        },
        "parameters": [{"key": key, "value": {"string_value": value}} for key, value in settings.items()],
    }


def _outputs(bundle: Bundle, artifact: Artifact, top_k: int) -> list[dict[str, Any]]:
    """The answer's tensors; UsageError for a model that gives neither classes nor vectors."""
    config = bundle.read_config()
    if any(spec.name == "logits" for spec in artifact.outputs) and config.labels:
        regression = config.problem_type is ProblemType.REGRESSION
        count = len(config.labels) if regression else min(top_k, len(config.labels))
        kinds = {LABELS: "TYPE_STRING", SCORES: "TYPE_FP32", INDICES: "TYPE_INT32"}
        return [{"name": name, "data_type": Word(kind), "dims": [count]} for name, kind in kinds.items()]
    if bundle.manifest.task != Task.FEATURES:
        raise UsageError(
            f"Triton's Python backend serves classes and embeddings, {artifact.name} has "
            f"{', '.join(spec.name for spec in artifact.outputs)}", what="task", where=bundle.path,
            expected=(str(Task.CLASSIFICATION), str(Task.FEATURES)), found=bundle.manifest.task,
            hint="leave --python-backend out",
        )  # fmt: skip
    width = Pooling.choose(config.model, artifact.outputs).width
    return [{"name": EMBEDDING, "data_type": Word("TYPE_FP32"), "dims": [width]}]
