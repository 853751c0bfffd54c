"""Position tables for other patch grids, and attention biases by relative position."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vitdeploy.errors import UsageError
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.layers.geometric import resize_offsets

_SPECIAL = 3  # last rows of a relative-position table: class to patch, patch to class, class to class


def interpolate(table: Tensor, old: tuple[int, int], new: tuple[int, int], mode: str, *, antialias: bool) -> Tensor:
    """Resize a table over a grid: (old height * old width, D) -> (new height * new width, D).

    Resizing to the same grid gives the same numbers, so an exported graph needs no branch. Half precision is
    interpolated in float32, as in transformers' DINOv2. Bicubic antialiasing is a product of matrices, because
    TensorRT has no such operator and OpenVINO ignores its flag.
    """
    dtype = torch.promote_types(table.dtype, torch.float32)
    if antialias and mode == "bicubic":
        down, across = (_antialiased(*sides, table.device, dtype) for sides in zip(old, new, strict=True))
        rows = torch.unflatten(table.to(dtype), 0, old)  # (old height, old width, D)
        rows = torch.unflatten(down @ rows.flatten(1), 1, rows.shape[1:])  # (new height, old width, D)
        return (across @ rows).flatten(0, 1).to(table.dtype)  # (new height * new width, D)
    grid = torch.unflatten(table.transpose(0, 1)[None], 2, old)  # (1, D, old height, old width)
    grid = F.interpolate(grid.to(dtype), size=new, mode=mode, align_corners=False, antialias=antialias)
    return grid.to(table.dtype)[0].flatten(1).transpose(0, 1)  # (new height * new width, D)


def _antialiased(old: int, new: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Weights of old positions in new ones, (new, old): torch's bicubic filter with antialiasing, which is Pillow's.

    Keys' kernel with a = -0.5 (10.1109/TASSP.1981.1163711), as wide as the distance of new positions if they are fewer.
    """
    positions = torch.arange(old, device=device).to(dtype) + 0.5
    centers = (torch.arange(new, device=device).to(dtype) + 0.5) * old / new
    width = (torch.ones(1, device=device, dtype=dtype) * old / new).clamp(min=1)
    x = ((positions - centers[:, None]) / width).abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return weights / weights.sum(1, keepdim=True)


class RelativePositionBias(nn.Module):
    """Attention bias by the offset of two patches, as in BEiT (arXiv:2106.08254): a grid -> (1, H, L, L).

    The table has a row per offset, and three for the class token: ((2 gh - 1) * (2 gw - 1) + 3, H).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.grid_size = config.grid_size
        self.interpolation = config.relative_position_interpolation
        height, width = _offsets(self.grid_size)
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros(height * width + _SPECIAL, config.num_attention_heads)
        )

    def forward(self, index: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """The bias of every pair of tokens.

        Args:
            index: Result of `relative_position_index` for the grid.
            grid: Target grid of the interpolation, (down, across); None for the configured grid.

        Raises:
            UsageError: If interpolation is requested, but is not bilinear.
        """
        offsets, special = self._parts()
        if grid is not None:
            if self.interpolation != "bilinear":
                raise UsageError(
                    f"{self.interpolation} relative positions cannot be interpolated for each image",
                    what="relative_position_interpolation", expected="bilinear", found=self.interpolation,
                    hint="resize the model instead",
                )  # fmt: skip
            offsets = self._interpolated(offsets, grid)
        table = torch.cat((special, offsets))  # so that the class token's rows do not move with the grid
        return table[index].permute(2, 0, 1)[None]  # (1, H, L, L)

    @torch.no_grad()
    def resize(self, grid: tuple[int, int]) -> None:
        """Change the table to `grid`, interpolated once, as the configuration says."""
        offsets, special = self._parts()
        if self.interpolation == "geometric":
            offsets = resize_offsets(offsets, self.grid_size, grid)
        else:
            offsets = self._interpolated(offsets, grid)
        table = torch.cat((offsets, special))
        trained = self.relative_position_bias_table.requires_grad
        self.relative_position_bias_table = nn.Parameter(table, requires_grad=trained)
        self.grid_size = grid

    def _parts(self) -> tuple[Tensor, Tensor]:
        table = self.relative_position_bias_table
        return table[:-_SPECIAL], table[-_SPECIAL:]

    def _interpolated(self, offsets: Tensor, grid: tuple[int, int]) -> Tensor:
        # Bilinear as in transformers, which swaps height and width if the configured grid is not square.
        return interpolate(offsets, _offsets(self.grid_size), _offsets(grid), "bilinear", antialias=False)


def relative_position_index(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Table row of `RelativePositionBias` for every pair of tokens, class token first: (L, L) int64."""
    height, width = grid
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    down = rows[:, None] - rows[None, :] + height - 1  # (gh, gh)
    across = columns[:, None] - columns[None, :] + width - 1  # (gw, gw)
    offset = down[:, None, :, None] * (2 * width - 1) + across[None, :, None, :]  # (gh, gw, gh, gw)
    patches = offset.flatten(2).flatten(0, 1) + _SPECIAL  # (gh * gw, gh * gw)
    first = F.pad(torch.zeros_like(patches[:1]), (1, 0), value=2)
    return torch.cat((first, F.pad(patches, (1, 0), value=1)))


def _offsets(grid: tuple[int, int]) -> tuple[int, int]:
    """Number of possible offsets between two patches of a grid (down, across)."""
    return 2 * grid[0] - 1, 2 * grid[1] - 1
