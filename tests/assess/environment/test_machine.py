"""The description of the machine beside every figure."""

from __future__ import annotations

import os
import platform

import onnxruntime as ort
import pytest

from vitdeploy import __version__
from vitdeploy.assess.environment.machine import machine, version_of
from vitdeploy.system.cpu import INTRA_OP_VARIABLE, Cpus, session_threads


def test_the_machine() -> None:
    found = machine()
    assert (found["vitdeploy"], found["python"]) == (__version__, platform.python_version())
    assert found["onnxruntime"] == ort.__version__
    assert found["cpu"]
    assert 1 <= int(found["cores"]) <= (os.cpu_count() or 1)
    assert found["default threads"] == str(session_threads())
    assert all(isinstance(value, str) for value in found.values())
    assert version_of("a-package-that-is-not-there") == ""


def test_the_machine_says_where_the_threads_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTRA_OP_VARIABLE, "7")
    assert machine()["default threads"] == f"7: {INTRA_OP_VARIABLE}"
    monkeypatch.setenv(INTRA_OP_VARIABLE, "seven")
    assert INTRA_OP_VARIABLE in machine()["default threads"]
    monkeypatch.setenv(INTRA_OP_VARIABLE, "")
    monkeypatch.setattr("vitdeploy.system.cpu.usable_cpus", lambda: Cpus(8, 8, 8, 1.5))
    assert machine()["default threads"] == "2: cgroup quota of 1.5 CPUs, 8 physical cores"
