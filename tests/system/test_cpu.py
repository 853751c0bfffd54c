"""The number of threads: affinity masks, cgroup quotas and physical cores, of made-up machines and of this one.

The made-up files have the form that the kernel's documentation gives for them; see `vitdeploy.system.cpu`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import types
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from raising import raises

from vitdeploy.errors import UsageError
from vitdeploy.system import cgroups, cpu
from vitdeploy.system.cpu import (
    INTRA_OP_VARIABLE,
    Cpus,
    ThreadCount,
    limit_openmp,
    recent_workers,
    session_threads,
    usable_cpus,
)

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's affinity masks and cgroups")

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "33 31 0:30 {top} /sys/fs/cgroup/cpu,cpuacct rw,nosuid master:11 - cgroup cgroup rw,cpu,cpuacct"
MEMORY_MOUNT = "34 31 0:31 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory"
OTHER_MOUNTS = (
    "22 27 0:21 / /proc rw,relatime - proc proc rw\n23 27 0:22 / /sys rw,relatime shared:7 - sysfs sysfs rw\n"
)


def write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of 8 physical cores with two SMT siblings each: CPU n and CPU n + 8."""
    topology = {
        f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list": f"{number % 8},{number % 8 + 8}\n"
        for number in range(16)
    }
    write(tmp_path, {"sys/devices/system/cpu/online": "0-15\n", **topology})
    return tmp_path


def read(root: Path, *numbers: int) -> Cpus:
    return usable_cpus(str(root), frozenset(numbers or range(16)))


def v2(root: Path, cgroup: str, limits: Mapping[str, str], *mounts: str) -> float | None:
    """The quota of a process in a cgroup of version 2; the files of the limits by their folder."""
    proc = {"proc/self/cgroup": f"0::{cgroup}\n", "proc/self/mountinfo": OTHER_MOUNTS + "\n".join(mounts or [V2_MOUNT])}
    write(root, {**proc, **{f"{folder}/cpu.max": text for folder, text in limits.items()}})
    return read(root).quota


def v1(root: Path, cgroup: str, limits: Mapping[str, tuple[str, str]], top: str = "/") -> float | None:
    """The same of version 1; a limit is quota and period."""
    write(root, {
        "proc/self/cgroup": f"11:memory:/elsewhere\n4:cpu,cpuacct:{cgroup}\n1:name=systemd:{cgroup}\n",
        "proc/self/mountinfo": f"{OTHER_MOUNTS}{V1_MOUNT.format(top=top)}\n{MEMORY_MOUNT}\n",
    })  # fmt: skip
    for folder, (quota, period) in limits.items():
        write(root, {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": period})
    return read(root).quota


@pytest.mark.parametrize(
    ("limit", "quota", "threads"),
    [
        ("max 100000\n", None, 8), ("150000 100000\n", 1.5, 2), ("50000 100000\n", 0.5, 1), ("300000 100000\n", 3, 3),
        ("3000000 1000000\n", 3, 3), ("33333 11111\n", 3, 3), ("1000 1000000\n", 0.001, 1), ("800000 100000\n", 8, 8),
        ("1600000 100000\n", 16, 8), ("9000000000 1000\n", 9_000_000, 8),
    ],
)  # fmt: skip
def test_a_quota_of_version_2(root: Path, limit: str, quota: float | None, threads: int) -> None:
    """In a container with a cgroup namespace, as Docker and Kubernetes make them: its own cgroup is the root."""
    assert v2(root, "/", {"sys/fs/cgroup": limit}) == quota
    assert read(root).threads.count == threads


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("-1\n", "100000\n", None), ("150000\n", "100000\n", 1.5), ("25000\n", "50000\n", 0.5)],
)
def test_a_quota_of_version_1(root: Path, quota: str, period: str, expected: float | None) -> None:
    """In a container without a cgroup namespace: the mount shows the container's cgroup alone."""
    folder = "sys/fs/cgroup/cpu,cpuacct"
    assert v1(root, "/docker/1f2e", {folder: (quota, period)}, top="/docker/1f2e") == expected


def test_the_lowest_quota_of_nested_cgroups_counts(root: Path) -> None:
    base = "sys/fs/cgroup"
    limits = {f"{base}/a.slice/b/c": "400000 100000", f"{base}/a.slice/b": "max 100000", f"{base}/a.slice": "2000 1000"}
    assert v2(root, "/a.slice/b/c", limits) == 2
    assert v2(root, "/a.slice/b/c", {f"{base}/a.slice/b/c": "50000 100000"}) == 0.5
    assert v2(root, "/a.slice/other", {}) == 2
    assert v2(root, "/b.slice", {}) is None


def test_the_lowest_quota_of_nested_cgroups_counts_in_version_1(root: Path) -> None:
    base = "sys/fs/cgroup/cpu,cpuacct"
    limits = {f"{base}/pod/container": ("-1", "100000"), f"{base}/pod": ("250000", "100000"), base: ("-1", "100000")}
    assert v1(root, "/pod/container", limits) == 2.5
    assert v1(root, "/kubepods/pod/container", limits, top="/kubepods") == 2.5
    assert v1(root, "/elsewhere", limits) is None


def test_hybrid_systems_have_the_controller_in_one_of_two_hierarchies(root: Path) -> None:
    unified = "42 31 0:38 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw"
    write(root, {
        "proc/self/cgroup": "3:cpuset:/\n1:cpu,cpuacct:/app\n0::/app.scope\n",
        "proc/self/mountinfo": f"{OTHER_MOUNTS}{V1_MOUNT.format(top='/')}\n{unified}\n",
        "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_quota_us": "350000",
        "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_period_us": "100000",
    })  # fmt: skip
    assert read(root).quota == 3.5
    write(root, {"sys/fs/cgroup/unified/app.scope/cpu.max": "100000 100000"})
    assert read(root).quota == 1


def test_a_cpuset_controller_is_not_the_cpu_controller(root: Path) -> None:
    write(root, {
        "proc/self/cgroup": "3:cpuset,cpuacct:/app\n",
        "proc/self/mountinfo": "33 31 0:30 / /c rw - cgroup cgroup rw,cpuset,cpuacct\n",
        "c/app/cpu.cfs_quota_us": "100000",
        "c/app/cpu.cfs_period_us": "100000",
    })  # fmt: skip
    assert read(root).quota is None


def test_mounts_from_outside_of_the_cgroup_namespace(root: Path) -> None:
    """cgroup_namespaces(7): the top of a mount made outside is "/.." to the process, whose own cgroup is "/"."""
    outside = V2_MOUNT.replace("0:26 / ", "0:26 /../.. ")
    assert v2(root, "/", {"sys/fs/cgroup": "200000 100000"}, outside) == 2
    # A process that was moved out of its namespace is in none of the cgroups that the mount shows.
    assert v2(root, "/../sibling", {"sys/fs/cgroup": "200000 100000"}) is None


def test_of_several_mounts_those_count_that_show_the_process(root: Path) -> None:
    """A bind mount may show another container's cgroup."""
    other = "50 30 0:26 /other /mnt/other rw - cgroup2 cgroup2 rw"
    limits = {"mnt/other": "100000 100000", "sys/fs/cgroup/mine": "300000 100000", "sys/fs/cgroup": "max 100000"}
    assert v2(root, "/mine", limits, other, V2_MOUNT) == 3


def test_names_with_blanks_colons_and_prefixes_of_each_other(root: Path) -> None:
    mount = r"50 30 0:26 /a\040b /mnt/c\134d\040e rw - cgroup2 cgroup2 rw"
    assert v2(root, "/a b/c:d", {"mnt/c\\d e/c:d": "100000 100000"}, mount) == 1
    mount = "50 30 0:26 /pod1 /mnt/pod rw - cgroup2 cgroup2 rw"
    assert v2(root, "/pod1/x", {"mnt/pod/x": "200000 100000"}, mount) == 2
    sibling = "51 30 0:26 / /mnt/all rw - cgroup2 cgroup2 rw"
    assert v2(root, "/pod12", {"mnt/pod": "200000 100000", "mnt/all/pod12": "400000 100000"}, mount, sibling) == 4


@pytest.mark.parametrize(
    "limit",
    ["", "\n", "max", "100000", "x y", "-1 100000", "0 100000", "100000 0", "1 2 3", "1e5 100000", "9" * 5000 + " 1",
     "9" * 400 + " 1", "\udcff"],
)  # fmt: skip
def test_a_file_that_reads_otherwise_limits_nothing(root: Path, limit: str) -> None:
    assert v2(root, "/a", {"sys/fs/cgroup": "400000 100000"}) == 4
    path = root / "sys/fs/cgroup/a/cpu.max"
    path.parent.mkdir()
    path.write_bytes(limit.encode(errors="surrogateescape"))
    assert read(root).quota == 4


@pytest.mark.parametrize("name", ["proc/self/cgroup", "proc/self/mountinfo", "sys/fs/cgroup/cpu.max"])
def test_files_that_cannot_be_read_limit_nothing(root: Path, name: str) -> None:
    assert v2(root, "/", {"sys/fs/cgroup": "100000 100000"}) == 1
    (root / name).unlink()
    (root / name).mkdir()  # which no user can read as a file
    cgroups._folders.cache_clear()
    assert read(root) == Cpus(16, 16, 8, None)


@pytest.mark.parametrize("name", ["proc/self/cgroup", "proc/self/mountinfo"])
@pytest.mark.parametrize("text", ["", "\n\n", "0", "0:", ":::", "a b c\n - \n", " - cgroup2 x y", "1 2 3 4 - cgroup2"])
def test_odd_lines_are_passed_over(root: Path, name: str, text: str) -> None:
    v2(root, "/", {"sys/fs/cgroup": "100000 100000"})
    write(root, {name: text})
    cgroups._folders.cache_clear()
    assert read(root).quota is None


def test_changes_in_the_life_of_a_process_are_seen(root: Path) -> None:
    """A limit that is set anew, and a move to another cgroup, as after a fork."""
    base = "sys/fs/cgroup"
    assert v2(root, "/", {base: "100000 100000"}) == 1
    write(root, {f"{base}/cpu.max": "200000 100000", f"{base}/child/cpu.max": "150000 100000"})
    assert read(root).quota == 2
    write(root, {"proc/self/cgroup": "0::/child\n"})
    assert read(root).quota == 1.5


def test_recent_workers_are_a_second_old_at_most_and_a_threads_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_recent", threading.local())
    now, counts = [50.0], [4]
    monkeypatch.setattr(cpu, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(cpu, "usable_cpus", lambda: Cpus(counts[0], 16))
    assert recent_workers() == 4
    counts[0], now[0] = 2, 50.9
    assert recent_workers() == 4
    with ThreadPoolExecutor(1) as pool:  # whose affinity mask may be another
        assert pool.submit(recent_workers).result() == 2
    now[0] = 51.0
    assert recent_workers() == 2


@pytest.mark.parametrize(
    ("mask", "cores"), [(range(16), 8), ((0, 8), 1), ((0, 1), 2), ((0, 1, 8, 9, 10), 3), ((15,), 1)]
)
def test_smt_siblings_count_once(root: Path, mask: tuple[int, ...], cores: int) -> None:
    found = read(root, *mask)
    assert (found.cores, found.threads.count, found.logical, found.workers) == (cores, cores, len(mask), len(mask))


def test_both_names_of_the_siblings_file(root: Path) -> None:
    for number in range(4):
        folder = root / f"sys/devices/system/cpu/cpu{number}/topology"
        (folder / "thread_siblings_list").rename(folder / "core_cpus_list")
    assert read(root, 0, 1, 2, 3, 8).cores == 4


def test_without_topology_cpuinfo_counts_and_then_the_mask(tmp_path: Path) -> None:
    assert read(tmp_path) == Cpus(16, 16, None, None)
    assert read(tmp_path).threads == ThreadCount(16, "16 CPUs")
    x86 = "processor\t: {}\nmodel name\t: abacus: the second\nphysical id\t: {}\ncpu cores\t: 2\ncore id\t\t: {}\n"
    blocks = "\n".join(x86.format(number, number % 2, number // 4) for number in range(8))
    write(tmp_path, {"proc/cpuinfo": blocks})
    cpu._topology.cache_clear()
    assert read(tmp_path, *range(8)).cores == 4  # two sockets with two cores, two siblings each
    assert read(tmp_path, 0, 4).cores == 2
    assert read(tmp_path, 0, 2).cores == 1
    assert read(tmp_path, 0, 9).cores is None
    write(tmp_path, {"proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 50.00\n\nHardware\t: Arm\n"})
    cpu._topology.cache_clear()
    assert read(tmp_path, 0).threads == ThreadCount(1, "1 CPU")


@pytest.mark.parametrize(
    ("cpus", "count", "reason", "workers"),
    [
        (Cpus(8, 8, 8), 8, "8 physical cores", 8),
        (Cpus(16, 16, 8, 64.0), 8, "8 physical cores", 16),
        (Cpus(8, 8, 8, 1.5), 2, "cgroup quota of 1.5 CPUs, 8 physical cores", 2),
        (Cpus(8, 8, 8, 1.0), 1, "cgroup quota of 1 CPU, 8 physical cores", 1),
        (Cpus(4, 16, 2), 2, "2 physical cores in the affinity mask of 4 of 16 CPUs", 4),
        (Cpus(1, 16, 1, 0.5), 1, "1 physical core in the affinity mask of 1 of 16 CPUs", 1),
        (Cpus(16, 16, 8, 10.0), 8, "8 physical cores", 10),
        (Cpus(4096, 4096, 2048), 2048, "2048 physical cores", 4096),
        (Cpus(4096, 4096, 2048, 1e300), 2048, "2048 physical cores", 4096),
        (Cpus(6, 8, None, 2.0), 2, "cgroup quota of 2 CPUs, 6 CPUs in the affinity mask of 6 of 8 CPUs", 2),
    ],
)
def test_the_smallest_number_and_its_reason(cpus: Cpus, count: int, reason: str, workers: int) -> None:
    assert cpus.threads == ThreadCount(count, reason)
    assert str(cpus.threads) == f"{count}: {reason}"
    assert cpus.threads.to_dict() == {"count": count, "reason": reason}
    assert cpus.workers == workers


def test_threads_that_are_never_stopped() -> None:
    assert Cpus(8, 8, 8).within_quota(100)
    assert Cpus(8, 8, 8, 2.0).within_quota(2)
    assert not Cpus(8, 8, 8, 1.5).within_quota(2)
    assert not Cpus(8, 8, 8, 0.5).within_quota(1)
    assert [Cpus(8, 8, 8, quota).limited for quota in (None, 9.0, 8.0, 7.9)] == [False, False, False, True]


@pytest.mark.parametrize("failing", [AttributeError, PermissionError])
def test_systems_without_affinity_masks(monkeypatch: pytest.MonkeyPatch, failing: type[Exception]) -> None:
    """Neither macOS nor Windows has no such function; a sandbox may refuse it."""

    def fail(_: int) -> set[int]:
        raise failing

    monkeypatch.setattr(os, "sched_getaffinity", fail, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 5, raising=False)
    monkeypatch.delenv(INTRA_OP_VARIABLE, raising=False)
    assert usable_cpus() == Cpus(5, 6)
    assert session_threads() == ThreadCount(0, "the engine's choice, one a physical core")
    monkeypatch.delattr(os, "process_cpu_count")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus() == Cpus(1, 1)
    monkeypatch.setenv(INTRA_OP_VARIABLE, "3")
    assert session_threads().count == 3


def test_an_argument_comes_before_the_variable_and_that_before_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTRA_OP_VARIABLE, "5")
    assert session_threads(3) == ThreadCount(3, "as asked for")
    assert session_threads() == session_threads(0) == ThreadCount(5, INTRA_OP_VARIABLE)
    for unset in ("", "0", "000"):
        monkeypatch.setenv(INTRA_OP_VARIABLE, unset)
        assert session_threads() == usable_cpus().threads
    monkeypatch.delenv(INTRA_OP_VARIABLE)
    assert session_threads() == usable_cpus().threads


@pytest.mark.parametrize("value", ["two", "-1", "1.5", "1e1", "0x2", " 2", "2\n", "+2", "1025", "9" * 5000, "\u0662"])
def test_a_malformed_variable_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(INTRA_OP_VARIABLE, value)
    with raises(UsageError, what=INTRA_OP_VARIABLE, found=value):
        session_threads()
    assert session_threads(2).count == 2


@pytest.mark.parametrize(
    ("cpus", "environment", "expected"),
    [
        (Cpus(8, 8, 8, 2.5), {}, "3"),
        (Cpus(8, 8, 8, 8.0), {}, None),
        (Cpus(8, 8, 8), {}, None),
        (Cpus(8, 8, 8, 1.0), {"OMP_NUM_THREADS": "4"}, "4"),
        (Cpus(8, 8, 8, 1.0), {"MKL_NUM_THREADS": "4"}, None),
    ],
)
def test_openmp_in_the_command_line(
    monkeypatch: pytest.MonkeyPatch, cpus: Cpus, environment: dict[str, str], expected: str | None
) -> None:
    monkeypatch.setattr(os, "environ", dict(environment))
    monkeypatch.setattr(cpu, "usable_cpus", lambda: cpus)
    limit_openmp()
    assert os.environ == ({**environment, "OMP_NUM_THREADS": expected} if expected else environment)


# This machine.

SAYS = """
import json, os, sys
cpu, cgroup, probe = sys.argv[1:]
if cgroup:
    with open(cgroup + "/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
if cpu:
    os.sched_setaffinity(0, {int(cpu)})
from vitdeploy.system.cpu import usable_cpus
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
found = usable_cpus()
tasks = lambda: {int(name) for name in os.listdir("/proc/self/task")}
before = tasks()
with OnnxRuntime(probe) as runtime:
    options = runtime._session.get_session_options()
    print(json.dumps({
        "logical": found.logical,
        "cores": found.cores,
        "quota": found.quota,
        "intra_op_num_threads": options.intra_op_num_threads,
        "allow_spinning": options.get_session_config_entry("session.intra_op.allow_spinning"),
        "started": len(tasks() - before),
        "reason": runtime.details["threads_reason"],
        "outside_the_mask": [task for task in tasks() if not os.sched_getaffinity(task) <= os.sched_getaffinity(0)],
    }))
"""


def says(number: int | str = "", cgroup: Path | str = "", variable: str = "") -> dict[str, Any]:
    """Threads found by a separate process and its session, on that CPU and in that cgroup if given."""
    with resources.as_file(resources.files("vitdeploy.runtimes") / "probe.onnx") as probe:
        command = [sys.executable, "-c", SAYS, str(number), str(cgroup), str(probe)]
        found: dict[str, Any] = json.loads(
            subprocess.check_output(command, env={**os.environ, INTRA_OP_VARIABLE: variable})
        )
    return found


@LINUX
def test_the_affinity_of_a_real_process() -> None:
    """ONNX Runtime's own default is a thread a core of the machine, pinned to it, whatever the mask is."""
    for number in sorted(os.sched_getaffinity(0))[:2]:
        text = says(number)
        assert (text["logical"], text["intra_op_num_threads"], text["started"]) == (1, 1, 0)
        assert text["outside_the_mask"] == []
        assert text["cores"] in (1, None)


@LINUX
def test_the_variable_of_a_real_process() -> None:
    text = says(min(os.sched_getaffinity(0)), variable="3")
    assert (text["intra_op_num_threads"], text["started"], text["reason"]) == (3, 2, INTRA_OP_VARIABLE)
    assert text["outside_the_mask"] == []


@LINUX
@pytest.mark.skipif(shutil.which("nproc") is None or shutil.which("lscpu") is None, reason="needs nproc and lscpu")
def test_this_machine_is_as_coreutils_and_util_linux_say() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}  # nproc heeds it
    nproc = int(subprocess.check_output(["nproc"], text=True, env=environment))
    listing = subprocess.check_output(["lscpu", "--online", "--parse=CPU,CORE,SOCKET"], text=True)
    rows = [line.split(",") for line in listing.splitlines() if not line.startswith("#")]
    cores = {(core, socket) for number, core, socket in rows if int(number) in os.sched_getaffinity(0)}
    cpus = usable_cpus()
    assert cpus.limited or cpus.logical == nproc  # new ones heed a quota
    assert cpus.online >= cpus.logical
    assert cpus.cores in (len(cores), None)


@pytest.fixture
def real_cgroup() -> Iterator[Path]:
    """A cgroup of this machine whose CPU time can be limited, below that of this process."""
    places = [Path(folder) for folder, version in _own_folders() if _can_limit(Path(folder), version)]
    folder = next((place / f"vitdeploy-test-{uuid.uuid4().hex}" for place in places), None)
    try:
        if folder is None:
            raise PermissionError
        folder.mkdir()
    except OSError:
        pytest.skip("a cgroup with the cpu controller cannot be made here")
    yield folder
    folder.rmdir()


def _own_folders() -> tuple[tuple[str, int], ...]:
    return cgroups.cgroup_folders("cpu") if sys.platform == "linux" else ()


def _can_limit(folder: Path, version: int) -> bool:
    enabled = folder / ("cgroup.subtree_control" if version == 2 else "cpu.cfs_quota_us")
    with contextlib.suppress(OSError):
        return os.access(folder, os.W_OK) and (version == 1 or "cpu" in enabled.read_text().split())
    return False


def set_limit(folder: Path, quota: int, period: int) -> None:
    if (folder / "cpu.max").exists():
        (folder / "cpu.max").write_text(f"{quota} {period}")
    else:
        (folder / "cpu.cfs_period_us").write_text(str(period))
        (folder / "cpu.cfs_quota_us").write_text(str(quota))


@LINUX
def test_the_quota_of_a_real_cgroup(real_cgroup: Path) -> None:
    set_limit(real_cgroup, 50_000, 100_000)
    text = says(cgroup=real_cgroup)
    assert (text["quota"], text["intra_op_num_threads"], text["started"]) == (0.5, 1, 0)
    assert text["reason"].startswith("cgroup quota of 0.5 CPUs, " if (text["cores"] or 2) > 1 else "1 physical core")
    assert text["allow_spinning"] == "0"
    set_limit(real_cgroup, 75_000, 50_000)
    assert says(cgroup=real_cgroup)["quota"] == 1.5
    inner = real_cgroup / "inner"
    inner.mkdir()
    try:
        if not (inner / "cgroup.controllers").exists():  # version 2 lets no cgroup have processes and children
            assert says(cgroup=inner)["quota"] == 1.5
    finally:
        inner.rmdir()
