"""Class names in a Hugging Face configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vitdeploy.errors import CheckpointError, shown

_INDEX = re.compile(r"[0-9]{1,9}")
_MAX_LABELS = 2**20


def fits_a_line(name: str) -> bool:
    """True if a text file with one name per line can store this name so that any reader recovers it."""
    is_text = name.encode(errors="ignore").decode() == name  # half of a surrogate pair is not valid
    return is_text and "\0" not in name and name.splitlines() == [name]


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names in the order of the logits; `LABEL_0` ... if `config` has none, as in transformers.

    transformers saves `id2label` but not `num_labels`, and omits the default of two classes.

    Raises:
        CheckpointError: If `id2label` does not have one name for each of 0 .. n-1, or contradicts `num_labels`.
    """
    names, count = config.get("id2label"), config.get("num_labels")
    if names is None:
        count = 2 if count is None else count
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MAX_LABELS:
            raise _error(f"num_labels is {shown(count)}, not an integer from 0 to {_MAX_LABELS}", "num_labels", count)
        return tuple(f"LABEL_{index}" for index in range(count))
    if not isinstance(names, dict) or not all(_INDEX.fullmatch(str(key)) for key in names):
        raise _error(f"id2label is {shown(names)}, not a map from class indices to names", "id2label", names)
    by_index = {int(key): str(name) for key, name in names.items()}
    if sorted(by_index) != list(range(len(names))):
        raise _error(f"id2label does not name each class from 0 to {len(names) - 1} once", "id2label", names)
    if count is not None and count != len(names):
        raise _error(f"num_labels is {shown(count)}, but id2label names {len(names)} classes", "num_labels", count)
    return tuple(by_index[index] for index in range(len(names)))


def _error(problem: str, key: str, value: object) -> CheckpointError:
    return CheckpointError(f"config.json: {problem}", what=key, where="config.json", found=value)
