"""Names of parts and layers that people read: "layers.3.mlp.fc1" is "block 3, MLP, fc1"."""

from __future__ import annotations

import re

_BLOCK = re.compile(r"layers\.(\d+)(?:\.|$)")
_WORDS = {"mlp": "MLP", "q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}


def layer_name(node: str, part: str, label: str | None) -> str:
    """The name of the layer that a node belongs to.

    Args:
        node: The name of its first output.
        part: As `nodes_by_part` names it.
        label: What its weights tell, such as "layers.3.mlp.fc1"; None for a node without weights, which is a layer of
            its own: it keeps its name, without the part that it repeats, such as "block 3, gelu".
    """
    if label is not None:
        return readable_name(label)
    return f"{readable_name(part)}, {node.removeprefix(f'model.{part}.')}"


def readable_name(label: str) -> str:
    """The words of a label or a part: "layers.3" is "block 3"."""
    block = _BLOCK.match(label)
    words = [f"block {block[1]}"] if block else []
    rest = label[block.end() :] if block else label
    return ", ".join([*words, *(_WORDS.get(word, word.replace("_", " ")) for word in rest.split(".") if word)])


def normalized_name(name: str) -> str:
    """A name as it is looked up: case and blanks do not count."""
    return ",".join(" ".join(word.split()) for word in name.casefold().split(","))
