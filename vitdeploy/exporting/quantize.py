"""Export a model: trace, calibrate, choose, quantize, observe, write."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import UsageError
from vitdeploy.exporters import export_function
from vitdeploy.exporting.quantization.candidate_search import MARGIN, STRENGTHS, CandidateSearch, ChoiceImages
from vitdeploy.exporting.quantization.measure import measure, observe
from vitdeploy.exporting.quantization.mixed_precision import keep_layers
from vitdeploy.specs import OPSETS, QUANTIZED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vitdeploy.exporters import Exported, Exporter
    from vitdeploy.exporters.graph.onnx_graph import TracedGraph
    from vitdeploy.exporters.quantization.candidate import Activations, Candidate
    from vitdeploy.exporters.quantization.ranges.extremes import Extremes
    from vitdeploy.exporters.quantization.schemes.scheme import Scheme
    from vitdeploy.exporters.quantization.smooth_quant import SmoothQuant
    from vitdeploy.exporting.quantization.calibration_images import CalibrationImages
    from vitdeploy.exporting.quantization.calibration_run import QuantizationRun
    from vitdeploy.exporting.validation import Sample
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.models.vit import VisionTransformer
    from vitdeploy.specs import ExportSpec
    from vitdeploy.system.progress import Progress

_HALF_SCALES = 19  # the first opset whose DequantizeLinear outputs half precision


def export_model(
    exporter: Exporter,
    model: VisionTransformer,
    folder: Path,
    spec: ExportSpec,
    *,
    processor: ImageProcessor,
    samples: Sequence[Sample],
    run: QuantizationRun | None,
    progress: Progress,
) -> tuple[Exported, dict[str, Any]]:
    """Write an artifact of a model: trace, quantize, observe, write.

    Args:
        model: The reference, in float32.
        samples: Images for observing value magnitudes, which half precision depends on.
        run: Calibration images for int8 and fp8; None without any.

    Returns:
        The artifact, and the measurements behind its quantization, for the manifest.

    Raises:
        UsageError: If an option does not fit the model or another option.
        CheckFailedError: If a value is not finite on the images, or the artifact is not accurate enough.
        OSError: If a file cannot be written.
    """
    scheme: Scheme | None = None
    measured: dict[str, Any] = {}
    if spec.precision in QUANTIZED:
        from vitdeploy.exporters.quantization.schemes.lookup import scheme_for

        scheme = scheme_for(spec, calibrated=run is not None)
        spec = _with_opset(spec, scheme)
    traced = export_function(exporter)(model, spec, processor)
    if exporter.has_graph:
        graph: TracedGraph = traced  # type: ignore[assignment]
        if scheme is not None:
            graph, measured = quantize_graph(graph, scheme, run, folder, progress)
        observed = graph.to_observe()
        if observed is not None:
            graph = dataclasses.replace(graph, largest=observe(observed, samples, graph.pixels, folder))
        traced = graph
    exported = traced.write(folder)
    if scheme is not None and run is not None:
        exported = dataclasses.replace(exported, tools={**exported.tools, "onnxruntime": version("onnxruntime")})
    return exported, measured


def _with_opset(spec: ExportSpec, scheme: Scheme) -> ExportSpec:
    """The specification with an opset that has the scheme's operators."""
    from vitdeploy.exporters.graph.onnx_graph import DEFAULT_OPSET, check_opset

    lowest = max(scheme.min_opset, OPSETS.start if spec.rest is None else _HALF_SCALES)
    opset = max(DEFAULT_OPSET, lowest) if spec.opset is None else spec.opset
    check_opset(opset, lowest)
    return dataclasses.replace(spec, opset=opset)


def quantize_graph(
    traced: TracedGraph, scheme: Scheme, run: QuantizationRun | None, folder: Path, progress: Progress
) -> tuple[TracedGraph, dict[str, Any]]:
    """Quantize a float32 graph in place: calibrate, choose a candidate and the layers that stay float32.

    Args:
        scheme: The default scheme. If the specification names none, a much more accurate one may replace it.
        run: Calibration images; None without any.
        folder: Temporary folder for the graphs' files.

    Returns:
        The graph, and the measurements behind the choice, for the manifest.

    Raises:
        UsageError: If there is nothing to quantize or to smooth, or a node to keep does not exist.
        CheckFailedError: If a value is not finite on the images, or no candidate is accurate enough.
    """
    from onnx_ir.passes.common import ShapeInferencePass

    from vitdeploy.exporters.graph.kept_nodes import kept_nodes
    from vitdeploy.exporters.graph.precision import name_of
    from vitdeploy.exporters.quantization.candidate import Activations, Candidate, quantize, variants_of
    from vitdeploy.exporters.quantization.schemes.scheme import quantizable

    model, spec = traced.model, traced.spec
    ShapeInferencePass()(model)
    nodes = quantizable(model, scheme)
    names = [name_of(node) for node in nodes]
    keep = kept_nodes(spec.keep_fp32, model, nodes, f"{scheme.name} does not quantize {{}}, which keep_fp32 names")
    spec = dataclasses.replace(spec, keep_fp32=keep)
    traced = dataclasses.replace(traced, spec=spec)
    if len(keep) == len(names):
        raise UsageError(
            f"keep_fp32 keeps all {len(names)} nodes that {spec.precision} quantizes", what="keep_fp32",
            found=spec.keep_fp32, hint="export to fp32",
        )  # fmt: skip
    smoothing = _smoothing(traced, possible=run is not None and run.parts.held_out)
    kept, measured = frozenset(spec.keep_fp32), dict[str, Any]()
    candidate, activations = Candidate(scheme, smooth=smoothing[0]), Activations()
    seen: Mapping[str, Extremes] = {}
    if run is not None:
        seen = _extremes(traced, scheme, run.parts.ranges, run.cache, folder)
        auto = spec.calibration in (None, "auto")
        # As with smoothing: without images to compare on, a margin may do harm.
        margin = MARGIN if scheme.static is not None and run.parts.held_out and auto else 0
        method = "minmax" if auto else spec.calibration
        images = ChoiceImages(run.parts.choice, traced.pixels, folder, run.problem_type)
        search = CandidateSearch(traced, Activations(seen), images, progress)
        # Compared by extremes, which are known: a histogram needs a pass over all images for each smoothing.
        first = Candidate(scheme, None if scheme.static is None else "minmax", margin=margin)
        compared = search.best(first, smoothing, () if run.accuracy is not None else _others(spec, scheme, run))
        candidate = compared if compared.scheme.static is None else dataclasses.replace(compared, method=method)
        activations = _measured(traced, candidate, seen, run, folder)
        measured = search.record(compared)
        if run.accuracy is not None:
            variants = variants_of(model, candidate, activations, spec.keep_fp32)
            further, record = keep_layers(variants, run.accuracy, images, progress, traced.inference_precision)
            kept, measured = kept.union(further), measured | record
    options = _options(candidate, spec, run)
    if candidate.smooth is not None:
        options["smooth_quant_places"] = list(candidate.smooth.kinds(model, seen, kept))
    options["quantized_nodes"] = len(quantize(model, candidate, activations, kept))
    options["float32_nodes"] = [name for name in names if name in kept]
    return dataclasses.replace(traced, quantized=options), measured


def _smoothing(traced: TracedGraph, *, possible: bool) -> tuple[SmoothQuant | None, ...]:
    """Smoothing options to try; none without images to compare on: a gain on few images may be a loss on others."""
    from vitdeploy.exporters.graph.precision import name_of
    from vitdeploy.exporters.quantization.smooth_quant import SmoothQuant
    from vitdeploy.exporters.quantization.smoothing_places import find_places

    asked, keep = traced.spec.smooth_quant, traced.spec.keep_fp32
    if asked == "off" or (asked == "auto" and not possible):
        return (None,)
    if all(name_of(product) in keep for place in find_places(traced.model) for product in place.products):
        if asked == "auto":
            return (None,)
        raise UsageError(
            f"smooth_quant {asked} has nothing to smooth: no activation is taken by quantized products alone",
            what="smooth_quant", found=asked, hint="leave it out",
        )  # fmt: skip
    return (None, *map(SmoothQuant, STRENGTHS)) if asked == "auto" else (SmoothQuant(float(asked)),)


def _others(spec: ExportSpec, scheme: Scheme, run: QuantizationRun) -> Sequence[Scheme]:
    """The dynamic scheme, unless an option requires fixed ranges."""
    from vitdeploy.exporters.quantization.schemes.dynamic_int8 import DynamicInt8
    from vitdeploy.exporters.quantization.schemes.static_int8 import StaticInt8

    free = spec.scheme is None and spec.calibration in (None, "auto") and run.parts.held_out
    return (DynamicInt8(reduce_range=scheme.reduce_range),) if free and isinstance(scheme, StaticInt8) else ()


def _extremes(
    traced: TracedGraph, scheme: Scheme, images: CalibrationImages, cache: Path | None, folder: Path
) -> dict[str, Extremes]:
    """Extremes of the activations that a scheme quantizes."""
    from vitdeploy.exporters.graph.measured_graph import measured_graph
    from vitdeploy.exporters.quantization.candidate import activations_of
    from vitdeploy.exporters.quantization.ranges.extremes import ExtremesReducer, channel_extremes

    graph = measured_graph(traced.model, activations_of(traced.model, scheme), channel_extremes)
    return measure(graph, (images,), ExtremesReducer(), traced.pixels, cache, folder)


def _measured(
    traced: TracedGraph, candidate: Candidate, seen: Mapping[str, Extremes], run: QuantizationRun, folder: Path
) -> Activations:
    """Activations that a candidate quantizes, the choice images included; `seen` lacks those."""
    from vitdeploy.exporters.graph.measured_graph import measured_graph
    from vitdeploy.exporters.quantization.candidate import MINMAX, Activations, activations_of
    from vitdeploy.exporters.quantization.ranges.methods import METHODS, HistogramReducer

    parts, scheme = run.parts, candidate.scheme
    if parts.held_out:
        others = _extremes(traced, scheme, parts.choice, run.cache, folder)
        seen = {name: extremes.joined(others[name]) for name, extremes in seen.items()}
    if scheme.static is None or candidate.method in (None, MINMAX):
        return Activations(seen)
    twin = traced.model.clone()
    if candidate.smooth is not None:
        candidate.smooth.smooth(twin, seen)
    reducer = HistogramReducer(METHODS[candidate.method], scheme.static)
    images = (parts.ranges, parts.choice) if parts.held_out else (parts.ranges,)
    graph = measured_graph(twin, activations_of(twin, scheme))
    return Activations(seen, measure(graph, images, reducer, traced.pixels, run.cache, folder))


def _options(candidate: Candidate, spec: ExportSpec, run: QuantizationRun | None) -> dict[str, Any]:
    """Quantization options for the manifest."""
    options: dict[str, Any] = {"target": candidate.scheme.target, "scheme": candidate.scheme.name}
    if spec.rest is not None:
        options["rest"] = str(spec.rest)
    if spec.reduce_range:
        options["reduce_range"] = True
    if candidate.method is not None and run is not None:
        measured = run.parts.measured
        options |= {
            "calibration": candidate.method,
            "calibration_images": len(measured.images),
            "calibration_sha256": measured.sha256(),
        }
    if candidate.margin:
        options["calibration_margin"] = candidate.margin
    if candidate.smooth is not None:
        options["smooth_quant"] = candidate.smooth.strength
    return options
