"""Engines on a GPU agree with the reference at the ends of their profiles; `make gpu-check` runs these."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_machines import gpu_marks
from raising import raises

import vitdeploy
from vitdeploy import Calibration, EngineOptions, GraphOptions, Quantization, SourceOptions
from vitdeploy.assess.metrics.outputs import DEFAULT_TOLERANCES, compare_outputs
from vitdeploy.assets import held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import CheckFailedError, DeviceError, OtherHardwareError, UsageError
from vitdeploy.exporting.engine_validation import is_pending
from vitdeploy.runtimes import open_runtime
from vitdeploy.runtimes.engine.options import KERNEL_SPECIALIZATIONS
from vitdeploy.runtimes.engine.runtime import EngineRuntime
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.specs import AxisRange

Build = Callable[[str, str], Bundle]

ENGINES = [pytest.param(name, marks=gpu_marks(name)) for name in ("tensorrt", "tensorrt-rtx")]
BATCH = (AxisRange(1, 1, 1), AxisRange(1, 4, 8))
QUANTIZED = ("int8", "fp8")
NOT_EVERYWHERE = ("bf16", *QUANTIZED)  # what a GPU, or a library, may be without
REFUSED = ("must build the engine", "must take every node", "must have a kernel for every node")
IMAGES = Quantization(Calibration(held_out_images(), count=8))
BOUNDS = ((64, 96), (96, 96), (128, 160))
SHAPES = [(1, 64, 96), (4, 96, 96), (8, 128, 160), (3, 80, 112)]  # the smallest, the best, the largest, and one between
RANDOM = SourceOptions(random_weights="vit-tiny-patch16-224")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A function that gives a bundle with the engine of a backend in a precision, built once.

    The test is skipped, with what is said, where this GPU or library does not take the precision. That an engine
    differs from the reference, or fails as it runs, is a failure.
    """

    @functools.cache
    def built(backend: str, precision: str) -> Bundle:
        output = tmp_path_factory.mktemp("gpu") / "out"
        options = EngineOptions(batch=BATCH)
        try:
            bundle = vitdeploy.export(
                to=backend,
                precision=precision,
                output=output,
                engine=options,
                graph=GraphOptions(image_size=BOUNDS),
                quantization=IMAGES if precision in QUANTIZED else None,
                source=RANDOM,
            )
            if is_pending(bundle.artifact(backend, precision)):
                open_runtime(bundle, backend, precision=precision).close()
        except CheckFailedError as exc:
            if precision not in NOT_EVERYWHERE or not any(text in str(exc) for text in REFUSED):
                raise
            pytest.skip(str(exc))
        except OtherHardwareError as exc:
            if precision not in NOT_EVERYWHERE:
                raise
            pytest.skip(str(exc))
        return bundle

    return built


def pixel_values(batch: int, height: int, width: int) -> dict[str, np.ndarray]:
    return {"pixel_values": np.random.default_rng(batch).standard_normal((batch, 3, height, width), np.float32)}


def assert_near(
    expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], tolerance: float, what: object = ""
) -> None:
    for difference in compare_outputs(dict(expected), dict(found)):
        assert difference.within(tolerance), (what, difference)


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("precision", DEFAULT_TOLERANCES)
@pytest.mark.parametrize("backend", ENGINES)
def test_an_engine_agrees_with_the_reference(build: Build, backend: str, precision: str, graphs: bool) -> None:
    made = build(backend, precision)
    validation = made.artifact(backend, precision).validation
    assert validation["outputs"]
    assert validation["device"].startswith("cuda:0 ")
    with (
        # Noise reaches beyond what 8 bits were calibrated on: how far from the model is the artifact's matter.
        open_runtime(made, *(("onnxruntime", precision) if precision in QUANTIZED else ("torch",))) as reference,
        open_runtime(made, backend, {"cuda_graphs": graphs}, precision=precision) as runtime,
    ):
        for shape in (*SHAPES, *SHAPES, *SHAPES):  # run, recorded and replayed
            feeds = pixel_values(*shape)
            assert_near(reference.run(feeds), runtime.run(feeds), DEFAULT_TOLERANCES[precision], shape)


@pytest.mark.parametrize("backend", ENGINES)
def test_tensors_on_the_gpu_give_what_arrays_give(build: Build, backend: str) -> None:
    with open_runtime(build(backend, "fp16"), backend, precision="fp16") as runtime:
        assert isinstance(runtime, EngineRuntime)
        for shape in (*SHAPES, *SHAPES, *SHAPES):
            feeds = pixel_values(*shape)
            expected = runtime.run(feeds)
            tensors = {name: torch.from_numpy(array).cuda() for name, array in feeds.items()}
            results = {name: torch.from_numpy(array).cuda().zero_() for name, array in expected.items()}
            runtime.run_device(tensors, results)
            found = {name: results[name].cpu().numpy() for name in expected}
            assert_near(expected, found, DEFAULT_TOLERANCES["fp16"], shape)  # the library may choose other kernels


@pytest.mark.parametrize("backend", ENGINES)
def test_threads_get_what_one_gets(build: Build, backend: str) -> None:
    calls = [pixel_values(*SHAPES[index % len(SHAPES)]) for index in range(32)]
    with open_runtime(build(backend, "fp16"), backend, precision="fp16") as runtime:
        alone = [runtime.run(feeds) for feeds in calls]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(runtime.run, calls))
    for one, other in zip(alone, together, strict=True):
        assert_near(one, other, DEFAULT_TOLERANCES["fp16"])


@pytest.mark.parametrize("backend", ENGINES)
def test_the_callers_device_stays_current(build: Build, backend: str) -> None:
    last = torch.cuda.device_count() - 1
    if last == 0:
        pytest.skip("this machine has one GPU, and no other that could be left current")
    torch.cuda.set_device(0)
    with open_runtime(build(backend, "fp16"), backend, precision="fp16", device=f"cuda:{last}") as runtime:
        runtime.run(pixel_values(*SHAPES[0]))
        assert torch.cuda.current_device() == 0
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("backend", ENGINES)
def test_an_engine_of_another_gpu_is_refused(build: Build, backend: str) -> None:
    made = build(backend, "fp16")
    path = made.path / "manifest.json"
    before = path.read_text(encoding="utf-8")
    manifest = json.loads(before)
    for artifact in manifest["artifacts"]:
        if artifact["hardware"]:
            other = {"platform": artifact["hardware"]["platform"], "compute_capabilities": ["1.0"]}
            artifact["hardware"] = other
    try:
        path.write_text(json.dumps(manifest), encoding="utf-8")
        with raises(OtherHardwareError, what="hardware", expected=other):
            open_runtime(Bundle.open(made.path), backend, precision="fp16")
    finally:
        path.write_text(before, encoding="utf-8")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("backend", ENGINES)
def test_an_engine_is_given_the_weights_of_another_model(tmp_path: Path, backend: str, precision: str) -> None:
    options = EngineOptions(batch=BATCH, refit=True)
    bundle = vitdeploy.export(source=RANDOM, to=backend, precision=precision, output=tmp_path / "one", engine=options)
    other = vitdeploy.export(precision=precision, output=tmp_path / "other", source=dataclasses.replace(RANDOM, seed=1))
    before, after = (each.path / each.artifact("onnx", precision).files[0].path for each in (bundle, other))
    feeds, tolerance = pixel_values(4, 224, 224), DEFAULT_TOLERANCES[precision]
    expected = []
    for file in (before, after):
        with OnnxRuntime(file) as reference:
            expected.append(reference.run(feeds))
    assert not any(each.within(tolerance) for each in compare_outputs(*expected)), "the models differ"
    with open_runtime(bundle, backend, precision=precision) as runtime:
        assert isinstance(runtime, EngineRuntime)
        for given, wanted in ((None, expected[0]), (after, expected[1]), (before, expected[0])):
            if given is not None:
                runtime.refit(given)
            for _ in range(3):  # run, recorded and replayed
                assert_near(wanted, runtime.run(feeds), tolerance, given)
        (tmp_path / "no.onnx").write_bytes(b"no graph")
        with raises(UsageError, what="weights", where=str(tmp_path / "no.onnx")):
            runtime.refit(tmp_path / "no.onnx")
        assert_near(expected[0], runtime.run(feeds), tolerance)


@pytest.mark.parametrize("backend", ENGINES)
def test_an_engine_that_takes_no_other_weights(build: Build, backend: str) -> None:
    made = build(backend, "fp16")
    file = made.path / made.artifact("onnx", "fp16").files[0].path
    with open_runtime(made, backend, precision="fp16") as runtime:
        assert isinstance(runtime, EngineRuntime)
        with raises(UsageError, what="refit"):
            runtime.refit(file)


@pytest.mark.parametrize("backend", ENGINES)
def test_a_stripped_engine_is_given_its_weights(tmp_path: Path, backend: str) -> None:
    options: dict[str, Any] = {"to": backend, "precision": "fp16", "source": RANDOM}
    whole = vitdeploy.export(**options, output=tmp_path / "whole")
    stripped = vitdeploy.export(**options, output=tmp_path / "stripped", engine=EngineOptions(strip_weights=True))
    sizes = [each.artifact(backend, "fp16").files[0].size_bytes for each in (whole, stripped)]
    assert sizes[1] < sizes[0] / 2
    assert stripped.artifact(backend, "fp16").validation["outputs"]


@pytest.mark.parametrize("backend", ENGINES)
def test_decoded_images_are_resized_in_the_engine(tmp_path: Path, backend: str) -> None:
    sizes = ((32, 48), (240, 320), (480, 640))
    engine, graph = EngineOptions(batch=BATCH, image_sizes=(sizes,)), GraphOptions(embed_resize=True)
    bundle = vitdeploy.export(to=backend, output=tmp_path / "out", engine=engine, graph=graph, source=RANDOM)
    assert bundle.artifact(backend, "fp32").validation["image_sizes"] == [[240, 320], [32, 48], [480, 640]]


@pytest.mark.parametrize("backend", ENGINES[1:])
def test_kernels_of_every_specialization_give_the_same(build: Build, backend: str) -> None:
    made = build(backend, "fp16")
    expected: dict[tuple[int, int, int], dict[str, np.ndarray]] = {}
    for name in KERNEL_SPECIALIZATIONS:
        options: dict[str, Any] = {"kernel_specialization": name, "runtime_cache": False}
        with open_runtime(made, backend, options, precision="fp16") as runtime:
            assert runtime.details["kernel_specialization"] == name
            for shape in (*SHAPES, *SHAPES):
                outputs = runtime.run(pixel_values(*shape))
                assert_near(expected.setdefault(shape, outputs), outputs, DEFAULT_TOLERANCES["fp16"], (name, shape))


@pytest.mark.parametrize("backend", ENGINES[1:])
def test_compiled_kernels_are_kept_and_do_no_harm(
    build: Build, tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, feeds, file = build(backend, "fp16"), pixel_values(*SHAPES[0]), tmp_path / "cache"
    for _ in range(2):
        with open_runtime(made, backend, {"runtime_cache": file}, precision="fp16") as runtime:
            runtime.run(feeds)
            assert file.stat().st_size > 0, "it is kept while the runtime is open"
    file.write_bytes(b"no cache")
    with raises(DeviceError, what="runtime_cache", where=str(file)):
        open_runtime(made, backend, {"runtime_cache": file}, precision="fp16")
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "own"))
    sizes = []
    for _ in range(2):
        with open_runtime(made, backend, precision="fp16") as runtime:
            runtime.run(feeds)
        (own,) = (tmp_path / "own" / backend).iterdir()
        sizes.append(own.stat().st_size)
        own.write_bytes(b"no cache")
    assert min(sizes) > 100


@pytest.mark.parametrize("backend", ENGINES[:1])
def test_the_timing_cache_lies_beside_the_bundle_and_does_no_harm(tmp_path: Path, backend: str) -> None:
    for _ in range(2):
        vitdeploy.export(to=backend, precision="fp16", output=tmp_path / "out", source=RANDOM)
        assert (tmp_path / "out.tensorrt.timing-cache").stat().st_size > 0
