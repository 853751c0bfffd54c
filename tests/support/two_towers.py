"""Tiny random models of transformers with an image and a text tower, their tokenizer and their class embeddings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from processors import write_processor

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LABELS = ("cat", "dog", "a newt", "tench")
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 60,
        "max_position_embeddings": 8}  # fmt: skip
VISION = {**TEXT, "image_size": 32, "patch_size": 8}
del VISION["vocab_size"], VISION["max_position_embeddings"]


class TwoTowers:
    """A random model of transformers with an image and a text tower, its files, and the prompts of four classes."""

    def __init__(self, folder: Path, kind: str, spread: Any) -> None:
        config = getattr(transformers, f"{kind}Config")(text_config=TEXT, vision_config=VISION)
        if kind == "CLIP":
            config.projection_dim = config.vision_config.projection_dim = config.text_config.projection_dim = 24
        self.folder = folder
        self.model = getattr(transformers, f"{kind}Model")(config).eval().requires_grad_(False)
        spread(self.model, 3)
        self.model.logit_scale.fill_(2.5)
        if kind == "Siglip":
            self.model.logit_bias.fill_(-3.0)
        self.model.save_pretrained(folder)
        write_processor(folder, (32, 32), f"{kind}ImageProcessor")
        self.prompts = torch.randint(1, 59, (len(LABELS), 8), generator=torch.Generator().manual_seed(0))
        self.prompts[:, -1] = 59  # the last token, whose features CLIP takes

    def logits(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        given = self.model(input_ids=self.prompts, pixel_values=torch.from_numpy(pixels))
        logits: NDArray[np.float32] = given.logits_per_image.numpy()
        return logits

    def write_classes(self, path: Path, **changed: Any) -> Path:
        texts = self.model.get_text_features(input_ids=self.prompts)
        vectors = getattr(texts, "pooler_output", texts).numpy()
        arrays = {"names": np.array(LABELS), "vectors": vectors, "logit_scale": self.model.logit_scale.numpy()}
        if hasattr(self.model, "logit_bias"):
            arrays["logit_bias"] = self.model.logit_bias.numpy()
        np.savez(path, **{**arrays, **changed})
        return path


def write_clip(folder: Path) -> None:
    """A CLIP with a tokenizer, whose tokens are the bytes: no merge is known."""
    torch.manual_seed(0)
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    end = len(tokens) - 1
    special = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    text = {**TEXT, **special, "vocab_size": len(tokens), "max_position_embeddings": 77}
    vision = {**VISION, "image_size": 224, "patch_size": 32}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    transformers.CLIPModel(config).save_pretrained(folder)
    write_processor(folder, (224, 224), "CLIPImageProcessor")
    (folder / "vocab.json").write_text(
        json.dumps({token: index for index, token in enumerate(tokens)}), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
