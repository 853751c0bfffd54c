"""Graph options, and the artifact specification that all options together define. Needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from vitdeploy.errors import UsageError, shown
from vitdeploy.exporters import check_rest, find_exporter, quantization_target
from vitdeploy.exporting.options import Quantization
from vitdeploy.specs import (
    OPSETS,
    POOLS,
    QUANTIZED,
    ExportSpec,
    PixelFormat,
    PixelStage,
    Pool,
    Precision,
    read_image_size,
)
from vitdeploy.system.option_fields import changed, check_options, described, option
from vitdeploy.trt.options import EngineOptions

Pair = tuple[int, int]
Size = int | Pair


@described
@dataclasses.dataclass(frozen=True)
class GraphOptions:
    """Inputs, outputs and form of the graph.

    Raises:
        UsageError: If an option is invalid, or two of them contradict each other.
    """

    opset: int | None = option(None, "ONNX opset.", limits=(OPSETS.start, OPSETS.stop - 1), unset="20, and 21 for fp8")
    optimize: str | None = option(
        None,
        "Fuse operators for one runtime, for faster loading; fp32 only.",
        choices=("onnxruntime",),
        unset="a graph for every runtime",
    )
    external_data: bool = option(
        False,
        "Write the weights to a file beside the ONNX graph. Processes that open it with prepack=False share one copy "
        "in memory.",
    )
    keep_fp32: tuple[str, ...] | Sequence[str] = option(
        (),
        "Layers, parts or nodes that stay float32 in a lower precision; vitdeploy debug prints their names.",
        names=True,
        repeated=True,
        metavar="NAME",
        group="Half precision",
    )
    outputs: tuple[str, ...] | Sequence[str] | None = option(
        None,
        'Outputs, such as logits,hidden_states; "hidden_states" and "attentions" select all layers. "features.N" is a '
        "map of the patches after layer N.",
        names=True,
        metavar="NAME,...",
        unset="the task's outputs",
    )
    pool: Pool | None = option(
        None,
        "Pooling of the output image_embeds, one vector per image: the class token (cls), the mean of the patches, "
        "both, the model's pooler or its projection (feature extraction only).",
        choices=POOLS,
        unset="with normalize, the model's own pooling; without, the task's outputs",
        group="Embeddings",
    )
    normalize: bool = option(
        False,
        "Divide image_embeds by its L2 norm, in float32 (feature extraction only).",
        group="Embeddings",
    )
    image_size: Size | tuple[Size, Size, Size] | None = option(
        None,
        "Image size: HxW, or MIN:OPT:MAX for a range of sizes. Position embeddings are interpolated to it.",
        read=read_image_size,
        metavar="HxW",
        unset="the image processor's output size",
    )
    dynamic_image_size: bool = option(False, "Accept images of any size from one patch up.")
    input: str = option(
        "float32",
        "Input type: float32 (normalized images) or uint8 (the model normalizes).",
        choices=("float32", "uint8"),
    )
    layout: str | None = option(
        None,
        "Layout of uint8 images.",
        choices=("nchw", "nhwc"),
        unset="nhwc for uint8, nchw for float32",
        hints={"triton": "--triton DIR writes a model repository of Triton"},
    )
    embed_resize: bool = option(False, "Resize and crop in the model; it accepts uint8 images of any size.")
    io_dtype: str = option("float32", "Type of floating-point inputs and outputs.", choices=("float32", "float16"))

    def __post_init__(self) -> None:
        check_options(self)
        if self.image_size is not None:
            object.__setattr__(self, "image_size", _read_size(self.image_size))
        sizes: Any = self.image_size
        if self.bounds is not None and any(list(edges) != sorted(edges) for edges in zip(*sizes, strict=True)):
            raise UsageError(
                f"image_size goes from the smallest size to the largest, got {shown(sizes, 80)}",
                what="image_size",
                found=sizes,
            )
        if self.image_size is not None and self.dynamic_image_size:
            raise UsageError(
                "image_size and dynamic_image_size exclude each other",
                what="image_size", found=self.image_size, hint="leave one out",
            )  # fmt: skip
        if self.embed_resize and self.any_size:
            raise UsageError(
                "embed_resize resizes images to one size, so the size cannot be dynamic",
                what="embed_resize", hint="leave one out",
            )  # fmt: skip
        self.pixels  # noqa: B018  (refuses a layout that the input cannot have)

    @property
    def size(self) -> Pair | None:
        """The (height, width) of the image processor's output."""
        return self.image_size if self.bounds is None else self.image_size[1]  # type: ignore[index, return-value]

    @property
    def bounds(self) -> tuple[Pair, Pair] | None:
        """The smallest and the largest (height, width) of a model with size limits."""
        sizes: Any = self.image_size
        return (sizes[0], sizes[2]) if isinstance(sizes, tuple) and len(sizes) == 3 else None

    @property
    def any_size(self) -> bool:
        """True if the model takes several image sizes."""
        return self.dynamic_image_size or self.bounds is not None

    @property
    def pixels(self) -> PixelFormat:
        """Format of the model's input image."""
        if self.input == "uint8" or self.embed_resize:
            stage = PixelStage.DECODED if self.embed_resize else PixelStage.RESIZED
            return PixelFormat(stage, self.layout or "nhwc", "uint8")  # type: ignore[arg-type]
        return PixelFormat(PixelStage.NORMALIZED, self.layout or "nchw", self.io_dtype)  # type: ignore[arg-type]

    def check(self, precision: str) -> None:
        """Raise UsageError if an option does not fit the precision."""
        if self.optimize is not None and precision != Precision.FP32:
            raise UsageError(
                f"optimize needs precision fp32, got {precision}", what="optimize", expected="fp32", found=precision,
                hint="leave one out: ONNX Runtime would write casts to float32 for the CPU into the file",
            )  # fmt: skip
        if self.keep_fp32 and precision == Precision.FP32:
            raise UsageError(
                "keep_fp32 needs a precision below fp32", what="keep_fp32", found=self.keep_fp32, hint="leave it out"
            )


def spec_of(
    to: str, precision: str, graph: GraphOptions, quantization: Quantization | None, engine: EngineOptions | None
) -> ExportSpec:
    """The artifact that the options define; for an engine, its ONNX artifact.

    Raises:
        UsageError: If an option does not apply to this format or precision.
    """
    asked = {**changed(graph), **({} if quantization is None else changed(quantization))}
    exporter = find_exporter(to, precision, asked)
    if engine is not None and exporter.made_from is None:
        what = next(iter(changed(engine)), "engine")
        hint = "leave it out, or export to tensorrt or tensorrt-rtx"
        raise UsageError(f"{what} applies to engines, not to {to}", what=what, found=to, hint=hint)
    graph.check(precision)
    if quantization is not None and precision not in QUANTIZED:
        what = next(iter(changed(quantization)), "quantization")
        raise UsageError(
            f"{what} needs precision int8 or fp8, got {precision}",
            what=what, expected=QUANTIZED, found=precision, hint="leave it out",
        )  # fmt: skip
    options = quantization or Quantization()
    method = None if options.calibration is None else options.calibration.method
    target = quantization_target([to], precision, options.target)
    scheme = options.scheme
    if precision in QUANTIZED:
        check_rest(to, target, options.rest)
        scheme = _scheme(to, exporter.scheme, options)
    return ExportSpec(
        precision=Precision(precision),
        outputs=None if graph.outputs is None else tuple(graph.outputs),
        dynamic_image_size=graph.any_size,
        pixels=graph.pixels,
        io_dtype=graph.io_dtype,
        opset=graph.opset,
        optimize=graph.optimize,
        external_data=graph.external_data,
        keep_fp32=tuple(graph.keep_fp32),
        target=target,
        scheme=scheme,
        calibration=None if method == "auto" else method,
        reduce_range=options.reduce_range,
        rest=None if options.rest is None else Precision(options.rest),
        smooth_quant=options.smooth_quant,
    )


def _scheme(to: str, only: str | None, options: Quantization) -> str | None:
    """The requested scheme; for a format that has a single one, that scheme.

    Raises:
        UsageError: If the format does not support it, or it lacks calibration images.
    """
    if only is None:
        return options.scheme
    if options.scheme not in (None, only):
        raise UsageError(
            f"{to} has the scheme {only} only, got {options.scheme}", what="scheme", expected=(only,),
            found=options.scheme, hint=f"leave it out and give calibration images, or export {options.scheme} to onnx",
        )  # fmt: skip
    if options.calibration is None:
        raise UsageError(
            f"{to} in 8 bits needs calibration images", what="calibration_data",
            hint="add --calibration-data with a folder of some 512 images like those in production",
        )  # fmt: skip
    return only


def _read_size(size: Any) -> Any:
    """Parse one (height, width), or three of them."""
    if isinstance(size, (tuple, list)) and len(size) == 3:
        return tuple(_pair(edge) for edge in size)
    return _pair(size)


def _pair(size: Any) -> Pair:
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(type(edge) is int and edge > 0 for edge in pair):
        raise UsageError(
            f"image_size takes a positive integer, a pair (height, width), or three of either, got {shown(size, 80)}",
            what="image_size", found=size,
        )  # fmt: skip
    return pair[0], pair[1]
