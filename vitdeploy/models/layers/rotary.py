"""Rotary positions: the rotation of queries and keys by a patch's row and column."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vitdeploy.models.rotary import Rotary


class Rotation:
    """Rotation of each token's channel pairs, in float32 or float64; prefix tokens are rotated by 0.

    Args:
        rotary: Configuration.
        grid: Patches (down, across).
        prefix: Number of tokens before the patches.
        head_dim: Channels of a head, a multiple of 4.
        like: A weight, for the device and the type of the model.
    """

    def __init__(self, rotary: Rotary, grid: tuple[int, int], prefix: int, head_dim: int, like: Tensor) -> None:
        self.pairs = rotary.pairs
        self.prefix = prefix
        self.exchanged = torch.arange(head_dim, device=like.device).reshape(-1, 2).flip(-1).flatten()
        dtype = torch.promote_types(like.dtype, torch.float32)
        down, across = (_coordinates(rotary, axis, grid[axis], like.device).to(dtype) for axis in (0, 1))
        of_rows, of_columns = (bands.to(dtype) for bands in _frequencies(rotary, head_dim, like.device))
        # Each channel belongs to one axis and has the frequency 0 along the other: the sum is exact, and an exported
        # graph has no Tile, Expand or Concat of a dynamic size.
        angles = down[:, None, None] * of_rows + across[None, :, None] * of_columns  # (gh, gw, head_dim)
        angles = F.pad(angles.flatten(0, 1), (0, 0, prefix, 0))  # (P + gh * gw, head_dim)
        self.cos, self.sin = angles.cos(), angles.sin()

    def __call__(self, x: Tensor, tokens: int | None = None) -> Tensor:
        """Rotate queries or keys, of the first `tokens` tokens or all: (N, H, L, head_dim) -> same shape and type."""
        if tokens is None:
            cos, sin = self.cos, self.sin
        elif tokens <= self.prefix:
            return x
        else:
            cos, sin = self.cos[:tokens], self.sin[:tokens]
        return (x * cos + self._swapped(x) * sin).to(x.dtype)

    def _swapped(self, x: Tensor) -> Tensor:
        """The two channels of each pair in exchanged places; the sign is that of the angle."""
        if self.pairs == "halves":
            first, second = x.chunk(2, dim=-1)
            return torch.cat((second, first), dim=-1)
        return x.index_select(-1, self.exchanged)  # one node of an exported graph


def _coordinates(rotary: Rotary, axis: int, count: int, device: torch.device) -> Tensor:
    """Coordinates of the patches along an axis, in radians: (count,) float32."""
    index = torch.arange(count, device=device).to(torch.float32)
    if rotary.coordinates == "centered":
        return 2 * math.pi * (2.0 * ((index + 0.5) / count) - 1.0)  # in the order of transformers' roundings
    index = index + rotary.offset
    return index if rotary.reference_grid is None else index / count * rotary.reference_grid[axis]


def _frequencies(rotary: Rotary, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Frequency of each channel along rows and along columns: two of (head_dim,) float32.

    Negative for the first channel of a pair: with a pair (a, b) and its angle t, a cos(t) - b sin(t) is the sum of a
    cos(-t) and b sin(-t).
    """
    count = head_dim // 4
    bands = 1.0 / rotary.theta ** (torch.arange(count, device=device).to(torch.float32) / count)
    nothing = torch.zeros_like(bands)
    axes = [(bands, nothing), (nothing, bands)]
    return tuple(  # type: ignore[return-value]
        torch.stack((-half, half), dim=-1 if rotary.pairs == "neighbors" else 0).flatten()
        for half in map(torch.cat, axes[::-1] if rotary.columns_first else axes)
    )
