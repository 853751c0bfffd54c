"""Repeat an artifact's quantization of its float32 graph, with more nodes in float32."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from vitdeploy.errors import UsageError
from vitdeploy.exporters.graph.initializers import labels_of
from vitdeploy.exporters.graph.onnx_file import read_onnx_ir, write_onnx
from vitdeploy.exporters.graph.precision import name_of, set_precision
from vitdeploy.exporters.graph.variants import Variants, takes_half
from vitdeploy.exporters.quantization.bias_correction import recorded_biases, set_bias
from vitdeploy.exporters.quantization.number_format import Range
from vitdeploy.exporters.quantization.schemes.lookup import scheme_for
from vitdeploy.exporters.quantization.schemes.scheme import quantizable, weighted_nodes
from vitdeploy.exporters.quantization.smooth_quant import idle, recorded_scales
from vitdeploy.exporters.quantization.smoothing_places import array_of, bias_of, find_places, is_weight
from vitdeploy.files.opened import OpenedFile

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from vitdeploy.exporters.quantization.schemes.scheme import Scheme
    from vitdeploy.specs import ExportSpec


@dataclasses.dataclass(frozen=True)
class Record:
    """Measurements recorded in a quantized graph; weights are rounded again.

    Attributes:
        ranges: Ranges of the quantized activations, by name; empty for a dynamic scheme.
        scales: Scales of the smoothed places, (C,), by place name.
        biases: Corrected biases, by output name of the Add nodes.
    """

    ranges: Mapping[str, Range]
    scales: Mapping[str, NDArray[np.float32]]
    biases: Mapping[str, ir.TensorProtocol]

    @classmethod
    def of(cls, artifact: ir.Model, model: ir.Model, scheme: Scheme) -> Record:
        """Read the record of a quantized graph; `model` is its float32 source graph, with shapes."""
        ranges = collections.defaultdict(lambda: Range(0, 0))  # without a record the graphs will differ
        static = scheme.static
        for node in artifact.graph:
            if static is None or node.op_type != "QuantizeLinear":
                continue
            value, scale, zero_point = (*node.inputs, None)[:3]
            if value and is_weight(scale) and is_weight(zero_point):
                step, zero = (float(array_of(each).item(0)) for each in (scale, zero_point))
                lowest = -static.highest if static.symmetric else static.lowest
                ranges[str(value.name)] = Range(step * (lowest - zero), step * (static.highest - zero))
        return cls(ranges, recorded_scales(model.clone(), artifact), recorded_biases(artifact.graph))

    def quantize(self, model: ir.Model, scheme: Scheme, keep: Collection[str]) -> None:
        """Quantize the float32 graph in place, as `vitdeploy.exporters.quantization.candidate.quantize` did."""
        nodes = quantizable(model, scheme, keep)
        for place in sorted(find_places(model), key=lambda place: place.kind):
            if place.name in self.scales and not idle(place, keep):
                place.divide(model.graph, self.scales[place.name])
        for add, index in filter(None, map(bias_of, nodes)):
            if name_of(add) in self.biases:
                set_bias(model.graph, add, index, self.biases[name_of(add)])
        scheme.write(model, nodes, self.ranges)


def recorded_variants(source: Path | OpenedFile, float_source: Path | OpenedFile, spec: ExportSpec) -> Variants:
    """Variants of a quantized artifact, each quantized from the float32 graph as `vitdeploy.export` would.

    Args:
        source: The artifact, as `vitdeploy.export` writes it.
        float_source: Float32 graph exported with the same options.
        spec: The artifact's precision, target and scheme, and the nodes that it keeps.

    Raises:
        UsageError: If the variant without additional float32 nodes differs from the artifact's graph.
    """
    path, float_path = OpenedFile.of(source).path, OpenedFile.of(float_source).path
    artifact, model = read_onnx_ir(source), read_onnx_ir(float_source)
    model.graph.opset_imports.update(artifact.graph.opset_imports)
    ShapeInferencePass()(model)
    scheme, keep = scheme_for(spec, calibrated=True), frozenset(spec.keep_fp32)
    record = Record.of(artifact, model, scheme)
    to_half = takes_half(artifact)

    def quantized(kept: Collection[str]) -> ir.Model:
        twin = model.clone()
        record.quantize(twin, scheme, keep.union(kept))
        if to_half:
            set_precision(twin, ir.DataType.FLOAT, ir.DataType.FLOAT16, {})
        return twin

    def write(kept: Collection[str], path: Path) -> None:
        write_onnx(quantized(kept), path)

    nodes = weighted_nodes(model, scheme.operators)
    if not keep < set(map(name_of, nodes)) or _digests(quantized(()).graph) != _digests(artifact.graph):
        raise UsageError(
            f"{path.name} cannot be made again from {float_path.name}", what=path.name, where=path, expected=float_path,
            hint="export both again to one folder, with the same options",
        )  # fmt: skip
    low = [node for node in nodes if name_of(node) not in keep]
    return Variants(tuple(map(name_of, low)), write, labels_of(low))


def _digests(graph: ir.Graph) -> dict[str, bytes]:
    """A digest of each output's expression, by name, independent of other names and of node order."""
    digests: dict[ir.Value | None, bytes] = {value: str((value.name, value.dtype)).encode() for value in graph.inputs}
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None:
            digests[value] = hashlib.sha256(f"{tensor.dtype} {tensor.shape}".encode() + tensor.tobytes()).digest()
    for node in graph:
        attributes = (ir.to_proto(each).SerializeToString(deterministic=True) for each in node.attributes.values())
        parts = (node.domain, node.op_type, sorted(attributes), [digests.get(value) for value in node.inputs])
        for index, value in enumerate(node.outputs):
            digests[value] = hashlib.sha256(repr((index, parts)).encode()).digest()
    return {str(value.name): digests[value] for value in graph.outputs}
