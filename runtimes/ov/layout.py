"""Rewrite a model for the faster kernels of OpenVINO's CPU device, with the same results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.system.telemetry import without_reporter

with without_reporter():
    import openvino as ov
    from openvino import opset13 as opset

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ELEMENTWISE = frozenset({"Add", "Convert", "FakeQuantize", "Gelu", "Multiply", "Subtract"})
_AFTER_PRODUCT = frozenset({"Add", "Gelu", "Multiply"})  # the kernel of a convolution includes them


def rewrite(model: ov.Model) -> bool:
    """Apply all rewrites below, in place; True if each run takes one image."""
    one_image = fix_to_one_image(model)
    transpose_keys_in_product(model)
    convolve_tokens(model)
    return one_image


def fix_to_one_image(model: ov.Model) -> bool:
    """Fix the first axis of every input and output to 1, in place, if no other axis of them is dynamic.

    OpenVINO merges transpositions into its kernels for fixed sizes only. A batch is then several runs, and an image has
    the same result in every batch.

    Returns:
        True if each run takes one image; False if the model keeps its shapes.
    """
    shapes = {port: port.get_partial_shape() for port in model.inputs}
    free = [*shapes.values(), *(port.get_partial_shape() for port in model.outputs)]
    if not shapes or not all(len(shape) and shape[0].is_dynamic for shape in free):
        return False
    if any(axis.is_dynamic for shape in free for axis in list(shape)[1:]):
        return False
    model.reshape({port: [1, *list(shape)[1:]] for port, shape in shapes.items()})
    if all(port.get_partial_shape().is_static and port.get_shape()[0] == 1 for port in model.outputs):
        return True
    model.reshape(shapes)
    return False


def transpose_keys_in_product(model: ov.Model) -> None:
    """Let attention's first product transpose the keys, in place.

    OpenVINO fuses attention to one kernel, which takes keys (N, H, L, D). It writes keys (N, H, D, L) to memory first,
    which takes a quarter of the kernel's own time.
    """
    for product in _products(model):
        transpose = product.input_value(1).get_node()
        if product.get_attributes()["transpose_b"] or transpose.get_type_name() != "Transpose":
            continue
        order = transpose.input_value(1).get_node()
        if order.get_type_name() == "Constant" and list(order.get_data()) == [0, 2, 3, 1] and _used_once(transpose):
            keys = opset.transpose(transpose.input_value(0), np.array([0, 2, 1, 3]))
            keys.set_friendly_name(transpose.get_friendly_name())
            rewritten = opset.matmul(product.input_value(0), keys, product.get_attributes()["transpose_a"], True)
            rewritten.set_friendly_name(product.get_friendly_name())
            _replace(product.output(0), rewritten.output(0))


def convolve_tokens(model: ov.Model) -> None:
    """Replace products of tokens (N, L, C) of fixed size with weights by convolutions of 1 x 1 pixels, in place.

    Tokens in memory are an image (N, C, 1, L) whose channels come last, as OpenVINO's convolutions take it: nothing is
    moved. oneDNN divides a product among threads by blocks of 64 tokens: two threads get 128 and 69 of ViT's 197, and
    each reads all weights for each block. A convolution is divided evenly. Biases, Gelu and the quantization between
    two products are computed on the image, in the convolution's kernel.
    """
    computed = _computed(model)
    images: dict[ov.Output, ov.Output] = {}  # by tokens: the same values as an image
    for product in _products(model):
        tokens, weight = product.input_values()
        attributes, shapes = product.get_attributes(), [value.get_partial_shape() for value in (tokens, weight)]
        if attributes["transpose_a"] or _is_computed(weight, computed):
            continue
        if any(shape.is_dynamic for shape in shapes) or [len(shape) for shape in shapes] != [3, 2]:
            continue
        image = images.get(tokens) or _image_of_chain(tokens, images, computed)
        if image is None:
            image = opset.transpose(opset.unsqueeze(tokens, np.array([1])), np.array([0, 3, 1, 2])).output(0)
        images[tokens] = image
        rows = weight if attributes["transpose_b"] else opset.transpose(weight, np.array([1, 0])).output(0)
        kernel = opset.unsqueeze(rows, np.array([2, 3]))
        result = opset.convolution(image, kernel, [1, 1], [0, 0], [0, 0], [1, 1]).output(0)
        result.get_node().set_friendly_name(product.get_friendly_name())
        old, result = _with_followers(product.output(0), result, computed)
        back = opset.squeeze(opset.transpose(result, np.array([0, 2, 3, 1])), np.array([1])).output(0)
        _replace(old, back)
        images[back] = result
        computed.add(back.get_node().get_name())
    model.validate_nodes_and_infer_types()


def _products(model: ov.Model) -> Iterator[Any]:
    return (operator for operator in model.get_ordered_ops() if operator.get_type_name() == "MatMul")


def _computed(model: ov.Model) -> set[str]:
    """Names of the operators that depend on an input of the model; others depend on weights alone."""
    computed: set[str] = set()
    for operator in model.get_ordered_ops():
        sources = (value.get_node().get_name() for value in operator.input_values())
        if operator.get_type_name() == "Parameter" or not computed.isdisjoint(sources):
            computed.add(operator.get_name())
    return computed


def _is_computed(value: ov.Output, computed: set[str]) -> bool:
    return value.get_node().get_name() in computed


def _image_of_chain(tokens: ov.Output, images: Mapping[ov.Output, ov.Output], computed: set[str]) -> ov.Output | None:
    """Move the elementwise operators between an earlier convolution and `tokens` to the convolution's image.

    Returns:
        `tokens` as an image; None if anything else is in between.
    """
    chain = []
    value = tokens
    while value not in images:
        operator = value.get_node()
        others = [other for other in operator.input_values() if not _is_computed(other, computed)]
        scalars = all(other.get_partial_shape().is_static and _size(other) == 1 for other in others)
        if operator.get_type_name() not in _ELEMENTWISE or not scalars or not _used_once(operator):
            return None
        if len(others) != operator.get_input_size() - 1:
            return None
        chain.append(operator)
        value = next(source for source in operator.input_values() if _is_computed(source, computed))
    if not chain or len(value.get_target_inputs()) != 1:
        return None
    (user,) = value.get_target_inputs()
    user.replace_source_output(images[value])
    for operator in reversed(chain):
        operator.validate_and_infer_types()
    return tokens


def _with_followers(old: ov.Output, new: ov.Output, computed: set[str]) -> tuple[ov.Output, ov.Output]:
    """Repeat the operators after a product (N, L, C) on a convolution (N, C, 1, L), as long as each is the only user.

    Returns:
        The last repeated result, in both layouts.
    """
    while len(users := list(old.get_target_inputs())) == 1:
        operator = users[0].get_node()
        if operator.get_type_name() not in _AFTER_PRODUCT:
            break
        if operator.get_type_name() == "Gelu":
            repeated = opset.gelu(new, operator.get_attributes()["approximation_mode"].lower())
        else:
            other = operator.input_value(1 - users[0].get_index())
            if _is_computed(other, computed) or other.get_partial_shape().rank.get_length() > 1:
                break
            function = opset.add if operator.get_type_name() == "Add" else opset.multiply
            repeated = function(new, opset.reshape(other, np.array([1, -1, 1, 1]), special_zero=False))
        repeated.set_friendly_name(operator.get_friendly_name())
        old, new = operator.output(0), repeated.output(0)
    return old, new


def _used_once(operator: Any) -> bool:
    return len(operator.output(0).get_target_inputs()) == 1


def _size(value: ov.Output) -> int:
    return int(np.prod(value.get_shape()))


def _replace(old: ov.Output, new: ov.Output) -> None:
    """Let the users of `old` take `new`, which takes its names."""
    for user in old.get_target_inputs():
        user.replace_source_output(new)
    names = old.get_names()
    old.set_names(set())
    new.set_names(names)
