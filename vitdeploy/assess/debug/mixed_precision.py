"""Mixed-precision variants of a bundle's graph: a lower precision, with any nodes kept in float32."""

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
        name: Name of its first output, as in `vitdeploy.export(keep_fp32=...)`.
        op_type: Operator.
        part: "embeddings", "layers.0" ..., "head".
        layer: Readable name of its layer, such as "block 3, MLP, fc1"; `vitdeploy.export(keep_fp32=...)` takes it, too.
    """

    name: str
    op_type: str
    part: str
    layer: str


@dataclasses.dataclass(frozen=True)
class LowerPrecision:
    """The graph in the lower precision: the quantized `artifact`, or the result of `export` in half precision.

    `variants` writes the graph with some of `nodes` kept in float32; `nodes` are all that can be kept, part by part.
    """

    artifact: Artifact
    variants: Variants
    nodes: tuple[GraphNode, ...]

    @classmethod
    def of(cls, bundle: Bundle, precision: str, what: str) -> LowerPrecision:
        """Open the graph of the bundle's `onnx-fp32` for fp16 and bf16, or of the quantized artifact for int8 and fp8.

        Variants of a quantized artifact are its `onnx-fp32`, quantized with the artifact's recorded ranges. In half
        precision, no node is kept because of observed values, and every rounding is done, including those that ONNX
        Runtime omits on a CPU.

        Args:
            bundle: The bundle.
            precision: One of `PRECISIONS`.
            what: The caller, such as "debug bisect", for messages.

        Raises:
            UsageError: If the precision is unknown, or the required artifacts are missing or were exported with
                different options.
            BundleError: If an artifact was altered, or its ONNX model is invalid.
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
        with valid_onnx(float_file):  # external weights are read only here
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
