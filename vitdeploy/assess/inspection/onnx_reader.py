"""Read the content of an ONNX graph; external weights are not loaded."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import math
import re
from typing import TYPE_CHECKING, NamedTuple

import onnx
from google.protobuf.message import DecodeError

from vitdeploy.assess.inspection.graph_summary import GraphSummary, most_first
from vitdeploy.errors import BundleError, VitDeployError, first_line
from vitdeploy.exporters.naming.parts import nodes_by_part
from vitdeploy.files.opened import OpenedFile
from vitdeploy.system.exhaustion import check_exhaustion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

_NUMPY_NAMES = {"float": "float32", "double": "float64"}
_UNKNOWN = "unknown"
# Not floating point, yet not a shape, index or mask.
_NOT_INDICES = frozenset({"int8", "uint8", "int4", "uint4", _UNKNOWN})
_OF_INTEGERS = ("MatMulInteger", "ConvInteger")  # their result is int32


class _Weight(NamedTuple):
    """An initializer: element type, size, and a key that is equal for equal ones (None if not read)."""

    dtype: str
    size_bytes: int
    content: bytes | None


def read_onnx(source: Path | OpenedFile) -> GraphSummary:
    """Summarize the main graph of an ONNX model; BundleError if the file is invalid."""
    file = OpenedFile.of(source)
    loaded = load_onnx(file)
    graph, weights = loaded.model.graph, loaded.weights
    equal = collections.Counter(weight for weight in weights if weight.content is not None)
    with valid_onnx(file):
        layers = _types_by_part(graph, loaded.inputs)
    return GraphSummary(
        versions={"IR version": loaded.model.ir_version, **_opsets(loaded.model)},
        node_types=most_first(collections.Counter(_qualified(node) for node in graph.node)),
        weights=len(weights),
        weight_bytes=most_first(_bytes_by_type(weights)),
        duplicates=sum(count - 1 for count in equal.values()),
        duplicate_bytes=sum((count - 1) * weight.size_bytes for weight, count in equal.items()),
        layers=layers,
    )


class Loaded(NamedTuple):
    """A valid model with weights turned into inputs, those weights, the original input names, and inferred shapes."""

    model: onnx.ModelProto
    weights: list[_Weight]
    inputs: set[str]


def load_onnx(source: Path | OpenedFile) -> Loaded:
    """Read and check a file that may be corrupt; BundleError if it is not a valid ONNX model."""
    file = OpenedFile.of(source)
    with valid_onnx(file):
        model = onnx.load(file.handle, load_external_data=False)
        inputs = {value.name for value in model.graph.input} - {tensor.name for tensor in model.graph.initializer}
        weights = [_weight(tensor) for tensor in model.graph.initializer]
        _make_inputs_of_weights(model.graph)
        onnx.checker.check_model(model)
        return Loaded(onnx.shape_inference.infer_shapes(model), weights, inputs)


@contextlib.contextmanager
def valid_onnx(file: OpenedFile) -> Iterator[None]:
    """Raise BundleError if the file proves to be an invalid ONNX model in this block."""
    try:
        yield
    except VitDeployError:
        raise
    except MemoryError as exc:
        check_exhaustion(exc, f"reading {file.path}")
        raise
    except (DecodeError, ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        problem = f"{file.path} is not a valid ONNX model: {file.named(first_line(exc))}"
        raise BundleError(problem, where=file.path, expected="ONNX", hint="export the bundle again") from exc


def _weight(tensor: onnx.TensorProto) -> _Weight:
    dtype = _name(tensor.data_type)
    bits = re.search(r"\d+", dtype)  # "float8e4m3fn": 8; bool, without a number: 8
    size = math.ceil(math.prod(tensor.dims) * (int(bits[0]) if bits else 8) / 8)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return _Weight(dtype, size, None)
    if tensor.HasField("raw_data") and len(tensor.raw_data) != size:
        raise ValueError(f"{tensor.name!r:.80} has {len(tensor.raw_data)} bytes for {size}")
    content = onnx.TensorProto()
    content.CopyFrom(tensor)
    content.ClearField("name")
    return _Weight(dtype, size, hashlib.sha256(content.SerializeToString(deterministic=True)).digest())


def _make_inputs_of_weights(graph: onnx.GraphProto) -> None:
    """Replace weights by inputs for checks and inference: protobuf cannot pass messages of 2 GiB to them."""
    known = {value.name for value in graph.input}
    graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in graph.initializer
        if tensor.name not in known
    )
    graph.ClearField("initializer")


def _types_by_part(graph: onnx.GraphProto, inputs: set[str]) -> dict[str, dict[str, int]]:
    values = [*graph.input, *graph.value_info, *graph.output]
    types = {value.name: _name(value.type.tensor_type.elem_type) for value in values}
    sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    counted: dict[str, dict[str, int]] = {}
    for part, nodes in nodes_by_part(graph.node, inputs).items():
        dtypes = [_computes_in(node, types, sources) for node in nodes]
        counts = collections.Counter(dtype for dtype in dtypes if "float" in dtype or dtype in _NOT_INDICES)
        if counts:
            counted[part] = most_first(counts)
    return counted


def _computes_in(node: onnx.NodeProto, types: Mapping[str, str], sources: Mapping[str, str]) -> str:
    """Type of a node's result; for a product of quantized factors, in either form, the type of the first factor.

    `sources` maps each DequantizeLinear's output to its input.
    """
    if node.op_type in _OF_INTEGERS:
        return types.get(node.input[0], _UNKNOWN)
    if len(node.input) > 1 and all(name in sources for name in node.input[:2]):
        return types.get(sources[node.input[0]], _UNKNOWN)
    return next((types.get(name, _UNKNOWN) for name in node.output if name), _UNKNOWN)


def _bytes_by_type(weights: Iterable[_Weight]) -> collections.Counter[str]:
    total: collections.Counter[str] = collections.Counter()
    for weight in weights:
        total[weight.dtype] += weight.size_bytes
    return total


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    return {f"opset {entry.domain}".removesuffix(" "): entry.version for entry in model.opset_import}


def _qualified(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}".removeprefix(".")


def _name(elem_type: int) -> str:
    """Name of an element type in numpy, "unknown" for none; ValueError for one unknown to onnx."""
    try:
        name = onnx.TensorProto.DataType.Name(elem_type).lower()
    except ValueError as exc:
        raise ValueError(f"onnx {onnx.__version__} knows no element type {elem_type}") from exc
    return _UNKNOWN if name == "undefined" else _NUMPY_NAMES.get(name, name)
