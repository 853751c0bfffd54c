"""ImageProcessor against transformers' PIL backend: every comparison is bit for bit, without a tolerance."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import sklearn.datasets
from numpy.typing import NDArray
from PIL import Image
from raising import raises

from vitdeploy.errors import ImageError, InputError, UsageError
from vitdeploy.images.formats import readable_formats
from vitdeploy.images.preprocessor_config import ShortestEdge, Size
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.specs import PixelFormat, PixelStage
from vitdeploy.system.cpu import Cpus
from vitdeploy.system.forks import ThreadPool

SKLEARN = Path(sklearn.datasets.__file__).parent / "images"
SKIMAGE = Path(skimage.__file__).parent / "data"
CHINA = SKLEARN / "china.jpg"
PHOTOGRAPHS = [
    CHINA,
    SKLEARN / "flower.jpg",
    SKIMAGE / "rocket.jpg",
    SKIMAGE / "astronaut.png",
    SKIMAGE / "camera.png",  # gray
    SKIMAGE / "horse.png",  # RGBA
    SKIMAGE / "no_time_for_that_tiny.gif",  # palette, smaller than any crop
]

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {
        "image_processor_type": "ViTImageProcessor", "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2,
        "rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 224},
    },
    "vit defaults": {"image_processor_type": "ViTImageProcessor"},
    "vit fast": {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 384, "width": 256}},
    "vit old": {
        "feature_extractor_type": "ViTFeatureExtractor", "do_normalize": True, "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": 224,
    },
    "vit size list": {"image_processor_type": "ViTImageProcessor", "size": [96, 160]},
    "vit nulls": {
        "image_processor_type": "ViTImageProcessorFast", "crop_size": None, "do_center_crop": None,
        "do_convert_rgb": None, "do_normalize": None, "image_mean": None, "image_std": None,
        "size": {"height": 200, "width": 224},
    },
    "no resize by null": {"image_processor_type": "DeiTImageProcessor", "do_resize": None, "size": None},
    "dino": {"feature_extractor_type": "ViTFeatureExtractor", "resample": 2, "size": 224, **IMAGENET},
    "mae": {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, **IMAGENET},
    "deit defaults": {"image_processor_type": "DeiTImageProcessor"},
    "deit": {
        "image_processor_type": "DeiTImageProcessor", "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224}, "size": {"height": 256, "width": 256}, "resample": 3, **IMAGENET,
    },
    "deit old": {
        "feature_extractor_type": "DeiTFeatureExtractor", "crop_size": 224, "do_center_crop": True,
        "do_normalize": True, "do_resize": True, "resample": 3, "size": 256, **IMAGENET,
    },
    "beit defaults": {"image_processor_type": "BeitImageProcessor"},
    "siglip defaults": {"image_processor_type": "SiglipImageProcessor"},
    "siglip": {
        "do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3,
        "image_processor_type": "SiglipImageProcessor", "image_std": [0.5] * 3, "processor_class": "SiglipProcessor",
        "resample": 2, "rescale_factor": 0.00392156862745098, "size": {"height": 256, "width": 256},
    },
    "siglip, one edge": {"image_processor_type": "SiglipImageProcessorFast", "size": 240},
    "beit crop": {
        "feature_extractor_type": "BeitFeatureExtractor", "crop_size": 224, "do_center_crop": True,
        "do_reduce_labels": True, "resample": 2, "size": 256,
    },
    "bit defaults": {"image_processor_type": "BitImageProcessor"},
    "dinov2": {
        "image_processor_type": "BitImageProcessor", "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 256}, **IMAGENET,
    },
    "bit size int": {"image_processor_type": "BitImageProcessor", "size": 232, "crop_size": [200, 231]},
    "bit square": {"image_processor_type": "BitImageProcessor", "size": 250, "default_to_square": True},
    "clip": {  # as OpenAI's repositories have it
        "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, "size": 224,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    "clip defaults": {"image_processor_type": "CLIPImageProcessorFast"},
    "crop only": {"image_processor_type": "DeiTImageProcessor", "do_resize": False, "crop_size": 401},
    "crop larger than the resized": {"image_processor_type": "DeiTImageProcessor", "size": 97, "crop_size": [128, 90]},
    "no normalize": {"image_processor_type": "ViTImageProcessor", "do_normalize": False},
    "no rescale": {"image_processor_type": "ViTImageProcessor", "do_rescale": False},
    "neither": {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "do_normalize": False},
    "rescale factor": {"image_processor_type": "ViTImageProcessor", "rescale_factor": 1 / 127.5},
    "scalar mean": {"image_processor_type": "ViTImageProcessor", "image_mean": 0.4, "image_std": 0.3},
    "each channel": {"image_processor_type": "ViTImageProcessor", "image_mean": [0, 0.1, 1], "image_std": [1, 3, 0.07]},
    **{f"resample {n}": {"image_processor_type": "ViTImageProcessor", "resample": n, "size": 100} for n in range(6)},
}  # fmt: skip


def write(folder: Path, config: dict[str, Any], name: str = "preprocessor_config.json") -> Path:
    (folder / name).write_text(json.dumps(config))
    return folder


def oracle(folder: Path) -> Callable[[Path | Image.Image], NDArray[np.float32]]:
    """The pixel values of transformers' pipelines: load_image, then the processor's PIL backend."""
    from transformers import AutoImageProcessor
    from transformers.image_utils import load_image

    processor: Any = AutoImageProcessor.from_pretrained(folder, backend="pil")

    def process(image: Path | Image.Image) -> NDArray[np.float32]:
        if not isinstance(image, Image.Image):
            with Image.open(image) as opened:  # load_image leaves a file with several frames open
                return process(opened)
        values: NDArray[Any] = processor(load_image(image), return_tensors="np")["pixel_values"]
        return values.astype(np.float32, casting="safe")

    return process


@pytest.fixture(params=CONFIGS, ids=lambda name: name.replace(" ", "-"))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path, CONFIGS[request.param])


def test_photographs(folder: Path) -> None:
    expected, processor = oracle(folder), ImageProcessor.from_pretrained(folder)
    for path in PHOTOGRAPHS:
        values = processor(path)
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        np.testing.assert_array_equal(values, expected(path), err_msg=path.name)
        assert processor.output_size in (None, values.shape[2:])


@pytest.mark.parametrize("name", ["vit", "deit", "dinov2", "crop only", "crop larger than the resized"])
def test_odd_sizes(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, CONFIGS[name])
    expected, processor = oracle(folder), ImageProcessor.from_pretrained(folder)
    random = np.random.default_rng(0)
    for height, width in [(1, 1), (1, 50), (50, 1), (2, 3), (223, 225), (224, 224), (225, 300), (300, 199), (407, 97)]:
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
        np.testing.assert_array_equal(processor(image), expected(image), err_msg=f"{height}x{width}")


def test_every_byte_in_every_channel(tmp_path: Path) -> None:
    image = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2))
    for name in ("dinov2", "rescale factor", "no rescale", "no normalize", "each channel"):
        config = {**CONFIGS[name], "do_resize": False, "do_center_crop": False}
        folder = write(tmp_path, config)
        np.testing.assert_array_equal(
            ImageProcessor.from_pretrained(folder)(image), oracle(folder)(image), err_msg=name
        )


def test_the_nested_settings_go_first(tmp_path: Path) -> None:
    write(tmp_path, CONFIGS["vit"])
    write(tmp_path, {"image_processor": CONFIGS["dinov2"], "processor_class": "X"}, "processor_config.json")
    np.testing.assert_array_equal(ImageProcessor.from_pretrained(tmp_path)(CHINA), oracle(tmp_path)(CHINA))
    assert ImageProcessor.from_pretrained(tmp_path).size == ShortestEdge(256)
    write(tmp_path, {"processor_class": "X"}, "processor_config.json")  # of before v5: nothing nested
    assert ImageProcessor.from_pretrained(tmp_path).size == Size(224, 224)


@pytest.mark.parametrize("model_type", ["vit", "vit_mae", "vit_msn", "ijepa", "deit", "beit", "dinov2", "siglip"])
def test_a_file_that_does_not_name_its_class(tmp_path: Path, model_type: str) -> None:
    write(tmp_path, {"size": 180, "crop_size": 160})
    write(tmp_path, {"model_type": model_type}, "config.json")
    np.testing.assert_array_equal(ImageProcessor.from_pretrained(tmp_path)(CHINA), oracle(tmp_path)(CHINA))


# The files of a folder that leave something out of the processor's class. transformers decides what each stands for.
SIZES = {"size": 48, "crop_size": 24}
SETTINGS = {"preprocessor_config": SIZES}
VIT = {"config": {"model_type": "vit"}}
BIT = {**SIZES, "image_processor_type": "BitImageProcessor"}


def of_class(**keys: str) -> dict[str, dict[str, Any]]:
    return {"preprocessor_config": {**SIZES, **keys}, **VIT}


OF_CLASS: dict[str, dict[str, dict[str, Any]]] = {
    "nothing": {},
    "a model alone": VIT,
    "a DINOv2 alone": {"config": {"model_type": "dinov2", "image_size": 518}},
    "a processor of several parts, none of images": {"processor_config": {"processor_class": "X"}, **VIT},
    "settings that are not nested": {"processor_config": BIT, **VIT},
    "a nested feature extractor": {"processor_config": {"feature_extractor": BIT}, **VIT},
    "no class, no model": SETTINGS,
    "no class, an unknown model": {**SETTINGS, "config": {"model_type": "unknown"}},
    "no class, a model without one": {**SETTINGS, "config": {"model_type": "dinov2_with_registers"}},
    "no class, and no setting": {"preprocessor_config": {}, "config": {"model_type": "beit"}},
    "the class in config.json": {
        **SETTINGS,
        "config": {"model_type": "vit", "image_processor_type": "BitImageProcessor"},
    },
    "the class in config.json, no model": {**SETTINGS, "config": {"image_processor_type": "BitImageProcessor"}},
    "an unknown class": of_class(image_processor_type="OtherImageProcessor"),
    "an empty class": of_class(image_processor_type="", feature_extractor_type="BitFeatureExtractor"),
    "a feature extractor's class": of_class(feature_extractor_type="BitFeatureExtractor"),
    "an unknown feature extractor": of_class(feature_extractor_type="OtherFeatureExtractor"),
    "a feature extractor's class as the image processor's": of_class(image_processor_type="ViTFeatureExtractor"),
    "both classes": of_class(image_processor_type="BitImageProcessor", feature_extractor_type="ViTFeatureExtractor"),
    "nested settings that are null": {"processor_config": {"image_processor": None}, "preprocessor_config": BIT},
    "nested settings that are empty": {
        "processor_config": {"image_processor": {}},
        "preprocessor_config": BIT,
        "config": {"model_type": "deit"},
    },
}


@pytest.mark.parametrize("case", OF_CLASS, ids=lambda name: name.replace(" ", "-"))
def test_the_class_is_that_of_transformers_or_both_refuse(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "n")  # transformers asks whether to run code
    for name, content in OF_CLASS[case].items():
        write(tmp_path, content, f"{name}.json")
    try:
        expected = oracle(tmp_path)(CHINA)
    except (OSError, ValueError):
        with pytest.raises(InputError):
            ImageProcessor.from_pretrained(tmp_path)
    else:
        np.testing.assert_array_equal(ImageProcessor.from_pretrained(tmp_path)(CHINA), expected)


@pytest.mark.parametrize("base", ["ViT", "DeiT", "Beit", "Bit", "Siglip"])
def test_class_names_of_all_times(base: str) -> None:
    processors = {
        ImageProcessor.from_dict({key: base + suffix})
        for key, suffixes in (
            ("image_processor_type", ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil")),
            ("feature_extractor_type", ("FeatureExtractor", "ImageProcessor")),
        )
        for suffix in suffixes
    }
    assert len(processors) == 1


def test_to_dict_is_read_back_by_us_and_by_transformers(folder: Path, tmp_path: Path) -> None:
    processor = ImageProcessor.from_pretrained(folder)
    config = json.loads(json.dumps(processor.to_dict()))
    assert ImageProcessor.from_dict(config) == processor
    written = tmp_path / "written"
    written.mkdir()
    np.testing.assert_array_equal(oracle(write(written, config))(CHINA), processor(CHINA))


@pytest.mark.parametrize(
    ("fields", "size", "crop"),
    [
        ({"size": Size(224, 224)}, Size(96, 160), None),
        ({"size": ShortestEdge(518)}, Size(96, 160), None),
        ({"do_resize": False}, Size(96, 160), None),
        ({"size": Size(256, 256), "crop_size": Size(224, 224)}, Size(110, 183), Size(96, 160)),
        ({"size": ShortestEdge(256), "crop_size": Size(224, 224)}, ShortestEdge(183), Size(96, 160)),
    ],
)
def test_another_size_keeps_the_share_of_the_crop(
    fields: dict[str, Any], size: Size | ShortestEdge, crop: Size | None
) -> None:
    processor = ImageProcessor(**fields, do_center_crop=crop is not None).resized(96, 160)
    assert (processor.do_resize, processor.size, processor.crop_size) == (True, size, crop)
    assert processor.output_size == (96, 160)
    assert processor(CHINA).shape == (1, 3, 96, 160)


@pytest.mark.parametrize(
    "change",
    [
        *({"image_processor_type": name} for name in ("LevitImageProcessor", None)),
        {"do_pad": True},
        {"do_flip_channel_order": True},
        {"do_resize": "yes"},
        *({"size": value} for value in ("224", [224], True, None, {"longest_edge": 224}, {"shortest_edge": 0})),
        {"size": {"shortest_edge": 224, "longest_edge": 300}},
        {"image_mean": None},
        {"crop_size": {"shortest_edge": 224}},
        {"crop_size": None, "do_center_crop": True},
        *({"resample": value} for value in (6, "bilinear")),
        *({"rescale_factor": value} for value in ("1/255", math.nan)),
        {"image_std": [0.5, 0.5, 0.5], "image_mean": [0.5]},
        *({"image_mean": value} for value in ([0.5, 0.5], [0.5, 0.5, "0.5"])),
        *({"image_std": value} for value in ([0.5], [0.5, 0, 0.5], [0.5, 1e-320, 0.5])),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """The error is about the first key of the change."""
    write(tmp_path, {**CONFIGS["vit"], **change})
    with raises(InputError, what=next(iter(change)), where=tmp_path / "preprocessor_config.json"):
        ImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "JSON"), (b"{", "JSON"), (b"\xff\xfe", "JSON"), (b"[" * 100_000, "JSON"), (b"[1]", "object")],
)
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes, expected: str) -> None:
    with raises(InputError, where=tmp_path, expected="preprocessor_config.json"):
        ImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes(content)
    with raises(InputError, where=tmp_path / "preprocessor_config.json", expected=expected):
        ImageProcessor.from_pretrained(tmp_path)


def test_nested_settings_that_are_not_an_object(tmp_path: Path) -> None:
    write(tmp_path, {"image_processor": 3}, "processor_config.json")
    with raises(InputError, what="image_processor", where=tmp_path / "processor_config.json", found=3):
        ImageProcessor.from_pretrained(tmp_path)


def test_threads_do_not_change_the_result() -> None:
    processor = ImageProcessor.from_dict(CONFIGS["dinov2"])
    images = PHOTOGRAPHS * 3
    single = processor(images, threads=1)
    assert single.shape == (21, 3, 224, 224)
    for threads in (2, 8, 100, None):
        np.testing.assert_array_equal(processor(images, threads=threads), single)
    np.testing.assert_array_equal(np.concatenate([processor(image) for image in images]), single)


@pytest.mark.parametrize(
    ("cpus", "images", "threads"), [(Cpus(16, 16, 8), 3, 16), (Cpus(16, 16, 8, 1.5), 3, 2), (Cpus(4, 16, 2, 9.0), 6, 4)]
)
def test_as_many_images_at_a_time_as_there_are_cpus(
    monkeypatch: pytest.MonkeyPatch, cpus: Cpus, images: int, threads: int
) -> None:
    sizes: list[int] = []

    class Noted(ThreadPool):
        def map(self, *arguments: Any, threads: int) -> Any:
            sizes.append(threads)
            return super().map(*arguments, threads=threads)

    monkeypatch.setattr("vitdeploy.images.processor.ThreadPool", Noted)
    monkeypatch.setattr("vitdeploy.images.processor.recent_workers", lambda: cpus.workers)
    ImageProcessor()([CHINA] * images)
    ImageProcessor()(CHINA)
    assert sizes == [threads]


def test_a_batch_of_every_kind_of_source() -> None:
    processor = ImageProcessor()
    data = CHINA.read_bytes()
    with CHINA.open("rb") as file, Image.open(CHINA) as image:
        array = np.asarray(image)
        batch = processor((str(CHINA), CHINA, data, file, image, array, np.moveaxis(array, -1, 0)))
    np.testing.assert_array_equal(batch, np.repeat(processor(data), 7, axis=0))
    np.testing.assert_array_equal(processor(np.stack([array, array])), batch[:2])


def test_the_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    processor = ImageProcessor()
    absent = tmp_path / "absent.jpg"
    for threads in (1, 2):
        with raises(ImageError, what=str(absent), found="No such file or directory"):
            processor([CHINA, absent, CHINA], threads=threads)
        with raises(ImageError, what="images[2]", expected=readable_formats()):
            processor([CHINA, CHINA, b"", b""], threads=threads)
        with raises(UsageError, what="images[1]", found="float32"):
            processor([CHINA, np.zeros((4, 4, 3), np.float32)], threads=threads)


def test_a_batch_must_come_out_in_one_size() -> None:
    processor = ImageProcessor(size=ShortestEdge(32))
    assert processor.output_size is None
    assert processor(CHINA).shape == (1, 3, 32, 47)
    assert processor([CHINA, CHINA]).shape == (2, 3, 32, 47)
    with raises(UsageError, what="images", expected=(32, 47), found=(32, 32)):
        processor([CHINA, SKIMAGE / "astronaut.png"])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_bytes_are_pillows_pixels_in_either_layout(channels: int) -> None:
    processor = ImageProcessor(
        size=Size(31, 47), resample=3, image_mean=(0.1, 0.2, 0.3, 0.4)[:channels], image_std=(0.5,) * channels
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)).convert(processor.mode)
    expected = np.asarray(image.resize((47, 31), Image.Resampling.BICUBIC)).reshape(31, 47, channels)
    for layout in ("nchw", "nhwc"):
        actual = processor([image, image], pixels=PixelFormat(PixelStage.RESIZED, layout, "uint8"))
        assert actual.dtype == np.uint8
        assert actual.flags.c_contiguous
        assert actual.flags.writeable
        for single in actual:
            np.testing.assert_array_equal(single if layout == "nhwc" else np.moveaxis(single, 0, -1), expected)


def test_usage_errors() -> None:
    processor = ImageProcessor()
    batches: list[Any] = [[], (), np.zeros((0, 8, 8, 3), np.uint8)]
    for empty in batches:
        with raises(UsageError, what="images", found=0):
            processor(empty)
    for threads in (0, -1, True, 3.0, math.nan, math.inf, "3", np.array([3]), -(10**5000)):
        with raises(UsageError, what="threads"):
            processor([CHINA] * 2, threads=threads)  # type: ignore[arg-type]
    with raises(UsageError, what="crop_size"):
        ImageProcessor(do_center_crop=True)


def test_a_sliver_is_not_resized_to_a_giant() -> None:
    processor = ImageProcessor.from_dict(CONFIGS["dinov2"])
    with raises(ImageError, found=(2560000, 256)):
        processor(np.zeros((1, 10_000), np.uint8))


def test_the_settings_are_a_frozen_value() -> None:
    processor = ImageProcessor()
    processor(CHINA)
    assert processor == ImageProcessor()
    assert hash(processor) == hash(ImageProcessor())
    with pytest.raises(dataclasses.FrozenInstanceError):
        processor.resample = 3  # type: ignore[misc]


def test_no_framework_is_imported() -> None:
    frameworks = "{'torch', 'torchvision', 'transformers'}"
    code = f"import sys, vitdeploy.images.processor; print(*sorted({frameworks} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
