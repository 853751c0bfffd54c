"""The temporary folder of a server, and what a killed one leaves."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vitdeploy.files.polling import poll
from vitdeploy.serving.server import temporary_folder as module
from vitdeploy.serving.server.temporary_folder import server_folder

SECONDS = 60
# A server that is killed, and its child, which has inherited the lock; the child ends with its standard input.
KILLED = """
import os, signal, subprocess, sys
from vitdeploy.serving.server.temporary_folder import server_folder
with server_folder() as folder:
    (folder.path / "models").mkdir()
    subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], pass_fds=[folder.lock])
    print(folder.path, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder of temporary files."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder of shared memory."""
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(module, "_SHARED_MEMORY", memory)
    return memory


def test_the_folder_is_the_users_alone_and_is_removed(place: Path) -> None:
    with server_folder() as first, server_folder() as second:
        assert {*place.iterdir()} == {first.path, second.path}
        assert stat.S_IMODE(first.path.stat().st_mode) == stat.S_IRWXU
    assert not [*place.iterdir()]


def test_a_killed_server_leaves_nothing_once_its_processes_have_ended(place: Path, memory: Path) -> None:
    environ = {**os.environ, "TMPDIR": str(place)}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout is not None
        left = Path(killed.stdout.readline().rstrip())
        assert killed.wait(SECONDS) == -signal.SIGKILL
        region = memory / f"{left.name}-region"
        region.touch()
        with server_folder():
            assert (left / "models").is_dir(), "Triton still answers"
            assert region.exists()

    def is_gone() -> bool | None:
        with server_folder():
            return not left.exists() or None

    assert poll(is_gone, SECONDS)
    assert not region.exists()


def test_what_is_no_folder_of_a_server_stays(place: Path) -> None:
    file, link, other = (place / f"vitdeploy-serve-{name}" for name in ("file0000", "link0000", "other000"))
    file.touch()
    (place / "elsewhere").mkdir()
    link.symlink_to(place / "elsewhere")
    other.mkdir()
    other_user = os.geteuid() + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: other_user)
        with server_folder():
            pass
    assert all(path.exists() for path in (file, link, other))


def test_a_folder_of_such_a_name_with_other_files_stays(place: Path) -> None:
    results = place / "vitdeploy-serve-results_"
    (results / "models").mkdir(parents=True)
    (results / "table.csv").touch()
    with server_folder():
        pass
    assert (results / "table.csv").exists()


@pytest.mark.parametrize("name", ["", "prod", "repository"])
def test_a_folder_of_the_users_own_name_stays_and_so_does_the_memory_of_running_servers(
    place: Path, memory: Path, name: str
) -> None:
    (own := place / f"vitdeploy-serve-{name}" / "models").mkdir(parents=True)
    region = memory / f"vitdeploy-serve-{name}prod0000-region"
    region.touch()
    with server_folder():
        pass
    assert own.exists()
    assert region.exists()
