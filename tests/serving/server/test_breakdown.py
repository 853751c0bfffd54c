"""`BundleServer.run` when its Triton breaks down, with a small program in the place of Triton's."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
from bundles import write_bundle
from raising import raises

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.errors import OutputError, UnavailableError, VitDeployError
from vitdeploy.serving.server import bundle_server
from vitdeploy.serving.server.bundle_server import BundleServer
from vitdeploy.serving.server.server_options import ServerOptions
from vitdeploy.system.processor import processor_identity
from vitdeploy.tuning.record import record_choice
from vitdeploy.tuning.variant import Variant

# Every model is ready once its process, which lives for some seconds, has begun; --id is the server's name.
PROGRAM = f"""#!{sys.executable}
import http.server, json, subprocess, sys
print('E1130 23:33:54.3 1 server.cc:241] "An error that is told at every start."', flush=True)
options = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
begun = set()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/ready") and self.path not in begun:
            begun.add(self.path)
            _, _, _, name, _, version, _ = self.path.split("/")
            path = options["--model-repository"] + "/" + name + "/" + version + "/model.py"
            wait = "import sys, time; time.sleep(float(sys.argv[1]))"
            process = subprocess.Popen([sys.executable, "-c", wait, SECONDS, path])
            if SECONDS == "0":
                process.wait()
        content = json.dumps({{"name": options["--id"]}} if self.path == "/v2" else []).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
    do_POST = do_GET
http.server.HTTPServer(("127.0.0.1", int(options["--http-port"])), Handler).serve_forever()
"""
MOUNT = Path("/dev/shm")
ENDED, STARTED = f"Triton ended by {signal.SIGFPE.name}", "Triton was started again, and bundle is served"
NAME = "bundle"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("breakdown"))


def server_of(bundle: Bundle, folder: Path, *, seconds: int = 600, repository: Path | None = None) -> BundleServer:
    """A server whose model's process lives for some seconds."""
    triton = folder / "tritonserver"
    triton.write_text(PROGRAM.replace("SECONDS", repr(str(seconds))))
    triton.chmod(0o755)
    options = ServerOptions(triton=triton, http_port=0, grpc_port=0, metrics_port=0)
    return BundleServer(bundle.path, server=options, name=NAME, repository=repository)


@pytest.fixture
def server(bundle: Bundle, tmp_path: Path) -> BundleServer:
    return server_of(bundle, tmp_path)


def kill(server: BundleServer) -> None:
    os.kill(server.process.pid, signal.SIGFPE)


def run(server: BundleServer, on_restart: Callable[[int], None]) -> list[str]:
    """What is reported after a first breakdown right after the start; `on_restart` gets the number of each restart."""
    told: list[str] = []

    def report(event: str | VitDeployError) -> None:
        told.append(str(event))
        if event == STARTED:
            on_restart(told.count(STARTED))

    assert server.wait_until_ready()
    kill(server)
    server.run(report)
    return told


def test_one_that_breaks_down_soon_after_its_first_start_is_started_again(
    server: BundleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_server, "_STEADY_S", 600.0)
    with server:
        first = server.process.pid
        assert run(server, lambda number: server.stop()) == [ENDED, STARTED]
        assert server.process.pid != first
        assert server.process.exit_code is None


def test_one_that_breaks_down_soon_after_a_restart_is_an_error(
    server: BundleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_server, "_STEADY_S", 600.0)
    with server, raises(UnavailableError, what="triton", found=-signal.SIGFPE):
        run(server, lambda number: kill(server))


def test_one_that_was_steady_after_a_restart_is_started_again(
    server: BundleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_server, "_STEADY_S", 0.0)
    with server:
        told = run(server, lambda number: kill(server) if number == 1 else server.stop())
    assert told == 2 * [ENDED, STARTED]


def test_no_restart_is_told_of_if_it_is_stopped_meanwhile(server: BundleServer) -> None:
    told: list[str] = []

    def report(event: str | VitDeployError) -> None:
        told.append(str(event))
        server.stop()

    with server:
        assert server.wait_until_ready()
        kill(server)
        server.run(report)
    assert told == [ENDED]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are listed by Linux's /proc")
def test_a_process_of_the_model_that_ended_before_it_was_listed(bundle: Bundle, tmp_path: Path) -> None:
    told: list[str] = []
    with server_of(bundle, tmp_path, seconds=0) as server:
        assert server.wait_until_ready()
        with raises(UnavailableError, what="model", expected=1, found=0):
            server.run(lambda event: told.append(str(event)))
    assert told[1:] == [STARTED], "that of the new Triton ended, too"


@pytest.mark.skipif(not os.path.ismount(MOUNT), reason=f"needs {MOUNT}")
def test_a_repository_that_is_a_mount_point(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To which nothing beside it can be renamed."""
    monkeypatch.setattr(f"{__name__}.NAME", f"vitdeploy-{secrets.token_hex(8)}")
    try:
        with server_of(bundle, tmp_path, repository=MOUNT) as server:
            assert server.wait_until_ready()
            monkeypatch.setattr(server, "_content", None)
            assert server.reload()
            assert [path.name for path in sorted((MOUNT / NAME).iterdir())] == ["2", "config.pbtxt"]
    finally:
        shutil.rmtree(MOUNT / NAME, ignore_errors=True)
    assert not list(MOUNT.glob(".*vitdeploy-next"))


def test_a_version_that_cannot_be_written_leaves_the_one_before(
    server: BundleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def replace_folder(*_: object) -> None:
        raise full

    monkeypatch.setattr(bundle_server, "replace_folder", replace_folder)
    monkeypatch.setattr(server, "_content", None)
    with server:
        assert server.wait_until_ready()
        with raises(OutputError, what="repository", found=full.strerror):
            server.reload()
        assert server.version == 1


def test_a_new_tuned_choice_of_the_same_artifact_is_served(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path)
    with server_of(bundle, tmp_path) as server:
        assert server.wait_until_ready()
        assert not server.reload()
        machine = processor_identity() | {"engine": f"onnxruntime {onnxruntime.__version__}"}
        record_choice(
            bundle, Variant.of(bundle, bundle.artifact("onnx", "fp32")), (), backend="onnxruntime",
            options={"intra_op_threads": 1}, batch_size=2, machine=machine, evidence={},
        )  # fmt: skip
        assert server.reload()
        assert not server.reload()
        assert "intra_op_threads" in (server.model.path / "2" / "bundle" / MANIFEST).read_text()
