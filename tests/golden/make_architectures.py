"""Write what timm and torchvision say of their architectures' names, and tiny files of weights with their results.

timm's registry goes to vitdeploy/sources/architectures/timm_table.json, all else to tests/golden/weights. Run it in the
environment of constraints-timm.txt: `.venvs/timm/bin/python tests/golden/make_architectures.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_models import photograph, spread

# As in make_timm.py.
_OPERATORS = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
for _name in ("nms", "qnms"):
    _OPERATORS.define(f"{_name}() -> ()")  # type: ignore[no-untyped-call]

timm: Any = importlib.import_module("timm")
torchvision: Any = importlib.import_module("torchvision")
registry: Any = importlib.import_module("timm.models._registry")

TABLE = Path(__file__).parents[2] / "vitdeploy" / "sources" / "architectures" / "timm_table.json"
OUT = Path(__file__).parent / "weights"
MODULES = ("vision_transformer", "deit", "beit", "eva")
# Other blocks, norms or positions than any supported family's; naming them would say no more than their absence.
OTHERS = re.compile(
    "aimv2|radio|sapiens2|lingbot|rope_|beit3|flexivit|test_|_18x2_|_rpn_|_xp_|_dp?wee_|_pwee_|_dlittle_|intern"
)
TRANSFORM = ("input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")


def sizes(name: str) -> dict[str, int] | None:
    """Constructor arguments that the registry defines by name; None for a model that has others."""
    model = timm.create_model(name, pretrained=False, device="meta")
    attention = getattr(model.blocks[0], "attn", None)
    if attention is None or not hasattr(attention, "num_heads") or not hasattr(model.patch_embed, "patch_size"):
        return None
    patch = model.patch_embed.patch_size
    assert patch[0] == patch[1]
    return {
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": attention.num_heads,
        "patch_size": patch[0],
    }


def grouped(values: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each distinct value once, with its names."""
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(json.dumps(value), []).append(name)
    return [{**json.loads(value), "names": " ".join(names)} for value, names in groups.items()]


def table() -> str:
    names = sorted(name for module in MODULES for name in timm.list_models(module=module) if not OTHERS.search(name))
    transforms = {}
    for name in names:
        tagged = (full for full in registry._model_with_tags[name] if "." in full)
        for full in (name, *tagged):
            config = timm.models.get_pretrained_cfg(full).to_dict()
            transforms[full] = {key: config[key] for key in TRANSFORM}
    for former, target in sorted(registry._deprecated_models.items()):
        if target in transforms:
            transforms[former] = transforms[target]
    known = {name: value for name in names if (value := sizes(name)) is not None}
    for former, target in sorted(registry._deprecated_models.items()):
        if target and target.partition(".")[0] in known:
            known[former] = known[target.partition(".")[0]]
    known = {name: value for name, value in known.items() if name in transforms}
    transforms = {full: value for full, value in transforms.items() if full.partition(".")[0] in known}
    rows = {"timm": timm.__version__, "sizes": grouped(known), "transforms": grouped(transforms)}
    parts = (f'"{key}": [\n  ' + ",\n  ".join(map(json.dumps, rows[key])) + "\n ]" for key in ("sizes", "transforms"))
    return f'{{\n "timm": "{rows["timm"]}",\n ' + ",\n ".join(parts) + "\n}\n"


def write_training() -> None:
    """The output of timm's train.py: its CheckpointSaver, with its arguments and an average of the weights."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
    arguments = argparse.Namespace(
        model="vit_tiny_patch16_224.augreg_in21k", model_kwargs=sizes, num_classes=3, gp=None, in_chans=None,
        img_size=32, input_size=None, crop_pct=0.8, crop_mode=None, mean=[0.4, 0.5, 0.6], std=[0.25], interpolation="",
        opt="sgd", lr=0.1, amp=False, data_dir="images", class_map="",
    )  # fmt: skip
    model = timm.create_model(arguments.model, num_classes=arguments.num_classes, **sizes).eval()
    spread(model, 0)
    average = timm.utils.ModelEmaV3(model)
    spread(average.module, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tempfile.TemporaryDirectory() as folder:
        saver = timm.utils.CheckpointSaver(model, optimizer, arguments, average, checkpoint_dir=folder)
        with contextlib.redirect_stderr(io.StringIO()):
            saver.save_checkpoint(3, metric=71.5)
        shutil.copy(Path(folder) / "model_best.pth.tar", OUT / "timm.pth.tar")
    settings = timm.data.resolve_data_config(vars(arguments), model=model)
    pixels = timm.data.create_transform(**settings)(photograph())[None]
    results = {"pixel_values": pixels.numpy()}
    with torch.inference_mode():
        results |= {"logits": model(pixels).numpy(), "logits_ema": average.module(pixels).numpy()}
    np.savez_compressed(OUT / "timm.npz", **results)  # type: ignore[arg-type, unused-ignore]


def write_torchvision() -> None:
    """A tiny model's state_dict, and what torchvision's published weights say of their transforms."""
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=3
    ).eval()
    spread(model, 2)
    torch.save(model.state_dict(), OUT / "torchvision.pth")
    transform = torchvision.transforms._presets.ImageClassification(crop_size=32, resize_size=37)
    pixels = transform(photograph())[None]
    with torch.inference_mode():
        results = {"pixel_values": pixels.numpy(), "logits": model(pixels).numpy()}
    np.savez_compressed(OUT / "torchvision.npz", **results)  # type: ignore[arg-type, unused-ignore]
    rows = {}
    for name in ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"):
        with torch.device("meta"):
            model = torchvision.models.get_model(name)
        layer = model.encoder.layers[0]
        sizes = [model.patch_size, len(model.encoder.layers), layer.num_heads, model.hidden_dim, model.mlp_dim]
        rows[name] = {"sizes": sizes, "eps": model.encoder.ln.eps, "weights": {}}
        for weights in torchvision.models.get_model_weights(name):
            preset = weights.transforms()
            rows[name]["weights"][weights.name] = {
                "file": weights.url.rpartition("/")[2],
                "crop": preset.crop_size[0],
                "resize": preset.resize_size[0],
                "interpolation": preset.interpolation.value,
                "mean": preset.mean,
                "std": preset.std,
            }
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    (OUT / "torchvision.json").write_text(f"{{\n{lines}\n}}\n")


def main() -> None:
    torch.set_num_threads(1)
    TABLE.write_text(table())
    OUT.mkdir(exist_ok=True)
    write_training()
    write_torchvision()


if __name__ == "__main__":
    main()
