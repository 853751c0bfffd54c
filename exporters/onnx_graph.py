"""Export the reference model to a portable ONNX graph."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING

import onnx
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript.optimizer import optimize

from vitdeploy import __version__
from vitdeploy.errors import CheckFailedError, UsageError
from vitdeploy.exporters import Exported
from vitdeploy.exporters.onnx_file import MAX_BYTES, without_weights, write_onnx
from vitdeploy.exporters.onnx_layers import repeat_first_layer
from vitdeploy.models.signature import BATCH_AXIS, example_inputs, input_specs, output_specs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import onnx_ir as ir

    from vitdeploy.models.vit import VisionTransformer
    from vitdeploy.specs import TensorSpec

DEFAULT_OPSET = 20
OPSETS = range(18, 24)
_NO_LIMIT = sys.maxsize
_TOOLS = ("torch", "onnx", "onnxscript", "onnx-ir")


def export_onnx(
    model: VisionTransformer, folder: Path, *, opset: int = DEFAULT_OPSET, max_bytes: int = MAX_BYTES
) -> Exported:
    """Write `onnx/model.onnx` with a free batch axis and the model's own image size.

    Attention is exported as separate operators at every opset: TensorRT refuses opset 23's Attention in float32, and on
    a CPU the two are equally fast. The graph passes onnx's full check before it is written.

    Args:
        model: in float32.
        folder: the bundle's.
        opset: 18 to 23; LayerNormalization is one operator in all of them, Gelu from 20.
        max_bytes: weights beyond this go to `model.onnx.data` beside the model.

    Raises:
        UsageError: the opset is none of these.
        CheckFailedError: the graph is not valid, or does not have the model's inputs and outputs.
        OSError: a file cannot be written.
    """
    if opset not in OPSETS:
        raise UsageError(f"opset must be from {OPSETS.start} to {OPSETS.stop - 1}, got {opset}")
    inputs, outputs = input_specs(model.config, model.task), output_specs(model)
    graph = _trace(model, inputs, outputs, opset)
    _check_signature(graph, inputs, outputs)
    try:
        onnx.checker.check_model(without_weights(graph), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise CheckFailedError(f"the exported graph must pass onnx's full check: {str(exc).splitlines()[0]}") from exc
    files = write_onnx(graph, folder / "onnx" / "model.onnx", max_bytes)
    return Exported(
        files=tuple(f"onnx/{name}" for name in files),
        inputs=inputs,
        outputs=outputs,
        options={"opset": opset},
        tools={name: version(name) for name in _TOOLS},
    )


def _trace(
    model: VisionTransformer, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], opset: int
) -> ir.Model:
    # One named axis, the others free: the exporter finds that they are the same, and warns where both have the name.
    batch = torch.export.Dim(BATCH_AXIS)
    dynamic_shapes = [{0: torch.export.Dim.DYNAMIC if index else batch} for index in range(len(inputs))]
    twin = model.with_attention("eager").eval()
    layers, twin.layers = twin.layers, twin.layers[:1]
    with _quiet():
        program = torch.onnx.export(
            twin,
            example_inputs(model.config, model.task, batch_size=2),  # a batch of 1 would be taken for a constant
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
            dynamic_shapes=tuple(dynamic_shapes),
            opset_version=opset,
            dynamo=True,
            optimize=False,
            external_data=False,
            verbose=False,
        )
        if program is None:  # only where torch writes the file itself
            raise CheckFailedError("torch's exporter must return a program, returned none; please report this model")
        if len(layers) > 1:
            repeat_first_layer(program.model.graph, layers)
        # Without a limit, or the position table, which holds the class token, would be put together at every run.
        optimize(program.model, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT)
    graph = program.model
    ClearMetadataAndDocStringPass()(graph)  # traces of this machine's files among them
    graph.metadata_props.clear()
    graph.graph.name = "vision-transformer"
    graph.producer_name, graph.producer_version = "vitdeploy", __version__
    return graph


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says of its own inside: a deprecated call, operators of a package not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\).*", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _check_signature(graph: ir.Model, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    for specs, values in ((inputs, graph.graph.inputs), (outputs, graph.graph.outputs)):
        want = [(spec.name, spec.dtype, spec.shape) for spec in specs]
        got = [(value.name, _dtype(value), tuple(_axis(axis) for axis in value.shape or ())) for value in values]
        if want != got:
            raise CheckFailedError(f"the exported graph must have {want}, has {got}; please report this model")


def _dtype(value: ir.Value) -> str | None:
    return None if value.dtype is None else value.dtype.numpy().name


def _axis(axis: int | ir.SymbolicDim) -> int | str | None:
    return axis if isinstance(axis, int) else axis.value
