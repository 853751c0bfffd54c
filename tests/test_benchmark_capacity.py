"""The plans of `benchmarks/capacity.py`: hand-computed figures, its queue models, and the files that it refuses."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from environments import ROOT
from raising import raises

from vitdeploy.assess.benchmark.scenarios import rate_search
from vitdeploy.assess.benchmark.scenarios.arrivals import poisson_arrivals
from vitdeploy.assess.benchmark.scenarios.queue_model import latencies_of
from vitdeploy.assets import held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import InputError, UsageError

SETTING = {"backend": "onnxruntime", "precision": "int8", "changes": "", "batch_size": 1, "sessions": 2,
           "threads": {"count": 1, "reason": "as asked for"}, "status": "passed"}  # fmt: skip


@pytest.fixture
def capacity(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("capacity")


def scenario_file(folder: Path, scenario: str, **fields: Any) -> Path:
    figure = {"offline": {"images_per_second": 40.0}, "server": {"queries_per_second": 30.0, "bound_ms": 100.0}}[
        scenario
    ]
    file = folder / f"{scenario}.json"
    file.write_text(json.dumps({"scenario": {"name": scenario}, "results": [{**SETTING, **figure, **fields}]}))
    return file


def plan(capacity: Any, *words: object) -> Any:
    return capacity.plan(capacity.parser().parse_args(list(map(str, words))))


def test_a_plan_in_hand_computed_figures(capacity: Any, tmp_path: Path) -> None:
    """Offline 40 images/s on 2 cores, and 30 within the bound: a machine of 8 cores runs 4 copies."""
    offline, server = scenario_file(tmp_path, "offline"), scenario_file(tmp_path, "server")
    found = plan(capacity, offline, "--server", server, "--machine-processors", 8, "--price", 0.36, "--rate", 480.0)
    assert (found.machine.processor, found.machine.processors, found.machine.copies) == ("core", 8, 4)
    first, second = found.rows
    assert (first.images_per_second, first.share, first.per_processor, first.machines) == (160, 1, 20, 3)
    assert first.machine_hours == pytest.approx(1e9 / 160 / 3600)  # 1,736.1
    assert first.cost_per_million == pytest.approx(0.625)  # 6,250 s at 0.0001 a second
    assert first.cost == pytest.approx(625)
    assert (second.images_per_second, second.share, second.per_processor, second.machines) == (120, 0.75, 15, 4)
    assert second.cost_per_million == pytest.approx(0.625 / 0.75)
    assert "100 ms" in second.basis


def test_a_price_may_be_that_of_a_core_or_a_gpu(capacity: Any) -> None:
    words = ("--images-per-second", 1000, "--gpus", 1, "--machine-processors", 4, "--images", 36e5)
    whole, single = (plan(capacity, *words, "--price", price, *per).rows[0]
                     for price, per in ((8, ()), (2, ("--per", "processor"))))  # fmt: skip
    assert whole == single
    assert (whole.images_per_second, whole.per_processor, whole.machines) == (4000, 1000, None)
    assert (whole.machine_hours, whole.cost) == pytest.approx((0.25, 2))


def test_without_a_price_there_is_no_cost(capacity: Any, capsys: pytest.CaptureFixture[str]) -> None:
    capacity.main(["--images-per-second", "10", "--cores", "2"])
    assert "cost" not in capsys.readouterr().out
    capacity.main(["--images-per-second", "10", "--cores", "2", "--rate", "10", "--json"])
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["cost"], row["machines"]) == (None, 1)


def test_the_distribution_of_waiting_times_is_that_of_simulated_queues(capacity: Any) -> None:
    """M/D/1 has 1 - u of the queries not wait at all; 100 replays of 2,000 queries, whose own error is below 0.02."""
    assert capacity.share_within(0, 0.7) == pytest.approx(0.3)
    arrivals = np.stack([poisson_arrivals(0.7, 2500, seed) for seed in range(100)])
    waits = latencies_of(arrivals, np.ones_like(arrivals), 1)[:, 500:] - 1
    for wait in (0.5, 1.0, 2.5, 6.0):
        assert capacity.share_within(wait, 0.7) == pytest.approx((waits <= wait).mean(), abs=0.02)
    # The tail of M/D/1 falls by e^-x a service time, where u (e^x - 1) = x: x = 0.10172 at u = 0.95.
    late = [1 - capacity.share_within(wait, 0.95) for wait in (59, 60)]
    assert late[1] / late[0] == pytest.approx(math.exp(-0.10172), rel=1e-4)


def test_the_highest_utilization_within_a_bound(capacity: Any) -> None:
    """Up to one arrival in a service time, 99 % wait t if (1 - u) e^(ut) = 0.99; M/M/1 has 1 - ln(100) / bound."""
    utilization = capacity.highest_utilization(1.5)
    assert (1 - utilization) * math.exp(utilization * 0.5) == pytest.approx(0.99, abs=0.001)
    assert capacity.highest_utilization(0.99) == 0
    assert capacity.highest_utilization(1000) == 0.95
    assert capacity.highest_utilization_of_exponential(20) == pytest.approx(1 - math.log(100) / 20)
    assert capacity.highest_utilization_of_exponential(4.6) == 0
    assert capacity.highest_utilization_of_exponential(1000) == 0.95


def test_models_of_a_bound(capacity: Any, tmp_path: Path) -> None:
    offline = scenario_file(tmp_path, "offline")  # 2 sessions at 40 images/s: 50 ms an image
    found = plan(capacity, offline, "--p99-ms", 1000)
    assert [row.share for row in found.rows] == pytest.approx(
        [1, capacity.highest_utilization(20), 1 - math.log(100) / 20]
    )
    assert found.unmet == ()
    assert len(plan(capacity, offline, "--p99-ms", 49).unmet) == 2
    batches = scenario_file(tmp_path, "offline", batch_size=8)
    with raises(UsageError, what="p99_ms", found=8):
        plan(capacity, batches, "--p99-ms", 1000)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"images_per_second": None}, "images_per_second"),
        ({"images_per_second": 0}, "images_per_second"),
        ({"images_per_second": True}, "images_per_second"),
        ({"sessions": "2"}, "sessions"),
        ({"backend": None}, "backend"),
        ({"sessions": 1.5}, "sessions"),
        ({"batch_size": 0.5}, "batch_size"),
        ({"threads": {"count": "1"}}, "count"),
        ({"threads": {"count": -2}}, "count"),
        ({"status": "failed"}, "results"),
    ],
)
def test_a_file_that_lacks_a_field_is_refused(capacity: Any, tmp_path: Path, fields: dict[str, Any], what: str) -> None:
    file = scenario_file(tmp_path, "offline", **fields)
    with raises(InputError, what=what, where=file):
        plan(capacity, file)


def test_what_cannot_be_planned_is_refused(capacity: Any, tmp_path: Path) -> None:
    offline, server = scenario_file(tmp_path, "offline"), scenario_file(tmp_path, "server")
    with raises(InputError, what="scenario.name", expected="offline", found="server"):
        plan(capacity, server)
    with raises(InputError, where=tmp_path / "absent.json"):
        plan(capacity, tmp_path / "absent.json")
    with raises(UsageError, what="setting", expected=["onnxruntime int8"], found="torch fp32"):
        plan(capacity, offline, "--setting", "torch fp32")
    with raises(UsageError, what="machine_processors", expected=2, found=3):
        plan(capacity, offline, "--machine-processors", 3)
    with raises(UsageError, what="sessions", expected=(2, 2), found=(1, 1)):
        plan(capacity, offline, "--server", scenario_file(tmp_path, "server", sessions=1))
    with raises(UsageError, what="cores"):
        plan(capacity, scenario_file(tmp_path, "offline", threads=None))
    with pytest.raises(SystemExit, match=r"^Error: .*absent.json"):
        capacity.main([str(tmp_path / "absent.json")])


def test_what_benchmark_prints_is_read(
    capacity: Any, digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_search, "MIN_QUERIES", 40)
    benchmark = (
        "benchmark",
        digits.path,
        "--backend",
        "onnxruntime",
        "--threads",
        1,
        "--images",
        held_out_images(),
        "--json",
    )
    printed = {}
    for name, words in {
        "offline": ("--scenario", "offline", "--batch-sizes", 1, "--duration", "0.1"),
        "server": ("--scenario", "server", "--rate", 20, "--p99", "60s", "--duration", "0.1"),
        "plain": ("--batch-sizes", 4, "--rounds", 1, "--runs", 1, "--processes", 1),
    }.items():
        code, printed[name], _ = run(*benchmark, *words)
        assert code == 0
        (tmp_path / name).write_text(printed[name], encoding="utf-8")
    found = plan(capacity, tmp_path / "offline", "--server", tmp_path / "server")
    (result,) = json.loads(printed["offline"])["results"]
    assert [row.images_per_second for row in found.rows] == [result["images_per_second"], 20]
    (latency,) = json.loads(printed["plain"])["latencies"]
    (row,) = plan(capacity, tmp_path / "plain").rows
    assert row.per_processor == pytest.approx(4000 / latency["image_files"]["p50_ms"])
