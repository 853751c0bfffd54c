"""The other Python environments that `make test` makes beside the development one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def environment(name: str) -> Path:
    """The interpreter of `.venvs/name`; the test is skipped where it was not made."""
    python = ROOT / ".venvs" / name / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        pytest.skip(f"needs the environment .venvs/{name}; run: make test")
    return python


def run(*command: str | Path, **environ: str) -> str:
    """Run a command outside the repository; its output, and a failed test where it fails."""
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "cwd": "/"}
    process = subprocess.run([*map(str, command)], env={**os.environ, **environ}, **options)
    assert process.returncode == 0, process.stderr
    return str(process.stdout)
