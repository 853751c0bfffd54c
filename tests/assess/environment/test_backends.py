"""Backends that run, backends that only build, and remedies for the others."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest
import torch

from vitdeploy.assess.environment import backends
from vitdeploy.assess.environment.backends import (
    BUILDS_ONLY,
    LISTED_ONLY,
    NOT_AVAILABLE,
    NOT_INSTALLED,
    READY,
    BackendCheck,
    check_backends,
)
from vitdeploy.errors import UnavailableError
from vitdeploy.runtimes import BACKENDS
from vitdeploy.system.cpu import INTRA_OP_VARIABLE

AZURE = "AzureExecutionProvider"


def test_the_cpu_is_ready_with_every_backend_and_every_backend_is_checked() -> None:
    checks = check_backends()
    assert {check.backend for check in checks} == set(BACKENDS)
    torch_engine, ort_engine = f"torch {torch.__version__}", f"onnxruntime {ort.__version__}"
    assert BackendCheck("torch", "cpu", True, torch_engine, READY, torch_engine) in checks
    assert BackendCheck("onnxruntime", "CPUExecutionProvider", True, ort_engine, READY, ort_engine) in checks
    assert [check.device for check in checks if check.backend == "onnxruntime"] == ort.get_available_providers()
    assert all(check.ready == (check.state == READY) for check in checks)
    assert checks[0].to_dict().keys() >= {"backend", "device", "ready", "note"}


@pytest.mark.skipif(AZURE not in ort.get_available_providers(), reason="only some wheels list Azure")
def test_a_provider_that_every_wheel_lists_is_not_ready(capfd: pytest.CaptureFixture[str]) -> None:
    (check,) = (check for check in check_backends() if check.device == AZURE)
    assert (check.ready, check.state) == (False, LISTED_ONLY)
    assert "probe.onnx" in check.note
    assert AZURE in check.note
    assert "\n" not in check.note
    assert capfd.readouterr() == ("", "")


def test_an_engine_that_is_not_installed_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    row = BACKENDS["onnxruntime"]._replace(target="an_engine_that_is_not_there:Runtime")
    monkeypatch.setitem(BACKENDS, "onnxruntime", row)
    (check,) = (check for check in check_backends() if check.backend == "onnxruntime")
    assert (check.device, check.state, check.engine) == ("", NOT_INSTALLED, "")
    assert check.note.endswith("run: pip install 'vitdeploy[onnxruntime]'")


def test_an_engine_that_does_not_load_is_reported_and_the_others_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "vitdeploy_test_engine.py").write_text("raise ImportError('libengine.so: cannot open')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(BACKENDS, "torch", BACKENDS["torch"]._replace(target="vitdeploy_test_engine:Runtime"))
    checks = check_backends()
    assert checks[0].state == NOT_AVAILABLE
    assert "libengine.so: cannot open" in checks[0].note
    assert any(check.backend == "onnxruntime" and check.ready for check in checks)


@pytest.mark.parametrize(("builds", "state"), [(True, BUILDS_ONLY), (False, NOT_AVAILABLE)])
def test_without_a_gpu_an_engine_may_still_be_built(builds: bool, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rtx = pytest.importorskip("vitdeploy.runtimes.engine.trt_rtx")
    monkeypatch.setattr(rtx.TensorRTRTXRuntime, "probe", lambda: {"cuda": "no GPU"})

    def build(*_: object) -> bytes:
        if not builds:
            raise UnavailableError("no")
        return b"plan"

    monkeypatch.setattr("vitdeploy.runtimes.engine.runtime.smallest_engine", build)
    (check,) = (check for check in check_backends() if check.backend == "tensorrt-rtx")
    assert (check.ready, check.note, check.state) == (False, "no GPU", state)
    monkeypatch.setattr(rtx.TensorRTRTXRuntime, "probe", lambda: {"cuda:0": "broken", "cuda:1": None})
    states = [check.state for check in check_backends() if check.backend == "tensorrt-rtx"]
    assert states == [NOT_AVAILABLE, READY]


def test_an_engine_under_another_package_name_has_a_version_too() -> None:
    """onnxruntime-gpu installs the module onnxruntime, and no metadata of that name."""
    assert f"onnxruntime {ort.__version__}" in {check.engine for check in check_backends()}
    assert not hasattr(backends, "version")


def test_a_number_of_threads_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTRA_OP_VARIABLE, "seven")
    (check,) = (check for check in check_backends() if check.device == "CPUExecutionProvider")
    assert not check.ready
    assert INTRA_OP_VARIABLE in check.note
