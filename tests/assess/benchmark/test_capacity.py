"""Groups of processes that fit into memory at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from vitdeploy.assess.benchmark.capacity import MOST_ALIVE, alive_together, available_bytes
from vitdeploy.assess.benchmark.setting import Setting
from vitdeploy.assess.runs.targets import REFERENCE, Selected
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import FileRecord

GIB = 1024**3


def settings(count: int) -> list[Setting]:
    onnx = [Setting(Selected("onnx-fp32", "onnxruntime", "fp32"), threads=threads) for threads in range(count - 1)]
    return [Setting(Selected(REFERENCE, "torch", "fp32")), *onnx]


@pytest.mark.parametrize(
    ("available", "groups"),
    [
        (None, [(0, 1, 2, 3)]),
        (64 * GIB, [(0, 1, 2, 3)]),
        (12 * GIB, [(0, 1, 2), (0, 3)]),
        (8 * GIB, [(0, 1), (0, 2), (0, 3)]),
        (0, [(0, 1), (0, 2), (0, 3)]),
    ],
)
def test_each_group_has_the_base_and_fits(single: Bundle, available: int | None, groups: list[tuple[int, ...]],
                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """An artifact of 1 GiB, whose process takes 3.4 GiB; the reference is tiny."""
    monkeypatch.setattr("vitdeploy.assess.benchmark.capacity.available_bytes", lambda: None)
    (artifact,) = single.manifest.artifacts
    large = dataclasses.replace(artifact, files=(FileRecord("onnx/model.onnx", GIB, "0" * 64),))
    bundle = dataclasses.replace(single, manifest=dataclasses.replace(single.manifest, artifacts=(large,)))
    assert alive_together(bundle, settings(4), available) == groups


def test_turns_do_not_come_too_far_apart(single: Bundle) -> None:
    groups = alive_together(single, settings(MOST_ALIVE + 1), 10**15)
    assert [len(group) for group in groups] == [MOST_ALIVE, 2]
    assert groups[1] == (0, MOST_ALIVE)
    assert alive_together(single, settings(1), 0) == [(0,)]


MOUNT = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
MOUNT_V1 = "30 20 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:       8 kB\n"}, 8192),
        (
            {
                "proc/meminfo": "MemAvailable: 8 kB\n", "proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": MOUNT,
                "sys/fs/cgroup/a/memory.max": "5000\n", "sys/fs/cgroup/a/memory.current": "1000\n",
                "sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "1000\n",
            },
            4000,
        ),
        (
            {
                "proc/meminfo": "MemAvailable: 8 kB\n", "proc/self/cgroup": "4:memory:/a\n1:cpu:/b\n",
                "proc/self/mountinfo": MOUNT_V1,
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "900\n",
                "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "1000\n",
            },
            0,
        ),
    ],
)  # fmt: skip
def test_available_memory_is_the_least_of_the_machine_s_and_the_cgroups(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_bytes(str(tmp_path)) == expected
