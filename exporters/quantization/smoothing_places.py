"""Places of a graph whose activation channels can be divided without changing the computation."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TypeGuard, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.exporters.graph.initializers import SMOOTHED, register

T = TypeVar("T")
NORM = "LayerNormalization"
# Operators that end the first half of an MLP: Gelu, Relu, or a Mul, in gated MLPs and in x * sigmoid(x).
_ACTIVATIONS = ("Gelu", "Relu", "Mul")
_HEADS_FIRST = [0, 2, 1, 3]


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """An activation whose channels (last axis) can be divided, and the products whose rows are then multiplied.

    Each is exact except for float32 rounding.

    1. "layer_norm": the scale and the bias of the LayerNormalization are divided.
    2. "attention": the weight and the bias of the value projection are divided, because attention mixes tokens, not
       channels.
    3. "mlp": a Mul is inserted before the product.

    Attributes:
        kind: "layer_norm", "attention" or "mlp".
        products: MatMul nodes that are its only users.
        values_projection: For "attention": MatMul whose columns are divided.
        values_bias: For "attention": the following Add; None if the model has none.
    """

    kind: str
    value: ir.Value
    products: tuple[ir.Node, ...]
    values_projection: ir.Node | None = None
    values_bias: ir.Node | None = None

    @property
    def name(self) -> str:
        """Name of the activation, before and after."""
        return str(self.value.name)

    def rows(self) -> NDArray[np.float32]:
        """Largest magnitude of each channel's factors, (C,)."""
        weights = dict.fromkeys(map(weight_of, self.products))
        return np.asarray(np.max([np.abs(array_of(weight)).max(axis=1) for weight in weights], axis=0))

    def divide(self, graph: ir.Graph, scales: NDArray[np.float32]) -> str:
        """Divide the activation by scales, (C,), and multiply the rows of its weights.

        Returns:
            The products' new activation name.
        """
        inverse = (1 / scales.astype(np.float64)).astype(np.float32)
        name = self.name
        if self.kind == "layer_norm":
            norm = _given(self.value.producer())
            for index in range(1, len(norm.inputs)):
                _scale_input(graph, norm, index, inverse)
        elif self.kind == "attention":
            projection = _given(self.values_projection)
            _scale_input(graph, projection, 1, inverse)
            if self.values_bias is not None:
                _scale_input(graph, self.values_bias, _given(_constant_input(self.values_bias)), inverse)
        else:
            name = self._multiply(graph, inverse)
        weights: dict[ir.Value, ir.Value] = {}
        for product in self.products:  # one weight for all that shared one
            before = weight_of(product)
            if before not in weights:
                weights[before] = scaled(graph, before, scales[:, None])
            product.replace_input_with(1, weights[before])
        for before in weights:
            _drop_unused(graph, before)
        return name

    def _multiply(self, graph: ir.Graph, inverse: NDArray[np.float32]) -> str:
        name = f"{self.name}{SMOOTHED}"
        factors = register(graph, f"{name}_factors", ir.Tensor(inverse))
        node = ir.node("Mul", [self.value, factors])
        result = node.outputs[0]
        result.name, result.type, result.shape = name, self.value.type, self.value.shape
        graph.insert_after(_given(self.value.producer()), node)
        for product in self.products:
            product.replace_input_with(0, result)
        return name


def find_places(model: ir.Model) -> list[Place]:
    """Every place of a float32 graph with shapes, in graph order."""
    places = (_place(value) for node in model.graph for value in node.outputs)
    return [place for place in places if place is not None]


def _place(value: ir.Value) -> Place | None:
    uses = list(value.uses())
    if not uses or value.is_graph_output():
        return None
    if not all(node.op_type == "MatMul" and index == 0 and _has_matrix(node) for node, index in uses):
        return None
    products = tuple(node for node, _ in uses)
    maker = _given(value.producer())
    if maker.op_type == NORM:
        return Place("layer_norm", value, products) if all(map(is_weight, maker.inputs[1:])) else None
    if maker.op_type in _ACTIVATIONS:
        return Place("mlp", value, products)
    found = _values_projection(value, _shape(weight_of(products[0]))[0])
    return None if found is None else Place("attention", value, products, *found)


# Backwards from the joined heads to their source: operators, and the input to follow.
_ATTENTION = (("Reshape", 0), ("Transpose", 0), ("MatMul", 1), ("Transpose", 0), ("Reshape", 0))


def _values_projection(value: ir.Value, channels: int) -> tuple[ir.Node, ir.Node | None] | None:
    """The value projection of an attention, and the Add of its bias; `value` has the joined heads.

    Channels must be joined in the order in which they were split, and no intermediate value may have another user.
    """
    heads, source = None, value
    for op_type, index in _ATTENTION:
        node = source.producer()
        if node is None or node.op_type != op_type:
            return None
        if op_type == "Transpose" and list(node.attributes.get_ints("perm", ())) != _HEADS_FIRST:
            return None
        if op_type == "MatMul":
            heads = node.inputs[1]
        source = _given(node.inputs[index])
        if not _is_single(source):
            return None
    if heads is None or heads.shape is None or len(heads.shape) != 4:
        return None
    count, width = heads.shape[1], heads.shape[3]
    if not (isinstance(count, int) and isinstance(width, int) and count * width == channels):
        return None
    node, bias = _given(source.producer()), None
    if node.op_type == "Add" and (at := _constant_input(node)) is not None:
        source = _given(node.inputs[1 - at])
        if _shape(_given(node.inputs[at])) != (channels,) or not _is_single(source):
            return None
        node, bias = _given(source.producer()), node
    if node.op_type != "MatMul" or not _has_matrix(node) or _shape(weight_of(node))[1] != channels:
        return None
    return node, bias


def bias_of(product: ir.Node) -> tuple[ir.Node, int] | None:
    """The Add of a product's bias, and the bias's input position; None for none, or if the product has other users."""
    uses = list(product.outputs[0].uses())
    if len(uses) != 1 or product.outputs[0].is_graph_output() or uses[0][0].op_type != "Add":
        return None
    add = uses[0][0]
    index = _constant_input(add)
    return None if index is None or len(_shape(_given(add.inputs[index]))) != 1 else (add, index)


def _constant_input(node: ir.Node) -> int | None:
    """Position of the first input that is a weight."""
    return next((index for index, value in enumerate(node.inputs) if is_weight(value)), None)


def _is_single(value: ir.Value) -> bool:
    """True if a value is a node's output and has exactly one user."""
    return value.producer() is not None and len(list(value.uses())) == 1 and not value.is_graph_output()


def _has_matrix(node: ir.Node) -> bool:
    """True if the second factor is a known float32 matrix."""
    weight = node.inputs[1]
    return is_weight(weight) and weight.dtype == ir.DataType.FLOAT and len(_shape(weight)) == 2


def is_weight(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """True for an initializer with known content."""
    return value is not None and value.is_initializer() and value.const_value is not None


def weight_of(product: ir.Node) -> ir.Value:
    return _given(product.inputs[1])


def array_of(weight: ir.Value) -> NDArray[np.float32]:
    if weight.const_value is None:
        raise TypeError(f"{weight} must be known")
    return np.asarray(weight.const_value.numpy())


def _shape(weight: ir.Value) -> tuple[int, ...]:
    if weight.const_value is None:
        raise TypeError(f"{weight} must be known")
    return tuple(weight.const_value.shape.numpy())


def _given(part: T | None) -> T:
    if part is None:
        raise TypeError("a node or an input that a place must have is not there")
    return part


def _scale_input(graph: ir.Graph, node: ir.Node, index: int, factors: NDArray[np.float32]) -> None:
    before = _given(node.inputs[index])
    node.replace_input_with(index, scaled(graph, before, factors))
    _drop_unused(graph, before)


def _drop_unused(graph: ir.Graph, weight: ir.Value) -> None:
    if not weight.uses() and str(weight.name) in graph.initializers:
        del graph.initializers[str(weight.name)]


def scaled(graph: ir.Graph, weight: ir.Value, factors: NDArray[np.float32]) -> ir.Value:
    """A new initializer, computed when it is written, so that no second copy of all weights is in memory."""
    if weight.const_value is None:
        raise TypeError(f"{weight} must be known")
    tensor = weight.const_value

    def content() -> ir.TensorProtocol:
        return ir.Tensor(np.asarray(tensor.numpy() * factors, np.float32))

    lazy = ir.LazyTensor(content, ir.DataType.FLOAT, ir.Shape(tensor.shape.numpy()))
    base = f"{str(weight.name).split(SMOOTHED)[0]}{SMOOTHED}"
    names = itertools.chain((base,), (f"{base}_{index}" for index in itertools.count(2)))
    name = next(name for name in names if name not in graph.initializers)
    return register(graph, name, lazy)
