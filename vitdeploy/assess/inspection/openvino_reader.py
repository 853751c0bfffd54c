"""Read the content of OpenVINO's IR, and find its layers."""

from __future__ import annotations

import collections
import hashlib
from pathlib import Path
from typing import NamedTuple

from vitdeploy.assess.inspection.graph_summary import GraphSummary, most_first
from vitdeploy.errors import BundleError
from vitdeploy.exporters.naming.parts import nodes_by_part
from vitdeploy.files.opened import OpenedFile
from vitdeploy.system.imports import openvino_core
from vitdeploy.system.telemetry import without_reporter

with without_reporter():
    import openvino as ov

# ONNX's names, which tell the parts apart.
_NAMES = {"Convert": "Cast", "ShapeOf": "Shape", "FakeQuantize": "QuantizeLinear"}
_NUMPY_NAMES = {
    **{f"f{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"{sign}{bits}": f"{word}{bits}" for sign, word in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)},
    "bf16": "bfloat16", "boolean": "bool",
}  # fmt: skip
_PRODUCTS = ("MatMul", "Convolution")
_DEQUANTIZATION = ("Multiply", "Subtract", "Convert", "Reshape")


class IRNode(NamedTuple):
    """An operator that is neither an input, an output nor a constant; the fields are those of an `onnx.NodeProto`."""

    op_type: str
    input: tuple[str, ...]
    output: tuple[str, ...]
    operator: ov.Node
    attribute: tuple[()] = ()


def read_openvino(source: Path | OpenedFile) -> GraphSummary:
    """Summarize an IR file with its weights file beside it; BundleError if OpenVINO does not read it."""
    model = load_openvino(source)
    operators = model.get_ordered_ops()
    nodes = ir_nodes(model)
    # Equal constants are stored once, and constants of one place in the file share their address.
    weights = {
        constant.data.ctypes.data: constant for constant in operators if constant.get_type_name() == "Constant"
    }.values()
    sizes: dict[tuple[object, ...], list[int]] = {}  # the first of equal ones
    by_type: collections.Counter[str] = collections.Counter()
    for weight in weights:
        size = weight.data.nbytes
        by_type[_dtype(weight)] += size
        digest = hashlib.sha256(weight.data.tobytes()).digest()
        sizes.setdefault((_dtype(weight), tuple(weight.get_output_shape(0)), digest), []).append(size)
    opsets = {str(node.operator.get_type_info().version_id) for node in nodes}
    return GraphSummary(
        versions={
            "IR version": int(model.get_rt_info("version").astype(int)),
            "operator sets": ", ".join(sorted(opsets, key=_number)),
        },
        node_types=most_first(collections.Counter(node.operator.get_type_name() for node in nodes)),
        weights=len(weights),
        weight_bytes=most_first(by_type),
        duplicates=sum(len(equal) - 1 for equal in sizes.values()),
        duplicate_bytes=sum(sum(equal[1:]) for equal in sizes.values()),
        layers=_types_by_part(model, nodes),
    )


def load_openvino(source: Path | OpenedFile) -> ov.Model:
    """Read an IR file that may be corrupt; BundleError if OpenVINO does not read it."""
    file = OpenedFile.of(source)
    try:
        model: ov.Model = openvino_core().read_model(file.handle, str(Path(file.handle).with_suffix(".bin")))
        return model
    except RuntimeError as exc:
        reason = file.named(str(exc).strip().splitlines()[-1])
        raise BundleError(
            f"openvino {ov.get_version()} does not read {file.path}: {reason}", where=file.path, expected="OpenVINO IR",
            hint="export the bundle again",
        ) from exc  # fmt: skip


def ir_nodes(model: ov.Model) -> list[IRNode]:
    """The operators of a model in topological order; a value has the name of its operator."""
    return [
        IRNode(
            _NAMES.get(operator.get_type_name(), operator.get_type_name()),
            tuple(maker.get_friendly_name() for maker in (*_makers(operator), *_scale(operator))),
            (operator.get_friendly_name(),),
            operator,
        )
        for operator in model.get_ordered_ops()
        if operator.get_type_name() not in ("Parameter", "Result", "Constant")
    ]


def _makers(operator: ov.Node) -> list[ov.Node]:
    return [value.get_source_output().get_node() for value in operator.inputs()]


def _scale(operator: ov.Node) -> list[ov.Node]:
    """The weight that a norm's result is multiplied by: its name tells the norm's part."""
    if operator.get_type_name() != "MVN":
        return []
    users = (user.get_node() for user in operator.output(0).get_target_inputs())
    return [maker for user in users for maker in _makers(user) if maker.get_type_name() == "Constant"]


def parts_of(model: ov.Model, nodes: list[IRNode]) -> dict[str, list[IRNode]]:
    """See `nodes_by_part`."""
    return nodes_by_part(nodes, {parameter.get_friendly_name() for parameter in model.get_parameters()})


def hidden_states(model: ov.Model) -> list[ov.Output]:
    """Input of the first layer, and output of each; empty if they cannot be told apart.

    The first layer normalizes a state from outside. A layer ends with the sum that all its others lead to.
    """
    parts = parts_of(model, ir_nodes(model))
    layers: list[list[IRNode]] = []
    while f"layers.{len(layers)}" in parts:
        layers.append(parts[f"layers.{len(layers)}"])
    inside = {name for layer in layers for node in layer for name in node.output}
    norms = [node for layer in layers[:1] for node in layer if node.op_type == "MVN" and node.input[0] not in inside]
    sums = [[node for node in layer if node.op_type == "Add"] for layer in layers]
    if len(norms) != 1 or not all(sums):
        return []
    return [norms[0].operator.input_value(0), *(of_layer[-1].operator.output(0) for of_layer in sums)]


def _types_by_part(model: ov.Model, nodes: list[IRNode]) -> dict[str, dict[str, int]]:
    computed = {parameter.get_friendly_name() for parameter in model.get_parameters()}
    for node in nodes:
        if node.op_type != "Shape" and not computed.isdisjoint(node.input):
            computed.update(node.output)
    counted: dict[str, dict[str, int]] = {}
    for part, members in parts_of(model, nodes).items():
        types = [_computes_in(node.operator) for node in members if not computed.isdisjoint(node.output)]
        counts = collections.Counter(dtype for dtype in types if "float" in dtype or dtype in ("int8", "uint8"))
        if counts:
            counted[part] = most_first(counts)
    return counted


def _computes_in(operator: ov.Node) -> str:
    """Type of an operator's result; for a product of two quantized factors, the type of the first."""
    if operator.get_type_name() in _PRODUCTS:
        factors = [_stored_as(operator.input_value(index).get_node()) for index in (0, 1)]
        if all("float" not in dtype for dtype in factors):
            return factors[0]
    return _dtype(operator)


def _stored_as(factor: ov.Node) -> str:
    """Type of a product's factor, before it was dequantized."""
    while "float" in _dtype(factor) and factor.get_type_name() in _DEQUANTIZATION:
        factor = factor.input_value(0).get_node()
    return _dtype(factor)


def _number(opset: str) -> int:
    return int(opset.removeprefix("opset"))


def _dtype(operator: ov.Node) -> str:
    name = str(operator.get_output_element_type(0).get_type_name())
    return _NUMPY_NAMES.get(name, name)
