"""Read and write large ONNX models without a second copy of their weights."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from vitdeploy.files.opened import OpenedFile

# Protobuf refuses messages of 2 GiB; the difference is room for the graph itself.
MAX_BYTES = (1 << 31) - (1 << 24)
# Alignment of each weight above 1 MiB in an external file: every system can map memory from such an offset.
ALIGNMENT = 1 << 16

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW_DATA = 9


def read_onnx_ir(source: Path | OpenedFile) -> ir.Model:
    """Read a model file, and map its external weights now: their name is not looked up later."""
    model = ir.load(OpenedFile.of(source).handle)
    for tensor in _weights(model).values():
        if isinstance(tensor, ir.ExternalTensor):
            tensor.numpy()
    return model


def write_onnx(model: ir.Model, path: Path, max_bytes: int = MAX_BYTES) -> tuple[str, ...]:
    """Write `model` to `path`, and weights to a memory-mappable file beside it if they exceed `max_bytes`.

    Returns:
        File names, the model first.

    Raises:
        OSError: If a file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if sum(tensor.nbytes for tensor in _weights(model).values()) > max_bytes:
        data = f"{path.name}.data"
        ir.save(model, path, external_data=data, alignment=ALIGNMENT)
        return path.name, data
    with path.open("wb") as file:
        _write_model(model, file)
    return (path.name,)


def _write_model(model: ir.Model, file: BinaryIO) -> None:
    """Serialize the weights one by one: protobuf reads fields in any order and appends repeated ones."""
    weights = _weights(model)
    proto = _without(model, set(weights))
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    headers = {name: _initializer_header(name, tensor) for name, tensor in weights.items()}
    size = len(graph) + sum(len(header) + weights[name].nbytes for name, header in headers.items())
    file.write(proto.SerializeToString(deterministic=True))
    file.write(_field(_MODEL_GRAPH, size) + graph)
    for name, header in headers.items():
        file.write(header)
        file.write(weights[name].tobytes())  # little-endian, and packed for elements of less than a byte


def without_weights(model: ir.Model, more_than_bytes: int = 1024) -> onnx.ModelProto:
    """The model with its weights, except small ones, as inputs: shape inference needs the content of small ones."""
    names = {name for name, tensor in _weights(model).items() if tensor.nbytes > more_than_bytes}
    proto = _without(model, names)
    proto.graph.input.extend(ir.to_proto(model.graph.initializers[name]) for name in sorted(names))
    return proto


def _without(model: ir.Model, names: set[str]) -> onnx.ModelProto:
    values = dict(model.graph.initializers)
    for name in names:
        del model.graph.initializers[name]
    try:
        return ir.to_proto(model)
    finally:
        model.graph.initializers.clear()
        model.graph.initializers.update(values)


def _weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    return {
        name: value.const_value for name, value in model.graph.initializers.items() if value.const_value is not None
    }


def _initializer_header(name: str, tensor: ir.TensorProtocol) -> bytes:
    """A graph field with a TensorProto, without its last bytes, the raw data."""
    proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
    header: bytes = proto.SerializeToString(deterministic=True) + _field(_TENSOR_RAW_DATA, tensor.nbytes)
    return _field(_GRAPH_INITIALIZER, len(header) + tensor.nbytes) + header


def _field(number: int, size: int) -> bytes:
    """Tag and length of a length-delimited field, each as a varint (7 bits per byte, lowest first)."""
    parts = bytearray()
    for value in (number << 3 | 2, size):
        rest = value
        while rest > 0x7F:
            parts.append(rest & 0x7F | 0x80)
            rest >>= 7
        parts.append(rest)
    return bytes(parts)
