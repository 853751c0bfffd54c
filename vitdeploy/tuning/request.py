"""The request to tune: an accuracy bound, a target, and limits."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from vitdeploy.errors import UsageError, check_count, shown
from vitdeploy.exporting.options import AccuracyBound, check_bound
from vitdeploy.specs import MOST_A_BATCH

TIME_LIMIT_S, SHORTEST_S = 300.0, 5.0
MAX_BATCH = 32
_MOST_SECONDS = 7 * 24 * 3600.0


@dataclasses.dataclass(frozen=True)
class Target:
    """The speed that tune optimizes, from image files to outputs.

    Attributes:
        kind: "latency", the median of one image; "throughput", images per second at the best batch size; or "p99", the
            same with a bound.
        p99_ms: Largest 99th percentile of a batch's latency, in milliseconds; None without a bound.
    """

    kind: Literal["latency", "throughput", "p99"] = "latency"
    p99_ms: float | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Parse "latency", "throughput" or "p99:20ms".

        Raises:
            UsageError: If it is none of these.
        """
        match = re.fullmatch(r"p99:([0-9]{1,6}(?:\.[0-9]{1,6})?)(ms|s)", text)
        if match is not None and float(match[1]) > 0:
            return cls("p99", float(match[1]) * (1 if match[2] == "ms" else 1e3))
        if text == "latency":
            return cls("latency")
        if text == "throughput":
            return cls("throughput")
        expected = "latency, throughput or p99:TIME, such as p99:20ms"
        raise UsageError(
            f"target takes {expected}, got {shown(text, 80)}", what="target", expected=expected, found=text
        )

    def __str__(self) -> str:
        return self.kind if self.p99_ms is None else f"p99:{self.p99_ms:g}ms"

    def batch_sizes(self, largest: int) -> tuple[int, ...]:
        """Batch sizes to try: powers of two up to the largest, and the largest; 1 for latency."""
        if self.kind == "latency":
            return (1,)
        return tuple(sorted({1 << power for power in range(largest.bit_length())} | {largest}))


@dataclasses.dataclass(frozen=True)
class TuneRequest:
    """A request, checked.

    Attributes:
        accuracy: Bound that the chosen artifact must meet on held-out images.
        target: What is to be fast.
        max_batch: Largest batch size to try.
        time_limit: Seconds.
        keep: Names of further artifacts to add to the bundle, such as "onnx-int8".
        keep_work: True to keep the working folder after success.
        seed: Seed for sampling images and for the order of turns.

    Raises:
        UsageError: If a value is invalid.
    """

    accuracy: AccuracyBound
    target: Target
    max_batch: int = MAX_BATCH
    time_limit: float = TIME_LIMIT_S
    keep: tuple[str, ...] = ()
    keep_work: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_bound(self.accuracy)
        check_count("max_batch", self.max_batch, most=MOST_A_BATCH)
        check_count("seed", self.seed, 0)
        if not SHORTEST_S <= self.time_limit <= _MOST_SECONDS:
            expected = f"{SHORTEST_S:g} to {_MOST_SECONDS:g} seconds"
            raise UsageError(
                f"time_limit takes {expected}, got {self.time_limit:g}",
                what="time_limit", expected=expected, found=self.time_limit,
            )  # fmt: skip
