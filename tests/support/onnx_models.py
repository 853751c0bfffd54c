"""Small ONNX models in mixed precision, made by hand, and bundles that hold one."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
from bundles import sign_again
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import FileRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

HALF, BRAIN, SINGLE = TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT
WIDTH = 8


def weight(name: str, dtype: int, dims: Sequence[int], seed: int = 0) -> TensorProto:
    bits = np.random.default_rng(seed).integers(0, 127, int(np.prod(dims)) * (4 if dtype == SINGLE else 2), np.uint8)
    return helper.make_tensor(name, dtype, dims, bits.tobytes(), raw=True)


def mixed_model(layer_types: Sequence[int]) -> onnx.ModelProto:
    """A norm, a product with bias in the type given, and a sum for each layer; float32 embeddings and a float16 head.

    As an exporter leaves them: values of layer 0 have names of their own, and so has the weight of its product, which
    was folded; conversions have names that tell nothing; the tail of the last layer is the sum alone. Every product
    has the same weight.
    """
    make = helper.make_node
    nodes = [
        make("MatMul", ["pixel_values", "embeddings.weight"], ["linear"]),
        make("Shape", ["linear"], ["size"]),
    ]
    weights = [weight("embeddings.weight", SINGLE, (WIDTH, WIDTH), 1), weight("head.weight", HALF, (WIDTH, 3), 2)]
    x = "linear"
    for layer, dtype in enumerate(layer_types):
        name = f"model.layers.{layer}." if layer else ""
        product = f"layers.{layer}.val" if layer else "val"
        norm, bias = f"layers.{layer}.norm.weight", f"layers.{layer}.bias"
        weights += [weight(norm, SINGLE, (WIDTH,), 3 + layer), weight(bias, dtype, (WIDTH,), 3 + layer)]
        weights += [weight(product, dtype, (WIDTH, WIDTH))]
        nodes += [
            make("LayerNormalization", [x, norm], [f"{name}norm"]),
            make("Cast", [f"{name}norm"], [f"cast_{layer}"], to=dtype),
            make("MatMul", [f"cast_{layer}", product], [f"{name}product"]),
            make("Add", [f"{name}product", bias], [f"{name}biased"]),
            make("Cast", [f"{name}biased"], [f"back_{layer}"], to=SINGLE),
            make("Add", [f"back_{layer}", x], [f"hidden_{layer + 1}"]),
        ]
        x = f"hidden_{layer + 1}"
    nodes += [
        make("Cast", [x], ["half"], to=HALF),
        make("MatMul", ["half", "head.weight"], ["product_of_head"]),
        make("Cast", ["product_of_head"], ["logits"], to=SINGLE),
    ]
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("pixel_values", SINGLE, ["batch", WIDTH])],
        [helper.make_tensor_value_info("logits", SINGLE, ["batch", 3])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def with_mixed_artifact(bundle: Bundle, target: Path) -> Bundle:
    """A copy of `bundle` that holds onnx-fp16 too."""
    copy = Bundle.open(shutil.copytree(bundle.path, target))
    path = "onnx/model_fp16.onnx"
    onnx.save(mixed_model([HALF, HALF]), target / path)
    (single,) = copy.manifest.artifacts
    half = dataclasses.replace(single, precision="fp16", files=(FileRecord.of(target, path),), options={"opset": 20})
    return sign_again(Bundle(target, dataclasses.replace(copy.manifest, artifacts=(half, single))))


def with_last_operator(
    bundle: Bundle, folder: Path, operator: str, operand: Callable[[tuple[int, ...]], np.ndarray]
) -> Bundle:
    """A copy of a bundle of one ONNX artifact, whose last node is followed by an operator with a constant operand.

    Its operand is a function of the first output's shape without the batch, which is fixed.
    """
    copied = Bundle.open(shutil.copytree(bundle.path, folder))
    (artifact,) = copied.manifest.artifacts
    path = copied.path / artifact.files[0].path
    model = onnx.load(path)
    last = model.graph.node[-1]
    name, last.output[0] = last.output[0], "plain"
    model.graph.initializer.append(
        numpy_helper.from_array(operand(tuple(map(int, artifact.outputs[0].shape[1:]))), "operand")
    )
    model.graph.node.append(helper.make_node(operator, ["plain", "operand"], [name]))
    onnx.save(model, path)
    return sign_again(copied)
