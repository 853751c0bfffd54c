"""Conditions of a measurement, read from files as Linux writes them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitdeploy.assess.environment import conditions
from vitdeploy.assess.environment.conditions import Clock, Conditions, Moment, moment

CPU = "sys/devices/system/cpu/cpu"
STAT = (
    "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 10 50 1000 20 3 2 40 0 0\ncpu1 200 0 0 500 0 0 0 60 100 0\n"
    "cpu2 7 7 7 7 7 7 7 7 7 7\n"
)


def write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "_own_cpus", lambda: (0, 1))
    monkeypatch.setattr(conditions, "_TICKS_PER_S", 100)


@pytest.mark.usefixtures("two_cpus")
def test_the_files_of_version_2_and_cpufreq(tmp_path: Path) -> None:
    files = {
        "proc/stat": STAT,
        "proc/loadavg": "1.25 0.5 0.25 1/100 77\n",
        "proc/self/cgroup": "0::/a\n",
        "proc/self/mountinfo": "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/a/cpu.stat": "usage_usec 9\nnr_periods 10\nnr_throttled 4\nthrottled_usec 1500000\n",
        "sys/fs/cgroup/cpu.stat": "usage_usec 9\n",
    }
    for cpu, khz in ((0, 2_000_000), (1, 3_000_000)):
        files |= {
            f"{CPU}{cpu}/cpufreq/scaling_cur_freq": f"{khz}\n",
            f"{CPU}{cpu}/cpufreq/cpuinfo_min_freq": "800000\n",
            f"{CPU}{cpu}/cpufreq/cpuinfo_max_freq": "4000000\n",
            f"{CPU}{cpu}/cpufreq/scaling_governor": "powersave\n",
            f"{CPU}{cpu}/thermal_throttle/core_throttle_count": "3\n",
        }
    found = moment(write(tmp_path, files))
    assert found.clock == Clock(2500, 800, 4000, "powersave")
    assert (found.load_average, found.hot) == (1.25, 6)
    assert found.busy_s == pytest.approx((100 + 10 + 50 + 3 + 2 + 200) / 100)
    assert found.steal_s == pytest.approx(1)
    assert found.throttled == 4
    assert found.throttled_s == pytest.approx(1.5)


@pytest.mark.usefixtures("two_cpus")
def test_the_files_of_version_1_and_of_a_virtual_machine(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": "processor\t: 0\ncpu MHz\t\t: 2600.5\n\nprocessor\t: 1\ncpu MHz\t\t: 2600.5\n",
        "proc/self/cgroup": "3:cpu,cpuacct:/a\n",
        "proc/self/mountinfo": "30 20 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n",
        "sys/fs/cgroup/cpu/a/cpu.stat": "nr_periods 10\nnr_throttled 2\nthrottled_time 2500000000\n",
    }
    found = moment(write(tmp_path, files))
    assert found.clock == Clock(2600.5)
    assert found.throttled == 2
    assert found.throttled_s == pytest.approx(2.5)
    assert (found.busy_s, found.steal_s, found.load_average, found.hot) == (None, None, None, None)


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize("text", ["", "cpu0 1 2\n", "\n\n", "intr 5\n"])
def test_what_is_not_told_is_unknown(tmp_path: Path, text: str) -> None:
    root = write(tmp_path, {"proc/stat": text, "proc/loadavg": "", "proc/cpuinfo": "cpu MHz : unknown\n"})
    assert dataclasses.replace(moment(root), seconds=0.0, own_s=0.0) == Moment(0.0)
    shown = Conditions(Moment(1.0), Moment(3.0), 2, None).to_dict()
    assert shown["clock_mhz"] == {
        "before": None, "after": None, "minimum": None, "maximum": None, "governor": "unknown"
    }  # fmt: skip
    assert (shown["steal_share"], shown["foreign_share"], shown["throttled_periods"]) == (None, None, None)


def test_shares_are_of_the_time_of_the_cpus() -> None:
    before = Moment(10.0, own_s=3.0, busy_s=100.0, steal_s=5.0, throttled=3, throttled_s=1.0, hot=1)
    after = Moment(20.0, own_s=11.0, busy_s=112.0, steal_s=6.0, throttled=5, throttled_s=1.5, hot=1)
    found = Conditions(before, after, cpus=2, quota=1.5)
    assert (found.foreign_share, found.steal_share) == pytest.approx((0.2, 0.05))
    assert (found.throttled, found.throttled_s, found.slowed_by_heat) == (2, 0.5, 0)
    assert dataclasses.replace(found, after=dataclasses.replace(after, own_s=16.0)).foreign_share == 0


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux has these files")
def test_this_machine() -> None:
    before = moment()
    with subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=-1) as child:
        assert child.stdout is not None
        child.stdout.read(1)
        time.sleep(0.05)
        child.kill()
    found = Conditions.since(before)
    assert found.after.own_s > before.own_s, "of a killed child too"
    assert found.cpus == len(os.sched_getaffinity(0))
    assert 0 <= (found.foreign_share or 0) <= 1
