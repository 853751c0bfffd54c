"""Exporters: the reference model, or another artifact, to a deployable artifact."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vitdeploy.errors import UsageError, shown
from vitdeploy.system.imports import load_target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.models.vit import VisionTransformer
    from vitdeploy.specs import ExportSpec, TensorSpec


@dataclasses.dataclass(frozen=True)
class Exported:
    """A written artifact.

    Attributes:
        files: Paths relative to the bundle; the first one is opened.
        options: Export options for the manifest.
        tools: Version of each library involved.
        emulation: Equivalent files beside them, for validation if no CPU can run the artifact itself. They are not part
            of the bundle.
    """

    files: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    options: Mapping[str, Any]
    tools: Mapping[str, str]
    emulation: tuple[str, ...] = ()


class Traced(Protocol):
    """A model in an exporter's form; `write` makes the artifact."""

    def write(self, folder: Path) -> Exported:
        """Write the artifact into a bundle's folder."""


class TraceFunction(Protocol):
    """Trace a model.

    Args:
        model: The reference, in float32; unchanged.
        processor: The bundle's image processor; the artifact does the preprocessing that it omits, see
            `ExportSpec.pixels`.
    """

    def __call__(self, model: VisionTransformer, spec: ExportSpec, processor: ImageProcessor) -> Traced: ...


class Exporter(NamedTuple):
    """One exporter.

    Attributes:
        target: "module:function", a `TraceFunction`.
        refuses: Unsupported options, as fields of the option values.
        refuses_in: The same by precision of the layers that are not quantized, for options that others support.
        made_from: Format of its source artifact; None for the reference. With a source artifact, the target takes a
            `vitdeploy.exporters.engine.build.EngineRequest`.
        has_graph: True if it traces a `vitdeploy.exporters.graph.onnx_graph.TracedGraph`, whose lower precisions depend
            on values observed on images.
        quantized_for: Targets of quantized precisions, the default first.
        scheme: The only quantization scheme that it supports, which needs calibration images; None for all of the
            target's.
        rest: Precisions below float32 for the layers that are not quantized, by target.
    """

    target: str
    precisions: tuple[str, ...]
    backend: str
    refuses: tuple[str, ...] = ()
    refuses_in: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    made_from: str | None = None
    has_graph: bool = False
    quantized_for: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    scheme: str | None = None
    rest: Mapping[str, tuple[str, ...]] = MappingProxyType({})


_ENGINE = Exporter(
    "vitdeploy.exporters.engine.build:build_engine",
    ("fp32", "fp16", "bf16", "int8", "fp8"),
    "tensorrt",
    refuses=("optimize", "external_data", "scheme", "reduce_range"),
    made_from="onnx",
    quantized_for={"int8": ("tensorrt",), "fp8": ("tensorrt",)},
    rest={"tensorrt": ("fp16",)},
)
EXPORTERS: dict[str, Exporter] = {
    "onnx": Exporter(
        "vitdeploy.exporters.graph.onnx_graph:trace_onnx",
        ("fp32", "fp16", "bf16", "int8", "fp8"),
        "onnxruntime",
        has_graph=True,
        quantized_for={"int8": ("cpu", "tensorrt"), "fp8": ("tensorrt",)},
        rest={"tensorrt": ("fp16",)},
    ),
    "openvino": Exporter(
        "vitdeploy.exporters.openvino_ir:trace_openvino",
        ("fp32", "fp16", "bf16", "int8"),
        "openvino",
        refuses=("opset", "optimize", "external_data", "embed_resize"),
        refuses_in={"bf16": ("keep_fp32",)},
        has_graph=True,
        quantized_for={"int8": ("cpu",)},
        scheme="static",
        rest={"cpu": ("bf16",)},
    ),
    "torchscript": Exporter(
        "vitdeploy.exporters.torchscript.tracing:trace_torchscript",
        ("fp32", "fp16", "bf16"),
        "torchscript",
        refuses=("opset", "embed_resize", "optimize", "external_data", "keep_fp32"),
    ),
    "tensorrt": _ENGINE,
    "tensorrt-rtx": _ENGINE._replace(backend="tensorrt-rtx"),
}


def find_exporter(to: str, precision: str, options: Mapping[str, Any]) -> Exporter:
    """The exporter for a format and a precision.

    Raises:
        UsageError: If there is none, or it does not support one of the options.
    """
    if not isinstance(to, str) or to not in EXPORTERS:
        raise UsageError(
            f"unknown format {shown(to)}; known: {', '.join(EXPORTERS)}",
            what="to", expected=tuple(EXPORTERS), found=to,
        )  # fmt: skip
    exporter = EXPORTERS[to]
    if not isinstance(precision, str) or precision not in exporter.precisions:
        raise UsageError(
            f"{to} has the precisions {', '.join(exporter.precisions)}, got {shown(precision)}",
            what="precision", expected=exporter.precisions, found=precision,
        )  # fmt: skip
    computed = str(options.get("rest", precision))
    for name in (*exporter.refuses, *exporter.refuses_in.get(computed, ())):
        if name in options:
            of = to if name in exporter.refuses else f"{to} in {computed}"
            raise UsageError(
                f"{name} does not apply to {of}, got {shown(options[name], 80)}",
                what=name, found=options[name], hint="leave it out, or export to another format",
            )  # fmt: skip
    return exporter


def quantization_target(formats: Sequence[str], precision: str, asked: str | None) -> str | None:
    """Runtime that a quantized graph for all these formats is built for; None for other precisions.

    Raises:
        UsageError: If the requested target does not run one of them.
    """
    rows = {to: EXPORTERS[to].quantized_for.get(precision, ()) for to in formats}
    for to, known in rows.items():
        if known and asked is not None and asked not in known:
            raise UsageError(
                f"{to} in {precision} is for {' or '.join(known)}, got target {shown(asked, 80)}",
                what="target", expected=known, found=asked,
            )  # fmt: skip
    shared = [target for known in rows.values() for target in known if all(target in row for row in rows.values())]
    return asked or next(iter(shared), None)


def check_rest(to: str, target: str | None, rest: str | None) -> None:
    """Raise UsageError unless the layers that are not quantized can have this precision in that format."""
    known = EXPORTERS[to].rest.get(str(target), ())
    if rest is not None and rest not in known:
        choices = [
            f"{precision} with --to {name} and target {of}"
            for name, row in EXPORTERS.items()
            if row.made_from is None
            for of, precisions in row.rest.items()
            for precision in precisions
        ]
        raise UsageError(
            f"rest does not apply to {to} for {target}, got {rest}" if not known else
            f"rest takes {' or '.join(known)} for {to}, got {rest}",
            what="rest", expected=known, found=rest, hint=f"leave it out; there is {', '.join(choices)}",
        )  # fmt: skip


def export_function(exporter: Exporter) -> TraceFunction:
    """Import the exporter's function.

    Raises:
        UnavailableError: If a required library is not installed, or does not load.
    """
    function: TraceFunction = load_target(exporter.target, "exporting", "export")
    return function
