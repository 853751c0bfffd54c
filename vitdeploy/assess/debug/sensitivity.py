"""Sensitivity: the error of the outputs with one layer at a time in a lower precision."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

from vitdeploy.assess.data.images import few_images
from vitdeploy.assess.debug.mixed_precision import GraphNode, LowerPrecision
from vitdeploy.assess.debug.quantization_error import VariantErrors, sensitivities
from vitdeploy.assess.metrics.status import ImageAssessment
from vitdeploy.assess.runs.open_runtimes import OpenRuntimes
from vitdeploy.assess.runs.reference import ReferenceRun
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.retry import retry_if_changed
from vitdeploy.errors import check_count
from vitdeploy.system.argument_types import typed
from vitdeploy.system.progress import SILENT, Progress

MAX_IMAGES = 32  # as many as `export` measures layers on, at most (`CalibrationImages.parts`)
# Operators that give values as they are. One that computes in a lower precision alone rounds what the nodes before and
# after it round as well: a run of its own would tell nothing that theirs do not.
_MOVING = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
     "Unsqueeze"}
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LayerEffect:
    """The error of the outputs with one layer alone in the lower precision.

    Attributes:
        label: What it is called after its weight, such as "layers.0.mlp.fc1"; the node's name where there is no such.
        nodes: Its nodes, as `vitdeploy.export(keep_fp32=...)` takes them: a product with a weight, and in half
            precision the addition of its bias; or one node without a weight.
        op_type: The operator of the first of them.
        part: "embeddings", "layers.0" ..., "head".
        error: The relative error of the outputs; infinite where a value is not finite.
        layer: What people call it, such as "block 0, MLP, fc1"; `vitdeploy.export(keep_fp32=...)` takes that, too.
    """

    label: str
    nodes: tuple[str, ...]
    op_type: str
    part: str
    error: float
    layer: str


@dataclasses.dataclass(frozen=True, repr=False)
class Sensitivity(ImageAssessment):
    """The sensitivity of every layer.

    An error is the length of the difference from the reference over the length of what that gives, of all images
    together, and of several outputs, or of a regression's values, the largest; see
    `vitdeploy.assess.debug.quantization_error.VariantErrors`.

    Attributes:
        precision: What a layer computes in that is not kept in float32.
        layers: In the order of the graph.
        error: With every node in the lower precision.
        error_float32: With none: what float32 itself differs by, below which an effect says nothing.
    """

    precision: str
    layers: tuple[LayerEffect, ...]
    error: float
    error_float32: float

    @property
    def status(self) -> str:
        """Always "passed": a measurement cannot fail."""
        return "passed"

    @property
    def brief(self) -> str:
        """The result in a few words."""
        return f"{len(self.layers)} layers in {self.precision}, on {self.images_text}"

    @property
    def ranked(self) -> tuple[LayerEffect, ...]:
        """The most sensitive layer first; those that are equal in the order of the graph."""
        return tuple(sorted(self.layers, key=lambda layer: -layer.error))

    @property
    def summary(self) -> str:
        """The result in a sentence."""
        first = self.ranked[0]
        return (
            f"{first.layer} is the most sensitive of {len(self.layers)} layers: relative error {first.error:.2g} with "
            f"it alone in {self.precision}, {self.error:.2g} with all of them, {self.error_float32:.2g} in float32"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "status": self.status, "summary": self.summary}


@typed
@retry_if_changed
def sensitivity(
    bundle: str | os.PathLike[str] | Bundle,
    precision: str = "int8",
    *,
    images: str | os.PathLike[str] | None = None,
    max_images: int = MAX_IMAGES,
    progress: Progress = SILENT,
) -> Sensitivity:
    """Measure what each layer of an ONNX artifact does to the outputs, alone in a lower precision.

    Which graph that is, is said at `vitdeploy.assess.debug.mixed_precision.LowerPrecision.of`. A layer is what takes
    one module's weights, or a node that computes without any. Each takes one run over the images, which go one by one,
    as a graph that measures the ranges of what it is given must have them. Of int8 and fp8 the layers are the nodes
    that the artifact quantizes. Of fp16 and bf16, where some hundreds of nodes are rounded, a product and the addition
    of its bias are one layer, and nodes that only move values are none, which leaves twelve runs a block, 147 for
    ViT-B; they are in the lower precision where all are.

    Args:
        bundle: The bundle or its folder.
        precision: "int8", "fp8", "fp16" or "bf16".
        images: A folder; at most `max_images` of the images below it are taken, at even distances. By default seeded
            synthetic ones are, on which a model may be as sensitive, or not.
        max_images: From 1 up.
        progress: Told each step, and how far it has come.

    Raises:
        BundleError: If the bundle is absent or was altered, or holds no valid ONNX model.
        UsageError: If the bundle has not the artifacts that are needed, or an argument is wrong.
        ImageError: If an image cannot be read.
        MissingDependencyError: If torch, which runs the reference, or onnx is not installed.
    """
    bundle = Bundle.of(bundle)
    check_count("max_images", max_images)
    lower = LowerPrecision.of(bundle, precision, "debug sensitivity")
    artifact, variants = lower.artifact, lower.variants
    layers = _layers(lower)
    runtimes = OpenRuntimes(bundle)
    sources = few_images(runtimes.processor, images, max_images)
    run = ReferenceRun.of(runtimes, sources, (spec.name for spec in artifact.outputs), progress)
    pixel_values = [feed["pixel_values"] for feed in run.batches.feeds(artifact)]
    errors = VariantErrors(pixel_values, run.expected, problem_type=bundle.read_config().problem_type)

    error = functools.partial(errors.error, variants)
    progress.step(f"running {artifact.name}, and the same in float32")
    of_all, of_none = error(frozenset()), error(frozenset(variants.nodes))
    progress.step(f"running each of {len(layers)} layers alone in {precision}")
    names = {label: tuple(node.name for node in nodes) for label, nodes in layers.items()}
    error_of = sensitivities(variants, error, progress, names)
    return Sensitivity(
        **run.assessment,
        precision=precision,
        layers=tuple(
            LayerEffect(label, names[label], nodes[0].op_type, nodes[0].part, error_of[label], nodes[0].layer)
            for label, nodes in layers.items()
        ),
        error=of_all,
        error_float32=of_none,
    )


def _layers(lower: LowerPrecision) -> dict[str, list[GraphNode]]:
    """The nodes of each layer, by its label."""
    layers: dict[str, list[GraphNode]] = {}
    for node in lower.nodes:
        label = lower.variants.labels.get(node.name)
        if label is not None or node.op_type not in _MOVING:
            layers.setdefault(label or node.name, []).append(node)
    return layers
