"""Engines on a GPU agree with the reference at the ends of their profiles; `make gpu-check` runs these."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import vitdeploy
from engine_machines import gpu_marks
from vitdeploy import EngineOptions
from vitdeploy.assess.difference import DEFAULT_TOLERANCES, compare_outputs
from vitdeploy.assets import held_out_images
from vitdeploy.bundle import Bundle
from vitdeploy.errors import DeviceError
from vitdeploy.runtimes import open_runtime
from vitdeploy.runtimes.engine import EngineRuntime
from vitdeploy.specs import AxisRange

if TYPE_CHECKING:
    from pathlib import Path

ENGINES = [pytest.param(name, marks=gpu_marks(name)) for name in ("tensorrt", "tensorrt-rtx")]
BATCH = (AxisRange(1, 1, 1), AxisRange(1, 4, 8))
QUANTIZED = ("int8", "fp8")
IMAGES: dict[str, Any] = {"calibration_data": held_out_images(), "calibration_images": 8}
BOUNDS = ((64, 96), (96, 96), (128, 160))
SHAPES = [(1, 64, 96), (4, 96, 96), (8, 128, 160), (3, 80, 112)]


@pytest.fixture(scope="module", params=ENGINES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, str]:
    """A bundle with an engine of every precision, and the engine's backend."""
    made: dict[str, Any] = {"output": tmp_path_factory.mktemp("gpu") / "out", "image_size": BOUNDS}
    for precision in DEFAULT_TOLERANCES:
        vitdeploy.export(
            random_weights="vit-tiny-patch16-224", to=request.param, precision=precision,
            engine=EngineOptions(batch=BATCH), **made, **(IMAGES if precision in QUANTIZED else {}),
        )  # fmt: skip
    return Bundle.open(made["output"]), request.param


def pixel_values(batch: int, height: int, width: int) -> dict[str, np.ndarray]:
    return {"pixel_values": np.random.default_rng(batch).standard_normal((batch, 3, height, width), np.float32)}


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("precision", DEFAULT_TOLERANCES)
def test_an_engine_agrees_with_the_reference(bundle: tuple[Bundle, str], precision: str, graphs: bool) -> None:
    made, backend = bundle
    validation = made.artifact(backend, precision).validation
    assert validation["outputs"]
    assert validation["device"].startswith("cuda:0 ")
    with (
        # Noise reaches beyond what 8 bits were calibrated on: how far from the model is the artifact's matter.
        open_runtime(made, *(("onnxruntime", precision) if precision in QUANTIZED else ("torch",))) as reference,
        open_runtime(made, backend, precision=precision, cuda_graphs=graphs) as runtime,
    ):
        for shape in (*SHAPES, *SHAPES):  # once recorded, once replayed
            feeds = pixel_values(*shape)
            for difference in compare_outputs(reference.run(feeds), runtime.run(feeds)):
                assert difference.within(DEFAULT_TOLERANCES[precision]), (shape, difference)


def test_tensors_on_the_gpu_give_what_arrays_give(bundle: tuple[Bundle, str]) -> None:
    made, backend = bundle
    with open_runtime(made, backend, precision="fp16") as runtime:
        assert isinstance(runtime, EngineRuntime)
        for shape in (*SHAPES, *SHAPES):
            feeds = pixel_values(*shape)
            expected = runtime.run(feeds)
            tensors = {name: torch.from_numpy(array).cuda() for name, array in feeds.items()}
            results = {name: torch.from_numpy(array).cuda().zero_() for name, array in expected.items()}
            runtime.run_device(tensors, results)
            for name, array in expected.items():
                np.testing.assert_array_equal(results[name].cpu().numpy(), array)


def test_threads_get_what_one_gets(bundle: tuple[Bundle, str]) -> None:
    made, backend = bundle
    calls = [pixel_values(*SHAPES[index % len(SHAPES)]) for index in range(16)]
    with open_runtime(made, backend, precision="fp16") as runtime:
        alone = [runtime.run(feeds) for feeds in calls]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(runtime.run, calls))
    for one, other in zip(alone, together, strict=True):
        for difference in compare_outputs(one, other):
            assert difference.within(DEFAULT_TOLERANCES["fp16"])


def test_an_engine_of_another_gpu_is_refused(bundle: tuple[Bundle, str]) -> None:
    made, backend = bundle
    path = made.path / "manifest.json"
    before = path.read_text(encoding="utf-8")
    manifest = json.loads(before)
    for artifact in manifest["artifacts"]:
        if artifact["hardware"]:
            here = {"platform": artifact["hardware"]["platform"]}
            artifact["hardware"] = {**here, "compute_capabilities": ["1.0"]}
    try:
        path.write_text(json.dumps(manifest), encoding="utf-8")
        with pytest.raises(DeviceError, match=r"was built for .* compute_capabilities .*; build it here: vitdeploy"):
            open_runtime(Bundle.open(made.path), backend)
    finally:
        path.write_text(before, encoding="utf-8")


@pytest.mark.parametrize("backend", ENGINES)
def test_a_stripped_engine_is_given_its_weights(tmp_path: Path, backend: str) -> None:
    options: dict[str, Any] = {"random_weights": "vit-tiny-patch16-224", "to": backend, "precision": "fp16"}
    whole = vitdeploy.export(**options, output=tmp_path / "whole")
    stripped = vitdeploy.export(**options, output=tmp_path / "stripped", engine=EngineOptions(strip_weights=True))
    sizes = [each.artifact(backend, "fp16").files[0].size_bytes for each in (whole, stripped)]
    assert sizes[1] < sizes[0] / 2
    assert stripped.artifact(backend, "fp16").validation["outputs"]


@pytest.mark.parametrize("backend", ENGINES)
def test_decoded_images_are_resized_in_the_engine(tmp_path: Path, backend: str) -> None:
    sizes = ((32, 48), (240, 320), (480, 640))
    made = vitdeploy.export(
        random_weights="vit-tiny-patch16-224", to=backend, embed_resize=True, output=tmp_path / "out",
        engine=EngineOptions(batch=BATCH, image_sizes=(sizes,)),
    )  # fmt: skip
    assert made.artifact(backend, "fp32").validation["image_sizes"] == [[240, 320], [32, 48], [480, 640]]


@pytest.mark.parametrize("backend", ENGINES[1:])
def test_compiled_kernels_are_kept_and_used_again(bundle: tuple[Bundle, str], tmp_path: Path, backend: str) -> None:
    made, found = bundle
    if found != backend:
        pytest.skip("the cache is TensorRT-RTX's")
    feeds = pixel_values(*SHAPES[0])
    for _ in range(2):
        with open_runtime(made, backend, precision="fp16", runtime_cache=tmp_path / "cache") as runtime:
            runtime.run(feeds)
        assert (tmp_path / "cache").stat().st_size > 0


@pytest.mark.parametrize("backend", ENGINES[:1])
def test_the_timing_cache_lies_beside_the_bundle_and_is_used_again(tmp_path: Path, backend: str) -> None:
    for _ in range(2):
        vitdeploy.export(random_weights="vit-tiny-patch16-224", to=backend, precision="fp16", output=tmp_path / "out")
        assert (tmp_path / "out.tensorrt.timing-cache").stat().st_size > 0
