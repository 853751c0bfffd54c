"""The configurations of OpenCLIP by architecture name, which a file of weights lacks.

open_clip_table.json holds those of its own Vision Transformers; `tests/golden/make_open_clip.py` writes it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vitdeploy.errors import CheckpointError

_OPENAI = {"input_resolution", "context_length", "vocab_size"}  # in OpenAI's own files alone
_QUICK = "-quickgelu"


@functools.cache
def open_clip_models() -> Mapping[str, Mapping[str, Any]]:
    """`model_cfg` without the text tower, by name."""
    models: dict[str, Any] = json.loads((Path(__file__).parent / "open_clip_table.json").read_text(encoding="utf-8"))
    return models


def open_clip_named(name: str, tensors: Collection[str]) -> dict[str, Any]:
    """The open_clip_config.json of an architecture, with OpenCLIP's default transform.

    Args:
        name: One of `open_clip_models`.
        tensors: Names of the weights.

    Raises:
        CheckpointError: If OpenAI's weights, which were trained with quick GELU, are named as those of another model.
    """
    config = open_clip_models()[name]
    if set(tensors) >= _OPENAI and not config["quick_gelu"]:
        raise CheckpointError(
            f"the weights are OpenAI's, which were trained with quick GELU, and {name} has another activation",
            what="arch", expected=f"{name}{_QUICK}", found=name, hint=f"use --arch {name}{_QUICK}",
        )  # fmt: skip
    return {"model_cfg": config, "preprocess_cfg": {}}
