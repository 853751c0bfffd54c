"""Tiny models with spread weights, their bundles, and what they must answer."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from processors import write_processor

import vitdeploy
from vitdeploy.assess.data.images import feeds
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST, FileRecord
from vitdeploy.exporters import EXPORTERS
from vitdeploy.images.preprocessor_config import CLASS_OF_MODEL, Size
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.models.checkpoint import architecture_of, save_model
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.presets import random_model
from vitdeploy.models.signature import input_specs
from vitdeploy.runtimes import BACKENDS
from vitdeploy.specs import ExportSpec, Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vitdeploy.exporters import Exported
    from vitdeploy.models.vit import VisionTransformer

TINY: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": (32, 32),
    "patch_size": (8, 8),
    "encoder_stride": 8,
    "labels": ("cat", "dog", "newt"),
}
# What can be made, and run, without a GPU.
PORTABLE = tuple(name for name, row in EXPORTERS.items() if row.made_from is None)
CPU_BACKENDS = tuple(name for name, row in BACKENDS.items() if row.device == "cpu")
# Of an output's largest magnitude, against float64: a unit in the last place of float32 is 6e-8, and two tiny layers
# amplify it to some 1e-7 (seen: 7e-7 at most).
FLOAT32_TOLERANCE = 1e-5


def tiny_model(task: Task = Task.CLASSIFICATION, **config: Any) -> VisionTransformer:
    """A model whose every weight is drawn: zero biases and norms of one would hide a missing one."""
    model = random_model(ViTConfig(**TINY | config), task)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "layernorm" in name and name.endswith("weight") else 0.0
        parameter.normal_(centre, 0.2, generator=generator)
    return model


def write_checkpoint_of(model: VisionTransformer, folder: Path) -> Path:
    """A folder that `vitdeploy export --model` takes."""
    folder.mkdir(parents=True)
    save_model(model, folder / "model.safetensors")
    config = {**model.config.to_dict(), "architectures": [architecture_of(model)]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_processor(folder, model.config.image_size, CLASS_OF_MODEL[model.config.model_type])
    return folder


def write_bundle(
    folder: Path, task: Task = Task.CLASSIFICATION, *, formats: Sequence[str] = ("onnx",), **config: Any
) -> Bundle:
    """The bundle of `tiny_model`, with a float32 artifact of each format."""
    checkpoint = write_checkpoint_of(tiny_model(task, **config), folder / "checkpoint")
    return export_all(checkpoint, formats=formats, output=folder / "bundle")


def export_all(checkpoint: Path, *, formats: Sequence[str] = PORTABLE, **options: Any) -> Bundle:
    """One bundle with an artifact of each format."""
    return [vitdeploy.export(checkpoint, to=to, **options) for to in formats][-1]


def export_graph(model: VisionTransformer, folder: Path, *, max_bytes: int | None = None, **spec: Any) -> Exported:
    """Write the model's ONNX graph, with an image processor of its size and no images to observe."""
    from vitdeploy.exporters.graph.onnx_graph import trace_onnx

    processor = ImageProcessor(size=Size(*model.config.image_size))
    limit: dict[str, Any] = {} if max_bytes is None else {"max_bytes": max_bytes}
    return trace_onnx(model, ExportSpec(**spec), processor).write(folder, **limit)


def make_feeds(model: VisionTransformer, batch_size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random pixels, and a mask where one is due."""
    specs = input_specs(model.config, model.task)
    shape = (batch_size, *(size for size in specs[0].shape[1:] if isinstance(size, int)))
    return feeds(specs, np.random.default_rng(seed).standard_normal(shape, np.float32), seed)


def reference(model: VisionTransformer, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the model answers in float64, with separate attention operators."""
    exact = copy.deepcopy(model).double().with_attention("eager").eval()
    with torch.inference_mode():
        outputs = exact(**{name: torch.tensor(array) for name, array in arrays.items()})
    return {name: value.numpy() for name, value in outputs.items()}


def worst_difference(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    """The largest difference of any output, as a share of that output's largest magnitude."""
    assert list(found) == list(wanted)
    for name, want in wanted.items():
        assert found[name].shape == want.shape, name
        assert np.isfinite(found[name]).all(), name
    return max(float(np.abs(found[name] - want).max() / np.abs(want).max()) for name, want in wanted.items())


def sign_again(bundle: Bundle) -> Bundle:
    """Update the manifest's checksums to the current files."""
    renewed = [
        dataclasses.replace(artifact, files=tuple(FileRecord.of(bundle.path, file.path) for file in artifact.files))
        for artifact in bundle.manifest.artifacts
    ]
    files = tuple(FileRecord.of(bundle.path, file.path) for file in bundle.manifest.files)
    manifest = dataclasses.replace(bundle.manifest, files=files, artifacts=tuple(renewed))
    (bundle.path / MANIFEST).write_text(json.dumps(manifest.to_dict()), encoding="utf-8")
    return Bundle.open(bundle.path)
