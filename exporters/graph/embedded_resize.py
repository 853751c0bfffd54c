"""Resize and crop inside the graph, as Pillow does, so that it takes decoded images of any size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import PIL

from vitdeploy.errors import UsageError
from vitdeploy.images.preprocessor_config import ShortestEdge
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.models.signature import BATCH_AXIS, SIZE_AXES

_WEIGHT_BITS = 22  # bits of Pillow's fixed-point weights for bytes (src/libImaging/Resample.c, PRECISION_BITS)
# A weight is split into parts so short that neither their products with bytes nor sums of 512 of those are rounded in
# float32, even if an engine truncates the factors to TF32's 11 bits.
_PART_BITS = (8, 7, 7)


class _Axis(NamedTuple):
    """One side of the image.

    Attributes:
        length: Length in the decoded image, an int64 scalar.
        resized: Length in the resized image, an int64 scalar.
    """

    length: ir.Value
    resized: ir.Value
    crop: int


def embed_resize(model: ir.Model, processor: ImageProcessor) -> None:
    """Change the input of a graph from resized bytes to decoded bytes, in place.

    Pillow resizes one side, rounds to bytes, and resizes the other (Resample.c, ImagingResampleInner). Each step is a
    matrix product with the filter's weights in integer arithmetic, as in Pillow, so the bytes are equal to Pillow's. A
    crop selects rows of the matrix, and padding is a row of zeros.

    Args:
        model: A graph that takes `pixel_values` (batch, C, H, W) uint8, and converts it first; the new input is (batch,
            height, width, C) uint8.
        processor: Processor with the graph's size and channels.

    Raises:
        UsageError: See `check_embeddable`.
    """
    size = check_embeddable(processor)
    filter_weights = _FILTERS[processor.resample if processor.do_resize else 2]
    graph = model.graph
    old = graph.inputs[0]
    images = ir.Value(
        name=old.name,
        type=ir.TensorType(ir.DataType.UINT8),
        shape=ir.Shape([BATCH_AXIS, *SIZE_AXES, processor.num_channels]),
    )
    ops = _Ops()
    shape = ops("Shape", images)
    lengths = [ops("Gather", shape, ops.int64(axis)) for axis in (1, 2)]
    resized = _resized(ops, processor, lengths)
    height, width = (_Axis(*axis) for axis in zip(lengths, resized, size, strict=True))
    x = ops("Transpose", _float(ops, images), perm=(0, 3, 1, 2))
    down = _weights(ops, height, processor, filter_weights)
    across = [ops("Transpose", part, perm=(1, 0)) for part in _weights(ops, width, processor, filter_weights)]
    alpha = processor.num_channels == 4 and processor.do_resize
    unchanged = ops("And", *(ops("Equal", axis.length, axis.resized) for axis in (height, width))) if alpha else None
    if unchanged is not None:
        x = ops("Where", unchanged, x, _premultiplied(ops, x))
    x = _passes(ops, x, down, across, _height_first(ops, height, width))
    if unchanged is not None:
        x = ops("Where", unchanged, x, _straight(ops, x))
    graph.insert_before(graph[0], ops.nodes)
    for value in ops.constants:
        graph.register_initializer(value)
    for node, index in list(old.uses()):
        node.replace_input_with(index, x)
    old.name = None
    graph.inputs[0] = images


def check_embeddable(processor: ImageProcessor) -> tuple[int, int]:
    """The output (height, width) of a processor that a graph can reproduce.

    Raises:
        UsageError: If its result depends on the image's size, or its filter is neither bilinear nor bicubic.
    """
    if processor.output_size is None:
        raise UsageError(
            "embed_resize needs an image processor that gives one size", what="embed_resize", hint="give an image size"
        )
    if processor.do_resize and processor.resample not in _FILTERS:
        raise UsageError(
            f"embed_resize needs a bilinear (2) or bicubic (3) resample, got {processor.resample}",
            what="resample", expected=tuple(_FILTERS), found=processor.resample, hint="leave embed_resize out",
        )  # fmt: skip
    return processor.output_size


class _Ops:
    """Records operators. A branch has its own nodes, and shares names and constants with the whole."""

    def __init__(self, whole: _Ops | None = None) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = [] if whole is None else whole.constants
        self._numbers: Iterator[int] = itertools.count() if whole is None else whole._numbers

    def __call__(self, operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        name = f"resize.{next(self._numbers)}"
        node = ir.node(operator, inputs, attributes, name=f"node.{name}", outputs=[ir.Value(name=name)])
        self.nodes.append(node)
        return node.outputs[0]

    def either(
        self, condition: ir.Value, then: Callable[[_Ops], ir.Value], otherwise: Callable[[_Ops], ir.Value]
    ) -> ir.Value:
        branches = {}
        for name, make in (("then_branch", then), ("else_branch", otherwise)):
            ops = _Ops(self)
            branches[name] = ir.Graph([], [make(ops)], nodes=ops.nodes, name=name)
        return self("If", condition, **branches)

    def int64(self, value: Any) -> ir.Value:
        return self._constant(np.array(value, np.int64))

    def int32(self, value: Any) -> ir.Value:
        return self._constant(np.array(value, np.int32))

    def float32(self, value: Any) -> ir.Value:
        return self._constant(np.array(value, np.float32))

    def _constant(self, array: np.ndarray) -> ir.Value:
        name = f"resize.{next(self._numbers)}"
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
        self.constants.append(value)
        return value


def _height_first(ops: _Ops, height: _Axis, width: _Axis) -> ir.Value | None:
    """True if Pillow begins with the height: from 13.0 on, if that removes more than twice as many rows as columns.

    The rule was found by experiment, and held for 1,473 pairs of random sizes; before 13.0, the width is always first.
    """
    if int(PIL.__version__.partition(".")[0]) < 13:
        return None
    rows, columns = (ops("Sub", axis.length, axis.resized) for axis in (height, width))
    shrinks = ops("Greater", rows, ops.int64(0))
    return ops("And", shrinks, ops("Greater", rows, ops("Mul", ops.int64(2), columns)))


def _passes(
    ops: _Ops, x: ir.Value, down: list[ir.Value], across: list[ir.Value], height_first: ir.Value | None
) -> ir.Value:
    """(batch, C, height, width) -> (batch, C, H, W), with the parts of the weights (H, height) and (width, W)."""

    def resize_height(ops: _Ops, x: ir.Value) -> ir.Value:
        return _bytes(ops, [ops("MatMul", part, x) for part in down])

    def resize_width(ops: _Ops, x: ir.Value) -> ir.Value:
        return _bytes(ops, [ops("MatMul", x, part) for part in across])

    if height_first is None:
        return resize_height(ops, resize_width(ops, x))
    return ops.either(
        height_first,
        lambda ops: resize_width(ops, resize_height(ops, x)),
        lambda ops: resize_height(ops, resize_width(ops, x)),
    )


def _premultiplied(ops: _Ops, x: ir.Value) -> ir.Value:
    """RGBA -> premultiplied by alpha, (batch, 4, H, W), as Pillow does unless the size stays the same (`Image.resize`).

    Divides by 255 with rounding, as Convert.c's rgbA2rgba: t = colour alpha + 128, then (t / 256 + t) / 256.
    """
    whole = ops("Cast", x, to=int(ir.DataType.INT32))
    colours, alpha = _channels(ops, whole, 0, 3), _channels(ops, whole, 3, 4)
    t = ops("Add", ops("Mul", colours, alpha), ops.int32(128))
    of_256 = ops.int32(256)
    colours = ops("Div", ops("Add", ops("Div", t, of_256), t), of_256)
    return _float(ops, ops("Concat", colours, alpha, axis=1))


def _straight(ops: _Ops, x: ir.Value) -> ir.Value:
    """Inverse of `_premultiplied`, as Convert.c's rgba2rgbA: 255 colour / alpha, clipped; undivided if alpha is 0."""
    whole = ops("Cast", x, to=int(ir.DataType.INT32))
    colours, alpha = _channels(ops, whole, 0, 3), _channels(ops, whole, 3, 4)
    zero, one, most = ops.int32(0), ops.int32(1), ops.int32(255)
    divided = ops("Min", ops("Div", ops("Mul", colours, most), ops("Max", alpha, one)), most)
    colours = ops("Where", ops("Equal", alpha, zero), colours, divided)
    return _float(ops, ops("Concat", colours, alpha, axis=1))


def _channels(ops: _Ops, x: ir.Value, first: int, end: int) -> ir.Value:
    """(batch, end - first, H, W)."""
    return ops("Slice", x, ops.int64([first]), ops.int64([end]), ops.int64([1]))


def _resized(ops: _Ops, processor: ImageProcessor, lengths: list[ir.Value]) -> list[ir.Value]:
    """Side lengths of the resized image; see `ShortestEdge.of`."""
    size = processor.size
    if not processor.do_resize:
        return lengths
    if not isinstance(size, ShortestEdge):
        return [ops.int64(size.height), ops.int64(size.width)]
    shortest, edge = ops("Min", *lengths), ops.int64(size.shortest_edge)
    return [ops("Div", ops("Mul", edge, length), shortest) for length in lengths]


def _weights(
    ops: _Ops, axis: _Axis, processor: ImageProcessor, filter_weights: Callable[[_Ops, ir.Value, ir.Value], ir.Value]
) -> list[ir.Value]:
    """Weights of the input pixels for each output pixel: (crop, length) float32 for each part.

    Pixel p of the resized image lies at (p + 1/2) length / resized, pixel j of the image at j + 1/2. The filter is
    stretched if the image shrinks. Their distance: |(2j + 1) resized - (2p + 1) length| / (2 max(length, resized)).
    """
    one, two, zero = ops.int64(1), ops.int64(2), ops.int64(0)
    rows = ops("Add", ops.int64(np.arange(axis.crop)[:, None]), _offset(ops, axis, processor))  # p, (crop, 1)
    columns = ops("Range", zero, axis.length, one)  # j, (length,)
    there = ops("Mul", ops("Add", ops("Mul", two, columns), one), axis.resized)
    here = ops("Mul", ops("Add", ops("Mul", two, rows), one), axis.length)
    stretch = ops("Mul", two, ops("Max", axis.length, axis.resized))
    weights = filter_weights(ops, ops("Abs", ops("Sub", there, here)), stretch)
    total = ops("Max", ops("ReduceSum", weights, ops.int64([1]), keepdims=1), one)  # 0 outside the image
    inside = ops("And", ops("GreaterOrEqual", rows, zero), ops("Less", rows, axis.resized))
    negative = ops("Less", weights, zero)
    return [
        _float(ops, ops("Where", inside, ops("Where", negative, ops("Neg", part), part), zero))
        for part in _parts(ops, ops("Abs", weights), total)
    ]


def _parts(ops: _Ops, weights: ir.Value, total: ir.Value) -> list[ir.Value]:
    """`weights` / `total` in `_WEIGHT_BITS` bits, halves rounded up, by long division: the highest part first.

    The filters' integers fit 63 bits if length^4 / resized is less than 2^51: up to 26,000 pixels for 224.
    `vitdeploy.images.pixel_limit.embedded_problem` refuses others.
    """
    parts, left = [], weights
    for bits in _PART_BITS:
        left = ops("Mul", left, ops.int64(1 << bits))
        parts.append(ops("Div", left, total))
        left = ops("Sub", left, ops("Mul", parts[-1], total))
    up = ops("GreaterOrEqual", ops("Mul", ops.int64(2), left), total)
    return [*parts[:-1], ops("Add", parts[-1], ops("Cast", up, to=int(ir.DataType.INT64)))]


def _offset(ops: _Ops, axis: _Axis, processor: ImageProcessor) -> ir.Value:
    """Offset of the crop, negative for an image smaller than the crop; see `processor._crop_offset`."""
    crop, two = ops.int64(axis.crop), ops.int64(2)
    # Division rounds towards zero: the dividend is made positive.
    floor = ops("Sub", ops("Div", ops("Add", axis.resized, crop), two), crop)
    if processor.crop_rounding == "floor":
        return floor
    margin = ops("Sub", axis.resized, crop)
    odd = ops("Mod", floor, two)
    to_even = ops("Div", ops("Add", margin, odd), two)
    padded = ops("Sub", ops.int64(0), ops("Div", ops("Sub", crop, axis.resized), two))
    return ops("Where", ops("GreaterOrEqual", margin, ops.int64(0)), to_even, padded)


def _bytes(ops: _Ops, parts: list[ir.Value]) -> ir.Value:
    """The sum of the parts in steps of 2^-22, rounded to integers from 0 to 255, halves up: float32."""
    total = ops.int32(1 << _WEIGHT_BITS - 1)
    place = _WEIGHT_BITS
    for part, bits in zip(parts, _PART_BITS, strict=True):
        place -= bits
        whole = ops("Cast", part, to=int(ir.DataType.INT32))
        total = ops("Add", total, ops("Mul", whole, ops.int32(1 << place)))
    whole = ops("Div", total, ops.int32(1 << _WEIGHT_BITS))  # towards zero, where values below zero are clipped
    return ops("Clip", _float(ops, whole), ops.float32(0), ops.float32(255))


def _float(ops: _Ops, value: ir.Value) -> ir.Value:
    return ops("Cast", value, to=int(ir.DataType.FLOAT))


def _bilinear(ops: _Ops, x: ir.Value, unit: ir.Value) -> ir.Value:
    """1 - x, at least 0; in integers, as multiples of `unit`."""
    return ops("Max", ops("Sub", unit, x), ops.int64(0))


def _bicubic(ops: _Ops, x: ir.Value, unit: ir.Value) -> ir.Value:
    """Keys' cubic convolution with a = -1/2 (doi:10.1109/TASSP.1981.1163711), as Resample.c's bicubic_filter.

    Twice its values, in integers, as multiples of unit^3.
    """
    near = _polynomial(ops, x, unit, (3, -5, 0, 2))
    far = _polynomial(ops, x, unit, (-1, 5, -8, 4))
    beyond = ops("Where", ops("Less", x, ops("Mul", ops.int64(2), unit)), far, ops.int64(0))
    return ops("Where", ops("Less", x, unit), near, beyond)


def _polynomial(ops: _Ops, x: ir.Value, unit: ir.Value, coefficients: tuple[int, ...]) -> ir.Value:
    """The homogeneous polynomial with these coefficients, highest power of `x` first (Horner's rule)."""
    first, *others = coefficients
    value, power = ops.int64(first), unit
    for coefficient in others:
        value = ops("Add", ops("Mul", value, x), ops("Mul", ops.int64(coefficient), power))
        power = ops("Mul", power, unit)
    return value


# By Pillow's filter numbers.
_FILTERS: dict[int, Callable[[_Ops, ir.Value, ir.Value], ir.Value]] = {2: _bilinear, 3: _bicubic}
