"""How many processes fit into memory at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vitdeploy.system.cgroups import cgroup_folders, read_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitdeploy.assess.benchmark.setting import Setting
    from vitdeploy.bundle.bundle import Bundle

# A process with a session of ViT-B's float32 file of 346 MB has a peak of 3.0 times the file and 0.1 GB in ONNX
# Runtime, and of 2.1 times and 0.4 GB in torch, at batch size 8.
_PROCESS_BYTES, _COPIES = 4 * 10**8, 3
_SHARE = 0.8  # of the available memory
MOST_ALIVE = 8  # more would take turns too far apart to compare


def alive_together(bundle: Bundle, settings: Sequence[Setting], available: int | None = None) -> list[tuple[int, ...]]:
    """Positions of the settings that are alive at a time, in groups; each begins with the first setting, the base.

    Args:
        bundle: The settings' bundle.
        settings: The base, and settings that are compared with it.
        available: Bytes that the processes may use. Default: `available_bytes`.
    """
    most = usable_bytes(available)
    needs = [peak_bytes(bundle, setting) for setting in settings]
    groups, used = [[0]], needs[0]
    for position, need in enumerate(needs[1:], 1):
        full = len(groups[-1]) == MOST_ALIVE or used + need > most
        if full and len(groups[-1]) > 1:
            groups.append([0])
            used = needs[0]
        groups[-1].append(position)
        used += need
    return [tuple(group) for group in groups]


def usable_bytes(available: int | None = None) -> float:
    """Bytes that processes may use together; infinite if unknown.

    Args:
        available: Default: `available_bytes`.
    """
    available = available_bytes() if available is None else available
    return math.inf if available is None else _SHARE * available


def available_bytes(root: str = "") -> int | None:
    """Memory that new processes can use: the machine's, within the limits of the process's cgroup; None if unknown.

    Args:
        root: Folder that contains `/proc` and `/sys`.
    """
    lines = read_text(f"{root}/proc/meminfo").splitlines()
    found = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}
    for folder, version in cgroup_folders("memory", root):
        limit, usage = (read_text(f"{folder}/{name}").strip() for name in names[version])
        if limit.isdecimal() and usage.isdecimal():
            found.append(max(0, int(limit) - int(usage)))
    return min(found, default=None)


def peak_bytes(bundle: Bundle, setting: Setting) -> int:
    """Estimated peak of a process."""
    manifest = bundle.manifest
    of_artifact = [artifact.files for artifact in manifest.artifacts if artifact.name == setting.selected.artifact]
    files = manifest.source.weights if setting.is_reference or not of_artifact else of_artifact[0]
    return _PROCESS_BYTES + _COPIES * sum(file.size_bytes for file in files)
