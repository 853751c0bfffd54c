"""The published schemas of what commands print with `--json`."""

from __future__ import annotations

import functools
import json
from typing import Any

from environments import ROOT
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

FOLDER = ROOT / "vitdeploy" / "assess" / "report" / "schema"


@functools.cache
def schema(command: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{command}.json").read_text(encoding="utf-8"))
    return found


@functools.cache
def validator(command: str) -> Draft202012Validator:
    """With the other schemas at hand, to which one may refer."""
    found = [schema(path.stem) for path in sorted(FOLDER.iterdir())]
    registry: Any = Registry().with_resources((each["$id"], Resource.from_contents(each)) for each in found)
    return Draft202012Validator(schema(command), registry=registry)


def validated(command: str, printed: str) -> Any:
    """A command's output, validated against its schema."""
    data = json.loads(printed)
    validator(command).validate(data)
    return data
