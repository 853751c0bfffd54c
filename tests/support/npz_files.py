"""Write transformers' Vision Transformers as Google's `.npz` checkpoints, in every spelling that Google has used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    Arrays = dict[str, np.ndarray[Any, Any]]

# Of transformers' ViTConfig: what Google's checkpoints do not say and their models hold.
NPZ_CONFIG = {"layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"}
# Names of a block's first norm, attention, second norm and MLP.
_LINEN = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
_MODULES = {
    "vision_transformer": ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"),
    "vision_transformer-linen": _LINEN,
    "big_vision": _LINEN,
    "big_vision-mhdpa": ("LayerNorm_0", "MHDPA_0", "LayerNorm_1", "MlpBlock_0"),
    "big_vision-stacked": _LINEN,
    "big_vision-old": _LINEN,
}
SPELLINGS = tuple(_MODULES)


def write_npz(
    path: Path, model: Any, spelling: str = "vision_transformer", *, prefix: str = "", dtype: str = "float32"
) -> Arrays:
    """Write `model`, made with `NPZ_CONFIG`, as a Google checkpoint, and return the arrays that were written.

    Args:
        path: The file, whose name ends in `.npz`.
        model: Transformers' ViTForImageClassification, or ViTModel, whose pooler becomes `pre_logits`.
        spelling: One of SPELLINGS.
        prefix: Put before every key, such as `opt/target/`.
        dtype: Numpy's name of a type, or bfloat16.
    """
    arrays = {prefix + key: array_of(tensor, dtype) for key, tensor in google_weights(model, spelling).items()}
    save_arrays(path, arrays)
    return arrays


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """`numpy.savez` for keys that may be no Python names."""
    np.savez(path, **arrays)


def array_of(tensor: Tensor, dtype: str) -> np.ndarray[Any, Any]:
    """An array as JAX's would be saved: bfloat16 turns into a void of two bytes."""
    if dtype == "bfloat16":
        return tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy().view("V2")
    return tensor.numpy().astype(dtype)


def google_weights(model: Any, spelling: str) -> dict[str, Tensor]:
    """The weights by Google's keys and in Flax's shapes."""
    config = model.config
    assert all(getattr(config, name) == value for name, value in NPZ_CONFIG.items()), "make the model with NPZ_CONFIG"
    assert config.qkv_bias, "Flax's attention has biases"
    trunk = getattr(model, "vit", model)
    positions, cls = trunk.embeddings.position_embeddings.detach(), trunk.embeddings.cls_token.detach()
    table = "Transformer/posembed_input/pos_embedding"
    if spelling == "big_vision-old":
        table = "Transformer/pos_embedding"
    elif spelling.startswith("big_vision"):  # the class token joins after the positions are added
        table, cls, positions = "pos_embedding", cls + positions[:, :1], positions[:, 1:]
    projection = trunk.embeddings.patch_embeddings.projection
    weights = {
        "cls": cls,
        table: positions,
        "embedding/kernel": projection.weight.detach().permute(2, 3, 1, 0),  # (p, p, C, D)
        "embedding/bias": projection.bias.detach(),
        **_norm("Transformer/encoder_norm", trunk.layernorm),
    }
    blocks = [_block(layer, _MODULES[spelling]) for layer in trunk.layers]
    if spelling == "big_vision-stacked":
        weights |= {f"Transformer/encoderblock/{key}": torch.stack([b[key] for b in blocks]) for key in blocks[0]}
    else:
        for index, block in enumerate(blocks):
            weights |= {f"Transformer/encoderblock_{index}/{key}": tensor for key, tensor in block.items()}
    if getattr(model, "pooler", None) is not None:
        weights |= _dense("pre_logits", model.pooler.dense)
    if isinstance(getattr(model, "classifier", None), torch.nn.Linear):
        weights |= _dense("head", model.classifier)
    return weights


def _block(layer: Any, modules: tuple[str, str, str, str]) -> dict[str, Tensor]:
    before, attention, after, mlp = modules
    head_dim = layer.attention.head_dim
    weights = _norm(before, layer.layernorm_before) | _norm(after, layer.layernorm_after)
    for name in ("query", "key", "value"):
        linear = getattr(layer.attention, f"{name[0]}_proj")
        weights[f"{attention}/{name}/kernel"] = linear.weight.detach().T.unflatten(1, (-1, head_dim))  # (D, h, d)
        weights[f"{attention}/{name}/bias"] = linear.bias.detach().unflatten(0, (-1, head_dim))  # (h, d)
    out = layer.attention.o_proj
    weights[f"{attention}/out/kernel"] = out.weight.detach().T.unflatten(0, (-1, head_dim))  # (h, d, D)
    weights[f"{attention}/out/bias"] = out.bias.detach()
    return weights | _dense(f"{mlp}/Dense_0", layer.mlp.fc1) | _dense(f"{mlp}/Dense_1", layer.mlp.fc2)


def _dense(key: str, linear: Any) -> dict[str, Tensor]:
    return {f"{key}/kernel": linear.weight.detach().T, f"{key}/bias": linear.bias.detach()}


def _norm(key: str, norm: Any) -> dict[str, Tensor]:
    return {f"{key}/scale": norm.weight.detach(), f"{key}/bias": norm.bias.detach()}
