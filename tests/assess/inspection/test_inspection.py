"""Inspection of an artifact, and differences between two."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from bundles import sign_again
from raising import raises

from vitdeploy.assess.inspection.inspection import (
    GRAPH_READERS,
    GraphReader,
    Inspection,
    Pair,
    artifact_named,
    differences,
    inspect_artifact,
    same_bytes,
)
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import BundleError, UsageError
from vitdeploy.specs import AxisRange, PixelFormat, PixelStage


@pytest.fixture
def no_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vitdeploy.assess.inspection.onnx_reader", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)


def inspected(bundle: Bundle, name: str | None = None) -> Inspection:
    return inspect_artifact(bundle, artifact_named(bundle, name))


def test_an_exported_graph(single: Bundle) -> None:
    inspection = inspected(single)
    assert inspection.note is None
    assert inspection.graph is not None
    assert inspection.graph.versions["opset"] == inspection.artifact.options["opset"]
    assert inspection.graph.layers["layers.0"] == {"float32": 29}
    assert inspection.graph.layers["layers.1"] == {"float32": 31}  # two slices: the head reads the class token alone
    stored = sum(inspection.graph.weight_bytes.values())
    assert 0.8 * inspection.artifact.files[0].size_bytes < stored < inspection.artifact.files[0].size_bytes
    assert json.loads(json.dumps(inspection.to_dict()))["graph"]["nodes"] == inspection.graph.nodes


def test_an_artifact_is_found_by_its_name(single: Bundle, both: Bundle) -> None:
    assert artifact_named(single).name == artifact_named(both, "onnx-fp32").name == "onnx-fp32"
    empty = dataclasses.replace(single, manifest=dataclasses.replace(single.manifest, artifacts=()))
    names = ["onnx-fp16", "onnx-fp32"]
    for bundle, expected, name in ((both, names, None), (both, names, "onnx-int8"), (empty, [], None)):
        with raises(UsageError, what="--artifact", where=bundle.path, expected=expected, found=name):
            artifact_named(bundle, name)


def test_nothing_differs_from_itself(single: Bundle) -> None:
    assert differences(inspected(single), inspected(single)) == {}
    assert same_bytes(inspected(single), inspected(single))


def test_what_differs_between_precisions(both: Bundle) -> None:
    a, b = inspected(both, "onnx-fp32"), inspected(both, "onnx-fp16")
    changes = differences(a, b)
    assert not same_bytes(a, b)
    assert a.graph is not None
    assert b.graph is not None
    assert list(changes) == ["artifact", "files", "file_bytes", "graph", "node_types", "weight_bytes", "layers"]
    assert changes["artifact"] == {"precision": Pair("fp32", "fp16")}
    sizes = a.artifact.files[0].size_bytes, b.artifact.files[0].size_bytes
    assert changes["file_bytes"]["total"] == Pair(*sizes, sizes[1] / sizes[0])
    assert changes["node_types"]["Cast"] == Pair(0, b.graph.node_types["Cast"])
    assert "float16" in changes["weight_bytes"]
    assert changes["weight_bytes"]["float16"].to_dict() == {"a": 0, "b": b.graph.weight_bytes["float16"]}
    assert changes["layers"]["layer 0"] == Pair({"float32": 29}, {"float16": 3, "float32": 3})
    assert changes["layers"]["layer 1"] == Pair({"float32": 31}, {"float16": 3, "float32": 3})
    assert changes["layers"]["head"] == Pair({"float32": 3}, {"float16": 2, "float32": 1})


def test_what_differs_in_the_manifest(single: Bundle) -> None:
    a = inspected(single)
    (output,) = a.artifact.validation["outputs"]
    other_output = {**output, "max_relative": 0.25}
    other = dataclasses.replace(
        a.artifact,
        inputs=(dataclasses.replace(a.artifact.inputs[0], shape=("batch", 3, "height", 32)),),
        outputs=(),
        pixels=PixelFormat(PixelStage.RESIZED, "nhwc", "uint8"),
        axes={"batch": AxisRange(1, 8, 32)},
        options={**a.artifact.options, "opset": 23},
        tools={**a.artifact.tools, "torch": "9"},
        hardware={"gpu": "some"},
        validation={**a.artifact.validation, "tolerance": 0.5, "outputs": [other_output, {"output": "another"}]},
    )
    b = dataclasses.replace(a, artifact=other, source=dataclasses.replace(a.source, id="another"), task="another")
    changes = differences(a, b)
    assert changes["model"] == {"source": Pair(a.source.id, "another"), "task": Pair(a.task, "another")}
    assert changes["inputs"] == {"pixel_values": Pair("float32 (batch, 3, 32, 32)", "float32 (batch, 3, height, 32)")}
    assert changes["outputs"] == {"logits": Pair("float32 (batch, 3)", None)}
    assert changes["pixels"] == {
        "stage": Pair("normalized", "resized"),
        "layout": Pair("nchw", "nhwc"),
        "dtype": Pair("float32", "uint8"),
    }
    assert changes["axes"] == {"batch": Pair(None, {"minimum": 1, "optimum": 8, "maximum": 32})}
    assert changes["options"] == {"opset": Pair(20, 23)}
    assert changes["tools"] == {"torch": Pair(a.artifact.tools["torch"], "9")}
    assert changes["hardware"] == {"gpu": Pair(None, "some")}
    assert changes["validation"] == {
        "tolerance": Pair(1e-4, 0.5),
        "logits max_relative": Pair(output["max_relative"], 0.25),
    }
    sections = "model", "inputs", "outputs", "pixels", "axes", "options", "tools", "hardware", "validation"
    assert set(changes) == set(sections)


@pytest.mark.usefixtures("no_onnx")
def test_without_onnx_the_manifest_is_still_compared(both: Bundle) -> None:
    a, b = inspected(both, "onnx-fp32"), inspected(both, "onnx-fp16")
    assert (a.graph, a.to_dict()["graph"]) == (None, None)
    assert a.note is not None
    assert "reading onnx graphs needs a package that is not installed" in a.note
    assert "vitdeploy[export]" in a.note
    assert list(differences(a, b)) == ["artifact", "files", "file_bytes"]


def test_a_package_that_does_not_load_is_named(single: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken_reader.py").write_text("raise ImportError('libfoo.so: not found')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(GRAPH_READERS, "onnx", GraphReader("broken_reader:read", "export"))
    note = inspected(single).note
    assert note is not None
    assert "libfoo.so: not found" in note


def test_a_format_without_a_reader_says_so(single: Bundle) -> None:
    (artifact,) = single.manifest.artifacts
    inspection = inspect_artifact(single, dataclasses.replace(artifact, format="coreml"))
    assert inspection.graph is None
    assert inspection.note is not None
    assert "has no reader for coreml graphs" in inspection.note


def test_an_altered_file_is_refused(both: Bundle) -> None:
    path = both.path / "onnx" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with raises(BundleError, where=path):
        inspected(both, "onnx-fp32")
    assert inspected(both, "onnx-fp16").graph is not None


def test_a_file_that_is_vouched_for_and_no_model_is_refused(both: Bundle) -> None:
    (both.path / "onnx" / "model.onnx").write_bytes(b"\xff" * 100)
    with raises(BundleError, where=both.path / "onnx" / "model.onnx"):
        inspected(sign_again(both), "onnx-fp32")
