"""The reference against transformers, for every head of every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from families import ALIASES, HEADS, OF_TRANSFORMERS, Head, random_config
from raising import raises
from torch import Tensor

from models.parity import TOLERANCES, answers, assert_near, images, masks, peer_of
from vitdeploy.errors import CheckpointError
from vitdeploy.models.checkpoint import architecture_of, load_model, make_model, save_model, task_of
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.families.lookup import image_tower
from vitdeploy.models.families.table import FAMILIES
from vitdeploy.models.layers.encoder import AttentionKind
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from conftest import Checkpoint, WriteCheckpoint


@pytest.fixture(scope="module")
def write_checkpoint(write_checkpoint: WriteCheckpoint) -> WriteCheckpoint:
    """As elsewhere, but equal checkpoints are written once: no test here alters them."""
    written: dict[str, Checkpoint] = {}

    def write(*arguments: Any, **options: Any) -> Checkpoint:
        key = repr((arguments, options))
        if key not in written:
            written[key] = write_checkpoint(*arguments, **options)
        return written[key]

    return write


BY_HEAD = pytest.mark.parametrize("head", HEADS, ids=str)
SEEDS = pytest.mark.parametrize("seed", range(3))
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES, ids=["float32", "float64"])
NAMES = {
    "logits",
    "cls_logits",
    "distillation_logits",
    "last_hidden_state",
    "pooler_output",
    "image_embeds",
    "reconstruction",
}


def test_every_architecture_of_the_table_is_held_to_transformers() -> None:
    families = {*OF_TRANSFORMERS, *(head.family for head in ALIASES)}
    assert {head.name for head in (*HEADS, *ALIASES)} == {
        name for family in families for name in FAMILIES[family].architectures
    }
    assert all(family.startswith("timm_") for family in FAMILIES.keys() - families)


def wanted(checkpoint: Checkpoint, head: Head, peer: Any, pixels: Tensor, **options: Any) -> dict[str, Tensor]:
    """Outputs of transformers' class; for MAE, of its encoder without shuffled patches."""
    encoder = head.exported(peer)
    if head.family != "vit_mae":
        return answers(encoder, pixels, **options)
    rows, columns = (size // checkpoint.config.patch_size[0] for size in pixels.shape[2:])
    order = torch.arange(rows * columns, dtype=torch.float32).expand(len(pixels), -1)
    named = answers(encoder, pixels, noise=order, **options)
    return {name: value for name, value in named.items() if name not in ("mask", "ids_restore")}


def asked(attention: AttentionKind) -> dict[str, Any]:
    return {"output_hidden_states": True, "output_attentions": attention == "eager"}


@BY_HEAD
@SEEDS
@DTYPES
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_output_is_that_of_transformers(
    write_checkpoint: WriteCheckpoint, head: Head, seed: int, attention: AttentionKind, dtype: torch.dtype
) -> None:
    checkpoint = write_checkpoint(head, random_config(head, seed), seed=seed)
    config = checkpoint.config
    pixels = images(2, 3, *config.image_size, dtype=dtype)
    mask = {"bool_masked_pos": masks(2, config.num_patches)} if head.task is Task.MASKED_IMAGE_MODELING else {}
    want = wanted(checkpoint, head, peer_of(checkpoint, attention, dtype), pixels, **mask, **asked(attention))

    model = checkpoint.load(attention).to(dtype)
    assert_near(model(pixels, **mask, **asked(attention)), want, TOLERANCES[dtype])
    assert model(pixels, **mask).keys() == want.keys() & NAMES
    assert architecture_of(model) == head.exported_name


@pytest.mark.parametrize("head", ALIASES, ids=str)
def test_a_model_under_another_name_is_that_of_transformers(
    write_checkpoint: WriteCheckpoint, head: Head, tmp_path: Path
) -> None:
    import transformers

    checkpoint = write_checkpoint(head, random_config(head, 0))
    pixels = images(2, 3, *checkpoint.config.image_size)
    exported = head.exported(checkpoint.peer)
    model = checkpoint.load()
    assert_near(
        model(pixels, output_hidden_states=True),
        answers(exported, pixels, output_hidden_states=True),
        TOLERANCES[torch.float32],
    )
    save_model(model, tmp_path / "model.safetensors")
    config = image_tower(checkpoint.peer.config.to_dict(), head.task)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert architecture_of(model) == head.exported_name
    architecture = getattr(transformers, head.exported_name)
    _, report = architecture.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report


# Native, larger, smaller, not square, not a whole number of patches, one patch high.
SIZES = ((4, 4, 0), (7, 7, 0), (2, 2, 0), (3, 6, 0), (5, 4, 3), (1, 4, 1))


@pytest.mark.parametrize("head", [head for head in HEADS if head.task is not Task.MASKED_IMAGE_MODELING], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@DTYPES
def test_other_sizes_are_those_of_transformers(
    write_checkpoint: WriteCheckpoint, head: Head, size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    # transformers interpolates DINOv2's positions in float32 whatever the model's type; here float64 stays float64.
    tolerance = TOLERANCES[torch.float32 if head.family.startswith("dinov2") else dtype]
    config = random_config(head, 0) | {"patch_size": 5, "image_size": 20}
    rows, columns, rest = size
    pixels = images(2, 3, rows * 5 + rest, columns * 5 + rest, dtype=dtype)
    checkpoint = write_checkpoint(head, config)
    option = {} if head.resizes_by_itself else {"interpolate_pos_encoding": True}
    want = wanted(checkpoint, head, peer_of(checkpoint, "sdpa", dtype), pixels, **option)

    got = checkpoint.load().to(dtype)(pixels, interpolate_pos_encoding=True)
    assert_near(got, want, tolerance)
    resized = checkpoint.load().to(dtype)
    resized.resize((pixels.shape[2], pixels.shape[3]))
    assert_near(resized(pixels), want, tolerance)


@BY_HEAD
def test_transformers_reads_what_is_written(write_checkpoint: WriteCheckpoint, head: Head, tmp_path: Path) -> None:
    import transformers

    checkpoint = write_checkpoint(head, random_config(head, 0))
    model = checkpoint.load()
    save_model(model, tmp_path / "model.safetensors")
    architecture = getattr(transformers, architecture_of(model))
    config = image_tower(checkpoint.peer.config.to_dict(), head.task)
    (tmp_path / "config.json").write_text(json.dumps(config))
    peer, report = architecture.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    for name, value in head.exported(checkpoint.peer).state_dict().items():
        if head.unused is None or not name.startswith(head.unused):
            assert torch.equal(peer.state_dict()[name], value), name


def test_an_unknown_family_is_refused_with_those_that_are_known() -> None:
    with raises(CheckpointError, what="model_type", expected=tuple(FAMILIES), found="bert"):
        ViTConfig.from_dict({"model_type": "bert"})


@pytest.mark.parametrize(
    ("family", "values", "key"),
    [
        ("beit", {"use_mean_pooling": "yes"}, "use_mean_pooling"),
        ("beit", {"layer_scale_init_value": None}, "layer_scale_init_value"),
        ("beit", {"vocab_size": -1}, "vocab_size"),
        ("dinov2", {"mlp_ratio": "4"}, "mlp_ratio"),
        ("dinov2", {"mlp_ratio": float("nan")}, "mlp_ratio"),
        ("dinov2", {"mlp_ratio": 0}, "intermediate_size"),
        ("dinov2", {"hidden_size": "768"}, "hidden_size"),
        ("dinov2", {"use_swiglu_ffn": 1}, "use_swiglu_ffn"),
        ("dinov2_with_registers", {"num_register_tokens": -1}, "num_register_tokens"),
        ("vit", {"position_antialias": "no"}, "position_antialias"),
    ],
)
def test_an_invalid_value_is_named_by_its_key(family: str, values: dict[str, Any], key: str) -> None:
    with raises(CheckpointError, what=key, where="config.json"):
        ViTConfig.from_dict({"model_type": family, **values})


def test_a_task_that_a_family_does_not_have_is_refused(write_checkpoint: WriteCheckpoint) -> None:
    head = next(head for head in HEADS if head.name == "Dinov2Model")
    checkpoint = write_checkpoint(head, random_config(head, 0))
    with raises(CheckpointError, what="task", found=Task.MASKED_IMAGE_MODELING):
        load_model(checkpoint.config, checkpoint.weights, Task.MASKED_IMAGE_MODELING)


@pytest.mark.parametrize(
    "name", ["embeddings.register_tokens", "encoder.layer.0.layer_scale1.lambda1", "layernorm.bias"]
)
def test_a_missing_weight_is_named_as_the_checkpoint_would(write_checkpoint: WriteCheckpoint, name: str) -> None:
    head = next(head for head in HEADS if head.name == "Dinov2WithRegistersModel")
    checkpoint = write_checkpoint(head, random_config(head, 0))
    import safetensors.torch

    weights = safetensors.torch.load_file(checkpoint.weights[0])
    del weights[name]
    with raises(CheckpointError, what="weights", found={"missing": [name]}):
        make_model(checkpoint.config, weights, head.task, origin="here")


def test_the_task_of_every_architecture_is_known() -> None:
    for head in HEADS:
        assert task_of({"model_type": head.family, "architectures": [head.name]}) is head.task
    assert task_of({"model_type": "dinov2", "architectures": ["Dinov2Backbone"]}) is Task.FEATURES
    known = ("Dinov2ForImageClassification", "Dinov2Model", "Dinov2Backbone")
    with raises(CheckpointError, what="architectures", expected=known):
        task_of({"model_type": "dinov2", "architectures": ["Dinov2ForDepthEstimation"]})
