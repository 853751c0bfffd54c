"""Architecture presets with seeded random weights, for latency measurements without a download."""

from __future__ import annotations

import re
from typing import Any

import torch

from vitdeploy.errors import UsageError, shown
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.specs import Task
from vitdeploy.system.forks import with_threads

# Dosovitskiy et al. (arXiv:2010.11929), table 1; tiny and small from Touvron et al. (arXiv:2012.12877), table 1; giant
# from Zhai et al. (arXiv:2106.04560), table 2.
_WIDTHS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768},
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "huge": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "intermediate_size": 5120},
    "giant": {"hidden_size": 1408, "num_hidden_layers": 40, "num_attention_heads": 16, "intermediate_size": 6144},
}
_SIZE = r"[0-9]{1,6}(?:x[0-9]{1,6})?"
_NAME = re.compile(rf"vit-({'|'.join(_WIDTHS)})-patch({_SIZE})-({_SIZE})")
_NUM_LABELS = 1000


def preset_config(name: str) -> ViTConfig:
    """The configuration of a preset such as "vit-base-patch16-224" or "vit-tiny-patch8x16-96x160".

    Sizes in pairs are height x width.

    Raises:
        UsageError: If the name does not have that form, or a size is out of range.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        form = f"vit-{{{','.join(_WIDTHS)}}}-patchP-S"
        message = f"{shown(name)} is not a preset: {form}, such as vit-base-patch16-224"
        raise UsageError(message, what="random_weights", expected=form, found=name)
    width, patch, image = match.groups()
    return ViTConfig(
        **_WIDTHS[width],
        image_size=_pair(image),
        patch_size=(patch_size := _pair(patch)),
        encoder_stride=patch_size[0],
        labels=tuple(f"LABEL_{index}" for index in range(_NUM_LABELS)),
    )


@with_threads
def random_model(config: ViTConfig, task: Task = Task.CLASSIFICATION, *, seed: int = 0) -> VisionTransformer:
    """A model of this architecture with random weights, in float32 and evaluation mode; determined by the seed."""
    # torch's initialization would take as long again, and use the global generator
    with torch.device("meta"):
        model = VisionTransformer(config, task)
    model.to_empty(device="cpu")
    model.reset_parameters(seed)
    return model.eval().requires_grad_(False)


def _pair(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width or height)
