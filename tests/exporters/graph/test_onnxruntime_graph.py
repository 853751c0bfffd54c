"""Graphs fused ahead of time: the same function, names and axes, the same bytes, in ONNX Runtime's own operators."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from bundles import (
    FLOAT32_TOLERANCE,
    export_graph,
    make_feeds,
    reference,
    tiny_model,
    worst_difference,
    write_checkpoint_of,
)
from raising import raises
from small_graphs import graph_of

import vitdeploy
from vitdeploy.errors import CheckFailedError
from vitdeploy.exporters.graph import onnxruntime_graph
from vitdeploy.exporters.graph.onnxruntime_graph import write_optimized
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.specs import Task


@pytest.mark.parametrize(
    ("task", "options"),
    [
        (Task.CLASSIFICATION, {}),
        (Task.FEATURES, {"dynamic_image_size": True, "outputs": ["last_hidden_state", "attentions"]}),
        (Task.MASKED_IMAGE_MODELING, {"max_bytes": 0}),
    ],
    ids=["plain", "dynamic", "beside"],
)
def test_the_same_function_in_fused_operators(tmp_path: Path, task: Task, options: dict[str, Any]) -> None:
    model = tiny_model(task)
    plain = export_graph(model, tmp_path / "plain", **options)
    exported = export_graph(model, tmp_path / "fused", optimize="onnxruntime", **options)
    assert exported.files == plain.files
    assert sorted(path.name for path in (tmp_path / "fused" / "onnx").iterdir()) == sorted(
        Path(name).name for name in exported.files
    )
    assert exported.options == {**plain.options, "optimize": f"onnxruntime {ort.__version__}"}
    assert exported.tools == {**plain.tools, "onnxruntime": ort.__version__}
    proto = onnx.load(tmp_path / "fused" / exported.files[0])
    assert {item.domain for item in proto.opset_import} == {"", "com.microsoft"}
    assert sum(node.domain == "com.microsoft" for node in proto.graph.node) >= 2
    assert len(proto.graph.node) < len(onnx.load(tmp_path / "plain" / plain.files[0]).graph.node)
    assert os.fsencode(tmp_path) not in proto.SerializeToString()
    arrays = make_feeds(model, 3)
    found = []
    for folder in ("plain", "fused"):
        with OnnxRuntime(tmp_path / folder / exported.files[0]) as runtime:
            assert (runtime.inputs, runtime.outputs) == (exported.inputs, exported.outputs)
            found.append(runtime.run(arrays))
    assert worst_difference(found[1], found[0]) <= FLOAT32_TOLERANCE
    if not options.get("outputs"):
        assert worst_difference(found[1], reference(model, arrays)) <= FLOAT32_TOLERANCE


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    model = tiny_model()
    contents = set()
    for name in ("a", "b"):
        exported = export_graph(model, tmp_path / name, optimize="onnxruntime")
        contents.add((tmp_path / name / exported.files[0]).read_bytes())
    assert len(contents) == 1


def test_a_bundle_says_how_it_was_made(tmp_path: Path) -> None:
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    bundle = vitdeploy.export(
        checkpoint, output=tmp_path / "bundle", graph=vitdeploy.GraphOptions(optimize="onnxruntime")
    )
    (artifact,) = bundle.manifest.artifacts
    assert artifact.options["optimize"] == f"onnxruntime {ort.__version__}"
    assert artifact.tools["onnxruntime"] == ort.__version__
    bundle.verify()


def test_another_signature_is_a_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = graph_of("g (float[n, 4] x) => (float[n, 4] z) { z = Relu(x) }")
    monkeypatch.setattr(onnxruntime_graph, "_optimize", lambda plain, fused: ir.save(other, fused))
    model = graph_of("g (float[n, 4] x) => (float[n, 4] y) { t = Add(x, w) y = Relu(t) }", w=np.ones(4, np.float32))
    with raises(CheckFailedError, what="graph", expected=re.compile("'y'"), found=re.compile("'z'")):
        write_optimized(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_is_not_valid_is_a_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = graph_of("g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")
    other.graph[0].op_type = "Unheard"
    monkeypatch.setattr(onnxruntime_graph, "_optimize", lambda plain, fused: ir.save(other, fused))
    model = graph_of("g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")
    with raises(CheckFailedError, what="graph", found=re.compile("Unheard")):
        write_optimized(model, tmp_path / "model.onnx")
