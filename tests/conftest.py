"""Fixtures that all tests share: checkpoints as transformers writes them.

torch and transformers are imported by the fixtures that need them, so that the torch-free core can be tested without.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import importlib
import os
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from vitdeploy.system.telemetry import without_reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from families import Head
    from torch import nn

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.models.config import ViTConfig
    from vitdeploy.models.layers.encoder import AttentionKind
    from vitdeploy.models.vit import VisionTransformer
    from vitdeploy.specs import Task


# Before any test imports it by itself, which would load its reporter of usage.
with contextlib.suppress(ImportError), without_reporter():
    importlib.import_module("openvino")

os.environ["VITDEPLOY_PROGRESS_EVERY"] = "0"  # seconds depend on the machine's load
os.environ.pop("GITHUB_ACTIONS", None)  # which adds lines for its log

# A process takes a file at a time: those that take minutes come first, so that none is left to one process alone.
_LONGEST = (
    "test_layouts.py", "test_families.py", "test_channels.py", "test_documents.py", "test_quantized_export.py",
    "test_problem_types.py", "test_precision.py", "test_bounded_export.py", "test_smoothing_places.py",
    "test_onnx_graph.py", "test_engine_of_vit_base.py", "test_engine.py", "test_workflow.py", "test_process.py",
    "test_cli.py", "test_layers.py", "test_torchscript.py", "test_min_cosine.py", "test_build.py", "test_telemetry.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _LONGEST.index(item.path.name) if item.path.name in _LONGEST else len(_LONGEST))


def pytest_collection_finish() -> None:
    """What is imported by now is no garbage: leave it out of the collection that each export makes."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _traced_once() -> Iterator[None]:
    """The exporter of torch reads the source of onnxscript's 500 functions, and traces a model's structure, once."""
    import torch
    from traces import trace_once

    registry: Any = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", staticmethod(functools.cache(registry.from_torchlib)))
        patch.setattr(torch.onnx, "export", trace_once(torch.onnx.export))
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's own calibration ranges are neither read nor added to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITDEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A folder that transformers wrote, and the model that it wrote there.

    Attributes:
        folder: config.json and model.safetensors.
        peer: transformers' model, in evaluation mode.
        task: what its head computes.
    """

    folder: Path
    peer: Any
    task: Task

    @property
    def config(self) -> ViTConfig:
        from vitdeploy.models.config import ViTConfig, read_json
        from vitdeploy.models.families.lookup import image_tower

        return ViTConfig.from_dict(image_tower(read_json(self.folder / "config.json"), self.task))

    @property
    def weights(self) -> tuple[Path, ...]:
        return (self.folder / "model.safetensors",)

    def load(self, attention: AttentionKind = "sdpa") -> VisionTransformer:
        """Our model with these weights."""
        from vitdeploy.models.checkpoint import load_model

        return load_model(self.config, self.weights, self.task, attention=attention)


class WriteCheckpoint(Protocol):
    """Write a checkpoint with spread random weights.

    Args:
        head: which of transformers' classes; for a task, ViT's.
        config: arguments of transformers' configuration.
        pooler: whether a feature-extraction model has a pooler.
        seed: of the weights.
        processor: whether to write an image processor of the family's class, for images of the model's size.
    """

    def __call__(
        self, head: Task | Head, config: dict[str, Any], *, pooler: bool = True, seed: int = 0, processor: bool = True
    ) -> Checkpoint: ...


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The embedded model's bundle. Whoever alters it takes a copy."""
    import vitdeploy
    from vitdeploy.assets import default_checkpoint

    return vitdeploy.export(default_checkpoint(), output=tmp_path_factory.mktemp("digits") / "bundle")


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model's bundle for feature extraction. Whoever alters it takes a copy."""
    from bundles import write_bundle

    from vitdeploy.specs import Task

    return write_bundle(tmp_path_factory.mktemp("features"), Task.FEATURES).path


@pytest.fixture
def tiny_config() -> dict[str, Any]:
    """Arguments of transformers' ViTConfig for a model of 17 tokens that runs in a millisecond."""
    from families import TINY

    return {**TINY}


@pytest.fixture(scope="session")
def spread() -> Callable[[nn.Module, int], None]:
    """Give every parameter random values: biases start at 0 and norms at 1, where a missing one would not show."""
    import torch

    def spread_parameters(model: nn.Module, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.normal_(centre, 0.2, generator=generator)

    return spread_parameters


@pytest.fixture(scope="session")
def write_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, spread: Callable[[nn.Module, int], None]
) -> WriteCheckpoint:
    import transformers
    from families import VIT_CLASSES, Head
    from processors import write_processor

    transformers.utils.logging.disable_progress_bar()

    def write(
        head: Task | Head, config: dict[str, Any], *, pooler: bool = True, seed: int = 0, processor: bool = True
    ) -> Checkpoint:
        name, task = (head.name, head.task) if isinstance(head, Head) else (VIT_CLASSES[head], head)
        options = {"add_pooling_layer": pooler} if name == "ViTModel" else {}
        architecture = getattr(transformers, name)
        arguments = head.arguments(config) if isinstance(head, Head) else config
        peer = architecture(architecture.config_class(**arguments), **options).eval().requires_grad_(False)
        spread(peer, seed)
        folder = tmp_path_factory.mktemp("checkpoint")
        peer.save_pretrained(folder)
        size = getattr(peer.config, "vision_config", peer.config).image_size
        if processor:
            of_class = head.processor if isinstance(head, Head) else "ViTImageProcessor"
            write_processor(folder, (size, size) if isinstance(size, int) else tuple(size), of_class)
        return Checkpoint(folder, peer, task)

    return write


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of one artifact."""
    from bundles import write_bundle

    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def both(single: Bundle, tmp_path: Path) -> Bundle:
    """A bundle of two artifacts, the second one a small graph of several precisions."""
    from onnx_models import with_mixed_artifact

    return with_mixed_artifact(single, tmp_path / "both")
