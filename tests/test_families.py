"""Every head of every family from its checkpoint to a bundle's backends, against transformers.

Every head has an ONNX graph once. TorchScript, which takes a fifth of the time, stands for the sizes and the images.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from bundles import CPU_BACKENDS, PORTABLE, export_all
from families import HEADS, ONE_A_FAMILY, Head, random_config
from processors import UNROUNDED_TOLERANCE, unrounded_pixels, write_processor
from raising import raises
from sklearn.datasets import load_sample_images

import vitdeploy
from vitdeploy.errors import UsageError
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.signature import output_names
from vitdeploy.runtimes import open_runtime
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from conftest import Checkpoint, WriteCheckpoint
    from vitdeploy.bundle.bundle import Bundle

BATCHES = (1, 2, 7)
# Of an output's largest magnitude, float32: the order of sums differs between engines. Seen: 8e-6 at most, for logits
# of two classes, which cancel.
TOLERANCE = 1e-5
# Patches down and across, and pixels beyond: native, larger, smaller, wide, tall with a part of a patch, and one row.
SIZES = ((4, 4, 0), (7, 7, 0), (2, 2, 0), (3, 6, 0), (6, 4, 3), (1, 5, 1))
PHOTOGRAPHS = load_sample_images().filenames


def answers(checkpoint: Checkpoint, head: Head, feeds: Mapping[str, np.ndarray], *, resize: bool) -> dict[str, Any]:
    """What transformers' class answers; of MAE, its encoder told not to shuffle the patches."""
    model = head.exported(checkpoint.peer)
    options: dict[str, Any] = {"output_hidden_states": True}
    if resize and not head.resizes_by_itself:
        options["interpolate_pos_encoding"] = True
    if head.family == "vit_mae":
        pixels, (height, width) = feeds["pixel_values"], checkpoint.config.patch_size
        patches = (pixels.shape[2] // height) * (pixels.shape[3] // width)
        options["noise"] = torch.arange(patches, dtype=torch.float32).expand(len(pixels), -1)
    with torch.inference_mode():
        named = dict(model(**{name: torch.from_numpy(array) for name, array in feeds.items()}, **options))
    hidden = named.pop("hidden_states")
    return {name: value.numpy() for name, value in named.items() if isinstance(value, torch.Tensor)} | {
        f"hidden_states.{index}": value.numpy() for index, value in enumerate(hidden)
    }


def assert_near(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> None:
    assert got
    for name, value in got.items():
        assert value.shape == want[name].shape, name
        difference = np.abs(value - want[name]).max() / np.abs(want[name]).max()
        assert difference <= TOLERANCE, f"{name}: {difference:.1e}"


def pixels_of(batch_size: int, size: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch_size, 3, *size), np.float32)


# BEiT's biases are of two kinds, or both, and the MLP of DINOv2 is gated by SiLU at odd seeds. More configurations run
# in torch alone: see models/test_families.py.
SEEDS = {"BeitModel": 1, "BeitForMaskedImageModeling": 2, "Dinov2ForImageClassification": 1}


@pytest.mark.parametrize(("head", "seed"), [(head, SEEDS.get(head.name, 0)) for head in HEADS], ids=str)
def test_backends_give_every_output_of_transformers(
    write_checkpoint: WriteCheckpoint, tmp_path: Path, head: Head, seed: int
) -> None:
    checkpoint = write_checkpoint(head, random_config(head, seed), seed=seed)
    config = checkpoint.config
    names = output_names(checkpoint.load())
    outputs = [*names, "hidden_states"]
    bundle = vitdeploy.export(checkpoint.folder, output=tmp_path / "all", graph=vitdeploy.GraphOptions(outputs=outputs))
    for backend in ("torch", "onnxruntime", "openvino"):
        options: dict[str, Any] = {"outputs": outputs} if backend == "torch" else {}
        with open_runtime(bundle, backend, options) as runtime:
            for batch_size in BATCHES:
                feeds = {"pixel_values": pixels_of(batch_size, config.image_size)}
                if head.task is Task.MASKED_IMAGE_MODELING:
                    feeds["bool_masked_pos"] = np.random.default_rng(1).random((batch_size, config.num_patches)) < 0.4
                want = answers(checkpoint, head, feeds, resize=False)
                got = runtime.run(feeds)
                assert list(got) == [*names, *(f"hidden_states.{i}" for i in range(config.num_hidden_layers + 1))]
                assert_near(got, want)


# Two prefix tokens with positions, relative positions, registers without positions, and rotary positions: the first is
# also a ViT's case.
ALL_FORMATS = ("deit", "beit", "dinov2_with_registers", "dinov3_vit")


@pytest.mark.parametrize("head", ONE_A_FAMILY, ids=str)
def test_one_export_takes_every_size(write_checkpoint: WriteCheckpoint, tmp_path: Path, head: Head) -> None:
    checkpoint = write_checkpoint(head, random_config(head, 0) | {"patch_size": 5, "image_size": 20})
    formats = PORTABLE if head.family in ALL_FORMATS else ("torchscript",)
    graph = vitdeploy.GraphOptions(dynamic_image_size=True)
    bundle = export_all(checkpoint.folder, formats=formats, graph=graph, output=tmp_path / "out")
    assert ViTConfig.from_pretrained(bundle.path).image_size == (20, 20)
    config = checkpoint.config
    interpolated = config.rotary is None and not config.position_antialias  # TensorRT has no antialiased Resize
    assert formats is not PORTABLE or ("Resize" in operators(bundle)) is interpolated
    sizes = [(rows * 5 + rest, columns * 5 + rest) for rows, columns, rest in SIZES]
    inputs = [{"pixel_values": pixels_of(*pair)} for pair in zip(BATCHES * 2, sizes, strict=True)]
    want = [answers(checkpoint, head, feeds, resize=True) for feeds in inputs]
    for backend in CPU_BACKENDS if formats is PORTABLE else ("torch", "torchscript"):
        with open_runtime(bundle, backend) as runtime:
            assert runtime.inputs[0].shape == ("batch", 3, "height", "width")
            for feeds, answer in zip(inputs, want, strict=True):
                assert_near(runtime.run(feeds), answer)


@pytest.mark.parametrize(
    ("head", "size"), [(head, SIZES[3 + index % 2]) for index, head in enumerate(ONE_A_FAMILY)], ids=str
)
def test_another_fixed_size_is_baked(
    write_checkpoint: WriteCheckpoint, tmp_path: Path, head: Head, size: tuple[int, int, int]
) -> None:
    rows, columns, rest = size
    image_size = (rows * 5 + rest, columns * 5 + rest)
    checkpoint = write_checkpoint(head, random_config(head, 0) | {"patch_size": 5, "image_size": 20})
    graph = vitdeploy.GraphOptions(image_size=image_size)
    formats = PORTABLE if head.family == "beit" else ("torchscript",)
    bundle = export_all(checkpoint.folder, formats=formats, output=tmp_path / "out", graph=graph)
    assert formats is not PORTABLE or "Resize" not in operators(bundle)
    feeds = {"pixel_values": pixels_of(2, image_size)}
    for backend in ("torch", "onnxruntime", "openvino") if head.family == "beit" else ("torch", "torchscript"):
        with vitdeploy.load(bundle.path, backend=backend) as predictor:
            assert predictor.processor.output_size == image_size
            assert_near(predictor.runtime.run(feeds), answers(checkpoint, head, feeds, resize=True))


def test_a_mask_is_of_one_size(write_checkpoint: WriteCheckpoint, tmp_path: Path) -> None:
    head = next(head for head in HEADS if head.name == "ViTForMaskedImageModeling")
    checkpoint = write_checkpoint(head, random_config(head, 0))
    with raises(UsageError, what="dynamic_image_size", found=Task.MASKED_IMAGE_MODELING):
        vitdeploy.export(
            checkpoint.folder, output=tmp_path / "out", graph=vitdeploy.GraphOptions(dynamic_image_size=True)
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "head", [*ONE_A_FAMILY, *(head for head in HEADS if head.task is Task.MASKED_IMAGE_MODELING)], ids=str
)
def test_an_image_gives_what_transformers_makes_of_it_and_it_loads_the_bundle(
    write_checkpoint: WriteCheckpoint, tmp_path: Path, head: Head
) -> None:
    """The family's own processor, as transformers writes it, and its model: photographs in, outputs out."""
    config = random_config(head, 2) | {"patch_size": 8, "image_size": 48 if head.resizes_by_itself else 32}
    if head.task is Task.MASKED_IMAGE_MODELING:
        config |= {"encoder_stride": 8, "image_size": 32}
    if head.name == "BeitForMaskedImageModeling":  # of the two norms that it has else, transformers mixes up its own
        config["use_mean_pooling"] = True
    checkpoint = write_checkpoint(head, config)
    shortest = head.processor in ("BitImageProcessor", "CLIPImageProcessor")
    size = {"shortest_edge": 40} if shortest else {"height": 40, "width": 40}
    crop = shortest or head.processor == "DeiTImageProcessor"
    options = {"size": size, "crop_size": 32} if crop else {"size": {"height": 32, "width": 32}}
    process: Callable[..., np.ndarray]
    if hasattr(transformers, f"{head.processor}Pil"):
        peer = getattr(transformers, f"{head.processor}Pil")(**options)
        peer.save_pretrained(checkpoint.folder)
        process, error = (lambda pictures: peer(pictures, return_tensors="np")["pixel_values"]), 0.0
    else:  # of torchvision alone, which computes other roundings
        write_processor(checkpoint.folder, (32, 32), head.processor)
        usual = ImageProcessor.from_pretrained(checkpoint.folder)
        process, error = (lambda pictures: unrounded_pixels(pictures, usual)), UNROUNDED_TOLERANCE / 0.224

    bundle = vitdeploy.export(checkpoint.folder, to="torchscript", output=tmp_path / "out")
    pictures = [transformers.image_utils.load_image(name) for name in PHOTOGRAPHS]
    feeds = {"pixel_values": process(pictures)}
    if head.task is Task.MASKED_IMAGE_MODELING:
        feeds["bool_masked_pos"] = np.random.default_rng(1).random((2, 16)) < 0.4
    for backend in ("torch", "torchscript"):
        with vitdeploy.load(bundle.path, backend=backend) as predictor:
            pixels = predictor.processor(PHOTOGRAPHS)
            np.testing.assert_allclose(pixels, feeds["pixel_values"], rtol=0, atol=error)
            want = answers(checkpoint, head, feeds | {"pixel_values": pixels}, resize=False)
            assert_near(predictor.runtime.run(feeds | {"pixel_values": pixels}), want)
            if head.task is Task.CLASSIFICATION:
                best = [predictions[0].index for predictions in predictor.predict(PHOTOGRAPHS)]
                assert best == want["logits"].argmax(axis=1).tolist()
    assert_transformers_loads(bundle, checkpoint, head)


def assert_transformers_loads(bundle: Bundle, checkpoint: Checkpoint, head: Head) -> None:
    """The bundle is a repository like any other, with the weights of the checkpoint."""
    name = json.loads((bundle.path / "config.json").read_text())["architectures"][0]
    model, report = getattr(transformers, name).from_pretrained(bundle.path, output_loading_info=True)
    assert not any(report.values()), report
    if hasattr(transformers, f"{head.processor}Pil"):
        processor = transformers.AutoImageProcessor.from_pretrained(bundle.path, backend="pil")
        assert type(processor).__name__ == f"{head.processor}Pil"
    for key, value in head.exported(checkpoint.peer).state_dict().items():
        if head.unused is not None and key.startswith(head.unused):
            continue
        if not (head.resizes_by_itself and "position" in key):  # which are baked at the processor's size
            assert torch.equal(model.state_dict()[key], value), key


def operators(bundle: Bundle) -> set[str]:
    graph = onnx.load(bundle.path / bundle.manifest.artifacts[0].files[0].path).graph
    return {node.op_type for node in graph.node}
