"""How large the values of a graph become on real images."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from vitdeploy.exporters.graph.onnx_file import write_onnx

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vitdeploy.exporters import Observe
    from vitdeploy.specs import PixelFormat


def observed_ranges(
    model: ir.Model, values: Sequence[ir.Value], pixels: PixelFormat, observe: Observe, folder: Path
) -> Mapping[str, float]:
    """The largest magnitude of each of `values`, by its name, while `observe` runs the graph.

    Args:
        model: a graph in float32; it stays as it is.
        values: of it.
        pixels: what it takes.
        observe: see `vitdeploy.exporters.ExportFunction`.
        folder: where a copy of the graph may lie meanwhile.
    """
    twin = model.clone()
    graph = twin.graph
    by_name = {value.name: value for node in graph for value in node.outputs}
    graph.outputs.clear()
    names = {}
    for index, value in enumerate(values):
        absolute = ir.node("Abs", [by_name[value.name]])
        largest = ir.node("ReduceMax", [absolute.outputs[0]], {"keepdims": 0})
        graph.extend([absolute, largest])
        output = largest.outputs[0]
        output.name, output.type, output.shape = f"largest_{index}", ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        names[output.name] = str(value.name)
        graph.outputs.append(output)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch, "observed.onnx")
        write_onnx(twin, path)
        return {names[name]: value for name, value in observe(path, pixels).items()}
