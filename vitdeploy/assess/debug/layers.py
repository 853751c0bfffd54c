"""Compare artifacts layer by layer, with the reference or with each other, and name the first layer that diverges."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.assess.data.images import SYNTHETIC_COUNT, chosen_images
from vitdeploy.assess.debug.layer_results import ArtifactLayers, LayerComparison, PartDifference
from vitdeploy.assess.metrics.outputs import check_tolerance, compare_outputs, default_tolerance
from vitdeploy.assess.runs.open_runtimes import OpenRuntimes
from vitdeploy.assess.runs.reference import ReferenceRun, run_batches
from vitdeploy.assess.runs.targets import REFERENCE, artifacts, no_artifact, select
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.retry import retry_if_changed
from vitdeploy.errors import UnavailableError, UsageError
from vitdeploy.specs import Precision
from vitdeploy.system.argument_types import typed
from vitdeploy.system.imports import load_target
from vitdeploy.system.progress import SILENT, Progress

if TYPE_CHECKING:
    from vitdeploy.bundle.manifest import Artifact
    from vitdeploy.bundle.scores import ProblemType

_STATES = "hidden_states."
_INSIDE = (_STATES, "attentions.")  # outputs that are not the head's
GIVEN, MADE = "vitdeploy.given.", "vitdeploy.made."  # names of a state's input and output
# Largest difference relative to the scale of a channel, for layers with the same input: six roundings of the type, to
# 2**-11 and 2**-8; in an output, the differences of all layers add up. Correct fp16 layers were seen to differ by up to
# 1.1e-3, layers whose weights are off by 1 % by 4.8e-3 and more.
LAYER_TOLERANCES = {"fp16": 3e-3, "bf16": 2.4e-2}
SPLITTERS = {  # by format: required packages
    "onnx": ("vitdeploy.assess.debug.onnx_split:open_split", "export", "onnx"),
    "openvino": ("vitdeploy.assess.debug.openvino_split:open_split", "openvino", "openvino"),
    "torchscript": ("vitdeploy.assess.debug.torchscript_split:open_split", "torch", "torch"),
}


class SplitArtifact(NamedTuple):
    """A copy of an artifact with states as inputs: `run` takes a `GIVEN` and returns a `MADE` for each state."""

    layers: int
    run: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@typed
@retry_if_changed
def compare_layers(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    images: str | os.PathLike[str] | Sequence[Any] | NDArray[Any] | None = None,
    tolerance: float | None = None,
    backends: Sequence[str] | None = None,
    against: str | None = None,
    progress: Progress = SILENT,
) -> LayerComparison:
    """Compare each layer of artifacts with the reference's, or another artifact's, on the same hidden states.

    The states are the reference's, so each layer shows only its own error: rounding does not accumulate, one tolerance
    applies to all layers, and a fault appears in its own layer only. Nothing is exported again: a copy of the graph is
    cut at the layer boundaries and runs on the CPU. At most 16 images run, one by one, because all hidden states are
    held in memory.

    Args:
        bundle: The bundle or its folder.
        images: Folder or images, of which the first 16 are used. Default: 16 seeded synthetic images.
        tolerance: Largest difference allowed, relative to the largest value of the state's channel. Default: by
            precision, see `LAYER_TOLERANCES`.
        backends: As for `evaluate`. Default: every artifact.
        against: Baseline instead of the reference, such as "onnxruntime:fp32".
        progress: Receives each step and its progress.

    Raises:
        BundleError: If the bundle is missing or was altered.
        UsageError: If the bundle has no artifact, or not the named one, or the tolerance is invalid.
        ImageError: If an image cannot be read.
        UnavailableError: If `against` cannot be run layer by layer.
        MissingDependencyError: If torch, which runs the reference, or onnx is not installed.
    """
    check_tolerance(tolerance)
    bundle = Bundle.of(bundle)
    with OpenRuntimes(bundle) as runtimes:
        return run_layers(
            runtimes, images=images, tolerance=tolerance, backends=backends, against=against, progress=progress
        )


def run_layers(
    runtimes: OpenRuntimes,
    *,
    images: str | os.PathLike[str] | Sequence[Any] | NDArray[Any] | None,
    tolerance: float | None = None,
    backends: Sequence[str] | None,
    against: str | None = None,
    progress: Progress,
) -> LayerComparison:
    """`compare_layers` with shared runtimes."""
    bundle = runtimes.bundle
    if not bundle.manifest.artifacts:
        raise no_artifact(bundle, "compare")
    by_name = {artifact.name: artifact for artifact in bundle.manifest.artifacts}
    other = REFERENCE if against is None else _one(bundle, against)
    chosen = dict.fromkeys(selected.artifact for selected in artifacts(bundle, backends))
    chosen.pop(other, None)
    if not chosen:
        raise UsageError(
            f"{other} cannot be compared with itself; name another artifact", what="backends", found=backends
        )
    sources = chosen_images(runtimes.processor, images, SYNTHETIC_COUNT)
    run = ReferenceRun.of(runtimes, sources, (*_heads(bundle.manifest.artifacts), "hidden_states"), progress)
    expected = run.expected
    if other != REFERENCE:
        progress.step(f"running {other} layer by layer")
        expected = _run(by_name[other], run)
    results = []
    for name in chosen:
        limit = _tolerance(bundle, name, other) if tolerance is None else tolerance
        progress.step(f"running {name} layer by layer")
        try:
            outputs = _run(by_name[name], run)
            differences = _differences(by_name[name], expected, outputs, bundle.read_config().problem_type)
            results.append(ArtifactLayers(name, limit, differences))
        except UnavailableError as exc:
            results.append(ArtifactLayers(name, limit, skipped=str(exc)))
    return LayerComparison(**run.assessment, against=other, results=tuple(results))


def _one(bundle: Bundle, against: str) -> str:
    """The name of the only artifact that matches."""
    choices = select(bundle, [against])
    if len(choices) > 1:
        raise UsageError(
            f"{against} stands for several artifacts, in {', '.join(choice.precision for choice in choices)}",
            what="against", found=against, hint=f"add the precision, such as {against}:{choices[0].precision}",
        )  # fmt: skip
    if choices[0].artifact == REFERENCE and choices[0].precision != Precision.FP32:
        hint = "name an artifact, or leave it out for the reference in fp32"
        raise UsageError(f"{against} is not an artifact", what="against", found=against, hint=hint)
    return choices[0].artifact


def _tolerance(bundle: Bundle, *names: str) -> float:
    """The larger tolerance of these artifacts."""
    held = [artifact for artifact in bundle.manifest.artifacts if artifact.name in names]
    return max(LAYER_TOLERANCES.get(artifact.precision) or default_tolerance(artifact) for artifact in held)


def _heads(artifacts: Iterable[Artifact]) -> list[str]:
    """Names of the heads' outputs."""
    outputs = dict.fromkeys(spec.name for artifact in artifacts for spec in artifact.outputs)
    return [name for name in outputs if not name.startswith(_INSIDE)]


def _run(artifact: Artifact, reference: ReferenceRun) -> dict[str, np.ndarray]:
    """States by name from each layer of an artifact, and the outputs."""
    if artifact.format not in SPLITTERS:
        raise UnavailableError(
            f"layers can be compared in {' and '.join(SPLITTERS)} artifacts, not in {artifact.name}",
            what=artifact.name, expected=tuple(SPLITTERS), hint="export one of those",
        )  # fmt: skip
    target, extra, package = SPLITTERS[artifact.format]
    open_split = load_target(target, "debug layers", extra, package)
    states = {name: value for name, value in reference.expected.items() if name.startswith(_STATES)}
    count = len(states) - 1
    with open_split(reference.bundle, artifact) as split:
        if split.layers != count:
            raise UnavailableError(
                f"{split.layers} layers of {artifact.name} can be told apart, the reference has {count}",
                what=artifact.name, expected=count, found=split.layers, hint="export it again",
            )  # fmt: skip
        feeds = (
            feed | {name.replace(_STATES, GIVEN): state[image : image + 1] for name, state in states.items()}
            for image, feed in enumerate(reference.batches.feeds(artifact))
        )
        outputs = run_batches(split, feeds)
    layers = {name: outputs[name.replace(_STATES, MADE)] for name in states}
    return {spec.name: outputs[spec.name] for spec in artifact.outputs} | layers


def _scale(states: np.ndarray) -> np.ndarray:
    """Scale of each channel of (N, tokens, hidden): its largest value, but at least the median over channels.

    A few channels of large models are a hundred times as large as the others (Sun et al. 2024, arXiv:2402.17762) and
    would hide errors in the others.
    """
    largest = np.abs(states).max(axis=(0, 1))
    scale: np.ndarray = np.maximum(largest, np.median(largest))
    return np.where(scale > 0, scale, 1.0).astype(states.dtype)


def _differences(
    artifact: Artifact, expected: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], problem_type: ProblemType
) -> tuple[PartDifference, ...]:
    states = [name for name in outputs if name.startswith(_STATES)]
    states.sort(key=lambda name: int(name.removeprefix(_STATES)))
    heads = [name for name in _heads([artifact]) if name in expected]
    parts = []
    for index, name in enumerate(states):
        scale = _scale(expected[name])
        tokens = min(expected[name].shape[1], outputs[name].shape[1])  # the last layer may compute only the head's
        sides = ({name: side[name][:, :tokens] / scale} for side in (expected, outputs))
        difference = compare_outputs(*sides)
        parts.append(PartDifference("embeddings" if index == 0 else f"layers.{index - 1}", difference))
    if heads:
        of_heads = ({name: side[name] for name in heads} for side in (expected, outputs))
        parts.append(PartDifference("head", compare_outputs(*of_heads, problem_type=problem_type)))
    return tuple(parts)
