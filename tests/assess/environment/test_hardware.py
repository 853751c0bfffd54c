"""CPU features, GPUs and caches, from system files and programs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from raising import raises

from vitdeploy.assess.environment.caches import caches
from vitdeploy.assess.environment.cpu_features import fast_precisions
from vitdeploy.assess.environment.gpus import GpuDescription, describe_gpus
from vitdeploy.errors import DeviceError
from vitdeploy.system.processor import cpu_name

H200 = "NVIDIA H200, 143771 MiB, 9.0, 570.124.06"


@pytest.mark.parametrize(
    ("text", "int8", "bf16"),
    [
        ("flags\t: fpu avx2 avx512f", False, False),
        ("flags\t: fpu avx2 avx_vnni", True, False),
        ("flags\t: avx512_vnni amx_int8 amx_bf16 avx512_bf16", True, True),
        ("Features\t: fp asimd asimddp i8mm bf16", True, True),
        ("Features\t: fp asimd", False, False),
        ("", None, None),
    ],
)
def test_fast_precisions(text: str, int8: bool | None, bf16: bool | None, tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: A CPU: fast\n{text}\n")
    found = fast_precisions(str(path))
    assert {item.precision: item.fast for item in found} == {"int8": int8, "bf16": bf16}
    starts = {True: "yes (", False: "no (", None: "unknown ("}
    assert all(str(item).startswith(starts[item.fast]) for item in found)
    assert all(bool(item.instructions) == bool(item.fast) for item in found)
    assert cpu_name(str(path)) == "A CPU: fast"


def program(tmp_path: Path, script: str) -> str:
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_gpus(tmp_path: Path) -> None:
    found = describe_gpus(program(tmp_path, f"echo '{H200}'; echo 'Tesla T4, a name, 15360 MiB, 7.5, 570.124.06'"))
    assert found[0] == GpuDescription("NVIDIA H200", "143771 MiB", "9.0", "570.124.06", found[0].cuda)
    assert (found[1].name, found[1].compute_capability) == ("Tesla T4, a name", "7.5")
    assert str(GpuDescription("A", "1 MiB", "9.0", "570", "12.8")).endswith("driver 570, CUDA up to 12.8")


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_a_driver_that_does_not_answer_is_told(tmp_path: Path) -> None:
    assert describe_gpus(str(tmp_path / "absent")) == ()
    with raises(DeviceError, what="gpu", found=9):
        describe_gpus(program(tmp_path, "echo 'Driver/library version mismatch'; echo more; exit 9"))
    with raises(DeviceError, what="gpu"):
        describe_gpus(str(tmp_path))


def test_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path))
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "a").write_bytes(bytes(70_000))
    (tmp_path / "b").write_bytes(bytes(30_000))
    own = caches()[0]
    assert (own.folder, own.size_bytes) == (tmp_path, 100_000)
    assert own.to_dict()["folder"] == str(tmp_path)
    monkeypatch.setattr("vitdeploy.assess.environment.caches.user_cache", lambda: None)
    assert (caches()[0].folder, caches()[0].size_bytes) == (None, 0)
