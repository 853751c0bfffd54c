"""Every name of TensorRT and of cuda-python that the code uses is one of the real bindings, in each version."""

from __future__ import annotations

import ast
import importlib
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from bindings import ask, bindings, missing
from bundles import tiny_model, write_checkpoint_of
from environments import ROOT

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.runtimes.engine.runtime import KERNEL_SPECIALIZATIONS
from vitdeploy.system.option_fields import options_in
from vitdeploy.trt.options import EngineOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAJORS = (10, 11)
SHARED = {
    "trt": "", "self.library": "", "cls.library": "", "builder": "Builder", "network": "INetworkDefinition",
    "config": "IBuilderConfig", "context": "IExecutionContext", "self._context": "IExecutionContext",
    "self._engine": "ICudaEngine", "engine": "ICudaEngine", "self._runtime": "Runtime",
}  # fmt: skip
# The file, and what stands for what in it beside `SHARED`.
FILES: dict[str, dict[str, str]] = {
    "vitdeploy/trt/library.py": {},
    "exporters/engine/build.py": {
        "parser": "OnnxParser", "error": "ParserError", "layer": "ILayer", "profile": "IOptimizationProfile",
        "cache": "ITimingCache",
    },
    "exporters/engine/capabilities.py": {},
    "exporters/engine/progress.py": {},
    "runtimes/engine/runtime.py": {"self._config": "IRuntimeConfig", "refitter": "Refitter"},
    "runtimes/engine/cache.py": {"config": "IRuntimeConfig", "self._cache": "IRuntimeCache"},
    "runtimes/engine/load.py": {
        "library": "", "runtime": "Runtime", "parser": "OnnxParserRefitter", "refitter": "Refitter",
    },
    "runtimes/engine/plan.py": {"context.engine": "ICudaEngine"},
}  # fmt: skip
# What TensorRT-RTX alone has, and is used only where it is found.
OF_RTX = {
    "ComputeCapability",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
    "DynamicShapesKernelSpecializationStrategy",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
    "DynamicShapesKernelSpecializationStrategy.LAZY",
    "DynamicShapesKernelSpecializationStrategy.NONE",
    "EngineInvalidityDiagnostics.UNSUPPORTED_CC",
    "EngineInvalidityDiagnostics.__members__",
    "EngineValidity.INVALID",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IRuntimeCache.deserialize",
    "IRuntimeCache.serialize",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.cuda_graph_strategy",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.set_runtime_cache",
    "Runtime.engine_header_size",
    "Runtime.get_engine_validity",
}


def chains(tree: ast.AST) -> Iterator[str]:
    """Every dotted name in the code, the longest of each."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner and is_plain(node):
            yield ast.unparse(node)


def is_plain(node: ast.expr) -> bool:
    """Whether it is names with dots between them; the first may be called."""
    if isinstance(node, ast.Attribute):
        return is_plain(node.value)
    first = node.func if isinstance(node, ast.Call) and not node.args else node
    return isinstance(first, ast.Name)


def names_of_tensorrt() -> list[str]:
    (levels,) = (
        option.choices for field, option in options_in(EngineOptions) if field.name == "hardware_compatibility"
    )
    found = {f"HardwareCompatibilityLevel.{level.upper()}" for level in levels}
    found |= {f"DynamicShapesKernelSpecializationStrategy.{name.upper()}" for name in KERNEL_SPECIALIZATIONS}
    for file, more in FILES.items():
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        roots = {**SHARED, **more}
        for chain in chains(tree):
            root = max((root for root in roots if chain.startswith(f"{root}.")), key=len, default=None)
            if root is not None:
                parts = chain.removeprefix(f"{root}.").split(".")
                found.add(".".join([roots[root], parts[0]] if roots[root] else parts[:2]))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        for call in calls:  # the flags of the table of capabilities
            if call.func.id in ("_flag", "_has_flag"):  # type: ignore[attr-defined]
                found.add(f"BuilderFlag.{ast.literal_eval(call.args[0])}")
    return sorted(found - {"__version__"})


def test_the_names_are_found_in_the_code() -> None:
    names = names_of_tensorrt()
    some = {
        "BuilderFlag.STRIP_PLAN", "IExecutionContext.execute_async_v3", "Builder.build_serialized_network",
        "IRuntimeConfig.set_execution_context_allocation_strategy", "ExecutionContextAllocationStrategy.USER_MANAGED",
        "IExecutionContext.set_device_memory", "ICudaEngine.device_memory_size_v2", "ICudaEngine.refittable",
        "Refitter.get_missing_weights", "OnnxParserRefitter.get_error",
    }  # fmt: skip
    assert set(names) >= OF_RTX | some
    assert len(names) > 60


def test_tensorrt_rtx_has_every_name() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this platform")
    assert missing(trt, names_of_tensorrt()) == []


@pytest.mark.parametrize("major", MAJORS)
def test_tensorrt_has_every_name_but_those_of_rtx(major: int) -> None:
    answer = ask(bindings(major), major, given=json.dumps(names_of_tensorrt()))
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["version"].startswith(f"{major}.")
    assert set(found["missing"]) == OF_RTX


@pytest.mark.parametrize("major", MAJORS)
def test_the_options_of_tensorrt(major: int) -> None:
    answer = ask(bindings(major), major, "options", **os.environ)
    assert json.loads(answer.stdout) == [
        "workspace_mib", "optimization_level", "tf32", "timing_cache", "version_compatible", "hardware_compatibility",
        "refit", "strip_weights",
    ]  # fmt: skip


@pytest.mark.parametrize("major", MAJORS)
def test_tensorrt_without_a_gpu_exits_with_3_and_keeps_the_artifact(tmp_path: Path, major: int) -> None:
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    arguments = ["export", "--model", checkpoint, "--to", "tensorrt", "--fp16", "-o", tmp_path / "out"]
    answer = ask(bindings(major), major, "vitdeploy", *map(str, arguments), **os.environ)
    assert (answer.returncode, answer.stdout, answer.stderr.count("\n")) == (3, "", 1), answer.stderr
    assert answer.stderr.startswith("Error: tensorrt needs an NVIDIA GPU and its driver to build an engine, finds none")
    assert "export --to tensorrt-rtx, which builds without a GPU" in answer.stderr
    assert f"{tmp_path / 'out'} has the ONNX artifact in fp16" in answer.stderr
    assert [artifact.name for artifact in Bundle.open(tmp_path / "out").manifest.artifacts] == ["onnx-fp16"]
    refused = ask(
        bindings(major), major, "vitdeploy", *map(str, arguments), "--compute-capability", "8.9", **os.environ
    )
    assert refused.returncode == 2
    assert "has no compute_capabilities, got ('8.9',); leave it out" in refused.stderr


def names_of_cuda() -> set[str]:
    found = set()
    for file in ("vitdeploy/trt/gpu.py", "runtimes/engine/cuda_memory.py"):
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        for chain in chains(tree):
            for root in ("cuda.", "self._cuda.", "cuda_runtime()."):
                if chain.startswith(root):
                    found.add(chain.removeprefix(root))
    return found


def test_cuda_python_has_every_name() -> None:
    names = names_of_cuda()
    assert {
        "cudaMemcpyAsync",
        "cudaGetDevice",
        "cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal",
        "cudaGraphLaunch",
    } <= names
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
    cuda: Any = importlib.import_module("cuda.bindings.runtime")
    assert missing(cuda, sorted(names)) == []
