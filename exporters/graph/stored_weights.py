"""Store weights in 16 bits in a graph that computes in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from vitdeploy.exporters.graph.kept_nodes import kept_nodes
from vitdeploy.exporters.graph.precision import FLOAT, Casts, largest_of_type, name_of, on_data_path

if TYPE_CHECKING:
    from collections.abc import Collection

_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")  # they have nearly all weights


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
