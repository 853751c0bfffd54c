"""Triton's published schema of a `config.pbtxt`, and what a file says in it.

`data/triton_model_config.proto` is protobuf/model_config.proto of triton-inference-server/common at commit
83adf7cf88a2f343005974dff3728be746de2d66 (BSD-3-Clause); `make triton-schema` compiles it into the `.pb` beside it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from environments import ROOT
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, text_format

if TYPE_CHECKING:
    from pathlib import Path

PROTO = ROOT / "tests" / "data" / "triton_model_config.proto"


def descriptors() -> Any:
    """The compiled schema, a FileDescriptorProto."""
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(PROTO.with_suffix(".pb").read_bytes()).file
    return file


@functools.cache
def _model_config() -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(descriptors())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def read_config(path: Path) -> dict[str, Any]:
    """Every field that a file sets, by its name in the schema; int64 as text, as protobuf's JSON has it.

    Raises:
        ParseError: If a field, a type or a value is none of the schema's.
    """
    message = text_format.Parse(path.read_text(encoding="utf-8"), _model_config()())
    found: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return found
