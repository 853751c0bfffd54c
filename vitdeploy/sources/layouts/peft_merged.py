"""Detect from the weights whether a PEFT adapter is already merged into them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from vitdeploy.sources.layouts.peft_adapter import Merged

_MARGIN = 0.25  # distance of the share from 0 or 1
_MOST_DEVIATION = 0.1  # deviation of the share: an accepted answer is 7 of these from the other


def is_merged(weights: Mapping[str, Tensor], merged: Merged, *, dora: bool) -> bool | None:
    """True if the weights include the adapter; None if undecidable.

    A whole tensor of the adapter (`modules_to_save`, biases) equals the weights' or not. With DoRA, the rows of merged
    weights have the adapter's lengths. Otherwise, the share of the adapter's product D in the weights W decides, <W, D>
    / <D, D>: merging adds 1; before, it is 0 with a deviation of sqrt(sum of mean(W^2) <D, D>) / sum of <D, D>, because
    training starts from a product of random numbers and zeros, independent of W.

    Args:
        weights: Weights by canonical name.
        merged: Result of merging into them, by canonical name.
        dora: True for a DoRA adapter.
    """
    if merged.replaced:
        return all(_is_rounded(merged.weights[name], weights.get(name)) for name in merged.replaced)
    pairs = [(weights[name].double(), merged.weights[name].double()) for name in merged.adapted]
    if dora:
        lengths = [(before.flatten(1).norm(dim=1), after.flatten(1).norm(dim=1)) for before, after in pairs]
        return all(torch.allclose(before, after, rtol=1e-3, atol=0) for before, after in lengths)
    products = [(before, after - before) for before, after in pairs]
    size = sum(float(product.square().sum()) for _, product in products)
    if not size:
        return False  # nothing to merge
    share = sum(float((before * product).sum()) for before, product in products) / size
    variance = sum(float(before.square().mean() * product.square().sum()) for before, product in products)
    nearest = round(share)
    if nearest not in (0, 1) or abs(share - nearest) > _MARGIN:
        return None
    # If merged, W includes D: this deviation is that of the unmerged weights.
    variance -= nearest * sum(float(product.square().mean() * product.square().sum()) for _, product in products)
    return bool(nearest) if math.sqrt(max(variance, 0.0)) / size <= _MOST_DEVIATION else None


def _is_rounded(wanted: Tensor, stored: Tensor | None) -> bool:
    """True if a tensor equals another one up to the precision it was saved in."""
    if stored is None or stored.shape != wanted.shape:
        return False
    return torch.equal(wanted.to(stored.dtype), stored) or torch.equal(wanted, stored.to(wanted.dtype))
