"""Take the tensors of a timm checkpoint one by one, and check their shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from vitdeploy.errors import CheckpointError
from vitdeploy.models.checkpoint import some
from vitdeploy.sources.timm_layouts.parts import MOST, pair, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from vitdeploy.sources.timm_layouts.config import TimmConfig
    from vitdeploy.sources.timm_layouts.dinov3_config import DinoV3Config
    from vitdeploy.sources.timm_layouts.eva_config import EvaConfig

_EPS = 1e-6  # timm.layers.LayerNorm
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


S = TypeVar("S", bound="TimmConfig | EvaConfig | DinoV3Config")


class Tensors(Generic[S]):
    """The tensors; each must be taken once, with the shape implied by the others and the configuration."""

    def __init__(self, stated: S, tensors: Mapping[str, Tensor]) -> None:
        self.stated, self.left = stated, dict(tensors)
        self.missing: list[str] = []
        self.wrong: list[str] = []
        self.width, self.channels, *patch = self.shape("patch_embed.proj.weight", 4)
        self.patch = patch[0], patch[1]
        split = "blocks.0.mlp.fc1_g.weight"  # of a SwiGLU that has two layers
        self.mlp = self.shape(split if split in self.left else "blocks.0.mlp.fc1.weight", 2)[0]
        self.depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
        self.grid = stated.image_size[0] // self.patch[0], stated.image_size[1] // self.patch[1]
        if 0 in self.grid:
            raise refuse("image_size", f"is less than the patch size, {self.patch}", stated.image_size)
        if self.width % stated.num_heads:
            raise refuse("num_heads", f"does not divide the width, {self.width}", stated.num_heads)

    @property
    def sound(self) -> bool:
        """True if every tensor so far was present and valid."""
        return not (self.missing or self.wrong)

    def has(self, name: str) -> bool:
        return name in self.left

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of a tensor that defines sizes for the others."""
        shape = tuple(self.left[name].shape) if name in self.left else None
        if shape is None or len(shape) != axes or 0 in shape:
            raise refuse(name, f"is absent, or has not {axes} axes", shape)
        return shape

    def take(self, name: str, *shape: int) -> Tensor:
        tensor = self.left.pop(name, None)
        if tensor is None:
            self.missing.append(name)
        elif tuple(tensor.shape) != shape or tensor.dtype not in _FLOATS:
            self.wrong.append(f"{name} must be {shape} of floats, is {tuple(tensor.shape)} of {tensor.dtype}")
        else:
            return tensor
        return torch.empty(shape, device="meta")  # a placeholder: `finish` raises

    def layer(self, name: str, target: str, *shape: int) -> dict[str, Tensor]:
        """Weight and bias of a linear layer (out, in), a convolution (out, ...) or a norm (width,)."""
        shapes = {"weight": shape, "bias": shape[:1]}
        return {f"{target}.{leaf}": self.take(f"{name}.{leaf}", *axes) for leaf, axes in shapes.items()}

    def head(self, name: str, target: str) -> dict[str, Tensor]:
        """A classifier without the leading rows counted by `label_offset`."""
        first = self.stated.label_offset
        layer = self.layer(name, target, first + self.stated.num_classes, self.width)
        return {key: tensor[first:] for key, tensor in layer.items()}

    def drop_index(self, name: str) -> None:
        """Drop a stored index that follows from the grid, from older versions of timm: (1 + patches, 1 + patches)."""
        if not self.has(name):
            return
        (height, width), offsets = self.grid, (2 * self.grid[0] - 1) * (2 * self.grid[1] - 1)
        if self.left[name].shape == (1 + height * width, 1 + height * width):
            down, across = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
            index = torch.zeros(self.left[name].shape, dtype=torch.int64)
            index[1:, 1:] = (down[:, None] - down + height - 1) * (2 * width - 1) + across[:, None] - across + width - 1
            index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
            if torch.equal(index, self.left[name].long()):
                del self.left[name]

    def finish(self, counted: Mapping[str, object]) -> None:
        """Check that all tensors were taken, and that model_args agree with their shapes."""
        if not self.sound or self.left:
            kinds = {"missing": self.missing, "unexpected": list(self.left), "": self.wrong}
            problems = "; ".join(f"{kind} {some(names)}".strip() for kind, names in kinds.items() if names)
            raise CheckpointError(
                f"timm checkpoint: the weights are not those of the architecture and model_args, or of a kind that "
                f"is not supported: {problems}",
                what="weights", found=problems,
            )  # fmt: skip
        sizes = {"embed_dim": self.width, "depth": self.depth, "in_chans": self.channels, "mlp_ratio": self.mlp}
        counted = {**sizes, "patch_size": self.patch, **counted}
        for key, value in self.stated.arguments.items():
            got: object = value
            if key in ("mlp_ratio", "attn_pool_mlp_ratio"):
                number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MOST
                got = int(self.width * value) if number else value
            elif key == "patch_size":
                got = pair("model_args.patch_size", value)
            elif key == "init_values":
                got = bool(value)
            expected = counted.get(key)
            if type(got) is not type(expected) or got != expected:
                raise refuse(f"model_args.{key}", f"does not fit the weights, which say {expected}", value)

    def content(self, model_type: str, architecture: str) -> dict[str, Any]:
        """Keys of every family."""
        height, width = self.stated.image_size
        return {
            "architectures": [architecture],
            "model_type": model_type,
            "hidden_size": self.width,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.stated.num_heads,
            "hidden_act": "gelu",
            "layer_norm_eps": _EPS,
            "image_size": height if height == width else [height, width],
            "patch_size": self.patch[0] if self.patch[0] == self.patch[1] else list(self.patch),
            "num_channels": self.channels,
            **self.stated.labels,
        }


class Source(Tensors["TimmConfig"]):
    """Those of a Vision Transformer, DeiT or BEiT."""
