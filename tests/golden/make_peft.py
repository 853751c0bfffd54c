"""Write tests/golden/peft: tiny models with LoRA adapters, and what PEFT computes with them before any merge.

Run it in two environments, whose versions of transformers name modules differently: that of constraints-timm.txt, and
that of constraints-transformers4.txt. The same versions on the same processor write the same files.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

# As in make_timm.py: the import of torchvision looks up operators that its build for another torch has.
_OPERATORS = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
for _name in ("nms", "qnms"):
    _OPERATORS.define(f"{_name}() -> ()")  # type: ignore[no-untyped-call]

transformers: Any = importlib.import_module("transformers")
peft: Any = importlib.import_module("peft")

OUT = Path(__file__).parent / "peft"
OLD = transformers.__version__.startswith("4.")
_TINY: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
    "id2label": {0: "cat", 1: "dog", 2: "newt"},
    "label2id": {"cat": 0, "dog": 1, "newt": 2},
}
_BEIT = {"use_relative_position_bias": True, "layer_scale_init_value": 0.1}
_CLASSIFIER = {"modules_to_save": ["classifier"]}


@dataclasses.dataclass(frozen=True)
class Case:
    """An adapter.

    Attributes:
        model: the class of transformers that is trained, or an architecture of timm.
        lora: arguments of `peft.LoraConfig`.
        config: arguments of the model's configuration.
        base: the class that the base was saved from, where that is another one.
        classes: of the trained head, where that is another number than the base's three.
        named: whether a config.json with the classes' names lies beside the adapter.
        suffix: of the adapter's file.
        dtype: of the base's file.
    """

    model: str
    lora: dict[str, Any]
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    base: str = ""
    classes: int | None = None
    named: bool = False
    suffix: str = ".safetensors"
    dtype: torch.dtype = torch.float32


_VIT = "ViTForImageClassification"
CASES = {
    "plain": Case(_VIT, {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}),
    "classifier": Case(_VIT, {"r": 3, "target_modules": ["q_proj"], **_CLASSIFIER}, base="ViTModel", classes=5),
    "named": Case(_VIT, {"r": 3, "target_modules": ["k_proj"], **_CLASSIFIER}, classes=4, named=True),
    "rslora": Case(_VIT, {"r": 4, "lora_alpha": 3.5, "target_modules": ["o_proj"], "use_rslora": True}),
    "patterns": Case(
        _VIT,
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "v_proj", "fc1", "fc2"],
            "rank_pattern": {"layers.1.attention.q_proj": 2, "v_proj": 6, r"layers\.\d+\.mlp\.fc1": 3, "proj": 5},
            "alpha_pattern": {"^vit.layers.0.attention.q_proj": 3, "fc[12]": 1.5, "c2": 100},
            "use_rslora": True,
        },
    ),
    "bias_all": Case(_VIT, {"r": 2, "target_modules": ["q_proj"], "bias": "all", **_CLASSIFIER}),
    "bias_lora_only": Case(_VIT, {"r": 2, "target_modules": ["q_proj", "fc1"], "bias": "lora_only"}),
    "lora_bias": Case(_VIT, {"r": 2, "lora_alpha": 5, "target_modules": ["v_proj", "projection"], "lora_bias": True}),
    "conv": Case(_VIT, {"r": 3, "lora_alpha": 4, "target_modules": ["projection", "q_proj"]}),
    "dora": Case(
        _VIT, {"r": 3, "target_modules": ["projection", "q_proj", "fc2"], "use_dora": True, "fan_in_fan_out": True}
    ),
    "all_linear": Case(_VIT, {"r": 2, "target_modules": "all-linear", "init_lora_weights": "gaussian"}),
    "saved_parts": Case(_VIT, {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["mlp", "layernorm"]}),
    "torch_file": Case(_VIT, {"r": 2, "target_modules": ["q_proj"]}, suffix=".bin", dtype=torch.float16),
    "features": Case("ViTModel", {"r": 4, "target_modules": ["q_proj", "v_proj"]}),
    "deit": Case("DeiTForImageClassification", {"r": 2, "target_modules": ["q_proj", "fc2"], **_CLASSIFIER}, classes=2),
    "beit": Case("BeitForImageClassification", {"r": 2, "target_modules": ["q_proj", "k_proj"], "bias": "all"}, _BEIT),
    "dinov2": Case(
        "Dinov2ForImageClassification", {"r": 2, "target_modules": ["v_proj", "fc1"], **_CLASSIFIER}, classes=6
    ),
    "registers": Case("Dinov2WithRegistersModel", {"r": 2, "target_modules": ["o_proj"], "use_dora": True}),
    "timm": Case("vit_tiny_patch16_224", {"r": 2, "target_modules": ["qkv", "proj"], "modules_to_save": ["head"]}),
}
OLD_CASES = {
    "old_vit": Case(
        _VIT,
        {
            "r": 4,
            "target_modules": ["query", "value", "output.dense"],
            "rank_pattern": {"layer.1.output.dense": 2},
            **_CLASSIFIER,
        },
        base="ViTModel",
        classes=5,
    ),
    "old_dinov2": Case("Dinov2ForImageClassification", {"r": 2, "target_modules": ["query", "fc1"], "bias": "all"}),
    "old_beit": Case("BeitForImageClassification", {"r": 2, "target_modules": ["query", "dense"]}, _BEIT),
    "old_deit": Case("DeiTForImageClassification", {"r": 2, "target_modules": ["key", "projection"], "use_dora": True}),
}


def spread(model: torch.nn.Module, names: str = "") -> None:
    """Give the parameters whose names contain `names` random values that are numbers of float16."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if names in name:
                centre = 1.0 if ("norm" in name and name.endswith("weight")) or "magnitude" in name else 0.0
                parameter.normal_(centre, 0.2)
                parameter.copy_(parameter.half())


def save_base(case: Case, folder: Path) -> None:
    architecture = getattr(transformers, case.base or case.model)
    saved = architecture(architecture.config_class(**_TINY | case.config))
    spread(saved)
    saved.to(case.dtype).save_pretrained(folder)


def open_base(case: Case, folder: Path) -> Any:
    """The base, with the head that is trained."""
    if not hasattr(transformers, case.model):
        timm: Any = importlib.import_module("timm")
        arguments = json.loads((folder / "config.json").read_bytes())["model_args"]
        model = timm.create_model(case.model, num_classes=3, **arguments)
        model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
        model.reset_classifier(4)
        return model
    options: dict[str, Any] = {"num_labels": case.classes, "ignore_mismatched_sizes": True} if case.classes else {}
    return getattr(transformers, case.model).from_pretrained(folder, dtype=torch.float32, **options)


def save_timm_base(case: Case, folder: Path) -> None:
    timm: Any = importlib.import_module("timm")
    arguments = {"img_size": 8, "patch_size": 4, "embed_dim": 18, "depth": 2, "mlp_ratio": 1}
    saved = timm.create_model(case.model, num_classes=3, **arguments)
    spread(saved)
    folder.mkdir()
    safetensors.torch.save_file(saved.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": case.model,
        "num_classes": 3,
        "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, 8, 8], "label_names": ["cat", "dog", "newt"]},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write(name: str, case: Case, folder: Path) -> None:
    torch.manual_seed(sum(name.encode()))
    (save_base if hasattr(transformers, case.model) else save_timm_base)(case, folder / "base")
    trained = open_base(case, folder / "base")
    model = peft.get_peft_model(trained, peft.LoraConfig(**case.lora)).eval()
    for part in ("lora_", "modules_to_save", *([".bias"] if case.lora.get("bias", "none") != "none" else [])):
        spread(model, part)
    adapter = folder / "adapter"
    model.save_pretrained(adapter)
    (adapter / "README.md").unlink()
    config = json.loads((adapter / "adapter_config.json").read_bytes())
    for key in ("target_modules", "modules_to_save"):  # which are sets, in an order that differs from run to run
        config[key] = sorted(config[key]) if isinstance(config[key], list) else config[key]
    config["base_model_name_or_path"] = "base"
    (adapter / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    if case.suffix == ".bin":
        weights = adapter / "adapter_model.safetensors"
        torch.save(safetensors.torch.load_file(weights), weights.with_suffix(".bin"))
        weights.unlink()
    if case.named:
        names = {index: f"species {index}" for index in range(case.classes or 0)}
        trained.config.update({"id2label": names, "label2id": {label: index for index, label in names.items()}})
        trained.config.save_pretrained(adapter)
    pixels = torch.randn(2, 3, 8, 8)
    loaded = peft.PeftModel.from_pretrained(open_base(case, folder / "base"), adapter).eval()
    with torch.inference_mode():
        outputs = loaded.double()(pixels.double())
    key = "logits" if isinstance(outputs, torch.Tensor) or "logits" in outputs else "last_hidden_state"
    expected = outputs if isinstance(outputs, torch.Tensor) else outputs[key]
    arrays: dict[str, Any] = {"pixels": pixels.numpy(), key: expected.numpy()}
    np.savez(folder / "expected.npz", **arrays)


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    for name, case in (OLD_CASES if OLD else CASES).items():
        with tempfile.TemporaryDirectory() as folder:
            write(name, case, Path(folder))
            shutil.rmtree(OUT / name, ignore_errors=True)
            shutil.copytree(folder, OUT / name)
        sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    main()
