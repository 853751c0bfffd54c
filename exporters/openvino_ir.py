"""Export the reference model to OpenVINO's IR, through the same float32 graph as ONNX."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import CheckFailedError, DeviceError, first_line
from vitdeploy.exporters import Exported
from vitdeploy.exporters.graph.kept_nodes import kept_nodes
from vitdeploy.exporters.graph.onnx_file import write_onnx
from vitdeploy.exporters.graph.onnx_graph import TracedGraph, trace_onnx
from vitdeploy.exporters.graph.precision import FLOAT, TYPES, Casts, largest_of_type, name_of, on_data_path
from vitdeploy.exporters.graph.tracing import forget
from vitdeploy.specs import Precision
from vitdeploy.system.forks import with_threads
from vitdeploy.system.imports import openvino_core
from vitdeploy.system.telemetry import without_reporter

with without_reporter():
    import openvino as ov

if TYPE_CHECKING:
    from collections.abc import Collection

    from vitdeploy.exporters.graph.measured_graph import MeasuredGraph
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.models.vit import VisionTransformer
    from vitdeploy.specs import ExportSpec

_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")  # they have nearly all weights


@dataclasses.dataclass(frozen=True, eq=False)
class OpenVINOGraph(TracedGraph):
    """The float32 graph of a model, written as IR.

    The graph computes in float32 whatever its precision: OpenVINO converts it to the inference precision, which the
    manifest pins. In fp16, bf16 and with `rest`, weights of products that are not quantized are stored in 16 bits.
    """

    @property
    def inference_precision(self) -> str:
        return "bf16" if computes_in_bf16(self.spec) else "f32"

    def to_observe(self) -> MeasuredGraph | None:
        """None: no value leaves the range of float32, or of bfloat16, which is the same."""
        return None

    @with_threads
    def write(self, folder: Path, max_bytes: int | None = None) -> Exported:
        """Write `openvino/model_fp32.xml` (or of another precision) and the weights beside it.

        Args:
            max_bytes: See `write_onnx`. Default: 0, so that OpenVINO maps every weight instead of copying it.

        Raises:
            UsageError: If a node to keep in float32 does not exist.
            CheckFailedError: If the graph is invalid, or OpenVINO refuses it.
            OSError: If a file cannot be written.
        """
        spec = self.spec
        stored = TYPES.get(spec.rest or spec.precision, FLOAT)
        kept: dict[str, Any] = {}
        if stored != FLOAT:
            nodes = store_weights(self.model, stored, () if self.quantized else spec.keep_fp32)
            kept = {} if self.quantized else {"float32_nodes": list(nodes)}
        options, versions = self.finish()
        options |= kept | {"inference_precision": self.inference_precision}
        if spec.rest is not None:
            options[f"{spec.rest}_nodes"] = options.pop("float32_nodes")
        name = f"openvino/model_{spec.precision}"
        (folder / "openvino").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            source = Path(scratch, "model.onnx")
            write_onnx(self.model, source, max_bytes or 0)
            forget(self.model.graph.initializers.values())
            write_ir(source, folder / f"{name}.xml", str(self.model.graph.name))
        return Exported(
            files=(f"{name}.xml", f"{name}.bin"),
            inputs=self.inputs,
            outputs=self.outputs,
            options=options,
            tools={**versions, "openvino": ov.get_version().partition("-")[0]},
        )

    @property
    def _half(self) -> ir.DataType:
        return FLOAT


def trace_openvino(model: VisionTransformer, spec: ExportSpec, processor: ImageProcessor) -> OpenVINOGraph:
    """Trace a model to a float32 graph, as `trace_onnx`.

    Raises:
        DeviceError: If the artifact computes in bfloat16 and this CPU does not: OpenVINO would compute in float32.
        UsageError, CheckFailedError: As `trace_onnx`.
    """
    if computes_in_bf16(spec) and "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise DeviceError(
            "OpenVINO does not compute in bfloat16 on this CPU, so the artifact cannot be validated here",
            what="precision", expected="BF16", found=spec.precision,
            hint="export on a CPU with AVX512-BF16 or AMX, or choose another precision",
        )  # fmt: skip
    traced = trace_onnx(model, spec, processor)
    return OpenVINOGraph(**{field.name: getattr(traced, field.name) for field in dataclasses.fields(traced)})


def computes_in_bf16(spec: ExportSpec) -> bool:
    """True if OpenVINO computes the layers that are not quantized in bfloat16."""
    return Precision.BF16 in (spec.precision, spec.rest)


def store_weights(model: ir.Model, dtype: ir.DataType, keep: Collection[str] = ()) -> tuple[str, ...]:
    """Store the weights of products in 16 bits, each with one Cast to float32, in place.

    Biases, norms and position embeddings stay float32, as do weights with a value beyond the largest of `dtype`.

    Args:
        model: Model in float32; products of quantized weights are left as they are.
        dtype: FLOAT16 or BFLOAT16.
        keep: Products whose weights stay float32; see `kept_nodes` for the names.

    Returns:
        The products whose weights stay float32, named by their first outputs.

    Raises:
        UsageError: If a name stands for no such product.
    """
    products = [node for node in on_data_path(model) if node.op_type in _PRODUCTS and _weight(node) is not None]
    asked = kept_nodes(keep, model, products, "the graph has no product {} whose weights can stay float32")
    casts, widened, kept = Casts(model.graph), dict[ir.Value, ir.Value](), []
    for node in products:
        weight = _weight(node)
        if weight is None or name_of(node) in asked or not _fits(weight, dtype):
            kept.append(name_of(node))
            continue
        if weight not in widened:
            cast = ir.node("Cast", [casts.of(weight, dtype)], {"to": int(FLOAT)})
            result = cast.outputs[0]
            result.name, result.shape, result.type = f"{weight.name}_float32", weight.shape, ir.TensorType(FLOAT)
            model.graph.insert_before(node, cast)
            widened[weight] = result
        node.replace_input_with(1, widened[weight])
    casts.drop_unused()
    return tuple(kept)


def _weight(node: ir.Node) -> ir.Value | None:
    weight = node.inputs[1]
    return weight if weight is not None and weight.is_initializer() and weight.dtype == FLOAT else None


def _fits(weight: ir.Value, dtype: ir.DataType) -> bool:
    return weight.const_value is not None and bool(
        np.abs(weight.const_value.numpy()).max(initial=0.0) <= largest_of_type(dtype)
    )


def write_ir(source: Path, target: Path, name: str) -> None:
    """Convert an ONNX file to IR: the .xml file, and a .bin file with the same weights beside it.

    Operators take the names of their first outputs, which are those of the ONNX nodes. OpenVINO numbers the others over
    the life of the process; here they are numbered in the graph's order, so that two exports are identical.

    Raises:
        CheckFailedError: If OpenVINO refuses the graph.
        OSError: If a file cannot be written.
    """
    try:
        model = openvino_core().read_model(source)
    except RuntimeError as exc:
        reason = str(exc).strip().splitlines()[-1]  # those before it are places in OpenVINO's source
        raise CheckFailedError(
            f"openvino {ov.get_version()} refuses the graph: {reason}", what="graph", found=reason
        ) from exc
    _check_antialiasing(model)
    model.set_friendly_name(name)
    used: set[str] = set()
    unnamed = []
    for operator in model.get_ordered_ops():
        names = sorted(operator.output(0).get_names()) if operator.get_output_size() else []
        if operator.get_type_name() == "Result" or not names or names[0] in used:
            unnamed.append(operator)
        else:
            operator.set_friendly_name(names[0])
            used.add(names[0])
    for index, operator in enumerate(unnamed):
        operator.set_friendly_name(f"{operator.get_type_name()}:{index}")
    try:
        ov.serialize(model, target, target.with_suffix(".bin"))
    except RuntimeError as exc:
        raise OSError(
            f"openvino could not write {target.name} ({first_line(exc)}), probably because the disk is full"
        ) from exc


def _check_antialiasing(model: ov.Model) -> None:
    """Refuse interpolation with antialiasing, whose flag OpenVINO's CPU device ignores.

    https://github.com/openvinotoolkit/openvino/issues/35893
    """
    for operator in model.get_ops():
        attributes = operator.get_attributes() if operator.get_type_name() == "Interpolate" else {}
        if attributes.get("antialias"):
            raise CheckFailedError(
                f"OpenVINO has no antialiasing for {attributes['mode']} interpolation",
                what=operator.get_friendly_name(), found=attributes["mode"],
            )  # fmt: skip
