"""Compare an ONNX artifact with the reference layer by layer, and name the first layer that diverges."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.compare import Batches, run_batches
from vitdeploy.assess.difference import Difference, compare_outputs, default_tolerance
from vitdeploy.assess.samples import SYNTHETIC_COUNT, image_files, images_for
from vitdeploy.assess.selection import reference_backend
from vitdeploy.assess.verdicts import Verdict, overall
from vitdeploy.bundle import Bundle
from vitdeploy.errors import UnavailableError, UsageError
from vitdeploy.predictor import check_fit, load_processor
from vitdeploy.runtimes import open_runtime, runtime_class
from vitdeploy.specs import attention_for
from vitdeploy.tables import load_target

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

    from vitdeploy.manifest import Artifact

_BACKEND = "onnxruntime"
_STATES = "hidden_states."
GIVEN, MADE = "vitdeploy.given.", "vitdeploy.made."  # what split graphs take and give, with the state's index


@dataclasses.dataclass(frozen=True)
class PartDifference:
    """One part of a model, given the same as the reference's.

    Attributes:
        part: "embeddings", "layers.0" ..., "head".
        differences: of what the part gives; the head has one an output.
    """

    part: str
    differences: tuple[Difference, ...]

    @property
    def worst(self) -> Difference:
        """The difference that needs the largest tolerance."""
        return max(self.differences, key=lambda difference: difference.required_tolerance)

    def to_dict(self) -> dict[str, Any]:
        return {"part": self.part, "differences": [difference.to_dict() for difference in self.differences]}


@dataclasses.dataclass(frozen=True)
class ArtifactLayers:
    """One artifact, part by part.

    Attributes:
        artifact: such as "onnx-fp32".
        tolerance: the largest difference allowed, relative to the largest value that a part gives.
        parts: in the order of computation; none where the artifact was skipped.
        skipped: why it could not be compared; None where it was.
    """

    artifact: str
    tolerance: float
    parts: tuple[PartDifference, ...] = ()
    skipped: str | None = None

    @property
    def first(self) -> str | None:
        """The first part that diverges: the first whose own difference is beyond the tolerance."""
        return next((part.part for part in self.parts if not part.worst.within(self.tolerance)), None)

    @property
    def status(self) -> str:
        """The outcome: "passed", "failed" or "skipped"."""
        if self.skipped is not None:
            return "skipped"
        return "passed" if self.parts and self.first is None else "failed"

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One a part, for a report; one where it was skipped."""
        if self.skipped is not None:
            return (Verdict(self.artifact, "compare --layers", "skipped", self.skipped),)
        return tuple(
            Verdict(
                self.artifact,
                part.part,
                "passed" if part.worst.within(self.tolerance) else "failed",
                f"differs by {part.worst.max_relative:.2e} of the largest value, {self.tolerance:g} allowed"
                + ("; the first part that diverges" if part.part == self.first else ""),
            )
            for part in self.parts
        )

    def to_dict(self) -> dict[str, Any]:
        parts = [part.to_dict() for part in self.parts]
        return {**dataclasses.asdict(self), "parts": parts, "first": self.first, "status": self.status}


@dataclasses.dataclass(frozen=True)
class LayerComparison:
    """Every artifact of a bundle against the reference, part by part; see `compare_layers`.

    Attributes:
        bundle: the folder.
        images: how many were compared.
        synthetic: whether they were made up, none having been given.
        results: one an artifact.
    """

    bundle: str
    images: int
    synthetic: bool
    results: tuple[ArtifactLayers, ...]

    @property
    def status(self) -> str:
        """The outcome: "failed" if a result is, else "skipped" if one is or nothing ran, else "passed"."""
        return overall(result.status for result in self.results)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Those of every result, for a report."""
        return tuple(verdict for result in self.results for verdict in result.verdicts)

    @property
    def changes(self) -> tuple[str, ...]:
        """None: nothing is compared with an earlier comparison."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        results = [result.to_dict() for result in self.results]
        return {**dataclasses.asdict(self), "status": self.status, "results": results}


def compare_layers(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    images: str | os.PathLike[str] | None = None,
    tolerance: float | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> LayerComparison:
    """Compare each layer of every ONNX artifact with the reference's, both given the reference's hidden states.

    So a layer shows what it does wrong itself, not what it was given: rounding does not add up from layer to layer, one
    tolerance holds for all of them, and a fault shows in its own layer alone. The artifact is not exported again: a
    copy of its graph is cut at the layers' borders. Images run one by one, and no more than 16 of them, for all hidden
    states are held in memory.

    Args:
        bundle: the bundle or its folder.
        images: a folder, the first 16 images below it; by default 16 seeded synthetic ones.
        tolerance: largest difference allowed, relative to the largest value of what a layer gives; by default by
            precision, as for outputs.
        on_step: called with what is being done.

    Raises:
        BundleError: the bundle is absent or was altered.
        UsageError: the bundle has no artifact, or the tolerance is not what it must be.
        ImageError: an image cannot be read.
        MissingDependencyError: torch, which runs the reference, or onnx is not installed.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if tolerance is not None and not tolerance >= 0:
        raise UsageError(f"tolerance must be at least 0, got {tolerance}")
    if not bundle.manifest.artifacts:
        raise UsageError(f"{bundle.path} must hold an artifact to compare, holds none; make one: vitdeploy export")
    processor = load_processor(bundle)
    sources: Sequence[Any] = images_for(processor) if images is None else image_files(images)[:SYNTHETIC_COUNT]
    batches = Batches(processor, sources, batch_size=1)
    on_step(f"running the reference on {len(sources)} images")
    expected = _reference(bundle, batches)
    results = []
    for artifact in bundle.manifest.artifacts:
        limit = default_tolerance(artifact) if tolerance is None else tolerance
        on_step(f"running {artifact.name} layer by layer")
        try:
            parts = _parts(bundle, artifact, batches, expected)
            results.append(ArtifactLayers(artifact.name, limit, parts))
        except UnavailableError as exc:
            results.append(ArtifactLayers(artifact.name, limit, skipped=str(exc)))
    return LayerComparison(str(bundle.path), len(sources), images is None, tuple(results))


def _reference(bundle: Bundle, batches: Batches) -> dict[str, np.ndarray]:
    """All hidden states, and every output of an artifact."""
    outputs = [spec.name for artifact in bundle.manifest.artifacts for spec in artifact.outputs]
    names = tuple(dict.fromkeys([*outputs, "hidden_states"]))
    with open_runtime(bundle, reference_backend(), outputs=names, attention=attention_for(names)) as runtime:
        check_fit(bundle, batches.processor, runtime)
        return run_batches(runtime, batches.feeds(runtime))


def _parts(
    bundle: Bundle, artifact: Artifact, batches: Batches, expected: dict[str, np.ndarray]
) -> tuple[PartDifference, ...]:
    if artifact.format != "onnx":
        raise UnavailableError(
            f"layers are compared in ONNX artifacts alone, {artifact.name} is none; export --to onnx"
        )
    split_layers = load_target("vitdeploy.assess.onnx_split:split_layers", "compare --layers", "export", "onnx")
    runtime_type: Any = runtime_class(_BACKEND)
    source = bundle.verified(artifact.files)[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layers.onnx"
        layers = split_layers(source, path)
        with runtime_type(path) as runtime:
            runtime.pixels, runtime.axes = artifact.pixels, artifact.axes
            given = _states(expected, layers, len(batches.sources))
            feeds = (feed | states for feed, states in zip(batches.feeds(runtime), given, strict=True))
            made = run_batches(runtime, feeds)

    found = []
    for index in range(layers + 1):
        name = f"{_STATES}{index}"
        difference = compare_outputs({name: expected[name]}, {name: made[f"{MADE}{index}"]})
        found.append(PartDifference("embeddings" if index == 0 else f"layers.{index - 1}", difference))
    heads = [spec.name for spec in artifact.outputs if not spec.name.startswith((_STATES, "attentions."))]
    if heads:
        wanted = {name: expected[name] for name in heads}
        found.append(PartDifference("head", compare_outputs(wanted, {name: made[name] for name in heads})))
    return tuple(found)


def _states(expected: dict[str, np.ndarray], layers: int, images: int) -> Iterator[dict[str, np.ndarray]]:
    """What every layer of the artifact is given, image by image."""
    for image in range(images):
        one = slice(image, image + 1)
        yield {f"{GIVEN}{index}": expected[f"{_STATES}{index}"][one] for index in range(layers + 1)}
