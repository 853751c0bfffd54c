"""Weights of other libraries: timm's training output without a configuration, and OpenCLIP's configurations."""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fuzz.base import GOLDEN
from fuzz.cases import DAMAGED, PASSED, USAGE, Case
from fuzz.checkpoints import export_args, not_finite, outputs_of
from fuzz.damage import ODD_VALUES, choose, damaged, odd_json
from fuzz.special_files import copy_tree, replace, rewrite
from fuzz.weights import odd_safetensors
from vitdeploy.sources.architectures.lookup import NamedWeights, read_named_weights
from vitdeploy.sources.architectures.weights_options import WeightsFile
from vitdeploy.sources.read import read_checkpoint

_SPECIAL_SHARE = 0.03


class TrainingFiles:
    """timm's training output: a pickle of weights, of the arguments of the run, and of more.

    Oracle: refused with 4, or with 2 where it names no architecture; or there are weights.
    """

    def __init__(self, base: Path) -> None:
        del base
        file = GOLDEN / "weights" / "timm.pth.tar"
        self._bytes = file.read_bytes()
        with torch.serialization.safe_globals([argparse.Namespace]):
            self._content: dict[str, Any] = torch.load(file, weights_only=True)

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        file = folder / "model_best.pth.tar"
        if rng.random() < 0.3:
            note, content = damaged(rng, self._bytes, head=3000)
            file.write_bytes(content)
        else:
            changed = copy.deepcopy(self._content)
            arguments = vars(changed["args"])
            whole = rng.random() < 0.4
            key = choose(rng, sorted(changed if whole else arguments))
            value = choose(rng, (*ODD_VALUES, "vit_base_patch16_224", "resnet50", argparse.Namespace(), {"x": 1}))
            (changed if whole else arguments)[key] = value
            note = f"{'entry' if whole else 'argument'}: {key}"
            torch.save(changed, file)
        if rng.random() < _SPECIAL_SHARE:
            note, _ = replace(rng, file)
        arch = choose(rng, (None, None, "vit_tiny_patch16_224", "vit_b_16"))
        entry = choose(rng, (None, None, "state_dict", "args", "x"))

        def check(named: NamedWeights) -> str | None:
            return None if named.tensors else "there are no weights"

        allowed = frozenset({PASSED, USAGE, DAMAGED})
        weights = WeightsFile(file, arch=arch, entry=entry)
        return Case(note, (), allowed, check, lambda: read_named_weights(weights))


class OpenClipConfigs:
    """open_clip_config.json, and the weights beside it.

    Oracle: refused with 4; or the outputs are finite, but where weights are damaged, whose numbers have no checksum.
    """

    def __init__(self, base: Path) -> None:
        del base
        self._source = GOLDEN / "open_clip" / "plain"
        self._config = json.loads((self._source / "open_clip_config.json").read_bytes())

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        checkpoint = copy_tree(self._source, folder / "checkpoint")
        config, weights = checkpoint / "open_clip_config.json", checkpoint / "open_clip_model.safetensors"
        damages_weights = rng.random() < 0.2
        if damages_weights:
            note, content = odd_safetensors(rng, weights.read_bytes())
            rewrite(weights, content)
        else:
            keys = ("model_cfg", "preprocess_cfg", "vision_cfg", "embed_dim")
            note, content, _ = odd_json(rng, self._config, more_keys=keys)
            rewrite(config, content)
        if rng.random() < _SPECIAL_SHARE:
            note, _ = replace(rng, choose(rng, (config, weights)))

        def check(outputs: dict[str, torch.Tensor]) -> str | None:
            return None if damages_weights else not_finite(outputs)

        return Case(note, export_args(), check=check, call=lambda: outputs_of(read_checkpoint("checkpoint")))
