"""Write tests/golden/open_clip: tiny OpenCLIP models as its push_to_hf_hub saves them, and what OpenCLIP computes.

Run it in the environment of constraints-open-clip.txt: `.venvs/open-clip/bin/python tests/golden/make_open_clip.py`.
vitdeploy/sources/architectures/open_clip_table.json is written too: the architectures of OpenCLIP's model_configs.
"""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from golden_models import photograph, spread

# As in make_timm.py.
_OPERATORS = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
for _name in ("nms", "qnms"):
    _OPERATORS.define(f"{_name}() -> ()")  # type: ignore[no-untyped-call]

open_clip: Any = importlib.import_module("open_clip")
transform: Any = importlib.import_module("open_clip.transform")

OUT = Path(__file__).parent / "open_clip"
TABLE = Path(__file__).parents[2] / "vitdeploy" / "sources" / "architectures" / "open_clip_table.json"
TEXT = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 2, "layers": 1}
PLAIN = {"layers": 2, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 32}
CASES = {
    "plain": {"embed_dim": 12, "vision_cfg": PLAIN, "text_cfg": TEXT},
    "quickgelu": {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {**PLAIN, "image_size": [24, 32], "mlp_ratio": 2.5, "layers": 3},
        "text_cfg": TEXT,
    },
}
PREPROCESS: dict[str, dict[str, Any]] = {
    "plain": {"size": 32},
    "quickgelu": {"size": [24, 32], "resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5] * 3,
                  "std": [0.25, 0.5, 0.5]},
}  # fmt: skip


def write_case(name: str, seed: int) -> None:
    folder = OUT / name
    folder.mkdir()
    model = open_clip.CLIP(**CASES[name]).eval()
    spread(model, seed)
    config = {"model_cfg": CASES[name], "preprocess_cfg": PREPROCESS[name]}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    half = {key: tensor.half().contiguous() for key, tensor in model.state_dict().items()}
    safetensors.torch.save_file(half, folder / "open_clip_model.safetensors")
    cfg = transform.PreprocessCfg(**PREPROCESS[name])
    pixels = transform.image_transform_v2(cfg, is_train=False)(photograph())[None]
    with torch.inference_mode():
        embeds = model.encode_image(pixels)
    np.savez_compressed(folder / "expected.npz", pixel_values=pixels.numpy(), image_embeds=embeds.numpy())


def write_table() -> None:
    rows = {}
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision = config["vision_cfg"]
        plain = set(vision) <= {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
        if plain and isinstance(vision["layers"], int) and "multimodal_cfg" not in config:
            row = {"embed_dim": config["embed_dim"], "quick_gelu": config.get("quick_gelu", False)}
            rows[name] = {**row, "vision_cfg": vision}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    TABLE.write_text(f"{{\n{lines}\n}}\n")


def main() -> None:
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    write_table()
    for seed, name in enumerate(CASES):
        write_case(name, seed)


if __name__ == "__main__":
    main()
