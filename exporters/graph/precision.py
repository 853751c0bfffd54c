"""Rewrite a float32 graph for another precision, tensor by tensor, as strongly typed compilers require."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from vitdeploy.errors import UsageError
from vitdeploy.exporters.graph.initializers import ROTARY, register
from vitdeploy.specs import Precision

FLOAT = ir.DataType.FLOAT
TYPES = {Precision.FP32: FLOAT, Precision.FP16: ir.DataType.FLOAT16, Precision.BF16: ir.DataType.BFLOAT16}
FLOAT_OPERATORS = ("LayerNormalization", "Softmax")  # sums of many terms, which torch's autocast keeps in float32 too
_OF_A_NORM = ("Clip", "Max", "Div")  # what follows a norm where a vector is divided by it
_ROTARY_RULE = "rotary positions"  # in `Kept.operators`: the products, their sum, and what arranges their channels
_ARRANGING = ("Concat", "Reshape", "Slice", "Split", "Unsqueeze")
# Other images may exceed the observed values: massive activations vary between images by a factor of about two (Sun et
# al., arXiv:2402.17762). A factor of eight leaves room, and keeps values near the limit for any image.
HEADROOM = 8
_LARGEST = {FLOAT: math.inf, ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 2.0**128 - 2.0**120}


@dataclasses.dataclass(frozen=True)
class Kept:
    """Nodes that stay in float32.

    Attributes:
        operators: Operators kept by rule, and "rotary positions".
        nodes: Nodes kept because of observed values, of their weights, or on request; named by their first outputs.
        limit: Largest value allowed in the others.
        largest: Largest observed value.
    """

    operators: tuple[str, ...]
    nodes: tuple[str, ...]
    limit: float
    largest: float


def activations(model: ir.Model) -> list[ir.Value]:
    """Float32 values computed from an input's content; all others depend on weights or sizes only."""
    return [value for node in on_data_path(model) for value in node.outputs if value.dtype == FLOAT]


def can_be_half(model: ir.Model, dtype: ir.DataType) -> list[ir.Node]:
    """Nodes that `set_precision` converts to `dtype` if nothing was observed and no node is kept on request."""
    nodes = on_data_path(model)
    rotating = _rotating(nodes)
    return [
        node
        for node in nodes
        if node not in rotating
        and not _stays_float(node, dtype, model.graph)
        and any(map(_is_float, (*node.inputs, *node.outputs)))
        and _largest_of(node, {}) <= _limit(dtype)
    ]


def set_precision(
    model: ir.Model, dtype: ir.DataType, io: ir.DataType, largest: Mapping[str, float], keep: Collection[str] = ()
) -> Kept:
    """Convert the nodes between inputs and outputs to `dtype`, in place.

    Values computed from weights or image sizes only, such as interpolated positions, stay float32, except 8-bit
    weights: TensorRT-RTX requires scales in the type of their products. `FLOAT_OPERATORS` and the rotation of queries
    and keys by rotary positions also stay float32, as do operators that ONNX lacks in `dtype` (convolution in bfloat16
    before opset 22), nodes with values near the largest of `dtype`, and the L2 normalization of a vector. Where two
    types meet, a value is cast once for all its users.

    Args:
        model: Model in float32, with the type of every value.
        dtype: FLOAT, FLOAT16 or BFLOAT16.
        io: Type of the graph's floating-point inputs and outputs.
        largest: Largest observed magnitude, by names from `activations`.
        keep: Additional nodes that stay in float32, named by their first outputs.

    Raises:
        UsageError: If a node to keep does not exist.
    """
    graph, nodes = model.graph, _on_data_path_or_dequantized(model)
    floats = {
        node: [(index, value) for index, value in enumerate(node.inputs) if value is not None and _is_float(value)]
        for node in nodes
    }
    limit = _limit(dtype)
    check_kept(keep, nodes, "the graph has no nodes {} to keep in float32")
    by_rule = [node for node in nodes if _stays_float(node, dtype, graph)]
    rotating = _rotating(nodes)
    others = [node for node in nodes if node not in by_rule and node not in rotating]
    near_or_asked = [node for node in others if name_of(node) in keep or _largest_of(node, largest) > limit]
    kept = {*by_rule, *rotating, *near_or_asked}
    casts = Casts(graph)
    for value in filter(_is_float, graph.inputs):
        value.type = ir.TensorType(io)  # a separate one: a clone shares the type of its source value
    for node in nodes:
        want = FLOAT if node in kept else dtype
        for index, value in floats[node]:
            node.replace_input_with(index, casts.of(value, want))
        for value in filter(_is_float, node.outputs):
            value.type = ir.TensorType(want)
        if node.op_type == "Cast" and node.attributes["to"].as_int() == FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(want))
    for index, value in enumerate(graph.outputs):
        if value.dtype in (FLOAT, dtype) and value.dtype != io:
            name = value.name
            value.name = f"{name}_uncast"
            output = casts.of(value, io)
            output.name = name
            graph.outputs[index] = output
    casts.drop_unused()
    return Kept(
        operators=(*sorted({node.op_type for node in by_rule}), *((_ROTARY_RULE,) if rotating else ())),
        nodes=tuple(map(name_of, near_or_asked)),
        limit=limit,
        largest=max(largest.values(), default=0.0),
    )


def check_kept(keep: Collection[str], nodes: Iterable[ir.Node], problem: str) -> None:
    """Raise UsageError unless each name is a node's; `problem` is the message, with {} for the unknown names."""
    unknown = tuple(sorted(set(keep).difference(map(name_of, nodes))))
    if unknown:
        raise UsageError(
            problem.format(", ".join(unknown)[:80]), what="keep_fp32", found=unknown,
            hint="take the names from vitdeploy debug bisect, on the same model, with the same options of export",
        )  # fmt: skip


def name_of(node: ir.Node) -> str:
    """Name of a node: its first output's name, which every node has."""
    return str(node.outputs[0].name)


class Casts:
    """Values in another type, each cast once; weights are converted when they are written."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def of(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self._casts:
            make = self._convert if value.is_initializer() else self._cast
            self._casts[value, dtype] = make(value, dtype, f"{value.name}_{dtype.name.lower()}")
        return self._casts[value, dtype]

    def drop_unused(self) -> None:
        """Drop weights that are now used only in another type; those take over their names."""
        for (value, _), cast in self._casts.items():
            if value.is_initializer() and not value.uses():
                for old in (value, cast):
                    del self._graph.initializers[str(old.name)]
                cast.name = value.name
                self._graph.register_initializer(cast)

    def _convert(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        tensor = _tensor(value)
        # Converted when it is written, so that no second copy of all weights is in memory.
        shape = ir.Shape(tensor.shape.numpy())
        lazy = ir.LazyTensor(lambda: ir.Tensor(tensor.numpy().astype(dtype.numpy()), dtype=dtype), dtype, shape)
        return register(self._graph, name, lazy)

    def _cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        node = ir.node("Cast", [value], {"to": int(dtype)})
        result = node.outputs[0]
        result.name, result.shape, result.type = name, value.shape, ir.TensorType(dtype)
        producer = value.producer()
        if producer is None:  # an input
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, node)
        return result


def on_data_path(model: ir.Model) -> list[ir.Node]:
    """Nodes that process an input's content, in graph order; sizes are not content."""
    reached = set(model.graph.inputs)
    nodes = []
    for node in model.graph:
        if node.op_type not in ("Shape", "Size") and not reached.isdisjoint(node.inputs):
            nodes.append(node)
            reached.update(node.outputs)
    return nodes


def _on_data_path_or_dequantized(model: ir.Model) -> list[ir.Node]:
    """The nodes of `on_data_path`, and the DequantizeLinear nodes of their weights, in graph order."""
    nodes = set(on_data_path(model))
    makers = {value.producer() for node in nodes for value in node.inputs if value is not None}
    nodes |= {node for node in makers if node is not None and node.op_type == "DequantizeLinear"}
    return [node for node in model.graph if node in nodes]


def largest_of_type(dtype: ir.DataType) -> float:
    """Largest finite value of FLOAT16 or BFLOAT16; infinite for FLOAT."""
    return _LARGEST[dtype]


def _limit(dtype: ir.DataType) -> float:
    """Largest magnitude allowed in the inputs and outputs of a node in `dtype`."""
    return largest_of_type(dtype) / HEADROOM


def _stays_float(node: ir.Node, dtype: ir.DataType, graph: ir.Graph) -> bool:
    """True if a node stays float32 by rule: in `FLOAT_OPERATORS`, or without results in `dtype` in ONNX."""
    if node.op_type in FLOAT_OPERATORS or not _is_float(node.outputs[0]):
        return node.op_type in FLOAT_OPERATORS
    if _normalizes(node):
        return True
    schema = onnx.defs.get_schema(node.op_type, graph.opset_imports[node.domain], node.domain)
    known = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    return f"tensor({dtype.name.lower()})" not in known[schema.outputs[0].type_str]


def _normalizes(node: ir.Node) -> bool:
    """True for the L2 norm of a vector, its lower limit and the division by it.

    The squares of a vector exceed float16, and its type would make the limit 0.
    """
    if node.op_type == "ReduceL2":
        return True
    makers = [value.producer() for value in node.inputs if value is not None]
    return node.op_type in _OF_A_NORM and any(maker is not None and _normalizes(maker) for maker in makers)


def _rotating(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """The nodes that rotate queries and keys by rotary positions."""
    nodes = list(nodes)
    products = {node for node in nodes if any(str(value.name).startswith(ROTARY) for value in node.inputs if value)}
    sums = {
        node
        for node in nodes
        if node.op_type == "Add" and all(value is not None and value.producer() in products for value in node.inputs)
    }
    rotating = products | sums
    for node in reversed(nodes):
        users = [user for value in node.outputs for user, _ in value.uses()]
        if node.op_type in _ARRANGING and users and rotating.issuperset(users):
            rotating.add(node)
    return rotating


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == FLOAT


def _largest_of(node: ir.Node, observed: Mapping[str, float]) -> float:
    """Largest magnitude in a node's inputs and outputs."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and _is_float(value)]
    return max((_largest(value, observed) for value in values), default=0.0)


def _largest(value: ir.Value, observed: Mapping[str, float]) -> float:
    if value.is_initializer():
        return float(np.abs(_tensor(value).numpy()).max(initial=0.0))
    return observed.get(str(value.name), 0.0)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is None:
        raise TypeError(f"initializer {value.name} must have a value")
    return value.const_value
