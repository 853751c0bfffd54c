"""NVIDIA's own Python bindings of TensorRT, over empty stand-ins for its libraries, which are gigabytes and want a GPU.

Run as a program, with a folder of bindings: "drive" tells which attributes the code asks for, "options" which options
of the builder there are, and "vitdeploy" with arguments runs that command with these bindings for `tensorrt`.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from environments import ROOT

# What the bindings take from each library.
_SYMBOLS = {
    "nvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
    "nvonnxparser": ("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getNvOnnxParserVersion"),
}


def bindings(major: int) -> Path:
    """The folder of the bindings of that version; the test is skipped where it, or a C compiler, is not there."""
    folder = ROOT / ".venvs" / f"tensorrt-{major}"
    if not (folder / ".done").exists():
        pytest.skip(f"needs the bindings in .venvs/tensorrt-{major}; run: make test")
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler, cc, for the stand-ins of TensorRT's libraries")
    return folder


def ask(folder: Path, major: int, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run this file as a program."""
    arguments = [sys.executable, __file__, str(folder), str(major), *command]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, env=environ)


def load(folder: Path, major: int, libraries: Path) -> Any:
    """Import the bindings over stand-ins that are compiled into a folder."""
    for name, symbols in _SYMBOLS.items():
        file = f"lib{name}.so.{major}"
        code = "".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols)
        options = ["-shared", "-fPIC", f"-Wl,-soname,{file}", "-x", "c", "-", "-o", str(libraries / file)]
        subprocess.run(["cc", *options], input=code, text=True, check=True)
        ctypes.CDLL(str(libraries / file), ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder))
    import tensorrt_bindings  # type: ignore[import-not-found]

    return tensorrt_bindings


if __name__ == "__main__":
    import tempfile

    _, where, number, *rest = sys.argv
    with tempfile.TemporaryDirectory() as scratch:
        trt = load(Path(where), int(number), Path(scratch))
    if rest == ["drive"]:
        from typed_bindings import drive, not_driven

        with tempfile.TemporaryDirectory() as scratch:
            driven = drive(trt, "tensorrt", Path(scratch))
        print(json.dumps([trt.__version__, sorted(driven.used), not_driven(driven)]))
    elif rest[0] == "options":
        from vitdeploy.exporters.engine.capabilities import CAPABILITIES

        print(json.dumps([name for name, row in CAPABILITIES.items() if row.has(trt)]))
    else:
        from vitdeploy.cli import main

        sys.modules["tensorrt"] = trt
        main(rest[1:])
