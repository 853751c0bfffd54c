"""Class names of a Hugging Face configuration."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

_INDEX = re.compile(r"[0-9]{1,9}")
_MAX_LABELS = 2**20


def fits_a_line(name: str) -> bool:
    """Whether a file of text that holds a name a line can hold this one, and gives it again, whoever reads it."""
    is_text = name.encode(errors="ignore").decode() == name  # half of a surrogate pair is none
    return is_text and "\0" not in name and name.splitlines() == [name]


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names of `config` in the order of the logits; `LABEL_0` ... where it names none, as transformers does.

    transformers saves `id2label` and not `num_labels`, and leaves out the default of two classes.

    Raises:
        CheckpointError: `id2label` is not one name for each of 0 .. n-1, or disagrees with `num_labels`.
    """
    names = config.get("id2label")
    count = config.get("num_labels")
    if names is None:
        count = 2 if count is None else count
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MAX_LABELS:
            raise CheckpointError(
                f"config.json: num_labels must be an integer from 0 to {_MAX_LABELS}, got {count!r:.80}"
            )
        return tuple(f"LABEL_{index}" for index in range(count))
    if not isinstance(names, dict) or not all(_INDEX.fullmatch(str(key)) for key in names):
        raise CheckpointError(f"config.json: id2label must map class indices to names, got {names!r:.80}")
    by_index = {int(key): str(name) for key, name in names.items()}
    if sorted(by_index) != list(range(len(names))):
        raise CheckpointError(f"config.json: id2label must name every class from 0 to {len(names) - 1}, each once")
    if count is not None and count != len(names):
        raise CheckpointError(f"config.json: num_labels is {count!r:.80}, but id2label names {len(names)} classes")
    return tuple(by_index[index] for index in range(len(names)))
