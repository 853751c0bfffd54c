"""An engine for another version, another system or another GPU is refused with what it was built for."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import Any

import pytest
from raising import raises

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import Artifact, FileRecord, Manifest, Source
from vitdeploy.errors import OtherHardwareError, UnavailableError, UsageError
from vitdeploy.runtimes.engine.compatibility import check_hardware, check_version, choose_profile
from vitdeploy.specs import PixelFormat, TensorSpec
from vitdeploy.trt.gpu import Gpu

HERE = f"{platform.system()} {platform.machine()}"
L4 = Gpu(0, "NVIDIA L4", "8.9", "13.0")
BUILT = {"platform": HERE, "gpu": "NVIDIA L4", "compute_capability": "8.9", "driver": "13.0"}
PATH = "vit/tensorrt/model_fp16.engine"
REBUILD = "build it here: vitdeploy export --to tensorrt --precision fp16 -o vit"
BUNDLE = Bundle(Path("vit"), Manifest(Source("x"), "image-classification", ()))


def engine(
    hardware: dict[str, Any] | None = None, version: str = "10.16.1", to: str = "tensorrt", **options: Any
) -> Artifact:
    return Artifact(
        format=to,
        precision="fp16",
        files=(FileRecord(f"{to}/model_fp16.engine", 1, "0" * 64),),
        inputs=(TensorSpec("pixel_values", "float32", ("batch", 3, 32, 32)),),
        outputs=(),
        pixels=PixelFormat(),
        axes={},
        options=options,
        tools={"vitdeploy": "0.1.0", "tensorrt": version},
        validation={},
        hardware={**BUILT, "hardware_compatibility": "none"} if hardware is None else hardware,
    )


@pytest.mark.parametrize(
    ("built", "here", "compatible", "runs"),
    [
        ("10.16.1", "10.16.1", False, True),
        ("10.16.1", "10.16.2", False, False),
        ("10.16.1", "10.16.2", True, True),
        ("10.16.1", "10.9.0", True, False),
        ("10.16.1", "11.4.0", True, True),
        ("10.16.1", "11.4.0", False, False),
        ("11.4.0", "10.16.1", True, False),
        ("10.16.1", "12.0.0", True, False),
        ("11.4.0", "12.0.0", True, False),
    ],
)
def test_versions(built: str, here: str, compatible: bool, runs: bool) -> None:
    artifact = engine(version=built, version_compatible=compatible)
    if runs:
        check_version(BUNDLE, artifact, "tensorrt", here)
        return
    with raises(UnavailableError, where=PATH, expected=(built, HERE), found=(here, HERE), hint=REBUILD):
        check_version(BUNDLE, artifact, "tensorrt", here)


def test_another_system_and_a_manifest_that_says_nothing() -> None:
    for artifact in (
        engine({**BUILT, "platform": "Windows AMD64"}),
        engine({}),
        dataclasses.replace(engine(), tools={}),
        dataclasses.replace(engine(), hardware=None),
    ):
        with raises(UnavailableError, what="tensorrt", found=("10.16.1", HERE), hint=REBUILD):
            check_version(BUNDLE, artifact, "tensorrt", "10.16.1")


@pytest.mark.parametrize("system", ["Windows AMD64", "Linux x86_64"])
def test_what_is_compiled_on_the_machine_that_runs_it_is_for_every_system(system: str) -> None:
    artifact = engine({"platform": system, "compute_capabilities": ["portable"]}, to="tensorrt-rtx")
    artifact = dataclasses.replace(artifact, tools={"tensorrt_rtx": "1.7.1"})
    check_version(BUNDLE, artifact, "tensorrt_rtx", "1.7.1")
    with raises(UnavailableError, what="tensorrt_rtx", expected=("1.7.1", system), found=("1.8", HERE)):
        check_version(BUNDLE, artifact, "tensorrt_rtx", "1.8")


@pytest.mark.parametrize(
    ("compatibility", "name", "capability", "runs"),
    [
        ("none", "NVIDIA L4", "8.9", True),
        ("none", "NVIDIA L40S", "8.9", False),
        ("same_compute_capability", "NVIDIA L40S", "8.9", True),
        ("same_compute_capability", "NVIDIA A10", "8.6", False),
        ("ampere_plus", "NVIDIA H100", "9.0", True),
        ("ampere_plus", "NVIDIA B200", "10.0", True),
        ("ampere_plus", "Tesla T4", "7.5", False),
        ("unheard_of", "NVIDIA L4", "8.9", False),
    ],
)
def test_gpus_of_tensorrt(compatibility: str, name: str, capability: str, runs: bool) -> None:
    artifact = engine({**BUILT, "hardware_compatibility": compatibility})
    here = dataclasses.replace(L4, name=name, compute_capability=capability)
    if runs:
        check_hardware(BUNDLE, artifact, here)
        return
    with raises(OtherHardwareError, expected=artifact.hardware, found=(name, capability), hint=REBUILD):
        check_hardware(BUNDLE, artifact, here)


@pytest.mark.parametrize(
    ("named", "runs"),
    [
        (["8.9"], True),
        (["8.0", "8.9"], True),
        (["12.0"], False),
        (["portable: 8.0, 8.6, 8.9, 12.0 and later"], True),  # for the library to judge
    ],
)
def test_gpus_of_tensorrt_rtx(named: list[str], runs: bool) -> None:
    artifact = engine({"platform": HERE, "compute_capabilities": named}, to="tensorrt-rtx")
    if runs:
        check_hardware(BUNDLE, artifact, L4)
    else:
        with raises(OtherHardwareError, expected=artifact.hardware, found=("NVIDIA L4", "8.9")):
            check_hardware(BUNDLE, artifact, L4)


def test_an_engine_that_does_not_say_what_it_is_for() -> None:
    with raises(OtherHardwareError, expected={}, found=("NVIDIA L4", "8.9")):
        check_hardware(BUNDLE, engine({}), L4)


def profile(*batches: int) -> dict[str, Any]:
    return {"x": tuple((batch, 3, 32, 32) for batch in batches), "mask": tuple((batch, 16) for batch in batches)}


@pytest.mark.parametrize(("batch", "chosen"), [(1, 0), (2, 1), (8, 1), (15, 1), (17, 2), (64, 2)])
def test_the_profile_whose_best_shape_is_nearest(batch: int, chosen: int) -> None:
    profiles = [profile(1, 1, 1), profile(1, 8, 64), profile(16, 32, 64)]
    assert choose_profile(profiles, {"x": (batch, 3, 32, 32), "mask": (batch, 16)}) == chosen


@pytest.mark.parametrize("shape", [(65, 3, 32, 32), (4, 3, 33, 32)])
def test_no_profile_takes_it(shape: tuple[int, ...]) -> None:
    profiles, shapes = [profile(1, 8, 64)], {"x": shape, "mask": (shape[0], 16)}
    with raises(UsageError, what="shapes", expected=profiles, found=shapes):
        choose_profile(profiles, shapes)
