"""What a task makes of the encoder's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from vitdeploy.models.activations import activation

if TYPE_CHECKING:
    from torch import Tensor

    from vitdeploy.models.config import ViTConfig


class ClassificationHead(nn.Module):
    """Class token -> `logits` (N, num_labels); the class token itself (N, D) for a model without labels."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        count = len(config.labels)
        self.classifier = nn.Linear(config.hidden_size, count) if count else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:  # noqa: ARG002  (one signature)
        return {"logits": self.classifier(x[:, 0])}


class FeatureHead(nn.Module):
    """Tokens -> `last_hidden_state` (N, L, D) and, with a pooler, `pooler_output` (N, pooler_output_size)."""

    def __init__(self, config: ViTConfig, *, pooler: bool) -> None:
        super().__init__()
        size = config.pooler_output_size or config.hidden_size
        self.pooler = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, size)}) if pooler else None
        self.activation = activation(config.pooler_act, "pooler_act") if pooler else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:  # noqa: ARG002  (one signature)
        outputs = {"last_hidden_state": x}
        if self.pooler is not None:
            outputs["pooler_output"] = self.activation(self.pooler["dense"](x[:, 0]))
        return outputs


class ReconstructionHead(nn.Module):
    """Tokens -> `reconstruction` (N, C, gh * stride, gw * stride), as in SimMIM (arXiv:2111.09886)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        channels = config.encoder_stride**2 * config.num_channels
        self.decoder = nn.Sequential(
            nn.Conv2d(config.hidden_size, channels, kernel_size=1), nn.PixelShuffle(config.encoder_stride)
        )

    def forward(self, x: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
        x = torch.unflatten(x[:, 1:].transpose(1, 2), 2, grid)  # (N, D, gh, gw)
        return {"reconstruction": self.decoder(x)}
