"""Tools that run a model in torch: transformers in several ways, and timm."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from worker import Tool

# As in tests/golden/make_timm.py: torchvision's import looks these names up, and its operators need another torch.
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
_TORCHVISION_NAMES = ("nms", "qnms")


def is_classifier(model: Path) -> bool:
    """True if the checkpoint of a folder has a classification head."""
    (name,) = json.loads((model / "config.json").read_text(encoding="utf-8"))["architectures"]
    return str(name).endswith("ForImageClassification")


def processor(model: Path) -> Any:
    """Image files to pixel values (N, 3, H, W), a torch tensor, by transformers' image processor."""
    from PIL import Image
    from transformers import AutoImageProcessor

    loaded = AutoImageProcessor.from_pretrained(model)

    def prepare(files: Sequence[Path]) -> torch.Tensor:
        images = [Image.open(file).convert("RGB") for file in files]
        pixel_values: torch.Tensor = loaded(images, return_tensors="pt")["pixel_values"]
        return pixel_values

    return prepare


def transformers_model(file: Path, model: Path, attention: str = "sdpa", compiled: str = "") -> Tool:  # noqa: ARG001
    """Transformers' model, as its documentation runs it; with `compiled`, through torch.compile."""
    from transformers import AutoModel, AutoModelForImageClassification

    classifier = is_classifier(model)
    kind = AutoModelForImageClassification if classifier else AutoModel
    loaded = kind.from_pretrained(model, attn_implementation=attention).eval()
    run = torch.compile(loaded) if compiled else loaded

    @torch.inference_mode()
    def infer(pixel_values: torch.Tensor) -> np.ndarray:
        result = run(pixel_values)
        values: torch.Tensor = result.logits if classifier else result.pooler_output
        return values.numpy()

    return Tool(processor(model), infer)


def transformers_pipeline(file: Path, model: Path) -> Tool:
    """Transformers' pipeline: image files to labels, or to pooled features."""
    from transformers import pipeline

    if is_classifier(model):
        run = pipeline("image-classification", model=str(model))
    else:
        run = pipeline("image-feature-extraction", model=str(model), pool=True)
    tool = transformers_model(file, model)
    return tool._replace(whole=lambda files: run([str(path) for path in files], batch_size=len(files)))


def timm_model(file: Path, model: Path) -> Tool:
    """Timm's model with the checkpoint's weights: `file` names its architecture, `model` has transformers' names."""
    for name in _TORCHVISION_NAMES:
        _OPERATORS.define(f"{name}() -> ()")  # type: ignore[no-untyped-call]
    timm: Any = importlib.import_module("timm")
    size = json.loads((model / "preprocessor_config.json").read_text(encoding="utf-8")).get("crop_size", {})
    options = {"img_size": size["height"], "num_classes": 0} if not is_classifier(model) else {}
    loaded = timm.create_model(file.name, **options).eval()
    pixels = processor(model)
    reference = transformers_model(file, model)
    example = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32))
    loaded.load_state_dict(_timm_weights(model, loaded))
    with torch.inference_mode():
        given, wanted = loaded(example).numpy(), reference.infer(example)
    difference = np.abs(given - wanted).max()
    if difference > 1e-3 * np.abs(wanted).max():
        raise SystemExit(f"timm's {file.name} must give what transformers gives, it differs by {difference}")

    @torch.inference_mode()
    def infer(pixel_values: torch.Tensor) -> np.ndarray:
        values: torch.Tensor = loaded(pixel_values)
        return values.numpy()

    return Tool(pixels, infer)


def _timm_weights(model: Path, loaded: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights by timm's names, which are in the order of transformers' with q, k and v joined."""
    from safetensors.torch import load_file

    names = {
        "embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj", "encoder.layer": "blocks",
        "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2", "attention.attention.": "attn.",
        "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma", "layernorm": "norm",
        "classifier": "head",
    }  # fmt: skip
    weights: dict[str, torch.Tensor] = {}
    for name, value in load_file(model / "model.safetensors").items():
        key = name.removeprefix("vit.").removeprefix("dinov2.")
        for old, new in names.items():
            key = key.replace(old, new)
        weights[key] = value
    for prefix in {key.partition(".query.")[0] for key in weights if ".query." in key}:
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"{prefix}.{part}.{kind}") for part in ("query", "key", "value")]
            weights[f"{prefix}.qkv.{kind}"] = torch.cat(parts)
    wanted = loaded.state_dict()
    table = weights["pos_embed"]
    if table.shape != wanted["pos_embed"].shape:  # timm would interpolate with antialiasing, transformers does not
        old, new = (round((shape[1] - 1) ** 0.5) for shape in (table.shape, wanted["pos_embed"].shape))
        grid = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
        weights["pos_embed"] = torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    return {key: value for key, value in weights.items() if key in wanted}  # without the mask token
