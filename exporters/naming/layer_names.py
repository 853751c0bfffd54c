"""Readable names of parts and layers: "layers.3.mlp.fc1" is "block 3, MLP, fc1"."""

from __future__ import annotations

import re

_BLOCK = re.compile(r"layers\.(\d+)(?:\.|$)")
_WORDS = {"mlp": "MLP", "q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}


def layer_name(node: str, part: str, label: str | None) -> str:
    """Readable name of a node's layer.

    Args:
        node: Name of its first output.
        part: Part of the model, as named by `nodes_by_part`.
        label: Label from its weights, such as "layers.3.mlp.fc1"; None for a node without weights, which is a separate
            layer: it keeps its name without the repeated part, such as "block 3, gelu".
    """
    if label is not None:
        return readable_name(label)
    return f"{readable_name(part)}, {node.removeprefix(f'model.{part}.')}"


def readable_name(label: str) -> str:
    """A label or a part in words: "layers.3" is "block 3"."""
    block = _BLOCK.match(label)
    words = [f"block {block[1]}"] if block else []
    rest = label[block.end() :] if block else label
    return ", ".join([*words, *(_WORDS.get(word, word.replace("_", " ")) for word in rest.split(".") if word)])


def normalized_name(name: str) -> str:
    """A name normalized for look-up: case and blanks are ignored."""
    return ",".join(" ".join(word.split()) for word in name.casefold().split(","))
