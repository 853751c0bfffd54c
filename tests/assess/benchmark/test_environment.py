"""What doctor says: which backends really run, and what to do for the others."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import onnxruntime as ort
import pytest
import torch

from vitdeploy import __version__
from vitdeploy.assess.benchmark import environment
from vitdeploy.assess.benchmark.environment import BackendCheck, check_backends, machine, version_of
from vitdeploy.runtimes import BACKENDS
from vitdeploy.system.cpu import INTRA_OP_VARIABLE, Cpus, session_threads

AZURE = "AzureExecutionProvider"


def test_the_cpu_is_ready_with_every_backend_and_every_backend_is_checked() -> None:
    checks = check_backends()
    assert {check.backend for check in checks} == set(BACKENDS)
    assert BackendCheck("torch", "cpu", True, f"torch {torch.__version__}") in checks
    assert BackendCheck("onnxruntime", "CPUExecutionProvider", True, f"onnxruntime {ort.__version__}") in checks
    assert [check.device for check in checks if check.backend == "onnxruntime"] == ort.get_available_providers()
    assert checks[0].to_dict() == {"backend": "torch", "device": "cpu", "ready": True, "note": checks[0].note}


@pytest.mark.skipif(AZURE not in ort.get_available_providers(), reason="only some wheels list Azure")
def test_a_provider_that_is_listed_but_does_not_run_is_not_ready(capfd: pytest.CaptureFixture[str]) -> None:
    (check,) = (check for check in check_backends() if check.device == AZURE)
    assert not check.ready
    assert "probe.onnx" in check.note
    assert AZURE in check.note
    assert "\n" not in check.note
    assert capfd.readouterr() == ("", "")


def test_an_engine_that_is_not_installed_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    row = BACKENDS["onnxruntime"]._replace(target="an_engine_that_is_not_there:Runtime")
    monkeypatch.setitem(BACKENDS, "onnxruntime", row)
    (check,) = (check for check in check_backends() if check.backend == "onnxruntime")
    assert (check.device, check.ready) == ("", False)
    assert check.note.endswith("run: pip install 'vitdeploy[onnxruntime]'")


def test_an_engine_that_does_not_load_is_reported_and_the_others_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "vitdeploy_test_engine.py").write_text("raise ImportError('libengine.so: cannot open')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(BACKENDS, "torch", BACKENDS["torch"]._replace(target="vitdeploy_test_engine:Runtime"))
    checks = check_backends()
    assert not checks[0].ready
    assert "libengine.so: cannot open" in checks[0].note
    assert any(check.backend == "onnxruntime" and check.ready for check in checks)


def test_an_engine_under_another_package_name_has_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu installs the module onnxruntime, and no metadata of that name."""

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(environment, "version", absent)
    assert version_of("onnxruntime") == ""
    assert f"onnxruntime {ort.__version__}" in {check.note for check in check_backends()}


def test_the_machine() -> None:
    found = machine()
    assert (found["vitdeploy"], found["python"]) == (__version__, platform.python_version())
    assert found["onnxruntime"] == ort.__version__
    assert found["cpu"]
    assert 1 <= int(found["cores"]) <= (os.cpu_count() or 1)
    assert found["default threads"] == str(session_threads())
    assert all(isinstance(value, str) for value in found.values())


def test_the_machine_says_where_the_threads_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTRA_OP_VARIABLE, "7")
    assert machine()["default threads"] == f"7: {INTRA_OP_VARIABLE}"
    monkeypatch.setenv(INTRA_OP_VARIABLE, "seven")
    assert INTRA_OP_VARIABLE in machine()["default threads"]
    (check,) = (check for check in check_backends() if check.device == "CPUExecutionProvider")
    assert not check.ready
    assert INTRA_OP_VARIABLE in check.note
    monkeypatch.setenv(INTRA_OP_VARIABLE, "")
    monkeypatch.setattr("vitdeploy.system.cpu.usable_cpus", lambda: Cpus(8, 8, 8, 1.5))
    assert machine()["default threads"] == "2: cgroup quota of 1.5 CPUs, 8 physical cores"
