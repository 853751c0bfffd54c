"""What tune is asked for."""

from __future__ import annotations

from typing import Any

import pytest
from raising import raises

from vitdeploy.errors import UsageError
from vitdeploy.exporting.options import MinAgreement
from vitdeploy.tuning.request import Target, TuneRequest


@pytest.mark.parametrize(
    ("text", "kind", "p99_ms"),
    [
        ("latency", "latency", None),
        ("throughput", "throughput", None),
        ("p99:20ms", "p99", 20.0),
        ("p99:0.5s", "p99", 500.0),
    ],
)
def test_a_target_is_read(text: str, kind: str, p99_ms: float | None) -> None:
    assert Target.parse(text) == Target(kind, p99_ms)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "speed", "p99", "p99:", "p99:20", "p99:0ms", "p99:-1ms", "p99:20ms ", "Latency"])
def test_another_target_is_refused(text: str) -> None:
    with raises(UsageError, what="target", found=text):
        Target.parse(text)


def test_batch_sizes_are_powers_of_two_and_the_largest() -> None:
    assert Target.parse("latency").batch_sizes(32) == (1,)
    assert Target.parse("throughput").batch_sizes(12) == (1, 2, 4, 8, 12)
    assert Target.parse("p99:20ms").batch_sizes(8) == (1, 2, 4, 8)
    assert Target.parse("throughput").batch_sizes(1) == (1,)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_batch", 0),
        ("max_batch", 2**21),
        ("time_limit", 1.0),
        ("time_limit", float("nan")),
        ("seed", -1),
        ("accuracy", 0.99),
    ],
)
def test_an_invalid_value_is_refused(name: str, value: object) -> None:
    given: dict[str, Any] = {"accuracy": MinAgreement(0.9), "target": Target(), name: value}
    with pytest.raises(UsageError) as caught:
        TuneRequest(**given)
    assert caught.value.what == name
