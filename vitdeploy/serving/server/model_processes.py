"""The processes of a model in Triton's Python backend, as Linux lists them.

Triton neither replaces one that died nor calls its model unready: every request is then an error.
"""

from __future__ import annotations

from pathlib import Path

_ENDED = "ZX"  # states of proc_pid_stat(5)


def model_processes(parent: int, name: str, version: int) -> frozenset[int]:
    """Children of Triton that run a version of a model; none on another system."""
    mark = f"/{name}/{version}/model.py".encode()
    return frozenset(child for child in children(parent) if mark in _read(child, "cmdline"))


def is_running(process: int) -> bool:
    """True unless the process has ended; a zombie has."""
    state = _read(process, "stat").rpartition(b") ")[2][:1].decode()
    return bool(state) and state not in _ENDED


def children(process: int) -> list[int]:
    """Processes that a process has started and that have not been waited for; none on another system."""
    lists = (_read(process, f"task/{task.name}/children") for task in _tasks(process))
    return [int(child) for listed in lists for child in listed.split()]


def _tasks(process: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{process}/task").iterdir())
    except OSError:  # it has ended, or there is no /proc
        return []


def _read(process: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{process}/{name}").read_bytes()
    except OSError:
        return b""
