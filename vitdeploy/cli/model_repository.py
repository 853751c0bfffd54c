"""`vitdeploy triton`."""

from __future__ import annotations

import click

from vitdeploy.cli.command import command, option
from vitdeploy.cli.output import PATH, json_option, print_json, print_table, shown_path
from vitdeploy.trt.options import DEFAULT_BATCH

# Limit of a CUDA grid's second and third dimension, along which kernels place a batch; Triton's warm-up runs the
# largest batch.
_LARGEST_BATCH = 65_535


@command(examples=("triton vit models", "triton vit models --artifact onnx-fp16 --max-batch-size 16"))
@click.argument("bundle", type=PATH)
@click.argument("repository", type=PATH)
@option("--artifact", help="Artifact, such as onnx-fp16. Default: the only one.")
@option("--name", help="Model name. Default: names of bundle and artifact, such as vit-onnx-fp16.")
@option(
    "--max-batch-size",
    type=click.IntRange(1, _LARGEST_BATCH),
    metavar="N",
    help=f"Largest batch. Default: an engine's largest, {DEFAULT_BATCH.maximum} for ONNX.",
)
@option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Default: by artifact; ONNX in fp32 uses GPUs if the server has any.",
)
@json_option
def triton(
    bundle: str,
    repository: str,
    artifact: str | None,
    name: str | None,
    max_batch_size: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Add an ONNX or TensorRT artifact of BUNDLE to REPOSITORY, a Triton Inference Server model repository.

    An unmodified model that this command wrote is replaced. Other existing content is refused.
    """
    from vitdeploy.serving.model_repository.repository import write_triton_model

    model = write_triton_model(
        bundle, repository, artifact=artifact, name=name, max_batch_size=max_batch_size, device=device
    )
    if as_json:
        print_json({"bundle": bundle, **model.to_dict()})
        return
    print_table(
        f"{model.artifact} of {bundle} as {model.name}",
        ("file",),
        [(shown_path(model.path / file),) for file in model.files],
    )
