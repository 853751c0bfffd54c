"""Two recorded benchmarks: what changed, what does not count, and files that are no results."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from raising import raises
from schemas import validated
from written_results import BENCHMARK_COMPARISON

import vitdeploy
from vitdeploy.assess.benchmark.result import Benchmark
from vitdeploy.assess.metrics.latency import Latency
from vitdeploy.assess.report.markdown import markdown
from vitdeploy.errors import InputError, UsageError


def recorded(path: Path, *, seed: int, machine: str = "abacus", **factors: float) -> Path:
    """The file of a benchmark with 5 processes of 2 rounds for each backend, of 10 ms times a factor."""
    generator = np.random.default_rng(seed)
    latencies = []
    for backend, factor in factors.items():
        offsets = np.repeat(generator.normal(0, 0.01, 5), 2)
        times = 10 * factor * np.exp(offsets + generator.normal(0, 0.005, 10))
        rounds = tuple((float(time), float(time)) for time in times)
        latencies.append(
            Latency(f"{backend}-fp32", backend, "fp32", 8, rounds, sessions=(0, 0, 1, 1, 2, 2, 3, 3, 4, 4))
        )
    result = Benchmark("out", {"cpu": machine}, {"rounds": 10, "threads": 0}, tuple(latencies))
    path.write_text(json.dumps(result.to_dict()), encoding="utf-8")
    return path


def test_known_changes_are_told_from_chance(tmp_path: Path) -> None:
    before = recorded(tmp_path / "before.json", seed=1, same=1.0, slower=1.0, faster=1.0, gone=1.0)
    after = recorded(
        tmp_path / "after.json", seed=2, same=1.0, slower=1.06, faster=0.7, fresh=1.0, machine="slide rule"
    )
    found = vitdeploy.compare_benchmarks(before, after)
    assert [(change.key.backend, change.verdict) for change in found.changes_by_setting] == [
        ("same", "no difference"),
        ("slower", "slower"),
        ("faster", "faster"),
    ]
    assert found.changes_by_setting[1].ratio.median == pytest.approx(1.06, abs=0.02)
    assert found.changes == ("machine: cpu: abacus -> slide rule",)
    assert found.only_in_one == (
        f"gone fp32 at batch size 8 is only in {before}",
        f"fresh fp32 at batch size 8 is only in {after}",
    )
    assert (found.status, found.check_results, found.brief) == ("passed", (), "1 faster, 1 slower, 1 no difference")
    same = vitdeploy.compare_benchmarks(before, before)
    assert [change.ratio.median for change in same.changes_by_setting] == [1] * 4
    assert same.changes == same.only_in_one == ()


@pytest.mark.parametrize(
    ("bound", "status", "code"), [("3%", "failed", 1), (0.03, "failed", 1), ("8%", "passed", 0), (None, "passed", 0)]
)
def test_a_bound_fails_a_known_slowdown_alone(
    tmp_path: Path, bound: str | float | None, status: str, code: int
) -> None:
    before = recorded(tmp_path / "before.json", seed=1, noisy=1.0, slower=1.0)
    after = recorded(tmp_path / "after.json", seed=2, noisy=1.0, slower=1.06)
    result = vitdeploy.compare_benchmarks(before, after, max_slowdown=bound)
    assert result.status == status
    given = () if bound is None else ("--max-slowdown", str(bound))
    page = tmp_path / "summary.md"
    done = run("benchmark", before, after, *given, "--json", "--markdown", page)
    found = validated("benchmark_comparison", done.out)
    assert (done.code, found["status"]) == (code, status)
    assert page.read_text().splitlines()[-4:] == markdown(result).splitlines()[-4:]
    shown = run("benchmark", before, after, *given)
    assert shown.code == code
    assert ("failed: slower fp32 at batch size 8 is 1.0" in shown.out) == (status == "failed")
    assert "noisy fp32" in shown.out


def test_a_slowdown_within_its_interval_fails_no_check(tmp_path: Path) -> None:
    """Twice as slow in one of the two processes."""
    before = recorded(tmp_path / "before.json", seed=1, slower=1.0)
    data = json.loads(before.read_text())
    data["latencies"][0]["processes_ms"] = [[10.0, 10.1], [20.0, 20.2]]
    (tmp_path / "after.json").write_text(json.dumps(data))
    (change,) = vitdeploy.compare_benchmarks(before, tmp_path / "after.json", max_slowdown="5%").changes_by_setting
    assert change.ratio.median > 1.2
    assert (change.verdict, change.check(0.05).status) == ("no difference", "passed")


def test_a_bound_that_cannot_be_checked_is_skipped(tmp_path: Path) -> None:
    """Twice as slow, but only one number tells so; and a setting that was not measured again."""
    before = recorded(tmp_path / "before.json", seed=1, alone=1.0, gone=1.0)
    after = recorded(tmp_path / "after.json", seed=2, alone=1.0, fresh=1.0)
    data = json.loads(after.read_text())
    data["latencies"][0]["processes_ms"] = [[20.0]]
    after.write_text(json.dumps(data))
    result = vitdeploy.compare_benchmarks(before, after, max_slowdown="5%")
    assert [(check.subject, check.status) for check in result.check_results] == [
        ("alone fp32 at batch size 8", "skipped"),
        ("gone fp32 at batch size 8", "skipped"),
    ]
    done = run("benchmark", before, after, "--max-slowdown", "5%", "--json")
    found = validated("benchmark_comparison", done.out)
    assert (done.code, found["status"], found["settings"][0]["verdict"]) == (3, "skipped", "unknown")
    assert result.brief == "0 faster, 0 slower, 0 no difference, 1 unknown"
    assert "- skipped: gone fp32 at batch size 8 is not in " in markdown(result)
    assert run("benchmark", before, after).code == 0, "without a bound, nothing is checked"


def _changed(data: dict[str, Any], path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    changed = copy.deepcopy(data)
    place: Any = changed
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        (("latencies",), ..., "latencies"),
        (("latencies",), {}, "latencies"),
        (("latencies", 0), 3, "latencies[0]"),
        (("latencies", 0, "processes_ms"), ..., "latencies[0].processes_ms"),
        (("latencies", 0, "processes_ms"), [], "latencies[0].processes_ms"),
        (("latencies", 0, "processes_ms"), [[]], "latencies[0].processes_ms"),
        (("latencies", 0, "processes_ms"), [[1.0, -1.0]], "latencies[0].processes_ms"),
        (("latencies", 0, "processes_ms"), [[1.0, "1"]], "latencies[0].processes_ms"),
        (("latencies", 0, "processes_ms"), [[10**300]], "latencies[0].processes_ms"),
        (("latencies", 0, "processes_ms"), [[True]], "latencies[0].processes_ms"),
        (("latencies", 0, "processes_ms"), [[1.0]] * 10_001, "latencies[0].processes_ms"),
        (("latencies", 0, "batch_size"), 0, "latencies[0].batch_size"),
        (("latencies", 0, "batch_size"), True, "latencies[0].batch_size"),
        (("latencies", 0, "image_size"), [1], "latencies[0].image_size"),
        (("latencies", 0, "backend"), None, "latencies[0].backend"),
        (("latencies", 0, "backend"), "x\n::error::y", "latencies[0].backend"),
        (("machine",), [], "machine"),
        (("machine", "cpu"), 1, "machine"),
        (("notes",), [1], "notes"),
        (("notes",), ["hot\n::error::y"], "notes"),
        (("bundle",), ..., "bundle"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, path: tuple[str | int, ...], value: object, what: str) -> None:
    good = recorded(tmp_path / "good.json", seed=1, x=1.0)
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(_changed(json.loads(good.read_text()), path, value)))
    with raises(InputError, what=what, where=bad):
        vitdeploy.compare_benchmarks(good, bad)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"latencies": NaN}', "[" * 100_000, '{"machine": {}, "machine": {}}']
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: str) -> None:
    good = recorded(tmp_path / "good.json", seed=1, x=1.0)
    (tmp_path / "bad.json").write_text(content)
    with raises(InputError, where=tmp_path / "bad.json"):
        vitdeploy.compare_benchmarks(tmp_path / "bad.json", good)
    assert run("benchmark", good, tmp_path / "bad.json").code == 4


def test_a_setting_twice_and_nothing_in_common_are_refused(tmp_path: Path) -> None:
    good = recorded(tmp_path / "good.json", seed=1, x=1.0)
    data = json.loads(good.read_text())
    (tmp_path / "twice.json").write_text(json.dumps({**data, "latencies": data["latencies"] * 2}))
    with raises(InputError, what="latencies[1].backend", where=tmp_path / "twice.json"):
        vitdeploy.compare_benchmarks(good, tmp_path / "twice.json")
    other = recorded(tmp_path / "other.json", seed=1, y=1.0)
    with raises(InputError, what="latencies", where=str(other), expected=("x fp32",), found=("y fp32",)):
        vitdeploy.compare_benchmarks(good, other)
    with raises(InputError, where=tmp_path / "absent.json"):
        vitdeploy.compare_benchmarks(good, tmp_path / "absent.json")
    with raises(UsageError, what="max_slowdown", found="5"):
        vitdeploy.compare_benchmarks(good, good, max_slowdown="5")


@pytest.mark.parametrize(
    "arguments",
    [
        ("good.json",),
        ("good.json", "good.json", "--rounds", 3),
        ("good.json", "good.json", "--backend", "torch"),
        ("good.json", "good.json", "--html", "page.html"),
        ("good.json", "good.json", "--max-slowdown", "0"),
        ("good.json", "other.json", "--markdown", "other.json"),
        ("bundle", "--max-slowdown", "5%"),
    ],
)
def test_options_are_for_one_of_the_two_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[Any, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("good.json", "other.json"):
        recorded(tmp_path / name, seed=1, x=1.0)
    assert run("benchmark", *arguments).code == 2


def test_the_table_has_notes_and_differences() -> None:
    text = markdown(BENCHMARK_COMPARISON)
    assert text.startswith("### \N{CROSS MARK} failed: after.json")
    assert "- failed: x fp32 at batch size 1 is 1.1x slower (1.100, 1.050 to 1.150), 5.0% slower allowed" in text
    assert "- after.json: hot" in text
    assert "| machine: cpu: abacus -&gt; slide rule |" in text
