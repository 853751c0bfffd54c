"""Export the reference model to a portable ONNX graph."""

from __future__ import annotations

import contextlib
import logging
import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, ShapeInferencePass

from vitdeploy._version import __version__
from vitdeploy.errors import CheckFailedError, UsageError, shown
from vitdeploy.exporters import Exported
from vitdeploy.exporters.graph.embedded_resize import check_embeddable, embed_resize
from vitdeploy.exporters.graph.emulation import emulated
from vitdeploy.exporters.graph.observation import observed_ranges
from vitdeploy.exporters.graph.onnx_file import MAX_BYTES, without_weights, write_onnx
from vitdeploy.exporters.graph.onnx_layers import repeat_first_layer
from vitdeploy.exporters.graph.onnxruntime_graph import write_optimized
from vitdeploy.exporters.graph.passes import simplify
from vitdeploy.exporters.graph.precision import TYPES, activations, set_precision
from vitdeploy.exporters.quantization.apply import apply_scheme, scheme_for
from vitdeploy.models.normalization import fold_normalization
from vitdeploy.models.signature import Served, input_specs, output_names
from vitdeploy.specs import OPSETS, PixelFormat, PixelStage, Precision
from vitdeploy.system.forks import with_threads

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from vitdeploy.exporters import Observe
    from vitdeploy.exporters.quantization.choice import Choose
    from vitdeploy.exporters.quantization.ranges.calibration import CalibrationData
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.models.vit import VisionTransformer
    from vitdeploy.specs import ExportSpec, TensorSpec

DEFAULT_OPSET = 20
_HALF_SCALES = 19  # the opset whose DequantizeLinear gives half precision
_WRAPPER = "model."  # what `Served` puts before the names of the model's weights
_TOOLS = ("torch", "onnx", "onnxscript", "onnx-ir")


@with_threads
def export_onnx(
    model: VisionTransformer,
    folder: Path,
    spec: ExportSpec,
    *,
    processor: ImageProcessor,
    observe: Observe,
    calibration: CalibrationData | None = None,
    choose: Choose | None = None,
    max_bytes: int = MAX_BYTES,
) -> Exported:
    """Write `onnx/model.onnx` with a free batch axis.

    Attention is exported as separate operators at every opset: TensorRT refuses opset 23's Attention in float32, and on
    a CPU the two are equally fast. The graph passes onnx's full check before it is written.

    Args:
        model: in float32.
        folder: the bundle's.
        spec: what the artifact is to be. The opset is 18 to 23, 20 by default; LayerNormalization is one operator in
            all of them, Gelu from 20. For fp8 it is 21 or more.
        processor: see `vitdeploy.exporters.ExportFunction`.
        observe: see `vitdeploy.exporters.ExportFunction`.
        calibration: see `vitdeploy.exporters.ExportFunction`.
        choose: see `vitdeploy.exporters.ExportFunction`.
        max_bytes: weights beyond this go to `model.onnx.data` beside the model.

    Raises:
        UsageError: the opset is none of these, or there is no such output, or no such node to keep in float32, or the
            precision needs images to calibrate on.
        CheckFailedError: the graph is not valid, or does not have the model's inputs and outputs.
        OSError: a file cannot be written.
    """
    scheme = scheme_for(spec, calibrated=calibration is not None)
    lowest = OPSETS.start if scheme is None else max(scheme.min_opset, OPSETS.start)
    opset = _opset(spec, lowest if spec.rest is None else max(lowest, _HALF_SCALES))
    decoded = spec.pixels.stage is PixelStage.DECODED
    if decoded:
        check_embeddable(processor)
    if spec.pixels.stage is not PixelStage.NORMALIZED:
        model = fold_normalization(model, processor.scale, processor.offset)
    pixels = PixelFormat(PixelStage.RESIZED, "nchw", "uint8") if decoded else spec.pixels
    served = Served(
        model, spec.outputs, dynamic_image_size=spec.dynamic_image_size, pixels=pixels, io_dtype=spec.io_dtype
    )
    inputs = served.inputs
    graph = _trace(served, opset)
    taken = _traced_pixels(served)
    done: dict[str, Any] = {}
    measured: Mapping[str, Any] = {}
    measuring: dict[str, str] = {}
    if scheme is not None:
        measuring = {} if calibration is None else {"onnxruntime": ort.__version__}
        done, measured = apply_scheme(graph, scheme, spec, calibration, choose, taken, folder)
    kept = _set_precision(graph, spec, taken, observe, folder, done.get("float32_nodes", spec.keep_fp32))
    if scheme is not None and kept:
        kept["rest_float32_nodes"] = kept.pop("float32_nodes")
    kept = done | kept
    if decoded:
        inputs = input_specs(model.config, model.task, pixels=spec.pixels)
        embed_resize(graph, processor)
        simplify(graph)
    _check_signature(graph, inputs, served.outputs)
    try:
        onnx.checker.check_model(without_weights(graph), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise CheckFailedError(f"the exported graph must pass onnx's full check: {str(exc).splitlines()[0]}") from exc
    name = "model.onnx" if spec.precision is Precision.FP32 else f"model_{spec.precision}.onnx"
    write, fused = write_onnx, {}
    if spec.optimize is not None:
        write, fused = write_optimized, {spec.optimize: ort.__version__}
        kept["optimize"] = f"{spec.optimize} {ort.__version__}"
    files = write(graph, folder / "onnx" / name, max_bytes)
    emulation: tuple[str, ...] = ()
    if spec.precision is Precision.BF16:
        emulation = write_onnx(emulated(graph, TYPES[spec.precision]), folder / "onnx" / f"emulated_{name}", max_bytes)
    _forget(graph.graph.initializers.values())
    return Exported(
        files=tuple(f"onnx/{file}" for file in files),
        inputs=inputs,
        outputs=served.outputs,
        options={"opset": opset, **kept},
        tools={tool: version(tool) for tool in (*_TOOLS, *(["pillow"] if decoded else []))} | fused | measuring,
        emulation=tuple(f"onnx/{file}" for file in emulation),
        measured=measured,
    )


def _opset(spec: ExportSpec, lowest: int) -> int:
    """The opset that is asked for, or the usual one."""
    opset = max(DEFAULT_OPSET, lowest) if spec.opset is None else spec.opset
    if type(opset) is not int or opset not in range(lowest, OPSETS.stop):
        raise UsageError(
            f"opset must be from {lowest} to {OPSETS.stop - 1}, got {shown(opset, 80)}", what="opset", found=opset
        )
    return opset


def _trace(served: Served, opset: int) -> ir.Model:
    """The graph of all layers, of which only the first was traced; its input and output are found as hidden states."""
    twin = served.model.with_attention("eager").eval()
    layers, twin.layers = twin.layers, twin.layers[:1]
    names = [*output_names(twin), "hidden_states.0"]
    if layers:
        names += ["hidden_states.1", "attentions.0"]
    one_layer = Served(twin, names, dynamic_image_size=served.dynamic_image_size, pixels=_traced_pixels(served))
    exported = traced(one_layer.eval(), opset)
    graph = exported.graph
    weights = list(graph.initializers.values())
    values = dict(zip(names, graph.outputs, strict=True))
    if layers:
        values |= _repeated(graph, layers, values)
    _set_outputs(graph, [(spec.name, values[spec.name]) for spec in served.outputs])
    simplify(exported)
    _name_axes(graph.outputs, served.outputs)
    ClearMetadataAndDocStringPass()(exported)  # traces of this machine's files among them
    exported.metadata_props.clear()
    _forget(weight for weight in weights if not weight.is_initializer())
    for weight in list(graph.initializers.values()):
        weight.name = (weight.name or "").removeprefix(_WRAPPER)
    graph.name = "vision-transformer"
    exported.producer_name, exported.producer_version = "vitdeploy", __version__
    return exported


def _forget(weights: Iterable[ir.Value]) -> None:
    """Let go of the numbers: onnxscript's rules remember the graph that they last saw, and so all of the model."""
    for weight in weights:
        weight.const_value = None


@with_threads
def traced(asked: Served, opset: int) -> ir.Model:
    """The graph that torch makes of every layer of a model, as it is."""
    with _quiet():
        program = torch.onnx.export(
            asked,
            # a batch of 1 would be taken for a constant
            asked.example_inputs(batch_size=2),
            input_names=[spec.name for spec in asked.inputs],
            output_names=[spec.name for spec in asked.outputs],
            dynamic_shapes=_dynamic_shapes(asked),
            opset_version=opset,
            dynamo=True,
            optimize=False,
            external_data=False,
            verbose=False,
        )
    if program is None:  # only where torch writes the file itself
        raise CheckFailedError("torch's exporter must return a program, returned none; please report this model")
    for value in program.model.graph.outputs:  # which may be outputs no longer, and would keep them
        value.metadata_props.clear()
    return program.model


def _set_precision(
    graph: ir.Model, spec: ExportSpec, pixels: PixelFormat, observe: Observe, folder: Path, keep: Sequence[str]
) -> dict[str, Any]:
    """Make the graph compute, take and give what is asked for; what it keeps in float32, for the manifest."""
    dtype = TYPES.get(spec.rest or spec.precision, ir.DataType.FLOAT)
    io = ir.DataType.from_numpy(np.dtype(spec.io_dtype))
    if dtype == io == ir.DataType.FLOAT:
        return {}
    ShapeInferencePass()(graph)
    if dtype == ir.DataType.FLOAT:
        set_precision(graph, dtype, io, {})
        return {}
    largest = observed_ranges(graph, activations(graph), pixels, observe, folder)
    kept = set_precision(graph, dtype, io, largest, keep)
    return {
        "float32_operators": list(kept.operators),
        "float32_nodes": list(kept.nodes),
        "largest_kept_in_half": float(f"{kept.limit:.3g}"),
        "largest_observed": float(f"{kept.largest:.2g}") if np.isfinite(kept.largest) else None,
    }


def _traced_pixels(served: Served) -> PixelFormat:
    """What the graph takes before its inputs and outputs are given another type."""
    return PixelFormat() if served.pixels.stage is PixelStage.NORMALIZED else served.pixels


def _dynamic_shapes(served: Served) -> tuple[dict[int, Any], ...]:
    """The free axes of each input.

    An axis is named once: the exporter finds which others are the same, and warns where they have the same name.
    """
    named: set[str] = set()
    shapes: list[dict[int, Any]] = []
    for spec in served.inputs:
        free = {index: axis for index, axis in enumerate(spec.shape) if isinstance(axis, str)}
        dim = torch.export.Dim
        shapes.append({index: dim.DYNAMIC if axis in named else dim(axis) for index, axis in free.items()})
        named.update(free.values())
    return tuple(shapes)


def _repeated(graph: ir.Graph, layers: nn.ModuleList, values: dict[str, ir.Value]) -> dict[str, ir.Value]:
    """Repeat the layer that was traced; the hidden states and the attention weights of all layers, by name."""
    results = values["hidden_states.1"], values["attentions.0"]
    found = repeat_first_layer(graph, layers, values["hidden_states.0"], results, _WRAPPER + "layers.{}.")
    named = {f"hidden_states.{index}": hidden for index, (hidden, _) in enumerate(found, 1)}
    head = {name: found[-1][0] for name, value in values.items() if value is results[0]}  # an encoder without a norm
    return head | named | {f"attentions.{index}": weights for index, (_, weights) in enumerate(found)}


def _set_outputs(graph: ir.Graph, outputs: list[tuple[str, ir.Value]]) -> None:
    """Make these the outputs of `graph`, under these names."""
    graph.outputs.clear()
    for name, found in outputs:
        value = found
        if found.is_graph_output():  # two names for one value
            node = ir.node("Identity", [found])
            graph.append(node)
            value = node.outputs[0]
            value.type, value.shape = found.type, found.shape
        value.name = name
        graph.outputs.append(value)


def _name_axes(values: Sequence[ir.Value], specs: Sequence[TensorSpec]) -> None:
    """Give the free axes of the outputs the names of their specs; what else was traced stays, to be checked."""
    for value, spec in zip(values, specs, strict=True):
        if value.shape is not None and len(value.shape) == len(spec.shape):
            axes = zip(value.shape, spec.shape, strict=True)
            value.shape = ir.Shape(
                [want if isinstance(want, str) and not isinstance(got, int) else got for got, want in axes]
            )


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
