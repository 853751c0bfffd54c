"""Every key of transformers' image processors, with values that are no defaults: bit for bit, or refused."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from numpy.typing import NDArray
from PIL import Image
from raising import raises

from vitdeploy.errors import InputError
from vitdeploy.images.preprocessor_config import APPLIED, REFUSED, WITHOUT_EFFECT
from vitdeploy.images.preprocessor_files import note_unknown_settings
from vitdeploy.images.processor import ImageProcessor

CLASSES = ("ViT", "DeiT", "Beit", "Bit", "CLIP")
SIZE = {"height": 90, "width": 110}
# Values of each key, and those that are refused, whether transformers does something with them or not.
SWITCHES = """
    do_convert_rgb do_resize default_to_square do_center_crop do_rescale do_normalize disable_grouping do_reduce_labels
"""
VALUES: dict[str, list[Any]] = {
    **{key: [True, False, None] for key in SWITCHES.split()},
    **{key: ["channels_first", "channels_last", None] for key in ("data_format", "input_data_format")},
    **{key: ["ViTProcessor"] for key in ("processor_class", "_processor_class")},
    **{key: [[0.1, 0.2, 0.3], 0.3, None] for key in ("image_mean", "image_std")},
    **{key: [True] for key in ("reduce_labels", "rescale_offset", "use_square_size")},
    "size": [100, [90, 110], SIZE, {"shortest_edge": 90}, {**SIZE, "shortest_edge": None}, 90.0],
    "crop_size": [80, [70, 90], SIZE, None],
    "resample": [0, 1, 2, 3, 4, 5, None],
    "rescale_factor": [1 / 127.5, 2, None],
    "do_pad": [False, None],
    "pad_size": [{"height": 300, "width": 300}, None],
    "device": ["cpu", None],
    "return_tensors": ["np", None],
    "image_seq_length": [3],
    "_auto_class": [None],
    "model_input_names": [["pixel_values"]],
    "_valid_processor_keys": [["images", "do_resize"]],
    "_valid_kwargs_names": [["do_resize"]],
    # of other classes
    "crop_pct": [0.9],
    "size_divisor": [32],
    "max_size": [100],
    "interpolation": ["nearest"],
    "do_flip_channel_order": [False],
}
NOT_BUILT: dict[str, list[Any]] = {
    "size": [
        {"longest_edge": 90}, {"shortest_edge": 90, "longest_edge": 120}, {"max_height": 90, "max_width": 120},
        {"height": 90}, {"min_pixels": 100, "max_pixels": 10_000}, [90], None,
    ],
    "crop_size": [{"shortest_edge": 70}, [70]],
    "resample": ["bicubic", 7, 2.0],
    "rescale_factor": ["0.1"],
    "image_mean": [[0.5], ["a", "b", "c"]],
    "do_pad": [True],
    "do_flip_channel_order": [True],
    "do_align_long_axis": [True],
    "do_thumbnail": [True],
    "auto_map": [{"AutoImageProcessor": "processing.Mine"}],
}  # fmt: skip
CASES = [(key, value) for key, values in VALUES.items() for value in values]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    shapes: list[tuple[int, ...]] = [(150, 200, 3), (77, 51)]
    return [Image.fromarray(generator.integers(0, 256, shape, np.uint8)) for shape in shapes]


def answers(folder: Path, settings: dict[str, Any], pictures: list[Image.Image]) -> tuple[list[Any], list[Any]]:
    """Pixels of transformers and of ours; what raises an error gives none."""
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    want: list[NDArray[Any]] = []
    found: list[NDArray[Any]] = []
    try:
        peer: Any = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        want = [peer(picture.convert("RGB"), return_tensors="np")["pixel_values"] for picture in pictures]
    except (TypeError, ValueError, AttributeError, LookupError):
        pass
    try:
        processor = ImageProcessor.from_pretrained(folder)
        found = [processor(picture) for picture in pictures]
    except InputError:
        pass
    return want, found


@pytest.mark.parametrize("base", CLASSES)
@pytest.mark.parametrize(("key", "value"), CASES, ids=str)
def test_a_value_gives_the_pixels_of_transformers(
    tmp_path: Path, pictures: list[Image.Image], base: str, key: str, value: Any
) -> None:
    for others in ({}, {"do_center_crop": True, "crop_size": {"height": 64, "width": 60}}):
        settings: dict[str, Any] = {"image_processor_type": f"{base}ImageProcessor", **others, key: value}
        if key == "default_to_square":
            settings["size"] = 96
        want, found = answers(tmp_path, settings, pictures)
        assert len(want) == len(found)
        for a, b in zip(want, found, strict=True):
            np.testing.assert_array_equal(b, a.astype(np.float32, casting="same_kind"))


@pytest.mark.parametrize("base", CLASSES)
@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in NOT_BUILT.items() for v in values], ids=str)
def test_what_is_not_built_is_refused(base: str, key: str, value: Any) -> None:
    settings = {"image_processor_type": f"{base}ImageProcessor", "do_center_crop": True, "crop_size": 64, key: value}
    with raises(InputError, what=re.compile("image_(mean|std)" if key == "image_mean" else key)):
        ImageProcessor.from_dict(settings)


def test_every_key_of_transformers_has_a_rule() -> None:
    keys = set()
    for base in CLASSES:
        peer: Any = getattr(transformers, f"{base}ImageProcessorPil")
        keys |= {*peer.valid_kwargs.__annotations__, *peer().to_dict()}
    known = APPLIED | REFUSED | WITHOUT_EFFECT
    assert keys - known == set()
    assert known - {"image_processor_type", "feature_extractor_type", "auto_map", "crop_rounding"} <= VALUES.keys()


@pytest.mark.parametrize("base", CLASSES)
def test_what_is_without_effect_has_none(tmp_path: Path, pictures: list[Image.Image], base: str) -> None:
    plain, _ = answers(tmp_path, {"image_processor_type": f"{base}ImageProcessor"}, pictures)
    values = {key: VALUES[key][0] for key in WITHOUT_EFFECT}
    _, found = answers(tmp_path, {"image_processor_type": f"{base}ImageProcessor", **values}, pictures)
    for a, b in zip(plain, found, strict=True):
        np.testing.assert_array_equal(b, a.astype(np.float32))


def test_keys_of_other_classes_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    plain = {"image_processor_type": "ViTImageProcessor", "size": 224, "do_resize": True, "_valid_processor_keys": []}
    with caplog.at_level(logging.WARNING, logger="vitdeploy"):
        note_unknown_settings({"preprocessor_config.json": json.dumps(plain).encode()})
        assert not caplog.records
        note_unknown_settings({"preprocessor_config.json": json.dumps({**plain, "crop_pct": 0.9, "a": 1}).encode()})
        nested = {"image_processor": {**plain, "crop_mode": "center"}, "processor_class": "X"}
        note_unknown_settings({"processor_config.json": json.dumps(nested).encode()})
    first, second = (record.getMessage() for record in caplog.records)
    assert "a, crop_pct" in first
    assert "crop_mode" in second
