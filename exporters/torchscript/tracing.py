"""Export the reference model to TorchScript: traced, with frozen weights."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.exporters import Exported
from vitdeploy.exporters.torchscript.file import write_torchscript
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.models.normalization import fold_normalization
from vitdeploy.models.signature import SIGNATURE_FILE, TORCH_TYPES, Served, output_names
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.specs import ExportSpec, PixelStage, Precision, attention_for
from vitdeploy.system.forks import with_threads


@dataclasses.dataclass(frozen=True, eq=False)
class TracedFunction:
    """A model in its precision, before tracing.

    Attributes:
        attention: "eager" or "sdpa".
    """

    served: Served
    precision: Precision
    attention: str

    @with_threads
    def write(self, folder: Path) -> Exported:
        """Write `torchscript/model_fp32.pt`, or `model_fp16.pt` or `model_bf16.pt`, with a dynamic batch axis.

        Its `forward` takes named positional inputs and always returns a tuple, in C++ too. The names, types and shapes
        of both are in the extra file `signature.json`, as {"inputs": [{"name", "dtype", "shape"}, ...], "outputs":
        [...]}. Weights are constants of the code: `torch.jit.load` places them on its device, and `.to()` does not move
        them.

        Raises:
            OSError: If a file cannot be written.
        """
        served, path = self.served, f"torchscript/model_{self.precision}.pt"
        with _quiet():
            write_torchscript(_traced(served), folder / path, {SIGNATURE_FILE: _signature(served)})
        return Exported(
            files=(path,),
            inputs=served.inputs,
            outputs=served.outputs,
            options={"attention": self.attention},
            tools={"torch": version("torch")},
        )


@with_threads
def trace_torchscript(model: VisionTransformer, spec: ExportSpec, processor: ImageProcessor) -> TracedFunction:
    """Prepare a model for tracing; inputs and outputs have the types of `spec` in every precision.

    Args:
        model: Model in float32; unchanged.
        processor: The bundle's image processor; the model does the preprocessing that it omits, see
            `ExportSpec.pixels`.

    Raises:
        UsageError: If an output does not exist.
    """
    attention = attention_for(output_names(model, spec.outputs))
    processor.check_stage(spec.pixels.stage)
    if spec.pixels.stage is not PixelStage.NORMALIZED:
        model = fold_normalization(model, processor.scale, processor.offset)
    if spec.precision is not Precision.FP32:
        model = copy.deepcopy(model).to(TORCH_TYPES[spec.precision])
    served = Served(
        model.with_attention(attention),
        spec.outputs,
        dynamic_image_size=spec.dynamic_image_size,
        pixels=spec.pixels,
        io_dtype=spec.io_dtype,
    )
    return TracedFunction(served, spec.precision, attention)


class _AsTuple(nn.Module):
    """A model whose outputs are a tuple: a trace cannot return a dictionary."""

    def __init__(self, served: Served) -> None:
        super().__init__()
        self.served = served

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.served(*tensors).values())


def _traced(served: Served) -> torch.jit.ScriptFunction[Any, Any]:
    """The frozen trace as a function, not a module: a module's name counts the process's earlier ones."""
    example = served.example_inputs(batch_size=2)
    with torch.no_grad():
        module = torch.jit.trace(_AsTuple(served).eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
        graph = torch.jit.freeze(module).graph
    graph.eraseInput(0)  # the module, which is now empty
    for value, spec in zip(graph.inputs(), served.inputs, strict=True):
        value.setDebugName(spec.name)
    _follow_the_input(graph)
    return torch._C._create_function_from_graph("forward", graph)


def _follow_the_input(graph: torch._C.Graph) -> None:
    """Move values that the trace creates on its own device, such as BEiT's offsets, to the first input's device."""
    constants = [node for node in graph.nodes() if node.kind() == "prim::Constant"]
    devices = [node for node in constants if isinstance(node.output().type(), torch._C.DeviceObjType)]
    if devices:
        place = graph.create("prim::device", [next(graph.inputs())], 1)
        place.output().setType(torch._C.DeviceObjType.get())
        graph.prependNode(place)
        for node in devices:
            node.output().replaceAllUsesWith(place.output())
            node.destroy()


def _signature(served: Served) -> bytes:
    names = {"inputs": served.inputs, "outputs": served.outputs}
    return json.dumps({name: [spec.to_dict() for spec in specs] for name, specs in names.items()}).encode()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's recommendation, at each call, to leave TorchScript."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        yield
