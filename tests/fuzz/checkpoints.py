"""Odd configurations of checkpoints: of models, of image processors, and of adapters with their weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fuzz.cases import DAMAGED, PASSED, UNAVAILABLE, Case, accept
from fuzz.damage import choose, damaged, odd_json
from fuzz.special_files import copy_tree, replace, rewrite
from fuzz.weights import odd_safetensors
from vitdeploy.models.families.config_keys import RULES, Effect
from vitdeploy.sources.read import Checkpoint, read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_SPECIAL_SHARE = 0.03


def outputs_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Outputs of the reference for one image of noise."""
    config = checkpoint.model.config
    pixels = torch.randn(1, config.num_channels, *config.image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return dict(checkpoint.model(pixel_values=pixels))


def export_args(folder: str = "checkpoint") -> tuple[str, ...]:
    return ("export", "--model", folder, "--output", "out", "--json")


class Configs:
    """config.json of transformers' and timm's models.

    Oracle: refused with 4; or the model answers with finite numbers of the shapes that its configuration states, and
    where the key that was changed is one without effect, with the numbers of the undamaged one.
    """

    def __init__(self, base: Path) -> None:
        self._folders = [base / "checkpoint", *sorted((base / "timm").iterdir())]
        self._configs = [json.loads((folder / "config.json").read_bytes()) for folder in self._folders]
        self._expected = [outputs_of(read_checkpoint(folder)) for folder in self._folders]
        self._keys = tuple(RULES["vit"] | RULES["beit"] | RULES["dinov2"])

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        which = 0 if rng.random() < 0.6 else int(rng.integers(len(self._folders)))
        checkpoint = copy_tree(self._folders[which], folder / "checkpoint")
        config = checkpoint / "config.json"
        note, text, key = odd_json(rng, self._configs[which], more_keys=self._keys if which == 0 else ())
        rewrite(config, text)
        rule = RULES["vit"].get(key or "")
        same = which == 0 and key is not None and (rule is None or rule.effect is Effect.CARRIED)
        if rng.random() < _SPECIAL_SHARE:
            note, same = replace(rng, config)
            if same:
                rewrite(config.resolve(), json.dumps(self._configs[which]).encode())

        def check(outputs: dict[str, torch.Tensor]) -> str | None:
            if same and not all(torch.equal(outputs[name], value) for name, value in self._expected[which].items()):
                return f"{key} has no effect, and the outputs differ"
            return not_finite(outputs)

        return Case(note, export_args(), check=check, call=lambda: outputs_of(read_checkpoint("checkpoint")))


def not_finite(outputs: dict[str, torch.Tensor]) -> str | None:
    for name, value in outputs.items():
        if not value.isfinite().all():
            return f"{name} must be finite, is not"
    return None


class Processors:
    """preprocessor_config.json and processor_config.json.

    Oracle: refused with 4; or an image becomes pixels of the model's size that are finite, and differ from those of the
    undamaged file only where a value that is read was changed.
    """

    def __init__(self, base: Path) -> None:
        self._checkpoint = base / "checkpoint"
        self._config = json.loads((self._checkpoint / "preprocessor_config.json").read_bytes())
        self._image = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
        self._keys = (
            "crop_size", "do_center_crop", "do_convert_rgb", "do_pad", "do_reduce_labels", "auto_map", "crop_pct",
            "feature_extractor_type", "image_processor_type", "processor_class", "size_divisor", "offset", "resample",
            "rescale_factor", "size", "image_mean", "image_std", "do_resize", "do_rescale", "do_normalize",
            "image_processor",
        )  # fmt: skip

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        checkpoint = copy_tree(self._checkpoint, folder / "checkpoint")
        file = checkpoint / "preprocessor_config.json"
        note, text, _ = odd_json(rng, self._config, more_keys=self._keys)
        if rng.random() < 0.3:
            nested = {"processor_class": "ViTProcessor", "image_processor": self._config}
            note, text, _ = odd_json(rng, nested, more_keys=self._keys)
            if rng.random() < 0.5:
                file.unlink()
            file = checkpoint / "processor_config.json"
            note = f"nested {note}"
        rewrite(file, text)
        if rng.random() < _SPECIAL_SHARE:
            note, _ = replace(rng, file)

        def call() -> np.ndarray[Any, Any]:
            return read_checkpoint("checkpoint").processor([self._image])

        return Case(note, export_args(), check=_check_pixels, call=call)


def _check_pixels(pixels: np.ndarray[Any, Any]) -> str | None:
    if pixels.shape != (1, 3, 32, 32) or pixels.dtype != np.float32:
        return f"pixels must be (1, 3, 32, 32) float32, are {pixels.shape} {pixels.dtype}"
    return None if np.isfinite(pixels).all() else "pixels must be finite, are not"


class Adapters:
    """adapter_config.json, and the weights beside it.

    Oracle: refused with 4, or with 3 where the base that is named would be on the Hub; or the outputs are finite, but
    where weights are damaged, whose numbers have no checksum.
    """

    def __init__(self, base: Path) -> None:
        self._folders = sorted((base / "adapters").iterdir())

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        source = choose(rng, self._folders)
        for part in ("adapter", "base"):
            copy_tree(source / part, folder / part)
        config, weights = folder / "adapter" / "adapter_config.json", folder / "adapter" / "adapter_model.safetensors"
        check: Callable[[Any], str | None] = not_finite
        draw = rng.random()
        if draw < 0.6:
            note, text, _ = odd_json(rng, json.loads(config.read_bytes()), more_keys=_ADAPTER_KEYS)
            rewrite(config, text)
        elif draw < 0.97:
            make = damaged if rng.random() < 0.3 else odd_safetensors
            note, content = make(rng, weights.read_bytes())
            rewrite(weights, content)
            check = accept
        else:
            note, _ = replace(rng, choose(rng, (config, weights)))
        allowed, note = frozenset({PASSED, UNAVAILABLE, DAMAGED}), f"{source.name}: {note}"
        return Case(note, export_args("adapter"), allowed, check, lambda: outputs_of(read_checkpoint("adapter")))


_ADAPTER_KEYS = (
    "peft_type", "r", "lora_alpha", "target_modules", "modules_to_save", "use_dora", "use_rslora", "rank_pattern",
    "bias", "alpha_pattern", "fan_in_fan_out", "layers_to_transform", "layers_pattern", "base_model_name_or_path",
    "auto_mapping", "exclude_modules", "lora_bias", "init_lora_weights", "megatron_config", "layer_replication",
    "task_type", "revision",
)  # fmt: skip
