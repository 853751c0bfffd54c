"""Conditions of a measurement: clocks, CPU quota, and other work on this machine's CPUs.

Files are read as the Linux kernel documents them: proc_stat(5), proc_loadavg(5), cpu.stat in
Documentation/admin-guide/cgroup-v2.rst, Documentation/admin-guide/pm/cpufreq.rst and, for Intel's counters of thermal
throttling, Documentation/ABI/testing/sysfs-devices-system-cpu. What a system does not tell is None.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from typing import TYPE_CHECKING, Any

from vitdeploy.system.cgroups import cgroup_folders, read_text
from vitdeploy.system.cpu import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_STEAL = 7  # position in a line of /proc/stat, after user, nice, system, idle, iowait, irq and softirq
_IDLE = (3, 4)


@dataclasses.dataclass(frozen=True)
class Clock:
    """Clock of the process's CPUs in MHz (means over them), and the governor that sets it."""

    current: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    governor: str | None = None


@dataclasses.dataclass(frozen=True)
class Moment:
    """Counters and state at one time.

    Attributes:
        seconds: Monotonic time.
        own_s: CPU time of this process and of its children that have ended, killed ones too.
        clock: Clock of the CPUs.
        load_average: Load average of the last minute.
        busy_s: Time that the CPUs were busy, steal excluded, since the machine started.
        steal_s: Time that the hypervisor gave to others.
        throttled: Periods in which the cgroup's quota stopped its processes.
        throttled_s: Time for which it did.
        hot: Times that the CPUs were slowed down because of heat.
    """

    seconds: float
    own_s: float = 0.0
    clock: Clock = Clock()
    load_average: float | None = None
    busy_s: float | None = None
    steal_s: float | None = None
    throttled: int | None = None
    throttled_s: float | None = None
    hot: int | None = None


def moment(root: str = "") -> Moment:
    """The present state.

    Args:
        root: Folder that contains `/proc` and `/sys`.
    """
    cpus = _own_cpus()
    busy_s, steal_s = _cpu_times(read_text(f"{root}/proc/stat"), cpus)
    throttled, throttled_s = _throttling(root)
    load = read_text(f"{root}/proc/loadavg").split()
    return Moment(
        seconds=time.monotonic(),
        own_s=sum(os.times()[:4]),
        clock=_clock(root, cpus),
        load_average=_number(load[0]) if load else None,
        busy_s=busy_s,
        steal_s=steal_s,
        throttled=throttled,
        throttled_s=throttled_s,
        hot=_total(f"{root}/sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count" for cpu in cpus),
    )


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Conditions between two moments.

    Attributes:
        before: State before the measurement.
        after: State after it.
        cpus: CPUs that the process may use.
        quota: CPU time per wall time that its cgroup allows; None for no limit.
    """

    before: Moment
    after: Moment
    cpus: int
    quota: float | None

    @classmethod
    def since(cls, before: Moment) -> Conditions:
        """The conditions from a moment until now, after the measurement's processes have ended."""
        cpus = usable_cpus()
        return cls(before, moment(), cpus.logical, cpus.quota)

    @property
    def steal_share(self) -> float | None:
        """Share of the CPUs' time that the hypervisor gave to others."""
        return self._share(_difference(self.before.steal_s, self.after.steal_s))

    @property
    def foreign_share(self) -> float | None:
        """Share of the CPUs' time that other processes used."""
        busy = _difference(self.before.busy_s, self.after.busy_s)
        return None if busy is None else self._share(max(0.0, busy - (self.after.own_s - self.before.own_s)))

    @property
    def throttled(self) -> int | None:
        """Periods in which the cgroup's quota stopped its processes."""
        found = _difference(self.before.throttled, self.after.throttled)
        return None if found is None else int(found)

    @property
    def throttled_s(self) -> float | None:
        """Time for which it did."""
        return _difference(self.before.throttled_s, self.after.throttled_s)

    @property
    def slowed_by_heat(self) -> int | None:
        """Times that the CPUs were slowed down because of heat."""
        found = _difference(self.before.hot, self.after.hot)
        return None if found is None else int(found)

    def to_dict(self) -> dict[str, Any]:
        clock = self.after.clock
        return {
            "seconds": self.after.seconds - self.before.seconds,
            "clock_mhz": {
                "before": self.before.clock.current,
                "after": clock.current,
                "minimum": clock.minimum,
                "maximum": clock.maximum,
                "governor": "unknown" if clock.governor is None else clock.governor,
            },
            "load_average": {"before": self.before.load_average, "after": self.after.load_average},
            "cpus": self.cpus,
            "quota_cpus": self.quota,
            "throttled_periods": self.throttled,
            "throttled_s": self.throttled_s,
            "steal_share": self.steal_share,
            "foreign_share": self.foreign_share,
            "slowed_by_heat": self.slowed_by_heat,
        }

    def _share(self, seconds: float | None) -> float | None:
        whole = self.cpus * (self.after.seconds - self.before.seconds)
        return None if seconds is None or whole <= 0 else min(1.0, seconds / whole)


def _own_cpus() -> tuple[int, ...]:
    """Numbers of the CPUs that the process may use; empty where the system has no masks."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def _cpu_times(text: str, cpus: Collection[int]) -> tuple[float | None, float | None]:
    """Busy and stolen seconds of the CPUs."""
    names = {f"cpu{cpu}" for cpu in cpus}
    rows = [
        list(map(int, line.split()[1:])) for line in text.splitlines() if line.split()[:1] and line.split()[0] in names
    ]
    if not rows or any(len(row) <= _STEAL for row in rows):
        return None, None
    # Guest time, after steal, is part of user time.
    busy = sum(sum(row[:_STEAL]) - sum(row[position] for position in _IDLE) for row in rows)
    return busy / _TICKS_PER_S, sum(row[_STEAL] for row in rows) / _TICKS_PER_S


def _throttling(root: str) -> tuple[int | None, float | None]:
    """Periods and seconds of the process's cgroup and its ancestors, whose limits apply too: the largest."""
    found: list[tuple[int, float]] = []
    for folder, version in cgroup_folders("cpu", root):
        values = dict(line.split(" ", 1) for line in read_text(f"{folder}/cpu.stat").splitlines() if " " in line)
        name, unit = ("throttled_usec", 1e-6) if version == 2 else ("throttled_time", 1e-9)  # nanoseconds in version 1
        if values.get("nr_throttled", "").isdecimal() and values.get(name, "").isdecimal():
            found.append((int(values["nr_throttled"]), int(values[name]) * unit))
    return max(found, default=(None, None))


def _clock(root: str, cpus: Collection[int]) -> Clock:
    folders = [f"{root}/sys/devices/system/cpu/cpu{cpu}/cpufreq" for cpu in cpus]
    kilohertz = {
        name: [value for folder in folders if (value := _number(read_text(f"{folder}/{name}"))) is not None]
        for name in ("scaling_cur_freq", "cpuinfo_min_freq", "cpuinfo_max_freq")
    }
    current, minimum, maximum = (statistics.fmean(values) / 1e3 if values else None for values in kilohertz.values())
    governors = sorted({text for folder in folders if (text := read_text(f"{folder}/scaling_governor").strip())})
    if current is None:
        listed = list(_listed_mhz(read_text(f"{root}/proc/cpuinfo"), cpus))
        current = statistics.fmean(listed) if listed else None
    return Clock(current, minimum, maximum, ", ".join(governors) or None)


def _listed_mhz(text: str, cpus: Collection[int]) -> Iterator[float]:
    for block in text.split("\n\n"):
        values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        mhz = _number(values.get("cpu MHz", ""))
        if mhz is not None and values.get("processor", "") in map(str, cpus):
            yield mhz


def _total(paths: Iterator[str]) -> int | None:
    texts = [read_text(path).strip() for path in paths]
    counts = [int(text) for text in texts if text.isdecimal()]
    return sum(counts) if counts else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else max(0, after - before)
