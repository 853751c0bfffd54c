"""The cgroups of this process, which limit its CPU time and memory.

Files are read as the Linux kernel documents them: proc_pid_cgroup(5), proc_pid_mountinfo(5), cgroup_namespaces(7),
Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/. A missing or malformed file means no limit.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath


def cgroup_folders(controller: str, root: str = "") -> tuple[tuple[str, int], ...]:
    """Folders of the process's cgroup and its ancestors, with the cgroup version of each (1 or 2).

    Args:
        controller: A controller of version 1, such as "cpu" or "memory"; version 2 has one hierarchy for all.
        root: Folder that contains `/proc` and `/sys`.
    """
    return _folders(controller, root, read_text(f"{root}/proc/self/cgroup"))


@functools.lru_cache(maxsize=16)
def _folders(controller: str, root: str, memberships: str) -> tuple[tuple[str, int], ...]:
    mounts = list(_mounts(controller, read_text(f"{root}/proc/self/mountinfo")))
    folders = []
    for line in memberships.splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        version = 1 if controller in controllers.split(",") else 2 if (number, controllers) == ("0", "") else None
        if version is None or not path:
            continue
        places = [(top, point) for of, top, point in mounts if of == version]
        folders += [(f"{root}{folder}", version) for folder in _folders_up(places, path)]
    return tuple(dict.fromkeys(folders))


def _folders_up(mounts: Iterable[tuple[str, str]], path: str) -> Iterator[str]:
    """Folders of a cgroup and its ancestors, in every mount (top cgroup, folder) that has them."""
    cgroup = PurePosixPath(path)
    if cgroup.parts[1:2] == ("..",):  # outside its namespace, so the mounts show others
        return
    below = [(point, cgroup.relative_to(top)) for top, point in mounts if cgroup.is_relative_to(top)]
    # Else the mount is from outside the namespace, and its top, "/..", is above the process.
    for point, child in below or [(point, PurePosixPath()) for _, point in mounts]:
        for folder in (child, *child.parents):
            yield str(PurePosixPath(point, folder))


def _mounts(controller: str, text: str) -> Iterator[tuple[int, str, str]]:
    """Version, top cgroup and folder of every mount with the controller."""
    for line in text.splitlines():
        place, _, kind = line.partition(" - ")
        fields, (filesystem, _, options) = place.split(" "), (*kind.split(" "), "", "", "")[:3]
        version = {"cgroup2": 2, "cgroup": 1 if controller in options.split(",") else None}.get(filesystem)
        if version is not None and len(fields) > 4:
            # In paths, blanks and backslashes are octal: "\\040".
            top, point = (re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path) for path in fields[3:5])
            yield version, top, point


def read_text(path: str) -> str:
    """A file's text; "" if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123  (half the time)
            return file.read()
    except (OSError, ValueError):
        return ""
