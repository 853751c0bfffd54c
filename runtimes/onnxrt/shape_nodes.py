"""Find the nodes of an ONNX file that compute shapes: ONNX Runtime's GPU providers leave them to the CPU by design."""

from __future__ import annotations

import collections
import math
from pathlib import Path
from typing import Any

import numpy as np

# Field numbers in onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OPERATOR, _NODE_DOMAIN = 1, 2, 3, 4, 7
_TENSOR_DIMS, _TENSOR_NAME = 1, 8

_SIZES = {"Shape", "Size"}
# Operators on sizes; none makes a large tensor from small ones.
_ON_SIZES = {
    "Abs", "Add", "And", "Cast", "Concat", "Div", "Equal", "Gather", "Greater", "GreaterOrEqual", "Identity", "Less",
    "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "ReduceProd", "Reshape", "Slice", "Split", "Squeeze",
    "Sub", "Unsqueeze", "Where",
}  # fmt: skip
_SMALL = 100  # elements of a constant: the limit of onnxruntime/core/framework/fallback_cpu_capability.cc


def shape_nodes(path: Path) -> set[tuple[str, str]]:
    """Find nodes that use only tensor shapes and small constants: their results do not depend on image content.

    ONNX Runtime reports a node's provider, name and operator, but no type: only the file shows whether a Mul applies to
    a size or to an image.

    Args:
        path: A file that ONNX Runtime loads, with nodes in topological order.

    Returns:
        Name and operator of each, without nested graphs.
    """
    (graph,) = _fields(np.memmap(path, np.uint8, "r").data)[_MODEL_GRAPH]  # weights are not read
    parts = _fields(graph)
    tensors = map(_fields, parts[_GRAPH_INITIALIZER])
    small = {"", *(_text(tensor[_TENSOR_NAME]) for tensor in tensors if _elements(tensor[_TENSOR_DIMS]) <= _SMALL)}
    shapes: set[tuple[str, str]] = set()
    others: set[tuple[str, str]] = set()
    for node in map(_fields, parts[_GRAPH_NODE]):
        operator = _text(node[_NODE_OPERATOR])
        on_sizes = operator in _ON_SIZES and small.issuperset(_text([name]) for name in node[_NODE_INPUT])
        is_shape = not _text(node[_NODE_DOMAIN]) and (operator in _SIZES or on_sizes)
        if is_shape:
            small.update(_text([name]) for name in node[_NODE_OUTPUT])
        (shapes if is_shape else others).add((_text(node[_NODE_NAME]), operator))
    return shapes - others


def _elements(dims: list[Any]) -> int:
    return math.prod(size for part in dims for size in ([part] if isinstance(part, int) else _numbers(part)))


def _text(values: list[Any]) -> str:
    return str(values[-1], "utf-8") if values else ""


def _fields(message: memoryview) -> dict[int, list[Any]]:
    """The values in a protobuf message, by field number: integers, else bytes."""
    fields: dict[int, list[Any]] = collections.defaultdict(list)
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        if key & 7 == 0:
            value, at = _number(message, at)
            fields[key >> 3].append(value)
        else:
            size, at = {1: (8, at), 5: (4, at)}.get(key & 7) or _number(message, at)
            fields[key >> 3].append(message[at : at + size])
            at += size
    return fields


def _numbers(packed: memoryview) -> list[int]:
    numbers, at = [], 0
    while at < len(packed):
        value, at = _number(packed, at)
        numbers.append(value)
    return numbers


def _number(message: memoryview, at: int) -> tuple[int, int]:
    """A varint (7 bits per byte, lowest first), and its end."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
