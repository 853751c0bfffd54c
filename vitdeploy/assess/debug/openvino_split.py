"""Split OpenVINO's IR, so that every layer starts from given states instead of the previous layer's."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.assess.debug.layers import GIVEN, MADE, SplitArtifact
from vitdeploy.assess.inspection.openvino_reader import hidden_states, load_openvino
from vitdeploy.errors import UnavailableError
from vitdeploy.files.opened import OpenedFile
from vitdeploy.runtimes.ov.model import ModelFile
from vitdeploy.runtimes.ov.runtime import OpenVINORuntime
from vitdeploy.specs import TensorSpec
from vitdeploy.system.telemetry import without_reporter

with without_reporter():
    import openvino as ov

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.bundle.manifest import Artifact

_AXES = ("batch", "tokens", "hidden")


@contextlib.contextmanager
def open_split(bundle: Bundle, artifact: Artifact) -> Iterator[SplitArtifact]:
    """Open a copy of an IR artifact, in its inference precision, whose layers start from given states.

    Layer i has the float32 input `GIVEN`i (N, tokens, hidden) and the float32 output `MADE`i+1, which has fewer tokens
    if the last layer computes only those that the head reads; `MADE`0 is the embeddings' output. The artifact's outputs
    are computed from the last given state.

    Raises:
        BundleError: If a file was altered, or OpenVINO does not read it.
        UnavailableError: If the graph's layers cannot be identified, or it cannot run here.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, weights = Path(folder, "layers.xml"), Path(folder, "layers.bin")
        with bundle.opened_artifact(artifact) as (source, *_):
            model = load_openvino(source)
            states = hidden_states(model)
            if len(states) < 2:
                raise UnavailableError(
                    f"the layers of {source.path} cannot be told apart", where=source.path, hint="export it again"
                )
            ov.serialize(_split(model, states), path, weights)
        given, made = (
            tuple(TensorSpec(f"{prefix}{index}", "float32", _AXES) for index in range(len(states)))
            for prefix in (GIVEN, MADE)
        )
        split = ModelFile(
            OpenedFile.of(path),
            (*artifact.inputs, *given),
            (*artifact.outputs, *made),
            weights=OpenedFile.of(weights),
            precision=str(artifact.options.get("inference_precision")),
        )
        with OpenVINORuntime(split) as runtime:
            yield SplitArtifact(len(states) - 1, runtime.run)


def _split(model: ov.Model, states: list[ov.Output]) -> ov.Model:
    """The model with an input for each state, used instead of it, and an output for each, after its own."""
    parameters, results = list(model.get_parameters()), list(model.get_results())
    for index, state in enumerate(states):
        # An output of the artifact stays that state; it would also lend its name to the input.
        users = [user for user in state.get_target_inputs() if user.get_node().get_type_name() != "Result"]
        given = ov.opset8.parameter(states[0].get_partial_shape(), np.float32, name=f"{GIVEN}{index}")
        given.output(0).set_names({f"{GIVEN}{index}"})
        for user in users:
            user.replace_source_output(given.output(0))
        state.add_names({f"{MADE}{index}"})
        parameters.append(given)
        results.append(ov.opset8.result(state))
    return ov.Model(results, parameters, "layers")
