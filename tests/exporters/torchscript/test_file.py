"""Writing TorchScript where the disk is full: torch's own writer would end the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vitdeploy.exporters.torchscript import file as torchscript_file
from vitdeploy.exporters.torchscript.file import write_torchscript

_VALUES = 100_000  # float32
# Of 400 kB; `limit` is what a file may have, or 0 for no limit.
_WRITE = """
import resource, sys
from pathlib import Path
import torch
from vitdeploy.exporters.torchscript.file import write_torchscript
path, limit = Path(sys.argv[1]), int(sys.argv[2])
constant = torch.rand(100_000)
traced = torch.jit.trace(lambda x: x * constant, torch.ones(1))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    write_torchscript(traced, path, {})
except OSError as exc:
    print("OSError", exc)
"""


def _write(path: Path, limit: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _WRITE, str(path), str(limit)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.name == "nt", reason="there are no such limits")
@pytest.mark.parametrize("limit", [10_000, 400_100])
def test_a_limit_of_the_process_is_an_error(tmp_path: Path, limit: int) -> None:
    done = _write(tmp_path / "model.pt", limit)
    assert (done.returncode, done.stdout.startswith("OSError")) == (0, True), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="mounting a small filesystem needs root")
def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        done = _write(tmp_path / "model.pt")
        assert (done.returncode, done.stdout.startswith("OSError")) == (0, True), done.stderr
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_both_ways_through_memory_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constant = torch.arange(_VALUES, dtype=torch.float32)
    traced = torch.jit.trace(lambda x: x * constant, torch.ones(1))  # type: ignore[no-untyped-call]
    contents = []
    for in_file in (True, False):
        monkeypatch.setattr(torchscript_file, "_has_memory_files", lambda in_file=in_file: in_file)
        if in_file and not hasattr(os, "memfd_create"):
            continue
        write_torchscript(traced, tmp_path / str(in_file) / "model.pt", {"extra": b"1"})
        contents.append((tmp_path / str(in_file) / "model.pt").read_bytes())
    assert len(set(contents)) == 1
    extra: dict[str, str | bytes] = {"extra": ""}
    loaded = torch.jit.load(tmp_path / "False" / "model.pt", _extra_files=extra)  # type: ignore[no-untyped-call]
    assert torch.equal(loaded(torch.full((1,), 2.0)), 2 * constant)
    assert extra == {"extra": b"1"}
