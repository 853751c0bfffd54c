"""NVIDIA's own Python bindings of TensorRT, over empty stand-ins for its libraries, which are gigabytes and want a GPU.

Run as a program, with a folder of bindings and names on standard input, it tells which of them are not there; with
"vitdeploy" and arguments after the folder it runs that command with these bindings for `tensorrt`.
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


def ask(folder: Path, major: int, *command: str, given: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """Run this file as a program."""
    arguments = [sys.executable, __file__, str(folder), str(major), *command]
    return subprocess.run(arguments, input=given, capture_output=True, text=True, check=False, env=environ or None)


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


def missing(library: Any, names: list[str]) -> list[str]:
    """The dotted names that a library does not have."""
    found = []
    for name in names:
        value = library
        for part in name.split("."):
            value = getattr(value, part, None)
        found += [name] if value is None else []
    return found


if __name__ == "__main__":
    import tempfile

    _, where, number, *rest = sys.argv
    with tempfile.TemporaryDirectory() as scratch:
        trt = load(Path(where), int(number), Path(scratch))
    if not rest:
        asked = json.load(sys.stdin)
        print(json.dumps({"version": trt.__version__, "missing": missing(trt, asked)}))
    elif rest[0] == "options":
        from vitdeploy.exporters.engine.capabilities import CAPABILITIES

        print(json.dumps([name for name, row in CAPABILITIES.items() if row.has(trt)]))
    else:
        from vitdeploy.cli import main

        sys.modules["tensorrt"] = trt
        main(rest[1:])
