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

MAX_IMAGES = 32  # the most images on which `export` measures layers (`CalibrationImages.parts`)
# Operators that pass values on unchanged. One of them alone in a lower precision only repeats the rounding of the nodes
# before and after it.
_MOVING = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
     "Unsqueeze"}
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LayerEffect:
    """The error of the outputs with one layer alone in the lower precision.

    Attributes:
        label: Name derived from its weight, such as "layers.0.mlp.fc1"; else the node's name.
        nodes: Node names for `vitdeploy.export(keep_fp32=...)`: a product with a weight, and in half precision the
            addition of its bias; or one node without a weight.
        op_type: Operator of the first node.
        part: "embeddings", "layers.0" ..., "head".
        error: Relative error of the outputs; infinite for non-finite values.
        layer: Readable name, such as "block 0, MLP, fc1"; `vitdeploy.export(keep_fp32=...)` takes it, too.
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

    An error is the L2 norm of the difference from the reference over the norm of the reference's output, over all
    images; the largest over several outputs, or over a regression's values. See
    `vitdeploy.assess.debug.quantization_error.VariantErrors`.

    Attributes:
        precision: Precision of a layer that is not kept in float32.
        layers: Layers in graph order.
        error: Error with every node in the lower precision.
        error_float32: Error with none: float32's own difference, below which an effect is meaningless.
    """

    precision: str
    layers: tuple[LayerEffect, ...]
    error: float
    error_float32: float

    @property
    def status(self) -> str:
        """Always "passed", because a measurement cannot fail."""
        return "passed"

    @property
    def brief(self) -> str:
        """The result in a few words."""
        return f"{len(self.layers)} layers in {self.precision}, on {self.images_text}"

    @property
    def ranked(self) -> tuple[LayerEffect, ...]:
        """The most sensitive layer first; ties in graph order."""
        return tuple(sorted(self.layers, key=lambda layer: -layer.error))

    @property
    def summary(self) -> str:
        """The result as a sentence."""
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
    """Measure the sensitivity of an ONNX artifact's outputs to each layer alone in a lower precision.

    See `vitdeploy.assess.debug.mixed_precision.LowerPrecision.of` for the choice of the graph. A layer is the nodes
    with one module's weights, or a computing node without weights. Each layer takes one run over the images, one image
    at a time, because a dynamically quantized graph measures its ranges per run. For int8 and fp8, the layers are the
    quantized nodes. For fp16 and bf16, which round some hundreds of nodes, a product and the addition of its bias are
    one layer, and nodes that only move values are none: twelve runs a block, 147 for ViT-B. Such nodes are in the lower
    precision only if all are.

    Args:
        bundle: The bundle or its folder.
        precision: "int8", "fp8", "fp16" or "bf16".
        images: Folder, of which at most `max_images` evenly spaced images are used. Default: seeded synthetic images,
            on which the sensitivity may differ.
        max_images: Maximum number of images, at least 1.
        progress: Receives each step and its progress.

    Raises:
        BundleError: If the bundle is missing or was altered, or its ONNX model is invalid.
        UsageError: If the bundle lacks a required artifact, or an argument is invalid.
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
    """Nodes of each layer, by label."""
    layers: dict[str, list[GraphNode]] = {}
    for node in lower.nodes:
        label = lower.variants.labels.get(node.name)
        if label is not None or node.op_type not in _MOVING:
            layers.setdefault(label or node.name, []).append(node)
    return layers
