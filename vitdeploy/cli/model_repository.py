"""`vitdeploy triton`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vitdeploy.cli.command import command, option
from vitdeploy.cli.output import PATH, json_option, print_json, print_table, shown_path
from vitdeploy.cli.value_options import values_from_options
from vitdeploy.errors import UsageError
from vitdeploy.serving.model_repository.python_options import DEFAULTS, PythonBackend

if TYPE_CHECKING:
    from vitdeploy.serving.model_repository.model_folder import TritonModel


@command(
    examples=(
        "triton vit models",
        "triton vit models --artifact onnx-fp16 --max-batch-size 16",
        "triton vit models --python-backend --precision int8",
    )
)
@click.argument("bundle", type=PATH)
@click.argument("repository", type=PATH)
@option("--artifact", help="Artifact, such as onnx-fp16. Default: the only one. Not for the Python backend.")
@option(
    "--name",
    help="Model name. Default: names of bundle and artifact, such as vit-onnx-fp16; for the Python backend the "
    "bundle's.",
)
@option("--python-backend", is_flag=True, help="Serve images with vitdeploy itself, in Triton's Python backend.")
@values_from_options(python=PythonBackend)
@json_option
def triton(
    bundle: str,
    repository: str,
    artifact: str | None,
    name: str | None,
    python_backend: bool,
    python: PythonBackend | None,
    as_json: bool,
) -> None:
    """Add an artifact of BUNDLE to REPOSITORY, a Triton Inference Server model repository.

    By default, an ONNX or TensorRT artifact for Triton's own backends: tensors in, logits or features out. --device,
    --max-batch-size and --threads apply to them, too; without --threads, ONNX Runtime ignores a container's quota. With
    --python-backend, any artifact: encoded images in, labels and scores or vectors out; the Python of Triton's backend
    must have vitdeploy.

    An unmodified model that this command wrote is replaced. Other existing content is refused.
    """
    model = (
        _python_model(bundle, repository, artifact, name, python or DEFAULTS)
        if python_backend
        else _native_model(bundle, repository, artifact, name, python)
    )
    if as_json:
        print_json({"bundle": bundle, **model.to_dict()})
        return
    print_table(
        f"{model.artifact} of {bundle} as {model.name}",
        ("file",),
        [(shown_path(model.path / file),) for file in model.files],
    )


def _python_model(
    bundle: str, repository: str, artifact: str | None, name: str | None, options: PythonBackend
) -> TritonModel:
    from vitdeploy.serving.model_repository.python_repository import write_python_model

    if artifact is not None:
        hint = "choose with --backend and --precision"
        raise UsageError("--artifact does not apply to --python-backend", what="artifact", found=artifact, hint=hint)
    return write_python_model(bundle, repository, options, name=name)


def _native_model(
    bundle: str, repository: str, artifact: str | None, name: str | None, given: PythonBackend | None
) -> TritonModel:
    from vitdeploy.serving.model_repository.repository import write_triton_model
    from vitdeploy.system.option_fields import changed

    shared = changed(given or DEFAULTS)
    others = [name for name in shared if name not in ("max_batch_size", "device", "threads")]
    if others:
        message = f"{others[0]} applies to Triton's Python backend only"
        raise UsageError(message, what=others[0], hint="add --python-backend")
    return write_triton_model(bundle, repository, artifact=artifact, name=name, **shared)
