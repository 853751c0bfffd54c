"""`vitdeploy inspect`: one bundle, and two."""

from __future__ import annotations

import json
import sys

import pytest
from bundles import sign_again
from command_line import run

from vitdeploy.bundle.bundle import Bundle


def lines(text: str) -> list[str]:
    """The lines of a table, their columns a space apart."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_graph_of_each_artifact_is_shown(both: Bundle) -> None:
    code, out, err = run("inspect", both.path)
    assert (code, err) == (0, "")
    half, whole = out.split("onnx-fp32")
    for line in (
        "artifact onnx-fp16",
        "graph 17 nodes, IR version 10, opset 20",
        "node types Cast 6, Add 4, MatMul 4, LayerNormalization 2, Shape 1",
        "weights 8 tensors: float16 336 bytes, float32 320 bytes",
        "duplicated 1 of the weights, 128 bytes",
        "precision embeddings: float32 1",
        "precision layers 0-1: float16 3, float32 3",
        "precision head: float16 2, float32 1",
    ):
        assert line in lines(half)
    assert {"precision layer 0: float32 29", "precision layer 1: float32 31"} <= {*lines(whole)}
    assert "duplicated" not in whole


def test_one_artifact_is_chosen(both: Bundle) -> None:
    code, out, _ = run("inspect", both.path, "--artifact", "onnx-fp16")
    assert code == 0
    assert "onnx-fp16" in out
    assert "onnx-fp32" not in out
    _, out, _ = run("inspect", both.path, "--artifact", "onnx-fp16", "--json")
    (artifact,) = json.loads(out)["artifacts"]
    assert (artifact["precision"], artifact["graph"]["nodes"], artifact["note"]) == ("fp16", 17, None)


def test_two_artifacts_of_one_bundle(both: Bundle) -> None:
    chosen = ("--artifact", "onnx-fp32", "--artifact", "onnx-fp16")
    code, out, err = run("inspect", both.path, both.path, *chosen)
    assert (code, err) == (0, "")
    found = lines(out)
    assert found[:2] == [f"A: onnx-fp32 of {both.path}", f"B: onnx-fp16 of {both.path}"]
    for line in (
        "artifact precision fp32 fp16",
        "node types Cast 0 6",
        "weight bytes float16 0 bytes 336 bytes",
        "layers layer 0 float32 29 float16 3, float32 3",
        "layers layer 1 float32 31 float16 3, float32 3",
    ):
        assert line in found
    (total,) = [line for line in found if line.startswith("file bytes total")]
    assert total.endswith("x)")
    assert "opset" not in out  # is the same
    _, out, _ = run("inspect", both.path, both.path, *chosen, "--json")
    data = json.loads(out)
    assert (data["a"]["artifact"]["precision"], data["b"]["artifact"]["precision"]) == ("fp32", "fp16")
    assert data["same_bytes"] is False
    assert data["differences"]["node_types"]["Cast"] == {"a": 0, "b": 6}


def test_the_same_artifact_of_two_bundles(single: Bundle, both: Bundle) -> None:
    code, out, _ = run("inspect", single.path, both.path, "--artifact", "onnx-fp32")
    assert code == 0
    assert out.splitlines()[2:] == ["the files are identical, by the SHA-256 in the manifests", "nothing differs"]
    _, out, _ = run("inspect", single.path, both.path, "--artifact", "onnx-fp32", "--json")
    assert (json.loads(out)["same_bytes"], json.loads(out)["differences"]) == (True, {})


def test_an_only_artifact_needs_no_name(single: Bundle) -> None:
    code, out, _ = run("inspect", single.path, single.path)
    assert code == 0
    assert "nothing differs" in out


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["{both}", "--artifact", "onnx-int8"], "onnx-int8"),
        (["{both}", "{both}"], "--artifact"),
        (["{both}", "{single}", "--artifact", "onnx-fp16"], "onnx-fp16"),
        (["{both}", "{both}", *["--artifact", "onnx-fp16"] * 3], "--artifact"),
    ],
)
def test_usage_errors(single: Bundle, both: Bundle, options: list[str], name: str) -> None:
    code, out, err = run("inspect", *(option.format(single=single.path, both=both.path) for option in options))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert name in err


def test_a_corrupt_file_is_one_line_and_exits_with_4(both: Bundle) -> None:
    (both.path / "onnx" / "model.onnx").write_bytes(b"\xff" * 100)
    for message in ("onnx/model.onnx was altered", "valid ONNX model"):
        code, out, err = run("inspect", both.path)
        assert (code, out, err.count("\n")) == (4, "", 1)
        assert message in err
        sign_again(both)


def test_without_onnx_the_rest_is_shown(both: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vitdeploy.assess.inspection.onnx_reader", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, out, err = run("inspect", both.path, "--artifact", "onnx-fp16")
    assert (code, err) == (0, "")
    assert "options opset 20" in lines(out)
    (line,) = [line for line in out.splitlines() if "vitdeploy[export]" in line]
    assert "graph" in line
    code, out, _ = run("inspect", both.path, both.path, "--artifact", "onnx-fp16", "--artifact", "onnx-fp32")
    assert code == 0
    assert "graph not compared: reading onnx graphs needs" in out
    assert "precision" in out
