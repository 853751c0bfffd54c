"""Weight names: on disk, in transformers' current and former spelling, and in this package's modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from vitdeploy.models.families.family import Family

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_HEADS = (
    "classifier",
    "cls_classifier",
    "distillation_classifier",
    "pooler",
    "decoder",
    "lm_head",
    "visual_projection",
    "zero_shot",
)
# In the oldest checkpoints.
_LEGACY = ((re.compile(r"(layernorm\w*)\.gamma$"), r"\1.weight"), (re.compile(r"(layernorm\w*)\.beta$"), r"\1.bias"))


def our_names(family: Family, names: Iterable[str], *, projects: bool = False) -> dict[str, str]:
    """Map a checkpoint's `names` to module names here; unknown names stay the same.

    Args:
        family: The model's family.
        names: Names on disk.
        projects: True for a model with a projection, for a family that names a classifier and a projection alike.
    """
    names = tuple(names)
    beside_a_head = any(name.startswith(family.prefix) for name in names)
    tables = family.layer_names, family.other_names
    of_layers, others = ({on_disk: ours for ours, on_disk in table.items()} for table in tables)
    if family.head_name is not None:
        others[family.head_name] = "head.visual_projection" if projects else "head.classifier"
    # transformers 5 writes AltCLIP's image layers as `layer`, and reads both
    layer = re.compile(rf"(?:{re.escape(family.layers.removesuffix('s'))}s?|layers)\.(\d+)\.(.+)")
    found = {}
    for name in names:
        usual = name
        for pattern, replacement in _LEGACY:
            usual = pattern.sub(replacement, usual)
        bare = usual.removeprefix(family.prefix)
        first = bare.partition(".")[0]
        if first in _HEADS or (first == "layernorm" and family.head_norm and beside_a_head and bare == usual):
            found[name] = f"head.{bare}"
        elif (match := layer.fullmatch(bare)) is not None:
            found[name] = f"layers.{match[1]}.{_translated(match[2], of_layers)}"
        else:
            found[name] = _translated(bare, others)
    return found


def disk_name(family: Family, name: str, *, beside_a_head: bool) -> str:
    """Name on disk, in transformers' spelling, for a weight, with the family's prefix if `beside_a_head`.

    Weights that are stacked there, see `Family.stacked`, have one name.
    """
    for on_disk, parts in family.stacked.items():
        for part in parts:
            name = name.replace(part, on_disk)
    prefix = family.prefix if beside_a_head or family.always_prefixed else ""
    listed = _translated(name, family.other_names)
    if family.head_name is not None:
        listed = _translated(listed, dict.fromkeys(("head.classifier", "head.visual_projection"), family.head_name))
    if listed != name:
        return prefix + listed
    if name.startswith("head."):
        head = name.removeprefix("head.")
        return prefix + head if head.startswith("pooler.") else head
    match = _LAYER.fullmatch(name)
    if match is None:
        return prefix + name
    return f"{prefix}{family.layers}.{match[1]}.{_translated(match[2], family.layer_names)}"


def part_names(family: Family, name: str) -> tuple[str, ...]:
    """The names here of a weight's parts, from the top: several if they are stacked on disk, see `Family.stacked`."""
    for on_disk, parts in family.stacked.items():
        if on_disk in name:
            return tuple(name.replace(on_disk, part) for part in parts)
    return (name,)


def _translated(name: str, table: Mapping[str, str]) -> str:
    """Replace the beginning of `name` by the table."""
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name
