"""The classes of TensorRT, and the functions of cuda-python, have every attribute that the code asks of them."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import pytest
from bindings import ask, bindings
from bundles import tiny_model, write_checkpoint_of
from fake_cuda import FakeCuda
from typed_bindings import drive, not_driven

from vitdeploy.bundle.bundle import Bundle

MAJORS = (10, 11)
# Asked of the builder where a library measures kernels; TensorRT-RTX does not.
MEASURING = ["create_timing_cache", "get_timing_cache", "hardware_compatibility_level", "set_timing_cache"]


def test_objects_of_tensorrt_rtx_have_every_attribute(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this platform")
    driven = drive(trt, "tensorrt-rtx", tmp_path)
    assert {"IRuntimeConfig.cuda_graph_strategy", "IRuntimeCache.serialize", "Runtime.engine_header_size"} < driven.used
    assert not_driven(driven) == MEASURING


@pytest.mark.parametrize("major", MAJORS)
def test_objects_of_tensorrt_have_every_attribute(major: int) -> None:
    answer = ask(bindings(major), major, "drive", **os.environ)
    assert answer.returncode == 0, answer.stderr
    version, used, missed = json.loads(answer.stdout)
    assert version.startswith(f"{major}.")
    assert {"IExecutionContext.execute_async_v3", "ICudaEngine.device_memory_size_v2", "ITimingCache.serialize"} < set(
        used
    )
    assert missed == ["type"]  # of a layer, where it is one that TensorRT-RTX may have no kernel for


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
    assert answer.stderr.startswith("Error: tensorrt found no NVIDIA GPU")
    assert "export --to tensorrt-rtx, which builds without a GPU" in answer.stderr
    assert f"{tmp_path / 'out'} has the ONNX artifact in fp16" in answer.stderr
    assert [artifact.name for artifact in Bundle.open(tmp_path / "out").manifest.artifacts] == ["onnx-fp16"]
    refused = ask(
        bindings(major), major, "vitdeploy", *map(str, arguments), "--compute-capability", "8.9", **os.environ
    )
    assert refused.returncode == 2
    assert "no option --compute-capability, got ('8.9',); leave it out" in refused.stderr


def test_cuda_python_has_every_function_of_the_fake() -> None:
    """The tests run on `FakeCuda` alone: a function that it does not have is not called."""
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
    cuda = importlib.import_module("cuda.bindings.runtime")
    names = [name for name in dir(FakeCuda) if name.startswith("cuda")]
    assert "cudaGraphLaunch" in names
    for name in names:
        real, fake = getattr(cuda, name), getattr(FakeCuda, name)
        assert all(hasattr(real, member) for member in getattr(fake, "__dict__", ()) if member.startswith("cuda")), name
