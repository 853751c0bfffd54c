"""Outputs of transformers' ViT, under vitdeploy's names, and a comparison of outputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitdeploy.models.layers.encoder import AttentionKind
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from conftest import Checkpoint

# Of an output's largest magnitude. Both sides compute the same formulas in the same order, so that only the rounding
# of reordered sums and of differently written activations is left: some units in the last place (float32 6e-8,
# float64 1e-16), which a few layers amplify.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}


def peer_of(checkpoint: Checkpoint, attention: AttentionKind, dtype: torch.dtype) -> Any:
    """A copy of transformers' model, whose types say too little to be checked."""
    peer = copy.deepcopy(checkpoint.peer).to(dtype)
    peer.set_attn_implementation(attention)
    return peer


def answers(peer: Any, pixels: Tensor, mask: Tensor | None = None, **options: Any) -> dict[str, Tensor]:
    """All that transformers' model returns, but for the loss."""
    if mask is not None:
        options["bool_masked_pos"] = mask
    named = dict(peer(pixels, **options))
    several = {name: named.pop(name) for name in ("hidden_states", "attentions") if name in named}
    named.pop("loss", None)
    for name, tensors in several.items():
        named |= {f"{name}.{index}": tensor for index, tensor in enumerate(tensors)}
    return named


def images(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def masks(*shape: int, seed: int = 2) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.4


def inputs_of(checkpoint: Checkpoint, size: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Two images of `size` and a mask where transformers takes one: its loss needs a reconstruction of that size."""
    config = checkpoint.config
    pixels = images(2, config.num_channels, *size, dtype=dtype)
    patch, stride = config.patch_size, config.encoder_stride
    whole = all(pixels % stride == 0 for pixels in size)
    if checkpoint.task is Task.MASKED_IMAGE_MODELING and patch == (stride, stride) and whole:
        return pixels, masks(2, (size[0] // stride) * (size[1] // stride))
    return (pixels,)


def assert_near(got: Mapping[str, Tensor], want: Mapping[str, Tensor], tolerance: float) -> None:
    """Same names, shapes and types, and no difference beyond `tolerance` of the largest magnitude of an output."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].shape == value.shape, name
        assert got[name].dtype == value.dtype, name
        assert torch.isfinite(value).all(), name
        difference = (got[name] - value).abs().max() / value.abs().max().clamp_min(torch.finfo(value.dtype).tiny)
        assert difference <= tolerance, f"{name}: {difference:.2e} of its scale, more than {tolerance:.0e}"
