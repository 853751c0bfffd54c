"""Tell by the weights alone whether they have an adapter of PEFT already, which must not be merged into them again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from vitdeploy.sources.layouts.peft_adapter import Merged

_MARGIN = 0.25  # of the share from 0 or 1
_MOST_DEVIATION = 0.1  # of the share: what is taken for one answer is 7 of these from the other


def is_merged(weights: Mapping[str, Tensor], merged: Merged, *, dora: bool) -> bool | None:
    """Whether the weights have the adapter; None where they do not tell.

    A tensor that the adapter has whole (`modules_to_save`, biases) is that of the weights, or not. With DoRA, the rows
    of merged weights have the lengths that the adapter states. Else it is told by how much of the adapter's product D
    is in the weights W, <W, D> / <D, D>: 1 more after merging than before, and before it 0 give or take
    sqrt(sum of mean(W^2) <D, D>) / sum of <D, D>, since training starts from a product of random numbers and zeros,
    independent of W.

    Args:
        weights: By canonical name.
        merged: What merging into them gives, by canonical names too.
        dora: Whether the adapter is one of DoRA.
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
        return False  # there is nothing to merge
    share = sum(float((before * product).sum()) for before, product in products) / size
    variance = sum(float(before.square().mean() * product.square().sum()) for before, product in products)
    nearest = round(share)
    if nearest not in (0, 1) or abs(share - nearest) > _MARGIN:
        return None
    # W counts D where it is merged: the deviation is that of what it would be before.
    variance -= nearest * sum(float(product.square().mean() * product.square().sum()) for _, product in products)
    return bool(nearest) if math.sqrt(max(variance, 0.0)) / size <= _MOST_DEVIATION else None


def _is_rounded(wanted: Tensor, stored: Tensor | None) -> bool:
    """Whether a tensor is another one, up to the precision that it was saved in."""
    if stored is None or stored.shape != wanted.shape:
        return False
    return torch.equal(wanted.to(stored.dtype), stored) or torch.equal(wanted, stored.to(wanted.dtype))
