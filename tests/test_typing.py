"""Type checkers find the package and its types where it was installed as developers install it: `pip install -e .`."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from environments import ROOT, run

CODE = """
import vitdeploy
from vitdeploy.exporters import EXPORTERS
from vitdeploy.runtimes.base import Runtime

reveal_type(vitdeploy.load("vit", revision="main").predict)
reveal_type(Runtime.close)
reveal_type(vitdeploy.Bundle.open("vit").manifest.artifacts)
reveal_type(EXPORTERS["onnx"].made_from)
vitdeploy.pack(1, "onnx-fp32", output="slim")
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with an editable install, and nothing else."""
    folder = tmp_path_factory.mktemp("editable")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    build = (
        "import os, sys; from setuptools import build_meta as b; os.chdir(sys.argv[1]); b.build_editable(sys.argv[2])"
    )
    copy = folder / "source"  # beside which setuptools writes an *.egg-info
    copy.mkdir()
    for name in ("LICENSE", "README.md", "pyproject.toml", "vitdeploy", "exporters", "runtimes"):
        (copy / name).symlink_to(ROOT / name)
    run(sys.executable, "-c", build, copy, folder)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    return python


def test_python_finds_it(environment: Path) -> None:
    code = "import vitdeploy.exporters, vitdeploy.runtimes.options; print(vitdeploy.__file__)"
    place = run(environment, "-c", code, PYTHONPATH="").strip()
    assert Path(place).resolve() == ROOT / "vitdeploy" / "__init__.py"


def test_mypy_finds_its_types(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "application.py").write_text(CODE, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, "--python-executable", environment]
    done = subprocess.run(
        [*map(str, command), "application.py"], cwd=tmp_path, check=False, capture_output=True, text=True,
        env={name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")},
    )  # fmt: skip
    revealed = [
        line.partition("Revealed type is ")[2].strip('"') for line in done.stdout.splitlines() if "Revealed" in line
    ]
    assert revealed[1:] == [
        "def (self: vitdeploy.runtimes.base.Runtime)",
        "tuple[vitdeploy.bundle.manifest.Artifact, ...]",
        "str | None",
    ]
    assert revealed[0].endswith("-> list[list[vitdeploy.predictor.Prediction]]")
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 1
    assert 'Argument 1 to "pack"' in errors[0]
