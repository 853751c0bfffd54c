"""OpenCLIP's folders and weights give its own pixels and embeddings, which tests/golden/make_open_clip.py wrote."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import sklearn.datasets
import torch
from hub_server import hub_server, use_hub
from PIL import Image
from raising import raises

import vitdeploy
from vitdeploy import WeightsFile
from vitdeploy.errors import CheckpointError, UsageError
from vitdeploy.models.checkpoint import make_model
from vitdeploy.models.config import ViTConfig
from vitdeploy.sources.architectures import open_clip_table
from vitdeploy.sources.layouts.open_clip_layout import from_open_clip, open_clip_processor
from vitdeploy.sources.read import Checkpoint, read_checkpoint
from vitdeploy.sources.timm_layouts.layout import from_timm
from vitdeploy.specs import Task

GOLDEN = Path(__file__).parents[2] / "golden" / "open_clip"
CASES = ("plain", "quickgelu")


def read(case: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    config: dict[str, Any] = json.loads((GOLDEN / case / "open_clip_config.json").read_text())
    return config, safetensors.torch.load_file(GOLDEN / case / "open_clip_model.safetensors")


def assert_same(checkpoint: Checkpoint, case: str) -> None:
    expected = np.load(GOLDEN / case / "expected.npz")
    photograph = Image.fromarray(sklearn.datasets.load_sample_images().images[0]).crop((0, 0, 601, 427))
    np.testing.assert_array_equal(checkpoint.processor([photograph]), expected["pixel_values"])
    with torch.inference_mode():
        found = checkpoint.model(torch.from_numpy(expected["pixel_values"]))["image_embeds"].numpy()
    largest = np.abs(expected["image_embeds"]).max()
    np.testing.assert_allclose(found, expected["image_embeds"], rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("case", CASES)
def test_a_folder_is_read_as_openclip_reads_it(case: str) -> None:
    checkpoint = read_checkpoint(GOLDEN / case)
    assert_same(checkpoint, case)
    assert checkpoint.source.processor is not None
    assert checkpoint.source.processor.kind == "open_clip"


def test_the_older_file_is_read(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "plain" / "open_clip_config.json", tmp_path)
    with raises(CheckpointError, where=tmp_path):
        read_checkpoint(tmp_path)
    torch.save(read("plain")[1], tmp_path / "open_clip_pytorch_model.bin")
    assert_same(read_checkpoint(tmp_path), "plain")


def test_a_hub_repository_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_server({"org/clip": GOLDEN / "plain"}) as hub:
        use_hub(hub.url, tmp_path / "hub", monkeypatch)
        checkpoint = read_checkpoint("org/clip")
        assert_same(checkpoint, "plain")
        assert (checkpoint.source.id, checkpoint.source.weights[0].path) == ("org/clip", "open_clip_model.safetensors")
        assert_same(read_checkpoint("org/clip", offline=True), "plain")


def test_a_bundle_is_exported(tmp_path: Path) -> None:
    bundle = vitdeploy.export(GOLDEN / "plain", output=tmp_path / "out")
    expected = np.load(GOLDEN / "plain" / "expected.npz")
    with vitdeploy.load(bundle.path) as predictor:
        found = predictor.runtime.run({"pixel_values": expected["pixel_values"]})["image_embeds"]
    np.testing.assert_allclose(
        found, expected["image_embeds"], rtol=0, atol=1e-5 * np.abs(expected["image_embeds"]).max()
    )


def test_weights_are_read_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, tensors = read("plain")
    models = {"ViT-B-32": config["model_cfg"] | {"quick_gelu": False}}
    monkeypatch.setattr(open_clip_table, "open_clip_models", lambda: models)
    monkeypatch.setattr("vitdeploy.sources.architectures.lookup.open_clip_models", lambda: models)
    path = tmp_path / "epoch_3.pt"
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, path)
    checkpoint = read_checkpoint(WeightsFile(path, arch="ViT-B-32"))
    assert_same(checkpoint, "plain")
    assert checkpoint.source.architecture == "ViT-B-32"
    with raises(UsageError, what="num_classes"):
        read_checkpoint(WeightsFile(path, arch="ViT-B-32", num_classes=3))
    with raises(CheckpointError, what="arch", expected="OpenCLIP", found="vit_base_patch16_224"):
        read_checkpoint(WeightsFile(path, arch="vit_base_patch16_224"))
    openai = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save({**tensors, **openai}, path)
    with raises(CheckpointError, what="arch", expected="ViT-B-32-quickgelu"):
        read_checkpoint(WeightsFile(path, arch="ViT-B-32"))


def test_every_named_architecture_is_one_that_is_converted() -> None:
    models = open_clip_table.open_clip_models()
    assert {"ViT-B-32", "ViT-B-32-quickgelu", "ViT-L-14", "ViT-H-14", "ViT-bigG-14"} <= models.keys()
    for config in models.values():
        with raises(CheckpointError, what="weights"):
            from_open_clip({"model_cfg": config}, {})
        size = config["vision_cfg"]["image_size"]
        assert open_clip_processor({"model_cfg": config})["crop_size"] == {"height": size, "width": size}


def at(place: str, key: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        (config["preprocess_cfg"] if place == "preprocess_cfg" else config["model_cfg"][place])[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "key"),
    [
        *((at("vision_cfg", key, value), key) for key, value in (
            ("no_ln_pre", True), ("pool_type", "avg"), ("attentional_pool", True), ("qk_norm", True),
            ("layers", [3, 4]), ("width", "32"), ("head_width", 0), ("mlp_ratio", -1),
            ("norm_kwargs", {"eps": 1e-6}), ("unknown", 1), ("ls_init_value", 0.1),
            ("act_kwargs", {"approximate": "tanh"}),
        )),
        (at("vision_cfg", "patch_size", []), "vision_cfg.patch_size"),
        (at("vision_cfg", "layers", 1), "weights"),
        (at("vision_cfg", "timm_model_name", "resnet50"), "timm_proj"),
        (lambda config: config["model_cfg"].update(vision_cfg=3), "vision_cfg"),
        (lambda config: config["model_cfg"].update(quick_gelu=1), "quick_gelu"),
    ],
)  # fmt: skip
def test_encoders_without_an_equivalent_are_refused(change: Any, key: str) -> None:
    config, tensors = read("plain")
    config = copy.deepcopy(config)
    change(config)
    with raises(CheckpointError, what=key):
        from_open_clip(config, tensors)


@pytest.mark.parametrize("name", ["proj", "transformer.resblocks.0.attn.in_proj_weight"])
def test_weights_without_axes_are_refused(name: str) -> None:
    config, tensors = read("plain")
    with raises(CheckpointError, what="weights"):
        content, weights = from_open_clip(config, {**tensors, f"visual.{name}": torch.tensor(1.0)})
        make_model(ViTConfig.from_dict(content), weights, Task.FEATURES, origin="here")


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("resize_mode", "longest", "preprocess_cfg.resize_mode"),
        ("size", [24, 32], "preprocess_cfg.resize_mode"),
        ("size", "32", "preprocess_cfg.size"),
        ("mode", "L", "preprocess_cfg"),
        ("interpolation", "nearest", "preprocess_cfg"),
        ("mean", [0.5], "preprocess_cfg.mean"),
        ("std", "x", "preprocess_cfg.std"),
    ],
)
def test_transforms_without_an_equivalent_are_refused(key: str, value: object, what: str) -> None:
    config, _ = read("plain")
    at("preprocess_cfg", key, value)(config)
    with raises(CheckpointError, what=what):
        open_clip_processor(config)


def test_an_encoder_of_timm_is_converted_as_timms(tmp_path: Path) -> None:
    golden = GOLDEN.parent / "timm" / "deit_0"
    stated, tensors = (
        json.loads((golden / "config.json").read_text()),
        safetensors.torch.load_file(golden / "model.safetensors"),
    )
    trunk = {f"visual.trunk.{name}": tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    vision: dict[str, Any] = {
        "image_size": 32,
        "timm_model_name": "deit_tiny_patch16_224",
        "timm_pool": "token",
        "timm_proj": "none",
    }
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision}}
    content, weights = from_open_clip(config, {**trunk, "text.proj": torch.ones(1)})
    stated["num_classes"] = stated["model_args"]["num_classes"] = 0
    expected, same = from_timm(stated, {name.removeprefix("visual.trunk."): tensor for name, tensor in trunk.items()})
    assert (content, weights.keys()) == (expected, same.keys())
    with raises(CheckpointError, what="timm_proj"):
        from_open_clip(config, {**trunk, "visual.head.proj.weight": torch.ones(1, 24)})
    vision["timm_proj"] = "linear"
    with raises(CheckpointError, what="timm_proj"):
        from_open_clip(config, trunk)
    vision["timm_proj"] = None
    heads = {"visual.trunk.head.weight": torch.ones(24, 24), "visual.trunk.head.bias": torch.zeros(24)}
    with raises(CheckpointError, what="timm_proj"):
        from_open_clip(config, {**trunk, **heads})


def test_a_task_without_a_head_is_refused() -> None:
    with raises(CheckpointError, what="task", found=Task.CLASSIFICATION):
        from_open_clip(*read("plain"), Task.CLASSIFICATION)
