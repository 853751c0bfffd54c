"""The reference Vision Transformer (Dosovitskiy et al., arXiv:2010.11929), written to be exported."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vitdeploy.bundle.scores import ProblemType, default_problem_type
from vitdeploy.errors import UsageError
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.layers.dense import DenseFeatures, patch_map
from vitdeploy.models.layers.embeddings import Embeddings
from vitdeploy.models.layers.encoder import Attention, AttentionKind, Layer, UnusedNorm, check_attention
from vitdeploy.models.layers.heads import FeatureHead, make_head
from vitdeploy.models.layers.positions import RelativePositionBias, relative_position_index
from vitdeploy.models.layers.rotary import Rotation
from vitdeploy.specs import Pool, Task


class VisionTransformer(nn.Module):
    """Embeddings, `num_hidden_layers` pre-norm blocks, a final layer norm and the head of a task.

    Its forward pass has no attention mask, does not branch on a shape, and never converts a shape to a number, so that
    a traced graph is valid for other sizes.

    Args:
        config: Hyper-parameters.
        task: Task of the head.
        pooler: True for a feature-extraction model with its family's pooler.
        teacher: True for a distilled classifier with its teacher's head as well.
        attention: "sdpa" (torch's fused attention) or "eager" (separate operators, which can return the weights).
    """

    def __init__(
        self,
        config: ViTConfig,
        task: Task = Task.CLASSIFICATION,
        *,
        pooler: bool = True,
        teacher: bool = False,
        attention: AttentionKind = "sdpa",
    ) -> None:
        super().__init__()
        check_attention(attention)
        self.config = config
        self.task = task
        self.pooler = pooler
        self.teacher = teacher
        self.attention = attention
        self.embeddings = Embeddings(config, mask_token=config.mask_token or task is Task.MASKED_IMAGE_MODELING)
        self.shared_position_bias = RelativePositionBias(config) if config.shared_relative_positions else None
        self.layers = nn.ModuleList(Layer(config, attention) for _ in range(config.num_hidden_layers))
        norm = nn.LayerNorm if config.final_norm else UnusedNorm if config.unused_norm else nn.Identity
        self.layernorm: nn.LayerNorm | nn.Identity = norm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = make_head(config, task, pooler=pooler, teacher=teacher)

    @property
    def dtype(self) -> torch.dtype:
        return self._projection.dtype

    @property
    def _projection(self) -> Tensor:
        """The weights of the patch projection, which every model has."""
        return self.embeddings.get_parameter("patch_embeddings.projection.weight")

    @property
    def problem_type(self) -> ProblemType:
        """Meaning of `logits`; see `vitdeploy.bundle.scores.problem_type_of`."""
        if self.task is not Task.CLASSIFICATION:
            return ProblemType.SINGLE_LABEL
        return self.config.problem_type or default_problem_type(len(self.config.labels))

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        *,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        features: Mapping[str, DenseFeatures] | None = None,
        num_layers: int | None = None,
        last_tokens: int | None = None,
    ) -> dict[str, Tensor]:
        """Run the model.

        Args:
            pixel_values: Images, (N, C, H, W); converted to the type of the weights.
            bool_masked_pos: True for masked patches, (N, num_patches); masked image modeling only.
            interpolate_pos_encoding: Accept images of any size from one patch up, with interpolated positions.
            output_hidden_states: Add `hidden_states.0` (the embeddings) to `hidden_states.L` (the last block, before
                the final layer norm), each (N, tokens, D).
            output_attentions: Add `attentions.0` ..., each (N, heads, tokens, tokens); needs eager attention.
            features: Dense features to add, each (N, D, gh, gw), by name.
            num_layers: Number of layers to run, without the head. Default: all, and the head.
            last_tokens: Leading tokens that the last layer computes, for heads that read no others. Default: all.

        Returns:
            The head's outputs and the requested hidden states and attentions, by transformers' names, and the dense
            features.
        """
        if output_attentions and self.attention == "sdpa":
            message = "attention weights need attention='eager': torch's fused attention does not keep them"
            raise UsageError(message, what="attention", expected="eager", found="sdpa")
        x, grid = self.embeddings(pixel_values.to(self.dtype), bool_masked_pos, interpolate=interpolate_pos_encoding)
        biases = self._biases(grid, interpolate=interpolate_pos_encoding)
        rotation = self._rotation(grid if interpolate_pos_encoding else self.config.grid_size)
        extra = {"hidden_states.0": x} if output_hidden_states else {}
        features = features or {}
        dense_layers = {layer for layer, _ in features.values()}
        states = {0: x} if 0 in dense_layers else {}
        for index, bias in enumerate(biases[:num_layers]):
            is_last = index == len(self.layers) - 1
            x, weights = self.layers[index](x, bias, rotation, last_tokens if is_last else None)
            if output_hidden_states:
                extra[f"hidden_states.{index + 1}"] = x
            if output_attentions:
                extra[f"attentions.{index}"] = weights
            if index + 1 in dense_layers:
                states[index + 1] = x
        for name, (layer, normalized) in features.items():
            state = self.layernorm(states[layer]) if normalized else states[layer]
            extra[name] = patch_map(state, self.config.num_prefix_tokens, grid)
        outputs: dict[str, Tensor] = self.head(self.layernorm(x), grid) if num_layers is None else {}
        return outputs | extra

    def _biases(self, grid: tuple[int, int], *, interpolate: bool) -> list[Tensor | None]:
        """Relative position bias of each layer's attention: (1, H, L, L), or None."""
        if not (self.config.relative_positions or self.config.shared_relative_positions):
            return [None] * len(self.layers)
        index = relative_position_index(grid, self._projection.device)
        new_grid = grid if interpolate else None
        shared = None if self.shared_position_bias is None else self.shared_position_bias(index, new_grid)
        if not self.config.relative_positions:
            return [shared] * len(self.layers)
        biases = [layer.get_submodule("relative_position_bias")(index, new_grid) for layer in self.layers]
        return [bias if shared is None else bias + shared for bias in biases]

    def _rotation(self, grid: tuple[int, int]) -> Rotation | None:
        """Rotation of queries and keys, the same in every layer."""
        config = self.config
        if config.rotary is None:
            return None
        return Rotation(config.rotary, grid, config.num_prefix_tokens, config.attention_head_dim, self._projection)

    def with_attention(self, kind: AttentionKind) -> VisionTransformer:
        """The same model with shared weights and another attention."""
        check_attention(kind)
        twin = copy.deepcopy(self, memo={id(parameter): parameter for parameter in self.parameters()})
        twin.attention = kind
        for module in twin.modules():
            if isinstance(module, Attention):
                module.kind = kind
        return twin

    def embed_by(self, pool: Pool | None, *, normalize: bool) -> None:
        """Give a feature-extraction model the output `image_embeds`; see `vitdeploy.models.layers.embedding`.

        Args:
            pool: Pooling; None for the model's default, see `vitdeploy.models.layers.heads.FeatureHead.pools`.
            normalize: Divide the vectors by their L2 norms.

        Raises:
            UsageError: If the model has another task, or lacks what the pooling reads.
        """
        if self.task is not Task.FEATURES or not isinstance(self.head, FeatureHead):
            what = "normalize" if pool is None else "pool"
            raise UsageError(
                f"{what} needs the task {Task.FEATURES}, the model's is {self.task}", what=what,
                expected=Task.FEATURES, found=self.task, hint=f"export it with the task {Task.FEATURES}",
            )  # fmt: skip
        known = self.head.pools(self.config)
        if pool not in (None, *known):
            message = f"this {self.config.model_type} model has no pool {pool}, only: {', '.join(known)}"
            raise UsageError(message, what="pool", expected=known, found=pool)
        pool = pool or known[0]
        self.config = dataclasses.replace(self.config, embedding_pool=pool, normalize_embedding=normalize)
        self.head.embed_by(self.config)

    @torch.no_grad()
    def resize(self, image_size: tuple[int, int]) -> None:
        """Change the model's image size to (height, width), with its position tables interpolated once.

        Raises:
            UsageError: If the size is not a pair of positive integers, or smaller than one patch.
        """
        self.config = dataclasses.replace(self.config, image_size=image_size)
        for module in list(self.modules()):
            if isinstance(module, (Embeddings, RelativePositionBias)):
                module.resize(self.config.grid_size)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draw random weights as transformers does: normal with `initializer_range`; biases, mask token 0; norms 1."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if "layer_scale" in name or ("layernorm" in name and name.endswith("weight")):
                parameter.fill_(1.0)
            elif name.endswith(("bias", "bias_table")) or name == "embeddings.mask_token":
                parameter.zero_()
            else:
                parameter.normal_(std=self.config.initializer_range, generator=generator)
