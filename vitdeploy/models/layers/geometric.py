"""Resize a relative-position table as timm does for BEiT, with offsets in geometric progression.

The rule is from BEiT's fine-tuning (arXiv:2106.08254), timm's `resize_rel_pos_bias_table`. Near offsets keep their
biases; far ones are stretched over the larger grid. It is linear in each axis, so each axis is one weight matrix.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOWEST, _HIGHEST = 1.01, 1.5  # timm's search range for the ratio
_PRECISION = 1e-6  # and its precision


def resize_offsets(offsets: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize a table with a row per offset of two patches: (rows of `old`, H) -> (rows of `new`, H).

    A grid of (gh, gw) has (2 gh - 1) * (2 gw - 1) rows. The same grid gives the same table; if only one side changes,
    the other one's weights are applied too, as in timm. Half precision is computed in float32.
    """
    if old == new:
        return offsets
    dtype = torch.promote_types(offsets.dtype, torch.float32)
    down, across = (axis_weights(*sides).to(offsets.device, dtype) for sides in zip(old, new, strict=True))
    table = torch.unflatten(offsets.to(dtype), 0, (down.shape[1], across.shape[1]))  # (old down, old across, H)
    table = torch.unflatten(down @ table.flatten(1), 1, table.shape[1:])  # (new down, old across, H)
    return (across @ table).flatten(0, 1).to(offsets.dtype)  # (new down * new across, H)


def axis_weights(old: int, new: int) -> Tensor:
    """Weights of old offsets in new ones, (2 new - 1, 2 old - 1) float64, for sides of `old` and `new` patches.

    Each row interpolates linearly between the two old offsets around the new one, and repeats the outermost beyond it.
    """
    if old == 1:  # a single offset, which all others repeat
        return torch.ones(2 * new - 1, 1, dtype=torch.float64)
    sources = offset_positions(old, new)
    targets = torch.arange(1 - new, new, dtype=torch.float64).clamp(sources[0], sources[-1])
    right = torch.searchsorted(sources, targets).clamp(min=1)
    share = (targets - sources[right - 1]) / (sources[right] - sources[right - 1])
    weights = torch.zeros(len(targets), len(sources), dtype=torch.float64)
    weights.scatter_(1, right[:, None], share[:, None])
    return weights.scatter_(1, right[:, None] - 1, 1 - share[:, None])


def offset_positions(old: int, new: int) -> Tensor:
    """Positions of the offsets of `old` patches among the integer offsets of `new` ones: (2 old - 1,) float64.

    From 0 in both directions, the gaps are the powers of `_ratio`, starting with the 0th.
    """
    gaps = torch.full((old - 1,), _ratio(old - 1, new - 1), dtype=torch.float64).pow(torch.arange(old - 1))
    positive = gaps.cumsum(0)
    return torch.cat((-positive.flip(0), torch.zeros(1, dtype=torch.float64), positive))


def _ratio(gaps: int, reach: int) -> float:
    """The ratio whose first `gaps` powers sum up to `reach`, or the closest end of the search range."""
    low, high = _LOWEST, _HIGHEST
    ratio = high
    while high - low > _PRECISION:
        ratio = (low + high) / 2  # the last one tried is used, on whichever side it lies
        # ratio ** gaps - 1 > reach * (ratio - 1), in logarithms because the power of a long side is beyond a float
        if gaps * math.log(ratio) > math.log1p(reach * (ratio - 1)):
            high = ratio
        else:
            low = ratio
    return ratio
