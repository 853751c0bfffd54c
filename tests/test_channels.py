"""Models of gray and of RGBA images, from the checkpoint to every kind of artifact, against transformers and Pillow."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.torch
import skimage
import sklearn.datasets
import torch
import transformers
from bundles import CPU_BACKENDS, PORTABLE, export_all, sign_again
from click.testing import CliRunner
from families import ONE_A_FAMILY, TINY, Head, random_config
from npz_files import NPZ_CONFIG, write_npz
from PIL import Image
from raising import raises

import vitdeploy
from vitdeploy.assess.data.images import synthetic_images
from vitdeploy.cli import cli
from vitdeploy.errors import BundleError, InputError
from vitdeploy.images.open import open_image
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.runtimes import open_runtime
from vitdeploy.runtimes.pytorch import PyTorchRuntime
from vitdeploy.sources.read import read_checkpoint
from vitdeploy.specs import MODES, PixelFormat, PixelStage, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conftest import Checkpoint, WriteCheckpoint

SKLEARN = Path(sklearn.datasets.__file__).parent / "images"
SKIMAGE = Path(skimage.__file__).parent / "data"
PHOTOGRAPHS = [
    SKLEARN / "china.jpg",
    SKIMAGE / "astronaut.png",
    SKIMAGE / "camera.png",  # gray
    SKIMAGE / "horse.png",  # RGBA
    SKIMAGE / "no_time_for_that_tiny.gif",  # palette
]
CHANNELS = pytest.mark.parametrize("channels", [1, 4])
STATISTICS: dict[int, Any] = {
    1: {"image_mean": [0.44], "image_std": [0.23]},
    4: {"image_mean": [0.485, 0.456, 0.406, 0.9], "image_std": [0.229, 0.224, 0.225, 0.3]},
}
PROCESSORS: dict[str, dict[str, Any]] = {
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 96, "width": 128}},
    "deit": {"image_processor_type": "DeiTImageProcessor", "size": 110, "crop_size": 96},
    "bit": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 110},
        "crop_size": {"height": 96, "width": 130},
        "do_convert_rgb": False,
    },
    "lanczos": {"image_processor_type": "ViTImageProcessor", "size": 64, "resample": 1},
    "nearest": {"image_processor_type": "ViTImageProcessor", "size": 64, "resample": 0},
    "no resize": {"image_processor_type": "ViTImageProcessor", "do_resize": False},
    "no normalize": {"image_processor_type": "ViTImageProcessor", "do_normalize": False},
    "neither": {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "do_normalize": False},
}
# Of an output's largest magnitude, float32: the order of sums differs between engines.
TOLERANCE = 1e-5


def near(found: np.ndarray, want: np.ndarray, tolerance: float = TOLERANCE) -> bool:
    return found.shape == want.shape and bool(np.abs(found - want).max() <= tolerance * np.abs(want).max())


def write_processor(folder: Path, **settings: Any) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def peer_pixels(folder: Path, images: Sequence[Image.Image]) -> np.ndarray:
    """Pixels from transformers' PIL backend for images of the right mode."""
    processor: Any = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return np.concatenate([processor(image, return_tensors="np")["pixel_values"] for image in images])


def converted(path: Path, mode: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert(mode)


@CHANNELS
@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("scalar", [False, True])
def test_pixels_are_those_of_transformers(tmp_path: Path, channels: int, name: str, scalar: bool) -> None:
    statistics = {"image_mean": 0.4, "image_std": 0.3} if scalar else STATISTICS[channels]
    write_processor(tmp_path, **PROCESSORS[name], **statistics)
    processor = ImageProcessor.from_pretrained(tmp_path, num_channels=channels)
    draw = np.random.default_rng(0)
    shape = (50, 70) if channels == 1 else (50, 70, channels)
    noise = Image.fromarray(draw.integers(0, 256, shape, np.uint8))
    for path in PHOTOGRAPHS:
        want = peer_pixels(tmp_path, [converted(path, MODES[channels])])
        np.testing.assert_array_equal(processor(path), want.astype(np.float32), err_msg=path.name)
    for image in (noise, noise.resize((128, 96)), noise.resize((64, 64))):  # and of the size that comes out
        np.testing.assert_array_equal(processor(image), peer_pixels(tmp_path, [image]).astype(np.float32))


@CHANNELS
def test_a_processor_keeps_its_channels_when_it_is_written(channels: int) -> None:
    for settings in PROCESSORS.values():
        processor = ImageProcessor.from_dict({**settings, **STATISTICS[channels]})
        assert processor.num_channels == channels
        assert ImageProcessor.from_dict(processor.to_dict()) == processor
        assert ImageProcessor.from_dict(processor.to_dict(), num_channels=channels) == processor
        assert processor.scale.shape == processor.offset.shape == (channels,)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
@pytest.mark.parametrize("of", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "PA"])
def test_conversions_are_pillows(mode: Any, of: str) -> None:
    image = converted(PHOTOGRAPHS[0], "RGB").resize((40, 30))
    if of in ("LA", "RGBA", "PA"):
        image.putalpha(image.convert("L"))
    image = image.convert(of)
    np.testing.assert_array_equal(np.asarray(open_image(image, mode=mode)), np.asarray(image.convert(mode)))


@pytest.mark.parametrize("mode", ["L", "RGBA"])
@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_the_transparency_of_a_palette(tmp_path: Path, mode: Any, transparency: Any) -> None:
    """It is the alpha of RGBA, and dropped in gray."""
    image = converted(PHOTOGRAPHS[0], "RGB").resize((40, 30)).convert("P")
    image.save(tmp_path / "palette.png", transparency=transparency)
    with Image.open(tmp_path / "palette.png") as opened:
        rgba = opened.convert("RGBA")
    want = rgba if mode == "RGBA" else image.convert("L")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "palette.png", mode=mode)), np.asarray(want))


def test_a_lab_image_is_gray_by_its_colours(tmp_path: Path) -> None:
    image = Image.new("LAB", (4, 4), (150, 120, 90))
    image.save(tmp_path / "lab.tif")
    want = open_image(tmp_path / "lab.tif").convert("L")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "lab.tif", mode="L")), np.asarray(want))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_arrays_of_every_shape(mode: Any) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (30, 40, 4), np.uint8)
    gray = rgba[:, :, 0]
    for array in (gray, gray[:, :, None], gray[None]):
        want = Image.fromarray(gray).convert(mode)
        np.testing.assert_array_equal(np.asarray(open_image(array, mode=mode)), np.asarray(want))
    for array in (rgba[:, :, :3], rgba):
        want = Image.fromarray(np.ascontiguousarray(array)).convert(mode)
        for order in (array, np.moveaxis(array, -1, 0)):
            np.testing.assert_array_equal(np.asarray(open_image(order, mode=mode)), np.asarray(want))


@CHANNELS
@pytest.mark.parametrize(
    ("settings", "accepted"),
    [
        ({}, False),  # three means by default, as in transformers
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, False),
        ({"image_mean": 0.5, "image_std": [0.5] * 3}, False),
        ({"image_mean": 0.5, "image_std": 0.5}, True),
        ({"do_normalize": False}, True),
        ({"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, True),
    ],
)
def test_means_that_do_not_fit_are_refused_as_in_transformers(
    write_checkpoint: WriteCheckpoint,
    tiny_config: dict[str, Any],
    settings: dict[str, Any],
    accepted: bool,
    channels: int,
) -> None:
    folder = write_checkpoint(Task.CLASSIFICATION, {**tiny_config, "num_channels": channels}).folder
    write_processor(folder, image_processor_type="ViTImageProcessor", size=32, **settings)
    image = converted(PHOTOGRAPHS[0], MODES[channels])
    if accepted:
        np.testing.assert_array_equal(read_checkpoint(folder).processor(image), peer_pixels(folder, [image]))
        return
    with pytest.raises(ValueError, match="elements if it is an iterable"):
        peer_pixels(folder, [image])
    with raises(InputError, what=re.compile("image_(mean|std)")):
        read_checkpoint(folder)


def checkpoint_of(write: WriteCheckpoint, head: Head | Task, config: dict[str, Any], channels: int) -> Checkpoint:
    """A checkpoint with an image processor of its channels."""
    checkpoint = write(head, {**config, "num_channels": channels})
    size = checkpoint.config.image_size[0]
    write_processor(
        checkpoint.folder, image_processor_type="ViTImageProcessor", size=size, resample=3, **STATISTICS[channels]
    )
    return checkpoint


@pytest.mark.parametrize(
    ("head", "channels"), [(head, (1, 4)[index % 2]) for index, head in enumerate(ONE_A_FAMILY)], ids=str
)
def test_every_family_computes_what_transformers_computes(
    write_checkpoint: WriteCheckpoint, head: Head, channels: int
) -> None:
    checkpoint = checkpoint_of(write_checkpoint, head, random_config(head, 0), channels)
    read = read_checkpoint(checkpoint.folder)
    pixels = read.processor(PHOTOGRAPHS[:3])
    np.testing.assert_array_equal(
        pixels, peer_pixels(checkpoint.folder, [converted(path, MODES[channels]) for path in PHOTOGRAPHS[:3]])
    )
    options: dict[str, Any] = {}
    if head.family == "vit_mae":
        options["noise"] = torch.arange(checkpoint.config.num_patches, dtype=torch.float32).expand(len(pixels), -1)
    model = head.exported(checkpoint.peer)
    with torch.inference_mode():
        want = dict(model(torch.from_numpy(pixels), **options).items())
    with PyTorchRuntime(read.model) as runtime:
        for name, value in runtime.run({"pixel_values": pixels}).items():
            assert near(value, want[name].numpy()), name


@CHANNELS
def test_masked_image_modeling(
    write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any], tmp_path: Path, channels: int
) -> None:
    checkpoint = checkpoint_of(write_checkpoint, Task.MASKED_IMAGE_MODELING, tiny_config, channels)
    bundle = vitdeploy.export(checkpoint.folder, output=tmp_path / "bundle")
    pixels = ImageProcessor.from_pretrained(bundle.path)(PHOTOGRAPHS[:2])
    mask = np.random.default_rng(0).random((2, 16)) < 0.5
    with torch.inference_mode():
        want = checkpoint.peer(torch.from_numpy(pixels), bool_masked_pos=torch.from_numpy(mask)).reconstruction
    with open_runtime(bundle, "onnxruntime") as runtime:
        found = runtime.run({"pixel_values": pixels, "bool_masked_pos": mask})["reconstruction"]
    assert found.shape == (2, channels, 32, 32)
    assert near(found, want.numpy())


@pytest.fixture(scope="module", params=[1, 4])
def tiny(request: pytest.FixtureRequest, write_checkpoint: WriteCheckpoint) -> Checkpoint:
    """A classifier of images of 32 x 32 pixels."""
    return checkpoint_of(write_checkpoint, Task.CLASSIFICATION, TINY, request.param)


def mode_of(checkpoint: Checkpoint) -> Any:
    return MODES[checkpoint.config.num_channels]


def labelled(folder: Path, checkpoint: Checkpoint) -> tuple[Path, list[Path]]:
    """A data set whose classes are those that transformers' model finds, but for the first image."""
    images = [image for seed in range(4) for image in synthetic_images(3, 50, 70, seed, mode=mode_of(checkpoint))]
    classes = peer_logits(checkpoint, images).argmax(axis=1)
    classes[0] = (classes[0] + 1) % 3
    files = []
    for index, (image, label) in enumerate(zip(images, classes, strict=True)):
        path = folder / "data" / checkpoint.peer.config.id2label[int(label)] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        files.append(path)
    return folder / "data", files


def peer_logits(checkpoint: Checkpoint, images: Sequence[Image.Image]) -> np.ndarray:
    with torch.inference_mode():
        logits: torch.Tensor = checkpoint.peer(torch.from_numpy(peer_pixels(checkpoint.folder, images))).logits
    return logits.numpy()


@pytest.mark.parametrize(
    "options",
    [
        {"graph": vitdeploy.GraphOptions(input="uint8")},
        {"graph": vitdeploy.GraphOptions(input="uint8", layout="nchw")},
        {"graph": vitdeploy.GraphOptions(embed_resize=True)},
        {"graph": vitdeploy.GraphOptions(dynamic_image_size=True)},
        {"precision": "fp16", "graph": vitdeploy.GraphOptions(io_dtype="float16")},
    ],
    ids=str,
)
def test_every_kind_of_input(tiny: Checkpoint, tmp_path: Path, options: dict[str, Any]) -> None:
    bundle = vitdeploy.export(tiny.folder, output=tmp_path / "bundle", **options)
    (artifact,) = bundle.manifest.artifacts
    assert artifact.pixels.channels(artifact.inputs[0].shape) == tiny.config.num_channels
    want = peer_logits(tiny, [converted(path, mode_of(tiny)) for path in PHOTOGRAPHS])
    precision = options.get("precision", "fp32")
    with vitdeploy.load(bundle.path, precision=precision) as predictor:
        for path, logits in zip(PHOTOGRAPHS, want, strict=True):
            found = predictor.logits(predictor.processor(path, pixels=predictor.runtime.pixels))[0]
            # As by default for each precision: half precision has 11 bits of a significand.
            assert near(found, logits, TOLERANCE if precision == "fp32" else 1e-2), path.name
    assert vitdeploy.compare(bundle).status == "passed"  # on synthetic images of these channels


def test_every_format_and_backend(tiny: Checkpoint, tmp_path: Path) -> None:
    bundle = export_all(tiny.folder, output=tmp_path / "bundle")
    assert {artifact.format for artifact in bundle.manifest.artifacts} == set(PORTABLE)
    images = [converted(path, mode_of(tiny)) for path in PHOTOGRAPHS]
    scores = torch.from_numpy(peer_logits(tiny, images)).softmax(dim=1).numpy()
    for backend in CPU_BACKENDS:
        with vitdeploy.load(bundle.path, backend=backend) as predictor:
            for found, want in zip(predictor.predict(PHOTOGRAPHS), scores, strict=True):
                got = {item.index: item.score for item in found}
                np.testing.assert_allclose([got[index] for index in range(3)], want, rtol=0, atol=1e-5)


def test_int8_with_calibration(tiny: Checkpoint, tmp_path: Path) -> None:
    data, files = labelled(tmp_path, tiny)
    bundle = vitdeploy.export(
        tiny.folder,
        precision="int8",
        output=tmp_path / "bundle",
        quantization=vitdeploy.Quantization(vitdeploy.Calibration(data)),
    )
    want = peer_logits(tiny, [converted(path, mode_of(tiny)) for path in files])
    with vitdeploy.load(bundle.path, precision="int8") as predictor:
        found = predictor.logits(predictor.processor(files))
    cosine = (found * want).sum() / np.linalg.norm(found) / np.linalg.norm(want)
    assert cosine > 0.99  # where there are several channels, a mix-up of them is far below


def test_evaluate_and_its_report(tiny: Checkpoint, tmp_path: Path) -> None:
    data, _ = labelled(tmp_path, tiny)
    vitdeploy.export(tiny.folder, output=tmp_path / "bundle")
    bundle = vitdeploy.export(
        tiny.folder, output=tmp_path / "bundle", precision="fp16", graph=vitdeploy.GraphOptions(embed_resize=True)
    )
    result = vitdeploy.evaluate(bundle, data=data)
    assert result.status == "passed"
    assert len(result.results) == 3
    assert [result.top1(each).correct for each in result.results] == [11] * 3
    page = tmp_path / "report.html"
    shown = CliRunner().invoke(cli, ["evaluate", str(bundle.path), "--data", str(data), "--html", str(page)])
    assert shown.exit_code == 0, shown.output
    assert page.read_text().count("data:image/png;base64,") >= 1
    assert "cannot read" not in page.read_text()


def test_timm_model_of_gray_images(tmp_path: Path) -> None:
    """A golden checkpoint with its three kernels added up gives for gray what it gave for that gray three times."""
    golden = Path(__file__).parent / "golden" / "timm" / "vit_0"
    config = json.loads((golden / "config.json").read_text())
    weights = safetensors.torch.load_file(golden / "model.safetensors")
    gray_config = json.loads(json.dumps(config))
    gray_config["model_args"]["in_chans"] = 1
    mean, std = 0.37, 0.21
    config["pretrained_cfg"] |= {"mean": [mean] * 3, "std": [std] * 3}
    gray_config["pretrained_cfg"] |= {"mean": [mean], "std": [std]}  # input_size still has the 3 channels of its parent
    kernel = weights["patch_embed.proj.weight"]
    gray_weights = {**weights, "patch_embed.proj.weight": kernel.float().sum(dim=1, keepdim=True)}
    found = {}
    for name, content, tensors in (("rgb", config, weights), ("gray", gray_config, gray_weights)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(content))
        safetensors.torch.save_file(tensors, folder / "model.safetensors")
        read = read_checkpoint(folder)
        with PyTorchRuntime(read.model) as runtime:
            pixels = read.processor(SKIMAGE / "camera.png")
            found[name] = pixels, *runtime.run({"pixel_values": pixels}).values()
    np.testing.assert_array_equal(np.repeat(found["gray"][0], 3, axis=1), found["rgb"][0])
    assert near(found["gray"][1], found["rgb"][1])


@CHANNELS
@pytest.mark.parametrize("stated", [True, False])
def test_timm_means_must_fit(tmp_path: Path, channels: int, stated: bool) -> None:
    golden = Path(__file__).parent / "golden" / "timm" / "vit_0"
    config = json.loads((golden / "config.json").read_text())
    weights = safetensors.torch.load_file(golden / "model.safetensors")
    kernel = weights["patch_embed.proj.weight"]
    weights["patch_embed.proj.weight"] = kernel.mean(dim=1, keepdim=True).repeat(1, channels, 1, 1)
    del config["model_args"]["in_chans"]
    if stated:  # and the means do not fit
        config["model_args"]["in_chans"] = channels
    config["pretrained_cfg"] |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    with raises(InputError, what="image_mean"):
        read_checkpoint(tmp_path)


@CHANNELS
def test_googles_file(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any], channels: int
) -> None:
    """The kernel has the channels; Google scales every channel to -1..1 (vit_jax/input_pipeline.py)."""
    checkpoint = write_checkpoint(Task.CLASSIFICATION, {**tiny_config, **NPZ_CONFIG, "num_channels": channels})
    write_npz(tmp_path / "model.npz", checkpoint.peer)
    read = read_checkpoint(tmp_path / "model.npz")
    image = converted(PHOTOGRAPHS[0], MODES[channels]).resize((32, 32))
    pixels = read.processor(image)
    want = np.asarray(image, np.float32).reshape(32, 32, channels).transpose(2, 0, 1)[None] / 127.5 - 1
    np.testing.assert_allclose(pixels, want, rtol=0, atol=1e-6)
    with torch.inference_mode():
        logits = checkpoint.peer(torch.from_numpy(pixels)).logits.numpy()
    with PyTorchRuntime(read.model) as runtime:
        assert near(runtime.run({"pixel_values": pixels})["logits"], logits)


def test_a_bundle_whose_processor_has_other_channels_is_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    bundle = vitdeploy.export(tiny.folder, output=tmp_path / "bundle")
    config = json.loads((bundle.path / "config.json").read_text())
    (bundle.path / "config.json").write_text(json.dumps({**config, "num_channels": 3}))
    write_processor(bundle.path, image_processor_type="ViTImageProcessor", size=32)
    sign_again(bundle)
    with raises(BundleError, what="channels", found=3):
        vitdeploy.load(bundle.path)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_the_channels_of_a_shape(layout: Any) -> None:
    pixels = PixelFormat(PixelStage.RESIZED, layout, "uint8")
    for channels in MODES:
        assert pixels.channels(("batch", *pixels.shape(channels, (8, 9)))) == channels
