"""Answers to the questions for a GPU, on fakes of CUDA, the engine libraries and ONNX Runtime."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeContext, FakeCuda
from fake_engines import INPUTS, OUTPUTS, opener, patched_cuda
from gpu import answers as gpu_answers
from gpu import questions as gpu_questions
from gpu.answers import device_memory, graph_answers, kernel_cache, loads_weights, takes_pad
from stub_runtime import StubRuntime

from vitdeploy.errors import CheckFailedError, DeviceError, OtherHardwareError
from vitdeploy.runtimes.engine.runtime import EngineRuntime

BATCHES = (1, 4, 8)
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    with patched_cuda(monkeypatch) as fake:
        yield fake


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def engine(request: pytest.FixtureRequest, cuda: FakeCuda, tmp_path: Path) -> Iterator[EngineRuntime]:
    with opener(cuda, tmp_path, request.param)() as runtime:
        yield runtime


class Sums(StubRuntime):
    """The model of the fake engine with other weights; `stale` gives the first run's answer again."""

    def __init__(self, weight: float = 1.0, *, stale: bool = False) -> None:
        super().__init__()
        self.inputs, self.outputs = INPUTS, OUTPUTS
        self._weight, self._stale = weight, stale
        self._first: dict[str, np.ndarray] | None = None

    def _run(self, feeds: Any) -> dict[str, np.ndarray]:
        answer = {"y": self._weight * feeds["x"].sum(1)}
        self._first = self._first or answer
        return self._first if self._stale else answer


def test_each_shape_has_the_memory_that_the_library_states(engine: EngineRuntime) -> None:
    answer = device_memory(engine, Sums(), "fp16", BATCHES)
    assert answer.yes is True
    assert "1000, 4000, 8000" in answer.reason


@pytest.mark.parametrize(
    "stated",
    [lambda _: 0, lambda rows: 9000 - 1000 * rows, lambda rows: 2000 * rows],
    ids=["none", "less for more", "more than for the largest"],
)
def test_memory_that_contradicts_the_documentation(
    engine: EngineRuntime, monkeypatch: pytest.MonkeyPatch, stated: Callable[[int], int]
) -> None:
    monkeypatch.setattr(FakeContext, "update_device_memory_size_for_shapes", lambda self: stated(self.shape[0]))
    assert device_memory(engine, Sums(), "fp16", BATCHES).yes is False


def test_memory_that_is_not_that_of_the_shapes(engine: EngineRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_memory(engine, Sums(2.0), "fp16", BATCHES).yes is False, "it computes something else"
    monkeypatch.setattr(FakeContext, "update_device_memory_size_for_shapes", lambda _: 8000)
    assert device_memory(engine, Sums(), "fp16", BATCHES).yes is None


def test_an_engine_that_fails_with_the_stated_memory(engine: EngineRuntime) -> None:
    engine.library.engine.fails = True
    assert device_memory(engine, Sums(), "fp16", BATCHES).yes is False


def test_an_engine_without_memory_of_its_own_tells_nothing(engine: EngineRuntime) -> None:
    engine.library.engine.device_memory_size_v2 = 0
    assert device_memory(engine, Sums(), "fp16", BATCHES).yes is None


def test_a_replayed_graph_answers_its_own_input(engine: EngineRuntime) -> None:
    assert graph_answers(engine, Sums(), "fp16").yes is True


def test_a_replayed_graph_that_gives_the_recorded_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert graph_answers(Sums(stale=True), Sums(), "fp16").yes is False
    assert graph_answers(Sums(), Sums(stale=True), "fp16").yes is None, "the reference cannot tell the inputs apart"


def test_weights_of_another_model(engine: EngineRuntime, tmp_path: Path) -> None:
    file = tmp_path / "weights.onnx"
    file.write_text("2.0", encoding="utf-8")
    engine._takes_weights = True
    assert loads_weights(engine, file, Sums(2.0)).yes is True
    assert loads_weights(engine, file, Sums(2.0)).yes is None, "it has them already"
    file.write_text("3.0", encoding="utf-8")
    assert loads_weights(engine, file, Sums(4.0)).yes is False
    file.write_text("wrong", encoding="utf-8")
    assert loads_weights(engine, file, Sums(4.0)).yes is False


def test_an_engine_that_takes_no_weights(engine: EngineRuntime, tmp_path: Path) -> None:
    (tmp_path / "weights.onnx").write_text("2.0", encoding="utf-8")
    assert loads_weights(engine, tmp_path / "weights.onnx", Sums(2.0)).yes is False


@pytest.mark.parametrize(
    ("read_s", "writes", "yes"), [(0.5, True, True), (0.95, True, False), (0.5, False, False)],
    ids=["sooner", "not sooner", "no file"],
)  # fmt: skip
def test_a_file_of_compiled_kernels(tmp_path: Path, read_s: float, writes: bool, yes: bool) -> None:
    now = [0.0]

    def open_with(cache: Path | bool) -> Sums:
        reads = isinstance(cache, Path) and cache.exists()
        now[0] += read_s if reads else 1.0
        if isinstance(cache, Path) and writes:
            cache.write_bytes(b"kernels")
        return Sums()

    answer = kernel_cache(open_with, tmp_path, clock=lambda: now[0])
    assert answer.yes is yes


def session(*places: tuple[str, str]) -> Any:
    """A runtime of ONNX Runtime whose nodes, (operator, provider), are assigned."""
    parts = [
        types.SimpleNamespace(
            ep_name=place, get_nodes=lambda operator=operator: [types.SimpleNamespace(op_type=operator)]
        )
        for operator, place in places
    ]
    runtime = Sums()
    runtime._session = types.SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)  # type: ignore[attr-defined]
    runtime.details = {"engine": "onnxruntime 1.0"}
    return runtime


@pytest.mark.parametrize(
    ("places", "yes"),
    [
        ([("Pad", CUDA), ("Pad", CUDA), ("Shape", CPU)], True),
        ([("Pad", CUDA), ("Pad", CPU)], False),
        ([("Shape", CPU)], None),
    ],
)
def test_where_the_pads_are(places: list[tuple[str, str]], yes: bool | None) -> None:
    assert takes_pad(lambda: session(*places), 2).yes is yes
    assert takes_pad(lambda: session(*places), 0).yes is None


@pytest.mark.parametrize(("left", "yes"), [(["Pad 'a'", "Mul 'b'"], False), (["Mul 'b'"], None), (None, None)])
def test_a_session_that_does_not_open(left: list[str] | None, yes: bool | None) -> None:
    def refuse() -> Any:
        raise DeviceError("nodes are left to the CPU", what="providers", found=left)

    assert takes_pad(refuse, 2).yes is yes


@pytest.mark.parametrize(
    ("weight", "error", "yes"),
    [(1.0, None, True), (1.5, None, False), (1.0, OtherHardwareError("built for others"), False)],
)
def test_an_artifact_that_runs(
    monkeypatch: pytest.MonkeyPatch, weight: float, error: DeviceError | None, yes: bool
) -> None:
    def opened(_bundle: object, backend: str, **_options: str) -> Sums:
        if backend == "torch":
            return Sums()
        if error is not None:
            raise error
        runtime = Sums(weight)
        runtime.details = {"device": "cuda:0 Fake GPU"}
        return runtime

    monkeypatch.setattr(gpu_answers, "open_runtime", opened)
    bundle: Any = None
    assert gpu_answers.runs(bundle, "tensorrt-rtx", "fp16").yes is yes


def test_an_export_that_fails_answers_for_an_engine_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> Any:
        raise CheckFailedError("differs from the reference")

    for name in ("check_backend", "load_library", "find_gpu"):
        monkeypatch.setattr(gpu_questions, name, lambda *_: None)
    pad, engine = "Does ONNX Runtime's CUDA provider run the Pad of opset 20?", gpu_questions.ON_ENGINES[0]
    for text in (pad, engine):
        monkeypatch.setitem(gpu_questions.QUESTIONS, text, fail)
    assert next(iter(gpu_questions.answered(engine, tmp_path)))["answer"] == "no"
    with pytest.raises(CheckFailedError):
        next(iter(gpu_questions.answered(pad, tmp_path)))
