"""A graph whose nodes take quantized values, and chosen nodes of it that do not."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from vitdeploy.errors import UsageError
from vitdeploy.exporters.graph.initializers import labels_of
from vitdeploy.exporters.graph.onnx_file import read_onnx_ir, write_onnx
from vitdeploy.exporters.graph.precision import name_of
from vitdeploy.exporters.graph.variants import Variants
from vitdeploy.exporters.quantization.integer_variants import (
    integer_products,
    registered,
    restore_bias,
    write_integer_variant,
)
from vitdeploy.exporters.quantization.smooth_quant import smooth_alike
from vitdeploy.files.opened import OpenedFile

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    import onnx_ir as ir


def quantized_variants(source: Path | OpenedFile, float_source: Path | OpenedFile) -> Variants:
    """Variants of a quantized graph: a node that is kept takes what it took before the graph was quantized.

    0. In a graph with MatMulInteger, see `vitdeploy.exporters.quantization.integer_variants`.
    1. A node computes in integers where one of its inputs comes from DequantizeLinear.
    2. Kept, it takes what was quantized; of a weight, that of the float32 graph's node of the same name.
    3. Where the graph was smoothed first (SmoothQuant), so is the float32 graph, by the same scales.
    4. So has it its own bias, not one that was corrected for rounded weights.
    5. What is quantized for others stays so; an output of the graph is not quantized where its node is kept.

    Args:
        source: the quantized graph, as `vitdeploy.export` or onnxruntime.quantization writes it.
        float_source: the graph that it was made from.

    Raises:
        UsageError: a node that computes in integers, or a weight of it, is not in the float32 graph.
    """
    path, float_path = OpenedFile.of(source).path, OpenedFile.of(float_source).path
    model, original = read_onnx_ir(source), read_onnx_ir(float_source)
    ShapeInferencePass()(original)
    smooth_alike(original, model)
    weights = {
        (name_of(node), index): value
        for node in original.graph
        for index, value in enumerate(node.inputs)
        if value is not None and value.is_initializer()
    }
    labels = labels_of(original.graph)
    products = integer_products(model.graph)
    if products:
        for name in products:
            _check_known(path, float_path, "MatMul", name, known=(name, 1) in weights)
        return Variants(tuple(products), functools.partial(write_integer_variant, model, weights), labels)
    nodes = [node for node in model.graph if any(_quantized(value) is not None for value in node.inputs)]
    computing = [node for node in nodes if node.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    known = set(map(name_of, original.graph))
    for node in computing:
        name = _original_name(node)
        has_weights = all((name, index) in weights for index in _quantized_weights(node))
        _check_known(path, float_path, node.op_type, name, known=name in known and has_weights)
    return Variants(tuple(map(_original_name, computing)), functools.partial(_write, model, weights), labels)


def _check_known(path: Path, float_path: Path, op_type: str, name: str, *, known: bool) -> None:
    if not known:
        raise UsageError(
            f"{path.name} was not made from {float_path.name}, which has no {op_type} {name} with these weights",
            what=name, where=path, expected=float_path, hint="quantize that graph",
        )  # fmt: skip


def _write(model: ir.Model, weights: dict[tuple[str, int], ir.Value], kept: Collection[str], path: Path) -> None:
    twin = model.clone()
    graph = twin.graph
    for node in list(graph):
        name = _original_name(node)
        if name not in kept:
            continue
        for index, value in enumerate(node.inputs):
            source = _quantized(value)
            if source is None:
                continue
            if index in _quantized_weights(node):
                source = registered(weights[name, index], graph)
            node.replace_input_with(index, source)
        restore_bias(node, weights, graph)
        _give_unquantized(node, graph)
    RemoveUnusedNodesPass()(twin)
    write_onnx(twin, path)


def _quantized(value: ir.Value | None) -> ir.Value | None:
    """The source of a value from DequantizeLinear: a float32 value, or a weight in integers; None for other values."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    source = node.inputs[0]
    quantize = None if source is None else source.producer()
    return source if quantize is None or quantize.op_type != "QuantizeLinear" else quantize.inputs[0]


def _quantized_weights(node: ir.Node) -> list[int]:
    """The positions of inputs that are weights in integers."""
    sources = enumerate(map(_quantized, node.inputs))
    return [index for index, source in sources if source is not None and source.is_initializer()]


def _original_name(node: ir.Node) -> str:
    """The name of its first output, before that was quantized, where it is one of the graph's."""
    return str(_final(node).name)


def _final(node: ir.Node) -> ir.Value:
    """The output of the graph that a node's first output becomes, quantized or not; else that first output."""
    output = node.outputs[0]
    for quantize, _ in output.uses():
        for dequantize, _ in quantize.outputs[0].uses() if quantize.op_type == "QuantizeLinear" else ():
            if dequantize.op_type == "DequantizeLinear" and dequantize.outputs[0].is_graph_output():
                return dequantize.outputs[0]
    return output


def _give_unquantized(node: ir.Node, graph: ir.Graph) -> None:
    """Make the node's own output the graph's, where the graph gives it quantized."""
    output, final = node.outputs[0], _final(node)
    if final is output:
        return
    for user, index in list(final.uses()):
        user.replace_input_with(index, output)
    output.name, final.name = final.name, None
    output.shape, output.type = final.shape, final.type
    graph.outputs[list(graph.outputs).index(final)] = output
