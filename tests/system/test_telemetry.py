"""No library that vitdeploy calls reports its use: not by a file, and not over the network."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from environments import ROOT

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.system import telemetry

# ONNX Runtime 1.32 writes its device id and event store while it is imported, and sends its first event 9 s later.
FIRST_EVENT_SECONDS = 9
PREDICT = """
import sys, time, vitdeploy.runtimes.onnxrt.runtime
imported = time.monotonic()
from vitdeploy.assets import default_checkpoint, held_out_images
if sys.argv[2:]:
    vitdeploy.export(default_checkpoint(), output=sys.argv[2])
images = sorted(path for path in held_out_images().rglob("*") if path.is_file())[:1]
for backend in ("openvino", "onnxruntime"):
    with vitdeploy.load(sys.argv[1], backend=backend) as predictor:
        predictor.predict(images)
"""
WAIT = f"\ntime.sleep(max(0, imported + {FIRST_EVENT_SECONDS + 3} - time.monotonic()))"
linux = pytest.mark.skipif(sys.platform != "linux", reason="the folders and the trace of calls are Linux's")


def plain_environ(folder: Path, **more: str) -> dict[str, str]:
    """A user's environment below `folder`: nothing in it turns a report off, as CI=1 would, too."""
    for name in ("home", "cache", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    places = {"HOME": "home", "XDG_CACHE_HOME": "cache", "TMPDIR": "scratch"}
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return kept | {variable: str(folder / name) for variable, name in places.items()} | more


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def run(program: str, *arguments: object, env: dict[str, str], before: tuple[str, ...] = ()) -> None:
    command = [*before, sys.executable, "-c", program, *map(str, arguments)]
    process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr


@contextlib.contextmanager
def proxy() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that answers nobody: its address, and what it was asked."""
    asked: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # closed
                return
            with connection:
                asked.append(connection.recv(4096))

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


class Reports(NamedTuple):
    """What a process left that exported, loaded and predicted: files, requests to its proxy, connections if traced."""

    files: list[str]
    asked: list[bytes]
    connections: list[str] | None


@pytest.fixture(scope="module")
def reports(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """The libraries' HTTP clients, curl in ONNX Runtime included, take the proxy, which sees what they want to send."""
    folder = tmp_path_factory.mktemp("reports")
    trace, strace = folder / "trace", shutil.which("strace")
    if strace and subprocess.run([strace, "-f", "--seccomp-bpf", "true"], capture_output=True, check=False).returncode:
        strace = None
    calls = "trace=connect,sendto,sendmsg,sendmmsg"
    before = (strace, "-f", "--seccomp-bpf", "-e", calls, "-o", str(trace)) if strace else ()
    with proxy() as (url, asked):
        schemes = [f"{scheme}_proxy" for scheme in ("http", "https", "all")]
        proxies = dict.fromkeys([*schemes, *map(str.upper, schemes)], url)
        environ = plain_environ(folder / "user", **proxies)
        run(PREDICT + WAIT, digits.path, folder / "bundle", env=environ, before=before)
    connections = re.findall(r".*AF_INET.*", trace.read_text(encoding="utf-8")) if strace else None
    return Reports(files_below(folder / "user"), asked, connections)


@linux
def test_export_load_and_predict_report_nothing(reports: Reports) -> None:
    assert (reports.files, reports.asked) == ([], [])


@linux
def test_they_open_no_socket(reports: Reports) -> None:
    """As the kernel sees it, whatever the library does; the look-up of a name is a connection as well."""
    if reports.connections is None:
        pytest.skip("needs strace, and leave to trace a process of one's own")
    assert reports.connections == []


@linux
def test_the_users_setting_stays(digits: Bundle, tmp_path: Path) -> None:
    """And what a report leaves is what the tests above look for."""
    onnxruntime = pytest.importorskip("onnxruntime")
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 32):
        pytest.skip("needs an ONNX Runtime that reports its use on Linux: 1.32")
    run(PREDICT, digits.path, env=plain_environ(tmp_path, ORT_DISABLE_TELEMETRY="0"))
    assert [name for name in files_below(tmp_path) if name.endswith("/deviceid")]


@linux
def test_openvino_alone_reports_its_import(tmp_path: Path) -> None:
    """Into the home folder and over the network: what the tests above look for."""
    pytest.importorskip("openvino_telemetry")
    with proxy() as (url, asked):
        run("import openvino", env=plain_environ(tmp_path, https_proxy=url))
    assert files_below(tmp_path)
    assert asked


def test_an_application_can_use_what_was_hidden_from_openvino() -> None:
    for module in ("openvino_telemetry", "vitdeploy.runtimes.ov.runtime", "openvino.tools.ovc"):
        pytest.importorskip(module)
    reporter = sys.modules["openvino.tools.ovc.telemetry_utils"].tm
    assert reporter.__name__ == "openvino.tools.ovc.telemetry_stub"
    assert sys.modules["openvino_telemetry"].Telemetry is not reporter.Telemetry


@pytest.mark.parametrize("package", [None, "openvino", "openvino_telemetry"])
def test_the_reporter_is_hidden_while_openvino_is_imported(
    monkeypatch: pytest.MonkeyPatch, package: str | None
) -> None:
    """Unless the application imported openvino before."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("openvino", "openvino_telemetry"):
            monkeypatch.delitem(sys.modules, name)
    parts = {name: ModuleType(name) for name in ((package, f"{package}.part") if package else ())}
    for name, module in parts.items():
        monkeypatch.setitem(sys.modules, name, module)
    with contextlib.suppress(KeyError), telemetry.without_reporter():
        hidden = "openvino_telemetry" in sys.modules and sys.modules["openvino_telemetry"] is None
        assert hidden == (package != "openvino")
        assert "openvino_telemetry.part" not in sys.modules
        raise KeyError
    left = {name: module for name, module in sys.modules.items() if name.startswith("openvino")}
    assert left == parts


def test_every_module_imports_openvino_without_its_reporter() -> None:
    plain = []
    texts = {
        path: path.read_text(encoding="utf-8")
        for room in ("vitdeploy", "exporters", "runtimes")
        for path in (ROOT / room).rglob("*.py")
    }
    for path, text in texts.items():
        tree = ast.parse(text if "openvino" in text else "")
        guarded = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.With) and "without_reporter()" in [ast.unparse(item) for item in node.items]
            for inner in ast.walk(node)
        }
        plain += [
            (path.name, node.lineno)
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom) and node not in guarded and "openvino" in imported(node)
        ]
    assert plain == []


def imported(node: ast.Import | ast.ImportFrom) -> set[str]:
    """Top-level packages that a statement imports."""
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    return {name.partition(".")[0] for name in names}


@linux
def test_the_exporter_imports_onnxruntime_after_it(tmp_path: Path) -> None:
    """As the runtime does, which the process of `reports` imports first."""
    code = "import sys, vitdeploy.exporters.graph.onnx_graph; assert 'onnxruntime' in sys.modules"
    run(code, env=plain_environ(tmp_path))
    assert not files_below(tmp_path)


def test_benchmarks_import_onnxruntime_in_functions_alone() -> None:
    """Where vitdeploy was imported before; at the top of a module, the sorted imports put it first."""
    at_the_top = {
        path.name
        for path in (ROOT / "benchmarks").glob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom) and imported(node) & {"onnxruntime", "openvino", "nncf"}
    }
    assert not at_the_top


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No variable is set, and none stays set after the test."""
    for name in telemetry.VARIABLES:
        monkeypatch.setenv(name, "")  # so that what is set below is undone
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    return monkeypatch


@pytest.mark.parametrize("named", [False, True])
def test_every_variable_is_set_unless_the_user_did(clean: pytest.MonkeyPatch, named: bool) -> None:
    """Also where onnxruntime is only a name, or is being imported."""
    if named:
        clean.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    clean.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    telemetry.disable()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "0"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.parametrize(("chosen", "expected"), [(None, ["off"]), ("0", []), ("1", [])])
def test_onnxruntime_that_the_application_imported(
    clean: pytest.MonkeyPatch, chosen: str | None, expected: list[str]
) -> None:
    events: list[str] = []
    module: Any = ModuleType("onnxruntime")
    module.disable_telemetry_events = lambda: events.append("off")
    clean.setitem(sys.modules, "onnxruntime", module)
    if chosen is not None:
        clean.setenv("ORT_DISABLE_TELEMETRY", chosen)
    telemetry.disable()
    assert events == expected
