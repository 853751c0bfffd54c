"""The graph's own resize against Pillow's, byte by byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from bundles import tiny_model, write_checkpoint_of
from compiler import build_engine
from PIL import Image
from raising import raises

import vitdeploy
from vitdeploy import GraphOptions, SourceOptions
from vitdeploy.assess.data.images import synthetic_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import UsageError
from vitdeploy.exporters.graph.embedded_resize import embed_resize
from vitdeploy.exporters.graph.onnx_file import write_onnx
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.specs import PixelFormat, PixelStage


def test_a_bundle_takes_decoded_images(tmp_path: Path) -> None:
    """The predictor hands them over as they are; to the model they are the processor's."""
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    plain = vitdeploy.export(checkpoint, output=tmp_path / "plain")
    images: list[Any] = [image for size in SIZES for image in synthetic_images(1, *size)]
    with vitdeploy.load(plain.path) as predictor:
        want = [[(item.label, item.score) for item in found] for found in predictor.predict(images)]
    for precision in ("fp32", "fp16", "bf16"):
        bundle = vitdeploy.export(
            checkpoint, precision=precision, output=tmp_path / precision, graph=GraphOptions(embed_resize=True)
        )
        (artifact,) = bundle.manifest.artifacts
        assert artifact.pixels == PixelFormat(PixelStage.DECODED, "nhwc", "uint8")
        assert artifact.inputs[0].shape == ("batch", "height", "width", 3)
        if precision == "bf16":  # no kernels on a CPU
            continue
        assert vitdeploy.compare(bundle, images=images).status == "passed"
        with vitdeploy.load(bundle.path, precision=precision) as predictor:
            for found, wanted in zip(predictor.predict(images), want, strict=True):
                scores = {item.label: item.score for item in found}
                assert all(abs(scores[label] - score) <= 0.02 for label, score in wanted)
    for precision in ("fp32", "fp16", "bf16"):
        build_engine(Bundle.open(tmp_path / precision))


def test_arrays_that_the_graph_has_no_memory_for_are_refused(tmp_path: Path) -> None:
    """A strip of 2,000,000 pixels took 4 GB; whatever hands it over, and however many images run together."""
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    bundle = vitdeploy.export(checkpoint, output=tmp_path / "bundle", graph=GraphOptions(embed_resize=True))
    with vitdeploy.load(bundle.path) as predictor:
        for count, height, width in ((1, 1, 2_000_000), (1, 40_000, 2), (1, 9000, 9000), (20, 2000, 2000)):
            images = np.lib.stride_tricks.as_strided(
                np.zeros(3, np.uint8), (count, height, width, 3), (0, 0, 0, 1), writeable=False
            )
            with raises(UsageError, what="pixel_values", found=images.shape):
                predictor.runtime.run({"pixel_values": images})
        assert predictor.runtime.run({"pixel_values": np.zeros((2, 500, 400, 3), np.uint8)})["logits"].shape[0] == 2


def test_a_dynamic_size_cannot_be_embedded(tmp_path: Path) -> None:
    with raises(UsageError, what="embed_resize"):
        vitdeploy.export(
            output=tmp_path / "out",
            graph=GraphOptions(embed_resize=True, dynamic_image_size=True),
            source=SourceOptions(random_weights="vit-tiny-patch16-32"),
        )


RESIZED = PixelFormat(PixelStage.RESIZED, "nchw", "uint8")
SIZES = [(24, 24), (1, 1), (7, 60), (61, 24), (333, 500), (480, 31), (23, 25), (640, 427), (5, 3000)]


def resize_graph(folder: Path, processor: ImageProcessor) -> OnnxRuntime:
    """A graph that resizes, and gives the bytes as numbers."""
    assert processor.output_size is not None
    pixels = ir.Value(
        name="pixel_values",
        type=ir.TensorType(ir.DataType.UINT8),
        shape=ir.Shape(["batch", processor.num_channels, *processor.output_size]),
    )
    cast = ir.node("Cast", [pixels], {"to": int(ir.DataType.FLOAT)})
    bytes_out = cast.outputs[0]
    bytes_out.name, bytes_out.type = "bytes", ir.TensorType(ir.DataType.FLOAT)
    bytes_out.shape = pixels.shape
    graph = ir.Graph([pixels], [bytes_out], nodes=[cast], opset_imports={"": 20}, name="resize")
    model = ir.Model(graph, ir_version=10)
    embed_resize(model, processor)
    write_onnx(model, folder / "resize.onnx")
    return OnnxRuntime(folder / "resize.onnx")


def crop(height: int, width: int) -> dict[str, Any]:
    return {"do_center_crop": True, "crop_size": {"height": height, "width": width}}


PROCESSORS: dict[str, dict[str, Any]] = {
    "bilinear": {"size": {"height": 24, "width": 24}, "resample": 2},
    "bicubic": {"size": {"height": 24, "width": 24}, "resample": 3},
    "wide": {"size": {"height": 20, "width": 36}, "resample": 3},
    "shortest edge and crop": {"size": {"shortest_edge": 27}, "resample": 3, **crop(24, 24)},
    "crop alone": {"do_resize": False, **crop(24, 30)},
    "crop that pads": {"size": {"height": 15, "width": 40}, "resample": 2, **crop(24, 25)},
    "timm's crop": {"size": {"shortest_edge": 27}, "resample": 3, **crop(24, 24), "crop_rounding": "half_even"},
    "timm's crop that pads": {
        "size": {"shortest_edge": 21},
        "resample": 3,
        **crop(24, 26),
        "crop_rounding": "half_even",
    },
}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", PROCESSORS)
def test_every_byte_is_pillows(tmp_path: Path, name: str, channels: int) -> None:
    settings = PROCESSORS[name]
    kind = "BitImageProcessor" if settings.get("do_center_crop") else "ViTImageProcessor"
    settings = {**settings, "image_mean": [0.5] * channels, "image_std": [0.5] * channels}
    processor = ImageProcessor.from_dict({"image_processor_type": kind, **settings})
    draw = np.random.default_rng(0)
    with resize_graph(tmp_path, processor) as runtime:
        for height, width in SIZES:
            arrays = draw.integers(0, 256, (3, height, width, channels), np.uint8)
            arrays[1] = 255
            arrays[2, ..., -1] = draw.choice([0, 1, 254, 255], (height, width))  # of RGBA, the alphas of special rules
            images = [
                *synthetic_images(1, height, width, mode=processor.mode),
                *(Image.fromarray(array[:, :, 0] if channels == 1 else array) for array in arrays),
            ]
            pixel_values = np.stack([np.asarray(image).reshape(height, width, channels) for image in images])
            found = runtime.run({"pixel_values": pixel_values})["bytes"]
            np.testing.assert_array_equal(found, processor(images, pixels=RESIZED), err_msg=f"{height}x{width}")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"image_processor_type": "BitImageProcessor", "do_center_crop": False}, "embed_resize"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 1}, "resample"),
    ],
)
def test_what_cannot_be_embedded(settings: dict[str, Any], what: str) -> None:
    processor = ImageProcessor.from_dict(settings)
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 20}), ir_version=10)
    with raises(UsageError, what=what):
        embed_resize(model, processor)
