"""Shares of a whole, such as an accuracy: 0.005 and "0.5%" mean the same everywhere."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING

from vitdeploy.errors import UsageError, shown

if TYPE_CHECKING:
    import decimal


class Share(float):
    """A parsed share, which is no longer ambiguous."""


def in_percent(share: float) -> float:
    """The share times 100, exact in decimal: 7 for 0.07."""
    import decimal  # here, because most commands parse no share

    return float(decimal.Decimal(repr(float(share))) * 100)


def read_share(
    value: object,
    what: str,
    expected: str = "a share above 0 and up to 1, such as 0.99 or 99%",
    allowed: Callable[[float], bool] = lambda share: 0 < share <= 1,
) -> Share:
    """Parse a share of a whole: 0.005, "0.005" and "0.5%" are equal.

    Raises:
        UsageError: If it is not a share, or a number such as 99 that could only mean percent.
    """
    number, is_percent = _number(value)
    share = number / 100 if number is not None and is_percent else number
    if share is None or not allowed(float(share)):
        counts_percent = number is not None and number is share and 1 < number <= 100 and allowed(float(number / 100))
        hint = f"write {_plain(number)}% or {_plain(number / 100)}" if counts_percent and number is not None else None
        raise UsageError(
            f"{what} takes {expected}, got {shown(value, 80)}", what=what, expected=expected, found=value, hint=hint
        )
    return Share(share)


def read_drop(value: object, what: str, *, none: bool = True) -> Share:
    """Parse an accuracy drop, as `read_share`; `none` allows 0.

    Numbers from 0.1 to 1 are refused without a percent sign: 0.5 could mean half a percent, or half of all images.

    Raises:
        UsageError: If it is invalid or ambiguous.
    """
    number, is_percent = _number(value)
    if number is not None and not is_percent and not isinstance(value, Share) and 1 <= 10 * number <= 10:
        hint = f"write {_plain(number)}%" + (f" or {_plain(100 * number)}%" if number < 1 else "")
        raise UsageError(f"{what} {_plain(number)} is ambiguous", what=what, found=value, hint=hint)
    expected = f"a share {'from 0' if none else 'above 0'} and below 1, such as 0.005 or 0.5%"
    return read_share(value, what, expected, lambda share: (share >= 0 if none else share > 0) and share < 1)


def read_tolerance(value: object) -> Share:
    """Parse a difference relative to the largest value, from 0 up without a limit, as `read_share`."""
    return read_share(value, "tolerance", "a finite number from 0 up, such as 1e-4 or 0.01%", lambda share: share >= 0)


def read_slowdown(value: object) -> Share:
    """Parse a slowdown as a share of the time, above 0 and below 1, as `read_share`."""
    return read_share(
        value, "max_slowdown", "a share above 0 and below 1, such as 0.05 or 5%", lambda share: 0 < share < 1
    )


def _number(value: object) -> tuple[decimal.Decimal | None, bool]:
    """The number of a value or a text, None for others or if it is not finite; and True if it is in percent."""
    import decimal

    is_percent = isinstance(value, str) and value.endswith("%")
    if isinstance(value, bool) or not isinstance(value, (str, numbers.Real)):
        return None, is_percent
    try:
        number = decimal.Decimal(value.removesuffix("%") if isinstance(value, str) else repr(float(value)))
        return number if number.is_finite() and abs(number) < 10**300 else None, is_percent
    except (ArithmeticError, ValueError):
        return None, is_percent


def _plain(number: decimal.Decimal) -> str:
    return f"{number.normalize():f}"
