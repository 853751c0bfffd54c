"""Libraries print nothing of their own in the command line's process, and what they print elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def printed(script: str, **variables: str) -> str:
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **variables})
    return done.stderr


@pytest.fixture
def unused(tmp_path: Path) -> Path:
    """A graph of which ONNX Runtime says that an initializer is used by no node."""
    specs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    extra = numpy_helper.from_array(np.zeros(1, np.float32), "unused")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", specs[:1], specs[1:], [extra])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("begin", "variables", "lines"),
    [
        ("quiet_libraries()", {}, False),
        ("quiet_libraries()", {"VITDEPLOY_DEBUG": "1"}, True),
        ("quiet_libraries()", {"VITDEPLOY_DEBUG": "0"}, False),
        ("None", {}, True),
    ],
)
def test_onnxruntime(unused: Path, begin: str, variables: dict[str, str], lines: bool) -> None:
    script = (
        f"from vitdeploy.system.quiet import quiet_libraries; {begin}; "
        f"from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime; OnnxRuntime({str(unused)!r}).close()"
    )
    assert ("Removing initializer" in printed(script, **variables)) is lines


@pytest.mark.parametrize(("begin", "lines"), [("quiet_libraries()", False), ("None", True)])
def test_warnings_and_logs(begin: str, lines: bool) -> None:
    """Even where the user turns warnings into errors, which would end the libraries' work."""
    script = (
        f"from vitdeploy.system.quiet import quiet_libraries; import logging, warnings; {begin}; "
        "logging.getLogger('library').warning('a line'); warnings.warn('another', FutureWarning)"
    )
    assert bool(printed(script)) is lines
    if not lines:
        assert printed(script, PYTHONWARNINGS="error") == ""


def test_what_vitdeploy_itself_logs_is_a_note() -> None:
    script = (
        "from vitdeploy.system.quiet import quiet_libraries; import logging; quiet_libraries(); "
        "logging.getLogger('vitdeploy.sources.read').warning('merged\\nthe %s', 'adapter')"
    )
    assert printed(script) == "Note: merged the adapter\n"
