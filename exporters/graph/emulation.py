"""A graph with a half-precision graph's rounding, in operators that every processor has."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.exporters.graph.initializers import register

FLOAT = ir.DataType.FLOAT


def emulated(model: ir.Model, half: ir.DataType) -> ir.Model:
    """A copy of `model` that casts to float32 before every node that computes in `half`, and back after it.

    On a CPU, ONNX Runtime supports little more than casts for bfloat16; for float16 it keeps some values in float32
    between nodes, but not those that a graph casts itself. Tensor cores also multiply half-precision numbers and add
    the products in float32.

    Args:
        model: Model whose inputs and outputs are not in `half`, except those next to a Cast.
        half: FLOAT16 or BFLOAT16.
    """
    twin = model.clone()
    graph = twin.graph
    for node in list(graph):
        if node.op_type == "Cast":
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == half:
                if value.const_value is not None:  # a session would hold it twice, and cast it on opening
                    node.replace_input_with(index, _widened(value, value.const_value, graph))
                    continue
                before = _cast(value, FLOAT)
                graph.insert_before(node, before)
                node.replace_input_with(index, before.outputs[0])
        for value in node.outputs:
            if value.dtype == half:
                users = list(value.uses())
                value.type = ir.TensorType(FLOAT)  # not the one of `model`, which a clone shares
                after = _cast(value, half)
                graph.insert_after(node, after)
                for user, index in users:
                    user.replace_input_with(index, after.outputs[0])
    return twin


def _widened(value: ir.Value, tensor: ir.TensorProtocol, graph: ir.Graph) -> ir.Value:
    """A weight in float32, converted when it is written."""
    name = f"{value.name}_float32"
    if name not in graph.initializers:
        shape = ir.Shape(tensor.shape.numpy())
        lazy = ir.LazyTensor(lambda: ir.Tensor(tensor.numpy().astype(FLOAT.numpy()), name=name), FLOAT, shape)
        register(graph, name, lazy)
    if len(value.uses()) == 1:
        del graph.initializers[str(value.name)]
    return graph.initializers[name]


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    node = ir.node("Cast", [value], {"to": int(dtype)})
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
    return node
