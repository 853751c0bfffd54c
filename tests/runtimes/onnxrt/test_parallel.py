"""Images of a batch in runs of their own: the same results, in as many threads as asked for."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import make_feeds, tiny_model
from raising import raises

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import DeviceError, UsageError
from vitdeploy.runtimes import open_runtime
from vitdeploy.runtimes.onnxrt.options import OnnxRuntimeOptions
from vitdeploy.runtimes.onnxrt.parallel import ParallelRuns
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.runtimes.onnxrt.session import CUDA
from vitdeploy.system.cpu import session_threads


@pytest.mark.parametrize("io_binding", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_each_image_has_the_result_of_a_batch_of_one(bundle: Bundle, batch_size: int, io_binding: bool) -> None:
    arrays = make_feeds(tiny_model(), batch_size)
    results = {name: np.full((batch_size, 3), np.nan, np.float32) for name in ("logits",)}
    with (
        open_runtime(bundle, "onnxruntime", {"intra_op_threads": 1}) as plain,
        open_runtime(bundle, "onnxruntime", {"parallel_runs": 2, "io_binding": io_binding}) as parallel,
    ):
        singly = [plain.run({"pixel_values": image[None]})["logits"] for image in arrays["pixel_values"]]
        found = parallel.run(arrays)["logits"]
        parallel.run_device(arrays, results)
    assert found.flags.writeable
    np.testing.assert_array_equal(found, np.concatenate(singly))
    np.testing.assert_array_equal(results["logits"], found)


@pytest.mark.parametrize("asked", [0, 3])
def test_the_details(model_file: Path, asked: int) -> None:
    with OnnxRuntime(model_file, OnnxRuntimeOptions(parallel_runs=asked)) as runtime:
        expected = asked or session_threads().count
        assert runtime.details["parallel_runs"] == expected
        assert runtime.details["intra_op_threads"] == 1
        assert runtime.threads is not None
        assert runtime.threads.count == expected
    with OnnxRuntime(model_file) as runtime:
        assert runtime.details["parallel_runs"] == 1


def test_callers_share_the_threads(model_file: Path) -> None:
    before = threading.active_count()
    arrays = make_feeds(tiny_model(), 6)
    with OnnxRuntime(model_file, OnnxRuntimeOptions(parallel_runs=2)) as runtime, ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda _: runtime.run(arrays)["logits"], range(8)))
        assert sum(thread.name.startswith("vitdeploy-run") for thread in threading.enumerate()) == 2
    assert threading.active_count() == before
    for logits in found:
        np.testing.assert_array_equal(logits, found[0])


def test_an_error_comes_after_the_runs_in_progress() -> None:
    started, finished = threading.Barrier(2), []

    def run(part: int) -> None:
        if part < 2:
            started.wait(10)
        if part == 0:
            raise DeviceError("no memory", what="memory")
        finished.append(part)

    runs = ParallelRuns(2)
    with raises(DeviceError, what="memory"):
        runs.map(run, range(100))
    count = len(finished)
    assert 1 in finished
    runs.close()
    assert len(finished) == count


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_lacks_the_threads(model_file: Path) -> None:
    with OnnxRuntime(model_file, OnnxRuntimeOptions(parallel_runs=2)) as runtime:
        assert "parallel" in str(runtime._lost_in_fork())


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"providers": (CUDA,)}, "parallel_runs"),
        ({"intra_op_threads": 2}, "intra_op_threads"),
        ({"inter_op_threads": 2}, "inter_op_threads"),
    ],
)
def test_options_that_exclude_each_other(model_file: Path, options: dict[str, Any], what: str) -> None:
    with raises(UsageError, what=what):
        OnnxRuntime(model_file, OnnxRuntimeOptions(parallel_runs=2, **options))


@pytest.mark.parametrize("shapes", [((2, 2), (2, 2)), (("batch", 2), ("rows", 2))])
def test_a_graph_without_a_batch_axis(tmp_path: Path, shapes: tuple[tuple[Any, ...], tuple[Any, ...]]) -> None:
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "graph",
        [onnx.helper.make_tensor_value_info("x", float32, shapes[0])],
        [onnx.helper.make_tensor_value_info("y", float32, shapes[1])],
    )
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)]), path)
    with raises(UsageError, what="parallel_runs", expected="batch"):
        OnnxRuntime(path, OnnxRuntimeOptions(parallel_runs=2))
