"""Find an ONNX model's external data files without the onnx package and without reading weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from vitdeploy.bundle.manifest import Artifact
from vitdeploy.errors import BundleError

# By message type, the fields that lead to a tensor, and the type of each: numbers from onnx.proto.
_TENSOR, _ENTRY = "TensorProto", "StringStringEntryProto"
_LEADS: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: _TENSOR, 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: _TENSOR, 6: "GraphProto", 10: _TENSOR, 11: "GraphProto", 22: "SparseTensorProto", 23: "SparseTensorProto"
    },
    "SparseTensorProto": {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {13: _ENTRY},  # external_data
}  # fmt: skip
_KEY, _VALUE, _LOCATION = 1, 2, b"location"
_MOST_NAME_BYTES = 4096  # longest path on Linux
_SMALL_BYTES = 1 << 16
_MOST_NESTED = 100  # protobuf's limit
_LENGTHS = {1: 8, 5: 4}  # size of a fixed-size value, by wire type


def external_names(file: BinaryIO) -> set[str]:
    """The `location` of every tensor's external data, as written.

    Args:
        file: A model file, at its beginning. Only sizes of its parts are read, so it may have gigabytes.

    Raises:
        ValueError: If it is not an ONNX model.
    """
    names: set[str] = set()
    size = os.fstat(file.fileno()).st_size
    parts = [(_LEADS["ModelProto"], _fields(file, 0, size))]  # nested messages
    while parts:
        leads, fields = parts[-1]
        number, start, stop = next(fields, (0, 0, 0))
        if not number:
            parts.pop()
        elif leads.get(number) == _ENTRY:
            names |= _location(file, start, stop)
        elif number in leads and _may_name_a_file(file, start, stop):
            if len(parts) == _MOST_NESTED:
                raise ValueError(f"it has more than {_MOST_NESTED} messages within each other")
            parts.append((_LEADS[leads[number]], _fields(file, start, stop)))
    return names


def check_external_data(artifact: Artifact, path: Path, file: BinaryIO) -> None:
    """Raise BundleError unless an artifact records, by name, every external data file of its ONNX model."""
    first, *others = (PurePosixPath(record.path) for record in artifact.files)
    recorded = {other.relative_to(first.parent).as_posix() for other in others}
    file.seek(0)
    try:
        unknown = sorted(external_names(file) - recorded)
    except (OSError, ValueError) as exc:
        message = f"{path} is not a valid ONNX model: {exc}"
        raise BundleError(message, where=path, hint="export the bundle again") from exc
    if unknown:
        message = f"{path} takes weights from {unknown[0]!r:.200}, which the manifest does not record"
        raise BundleError(message, where=path, what=unknown[0], hint="do not use this bundle")


def _may_name_a_file(file: BinaryIO, start: int, stop: int) -> bool:
    """False for a small message without such a key: most are nodes, which need no further parsing."""
    if stop - start > _SMALL_BYTES:
        return True
    file.seek(start)
    return _LOCATION in file.read(stop - start)


def _location(file: BinaryIO, at: int, end: int) -> set[str]:
    """The file name in an entry of external data, if any."""
    values: dict[int, bytes] = {}
    for number, start, stop in _fields(file, at, end):
        if number in (_KEY, _VALUE):
            if stop - start > _MOST_NAME_BYTES:
                raise ValueError(f"it has a key or a value of external data of more than {_MOST_NAME_BYTES} bytes")
            file.seek(start)
            values[number] = file.read(stop - start)
    return {values.get(_VALUE, b"").decode()} if values.get(_KEY) == _LOCATION else set()


def _fields(file: BinaryIO, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each length-delimited field of a message."""
    while at < end:
        file.seek(at)
        key, at = _number(file, at)
        if key >> 32:  # protobuf drops the higher bits, so there it would be another field
            raise ValueError("it has the number of a field in more than 32 bits")
        kind, number = key & 7, key >> 3
        size = 0
        if kind in (0, 2):
            size, at = _number(file, at)
        elif kind in _LENGTHS:
            at += _LENGTHS[kind]
        else:
            raise ValueError(f"it has a field of wire type {kind}")
        if not number:
            raise ValueError("it has a field without a number")
        if kind == 2:
            if size > end - at:
                raise ValueError("it ends early")
            yield number, at, at + size
            at += size


def _number(file: BinaryIO, at: int) -> tuple[int, int]:
    """A varint (7 bits per byte, lowest first) of at most 64 bits, and its end."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends early")
        value |= (byte[0] & 127) << shift
        at += 1
        if byte[0] < 128:
            return value, at
    raise ValueError("it has a number of more than 64 bits")
