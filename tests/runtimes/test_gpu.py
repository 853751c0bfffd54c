"""Backends on a GPU agree with the reference on the CPU; `make gpu-check` runs these where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_machines import why_not

import vitdeploy
from vitdeploy import GraphOptions, SourceOptions
from vitdeploy.assess.metrics.outputs import DEFAULT_TOLERANCES, compare_outputs
from vitdeploy.assess.runs.reference import run_batches
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import DeviceError
from vitdeploy.runtimes import open_runtime
from vitdeploy.runtimes.base import Runtime
from vitdeploy.runtimes.onnxrt.runtime import _KEEPS_RECORD, OnnxRuntime
from vitdeploy.runtimes.onnxrt.session import CUDA, TENSORRT
from vitdeploy.trt.options import DEFAULT_BATCH

Arrays = dict[str, np.ndarray]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]

TOLERANCES = {precision: DEFAULT_TOLERANCES[precision] for precision in ("fp32", "fp16", "bf16")}
# ONNX Runtime's TensorRT provider rounds the factors of float32 to TF32's 11 bits, as fp16 does.
OF_TENSORRT = {**TOLERANCES, "fp32": 2e-3}
BATCHES = (1, 8, 32)  # the ends and the best of `DEFAULT_BATCH`
CUDA_PROBLEM = OnnxRuntime.probe().get(CUDA, "this onnxruntime was built without CUDA")
NEEDS_CUDA = pytest.mark.skipif(CUDA_PROBLEM is not None, reason=str(CUDA_PROBLEM))
MODEL = SourceOptions(random_weights="vit-tiny-patch16-224")


def noise(height: int, width: int) -> list[Arrays]:
    """A batch of each size."""
    draw = np.random.default_rng(0).standard_normal
    return [{"pixel_values": draw((size, 3, height, width), np.float32)} for size in BATCHES]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return vitdeploy.export(source=MODEL, output=tmp_path_factory.mktemp("gpu") / "out")


@pytest.fixture(scope="module")
def batches() -> list[Arrays]:
    return noise(224, 224)


@pytest.fixture(scope="module")
def expected(bundle: Bundle, batches: list[Arrays]) -> Arrays:
    with open_runtime(bundle, "torch") as runtime:
        return run_batches(runtime, batches)


def agree(expected: Arrays, found: Arrays, tolerance: float) -> None:
    for difference in compare_outputs(expected, found):
        assert difference.within(tolerance), difference


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_torch_on_cuda(bundle: Bundle, batches: list[Arrays], expected: Arrays, precision: str, attention: str) -> None:
    with open_runtime(bundle, "torch", {"attention": attention}, precision=precision, device="cuda") as runtime:
        assert runtime.details["device"].startswith("cuda")
        agree(expected, run_batches(runtime, batches), TOLERANCES[precision])


@pytest.mark.parametrize("optimized_execution", [False, True])
@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_torchscript_on_cuda(
    bundle: Bundle, batches: list[Arrays], expected: Arrays, precision: str, optimized_execution: bool
) -> None:
    both = vitdeploy.export(to="torchscript", precision=precision, source=MODEL, output=bundle.path)
    options: dict[str, Any] = {"optimized_execution": optimized_execution}
    with open_runtime(both, "torchscript", options, precision=precision, device="cuda") as runtime:
        assert runtime.details["device"].startswith("cuda")
        for _ in range(3):  # the code is specialised after a few runs
            outputs = run_batches(runtime, batches)
    agree(expected, outputs, TOLERANCES[precision])


def on_cuda(bundle: Bundle, opset: int, **options: Any) -> Runtime:
    """A session of the CUDA provider; the test is skipped where that has no Pad of this opset."""
    try:
        return open_runtime(bundle, "onnxruntime", options, device="cuda")
    except DeviceError as exc:
        if opset >= 19 and ("Pad" in str(exc) or not _KEEPS_RECORD):
            pytest.skip(str(exc))
        raise


@NEEDS_CUDA
@pytest.mark.parametrize("io_binding", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("opset", [18, 20])
def test_onnxruntime_on_cuda(
    batches: list[Arrays], expected: Arrays, opset: int, precision: str, io_binding: bool, tmp_path: Path
) -> None:
    made = vitdeploy.export(precision=precision, output=tmp_path / "out", graph=GraphOptions(opset=opset), source=MODEL)
    with on_cuda(made, opset, precision=precision, io_binding=io_binding) as runtime:
        assert runtime.details["providers"] == [CUDA]
        agree(expected, run_batches(runtime, batches), DEFAULT_TOLERANCES[precision])


@NEEDS_CUDA
@pytest.mark.skipif(not _KEEPS_RECORD, reason="this onnxruntime refuses shapes on the CPU, where its CUDA has them")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("opset", [18, 20])
def test_onnxruntime_on_cuda_takes_images_of_any_size(opset: int, precision: str, tmp_path: Path) -> None:
    graph = GraphOptions(dynamic_image_size=True, opset=opset)
    made = vitdeploy.export(precision=precision, output=tmp_path / "out", graph=graph, source=MODEL)
    with (
        open_runtime(made, "torch", {"dynamic_image_size": True}) as reference,
        on_cuda(made, opset, precision=precision) as runtime,
    ):
        for size in ((224, 224), (192, 256)):
            feeds = noise(*size)
            agree(run_batches(reference, feeds), run_batches(runtime, feeds), DEFAULT_TOLERANCES[precision])


@pytest.mark.skipif(why_not("onnxruntime-tensorrt") is not None, reason=str(why_not("onnxruntime-tensorrt")))
@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_onnxruntime_on_tensorrt(
    bundle: Bundle, batches: list[Arrays], expected: Arrays, precision: str, tmp_path: Path
) -> None:
    """At the smallest, the best and the largest batch; TensorRT rounds products of float32 to 11 bits."""
    assert (DEFAULT_BATCH.minimum, DEFAULT_BATCH.optimum, DEFAULT_BATCH.maximum) == BATCHES
    made = vitdeploy.export(source=MODEL, precision=precision, output=bundle.path)
    kept = []
    for _ in range(2):
        with open_runtime(made, "onnxruntime-tensorrt", {"engine_cache": tmp_path}, precision=precision) as runtime:
            assert runtime.details["providers"] == [TENSORRT]
            agree(expected, run_batches(runtime, batches), OF_TENSORRT[precision])
        kept.append({path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.engine")})
    assert kept[0]
    assert kept[0] == kept[1], "the second session takes the engine of the first"
