"""`vitdeploy benchmark --scenario`: its table, its JSON and its exit codes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_line import run
from schemas import validated

from vitdeploy.assess.benchmark.scenarios import rate_search
from vitdeploy.assets import held_out_images
from vitdeploy.bundle.bundle import Bundle

OPTIONS = ("--backend", "onnxruntime", "--threads", 1, "--images", held_out_images(), "--duration", "0.1")


def test_table_json_and_reports(digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_search, "MIN_QUERIES", 40)
    page, summary = tmp_path / "page.html", tmp_path / "summary.md"
    server = ("--scenario", "server", "--rate", 20, "--p99", "60s")
    code, out, err = run("benchmark", digits.path, *OPTIONS, *server, "--html", page, "--markdown", summary)
    assert (code, err) == (0, "")
    assert re.search("onnxruntime fp32 threads=1 +20 ", out)
    assert ">60000</td>" in page.read_text(encoding="utf-8")
    assert summary.read_text(encoding="utf-8").startswith("### Measured: ")
    code, out, _ = run("benchmark", digits.path, *OPTIONS, "--scenario", "offline", "--batch-sizes", "2,4", "--json")
    found = validated("benchmark_scenario", out)
    assert (code, [result["batch_size"] for result in found["results"]]) == (0, [2, 4])
    assert (found["scenario"]["duration_s"], found["settings"]["threads"]) == (0.1, [1])


def test_a_missed_bound_exits_with_1(digits: Bundle) -> None:
    server = ("--scenario", "server", "--rate", 100_000, "--p99", "10us")
    code, out, _ = run("benchmark", digits.path, *OPTIONS, *server, "--json")
    (result,) = validated("benchmark_scenario", out)["results"]
    assert (code, result["status"], result["replays_that_hold"]) == (1, "failed", 0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--scenario", "server"), "needs --p99"),
        (("--p99", "50ms"), "--p99 needs --scenario"),
        (("--scenario", "server", "--p99", "50"), "--p99 50 has no unit; write 50ms or 50s"),
        (("--scenario", "server", "--p99", "soon"), "--p99"),
        (("--scenario", "server", "--p99", "50ms", "--rate", "many"), "--rate"),
        (("--scenario", "server", "--p99", "50ms", "--rate", "nan"), "--rate"),
        (("--scenario", "server", "--p99", "50ms", "--batch-sizes", "8"), "queries of server have one image"),
        (("--scenario", "offline", "--p99", "50ms"), "--p99"),
        (("--scenario", "offline", "--duration", "0"), "--duration"),
        (("--scenario", "offline", "--rounds", "3"), "--rounds does not apply to --scenario"),
        (("--scenario", "offline", "--image-sizes", "8x8"), "--image-sizes does not apply to --scenario"),
        (("--scenario", "batch"), "--scenario"),
    ],
)
def test_bad_options_are_usage_errors(digits: Bundle, options: tuple[str, ...], text: str) -> None:
    code, out, err = run("benchmark", digits.path, *options)
    assert (code, out) == (2, "")
    assert text in err
