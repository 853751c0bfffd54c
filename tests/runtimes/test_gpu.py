"""Backends on a GPU agree with the reference on the CPU; `make gpu-check` runs these where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

import vitdeploy
from engine_machines import why_not
from vitdeploy.assess.compare import run_batches
from vitdeploy.assess.difference import DEFAULT_TOLERANCES, compare_outputs
from vitdeploy.runtimes import open_runtime

if TYPE_CHECKING:
    from pathlib import Path

    from vitdeploy.bundle import Bundle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]

# Of the output's scale. float32: cuDNN's convolution uses TF32 by default, which keeps 11 bits of each factor, as fp16
# does; bf16 keeps 8.
TOLERANCES = {"fp32": 2e-3, "fp16": 1e-2, "bf16": 5e-2}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return vitdeploy.export(random_weights="vit-tiny-patch16-224", output=tmp_path_factory.mktemp("gpu") / "out")


@pytest.fixture(scope="module")
def pixel_values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((10, 3, 224, 224), np.float32)


@pytest.fixture(scope="module")
def expected(bundle: Bundle, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
    with open_runtime(bundle, "torch") as runtime:
        return runtime.run({"pixel_values": pixel_values})


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_torch_on_cuda(
    bundle: Bundle, pixel_values: np.ndarray, expected: dict[str, np.ndarray], precision: str, attention: str
) -> None:
    with open_runtime(bundle, "torch", precision=precision, device="cuda", attention=attention) as runtime:
        assert runtime.details["device"].startswith("cuda")
        found = run_batches(runtime, [{"pixel_values": part} for part in np.split(pixel_values, [1, 3])])
    for difference in compare_outputs(expected, found):
        assert difference.within(TOLERANCES[precision]), difference


@pytest.mark.parametrize("optimized_execution", [False, True])
@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_torchscript_on_cuda(
    bundle: Bundle,
    pixel_values: np.ndarray,
    expected: dict[str, np.ndarray],
    precision: str,
    optimized_execution: bool,
) -> None:
    weights: dict[str, Any] = {"random_weights": "vit-tiny-patch16-224", "output": bundle.path}
    both = vitdeploy.export(to="torchscript", precision=precision, **weights)
    options: dict[str, Any] = {"optimized_execution": optimized_execution}
    with open_runtime(both, "torchscript", precision=precision, device="cuda", **options) as runtime:
        assert runtime.details["device"].startswith("cuda")
        parts = [{"pixel_values": part} for part in np.split(pixel_values, [1, 3])]
        for _ in range(3):  # the code is specialised after a few runs
            found = run_batches(runtime, parts)
    for difference in compare_outputs(expected, found):
        assert difference.within(TOLERANCES[precision]), difference


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(), reason="this onnxruntime was built without CUDA"
)
@pytest.mark.parametrize("io_binding", [True, False])
def test_onnxruntime_on_cuda(
    bundle: Bundle, pixel_values: np.ndarray, expected: dict[str, np.ndarray], io_binding: bool
) -> None:
    # use_tf32 is on by default in ONNX Runtime, and keeps 11 bits.
    options = {"CUDAExecutionProvider": {"use_tf32": "0"}}
    with open_runtime(bundle, "onnxruntime", device="cuda", io_binding=io_binding, provider_options=options) as runtime:
        assert runtime.details["providers"] == ["CUDAExecutionProvider"]
        found = run_batches(runtime, [{"pixel_values": part} for part in np.split(pixel_values, [1, 3])])
    for difference in compare_outputs(expected, found):
        assert difference.within(DEFAULT_TOLERANCES["fp32"]), difference


@pytest.mark.skipif(why_not("onnxruntime-tensorrt") is not None, reason=str(why_not("onnxruntime-tensorrt")))
def test_onnxruntime_on_tensorrt(
    bundle: Bundle, pixel_values: np.ndarray, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """TensorRT rounds products of float32 to 11 bits unless told otherwise, which its provider cannot be."""
    kept = []
    for _ in range(2):
        with open_runtime(bundle, "onnxruntime-tensorrt", batch="1:2:8", engine_cache=tmp_path) as runtime:
            assert runtime.details["providers"] == ["TensorrtExecutionProvider"]
            found = run_batches(runtime, [{"pixel_values": part} for part in np.split(pixel_values, [1, 3])])
        for difference in compare_outputs(expected, found):
            assert difference.within(TOLERANCES["fp32"]), difference
        kept.append({path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.engine")})
    assert kept[0]
    assert kept[0] == kept[1], "the second session takes the engine of the first"
