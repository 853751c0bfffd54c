"""From pixels to tokens: patches, prefix tokens, masks and positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vitdeploy.errors import UsageError
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.layers.positions import interpolate


class Embeddings(nn.Module):
    """Prefix tokens and embedded patches with their positions: (N, C, H, W) -> (N, P + gh * gw, D).

    The prefix is the class token, the distillation token and the registers, as far as the model has them.
    """

    def __init__(self, config: ViTConfig, *, mask_token: bool) -> None:
        super().__init__()
        size = config.hidden_size
        self.grid_size = config.grid_size
        self.antialias = config.position_antialias
        self.num_positioned = config.class_token + config.distillation_token  # prefix tokens with a position
        self.patch_embeddings = nn.ModuleDict(  # an extra level, as in the checkpoints' names
            {
                "projection": nn.Conv2d(
                    config.num_channels, size, config.patch_size, config.patch_size, bias=config.projection_bias
                )
            }
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size)) if config.class_token else None
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, size)) if config.distillation_token else None
        registers = config.num_register_tokens
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, size)) if registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size)) if mask_token else None
        self.position_embeddings = (
            nn.Parameter(torch.zeros(1, self.num_positioned + config.num_patches, size))
            if config.absolute_positions
            else None
        )
        self.layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, *, interpolate: bool = False
    ) -> tuple[Tensor, tuple[int, int]]:
        """Embed an image.

        Args:
            pixel_values: (N, C, H, W).
            bool_masked_pos: (N, gh * gw), true where the mask token replaces the patch.
            interpolate: Resize the position embeddings to the image's grid; otherwise the image must have the
                configured size.

        Returns:
            Tokens (N, P + gh * gw, D) and grid (gh, gw).
        """
        patches = self.patch_embeddings["projection"](pixel_values)  # (N, D, gh, gw)
        grid = patches.shape[2], patches.shape[3]
        x = patches.flatten(2).transpose(1, 2)  # (N, gh * gw, D)
        if bool_masked_pos is not None:
            if self.mask_token is None:
                message = "bool_masked_pos needs a model with a mask token"
                raise UsageError(message, what="bool_masked_pos", hint="load it for masked image modeling")
            mask = bool_masked_pos.unsqueeze(-1).to(x.dtype)
            x = x * (1.0 - mask) + self.mask_token * mask
        # The prefix is added to space left by the patches: the same sum as after expanding it to the batch, but an
        # exported graph does not need the batch's size, which ONNX Runtime computes only on the CPU.
        prefix = self._prefix()
        positions: Tensor | None = self.position_embeddings
        if interpolate and positions is not None:
            positions = self.interpolated_positions(grid)
        if prefix is None:
            x = x if positions is None else x + positions
            return self.dropout(self._normalized(x)), grid
        x = F.pad(x, (0, 0, prefix.shape[1], 0))  # (N, P + gh * gw, D)
        if positions is None:
            added = F.pad(prefix, (0, 0, 0, grid[0] * grid[1]))
        else:
            added = torch.cat((prefix, positions[:, self.num_positioned :]), dim=1)
        return self.dropout(self._normalized(x + added)), grid

    def _normalized(self, x: Tensor) -> Tensor:
        return x if self.layernorm is None else self.layernorm(x)

    def interpolated_positions(self, grid: tuple[int, int]) -> Tensor:
        """The position table for another patch grid, (1, rows, D): bicubic, from the configured grid.

        The prefix's rows are kept. transformers uses the square root of the number of rows, and supports no other grid.
        """
        if self.position_embeddings is None:
            raise UsageError("the model has no position table to interpolate", what="position_embeddings")
        count = self.num_positioned
        prefix, patches = self.position_embeddings[:, :count], self.position_embeddings[0, count:]
        patches = interpolate(patches, self.grid_size, grid, "bicubic", antialias=self.antialias)
        return torch.cat((prefix, patches[None]), dim=1)

    @torch.no_grad()
    def resize(self, grid: tuple[int, int]) -> None:
        """Change the position table to `grid`, interpolated once."""
        if self.position_embeddings is not None:
            trained, positions = self.position_embeddings.requires_grad, self.interpolated_positions(grid)
            self.position_embeddings = nn.Parameter(positions, requires_grad=trained)
        self.grid_size = grid

    def _prefix(self) -> Tensor | None:
        """The prefix tokens with their positions, which do not depend on the image: (1, P, D); None without any."""
        prefix = _joined(self.cls_token, self.distillation_token)
        if prefix is not None and self.position_embeddings is not None:
            prefix = prefix + self.position_embeddings[:, : self.num_positioned]
        return _joined(prefix, self.register_tokens)


def _joined(*tokens: Tensor | None) -> Tensor | None:
    """Concatenate those (1, n, D) that are not None; None without any."""
    present = [token for token in tokens if token is not None]
    return torch.cat(present, dim=1) if len(present) > 1 else next(iter(present), None)
