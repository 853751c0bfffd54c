"""The reference Vision Transformer (Dosovitskiy et al., arXiv:2010.11929), written to be exported."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import nn

from vitdeploy.errors import UsageError
from vitdeploy.models.embeddings import Embeddings
from vitdeploy.models.heads import ClassificationHead, FeatureHead, ReconstructionHead
from vitdeploy.models.layers import Attention, AttentionKind, Layer, check_attention
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from torch import Tensor

    from vitdeploy.models.config import ViTConfig


class VisionTransformer(nn.Module):
    """Embeddings, `num_hidden_layers` pre-norm blocks, a final layer norm and the head of a task.

    Its forward pass has no attention mask and no branch on a shape, and never turns a shape into a number, so that a
    traced graph stays true for other sizes.

    Args:
        config: the hyper-parameters.
        task: the head.
        pooler: whether a feature-extraction model ends in a pooler.
        attention: "sdpa" (torch's fused attention) or "eager" (separate operators, which can return the weights).
    """

    def __init__(
        self,
        config: ViTConfig,
        task: Task = Task.CLASSIFICATION,
        *,
        pooler: bool = True,
        attention: AttentionKind = "sdpa",
    ) -> None:
        super().__init__()
        check_attention(attention)
        self.config = config
        self.task = task
        self.attention = attention
        self.embeddings = Embeddings(config, mask_token=task is Task.MASKED_IMAGE_MODELING)
        self.layers = nn.ModuleList(Layer(config, attention) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head: ClassificationHead | FeatureHead | ReconstructionHead
        if task is Task.CLASSIFICATION:
            self.head = ClassificationHead(config)
        elif task is Task.FEATURES:
            self.head = FeatureHead(config, pooler=pooler)
        else:
            self.head = ReconstructionHead(config)

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        *,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> dict[str, Tensor]:
        """Run the model.

        Args:
            pixel_values: (N, C, H, W) in the type of the weights, or converted to it.
            bool_masked_pos: (N, num_patches), true where a patch is masked; masked image modeling only.
            interpolate_pos_encoding: accept images of any size from one patch up, with interpolated positions.
            output_hidden_states: add `hidden_states.0` (the embeddings) to `hidden_states.L` (the last block, before
                the final layer norm), each (N, tokens, D).
            output_attentions: add `attentions.0` ..., each (N, heads, tokens, tokens); needs eager attention.

        Returns:
            The head's outputs and what was asked for, by transformers' names.
        """
        if output_attentions and self.attention == "sdpa":
            raise UsageError("attention weights need attention='eager': torch's fused attention does not keep them")
        pixel_values = pixel_values.to(self.layernorm.weight.dtype)
        x, grid = self.embeddings(pixel_values, bool_masked_pos, interpolate=interpolate_pos_encoding)
        extra = {"hidden_states.0": x} if output_hidden_states else {}
        for index, layer in enumerate(self.layers):
            x, weights = layer(x)
            if output_hidden_states:
                extra[f"hidden_states.{index + 1}"] = x
            if output_attentions:
                extra[f"attentions.{index}"] = weights
        outputs: dict[str, Tensor] = self.head(self.layernorm(x), grid)
        return outputs | extra

    def with_attention(self, kind: AttentionKind) -> VisionTransformer:
        """The same model, its weights shared, with the other attention."""
        check_attention(kind)
        twin = copy.deepcopy(self, memo={id(parameter): parameter for parameter in self.parameters()})
        twin.attention = kind
        for module in twin.modules():
            if isinstance(module, Attention):
                module.kind = kind
        return twin

    @torch.no_grad()
    def resize(self, image_size: tuple[int, int]) -> None:
        """Make the model one for images of `image_size` (height, width), its position table interpolated once.

        Raises:
            UsageError: the size is not a pair of positive integers, or smaller than one patch.
        """
        config = dataclasses.replace(self.config, image_size=image_size)
        table = self.embeddings.position_embeddings
        positions = self.embeddings.interpolated_positions(config.grid_size)
        self.embeddings.position_embeddings = nn.Parameter(positions, requires_grad=table.requires_grad)
        self.embeddings.grid_size = config.grid_size
        self.config = config

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draw fresh weights as transformers does: normal with `initializer_range`; biases, mask token 0; norms 1."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if "layernorm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
            elif name.endswith("bias") or name == "embeddings.mask_token":
                parameter.zero_()
            else:
                parameter.normal_(std=self.config.initializer_range, generator=generator)
