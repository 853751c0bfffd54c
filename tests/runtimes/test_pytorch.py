"""The torch backend's own options."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from bundles import FLOAT32_TOLERANCE, make_feeds, reference, tiny_model, worst_difference, write_bundle
from raising import raises

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import DeviceError, UsageError
from vitdeploy.runtimes import open_runtime, torch_device
from vitdeploy.runtimes.pytorch import PyTorchRuntime, PyTorchRuntimeOptions
from vitdeploy.runtimes.torch_device import plain_convolutions
from vitdeploy.specs import Task
from vitdeploy.system.cpu import Cpus

# Of the output's scale. The unit roundoff of float16 is 4.9e-4 and of bfloat16 3.9e-3 (11 and 8 significant bits);
# two layers make some ten roundings of it in a row.
TOLERANCES = {"fp32": FLOAT32_TOLERANCE, "fp16": 1e-2, "bf16": 8e-2}
# What the number format must at least cost: below, something else ran.
AT_LEAST = {"fp32": 0.0, "fp16": 2e-5, "bf16": 2e-4}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_precisions_and_attentions(bundle: Bundle, precision: str, attention: str) -> None:
    model = tiny_model()
    arrays = make_feeds(model, 3)
    with open_runtime(bundle, "torch", {"attention": attention}, precision=precision) as runtime:
        outputs = runtime.run(arrays)
        assert runtime.details["precision"] == precision
        assert runtime.details["attention"] == attention
        assert outputs["logits"].dtype == np.float32
    difference = worst_difference(outputs, reference(model, arrays))
    assert AT_LEAST[precision] <= difference <= TOLERANCES[precision]


@pytest.mark.parametrize(
    ("cpus", "reason"),
    [
        (Cpus(8, 8, 8), "torch's setting for the process"),
        (Cpus(8, 8, 8, 3.0), "torch's setting for the process; cgroup quota of 3 CPUs, 8 physical cores"),
        (
            Cpus(8, 8, 8, 1.5),
            "torch's setting for the process, too many: call torch.set_num_threads(2); "
            "cgroup quota of 1.5 CPUs, 8 physical cores",
        ),
    ],
)
def test_the_threads_of_the_process_stay_and_are_told(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, cpus: Cpus, reason: str
) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("vitdeploy.runtimes.torch_device.usable_cpus", lambda: cpus)
    try:
        torch.set_num_threads(3)
        with open_runtime(bundle, "torch") as runtime:
            assert torch.get_num_threads() == 3
            assert (runtime.details["threads"], runtime.details["threads_reason"]) == (3, reason)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        with open_runtime(bundle, "torch") as runtime:
            assert runtime.details["threads_reason"].startswith("OMP_NUM_THREADS")
    finally:
        torch.set_num_threads(before)


def test_an_unknown_attention_is_a_usage_error(bundle: Bundle) -> None:
    with raises(UsageError, what="attention", found="flash"):
        open_runtime(bundle, "torch", {"attention": "flash"})


def test_int8_is_not_a_precision_of_torch(bundle: Bundle) -> None:
    with raises(UsageError, what="precision", expected=("fp32", "fp16", "bf16"), found="int8"):
        open_runtime(bundle, "torch", precision="int8")


def test_compile_captures_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code generator takes half a minute and a compiler, so that only what captures the model runs here."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    model = tiny_model(Task.MASKED_IMAGE_MODELING)
    with PyTorchRuntime(model, PyTorchRuntimeOptions(compile=True)) as runtime:
        assert runtime.details["compile"] is True
        for count, batch_size in enumerate((2, 3, 5, 1)):
            arrays = make_feeds(model, batch_size)
            assert worst_difference(runtime.run(arrays), reference(model, arrays)) <= FLOAT32_TOLERANCE
            assert len(graphs) <= count + 1, "one graph a run at most: it does not break"
    assert 1 <= len(graphs) <= 3, "the second size makes a graph for all but a batch of one"


def test_an_engine_failure_is_a_device_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    with PyTorchRuntime(model) as runtime:

        def fail(**tensors: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

        monkeypatch.setattr(runtime, "_model", fail)
        with raises(DeviceError, what="torch", found="CUDA out of memory."):
            runtime.run(make_feeds(model, 1))


def test_an_output_that_is_a_slice_of_a_larger_tensor_keeps_only_itself() -> None:
    model = tiny_model(labels=())
    with PyTorchRuntime(model) as runtime:
        logits = runtime.run(make_feeds(model, 3))["logits"]
    assert logits.shape == (3, 24)
    assert logits.flags.c_contiguous


def test_convolutions_are_not_rounded_while_something_runs_and_the_setting_is_put_back() -> None:
    cudnn: Any = torch.backends.cudnn
    assert cudnn.allow_tf32 is True
    with plain_convolutions:
        assert cudnn.allow_tf32 is False
        with ThreadPoolExecutor(1) as pool:
            pool.submit(plain_convolutions.__enter__).result()
    assert cudnn.allow_tf32 is False, "another thread is still at it"
    plain_convolutions.__exit__()
    assert cudnn.allow_tf32 is True
    if hasattr(cudnn, "conv"):  # as who uses the settings that torch has had since 2.9
        cudnn.rnn.fp32_precision = "ieee"
        try:
            with plain_convolutions:
                assert cudnn.conv.fp32_precision == "ieee"
            assert cudnn.conv.fp32_precision == "tf32"
        finally:
            cudnn.allow_tf32 = True


def test_only_a_cpu_has_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    with PyTorchRuntime(tiny_model()) as runtime:
        assert runtime.threads is not None
        assert "threads" in runtime.details
    monkeypatch.setattr(torch_device, "open_device", lambda _: torch.device("meta"))  # for want of a GPU
    with PyTorchRuntime(tiny_model()) as runtime:
        assert runtime.threads is None
        assert not {"threads", "threads_reason"} & runtime.details.keys()
