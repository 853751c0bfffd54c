"""Frozen value types that cross module boundaries."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from vitdeploy.errors import UsageError, shown

MOST_A_BATCH = 2**20  # images per batch
MOST_NEIGHBOURS = 200  # that vote in a kNN classifier
OPSETS = range(18, 24)  # ONNX opsets
ENGINE_FORMATS = ("tensorrt", "tensorrt-rtx")  # artifacts that a TensorRT library builds for GPUs
SEEDS = (0, 2**63 - 1)

Layout = Literal["nchw", "nhwc"]
Mode = Literal["L", "RGB", "RGBA"]
Axis = TypeVar("Axis", bound="int | str")

# Pillow's mode for opening a model's images, by number of channels.
MODES: dict[int, Mode] = {1: "L", 3: "RGB", 4: "RGBA"}


class TextEnum(str, enum.Enum):
    """Base of string enumerations."""

    def __str__(self) -> str:
        return str(self.value)


class Precision(TextEnum):
    """The number format in which an artifact computes."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"


QUANTIZED = (Precision.INT8, Precision.FP8)  # values are scaled


class Task(TextEnum):
    """The task of a model's head; values are the Hugging Face Hub's task names where one exists."""

    CLASSIFICATION = "image-classification"
    FEATURES = "image-feature-extraction"
    MASKED_IMAGE_MODELING = "masked-image-modeling"


EMBEDS = "image_embeds"  # output of one vector per image
Pool = Literal["cls", "mean", "cls+mean", "pooler", "projection"]
POOLS: tuple[Pool, ...] = ("cls", "mean", "cls+mean", "pooler", "projection")
ZERO_SHOT, ZERO_SHOT_NOTE = "zero_shot", "zero_shot_note"  # in config.json
EMBEDDING_KEYS = ("embedding_pool", "normalize_embedding")  # in config.json, and in an artifact's options
# Smallest norm that a vector is divided by, torch.nn.functional.normalize's: a zero vector stays zero.
SMALLEST_NORM = 1e-12

_LARGEST_AXIS = 2**31 - 1  # tensor rank of ONNX Runtime and TensorRT


@dataclasses.dataclass(frozen=True)
class AxisRange:
    """The sizes of a dynamic axis.

    Attributes:
        minimum: Smallest size.
        optimum: Size to optimize for.
        maximum: Largest size; None for no limit.

    Raises:
        UsageError: If they are not valid axis sizes, or not in this order.
    """

    minimum: int
    optimum: int
    maximum: int | None = None

    def __post_init__(self) -> None:
        given = [self.minimum, self.optimum, *([] if self.maximum is None else [self.maximum])]
        if not all(type(size) is int and size <= _LARGEST_AXIS for size in given):
            raise UsageError(
                f"sizes of an axis are whole numbers up to {_LARGEST_AXIS}, got {given!r:.80}",
                what="range",
                found=given,
            )
        if not 1 <= self.minimum <= self.optimum <= (self.optimum if self.maximum is None else self.maximum):
            raise UsageError(
                f"a range is minimum <= optimum <= maximum, from 1 up, got {self!r}",
                what="range", found=(self.minimum, self.optimum, self.maximum),
            )  # fmt: skip

    def __contains__(self, size: int) -> bool:
        return self.minimum <= size and (self.maximum is None or size <= self.maximum)

    def __str__(self) -> str:
        limit = "up" if self.maximum is None else f"to {self.maximum}"
        return f"from {self.minimum} {limit}"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AxisRange:
        """Read the fields by their names.

        Raises:
            KeyError, TypeError, UsageError: If the data is malformed.
        """
        sizes = data["minimum"], data["optimum"], data["maximum"]
        if not all(type(size) is int for size in sizes[:2]) or type(sizes[2]) not in (int, type(None)):
            raise TypeError(f"an axis has a minimum, an optimum and a maximum, got {str(data)[:80]}")
        return cls(*sizes)


def read_range(text: str) -> AxisRange:
    """Parse MIN:OPT:MAX, or one number for all three."""
    numbers = [int(part) for part in text.split(":") if re.fullmatch("[1-9][0-9]{0,5}", part)]
    if len(numbers) != len(text.split(":")) or len(numbers) not in (1, 3) or numbers != sorted(numbers):
        raise UsageError(
            f"{text!r:.80} is not a range of sizes", what="batch", found=text,
            expected="MIN:OPT:MAX", hint="write MIN:OPT:MAX, such as 1:8:32, or one number",
        )  # fmt: skip
    return AxisRange(*(numbers * 3 if len(numbers) == 1 else numbers))


def read_image_size(text: str) -> Any:
    """Parse HEIGHTxWIDTH, or one number for both: (height, width). MIN:OPT:MAX of these gives three."""
    sizes = [re.fullmatch("([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", size) for size in text.split(":")]
    pairs = [(int(size[1]), int(size[2] or size[1])) for size in sizes if size is not None]
    ordered = all(list(edges) == sorted(edges) for edges in zip(*pairs, strict=True))
    if len(pairs) != len(sizes) or len(pairs) not in (1, 3) or not ordered:
        raise UsageError(
            f"{text!r:.80} is not an image size", what="image_size", found=text, expected="HxW or MIN:OPT:MAX",
            hint="write HEIGHTxWIDTH in pixels, one number, or MIN:OPT:MAX of these, none smaller than the one before",
        )  # fmt: skip
    return pairs[0] if len(pairs) == 1 else tuple(pairs)


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of an input or output.

    Attributes:
        name: Tensor name in the artifact.
        dtype: numpy's name of the element type, such as "float32".
        shape: One entry per axis: its size, or the name of a dynamic axis. A name stands for a single size throughout a
            call.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.dtype} '{self.name}' ({', '.join(map(str, self.shape))})"

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TensorSpec:
        """Read the output of `to_dict`.

        Raises:
            KeyError, TypeError: If the data is malformed.
        """
        name, dtype, shape = data["name"], data["dtype"], tuple(data["shape"])
        if (
            not isinstance(name, str)
            or not isinstance(dtype, str)
            or not all(type(axis) in (int, str) for axis in shape)
        ):
            raise TypeError(f"a tensor has a name, a type and axes, got {str(data)[:80]}")
        return cls(name, dtype, shape)


def attention_for(outputs: Iterable[str]) -> Literal["eager", "sdpa"]:
    """Attention implementation in torch for these outputs: the fused one keeps no attention weights."""
    return "eager" if any(name.startswith("attentions.") for name in outputs) else "sdpa"


class PixelStage(TextEnum):
    """The preprocessing that is done before the model; the model does the rest itself."""

    NORMALIZED = "normalized"  # complete: float
    RESIZED = "resized"  # resized and cropped, not rescaled or normalized: bytes
    DECODED = "decoded"  # decoded gray, RGB or RGBA, in any size: bytes


@dataclasses.dataclass(frozen=True)
class PixelFormat:
    """The format of a model's input image.

    Attributes:
        stage: Preprocessing stage.
        layout: Axis order: "nchw" or "nhwc".
        dtype: numpy's name of the element type: "float32" or "float16" for normalized images, else "uint8".

    Raises:
        UsageError: If the stage does not support the layout or the type.
    """

    stage: PixelStage = PixelStage.NORMALIZED
    layout: Layout = "nchw"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        layouts, dtypes = _PIXEL_FORMATS[self.stage]
        for what, value, known in (("layout", self.layout, layouts), ("dtype", self.dtype, dtypes)):
            if not isinstance(value, str) or value not in known:
                raise UsageError(
                    f"{self.stage} images have {what} {' or '.join(known)}, got {shown(value, 80)}",
                    what=what, expected=known, found=value,
                )  # fmt: skip

    def shape(self, channels: int, size: tuple[Axis, Axis]) -> tuple[Axis | int, ...]:
        """Axes of one image."""
        return (channels, *size) if self.layout == "nchw" else (*size, channels)

    def channels(self, shape: Sequence[int | str]) -> int | str:
        """Number of channels in a batch of this shape."""
        return shape[1 if self.layout == "nchw" else 3]

    def size(self, shape: tuple[Axis, ...]) -> tuple[Axis, ...]:
        """Height and width in a batch of this shape."""
        return shape[2:4] if self.layout == "nchw" else shape[1:3]

    def free_size(self, shape: tuple[int | str, ...]) -> tuple[str, ...]:
        """Names of the height and the width axes in a batch of this shape, if they are dynamic."""
        return tuple(axis for axis in self.size(shape) if isinstance(axis, str))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PixelFormat:
        """Read the fields by their names.

        Raises:
            KeyError, TypeError, ValueError: If the data is malformed.
        """
        return cls(PixelStage(data["stage"]), data["layout"], data["dtype"])


# Layouts and types of each stage.
_PIXEL_FORMATS = {
    PixelStage.NORMALIZED: (("nchw",), ("float32", "float16")),
    PixelStage.RESIZED: (("nchw", "nhwc"), ("uint8",)),
    PixelStage.DECODED: (("nhwc",), ("uint8",)),
}


@dataclasses.dataclass(frozen=True)
class ExportSpec:
    """The specification of an artifact.

    Attributes:
        precision: Number format of the computation.
        outputs: Output names; see `vitdeploy.models.signature.output_names`. Default: the head's outputs.
        dynamic_image_size: True for any image size, with position embeddings interpolated in the graph; False for the
            model's size, with a constant position table.
        pixels: Input image format.
        io_dtype: Output type, "float32" or "float16".
        opset: ONNX opset; None for the exporter's choice.
        optimize: "onnxruntime" for an ONNX graph with that runtime's fused operators; None for a portable graph.
        keep_fp32: Nodes that stay float32 in a lower precision, named by their first outputs.
        target: int8 and fp8: runtime the graph is built for, "cpu" or "tensorrt"; None for the precision's default.
        scheme: int8: "dynamic" or "static"; None for the exporter's choice.
        calibration: int8 and fp8: calibration method; None or "auto" for the exporter's choice.
        reduce_range: int8 on a CPU: 7-bit weights, for processors that accumulate products in 16 bits.
        smooth_quant: int8 and fp8: SmoothQuant migration strength, 0 to 1: how far differences between activation
            channels move into weights. "auto" for 0.65 if that has less error on images; "off" for none.
        external_data: ONNX: weights in a file beside the graph, whatever their size.
        rest: int8 and fp8: precision of the layers that are not quantized, "fp16" for TensorRT or "bf16" for OpenVINO;
            None for float32.
    """

    precision: Precision = Precision.FP32
    outputs: tuple[str, ...] | None = None
    dynamic_image_size: bool = False
    pixels: PixelFormat = PixelFormat()
    io_dtype: str = "float32"
    opset: int | None = None
    optimize: str | None = None
    external_data: bool = False
    keep_fp32: tuple[str, ...] = ()
    target: str | None = None
    scheme: str | None = None
    calibration: str | None = None
    reduce_range: bool = False
    smooth_quant: float | str = "auto"
    rest: Precision | None = None
