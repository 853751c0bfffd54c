"""Write tests/golden/timm: tiny models of timm's architectures, and what timm computes with them.

Run it in the environment of constraints-timm.txt: `.venvs/timm/bin/python tests/golden/make_timm.py`. The same versions
on the same processor write the same files.
"""

from __future__ import annotations

import copy
import importlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
import torch
from PIL import Image

# torchvision's compiled operators need the build of torch that it was made for; its transforms of Pillow images do not,
# but its import looks these names up.
_OPERATORS = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
for _name in ("nms", "qnms"):
    _OPERATORS.define(f"{_name}() -> ()")  # type: ignore[no-untyped-call]

timm: Any = importlib.import_module("timm")

OUT = Path(__file__).parent / "timm"
# Per kind: the architecture, and the arguments of three models. Sizes are (height, width).
KINDS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "vit": [
        ("vit_base_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 4, "mlp_ratio": 2}),
        ("vit_tiny_patch16_384", {"img_size": (24, 36), "patch_size": 6, "embed_dim": 24, "mlp_ratio": 2.5}),
        ("vit_base_patch16_224_miil", {"img_size": 33, "patch_size": 11, "embed_dim": 24, "depth": 3}),
    ],
    "vit_features": [
        ("vit_small_patch8_224", {"img_size": 40, "patch_size": 8, "embed_dim": 24, "mlp_ratio": 3}),
        ("vit_base_patch32_224", {"img_size": 32, "patch_size": 16, "embed_dim": 24, "num_heads": 2, "mlp_ratio": 1.5}),
        ("vit_large_patch16_224", {"img_size": 36, "patch_size": 6, "embed_dim": 32, "mlp_ratio": 2, "depth": 3}),
    ],
    "deit": [
        ("deit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 24, "mlp_ratio": 2}),
        ("deit_small_patch16_224", {"img_size": 40, "patch_size": 10, "embed_dim": 36, "mlp_ratio": 1}),
        ("deit_base_patch16_384", {"img_size": 28, "patch_size": 4, "embed_dim": 24, "depth": 3, "mlp_ratio": 2}),
    ],
    "deit_distilled": [
        ("deit_tiny_distilled_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 24, "mlp_ratio": 2}),
        ("deit_small_distilled_patch16_224", {"img_size": 24, "patch_size": 6, "embed_dim": 30, "mlp_ratio": 2}),
        ("deit_base_distilled_patch16_224", {"img_size": 30, "patch_size": 6, "embed_dim": 24, "mlp_ratio": 1.5}),
    ],
    "beit": [
        ("beit_base_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 4, "mlp_ratio": 2}),
        ("beitv2_base_patch16_224", {"img_size": 30, "patch_size": 6, "embed_dim": 24, "mlp_ratio": 2}),
        ("beit_large_patch16_384", {"img_size": 36, "patch_size": 12, "embed_dim": 32, "mlp_ratio": 1, "depth": 3}),
    ],
    "beit_features": [
        ("beitv2_base_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 24, "mlp_ratio": 2}),
        (
            "beit_base_patch16_224",
            {"img_size": 24, "patch_size": 6, "embed_dim": 24, "mlp_ratio": 2, "global_pool": "token"},
        ),
        (
            "beit_base_patch16_224",
            {
                "img_size": 20,
                "patch_size": 4,
                "embed_dim": 24,
                "mlp_ratio": 1.5,
                "init_values": None,
                "use_abs_pos_emb": True,
                "use_rel_pos_bias": False,
                "use_shared_rel_pos_bias": True,
            },
        ),
    ],
    "dinov2": [
        ("vit_small_patch14_dinov2", {"img_size": 28, "patch_size": 7, "embed_dim": 24, "mlp_ratio": 2}),
        ("vit_base_patch14_dinov2", {"img_size": 42, "embed_dim": 24, "num_heads": 3, "mlp_ratio": 1}),
        ("vit_large_patch14_dinov2", {"img_size": 30, "patch_size": 5, "embed_dim": 32, "mlp_ratio": 2, "depth": 3}),
    ],
    "reg4_dinov2": [
        ("vit_small_patch14_reg4_dinov2", {"img_size": 28, "patch_size": 7, "embed_dim": 24, "mlp_ratio": 2}),
        ("vit_base_patch14_reg4_dinov2", {"img_size": 32, "patch_size": 8, "embed_dim": 24, "no_embed_class": False}),
        ("vit_base_patch14_reg1_tipsv2", {"img_size": 25, "patch_size": 5, "embed_dim": 24, "mlp_ratio": 3}),
    ],
    "reg4_dinov2_classifier": [
        ("vit_small_patch14_reg4_dinov2", {"img_size": 28, "patch_size": 7, "embed_dim": 24, "mlp_ratio": 2}),
        ("vit_base_patch14_reg4_dinov2", {"img_size": 42, "embed_dim": 24, "mlp_ratio": 1, "qkv_bias": False}),
        ("vit_large_patch14_reg4_dinov2", {"img_size": 24, "patch_size": 4, "embed_dim": 32, "mlp_ratio": 2}),
    ],
    "deit3": [
        ("deit3_small_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 24, "mlp_ratio": 2}),
        ("deit3_base_patch16_384", {"img_size": 36, "patch_size": 6, "embed_dim": 36, "mlp_ratio": 1}),
        ("deit3_medium_patch16_224", {"img_size": 30, "patch_size": 10, "embed_dim": 24, "mlp_ratio": 2, "depth": 3}),
    ],
    "swiglu": [
        ("vit_giant_patch14_dinov2", {"img_size": 28, "patch_size": 7, "embed_dim": 24}),
        ("vit_giant_patch14_reg4_dinov2", {"img_size": 24, "patch_size": 6, "embed_dim": 24}),
        (
            "vit_giant_patch14_dinov2",
            {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 2, "num_classes": 5},
        ),
    ],
}
FEATURES = ("vit_features", "beit_features", "dinov2", "reg4_dinov2", "swiglu")
# Evaluation transforms beside those of the models; the last ones are smaller than their crop.
TRANSFORMS: dict[str, dict[str, Any]] = {
    "augreg": {"crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3},
    "deit": {"crop_pct": 0.9, "interpolation": "bicubic"},
    "deit at 384": {"input_size": [3, 384, 384], "crop_pct": 1.0},
    "dinov2": {"input_size": [3, 518, 518], "crop_pct": 1.0, "crop_mode": "center"},
    "defaults": {"interpolation": None},
    "bilinear": {"crop_pct": 0.95, "interpolation": "bilinear", "input_size": [3, 197, 197]},
    "lanczos": {"crop_pct": 0.97, "interpolation": "lanczos", "input_size": [3, 98, 98]},
    "squash": {"crop_pct": 1.0, "crop_mode": "squash", "input_size": [3, 160, 224]},
    "squash and crop": {"crop_pct": 0.93, "crop_mode": "squash", "input_size": [3, 161, 98]},
    "padded by 3": {"crop_pct": 1.1, "input_size": [3, 33, 33]},
    "padded by 1": {"crop_pct": 1.02, "input_size": [3, 50, 50], "crop_mode": "squash"},
}


def photographs() -> dict[str, Image.Image]:
    """A photograph, and parts of it whose margins around a crop are odd or upright."""
    china = Image.fromarray(sklearn.datasets.load_sample_images().images[0])
    return {"china": china, "odd": china.crop((0, 0, 601, 427)), "upright": china.crop((100, 3, 353, 427))}


def spread(model: torch.nn.Module, seed: int) -> None:
    """Draw every weight so that each of them shows in the result; float16 holds all of them exactly."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        values = torch.randn(weight.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            values = 1 + 0.3 * values
        elif "gamma" in name:
            values = 0.5 + 0.3 * values
        elif weight.ndim >= 2 and name.endswith("weight"):
            values *= weight[0].numel() ** -0.5
        else:
            values *= 0.5
        with torch.no_grad():
            weight.copy_(values.half())


def inputs(seed: int, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 3, height, width), np.float32))


def compute(model: Any, pixels: torch.Tensor, prefix: str) -> dict[str, np.ndarray[Any, Any]]:
    with torch.inference_mode():
        results = {f"{prefix}/last_hidden_state": model.forward_features(pixels).numpy()}
        if model.num_classes:
            results[f"{prefix}/logits"] = model(pixels).numpy()
    return results


def hidden_states(model: Any, pixels: torch.Tensor, prefix: str) -> dict[str, np.ndarray[Any, Any]]:
    """What goes into the first block, and what comes out of each."""
    found: list[torch.Tensor] = []
    hooks = [model.blocks[0].register_forward_pre_hook(lambda _, given: found.append(given[0]))]
    hooks += [block.register_forward_hook(lambda _, __, result: found.append(result)) for block in model.blocks]
    with torch.inference_mode():
        model.forward_features(pixels)
    for hook in hooks:
        hook.remove()
    return {f"{prefix}/hidden_states.{index}": value.numpy() for index, value in enumerate(found)}


def write_case(kind: str, number: int, architecture: str, arguments: dict[str, Any]) -> None:
    seed = 10 * list(KINDS).index(kind) + number
    classes = 0 if kind in FEATURES else 4 + number
    model = timm.create_model(architecture, **{"depth": 2, "num_classes": classes, **arguments}).eval()
    spread(model, seed)
    folder = OUT / f"{kind}_{number}"
    labels = [f"n{index:04}" for index in range(model.num_classes)]
    names = {"label_names": labels, "label_descriptions": {name: f"class {name}" for name in labels[1:]}}
    in_half = copy.deepcopy(model).half()  # half the bytes, the same values
    timm.models.save_for_hf(in_half, folder, names if labels and number else {}, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    height, width = config["model_args"]["img_size"]
    patch_height, patch_width = model.patch_embed.patch_size
    # Larger, and not square; of a BEiT with the width of its own once: timm resamples that axis too where the other one
    # changes. Of the first model of a kind also smaller, wide and tall.
    last = (height - patch_height, width + (0 if kind.startswith("beit") else patch_width))
    sizes = [(height, width), (height + 2 * patch_height, width + 2 * patch_width), last]
    if not number:
        more = ((2, 2), (1, 5), (6, 3))
        sizes += [(rows * patch_height, columns * patch_width) for rows, columns in more]
    results: dict[str, np.ndarray[Any, Any]] = {"seed": np.array(seed)}
    results |= hidden_states(model, inputs(seed, height, width), f"{height}x{width}")
    for size in sizes:
        resized = copy.deepcopy(model)
        if size != (height, width):
            resized.set_input_size(img_size=size)
        results |= compute(resized, inputs(seed, *size), f"{size[0]}x{size[1]}")
    if not number:
        transform = timm.data.create_transform(**timm.data.resolve_data_config({}, config["pretrained_cfg"]))
        for name, image in photographs().items():
            pixels = transform(image)[None]
            results |= {f"{name}/pixel_values": pixels.numpy(), **compute(model, pixels, name)}
    np.savez_compressed(folder / "expected.npz", **results)  # type: ignore[arg-type, unused-ignore]


def write_wrapped(case: str, name: str) -> None:
    """The same model as transformers' own wrapper of timm saves it."""
    import transformers

    folder = OUT / f"{case}_wrapped"
    with tempfile.TemporaryDirectory() as source:
        shutil.copytree(OUT / case, source, dirs_exist_ok=True)
        config = json.loads((OUT / case / "config.json").read_text())
        del config["model_args"]["num_classes"]  # transformers 5.23 passes it a second time
        (Path(source) / "config.json").write_text(json.dumps(config))
        model: Any = getattr(transformers, name).from_pretrained(source)
    model.save_pretrained(folder)
    shutil.copy(OUT / case / "expected.npz", folder)


def write_transforms() -> None:
    """Of every transform of every photograph the middle column and row, and the mean of all pixels."""
    results = {}
    for name, cfg in TRANSFORMS.items():
        transform = timm.data.create_transform(**timm.data.resolve_data_config({}, cfg))
        for photograph, image in photographs().items():
            pixels = transform(image).numpy()
            results[f"{name}/{photograph}/column"] = pixels[:, :, pixels.shape[2] // 2]
            results[f"{name}/{photograph}/row"] = pixels[:, pixels.shape[1] // 2]
            results[f"{name}/{photograph}/edges"] = np.stack([pixels[:, 0, 0], pixels[:, -1, -1]])
            results[f"{name}/{photograph}/mean"] = pixels.mean(axis=(1, 2), dtype=np.float64)
    np.savez_compressed(OUT / "transforms.npz", **results)  # type: ignore[arg-type, unused-ignore]
    (OUT / "transforms.json").write_text(json.dumps(TRANSFORMS, indent=1) + "\n")


def write_architectures() -> None:
    """What no tensor shows of every architecture that timm builds from these three modules."""
    rows = {}
    names = [name for module in ("vision_transformer", "deit", "beit") for name in timm.list_models(module=module)]
    for name in sorted(names):
        model = timm.create_model(name, pretrained=False, device="meta")
        block = model.blocks[0]
        norms = {(type(layer).__name__, layer.eps) for layer in model.modules() if "Norm" in type(layer).__name__}
        rows[name] = {
            "block": type(block).__name__,
            "mlp": type(block.mlp).__name__ if hasattr(block, "mlp") else None,
            "act": type(block.mlp.act).__name__ if hasattr(block, "mlp") else None,
            "num_heads": block.attn.num_heads if hasattr(block, "attn") else None,
            "norms": sorted(norms),
            "prefix": model.num_prefix_tokens,
            "pool": model.global_pool,
        }
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    (OUT / "architectures.json").write_text(f"{{\n{lines}\n}}\n")


def main() -> None:
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    for kind, cases in KINDS.items():
        for number, (architecture, arguments) in enumerate(cases):
            write_case(kind, number, architecture, arguments)
    write_wrapped("vit_0", "TimmWrapperForImageClassification")
    write_wrapped("dinov2_0", "TimmWrapperModel")
    write_transforms()
    write_architectures()


if __name__ == "__main__":
    main()
