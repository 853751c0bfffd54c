"""Parse JSON, and refuse text that parsers interpret differently."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from vitdeploy.errors import InputError

_MOST_DIGITS = 400  # digits of an integer; parsing takes time quadratic in their number


def strict_json(content: bytes | str) -> Any:
    """Parse JSON (RFC 8259) in the form that vitdeploy writes.

    Raises:
        ValueError: If it is not UTF-8 JSON, or is nested too deeply; or an object has a duplicate key; or a number is
            NaN, infinite, too large for a float, or an integer of more than 400 digits.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_refused, parse_float=_finite, parse_int=_integer
        )
    except RecursionError as exc:
        raise ValueError("it is nested too deeply") from exc


def utf_8_json(content: bytes) -> Any:
    """Parse UTF-8 JSON without a byte order mark, as transformers does for image processors."""
    return json.loads(content.decode())


def json_file(data: Mapping[str, Any]) -> bytes:
    """Content of a JSON file in the form of transformers': indented, in the order of the keys."""
    return (json.dumps(data, indent=2) + "\n").encode()


def json_object(
    path: Path,
    content: bytes,
    error: type[InputError],
    parse: Callable[[bytes], Any] = json.loads,
    hint: str | None = None,
) -> dict[str, Any]:
    """Parse a file's content as a JSON object; raise `error` for anything else."""
    try:
        data = parse(content)
    except (ValueError, RecursionError) as exc:
        raise error(f"{path} is not valid JSON: {exc}", where=path, expected="JSON", hint=hint) from exc
    if not isinstance(data, dict):
        message = f"{path} holds a JSON {type(data).__name__}, not an object"
        raise error(message, where=path, expected="object", found=data, hint=hint)
    return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"an object has the key {key!r:.80} twice")
        values[key] = value
    return values


def _refused(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.40} is too large")
    return value


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"an integer has {len(text)} digits")
    return int(text)
