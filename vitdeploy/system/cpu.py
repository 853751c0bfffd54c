"""CPUs available to this process, and the numbers of threads for them.

Files are read as the Linux kernel documents them: proc_pid_cgroup(5), proc_pid_mountinfo(5), cgroup_namespaces(7),
Documentation/admin-guide/cgroup-v2.rst (cpu.max), Documentation/scheduler/sched-bwc.rst (cpu.cfs_quota_us of version 1)
and Documentation/admin-guide/cputopology.rst. A missing or malformed file means no limit.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import threading
import time

from vitdeploy.errors import UsageError
from vitdeploy.system.cgroups import cgroup_folders, read_text

INTRA_OP_VARIABLE = "ORT_INTRA_OP_NUM_THREADS"  # ONNX Runtime's variable: new versions read it if they get 0
MOST_THREADS = 1024
_RECENT_S = 1.0
_recent = threading.local()  # an affinity mask belongs to a thread


@dataclasses.dataclass(frozen=True)
class ThreadCount:
    """A number of threads, with the reason."""

    count: int
    reason: str

    def __str__(self) -> str:
        return f"{self.count}: {self.reason}"

    def to_dict(self) -> dict[str, int | str]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Cpus:
    """CPUs available to the calling thread and to the threads that it starts.

    Attributes:
        logical: CPUs in the affinity mask, which a cpuset limits too; the machine's on systems without masks.
        online: CPUs of the machine.
        cores: Physical cores of `logical`: SMT siblings count once. None if unknown.
        quota: CPU time per wall time: the lowest limit of the process's cgroup and its ancestors. None for no limit.
    """

    logical: int
    online: int
    cores: int | None = None
    quota: float | None = None

    @property
    def limited(self) -> bool:
        """True if the quota is less than the affinity mask allows."""
        return self.quota is not None and self.quota < self.logical

    def within_quota(self, threads: int) -> bool:
        """True if this many busy threads are never throttled."""
        return self.quota is None or threads <= self.quota

    @property
    def workers(self) -> int:
        """Threads for work that benefits from SMT siblings, such as decoding, one per logical CPU within the quota."""
        return self.logical if self.quota is None else max(1, math.ceil(min(self.quota, self.logical)))

    @property
    def threads(self) -> ThreadCount:
        """Threads for work that saturates the floating-point units, one per physical core within the quota."""
        cores = self.logical if self.cores is None else self.cores
        one, many = ("CPU", "CPUs") if self.cores is None else ("physical core", "physical cores")
        there = f"{cores} {one if cores == 1 else many}"
        if self.logical < self.online:
            there += f" in the affinity mask of {self.logical} of {self.online} CPUs"
        if self.workers < cores:
            quota = f"{self.quota:g} {'CPU' if self.quota == 1 else 'CPUs'}"
            return ThreadCount(self.workers, f"cgroup quota of {quota}, {there}")
        return ThreadCount(cores, there)


def usable_cpus(root: str = "", mask: frozenset[int] | None = None) -> Cpus:
    """Current CPUs of the calling thread.

    A call takes about 100 microseconds in a container: values that change (affinity mask, cgroup and its limits) are
    read from several files each time; mounts and topology are cached. `recent_workers` is cheaper.

    Args:
        root: Folder that contains `/proc` and `/sys`.
        mask: CPU numbers in the affinity mask. Default: the calling thread's.
    """
    mask = _affinity() if mask is None else mask
    if mask is None:
        count = getattr(os, "process_cpu_count", os.cpu_count)() or 1  # process_cpu_count: since Python 3.13
        return Cpus(count, max(count, os.cpu_count() or 1))
    cores, online = _topology(root, mask)
    limits = (_limit(folder, version) for folder, version in cgroup_folders("cpu", root))
    quota = min((limit for limit in limits if limit is not None), default=None)
    return Cpus(len(mask), online, cores, quota)


def recent_workers() -> int:
    """`usable_cpus().workers` of the calling thread, cached for a second for callers that ask often."""
    now = time.monotonic()
    if now >= getattr(_recent, "until", now):
        _recent.workers, _recent.until = usable_cpus().workers, now + _RECENT_S
    workers: int = _recent.workers
    return workers


def session_threads(asked: int = 0, variable: str | None = INTRA_OP_VARIABLE) -> ThreadCount:
    """Number of threads within an operator of an ONNX Runtime session, or of another engine.

    Args:
        asked: Requested number; 0 for that in `variable`, or if it is not set (or 0), for one thread per physical core
            of the affinity mask within the cgroup quota.
        variable: Environment variable with the engine's default; None if it has none.

    Returns:
        The number. It is 0 on systems without masks and quotas (macOS, Windows): the engine then counts the physical
        cores itself.

    Raises:
        UsageError: If the variable is not a number of threads.
    """
    if asked:
        return ThreadCount(asked, "as asked for")
    count = _threads_in(variable) if variable else 0
    if count:
        return ThreadCount(count, str(variable))
    if _affinity() is None:
        return ThreadCount(0, "the engine's choice, one a physical core")
    return usable_cpus().threads


def _threads_in(variable: str) -> int:
    """The number of threads in an environment variable; 0 without one."""
    value = os.environ.get(variable, "")
    if not re.fullmatch("[0-9]{0,9}", value) or int(value or 0) > MOST_THREADS:
        raise UsageError(
            f"{variable} is {value!r:.80}, which is not a number of threads",
            what=variable, found=value,
            hint=f"set it to a whole number from 1 to {MOST_THREADS}, or unset it for the default",
        )  # fmt: skip
    return int(value or 0)


def limit_openmp() -> None:
    """Limit OpenMP, which torch uses, to the cgroup quota, through `OMP_NUM_THREADS`.

    Only for vitdeploy's own processes, before torch is imported. A user's setting is kept.
    """
    cpus = usable_cpus()
    if cpus.limited and not openmp_is_set():
        os.environ["OMP_NUM_THREADS"] = str(cpus.threads.count)


def openmp_is_set() -> bool:
    """True if the environment sets the number of OpenMP or MKL threads."""
    return any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))


def _affinity() -> frozenset[int] | None:
    """The calling thread's mask; None if the system has none, or does not report it."""
    try:
        return frozenset(os.sched_getaffinity(0)) or None
    except (AttributeError, OSError):
        return None


@functools.lru_cache(maxsize=16)
def _topology(root: str, mask: frozenset[int]) -> tuple[int | None, int]:
    """Physical cores of these CPUs, None if unknown, and the number of online CPUs."""
    folder = f"{root}/sys/devices/system/cpu"
    online = max(len(mask), _list_length(read_text(f"{folder}/online")))
    names = ("core_cpus_list", "thread_siblings_list")  # the same; before kernel 5.3 only the latter name existed
    siblings = {
        next(filter(None, (read_text(f"{folder}/cpu{cpu}/topology/{name}").strip() for name in names)), "")
        for cpu in mask
    }
    if "" not in siblings:
        return len(siblings), online
    cores = _cpuinfo_cores(read_text(f"{root}/proc/cpuinfo"))
    used = {cores.get(cpu) for cpu in mask}
    return None if None in used else len(used), online


def _cpuinfo_cores(text: str) -> dict[int, tuple[str, str]]:
    """The core of each CPU, by number; x86 only."""
    cores = {}
    for block in text.split("\n\n"):
        values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        if values.get("processor", "").isdecimal() and {"physical id", "core id"} <= values.keys():
            cores[int(values["processor"])] = values["physical id"], values["core id"]
    return cores


def _list_length(text: str) -> int:
    """The count of numbers in a list such as "0-3,8"; 0 if malformed."""
    ranges = [part.split("-") for part in text.strip().split(",")]
    try:
        return sum(int(ends[-1]) - int(ends[0]) + 1 for ends in ranges)
    except ValueError:
        return 0


def _limit(folder: str, version: int) -> float | None:
    """The CPU limit of a cgroup."""
    if version == 2:
        fields = read_text(f"{folder}/cpu.max").split()
    else:
        fields = [read_text(f"{folder}/cpu.cfs_{name}_us") for name in ("quota", "period")]
    try:
        quota, period = map(int, fields)
        return quota / period if quota > 0 < period else None
    except (ValueError, OverflowError):  # "max", or no such file
        return None
