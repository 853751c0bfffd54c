"""QuantizeLinear and DequantizeLinear before chosen nodes: the pattern that TensorRT and ONNX Runtime fuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from vitdeploy.exporters.graph.initializers import register
from vitdeploy.exporters.quantization.number_format import NumberFormat, Range
from vitdeploy.exporters.quantization.weights import Weights


def insert_qdq(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    ranges: Mapping[str, Range],
    activation: NumberFormat,
    weight: NumberFormat,
    *,
    per_channel: bool = True,
) -> None:
    """Quantize the activation and the weight of `nodes` to 8 bits, in place; biases and results stay float32.

    1. An activation is quantized once for all its `nodes`.
    2. A weight is stored in 8 bits.
    3. Nothing else changes: neither the names of the nodes' outputs nor other nodes' inputs.

    Args:
        model: Model in float32.
        nodes: Nodes of the model, see `weighted_nodes`.
        ranges: Ranges of their activations, by name.
        activation: Number format of activations.
        weight: Number format of weights, symmetric.
        per_channel: True for a scale per output channel of a weight.
    """
    graph = model.graph
    weights = Weights(graph, weight, per_channel=per_channel)
    rounded: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        source = node.inputs[0]
        if source is None:
            raise TypeError(f"{node} must take an activation")
        if source not in rounded:
            rounded[source] = _rounded(graph, source, ranges[str(source.name)], activation)
        node.replace_input_with(0, rounded[source])
        stored = weights.of(node)
        axis = {"axis": stored.axis} if per_channel else {}
        dequantize = _node(
            "DequantizeLinear", stored[:3], axis, f"{node.outputs[0].name}_weight", source=node.inputs[1]
        )
        graph.insert_before(node, dequantize)
        node.replace_input_with(1, dequantize.outputs[0])
    weights.drop_unused()


def _rounded(graph: ir.Graph, value: ir.Value, values: Range, number_format: NumberFormat) -> ir.Value:
    """`value` quantized to 8 bits and dequantized."""
    scale, zero_point = number_format.scale_of(values)
    dtype = number_format.dtype
    of_value = (
        register(graph, f"{value.name}_scale", ir.Tensor(np.array(scale, np.float32))),
        register(graph, f"{value.name}_zero_point", ir.Tensor(np.array(zero_point).astype(dtype.numpy()), dtype=dtype)),
    )
    quantize = _node("QuantizeLinear", (value, *of_value), {}, f"{value.name}_quantized", source=value, dtype=dtype)
    dequantize = _node(
        "DequantizeLinear", (quantize.outputs[0], *of_value), {}, f"{value.name}_dequantized", source=value
    )
    producer = value.producer()
    if producer is None:  # an input of the graph
        graph.insert_before(graph[0], [quantize, dequantize])
    else:
        graph.insert_after(producer, [quantize, dequantize])
    return dequantize.outputs[0]


def _node(
    op_type: str,
    inputs: Sequence[ir.Value],
    attributes: dict[str, int],
    name: str,
    *,
    source: ir.Value | None,
    dtype: ir.DataType = ir.DataType.FLOAT,
) -> ir.Node:
    node = ir.node(op_type, list(inputs), attributes)
    output = node.outputs[0]
    output.name, output.type = name, ir.TensorType(dtype)
    output.shape = None if source is None else source.shape
    return node
