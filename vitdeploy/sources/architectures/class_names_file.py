"""Read class names from a text file with a line for each class, or from JSON."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from vitdeploy.errors import InputError
from vitdeploy.files.regular_file import read_regular

_INDEX = re.compile(r"[0-9]{1,9}")


def read_class_names(file: str | os.PathLike[str]) -> tuple[str, ...]:
    """Class names in the order of the logits.

    A file that ends in .json holds a list of names; or an object, of names by index, of indices by name (torchvision's
    `class_to_idx`), or with such an object as `id2label` (config.json) or a list as `label_names` (timm's). Any other
    file has a name in each line, as timm's class maps have.

    Raises:
        InputError: If it cannot be read, has another form, or does not name each class from 0 on.
    """
    try:
        path = Path(file).expanduser()
        text = read_regular(path).decode("utf-8-sig")
        names = _names(json.loads(text)) if path.suffix.lower() == ".json" else text.splitlines()
    except (OSError, RuntimeError, ValueError) as exc:  # RecursionError, and the home of an unknown user, are of these
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise InputError(f"cannot read class names from {file}: {reason}", what="labels", where=file) from exc
    while isinstance(names, list) and names and isinstance(names[-1], str) and not names[-1].strip():
        names.pop()  # empty lines at the end
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise InputError(
            f"{file} does not name each class from 0 on",
            what="labels", where=file, expected="a line for each class; or JSON, a list or names by index",
        )  # fmt: skip
    return tuple(name.strip() for name in names)


def _names(data: Any) -> Any:
    """The names in parsed JSON; anything else than a list if they are in none of its forms."""
    if isinstance(data, dict):
        data = next((data[key] for key in ("label_names", "id2label") if data.get(key)), data)
    if not isinstance(data, dict):
        return data
    count = len(data)
    if all(type(index) is int for index in data.values()):
        data = {str(index): name for name, index in data.items()}
    by_index = {int(key): name for key, name in data.items() if _INDEX.fullmatch(key)}
    return [by_index[index] for index in range(count)] if by_index.keys() == set(range(count)) else None
