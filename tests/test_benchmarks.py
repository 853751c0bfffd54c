"""The figures of the benchmarks' README are the recorded ones."""

from __future__ import annotations

import sys

from environments import ROOT, run


def test_tables_hold_the_recorded_results() -> None:
    run(sys.executable, ROOT / "benchmarks" / "tables.py", "--check")
