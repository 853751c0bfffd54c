"""Reading config.json: valid and invalid content."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import transformers
from raising import raises

from vitdeploy.errors import CheckpointError, UsageError
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.families.table import FAMILIES

NOT_SIZES: tuple[Any, ...] = (
    "768", 0, -1, 1.5, 768.0, True, [], [8], {}, "x\ny" * 99, 10**30, math.nan, math.inf, 2**15 + 1,
)  # fmt: skip
NOT_PAIRS: tuple[Any, ...] = (
    0, -1, "224", 224.0, True, None, [], [224], [224] * 3, [224, 0], [True, 8], ["a", "b"], {}, math.nan, 2**40,
)  # fmt: skip
NOT_PROBABILITIES: tuple[Any, ...] = (-0.1, 1.1, 2, "0.1", None, True, [0.1], math.nan, math.inf)
NOT_NUMBERS: tuple[Any, ...] = (-1e-9, "1e-12", None, False, [], math.nan, math.inf, 10**400)
SIZES = ("hidden_size", "num_attention_heads", "intermediate_size", "num_channels", "encoder_stride")
INVALID: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(SIZES, (*NOT_SIZES, None)),
    **dict.fromkeys(("head_dim", "pooler_output_size"), NOT_SIZES),
    "num_hidden_layers": ("12", -1, 1.5, True, None, [12], 10**9, math.nan),
    **dict.fromkeys(("image_size", "patch_size"), NOT_PAIRS),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), NOT_PROBABILITIES),
    **dict.fromkeys(("initializer_range", "layer_norm_eps"), NOT_NUMBERS),
    "qkv_bias": (0, 1, "true", None, []),
    "relative_position_interpolation": ("bicubic", "", None, True, ["geometric"], {}),
    "hidden_act": (None, 1, ["gelu"], {"gelu": 1}, True),
    "pooler_act": (None, 1, ["tanh"], {"tanh": 1}, True),
    "model_type": (None, "bert", "x\n" * 999, 3, ["vit"], {}),
    "id2label": ([], "cat", {"0": "cat", "2": "dog"}, {"cat": 0}, 3),
    "num_labels": (-1, 1.5, "2", True, 10**12),
}


def read(**values: Any) -> ViTConfig:
    return ViTConfig.from_dict({"model_type": "vit", **values})


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in INVALID.items() for value in values])
def test_an_invalid_value_is_one_line_that_names_the_key(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as error:
        read(**{key: value})
    message = str(error.value)
    assert message.startswith("config.json: ")
    assert key in message
    assert len(message.splitlines()) == 1
    assert len(message) < 330


@pytest.mark.parametrize("value", [None, 0, "512", True, 16.0])
def test_the_width_of_a_projection_is_named_as_in_the_file(value: Any) -> None:
    with raises(CheckpointError, what="projection_dim", where="config.json", found=value):
        ViTConfig.from_dict({"model_type": "clip_vision_model", "projection_dim": value})


def test_every_field_has_invalid_values() -> None:
    assert set(read().to_dict()) - {"label2id"} <= set(INVALID)


@pytest.mark.parametrize(
    ("values", "fields"),
    [
        ({"image_size": 15}, {"what": "patch_size", "expected": (15, 15), "found": (16, 16)}),
        ({"image_size": [224, 8]}, {"what": "patch_size", "expected": (224, 8)}),
        ({"image_size": 2**14}, {"what": "image_size", "expected": 2**16, "found": 2**20}),
        ({"hidden_size": 4}, {"what": "hidden_size", "expected": 12, "found": 4}),
    ],
)
def test_values_that_exclude_each_other_are_named(values: dict[str, Any], fields: dict[str, Any]) -> None:
    with raises(CheckpointError, where="config.json", **fields):
        read(**values)


def test_an_argument_that_came_from_no_file_is_a_usage_error() -> None:
    with raises(UsageError, what="image_size", where=None, found=224):
        ViTConfig(image_size=224)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        *((content, "JSON") for content in (b"", b'{"model_type": "vit"', b"\xff\xfe\x00", b"[" * 100_000)),
        (b'{"model_type": "vit", "hidden_size": ' + b"9" * 5000 + b"}", "JSON"),
        *((content, "object") for content in (b'["vit"]', b"null")),
    ],
)
def test_a_corrupt_file_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    with raises(CheckpointError, where=tmp_path / "config.json"):
        ViTConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with raises(CheckpointError, where=tmp_path / "config.json", expected=expected):
        ViTConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("layer_norm_eps", b"NaN"), ("layer_norm_eps", b"1e999"), ("hidden_size", b"[" * 500 + b"]" * 500)],
)
def test_a_value_that_no_configuration_has_is_named(tmp_path: Path, key: str, value: bytes) -> None:
    (tmp_path / "config.json").write_bytes(b'{"model_type": "vit", "%s": %s}' % (key.encode(), value))
    with raises(CheckpointError, what=key, where="config.json"):
        ViTConfig.from_pretrained(tmp_path)


def test_defaults_are_those_of_transformers() -> None:
    peer = transformers.ViTConfig()
    ours = read()
    assert ours == ViTConfig()
    for name, value in ours.to_dict().items():
        want = getattr(peer, name)
        assert value == ({str(index): label for index, label in want.items()} if name == "id2label" else want), name
    assert peer.pooler_output_size == ours.hidden_size  # ours says nothing: the same


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"image_size": (30, 44), "patch_size": (5, 4), "encoder_stride": 3},
        {"head_dim": 24, "qkv_bias": False, "hidden_act": "relu", "pooler_act": "mish", "pooler_output_size": 7},
        {"layer_norm_eps": 0.0, "initializer_range": 1, "hidden_dropout_prob": 1, "attention_probs_dropout_prob": 0.25},
        {"labels": ()},
        {"labels": ("cat",)},
        {"labels": ("crane", "jay", "crane")},
        {"num_hidden_layers": 0, "num_channels": 1},
    ],
)
def test_what_is_written_is_read_back_here_and_by_transformers(tmp_path: Path, fields: dict[str, Any]) -> None:
    config = ViTConfig(**fields)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")

    assert ViTConfig.from_pretrained(tmp_path) == config
    peer = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(peer) is transformers.ViTConfig
    assert peer.num_labels == len(config.labels)
    assert peer.id2label == dict(enumerate(config.labels))
    for name, value in fields.items():
        if name != "labels":
            got = getattr(peer, name)
            assert (tuple(got) if isinstance(got, list) else got) == value, name


@pytest.mark.parametrize("labels", [0, 1, 2, 5])
def test_what_transformers_writes_is_read(tmp_path: Path, labels: int) -> None:
    fields: dict[str, Any] = {"num_labels": labels, "image_size": [64, 32], "patch_size": 4}
    transformers.ViTConfig(**fields).save_pretrained(tmp_path)
    config = ViTConfig.from_pretrained(tmp_path)
    assert config.labels == tuple(f"LABEL_{index}" for index in range(labels))
    assert config.image_size == (64, 32)
    assert config.patch_size == (4, 4)
    assert config.pooler_output_size == config.hidden_size


def test_keys_that_change_nothing_are_ignored() -> None:
    assert read(transformers_version="4.1", torch_dtype="float16", architectures=["X"], label2id=None) == ViTConfig()
    assert read(head_dim=None, pooler_output_size=None) == ViTConfig()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_how_positions_are_resized(family: str) -> None:
    keys = {"position_antialias": True, "relative_position_interpolation": "geometric"}
    tower = FAMILIES[family].tower
    config = ViTConfig.from_dict({"model_type": family, **(keys if tower is None else {tower.key({}): keys})})
    assert (config.position_antialias, config.relative_position_interpolation) == (True, "geometric")
    assert ViTConfig.from_dict({"model_type": family}).relative_position_interpolation == "bilinear"
