"""Durations as text."""

from __future__ import annotations

import pytest
from raising import raises

from vitdeploy.errors import UsageError
from vitdeploy.system.durations import read_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("50ms", 0.05), ("2.5s", 2.5), (" 3 m", 180.0), (".5h", 1800.0), ("10us", 1e-5), ("1.s", 1.0)]
)
def test_a_duration_is_a_number_and_its_unit(text: str, seconds: float) -> None:
    assert read_duration(text, "p99") == pytest.approx(seconds)


def test_a_number_alone_needs_a_known_unit() -> None:
    assert read_duration("10", "duration", unit="s") == 10
    with raises(UsageError, what="p99", found="50", hint="write 50ms or 50s"):
        read_duration("50", "p99")


@pytest.mark.parametrize("text", ["", "ms", "0ms", "-1s", "1e3s", "1 day", "1s1s", "nan", "inf", "1,5s", "²s"])
def test_anything_else_is_a_usage_error(text: str) -> None:
    with raises(UsageError, what="p99", found=text):
        read_duration(text, "p99")
    with raises(UsageError, what="p99", found=text):
        read_duration(text, "p99", unit="s")
