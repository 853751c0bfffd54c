"""Split OpenVINO's IR, so that every layer starts from given states instead of the previous layer's."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import openvino as ov
from openvino import opset8 as ops

from vitdeploy.assess.debug.layers import GIVEN, MADE, SplitArtifact
from vitdeploy.assess.inspection.openvino_reader import hidden_states, load_openvino
from vitdeploy.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.bundle.manifest import Artifact


@contextlib.contextmanager
def open_split(bundle: Bundle, artifact: Artifact) -> Iterator[SplitArtifact]:
    """Open a copy of an IR artifact, on the CPU in its inference precision, whose layers start from given states.

    Layer i has the float32 input `GIVEN`i (N, tokens, hidden) and the float32 output `MADE`i+1; `MADE`0 is the
    embeddings' output. The artifact's outputs are computed from the last given state.

    Raises:
        BundleError: If a file was altered, or OpenVINO does not read it.
        UnavailableError: If the graph's layers cannot be identified.
    """
    with bundle.opened_artifact(artifact) as (file, *_):
        model = load_openvino(file)
        states = hidden_states(model)
        if len(states) < 2:
            raise UnavailableError(
                f"the layers of {file.path} cannot be told apart", where=file.path, hint="export it again"
            )
        split = _split(model, states)
        settings = {"INFERENCE_PRECISION_HINT": artifact.options["inference_precision"]}
        compiled = ov.Core().compile_model(split, "CPU", settings)

    names = [*(spec.name for spec in artifact.outputs), *(f"{MADE}{index}" for index in range(len(states)))]

    def of_batch(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = compiled(dict(feeds))
        return {name: np.array(results[index], np.float32) for index, name in enumerate(names)}

    yield SplitArtifact(len(states) - 1, of_batch)


def _split(model: ov.Model, states: list[ov.Output]) -> ov.Model:
    """The model with an input for each state, used instead of it, and an output for each, after its own."""
    parameters, results = list(model.get_parameters()), list(model.get_results())
    for index, state in enumerate(states):
        users = state.get_target_inputs()
        given = ops.parameter(state.get_partial_shape(), np.float32, name=f"{GIVEN}{index}")
        given.output(0).set_names({f"{GIVEN}{index}"})
        for user in users:
            user.replace_source_output(given.output(0))
        parameters.append(given)
        results.append(ops.result(state))
    return ov.Model(results, parameters, "layers")
