"""Mixed-precision variants of a graph: a lower precision, with chosen nodes in float32."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from vitdeploy.exporters.graph.emulation import emulated
from vitdeploy.exporters.graph.initializers import labels_of
from vitdeploy.exporters.graph.onnx_file import read_onnx_ir, write_onnx
from vitdeploy.exporters.graph.precision import TYPES, can_be_half, name_of, set_precision
from vitdeploy.files.opened import OpenedFile
from vitdeploy.specs import Precision


@dataclasses.dataclass(frozen=True)
class Variants:
    """A graph in a lower precision, with nodes that can be kept in float32.

    Attributes:
        nodes: Nodes that use the lower precision unless kept, named by their first outputs, in graph order.
        write: Writes the variant that keeps the given nodes to a file that ONNX Runtime can run on a CPU with every
            rounding.
        labels: Labels such as "layers.0.mlp.fc1", by node name, for nodes with named weights. The addition of a bias
            has its product's label.
    """

    nodes: tuple[str, ...]
    write: Callable[[Collection[str], Path], None]
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)


def half_variants(source: Path | OpenedFile, precision: Precision) -> Variants:
    """Half-precision variants of a float32 graph, as by `export` but without observed values.

    Args:
        source: The graph, with standard ONNX operators.
        precision: fp16 or bf16.
    """
    model = read_onnx_ir(source)
    ShapeInferencePass()(model)
    nodes = can_be_half(model, TYPES[precision])
    write = functools.partial(_write_half, model, TYPES[precision])
    return Variants(tuple(map(name_of, nodes)), write, labels_of(nodes))


def _write_half(model: ir.Model, half: ir.DataType, kept: Collection[str], path: Path) -> None:
    twin = model.clone()
    io = ir.DataType.FLOAT16 if takes_half(twin) else ir.DataType.FLOAT
    set_precision(twin, half, io, {}, kept)
    write_onnx(emulated(twin, half), path)


def takes_half(model: ir.Model) -> bool:
    """True if an input or an output of a graph is float16."""
    return any(value.dtype == ir.DataType.FLOAT16 for value in (*model.graph.inputs, *model.graph.outputs))
