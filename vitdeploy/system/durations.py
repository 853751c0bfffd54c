"""Durations as text: "50ms", "2.5s"."""

from __future__ import annotations

import math
import re

from vitdeploy.errors import UsageError, shown

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def read_duration(text: str, what: str, *, unit: str | None = None) -> float:
    """Parse a duration above 0; seconds.

    Args:
        text: A number and its unit: us, ms, s, m or h.
        what: Name of the option.
        unit: Unit of a number without one. Default: such a number is ambiguous.

    Raises:
        UsageError: If it is not a duration, or ambiguous.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})\s*(us|ms|s|m|h)?", text.strip())
    seconds = float(match[1]) * _SECONDS[match[2] or unit or "s"] if match else 0.0
    if match is None or not 0 < seconds < math.inf:
        expected = f"a duration above 0 such as {'50ms' if unit is None else '10s'}"
        raise UsageError(f"{what} takes {expected}, got {shown(text, 80)}", what=what, expected=expected, found=text)
    if match[2] is None and unit is None:
        hint = f"write {match[1]}ms or {match[1]}s"
        raise UsageError(f"{what} {match[1]} has no unit", what=what, found=text, hint=hint)
    return seconds
