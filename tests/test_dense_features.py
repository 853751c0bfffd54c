"""Dense features from a checkpoint to every backend: maps of the image's own grid, beside other outputs or alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from bundles import CPU_BACKENDS, export_all, export_graph, tiny_model, write_checkpoint_of
from command_line import run
from compiler import build_engine
from families import HEADS, random_config

import vitdeploy
from vitdeploy.assess.debug.layers import compare_layers
from vitdeploy.assess.inspection.onnx_reader import read_onnx
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.runtimes import open_runtime

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import WriteCheckpoint

TOLERANCE = 1e-5  # of an output's largest magnitude
# Two prefix tokens, relative positions, and registers without positions.
NAMES = ("DeiTForImageClassification", "BeitForImageClassification", "Dinov2WithRegistersForImageClassification")
OUTPUTS = ("features.1", "logits", "raw_features")
SIZES = ((4, 4, 0), (3, 6, 0), (6, 4, 3))  # patches down and across, and pixels beyond


def wanted(peer: torch.nn.Module, pixels: np.ndarray, prefix: int, *, resize: bool) -> dict[str, np.ndarray]:
    """What transformers' classifier computes, its hidden states as maps; `features.1` before its norm."""
    options = {"output_hidden_states": True} | ({"interpolate_pos_encoding": True} if resize else {})
    with torch.inference_mode():
        answer = peer(torch.from_numpy(pixels), **options)
    grid = (pixels.shape[2] // 5, pixels.shape[3] // 5)
    maps = [state[:, prefix:].transpose(1, 2).unflatten(2, grid) for state in answer.hidden_states]
    return {"features.1": maps[1].numpy(), "logits": answer.logits.numpy(), "raw_features": maps[-1].numpy()}


def normalized(maps: np.ndarray, norm: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        value: np.ndarray = norm(torch.from_numpy(maps).movedim(1, -1)).movedim(-1, 1).numpy()
    return value


@pytest.mark.parametrize("name", NAMES)
def test_every_backend_gives_the_maps_of_transformers(
    write_checkpoint: WriteCheckpoint, tmp_path: Path, name: str
) -> None:
    head = next(head for head in HEADS if head.name == name)
    config = random_config(head, 0) | {"patch_size": 5, "image_size": 20, "num_hidden_layers": 2}
    checkpoint = write_checkpoint(head, config)
    model = checkpoint.load()
    graph = vitdeploy.GraphOptions(outputs=OUTPUTS, dynamic_image_size=True)
    bundle = export_all(checkpoint.folder, output=tmp_path / "out", graph=graph)
    nodes = onnx.load(bundle.path / "onnx" / "model.onnx").graph.node
    assert not {"If", "Loop", "Tile"}.intersection(node.op_type for node in nodes)
    for backend in CPU_BACKENDS:
        options = {"outputs": OUTPUTS} if backend == "torch" else {}
        with open_runtime(bundle, backend, options) as runtime:
            assert runtime.outputs[0].shape == ("batch", config["hidden_size"], "grid_height", "grid_width")
            for batch_size, (rows, columns, rest) in zip((1, 2, 7), SIZES, strict=True):
                shape = (batch_size, 3, rows * 5 + rest, columns * 5 + rest)
                pixels = np.random.default_rng(0).standard_normal(shape, np.float32)
                want = wanted(
                    checkpoint.peer, pixels, model.config.num_prefix_tokens, resize=not head.resizes_by_itself
                )
                if head.family != "beit":
                    want["features.1"] = normalized(want["features.1"], model.layernorm)
                got = runtime.run({"pixel_values": pixels})
                assert list(got) == list(OUTPUTS)
                assert got["features.1"].shape == (batch_size, config["hidden_size"], rows, columns)
                for output, value in got.items():
                    assert np.abs(value - want[output]).max() <= TOLERANCE * np.abs(want[output]).max(), output


def test_layers_after_the_last_one_requested_are_not_in_the_graph(tmp_path: Path) -> None:
    model = tiny_model(num_hidden_layers=4)
    counts = {}
    for outputs in (("logits",), ("features.2",), ("features.0",), ("logits", "features.2"), ("features",)):
        file = export_graph(model, tmp_path / "-".join(outputs), outputs=outputs).files[0]
        graph = onnx.load(tmp_path / "-".join(outputs) / file).graph
        counts[outputs] = [sum(node.op_type == "Softmax" for node in graph.node), len(graph.node)]
        layers = {tensor.name.split(".")[1] for tensor in graph.initializer if tensor.name.startswith("layers.")}
        assert len(layers) == counts[outputs][0]
    assert {outputs: softmaxes for outputs, (softmaxes, _) in counts.items()} == {
        ("logits",): 4, ("features.2",): 2, ("features.0",): 0, ("logits", "features.2"): 4, ("features",): 4,
    }  # fmt: skip
    # a norm, a slice, a transposition and a reshape
    assert counts["logits", "features.2"][1] == counts["logits",][1] + 4


def test_layers_are_still_told_apart_and_engines_built(tmp_path: Path) -> None:
    outputs = ["features.1", "logits", "features.0", "features", "raw_features.2"]
    folder = write_checkpoint_of(tiny_model(num_hidden_layers=3), tmp_path / "checkpoint")
    run("export", folder, "--outputs", ",".join(outputs), "--dynamic-image-size", "-o", tmp_path / "out")
    bundle = Bundle.open(tmp_path / "out")
    build_engine(bundle)
    graph = vitdeploy.GraphOptions(outputs=outputs, dynamic_image_size=True)
    bundle = export_all(folder, formats=("torchscript", "openvino"), output=tmp_path / "out", graph=graph)
    assert [spec.name for spec in bundle.artifact("onnx", "fp32").outputs] == outputs
    parts = ["embeddings", "layers.0", "layers.1", "layers.2", "head"]
    nodes = read_onnx(bundle.path / "onnx" / "model.onnx").layers
    assert list(nodes) == parts
    assert nodes["layers.0"] == nodes["layers.1"]
    for compared in compare_layers(bundle).results:
        assert compared.status == "passed", compared
        assert [part.part for part in compared.parts] == parts
