"""The streaming writer against onnx_ir's own, which builds the whole file in memory."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from vitdeploy.exporters.graph.onnx_file import (
    ALIGNMENT,
    MAX_BYTES,
    _field,
    _initializer_header,
    write_onnx,
)

NUMBERS = np.arange(-6, 6).reshape(3, 4)
ARRAYS: dict[str, np.ndarray] = {
    "float32": NUMBERS.astype(np.float32) / 3,
    "float64": NUMBERS / 3,
    "float16": (NUMBERS / 3).astype(np.float16),
    "bfloat16": (NUMBERS / 3).astype(ml_dtypes.bfloat16),
    "float8": NUMBERS.astype(ml_dtypes.float8_e4m3fn),
    "int8": NUMBERS.astype(np.int8),
    "uint8": NUMBERS.astype(np.uint8),
    "int32": NUMBERS.astype(np.int32),
    "int64": NUMBERS.astype(np.int64),
    "uint64": NUMBERS.astype(np.uint64),
    "bool": NUMBERS > 0,
    "int4": NUMBERS.astype(ml_dtypes.int4),
    "uint4": (NUMBERS + 6).astype(ml_dtypes.uint4),
    "odd int4": np.arange(-2, 3).astype(ml_dtypes.int4),
    "strided": NUMBERS.astype(np.float32).T[::2],
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "none": np.zeros(0, np.int64),
    "Größe.名": np.ones(3, np.float32),
}
# Lengths at which a varint gets a byte more, on either side.
LENGTHS = (0, 1, 127, 128, 129, 16383, 16384, 16385, 2**21)


def model_of(arrays: dict[str, np.ndarray]) -> ir.Model:
    """A graph that adds 1 to its input, with these initializers beside."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n"]))
    one = ir.Value(name="one", const_value=ir.tensor(np.ones(1, np.float32), name="one"))
    node = ir.node("Add", [x, one])
    node.outputs[0].name = "y"
    node.outputs[0].type, node.outputs[0].shape = x.type, x.shape
    weights = [ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in arrays.items()]
    graph = ir.Graph(
        [x], [node.outputs[0]], nodes=[node], initializers=[one, *weights], opset_imports={"": 21}, name="sum"
    )
    return ir.Model(graph, ir_version=10, producer_name="test", producer_version="1")


def values_of(proto: onnx.ModelProto) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    """Type, shape and content of each initializer."""
    return {
        tensor.name: (tensor.data_type, tuple(tensor.dims), onnx.numpy_helper.to_array(tensor).tobytes())
        for tensor in proto.graph.initializer
    }


def without_weights(proto: onnx.ModelProto) -> bytes:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.ClearField("initializer")
    copy.graph.ClearField("value_info")  # of initializers, which say it themselves
    return bytes(copy.SerializeToString(deterministic=True))


def assert_same(path: Path, model: ir.Model) -> None:
    found, want = onnx.load(path), ir.to_proto(model)
    onnx.checker.check_model(path, full_check=True)
    assert without_weights(found) == without_weights(want)
    assert list(values_of(found)) == list(values_of(want))
    assert values_of(found) == values_of(want)
    for name, array in ARRAYS.items():
        if name in values_of(found):
            tensor = next(tensor for tensor in found.graph.initializer if tensor.name == name)
            np.testing.assert_array_equal(
                onnx.numpy_helper.to_array(tensor).astype(np.float64), array.astype(np.float64)
            )


@pytest.mark.parametrize("names", [[name] for name in ARRAYS] + [list(ARRAYS), []], ids=", ".join)
def test_one_file_is_what_onnx_ir_writes(tmp_path: Path, names: list[str]) -> None:
    model = model_of({name: ARRAYS[name] for name in names})
    assert write_onnx(model, tmp_path / "sub" / "model.onnx") == ("model.onnx",)
    assert_same(tmp_path / "sub" / "model.onnx", model)
    assert list(model.graph.initializers) == ["one", *names], "the model keeps its weights"


@pytest.mark.parametrize("length", LENGTHS)
def test_lengths_around_the_edges_of_a_varint(tmp_path: Path, length: int) -> None:
    content = np.random.default_rng(0).integers(0, 256, length, np.uint8)
    model = model_of({"w": content})
    write_onnx(model, tmp_path / "model.onnx")
    assert_same(tmp_path / "model.onnx", model)


def test_torch_tensors_as_the_exporter_has_them(tmp_path: Path) -> None:
    """Their memory is written as it is, bfloat16 and transposed ones among it."""
    import torch
    from torch.onnx._internal.exporter._core import TorchTensor

    weight = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7
    tensors = {"plain": weight, "transposed": weight.T, "half": weight.half(), "brain": weight.bfloat16()}
    model = model_of({})
    for name, tensor in tensors.items():
        value = TorchTensor(tensor, name=name)
        model.graph.initializers[name] = ir.Value(name=name, const_value=value)
    write_onnx(model, tmp_path / "model.onnx")
    assert_same(tmp_path / "model.onnx", model)
    for initializer in onnx.load(tmp_path / "model.onnx").graph.initializer:
        if initializer.name in tensors:
            found = onnx.numpy_helper.to_array(initializer).astype(np.float32)
            np.testing.assert_array_equal(found, tensors[initializer.name].float().numpy())


@pytest.mark.parametrize(("spare", "files"), [(0, 1), (-1, 2)])
def test_weights_beyond_the_limit_go_beside_the_model(tmp_path: Path, spare: int, files: int) -> None:
    arrays = {"large": np.arange(1000, dtype=np.float32), "int4": ARRAYS["int4"], "empty": ARRAYS["empty"]}
    model = model_of(arrays)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    names = write_onnx(model, tmp_path / "model.onnx", max_bytes=size + spare)
    assert names == ("model.onnx", "model.onnx.data")[:files]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    if files == 2:
        assert (tmp_path / "model.onnx").stat().st_size < 1000 < (tmp_path / "model.onnx.data").stat().st_size
        external = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer
        locations = {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}
        assert locations == {"model.onnx.data"}
    assert_same(tmp_path / "model.onnx", model)


def test_large_weights_begin_where_a_map_of_memory_can(tmp_path: Path) -> None:
    large = np.arange(1 << 19, dtype=np.float32)
    arrays = {"first": large, "small": ARRAYS["float32"], "second": -large, "third": large[:-1]}
    model = model_of(arrays)
    assert write_onnx(model, tmp_path / "model.onnx", max_bytes=0) == ("model.onnx", "model.onnx.data")
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer
    }
    assert {place["location"] for place in places.values() if place} == {"model.onnx.data"}
    assert [int(places[name]["offset"]) % ALIGNMENT for name in ("first", "second", "third")] == [0, 0, 0]
    assert_same(tmp_path / "model.onnx", model)


def test_external_data_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    contents = []
    for folder in ("a", "b"):
        names = write_onnx(model_of(ARRAYS), tmp_path / folder / "model.onnx", max_bytes=0)
        contents.append([(tmp_path / folder / name).read_bytes() for name in names])
    assert contents[0] == contents[1]


def decode(data: bytes) -> int:
    return sum((byte & 0x7F) << 7 * index for index, byte in enumerate(data))


@pytest.mark.parametrize("exponent", range(0, 64, 7))
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_lengths_of_fields(exponent: int, offset: int) -> None:
    value = max(2**exponent + offset, 0)
    tag, *length = _field(5, value)
    assert tag == 5 << 3 | 2
    data = bytes(length)
    assert decode(data) == value
    assert all(byte & 0x80 for byte in data[:-1])
    assert not data[-1] & 0x80
    assert len(data) == max(1, -(-value.bit_length() // 7))


class Huge:
    """A tensor whose size is stated, and whose memory nobody may ask for."""

    dtype = ir.DataType.FLOAT
    shape = ir.Shape([3, 2**30])
    nbytes = 3 * 2**32


def test_lengths_beyond_2_gib() -> None:
    huge: Any = Huge()
    begin = _initializer_header("w", huge)
    header = begin[1 + 5 :]
    assert begin[: 1 + 5] == _field(5, len(header) + huge.nbytes)
    assert decode(begin[1 : 1 + 5]) == len(header) + huge.nbytes
    assert header.endswith(_field(9, huge.nbytes))
    assert decode(header[-5:]) == huge.nbytes
    parsed = onnx.TensorProto.FromString(header[:-6])
    assert (parsed.name, parsed.data_type, list(parsed.dims)) == ("w", onnx.TensorProto.FLOAT, [3, 2**30])
    assert MAX_BYTES < 2**31


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
@pytest.mark.parametrize("length", [10, 10**6])
def test_a_full_disk_is_an_os_error(tmp_path: Path, length: int) -> None:
    model = model_of({"w": np.zeros(length, np.uint8)})
    (tmp_path / "model.onnx").symlink_to("/dev/full")
    with pytest.raises(OSError, match=re.escape("No space left on device")):
        write_onnx(model, tmp_path / "model.onnx")
    assert list(model.graph.initializers) == ["one", "w"], "the model keeps its weights"


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    model = model_of({"w": np.zeros(1000, np.uint8)})
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        write_onnx(model, tmp_path / "file" / "model.onnx")
    (tmp_path / "model.onnx.data").mkdir()
    with pytest.raises(OSError, match=r"model\.onnx\.data"):
        write_onnx(model, tmp_path / "model.onnx", max_bytes=0)
