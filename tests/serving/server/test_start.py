"""How a Triton is found and started, and what is said if it is not."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_bundle
from command_line import run
from PIL import Image
from raising import raises
from served_bundle import SECONDS, command, environ, serve

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import MissingDependencyError, UnavailableError, UsageError
from vitdeploy.files.polling import poll
from vitdeploy.serving.server.bundle_server import BundleServer
from vitdeploy.serving.server.installation import Installation, find_installation
from vitdeploy.serving.server.model_processes import is_running, model_processes
from vitdeploy.serving.server.server_options import ServerOptions


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("start"))


def binary(folder: Path) -> Path:
    """A file in the place of Triton's."""
    (folder / "bin").mkdir(parents=True)
    path = folder / "bin" / "tritonserver"
    path.write_text("#!/bin/sh\necho 'error: creating server: Internal - no room'\nexit 3\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


@pytest.mark.usefixtures("no_path")
def test_an_installation_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("pytriton") is None:
        with raises(MissingDependencyError, what="Triton Inference Server"):
            find_installation()
    place = binary(tmp_path / "triton")
    assert find_installation(place) == find_installation(tmp_path / "triton") == Installation(place)
    with raises(UsageError, what="triton", found=tmp_path):
        find_installation(tmp_path)
    monkeypatch.setenv("PATH", str(place.parent))
    found = find_installation()
    assert found == Installation(place)
    assert found.backends(tmp_path) is None
    (tmp_path / "triton" / "backends").mkdir()
    assert found.backends(tmp_path) == tmp_path / "triton" / "backends"
    assert "LD_LIBRARY_PATH" not in found.environ({})


def test_the_wheel_needs_its_pythons_and_numpy_1(tmp_path: Path) -> None:
    wheel = tmp_path / "pytriton" / "tritonserver"
    installation = find_installation(binary(wheel))
    (wheel / "python_backend_stubs" / "3.99").mkdir(parents=True)
    installation = find_installation(wheel)
    with raises(UnavailableError, what="python", expected=["3.99"]):
        installation.backends(tmp_path / "backends")
    stub = wheel / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    stub.mkdir()
    (stub / "triton_python_backend_stub").touch()
    with raises(UnavailableError, what="numpy", expected="numpy<2"):
        installation.backends(tmp_path / "backends")


@pytest.mark.usefixtures("no_path")
def test_the_command_says_what_to_install(bundle: Bundle) -> None:
    result = run("serve", bundle.path)
    assert (result.code, result.out, "vitdeploy[triton]" in result.err) == (3, "", True)


def test_a_triton_that_does_not_start(bundle: Bundle, tmp_path: Path) -> None:
    result = run("serve", bundle.path, "--triton", binary(tmp_path / "triton"), "--http-port", 0)
    assert (result.code, result.out) == (3, "")
    assert "ended with exit code 3: creating server: Internal - no room" in result.err


def test_tritons_reason_if_the_model_does_not_load(bundle: Bundle) -> None:
    """Of a real one: this ONNX Runtime has no GPU."""
    line = command(bundle.path, "--device", "cuda")
    result = subprocess.run(line, env=environ(), capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (result.returncode, result.stdout) == (3, "")
    assert "DeviceError: this onnxruntime was built without CUDAExecutionProvider" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_options_of_the_page_that_are_refused(bundle: Bundle) -> None:
    for given in (("--page-port", 0), ("--page", "--input", "tensors")):
        result = run("serve", bundle.path, *given)
        assert (result.code, result.out) == (2, "")


def test_a_port_that_is_taken(bundle: Bundle, tmp_path: Path) -> None:
    triton = binary(tmp_path / "triton")
    triton.write_text("#!/bin/sh\necho \"error: Unavailable - Socket '127.0.0.1:8000' already in use \"\nexit 1\n")
    hint = re.compile("--http-port")
    with BundleServer(bundle.path, server=ServerOptions(triton=triton)) as server, raises(UnavailableError, hint=hint):
        server.wait_until_ready()


@pytest.mark.parametrize("option", ["http_port", "grpc_port", "metrics_port"])
def test_a_port_that_is_taken_is_an_error_before_the_start(bundle: Bundle, tmp_path: Path, option: str) -> None:
    """Triton listens for metrics last, when the model may be ready already."""
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        options = ServerOptions(triton=binary(tmp_path / "triton"), **ports | {option: port})
        with raises(UnavailableError, what="port", found=port, hint=re.compile("--http-port")):
            BundleServer(bundle.path, server=options)


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b", ""])
def test_a_host_that_this_machine_does_not_have(bundle: Bundle, tmp_path: Path, host: str) -> None:
    options = ServerOptions(triton=binary(tmp_path / "triton"), host=host)
    with raises(UsageError, what="host", found=host):
        BundleServer(bundle.path, server=options)


@pytest.mark.parametrize(("host", "shown"), [("::1", "[::1]"), ("localhost", "localhost")])
def test_addresses_that_triton_takes_in_its_own_forms(bundle: Bundle, tmp_path: Path, host: str, shown: str) -> None:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as exc:
        pytest.skip(f"this machine does not have {host}: {exc}")
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(image)
    with serve(bundle.path, tmp_path, "--host", host) as served:
        addresses = served.about["addresses"].values()
        assert all(f"{shown}:" in address for address in addresses)
        requests = [{"protocol": protocol, "images": [str(image)]} for protocol in ("http", "grpc")]
        assert all("outputs" in answer for answer in served.ask(requests))
        with urllib.request.urlopen(served.about["addresses"]["metrics"], timeout=SECONDS) as response:
            assert response.status == 200


def test_options_that_are_refused() -> None:
    with raises(UsageError, what="ports", found=(8001, 8001, 8002)):
        ServerOptions(http_port=8001)
    assert ServerOptions(http_port=0, grpc_port=0, metrics_port=0)
    refused: dict[str, Any] = {"http_port": 70_000, "grpc_port": -1, "ready_timeout_s": 0, "watch": 1, "triton": ""}
    for name, value in refused.items():
        with raises(UsageError, what=name, found=value):
            ServerOptions(**{name: value})


def test_processes_of_a_model(tmp_path: Path) -> None:
    script = tmp_path / "pets" / "7" / "model.py"
    script.parent.mkdir(parents=True)
    script.write_text("import time; time.sleep(600)")
    child = subprocess.Popen([sys.executable, script])
    try:
        found = poll(lambda: model_processes(os.getpid(), "pets", 7) or None, SECONDS)  # once it has begun
        assert found == frozenset({child.pid})
        assert not model_processes(os.getpid(), "pets", 8)
        assert is_running(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not is_running(child.pid), "a zombie has ended"
    finally:
        child.kill()
        child.wait()
    assert not is_running(child.pid)
