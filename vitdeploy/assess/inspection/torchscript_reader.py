"""Read the content of a TorchScript graph, and find its layers."""

from __future__ import annotations

import collections
import functools
import hashlib
import zipfile
from typing import TYPE_CHECKING

import torch

from vitdeploy.assess.inspection.graph_summary import GraphSummary, most_first
from vitdeploy.errors import BundleError
from vitdeploy.files.opened import OpenedFile
from vitdeploy.runtimes.torchscript import load_module, read_signature

if TYPE_CHECKING:
    from pathlib import Path

# From c10/core/ScalarType.h: a graph names the target type of a conversion so.
_SCALAR_TYPES = {5: torch.float16, 6: torch.float32, 7: torch.float64, 15: torch.bfloat16}
_CONVERSION = "aten::to"


def read_torchscript(source: Path | OpenedFile) -> GraphSummary:
    """Summarize the graph of a TorchScript file.

    A constant is not a node. A node's type is the target of a conversion, or else the promoted type of its inputs.

    Args:
        source: A verified file; loading one can run code.

    Raises:
        BundleError: If the file cannot be loaded.
    """
    path = OpenedFile.of(source).path
    module, signature = load_module(source, torch.device("cpu"))
    inputs, _ = read_signature(path, signature)
    graph = module.graph
    if not 1 <= len(inputs) < len(list(graph.inputs())):  # the graph's first input is the module itself
        taken = len(list(graph.inputs())) - 1
        raise BundleError(
            f"{path} states {len(inputs)} inputs, but its graph takes {taken}",
            what="inputs", where=path, expected=taken, found=len(inputs), hint="export the bundle again",
        )  # fmt: skip
    nodes = [node for node in graph.nodes() if node.kind() != "prim::Constant"]
    weights = _weights(graph).values()
    sizes: dict[tuple[object, ...], list[int]] = {}  # the first of equal ones
    for weight in weights:
        sizes.setdefault(_content(weight), []).append(weight.nbytes)
    by_type: collections.Counter[str] = collections.Counter()
    for weight in weights:
        by_type[_name(weight.dtype)] += weight.nbytes
    return GraphSummary(
        versions={"file format": _file_format(OpenedFile.of(source))},
        node_types=most_first(collections.Counter(node.kind().removeprefix("aten::") for node in nodes)),
        weights=len(weights),
        weight_bytes=most_first(by_type),
        duplicates=sum(len(equal) - 1 for equal in sizes.values()),
        duplicate_bytes=sum(sum(equal[1:]) for equal in sizes.values()),
        layers=_types_by_part(graph, nodes, [spec.dtype for spec in inputs]),
    )


def _weights(graph: torch._C.Graph) -> dict[str, torch.Tensor]:
    constants = [node for node in graph.nodes() if node.kind() == "prim::Constant" and _is_tensor(node.output())]
    return {node.output().debugName(): node.t("value") for node in constants}


def _types_by_part(graph: torch._C.Graph, nodes: list[torch._C.Node], inputs: list[str]) -> dict[str, dict[str, int]]:
    """Nodes are in traced order, layer after layer."""
    types = {
        value.debugName(): getattr(torch, dtype)
        for value, dtype in zip(list(graph.inputs())[-len(inputs) :], inputs, strict=True)
    }
    # a scalar does not change the type of what it is combined with
    types |= {name: weight.dtype for name, weight in _weights(graph).items() if weight.ndim}
    ends = [state.debugName() for state in hidden_states(graph)]
    layers = len(ends) - 1
    part = 0  # the embeddings, then the layers, then the head
    counted: dict[str, collections.Counter[str]] = {}
    for node in nodes:
        name = "embeddings" if part == 0 else "head" if part > layers else f"layers.{part - 1}"
        dtype = _converted_to(node) or _promoted(
            [types[v.debugName()] for v in node.inputs() if v.debugName() in types]
        )
        for output in node.outputs():
            if dtype is not None and _is_tensor(output):
                types[output.debugName()] = dtype
                if dtype.is_floating_point:
                    counted.setdefault(name if layers > 0 else "graph", collections.Counter())[_name(dtype)] += 1
        part += any(output.debugName() in ends for output in node.outputs())
    return {name: most_first(dtypes) for name, dtypes in counted.items()}


def _converted_to(node: torch._C.Node) -> torch.dtype | None:
    if node.kind() != _CONVERSION:
        return None
    wanted = list(node.inputs())[1].toIValue()
    return _SCALAR_TYPES.get(wanted) if isinstance(wanted, int) else None


def _promoted(types: list[torch.dtype]) -> torch.dtype | None:
    try:
        return functools.reduce(torch.promote_types, types) if types else None
    except RuntimeError:  # types that torch does not promote, such as quantized ones, which need dedicated operators
        return None


def _is_tensor(value: torch._C.Value) -> bool:
    return isinstance(value.type(), torch._C.TensorType)


def _content(weight: torch.Tensor) -> tuple[object, ...]:
    digest = hashlib.sha256(weight.contiguous().reshape(-1).view(torch.uint8).numpy().data).digest()
    return weight.dtype, tuple(weight.shape), digest


def _file_format(file: OpenedFile) -> int:
    """Format version, which a TorchScript file stores beside its code."""
    try:
        with zipfile.ZipFile(file.handle) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/version"))
            return int(archive.read(name))
    except (ValueError, StopIteration, zipfile.BadZipFile) as exc:  # torch accepts a number followed by anything
        problem = f"{file.path} does not state its format version"
        raise BundleError(problem, what="version", where=file.path, hint="export the bundle again") from exc


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def hidden_states(graph: torch._C.Graph) -> list[torch._C.Value]:
    """Input of the first layer, and output of each.

    A layer normalizes its state and adds the result of attention, then does the same with the MLP (Dosovitskiy et al.
    2021, arXiv:2010.11929, equations 2 and 3). It ends with the sum that includes its second norm's input. To a norm's
    input before the first layer, nothing is added.
    """
    normalized = [next(node.inputs()) for node in graph.nodes() if node.kind() == "aten::layer_norm"]
    state = next((value for value in normalized if _sum_with(value) is not None), None)
    states = []
    while state is not None:
        states.append(state)
        middle = _sum_with(state)
        state = None if middle is None else _sum_with(middle)
    return states


def _sum_with(value: torch._C.Value) -> torch._C.Value | None:
    """The sum of a value and a branch from its norm; None if it is not normalized and added to."""
    users = {use.user.kind(): use.user for use in value.uses()}
    if "aten::layer_norm" not in users or "aten::add" not in users:
        return None
    return next(users["aten::add"].outputs())
