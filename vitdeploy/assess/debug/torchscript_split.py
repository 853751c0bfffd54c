"""Split a TorchScript graph, so that every layer starts from given states instead of the previous layer's."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from vitdeploy.assess.debug.layers import GIVEN, MADE, SplitArtifact
from vitdeploy.assess.inspection.torchscript_reader import hidden_states
from vitdeploy.errors import UnavailableError
from vitdeploy.models.signature import TORCH_TYPES
from vitdeploy.runtimes.torch_device import open_device, to_array, to_tensors
from vitdeploy.runtimes.torchscript import load_module
from vitdeploy.specs import Precision
from vitdeploy.system.forks import with_threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.bundle.manifest import Artifact


@contextlib.contextmanager
def open_split(bundle: Bundle, artifact: Artifact) -> Iterator[SplitArtifact]:
    """Open a copy of a TorchScript artifact, on the CPU, whose layers start from given states.

    Layer i has the input `GIVEN`i (N, tokens, hidden) and the output `MADE`i+1, both float32; `MADE`0 is the
    embeddings' output. The artifact's outputs are computed from the last given state.

    Raises:
        BundleError: If a file was altered, or torch does not load it.
        UnavailableError: If the graph's layers cannot be identified.
    """
    device = open_device("cpu")
    with bundle.opened_artifact(artifact) as (file, *_):
        module, _ = load_module(file, device)
    graph = module.graph.copy()
    graph.eraseInput(0)  # the module, whose weights are constants of the graph
    states = hidden_states(graph)
    if len(states) < 2:
        raise UnavailableError(
            f"the layers of {file.path} cannot be told apart: no layer of two norms and two sums",
            where=file.path, hint="export it again",
        )  # fmt: skip
    _split(graph, states)
    run = torch._C._create_function_from_graph("forward", graph)
    given = [f"{GIVEN}{index}" for index in range(len(states))]
    results = [*(spec.name for spec in artifact.outputs), *(f"{MADE}{index}" for index in range(len(states)))]
    dtype = TORCH_TYPES[Precision(artifact.precision)]

    @with_threads
    def of_batch(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            tensors = to_tensors(feeds, device)
            inputs = [tensors[spec.name] for spec in artifact.inputs]
            outputs = run(*inputs, *(tensors[name].to(dtype) for name in given))
            return {name: to_array(value.float()) for name, value in zip(results, outputs, strict=True)}

    yield SplitArtifact(len(states) - 1, of_batch)


def _split(graph: torch._C.Graph, states: list[torch._C.Value]) -> None:
    """Add an input for each state, used instead of it, and an output for each."""
    outputs = list(next(graph.outputs()).node().inputs())
    for index, state in enumerate(states):
        state.replaceAllUsesWith(graph.addInput(f"given_{index}"))
    results = graph.create("prim::TupleConstruct", [*outputs, *states], 1)
    results.output().setType(torch._C.TupleType([torch._C.TensorType.get()] * (len(outputs) + len(states))))
    graph.appendNode(results)
    graph.eraseOutput(0)
    graph.registerOutput(results.output())
