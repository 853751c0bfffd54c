"""Summaries of TorchScript files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from bundles import TINY, sign_again, tiny_model, write_checkpoint_of
from raising import raises

import vitdeploy
from vitdeploy.assess.inspection.graph_summary import GraphSummary
from vitdeploy.assess.inspection.inspection import artifact_named, differences, inspect_artifact
from vitdeploy.assess.inspection.torchscript_reader import read_torchscript
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import BundleError
from vitdeploy.models.signature import SIGNATURE_FILE
from vitdeploy.runtimes.torchscript import load_module

SPEC = '{"name": "pixel_values", "dtype": "float32", "shape": [1]}'


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("torchscript")
    checkpoint = write_checkpoint_of(tiny_model(), folder / "checkpoint")
    return [
        vitdeploy.export(
            checkpoint,
            to="torchscript",
            precision=precision,
            output=folder / "out",
            graph=vitdeploy.GraphOptions(dynamic_image_size=True),
        )
        for precision in ("fp32", "fp16")
    ][-1]


def read(bundle: Bundle, name: str) -> GraphSummary:
    graph = inspect_artifact(bundle, artifact_named(bundle, name)).graph
    assert graph is not None
    return graph


def test_nodes_and_weights(bundle: Bundle) -> None:
    single, half = (read(bundle, f"torchscript-{precision}") for precision in ("fp32", "fp16"))
    assert single.versions == half.versions == {"file format": 10}
    assert (single.node_types["linear"], single.node_types["layer_norm"]) == (6 * 2 + 1, 2 * 2 + 1)
    assert single.node_types["scaled_dot_product_attention"] == 2
    assert "prim::Constant" not in single.node_types
    numbers = sum(parameter.numel() for parameter in tiny_model().parameters())
    assert single.weight_bytes == {"float32": 4 * numbers}
    table = 4 * 16 * TINY["hidden_size"]  # of the patches' positions, which are interpolated in float32
    assert half.weight_bytes == {"float16": 2 * numbers - table // 2, "float32": table}


def test_precision_by_layer(bundle: Bundle) -> None:
    single, half = (read(bundle, f"torchscript-{precision}") for precision in ("fp32", "fp16"))
    assert list(single.layers) == list(half.layers) == ["embeddings", "layers.0", "layers.1", "head"]
    assert all(list(types) == ["float32"] for types in single.layers.values())
    assert half.layers["layers.0"] == half.layers["layers.1"] == {"float16": single.layers["layers.0"]["float32"]}
    assert set(half.layers["embeddings"]) == {"float16", "float32"}  # positions are interpolated in float32
    assert half.layers["head"]["float32"] == 1  # the logits
    assert half.layers["head"]["float16"] == single.layers["head"]["float32"] - 1


def test_the_precision_of_clip(tmp_path: Path) -> None:
    """Its norm before the layers, and the number in quick GELU, change no layer's."""
    checkpoint = Path(__file__).parents[2] / "golden" / "timm" / "clip_0"
    bundle = vitdeploy.export(checkpoint, to="torchscript", output=tmp_path / "out")
    layers = read(bundle, "torchscript-fp32").layers
    assert list(layers) == ["embeddings", "layers.0", "layers.1", "head"]
    assert all(list(types) == ["float32"] for types in layers.values())


def test_what_differs(bundle: Bundle) -> None:
    a, b = (inspect_artifact(bundle, artifact_named(bundle, f"torchscript-{name}")) for name in ("fp32", "fp16"))
    assert {"artifact", "file_bytes", "weight_bytes", "layers"} <= set(differences(a, b))


def test_a_file_that_is_no_torchscript_is_refused(bundle: Bundle) -> None:
    (bundle.path / "torchscript" / "model_fp16.pt").write_bytes(b"no")
    with raises(BundleError) as caught:
        read(sign_again(bundle), "torchscript-fp16")
    assert "torchscript/model_fp16.pt" in str(caught.value)


@pytest.mark.parametrize(
    "signature",
    [
        "{",
        "null",
        "{}",
        "[" * 100_000,
        '{"inputs": [], "outputs": []}',
        '{"inputs": [{"name": "pixel_values", "dtype": "float99", "shape": [1]}], "outputs": []}',
        '{"inputs": [{"name": "pixel_values", "dtype": "nn", "shape": [1]}], "outputs": []}',
        '{"inputs": [{"name": "pixel_values", "dtype": 5, "shape": [1]}], "outputs": []}',
        f'{{"inputs": [{", ".join([SPEC] * 9)}], "outputs": []}}',
    ],
)
def test_a_signature_that_is_none_is_refused(bundle: Bundle, tmp_path: Path, signature: str) -> None:
    path = tmp_path / "model.pt"
    module, _ = load_module(bundle.path / "torchscript" / "model_fp32.pt", torch.device("cpu"))
    module.save(str(path), _extra_files={SIGNATURE_FILE: signature})
    with raises(BundleError) as caught:
        read_torchscript(path)
    assert str(path) in str(caught.value)


def test_a_version_with_more_behind_it_is_refused(bundle: Bundle) -> None:
    path = bundle.path / "torchscript" / "model_fp32.pt"
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content + b"\0" if name.endswith("version") else content)
    with raises(BundleError, what="version", where=path):
        read(sign_again(bundle), "torchscript-fp32")
