"""ONNX Runtime's TensorRT provider: what the session is asked for, and what is refused before it.

The provider itself is run by `make gpu-check`. Here a session on the CPU stands for one on it, and keeps what it was
asked for.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from bundles import (
    FLOAT32_TOLERANCE,
    make_feeds,
    reference,
    sign_again,
    tiny_model,
    worst_difference,
    write_bundle,
    write_checkpoint_of,
)
from command_line import run
from raising import raises

import vitdeploy
from vitdeploy import GraphOptions
from vitdeploy.assess.runs.targets import select
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import DeviceError, OutputError, UsageError
from vitdeploy.runtimes import open_runtime
from vitdeploy.runtimes.onnxrt.session import CPU, CUDA, TENSORRT
from vitdeploy.specs import AxisRange, Task

BACKEND = "onnxruntime-tensorrt"
NEEDS_NONE = pytest.mark.skipif(TENSORRT in ort.get_available_providers(), reason="this onnxruntime has the provider")
PROFILES = ("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def limited(tmp_path: Path) -> Bundle:
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    return vitdeploy.export(
        checkpoint, output=tmp_path / "bundle", graph=GraphOptions(image_size=((16, 16), (32, 32), (40, 48)))
    )


@pytest.fixture
def decoded(tmp_path: Path) -> Bundle:
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    return vitdeploy.export(checkpoint, output=tmp_path / "bundle", graph=GraphOptions(embed_resize=True))


@pytest.fixture
def masked(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path, Task.MASKED_IMAGE_MODELING)


class Asked:
    """The arguments of a session.

    Attributes:
        started: the providers that it then says it has.
        options: of the TensorRT provider, as the session got them.
        strict: whether it was told not to use the CPU.
    """

    def __init__(self) -> None:
        self.started = [TENSORRT, CPU]
        self.options: dict[str, str] = {}
        self.strict = ""
        self.fallback = True


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """An onnxruntime that lists the provider, and sessions that run on the CPU instead."""
    found, session = Asked(), ort.InferenceSession  # onnxruntime has no types

    class OnTheCpu(session):  # type: ignore[misc, valid-type]
        def __init__(self, path: Path, options: Any, *, providers: Any, enable_fallback: bool, **rest: object) -> None:
            ((name, found.options),) = providers
            assert name == TENSORRT
            found.strict = options.get_session_config_entry("session.disable_cpu_ep_fallback")
            found.fallback = enable_fallback
            super().__init__(path, providers=[CPU])

        def get_providers(self) -> list[str]:
            return found.started

    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(ort, "InferenceSession", OnTheCpu)
    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__="10.9.0"))
    return found


def changed(bundle: Bundle, target: Path, **changes: Any) -> Bundle:
    """A copy of the bundle whose artifact is another in its manifest."""
    copy = Bundle.open(shutil.copytree(bundle.path, target))
    artifacts = tuple(dataclasses.replace(artifact, **changes) for artifact in copy.manifest.artifacts)
    return sign_again(dataclasses.replace(copy, manifest=dataclasses.replace(copy.manifest, artifacts=artifacts)))


def test_what_the_session_is_asked_for(bundle: Bundle, asked: Asked, tmp_path: Path) -> None:
    with open_runtime(bundle, BACKEND, {"engine_cache": tmp_path}) as runtime:
        (folder,) = tmp_path.iterdir()
        assert asked.options == {
            "device_id": "0",
            "trt_profile_min_shapes": "pixel_values:1x3x32x32",
            "trt_profile_opt_shapes": "pixel_values:8x3x32x32",
            "trt_profile_max_shapes": "pixel_values:32x3x32x32",
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(folder),
        }
        assert (asked.strict, asked.fallback) == ("1", False)
        assert runtime.backend == BACKEND
        assert runtime.details["providers"] == [TENSORRT]
        assert {
            key: str(value) for key, value in runtime.details["provider_options"][TENSORRT].items()
        } == asked.options
        arrays = make_feeds(tiny_model(), 3)
        assert worst_difference(runtime.run(arrays), reference(tiny_model(), arrays)) <= FLOAT32_TOLERANCE


def test_a_shape_beyond_the_profile_is_refused_and_not_built_for(bundle: Bundle, asked: Asked) -> None:
    with open_runtime(bundle, BACKEND, {"batch": "2:4:6", "engine_cache": False}) as runtime:
        assert [asked.options[name] for name in PROFILES] == [f"pixel_values:{n}x3x32x32" for n in (2, 4, 6)]
        runtime.run(make_feeds(tiny_model(), 6))
        for size in (1, 7):
            with raises(UsageError, what="batch", found=size):
                runtime.run(make_feeds(tiny_model(), size))
    with vitdeploy.load(bundle.path, backend=BACKEND, batch=AxisRange(1, 1, 2), engine_cache=False) as predictor:
        assert len(predictor.predict([np.zeros((32, 32, 3), np.uint8)] * 5)) == 5, "in batches that the engine takes"


def test_the_sizes_of_images_are_the_artifacts(limited: Bundle, asked: Asked) -> None:
    with open_runtime(limited, BACKEND, {"engine_cache": False}) as runtime:
        assert [asked.options[name] for name in PROFILES] == [
            "pixel_values:1x3x16x16",
            "pixel_values:8x3x32x32",
            "pixel_values:32x3x40x48",
        ]
        assert {name: str(sizes) for name, sizes in runtime.axes.items()} == {
            "batch": "from 1 to 32",
            "height": "from 16 to 40",
            "width": "from 16 to 48",
        }


def test_a_mask_has_a_profile_too(masked: Bundle, asked: Asked) -> None:
    with open_runtime(masked, BACKEND, {"engine_cache": False}):
        assert asked.options["trt_profile_opt_shapes"] == "pixel_values:8x3x32x32,bool_masked_pos:8x16"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_no_precision_is_asked_for(bundle: Bundle, asked: Asked, tmp_path: Path, precision: str) -> None:
    """ONNX Runtime makes a strongly typed network without; TensorRT 11 has nothing that could be asked for."""
    other = changed(bundle, tmp_path / "other", precision=precision, options={"target": "tensorrt"})
    with open_runtime(other, BACKEND, {"engine_cache": False}, precision=precision):
        found = {name for name in asked.options if name not in PROFILES}
    assert found == {"device_id", "trt_engine_cache_enable", "trt_timing_cache_enable"}


def test_an_engine_is_kept_by_all_that_it_was_made_from(
    bundle: Bundle, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder(of: Bundle = bundle, **options: Any) -> str:
        with open_runtime(of, BACKEND, {"engine_cache": tmp_path / "cache", **options}):
            return asked.options["trt_engine_cache_path"]

    first = folder()
    assert folder() == first
    assert folder(batch="1:8:32") == first
    others = [folder(batch="1:8:16"), folder(provider_options={TENSORRT: {"trt_builder_optimization_level": 5}})]
    copy = Bundle.open(shutil.copytree(bundle.path, tmp_path / "copy"))
    with (copy.path / "onnx" / "model.onnx").open("ab") as file:
        file.write(b"\x9a\x06\x00")  # field 99, unknown to ONNX, of no bytes
    others.append(folder(sign_again(copy)))
    monkeypatch.setattr(ort, "__version__", "1.99.0")
    others.append(folder())
    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__="11.0.0"))
    others.append(folder())
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # its libraries are the system's
    others.append(folder())
    assert len({first, *others}) == 7
    assert len(list((tmp_path / "cache").iterdir())) == 7


def test_the_users_cache(bundle: Bundle, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path))
    with open_runtime(bundle, BACKEND):
        (folder,) = (tmp_path / "tensorrt-provider").iterdir()
    assert asked.options["trt_engine_cache_path"] == str(folder)


def test_a_cache_that_cannot_be(bundle: Bundle, asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with raises(OutputError, what="engine_cache", found="Not a directory"):
        open_runtime(bundle, BACKEND, {"engine_cache": tmp_path / "file"})


def test_a_user_without_a_cache(bundle: Bundle, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.runtimes.onnxrt.tensorrt_provider.user_cache", lambda: None)
    with raises(OutputError, what="engine_cache", hint=re.compile("VITDEPLOY_CACHE")):
        open_runtime(bundle, BACKEND)
    open_runtime(bundle, BACKEND, {"engine_cache": False}).close()


def test_options_of_the_provider_go_first(bundle: Bundle, asked: Asked) -> None:
    own = {"trt_max_workspace_size": 2**30, "trt_engine_cache_path": "/elsewhere", "trt_fp16_enable": True}
    with open_runtime(
        bundle,
        BACKEND,
        {"engine_cache": False, "batch": "8", "provider_options": {TENSORRT: own}, "intra_op_threads": 1},
        device="cuda:1",
    ) as runtime:
        assert runtime.details["intra_op_threads"] == 1
    assert asked.options["device_id"] == "1"
    assert {name: asked.options[name] for name in own} == {name: str(value) for name, value in own.items()}


def test_a_provider_that_onnxruntime_drops_is_told_with_what_it_needs(bundle: Bundle, asked: Asked) -> None:
    """As it does where TensorRT's libraries are not found; it then runs on CUDA, or on the CPU."""
    for started in ([CUDA, CPU], [CPU]):
        asked.started = started
        needed = re.compile(r"see its log above; .*vitdeploy\[tensorrt\]")
        with raises(DeviceError, what="providers", expected=(TENSORRT,), found=started, hint=needed):
            open_runtime(bundle, BACKEND, {"engine_cache": False})


@pytest.mark.parametrize(
    ("options", "device", "fields"),
    [
        ({}, "cpu", {"what": "device", "found": "cpu"}),
        ({"providers": (CUDA,)}, None, {"what": "providers", "found": (CUDA,)}),
        ({"batch": "8:4:1"}, None, {}),
        ({"batch": None}, None, {}),
        ({"batch": AxisRange(1, 2)}, None, {}),
        ({"provider_options": {CUDA: {"device_id": 1}}}, None, {"what": "provider_options", "found": CUDA}),
        ({"provider_options": {TENSORRT: {"device_id": 1}}}, "cuda:0", {"what": "device_id", "found": 1}),
    ],
)
def test_options_that_cannot_be(
    bundle: Bundle, asked: Asked, options: dict[str, Any], device: str | None, fields: dict[str, Any]
) -> None:
    with raises(DeviceError if device == "cpu" else UsageError, **fields):
        open_runtime(bundle, BACKEND, {"engine_cache": False, **options}, device=device)


def test_decoded_images_have_limits(decoded: Bundle, asked: Asked) -> None:
    with raises(UsageError, what="image_sizes"):
        open_runtime(decoded, BACKEND, {"engine_cache": False})
    sizes = ((16, 20), (48, 64), (70, 64))
    with open_runtime(decoded, BACKEND, {"engine_cache": False, "image_sizes": sizes}) as runtime:
        assert [asked.options[name] for name in PROFILES] == [
            "pixel_values:1x16x20x3", "pixel_values:8x48x64x3", "pixel_values:32x70x64x3",
        ]  # fmt: skip
        assert runtime.run({"pixel_values": np.zeros((2, 16, 64, 3), np.uint8)})["logits"].shape[0] == 2
        with raises(UsageError, what="height", found=15):
            runtime.run({"pixel_values": np.zeros((2, 15, 64, 3), np.uint8)})


def test_artifacts_that_it_does_not_run(bundle: Bundle, asked: Asked, tmp_path: Path) -> None:
    quantized = changed(bundle, tmp_path / "int8", precision="int8", options={"target": "cpu"})
    with raises(UsageError, what="target", where=str(quantized.path), found="cpu"):
        open_runtime(quantized, BACKEND, precision="int8")
    (artifact,) = bundle.manifest.artifacts
    spec = dataclasses.replace(artifact.inputs[0], shape=("batch", 3, "height", "width"))
    free = changed(
        bundle, tmp_path / "free", inputs=(spec,), axes={"height": AxisRange(8, 32), "width": AxisRange(8, 32)}
    )
    with raises(UsageError, what="image_sizes"):
        open_runtime(free, BACKEND)


@NEEDS_NONE
def test_this_onnxruntime_refuses(bundle: Bundle, tmp_path: Path) -> None:
    with raises(DeviceError, what="providers", found=TENSORRT, hint=re.compile("pip")):
        open_runtime(bundle, BACKEND, {"engine_cache": tmp_path / "cache"})
    assert not (tmp_path / "cache").exists()
    ran = run("predict", bundle.path, "x.jpg", "--backend", BACKEND)
    assert (ran.code, ran.out, ran.err.count("\n")) == (3, "", 1)
    assert "vitdeploy[onnxruntime-gpu]" in ran.err


def test_it_is_assessed_where_it_is_named(bundle: Bundle) -> None:
    assert [selected.backend for selected in select(bundle)] == ["torch", "onnxruntime"]
    for name in (BACKEND, f"{BACKEND}:fp32"):
        assert [tuple(selected) for selected in select(bundle, [name])] == [("onnx-fp32", BACKEND, "fp32")]
