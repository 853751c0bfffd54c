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
    """An artifact that was written.

    Attributes:
        files: Relative to the bundle, the one to open first.
        options: Of the export, for the manifest.
        tools: The version of each library that took part.
        emulation: Files beside them that give the same, to be validated where no CPU can run the artifact itself. They
            do not belong into the bundle.
    """

    files: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    options: Mapping[str, Any]
    tools: Mapping[str, str]
    emulation: tuple[str, ...] = ()


class Traced(Protocol):
    """A model in the form of an exporter. It becomes an artifact when it is written."""

    def write(self, folder: Path) -> Exported:
        """Write the artifact into the folder of a bundle."""


class TraceFunction(Protocol):
    """Trace a model.

    Args:
        model: The reference, in float32; it stays as it is.
        processor: Of the bundle; the artifact does what it leaves out, see `ExportSpec.pixels`.
    """

    def __call__(self, model: VisionTransformer, spec: ExportSpec, processor: ImageProcessor) -> Traced: ...


class Exporter(NamedTuple):
    """One row of the table of exporters.

    Attributes:
        target: "module:function", a `TraceFunction`.
        refuses: Options that it does not take, by the fields of the option values.
        made_from: The format of the artifact that it makes its own from; None where it is made from the reference. The
            target is then a function of `vitdeploy.exporters.engine.build.EngineRequest`.
        has_graph: Whether it traces a `vitdeploy.exporters.graph.onnx_graph.TracedGraph`, whose lower precisions depend
            on the values that images give.
        quantized_for: What may run an artifact of a precision that is quantized, the usual one first.
    """

    target: str
    precisions: tuple[str, ...]
    backend: str
    refuses: tuple[str, ...] = ()
    made_from: str | None = None
    has_graph: bool = False
    quantized_for: Mapping[str, tuple[str, ...]] = MappingProxyType({})


_ENGINE = Exporter(
    "vitdeploy.exporters.engine.build:build_engine",
    ("fp32", "fp16", "bf16", "int8", "fp8"),
    "tensorrt",
    refuses=("optimize", "scheme", "reduce_range"),
    made_from="onnx",
    quantized_for={"int8": ("tensorrt",), "fp8": ("tensorrt",)},
)
EXPORTERS: dict[str, Exporter] = {
    "onnx": Exporter(
        "vitdeploy.exporters.graph.onnx_graph:trace_onnx",
        ("fp32", "fp16", "bf16", "int8", "fp8"),
        "onnxruntime",
        has_graph=True,
        quantized_for={"int8": ("cpu", "tensorrt"), "fp8": ("tensorrt",)},
    ),
    "torchscript": Exporter(
        "vitdeploy.exporters.torchscript.tracing:trace_torchscript",
        ("fp32", "fp16", "bf16"),
        "torchscript",
        refuses=("opset", "embed_resize", "optimize", "keep_fp32"),
    ),
    "tensorrt": _ENGINE,
    "tensorrt-rtx": _ENGINE._replace(backend="tensorrt-rtx"),
}


def find_exporter(to: str, precision: str, options: Mapping[str, Any]) -> Exporter:
    """The row for a format and a precision.

    Raises:
        UsageError: If there is none, or it does not take one of the options.
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
    for name in exporter.refuses:
        if name in options:
            raise UsageError(
                f"{name} does not apply to {to}, got {shown(options[name], 80)}",
                what=name, found=options[name], hint="leave it out, or export to another format",
            )  # fmt: skip
    return exporter


def quantization_target(formats: Sequence[str], precision: str, asked: str | None) -> str | None:
    """Runtime that a quantized graph for all these formats is built for; None for other precisions.

    Raises:
        UsageError: If what is asked for does not run one of them.
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


def export_function(exporter: Exporter) -> TraceFunction:
    """Import the function that the row names.

    Raises:
        UnavailableError: If a library that it needs is not installed, or does not load.
    """
    function: TraceFunction = load_target(exporter.target, "exporting", "export")
    return function
