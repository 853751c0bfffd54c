"""From pixels to tokens: patch, class, mask and position embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from vitdeploy.models.config import ViTConfig


class Embeddings(nn.Module):
    """Class token and embedded patches with their positions: (N, C, H, W) -> (N, 1 + gh * gw, D)."""

    def __init__(self, config: ViTConfig, *, mask_token: bool) -> None:
        super().__init__()
        self.grid_size = config.grid_size
        self.patch_embeddings = nn.ModuleDict(  # a level of its own, as in the checkpoints' names
            {"projection": nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size)}
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if mask_token else None
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + config.num_patches, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, *, interpolate: bool = False
    ) -> tuple[Tensor, tuple[int, int]]:
        """Embed an image.

        Args:
            pixel_values: (N, C, H, W).
            bool_masked_pos: (N, gh * gw), true where the mask token replaces the patch.
            interpolate: resize the position embeddings to the image's grid, whatever its size; otherwise the image
                must have the configured size.

        Returns:
            The tokens (N, 1 + gh * gw, D) and the grid (gh, gw).
        """
        patches = self.patch_embeddings["projection"](pixel_values)  # (N, D, gh, gw)
        grid = patches.shape[2], patches.shape[3]
        x = patches.flatten(2).transpose(1, 2)  # (N, gh * gw, D)
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise UsageError("bool_masked_pos needs a model with a mask token: load it for masked image modeling")
            mask = bool_masked_pos.unsqueeze(-1).to(x.dtype)
            x = x * (1.0 - mask) + self.mask_token * mask
        positions = self.interpolated_positions(grid) if interpolate else self.position_embeddings
        # The class token joins its position, and its place in the batch is zero: the same sum as after expanding it to
        # the batch, but an exported graph need not ask for the batch's size, which ONNX Runtime does on the CPU alone.
        positions = torch.cat((self.cls_token + positions[:, :1], positions[:, 1:]), dim=1)
        x = F.pad(x, (0, 0, 1, 0))  # (N, 1 + gh * gw, D)
        return self.dropout(x + positions), grid

    def interpolated_positions(self, grid: tuple[int, int]) -> Tensor:
        """The position table for another grid of patches: (1, 1 + gh * gw, D).

        Bicubic, as transformers' ViT does, from the configured grid instead of a square one. Interpolating to the
        grid that is there already gives the same numbers, so an exported graph needs no branch.
        """
        cls, patches = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        patches = torch.unflatten(patches.transpose(1, 2), 2, self.grid_size)  # (1, D, gh, gw)
        patches = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
        return torch.cat((cls, patches.flatten(2).transpose(1, 2)), dim=1)
