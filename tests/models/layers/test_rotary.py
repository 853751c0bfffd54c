"""Rotary positions against the definition: pairs of channels as complex numbers, multiplied by exp(i angle)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from raising import raises

from vitdeploy.errors import UsageError
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.layers.rotary import Rotation
from vitdeploy.models.rotary import Rotary

if TYPE_CHECKING:
    from torch import Tensor

GRID, HEAD_DIM, PREFIX = (3, 5), 12, 2
# DINOv3; EVA-02 with a reference grid; Perception Encoder, which counts from 1 and puts columns first.
KINDS = (
    Rotary("centered", 100.0, "halves"),
    Rotary("index", 10000.0, "neighbors", reference_grid=(16, 16)),
    Rotary("index", 10000.0, "neighbors", reference_grid=(24, 20), offset=1.0, columns_first=True),
)


def coordinate(rotary: Rotary, axis: int, index: int) -> float:
    if rotary.coordinates == "centered":
        return 2 * math.pi * (2 * (index + 0.5) / GRID[axis] - 1)
    reference = rotary.reference_grid or GRID
    return (index + rotary.offset) * reference[axis] / GRID[axis]


def by_definition(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotated queries or keys (N, H, L, head_dim) in float64."""
    count = HEAD_DIM // 4
    pairs = torch.unflatten(x, -1, (2, -1)).mT if rotary.pairs == "halves" else torch.unflatten(x, -1, (-1, 2))
    complex_pairs = torch.view_as_complex(pairs.contiguous())  # (N, H, L, head_dim / 2)
    for token, place in enumerate(itertools.product(*map(range, GRID)), PREFIX):
        axes = (1, 0) if rotary.columns_first else (0, 1)
        angles = [
            coordinate(rotary, axis, place[axis]) * rotary.theta ** (-band / count)
            for axis in axes
            for band in range(count)
        ]
        complex_pairs[:, :, token] *= torch.polar(torch.ones(len(angles)).double(), torch.tensor(angles).double())
    rotated = torch.view_as_real(complex_pairs)
    return rotated.mT.flatten(-2) if rotary.pairs == "halves" else rotated.flatten(-2)


@pytest.mark.parametrize("rotary", KINDS, ids=["dinov3", "eva02", "perception"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_pairs_of_channels_are_rotated_by_the_place_of_the_patch(rotary: Rotary, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, PREFIX + 15, HEAD_DIM, generator=torch.Generator().manual_seed(0)).to(dtype)
    rotation = Rotation(rotary, GRID, PREFIX, HEAD_DIM, x)
    got = rotation(x)
    assert got.dtype == dtype
    assert torch.equal(got[:, :, :PREFIX], x[:, :, :PREFIX])
    # Angles of up to 100 radians in float32; then one rounding to the type.
    torch.testing.assert_close(got, by_definition(x.double(), rotary).to(dtype), atol=4e-5, rtol=torch.finfo(dtype).eps)
    for tokens in (1, PREFIX, PREFIX + 3):
        assert torch.equal(rotation(x[:, :, :tokens], tokens), got[:, :, :tokens])


@pytest.mark.parametrize(
    ("values", "what"),
    [
        *(({"theta": theta}, "rope_theta") for theta in (0.0, True, math.inf, "100")),
        ({"coordinates": "pixel"}, "coordinates"),
        ({"pairs": "thirds"}, "pairs"),
    ],
)
def test_an_invalid_value_is_named(values: dict[str, Any], what: str) -> None:
    with raises(UsageError, what=what):
        dataclasses.replace(KINDS[0], **values)


def test_heads_must_split_into_pairs_for_two_axes() -> None:
    with raises(UsageError, what="head_dim", found=6):
        ViTConfig(hidden_size=24, num_attention_heads=4, rotary=Rotary())
