"""A bundle's graph in a lower precision, any node of which can be kept in float32."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vitdeploy.errors import UsageError, shown
from vitdeploy.specs import QUANTIZED, ExportSpec, PixelStage, Precision
from vitdeploy.system.imports import load_target

if TYPE_CHECKING:
    from vitdeploy.assess.inspection.onnx_reader import Loaded
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.bundle.manifest import Artifact
    from vitdeploy.exporters.graph.variants import Variants
    from vitdeploy.files.opened import OpenedFile

PRECISIONS = ("fp16", "bf16", "int8", "fp8")
_EXTRA, _PACKAGE = "export", "onnx"


@dataclasses.dataclass(frozen=True)
class GraphNode:
    """A node that can be kept in float32.

    Attributes:
        name: Of its first output, which is its name for `vitdeploy.export(keep_fp32=...)`.
        op_type: Its operator.
        part: "embeddings", "layers.0" ..., "head".
        layer: What people call the layer that it belongs to, such as "block 3, MLP, fc1"; `export` takes that, too.
    """

    name: str
    op_type: str
    part: str
    layer: str


@dataclasses.dataclass(frozen=True)
class LowerPrecision:
    """The graph: `artifact` is the quantized one, or what `export` would make in half precision.

    `variants` writes the graph that keeps some of `nodes`, which are those that can be kept, part by part.
    """

    artifact: Artifact
    variants: Variants
    nodes: tuple[GraphNode, ...]

    @classmethod
    def of(cls, bundle: Bundle, precision: str, what: str) -> LowerPrecision:
        """The graph of the bundle's `onnx-fp32` for fp16 and bf16, of the quantized artifact for int8 and fp8.

        Variants of the artifact are the `onnx-fp32`, quantized by the ranges that the artifact records.
        In half precision no node is kept for what was observed, and every rounding is done, also those that ONNX
        Runtime leaves out on a CPU.

        Args:
            bundle: The bundle.
            precision: One of `PRECISIONS`.
            what: What needs it, such as "debug bisect".

        Raises:
            UsageError: If there is no such precision, or the bundle has not the artifacts that are needed, or they were
                exported with different options.
            BundleError: If an artifact was altered, or is no valid ONNX model.
            MissingDependencyError: If onnx is not installed.
        """
        if precision not in PRECISIONS:
            raise UsageError(
                f"precision {shown(precision)} is not one of {', '.join(PRECISIONS)}",
                what="precision", expected=PRECISIONS, found=precision,
            )  # fmt: skip
        source = bundle.artifact("onnx", Precision.FP32)
        if source.pixels.stage is PixelStage.DECODED or "optimize" in source.options:
            raise UsageError(
                f"{what} needs an onnx-fp32 artifact made without --embed-resize and --optimize",
                what="onnx-fp32", where=bundle.path, hint="export it to another folder without these options",
            )  # fmt: skip
        quantized = precision in QUANTIZED
        artifact = bundle.artifact("onnx", precision) if quantized else dataclasses.replace(source, precision=precision)
        if "rest" in artifact.options:
            raise UsageError(
                f"{what} needs an {artifact.name} whose other layers are in float32, not in {artifact.options['rest']}",
                what=artifact.name, where=bundle.path, hint="export it to another folder without --rest",
            )  # fmt: skip
        with bundle.opened_artifact(source) as (float_file, *_):
            loaded = _loaded(float_file, what)
            variants = _variants(bundle, artifact, float_file, what)
        return cls(artifact, variants, _in_parts(loaded, variants))


def _variants(bundle: Bundle, artifact: Artifact, float_file: OpenedFile, what: str) -> Variants:
    from vitdeploy.assess.inspection.onnx_reader import valid_onnx

    variants: Variants
    if artifact.precision in QUANTIZED:
        make = load_target("vitdeploy.exporters.quantization.requantization:recorded_variants", what, _EXTRA, _PACKAGE)
        options = artifact.options
        spec = ExportSpec(
            Precision(artifact.precision),
            pixels=artifact.pixels,
            keep_fp32=tuple(options.get("float32_nodes", ())),
            target=options.get("target"),
            scheme=options.get("scheme"),
            reduce_range=options.get("reduce_range", False),
        )
        with bundle.opened_artifact(artifact) as (file, *_):
            _loaded(file, what)
            with valid_onnx(file):
                variants = make(file, float_file, spec)
    else:
        make = load_target("vitdeploy.exporters.graph.variants:half_variants", what, _EXTRA, _PACKAGE)
        with valid_onnx(float_file):  # weights in a file of their own are read only here
            variants = make(float_file, Precision(artifact.precision))
    return variants


def _loaded(file: OpenedFile, what: str) -> Loaded:
    graph: Loaded = load_target("vitdeploy.assess.inspection.onnx_reader:load_onnx", what, _EXTRA, _PACKAGE)(file)
    return graph


def _in_parts(loaded: Loaded, variants: Variants) -> tuple[GraphNode, ...]:
    """The nodes that can be kept, part by part."""
    from vitdeploy.exporters.naming.layer_names import layer_name
    from vitdeploy.exporters.naming.parts import nodes_by_part

    wanted, labels = set(variants.nodes), variants.labels
    return tuple(
        GraphNode(name, node.op_type, part, layer_name(name, part, labels.get(name)))
        for part, nodes in nodes_by_part(loaded.model.graph.node, loaded.inputs).items()
        for node in nodes
        if (name := node.output[0]) in wanted
    )
