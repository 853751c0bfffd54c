"""The reference model against transformers' ViT, and against independent oracles where transformers fails."""

from __future__ import annotations

import json
import random
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from families import TINY
from raising import raises
from torch import Tensor

from models.parity import TOLERANCES, answers, assert_near, images, inputs_of, masks, peer_of
from vitdeploy.errors import UsageError
from vitdeploy.models.config import _KEYS, ViTConfig
from vitdeploy.models.layers.activations import ACTIVATIONS
from vitdeploy.models.layers.encoder import AttentionKind
from vitdeploy.models.presets import random_model
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from conftest import Checkpoint, WriteCheckpoint

ACTIVATION_NAMES = sorted(ACTIVATIONS)
SEEDS = range(len(ACTIVATION_NAMES) + 2)  # each activation once as hidden_act, and once as pooler_act
TASKS = pytest.mark.parametrize("task", Task, ids=str)
ATTENTIONS = pytest.mark.parametrize("attention", ["sdpa", "eager"])
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES, ids=["float32", "float64"])


def random_config(seed: int, task: Task) -> dict[str, Any]:
    """Arguments of transformers' ViTConfig, drawn over all fields.

    Masked image modeling has square images and patches: transformers takes nothing else.
    """
    draw = random.Random(seed)
    heads = draw.choice((1, 2, 3, 4))
    labels = draw.choice((0, 1, 2, 7))
    config: dict[str, Any] = {
        "hidden_size": draw.choice((16, 24, 40, 48)),  # for three heads of 16 or 40, not a multiple
        "num_hidden_layers": draw.choice((1, 2, 3, 4)),
        "num_attention_heads": heads,
        "intermediate_size": draw.choice((17, 32, 64)),
        "hidden_act": ACTIVATION_NAMES[seed % len(ACTIVATION_NAMES)],
        "hidden_dropout_prob": draw.choice((0.0, 0.3)),
        "attention_probs_dropout_prob": draw.choice((0.0, 0.3)),
        "initializer_range": draw.choice((0.02, 0.3)),
        "layer_norm_eps": draw.choice((1e-12, 1e-6, 1e-2)),
        "image_size": draw.choice((20, 32, 37, (20, 32), (33, 18))),
        "patch_size": draw.choice((4, 5, 7, 8, (4, 6), (9, 5))),
        "num_channels": draw.choice((1, 3, 4)),
        "qkv_bias": draw.choice((True, False)),
        "encoder_stride": draw.choice((1, 3, 8)),
        "pooler_output_size": draw.choice((None, 5, 64)),
        "pooler_act": ACTIVATION_NAMES[(seed + 7) % len(ACTIVATION_NAMES)],
        "num_labels": labels,
    }
    if draw.random() < 0.4:
        config["head_dim"] = draw.choice((4, 6, 20))
    if task is Task.MASKED_IMAGE_MODELING:
        config["image_size"], config["patch_size"] = draw.choice((20, 32, 37)), draw.choice((4, 5, 8))
        if draw.random() < 0.6:
            config["encoder_stride"] = config["patch_size"]
    return config


@pytest.fixture(
    scope="module", params=[(seed, task) for task in Task for seed in SEEDS], ids=lambda p: f"{p[1]}-{p[0]}"
)
def checkpoint(request: pytest.FixtureRequest, write_checkpoint: WriteCheckpoint) -> Checkpoint:
    """One checkpoint of the matrix; every third feature extractor has no pooler."""
    seed, task = request.param
    return write_checkpoint(task, random_config(seed, task), pooler=seed % 3 != 0, seed=seed)


@ATTENTIONS
@DTYPES
def test_every_output_is_that_of_transformers(
    checkpoint: Checkpoint, attention: AttentionKind, dtype: torch.dtype
) -> None:
    model = checkpoint.load(attention).to(dtype)
    inputs = inputs_of(checkpoint, model.config.image_size, dtype)
    asked: dict[str, Any] = {"output_hidden_states": True, "output_attentions": attention == "eager"}
    want = answers(peer_of(checkpoint, attention, dtype), *inputs, **asked)

    assert_near(model(*inputs, **asked), want, TOLERANCES[dtype])
    heads = {"logits", "last_hidden_state", "pooler_output", "reconstruction"}
    assert model(*inputs).keys() == want.keys() & heads  # the others on request alone


def test_the_matrix_has_several_values_of_every_field() -> None:
    drawn = [random_config(seed, Task.CLASSIFICATION) for seed in SEEDS]
    configs = [ViTConfig.from_dict(json.loads(json.dumps({"model_type": "vit", **config}))) for config in drawn]
    for name in {*_KEYS, "labels"}:
        assert len({getattr(config, name) for config in configs}) > 1, name
    assert {config.hidden_act for config in configs} == {config.pooler_act for config in configs} == set(ACTIVATIONS)
    assert any(config.hidden_size % config.num_attention_heads and not config.head_dim for config in configs)


@TASKS
@ATTENTIONS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_that_of_transformers(
    write_checkpoint: WriteCheckpoint, task: Task, attention: AttentionKind, dtype: torch.dtype
) -> None:
    checkpoint = write_checkpoint(task, TINY)
    inputs = inputs_of(checkpoint, (32, 32), torch.float32)  # the model converts
    want = answers(peer_of(checkpoint, attention, dtype), *inputs)

    # One unit in the last place: the order of the operations and the float32 softmax are the same.
    assert_near(checkpoint.load(attention).to(dtype)(*inputs), want, torch.finfo(dtype).eps)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (24, 24), (8, 8), (24, 56), (72, 16), (37, 45), (31, 63)])
@TASKS
@DTYPES
def test_interpolated_positions_are_those_of_transformers(
    write_checkpoint: WriteCheckpoint, task: Task, size: tuple[int, int], dtype: torch.dtype
) -> None:
    if task is Task.MASKED_IMAGE_MODELING:
        size = (size[0], size[0])  # transformers reshapes to a square
    checkpoint = write_checkpoint(task, TINY)
    pixels, *_ = inputs_of(checkpoint, size, dtype)  # transformers' loss is for the configured size: no mask
    want = answers(peer_of(checkpoint, "sdpa", dtype), pixels, interpolate_pos_encoding=True)

    model = checkpoint.load().to(dtype)
    assert_near(model(pixels, interpolate_pos_encoding=True), want, TOLERANCES[dtype])


@TASKS
def test_interpolation_to_the_same_size_changes_no_bit(task: Task) -> None:
    model = random_model(_config(image_size=(40, 18), patch_size=(8, 3)), task)
    pixels = images(2, 3, 40, 18)
    assert_near(model(pixels, interpolate_pos_encoding=True), model(pixels), 0.0)


@TASKS
@ATTENTIONS
def test_dropout_in_training_is_that_of_transformers(
    write_checkpoint: WriteCheckpoint, task: Task, attention: AttentionKind
) -> None:
    """The same random numbers, so that each of the dropouts comes at the same place with the same probability."""
    fields = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}
    checkpoint = write_checkpoint(task, TINY | fields)
    inputs = inputs_of(checkpoint, (32, 32), torch.float32)
    peer, model = peer_of(checkpoint, attention, torch.float32).train(), checkpoint.load(attention).train()
    asked: dict[str, Any] = {"output_hidden_states": True, "output_attentions": attention == "eager"}

    torch.manual_seed(5)
    want = answers(peer, *inputs, **asked)
    torch.manual_seed(5)
    assert_near(model(*inputs, **asked), want, TOLERANCES[torch.float32])
    torch.manual_seed(6)
    assert not torch.equal(model(*inputs, **asked)["hidden_states.2"], want["hidden_states.2"])


# Where transformers fails: position tables that are not square, patches that are not, masked modeling on either.


def _config(**fields: Any) -> ViTConfig:
    small: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
        "image_size": (24, 40), "patch_size": (8, 8), "encoder_stride": 8,
    }  # fmt: skip
    return ViTConfig(**{**small, **fields})


def _bicubic_matrix(source: int, target: int) -> np.ndarray:
    """Rows of Keys' kernel (a = -0.75) at half-pixel centres with the border repeated: (target, source)."""
    a = -0.75
    matrix = np.zeros((target, source))
    for row in range(target):
        centre = (row + 0.5) * source / target - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            x = abs(centre - tap)
            near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[row, min(max(tap, 0), source - 1)] += near if x <= 1 else far
    return matrix


@pytest.mark.parametrize("target", [(24, 40), (40, 24), (56, 56), (17, 91), (8, 8)])
@pytest.mark.parametrize("patch", [(8, 8), (8, 5), (3, 7)])
def test_positions_of_any_grid_are_interpolated_bicubically(target: tuple[int, int], patch: tuple[int, int]) -> None:
    model = random_model(_config(patch_size=patch)).double()
    positions = model.embeddings.position_embeddings
    assert positions is not None
    table = positions[0].numpy()
    (rows, columns), (high, wide) = model.config.grid_size, (target[0] // patch[0], target[1] // patch[1])
    grid = table[1:].reshape(rows, columns, -1)
    want = np.einsum("ap,bq,pqd->abd", _bicubic_matrix(rows, high), _bicubic_matrix(columns, wide), grid)

    got = model.embeddings.interpolated_positions((high, wide))[0]
    np.testing.assert_array_equal(got[0], table[0])
    # The kernel's weights are rounded in another order: some units in the last place of values of about 0.05.
    np.testing.assert_allclose(got[1:].numpy().reshape(high, wide, -1), want, rtol=0, atol=1e-15)


@TASKS
@DTYPES
@pytest.mark.parametrize("target", [(24, 40), (40, 32), (19, 77)])
@pytest.mark.parametrize("patch", [(8, 8), (8, 5)])
def test_any_grid_equals_a_model_made_for_it(
    write_checkpoint: WriteCheckpoint, task: Task, dtype: torch.dtype, target: tuple[int, int], patch: tuple[int, int]
) -> None:
    """Transformers' encoder, made for the target size with the interpolated table, and the heads written out."""
    stride = 4
    config = TINY | {"image_size": (24, 40), "patch_size": patch, "encoder_stride": stride}
    checkpoint = write_checkpoint(task, config)
    model = checkpoint.load().to(dtype)
    pixels = images(2, 3, *target, dtype=dtype)
    grid = target[0] // patch[0], target[1] // patch[1]

    peer = peer_of(checkpoint, "sdpa", dtype)
    embeddings = peer.base_model.embeddings
    embeddings.position_embeddings = torch.nn.Parameter(model.embeddings.interpolated_positions(grid))
    embeddings.image_size = target
    if task is Task.MASKED_IMAGE_MODELING:
        mask = masks(2, grid[0] * grid[1])
        tokens = peer.base_model(pixels, bool_masked_pos=mask).last_hidden_state[:, 1:]
        flat = F.linear(tokens, peer.decoder[0].weight.flatten(1), peer.decoder[0].bias)
        blocks = flat.reshape(2, *grid, 3, stride, stride)  # (N, gh, gw, C, stride, stride)
        picture = blocks.permute(0, 3, 1, 4, 2, 5).reshape(2, 3, grid[0] * stride, grid[1] * stride)
        want = {"reconstruction": picture}
        got = model(pixels, mask, interpolate_pos_encoding=True)
    else:
        want = answers(peer, pixels)
        got = model(pixels, interpolate_pos_encoding=True)
    assert_near(got, want, TOLERANCES[dtype])


@TASKS
@pytest.mark.parametrize("size", [(48, 16), (24, 40), (65, 65)])
def test_a_resized_model_equals_one_that_interpolates(task: Task, size: tuple[int, int]) -> None:
    model = random_model(_config(), task)
    pixels = images(1, 3, *size)
    want = model(pixels, interpolate_pos_encoding=True)

    model.resize(size)
    assert model.config.image_size == size
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert_near(model(pixels), want, 0.0)


@pytest.mark.parametrize("size", [(7, 40), (40, 7), (0, 8), (-8, 8), (8.0, 8), (8,), 10**9])
def test_a_model_cannot_be_resized_to_less_than_a_patch(size: Any) -> None:
    model = random_model(_config())
    with raises(UsageError, what=re.compile("image_size|patch_size")):
        model.resize(size)
    assert model.config.image_size == (24, 40)


# Written to be exported: what was traced at one size is right at others.


class Interpolating(torch.nn.Module):
    """The model on images of any size, by position: `torch.jit.trace` takes no keywords."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self.model(pixel_values, bool_masked_pos, interpolate_pos_encoding=True)
        return outputs


def _inputs(task: Task, batch: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
    pixels = images(batch, 3, *size)
    return (pixels, masks(batch, (size[0] // 8) * (size[1] // 5))) if task is Task.MASKED_IMAGE_MODELING else (pixels,)


def _dynamic_model(task: Task, attention: AttentionKind) -> Interpolating:
    return Interpolating(random_model(_config(patch_size=(8, 5)), task).with_attention(attention))


OTHER_SIZES = [(1, (24, 40)), (3, (64, 64)), (1, (17, 99)), (2, (40, 24))]


@TASKS
@ATTENTIONS
def test_an_exported_program_is_right_at_other_sizes(task: Task, attention: AttentionKind) -> None:
    model = _dynamic_model(task, attention)
    batch, free = torch.export.Dim("batch"), torch.export.Dim.DYNAMIC
    # Two patches and more: to torch.export, a grid of one row would be another program.
    height, width = torch.export.Dim("height", min=16), torch.export.Dim("width", min=10)
    shapes = {"pixel_values": {0: batch, 2: height, 3: width}}
    if task is Task.MASKED_IMAGE_MODELING:
        shapes["bool_masked_pos"] = {0: batch, 1: free}  # its length follows from the image's size

    program = torch.export.export(model, _inputs(task, 2, (40, 30)), dynamic_shapes=shapes).module()
    for batch_size, size in OTHER_SIZES:
        inputs = _inputs(task, batch_size, size)
        assert_near(program(*inputs), model(*inputs), TOLERANCES[torch.float32])


@TASKS
@ATTENTIONS
@pytest.mark.filterwarnings("ignore:`torch.jit.trace(_method)?` is deprecated:DeprecationWarning")  # TorchScript itself
def test_a_trace_is_right_at_other_sizes(task: Task, attention: AttentionKind) -> None:
    """A TracerWarning, which a branch or a number made of a shape gives, fails the test."""
    model = _dynamic_model(task, attention)
    traced = torch.jit.trace(model, _inputs(task, 2, (40, 30)), strict=False, check_trace=False)  # type: ignore[no-untyped-call]
    for batch_size, size in OTHER_SIZES:
        inputs = _inputs(task, batch_size, size)
        assert_near(traced(*inputs), model(*inputs), TOLERANCES[torch.float32])


# What the model refuses, and what it shares.


@TASKS
def test_fused_attention_keeps_no_weights(task: Task) -> None:
    with raises(UsageError, what="attention", expected="eager"):
        random_model(_config(), task)(images(1, 3, 24, 40), output_attentions=True)


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.FEATURES], ids=str)
def test_a_mask_needs_a_mask_token(task: Task) -> None:
    with raises(UsageError, what="bool_masked_pos"):
        random_model(_config(), task)(images(1, 3, 24, 40), masks(1, 15))


def test_an_unknown_attention_is_refused() -> None:
    kind: Any = "flash"
    with raises(UsageError, what="attention", found="flash"):
        VisionTransformer(_config(num_hidden_layers=0), attention=kind)
    with raises(UsageError, what="attention", found="flash"):
        random_model(_config()).with_attention(kind)


@TASKS
def test_the_other_attention_shares_the_weights(task: Task) -> None:
    model = random_model(_config(), task)
    twin = model.with_attention("eager")
    assert [id(parameter) for parameter in twin.parameters()] == [id(parameter) for parameter in model.parameters()]
    assert not twin.training
    pixels = images(1, 3, 24, 40)
    assert "attentions.0" in twin(pixels, output_attentions=True)
    assert_near(twin(pixels), model(pixels), TOLERANCES[torch.float32])
    with pytest.raises(UsageError):  # the model itself keeps its own
        model(pixels, output_attentions=True)
