"""Variants in half precision: each rounding is done, and only where it is due."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import graph_of

from vitdeploy.exporters.graph.variants import half_variants
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.specs import Precision

GRAPH = """agraph (float[N, 8] x) => (float[N, 8] y) <float[8, 8] w, float[8] shift> {
    product = MatMul(x, w)
    far = Add(product, shift)
    back = Sub(far, shift)
    y = Tanh(back)
}"""
WEIGHT = np.random.default_rng(0).standard_normal((8, 8), np.float32)
SHIFT = np.full(8, 1000, np.float32)
X = np.random.default_rng(1).standard_normal((64, 8), np.float32)
TYPES = {Precision.FP16: np.dtype(np.float16), Precision.BF16: np.dtype(ml_dtypes.bfloat16)}


def wanted(half: np.dtype[Any], kept: Collection[str]) -> np.ndarray:
    """The graph in numpy: each node rounds what it takes and gives, but those that are kept."""

    def rounded(node: str, value: np.ndarray) -> np.ndarray:
        return value if node in kept else value.astype(half).astype(np.float32)

    product = rounded("product", rounded("product", X) @ rounded("product", WEIGHT))
    far = rounded("far", rounded("far", product) + rounded("far", SHIFT))
    back = rounded("back", rounded("back", far) - rounded("back", SHIFT))
    return rounded("y", np.tanh(rounded("y", back)))


@pytest.mark.parametrize("precision", TYPES, ids=str)
@pytest.mark.parametrize("kept", [(), ("product",), ("far", "back"), ("product", "far", "back", "y"), ("far",)])
def test_every_node_rounds_but_those_that_are_kept(precision: Precision, kept: tuple[str, ...], tmp_path: Path) -> None:
    ir.save(graph_of(GRAPH, w=WEIGHT, shift=SHIFT), tmp_path / "model.onnx")
    variants = half_variants(tmp_path / "model.onnx", precision)
    assert variants.nodes == ("product", "far", "back", "y")
    for nodes in (variants.nodes, kept):  # the one before leaves nothing behind
        variants.write(nodes, tmp_path / "variant.onnx")
        with OnnxRuntime(tmp_path / "variant.onnx") as runtime:
            found = runtime.run({"x": X})["y"]
        want = wanted(TYPES[precision], nodes)
        # A sum in another order, or another tanh, may round the other way; a rounding left out would show in most.
        assert np.mean(np.isclose(found, want, rtol=1e-5, atol=1e-6)) >= 0.98
