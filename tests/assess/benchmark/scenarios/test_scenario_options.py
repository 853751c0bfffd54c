"""Scenarios as values: what each takes, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from raising import raises

from vitdeploy.assess.benchmark.scenarios.options import SCENARIOS, Scenario, read_duration
from vitdeploy.errors import UsageError


@pytest.mark.parametrize(
    ("options", "what", "found"),
    [
        ({"name": "offlin"}, "name", "offlin"),
        ({"name": "server"}, "p99_ms", None),
        ({"name": "server", "p99_ms": 0}, "p99_ms", 0),
        ({"name": "server", "p99_ms": math.nan}, "p99_ms", math.nan),
        ({"name": "server", "p99_ms": True}, "p99_ms", True),
        ({"name": "server", "p99_ms": "50"}, "p99_ms", "50"),
        ({"name": "server", "p99_ms": 50, "rate": -1.0}, "rate", -1.0),
        ({"name": "server", "p99_ms": 50, "rate": math.inf}, "rate", math.inf),
        ({"name": "server", "p99_ms": 50, "rate": 1e6, "duration_s": 60.0}, "duration_s", 6e7),
        ({"name": "server", "p99_ms": 50, "sessions": 0}, "sessions", 0),
        ({"name": "server", "p99_ms": 50, "seed": -1}, "seed", -1),
        ({"name": "offline", "duration_s": 0.0}, "duration_s", 0.0),
        ({"name": "offline", "duration_s": 1e9}, "duration_s", 1e9),
        ({"name": "offline", "p99_ms": 50}, "p99_ms", "offline"),
        ({"name": "single-stream", "rate": 3.0}, "rate", "single-stream"),
        ({"name": "multi-stream", "sessions": 2}, "sessions", "multi-stream"),
        ({"name": "offline", "seed": 1}, "seed", "offline"),
    ],
)
def test_bad_options_are_usage_errors(options: dict[str, Any], what: str, found: object) -> None:
    with raises(UsageError, what=what, found=found):
        Scenario(**options)


def test_what_is_reported() -> None:
    percents = [Scenario(name, p99_ms=50 if name == "server" else None).percent for name in SCENARIOS]
    assert percents == [90, 99, None, 99]


def test_batch_sizes_belong_to_scenarios_with_several_images_a_query() -> None:
    assert Scenario("multi-stream").batch_sizes(None) == Scenario("offline").batch_sizes(None) == (8,)
    assert Scenario("offline").batch_sizes((1, 4)) == (1, 4)
    assert Scenario("single-stream").batch_sizes(None) == Scenario("single-stream").batch_sizes((1,)) == (1,)
    with raises(UsageError, what="batch_sizes", found=(8,)):
        Scenario("server", p99_ms=50).batch_sizes((8,))


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
