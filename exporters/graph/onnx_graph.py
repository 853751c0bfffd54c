"""Export the reference model to a portable ONNX graph."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import ShapeInferencePass

from vitdeploy.errors import CheckFailedError, UsageError, shown
from vitdeploy.exporters import Exported
from vitdeploy.exporters.graph.embedded_resize import check_embeddable, embed_resize
from vitdeploy.exporters.graph.emulation import emulated
from vitdeploy.exporters.graph.kept_nodes import kept_nodes
from vitdeploy.exporters.graph.measured_graph import MeasuredGraph, largest_magnitude, measured_graph
from vitdeploy.exporters.graph.onnx_file import MAX_BYTES, without_weights, write_onnx
from vitdeploy.exporters.graph.onnxruntime_graph import write_optimized
from vitdeploy.exporters.graph.passes import simplify
from vitdeploy.exporters.graph.precision import TYPES, activations, on_data_path, set_precision
from vitdeploy.exporters.graph.tracing import forget, trace_layers, traced_pixels
from vitdeploy.models.normalization import fold_normalization
from vitdeploy.models.signature import Served, input_specs
from vitdeploy.specs import OPSETS, PixelFormat, PixelStage, Precision
from vitdeploy.system.forks import with_threads

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.models.vit import VisionTransformer
    from vitdeploy.specs import ExportSpec, TensorSpec

DEFAULT_OPSET = 20
_TOOLS = ("torch", "onnx", "onnxscript", "onnx-ir")


@dataclasses.dataclass(frozen=True, eq=False)
class TracedGraph:
    """The float32 graph of a model, before conversion to its precision.

    Attributes:
        model: The graph; later steps change it in place.
        pixels: Current input format of the graph.
        quantized: Quantization options for the manifest; empty if not quantized.
        largest: Largest magnitude of each value, by name, if its precision depends on it.
    """

    model: ir.Model
    spec: ExportSpec
    processor: ImageProcessor
    pixels: PixelFormat
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    quantized: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    largest: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def inference_precision(self) -> str | None:
        """OpenVINO's inference precision of a graph that is written for it, "f32" or "bf16"; None for other graphs."""
        return None

    def to_observe(self) -> MeasuredGraph | None:
        """A graph that computes the largest magnitude of each value; None if the precision does not depend on it."""
        if self._half is ir.DataType.FLOAT:
            return None
        ShapeInferencePass()(self.model)
        return measured_graph(self.model, activations(self.model), largest_magnitude)

    @with_threads
    def write(self, folder: Path, max_bytes: int | None = None) -> Exported:
        """Write `onnx/model.onnx` with a dynamic batch axis, after onnx's full check.

        Args:
            max_bytes: Larger weights go to `model.onnx.data` beside the model. Default: the limit of a file, or 0 with
                `ExportSpec.external_data`.

        Raises:
            UsageError: If a node to keep in float32 does not exist.
            CheckFailedError: If the graph is invalid, or does not have the model's inputs and outputs.
            OSError: If a file cannot be written.
        """
        spec, graph = self.spec, self.model
        if max_bytes is None:
            max_bytes = 0 if spec.external_data else MAX_BYTES
        options, versions = self.finish()
        precision = spec.precision
        name = "model.onnx" if precision is Precision.FP32 else f"model_{precision}.onnx"
        path, write = folder / "onnx" / name, write_onnx
        if spec.optimize is not None:
            write = write_optimized
            options["optimize"] = f"{spec.optimize} {ort.__version__}"
            versions[spec.optimize] = ort.__version__
        files = write(graph, path, max_bytes)
        emulation: tuple[str, ...] = ()
        if precision is Precision.BF16:
            emulation = write_onnx(emulated(graph, TYPES[precision]), path.with_name(f"emulated_{name}"), max_bytes)
        forget(graph.graph.initializers.values())
        return Exported(
            files=tuple(f"onnx/{file}" for file in files),
            inputs=self.inputs,
            outputs=self.outputs,
            options=options,
            tools=versions,
            emulation=tuple(f"onnx/{file}" for file in emulation),
        )

    def finish(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Convert the graph to its types, embed the resize and check the result, in place.

        Returns:
            Export options, and versions of the libraries, for the manifest.

        Raises:
            UsageError: If a node to keep in float32 does not exist.
            CheckFailedError: If the graph is invalid, or does not have the model's inputs and outputs.
        """
        options = {"opset": self.opset, **self.quantized, **self._set_precision()}
        tools = (*_TOOLS, "pillow") if self.spec.pixels.stage is PixelStage.DECODED else _TOOLS
        if self.spec.pixels.stage is PixelStage.DECODED:
            embed_resize(self.model, self.processor)
            simplify(self.model)
        self._check()
        return options, {tool: version(tool) for tool in tools}

    @property
    def _half(self) -> ir.DataType:
        """Type of the layers that are not quantized."""
        return TYPES.get(self.spec.rest or self.spec.precision, ir.DataType.FLOAT)

    def _set_precision(self) -> dict[str, Any]:
        """Convert computation, inputs and outputs to the requested types; return the nodes that stay float32."""
        dtype, io = self._half, ir.DataType.from_numpy(np.dtype(self.spec.io_dtype))
        if dtype == io == ir.DataType.FLOAT:
            return {}
        ShapeInferencePass()(self.model)
        if dtype == ir.DataType.FLOAT:
            set_precision(self.model, dtype, io, {})
            return {}
        keep = self.quantized.get("float32_nodes")
        if keep is None:
            problem = "the graph has no {} to keep in float32"
            keep = kept_nodes(self.spec.keep_fp32, self.model, on_data_path(self.model), problem)
        kept = set_precision(self.model, dtype, io, self.largest, keep)
        nodes = {"rest_float32_nodes" if self.quantized else "float32_nodes": list(kept.nodes)}
        record = {
            "float32_operators": list(kept.operators),
            **({} if self.quantized else nodes),
            "largest_kept_in_half": float(f"{kept.limit:.3g}"),
            "largest_observed": float(f"{kept.largest:.2g}") if np.isfinite(kept.largest) else None,
        }
        return record | nodes

    def _check(self) -> None:
        for specs, values in ((self.inputs, self.model.graph.inputs), (self.outputs, self.model.graph.outputs)):
            want = [(spec.name, spec.dtype, spec.shape) for spec in specs]
            got = [
                (
                    value.name,
                    None if value.dtype is None else value.dtype.numpy().name,
                    tuple(axis if isinstance(axis, int) else axis.value for axis in value.shape or ()),
                )
                for value in values
            ]
            if want != got:
                raise CheckFailedError(
                    f"the exported graph has {got} instead of {want}; please report this model",
                    what="graph", expected=want, found=got,
                )  # fmt: skip
        try:
            onnx.checker.check_model(without_weights(self.model), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
            reason = str(exc).splitlines()[0]
            raise CheckFailedError(f"the exported graph is not valid: {reason}", what="graph", found=reason) from exc


@with_threads
def trace_onnx(model: VisionTransformer, spec: ExportSpec, processor: ImageProcessor) -> TracedGraph:
    """Trace a model to a float32 graph.

    Attention is exported as separate operators at every opset: TensorRT refuses opset 23's Attention in float32, and on
    a CPU both are equally fast.

    Args:
        model: Model in float32; unchanged.
        spec: Artifact specification. LayerNormalization is one operator at every opset, Gelu from 20.
        processor: The bundle's image processor; the graph does the preprocessing that it omits, see
            `ExportSpec.pixels`.

    Raises:
        UsageError: If the opset is not from 18 to 23, or an output does not exist.
        CheckFailedError: If torch's exporter fails.
    """
    opset = DEFAULT_OPSET if spec.opset is None else spec.opset
    check_opset(opset)
    decoded = spec.pixels.stage is PixelStage.DECODED
    if decoded:
        check_embeddable(processor)
    processor.check_stage(spec.pixels.stage)
    if spec.pixels.stage is not PixelStage.NORMALIZED:
        model = fold_normalization(model, processor.scale, processor.offset)
    pixels = PixelFormat(PixelStage.RESIZED, "nchw", "uint8") if decoded else spec.pixels
    served = Served(
        model, spec.outputs, dynamic_image_size=spec.dynamic_image_size, pixels=pixels, io_dtype=spec.io_dtype
    )
    inputs = input_specs(model.config, model.task, pixels=spec.pixels) if decoded else served.inputs
    graph = trace_layers(served, opset)
    return TracedGraph(graph, spec, processor, traced_pixels(served), inputs, served.outputs, opset)


def check_opset(opset: int, lowest: int = OPSETS.start) -> None:
    """Raise UsageError unless the opset is supported, and not below the lowest required one."""
    if type(opset) is not int or opset not in range(lowest, OPSETS.stop):
        raise UsageError(
            f"opset takes {lowest} to {OPSETS.stop - 1} here, got {shown(opset, 80)}",
            what="opset", expected=range(lowest, OPSETS.stop), found=opset,
        )  # fmt: skip
