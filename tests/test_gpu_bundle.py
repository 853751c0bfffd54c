"""A bundle for a GPU machine: slices, damaged slices, and `run.sh`, which installs and runs without a network."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from environments import ROOT, run
from gpu import bundle as gpu_bundle
from gpu import machine as gpu_machine
from gpu import rehearsal as gpu_rehearsal
from gpu import slices as gpu_slices
from gpu import times as gpu_times

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def wheel(folder: Path, name: str, size: int = 100) -> Path:
    """A wheel of one module, whose attribute has `size` characters that do not compress."""
    info, module = f"{name}-1.0.dist-info", f"value = '{os.urandom(size // 2).hex()}'\n"
    files = {
        f"{name}.py": module,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{path},sha256={_digest(text)},{len(text)}" for path, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"])
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "wheels"
    folder.mkdir()
    return [
        wheel(folder, "gpu_test_first", 2000),
        wheel(folder, "gpu_test_second"),
        wheel(folder, "gpu_test_third", 3000),
    ]


def cut(wheels: list[Path], folder: Path, slice_bytes: int) -> gpu_slices.Manifest:
    folder.mkdir()
    manifest = gpu_slices.Manifest(PYTHON, "0" * 40, *gpu_slices.cut(wheels, folder, slice_bytes))
    manifest.write(folder)
    return manifest


@pytest.mark.parametrize("slice_bytes", [700, 1000, 10**6])
def test_joined_wheels_are_the_cut_ones(tmp_path: Path, wheels: list[Path], slice_bytes: int) -> None:
    manifest = cut(wheels, tmp_path / "bundle", slice_bytes)
    sizes = [file.bytes for file in manifest.slices]
    assert sum(sizes) == sum(path.stat().st_size for path in wheels)
    assert set(sizes[:-1]) <= {slice_bytes}
    assert 0 < sizes[-1] <= slice_bytes
    assert gpu_slices.read_manifest(tmp_path / "bundle") == manifest
    joined, problems = gpu_slices.join(manifest, tmp_path / "bundle", tmp_path / "joined")
    assert problems == []
    assert [path.read_bytes() for path in joined] == [path.read_bytes() for path in wheels]


def test_slices_are_the_same_each_time(tmp_path: Path, wheels: list[Path]) -> None:
    assert cut(wheels, tmp_path / "one", 700) == cut(wheels, tmp_path / "other", 700)


def test_the_first_slices_give_the_first_wheels(tmp_path: Path, wheels: list[Path]) -> None:
    manifest = cut(wheels, tmp_path / "bundle", 700)
    needed = manifest.slices_of(manifest.wheels[0])
    for file in manifest.slices:
        if file.name not in needed:
            (tmp_path / "bundle" / file.name).unlink()
    joined, problems = gpu_slices.join(manifest, tmp_path / "bundle", tmp_path / "joined")
    assert [path.name for path in joined] == [wheels[0].name]
    assert problems == [f"{file.name} is missing" for file in manifest.slices if file.name not in needed]


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: bytes([data[0] ^ 1]) + data[1:]])
def test_a_damaged_slice_is_named_and_not_kept(tmp_path: Path, wheels: list[Path], damage) -> None:  # type: ignore[no-untyped-def]
    bundle, store = tmp_path / "bundle", tmp_path / "store"
    store.mkdir()
    manifest = cut(wheels, bundle, 700)
    name = manifest.slices[1].name
    (bundle / name).write_bytes(damage((bundle / name).read_bytes()))
    with pytest.raises(SystemExit, match=f"{name} is damaged"):
        gpu_machine.receive(bundle, store)
    assert {path.name for path in store.glob("slice-*")} == {file.name for file in manifest.slices} - {name}
    (row,) = (row for row in gpu_times.Times(store).rows() if row["step"] == f"check {name}")
    assert row["result"] == "damaged"


def test_a_bundle_for_another_python_is_refused(tmp_path: Path, wheels: list[Path]) -> None:
    gpu_slices.Manifest("3.1", "", *gpu_slices.cut(wheels, tmp_path, 700)).write(tmp_path)
    with pytest.raises(SystemExit, match=rf"Python 3\.1, this is {re.escape(PYTHON)}"):
        gpu_machine.install(tmp_path)


def test_a_wheel_is_needed_where_the_own_version_does_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"click": "8.0", "rich": "15.0.0", "pluggy": "0.1", "onnx_ir": "1.0.0"}

    def version(name: str) -> str:
        if name not in own:
            raise PackageNotFoundError(name)
        return own[name]

    monkeypatch.setattr(gpu_machine, "version", version)
    needed = [name for name in own if gpu_machine.is_needed(Path(f"{name}-1-py3-none-any.whl"))]
    assert needed == ["click", "onnx_ir"]
    assert gpu_machine.is_needed(Path("gpu_test_first-1.0-py3-none-any.whl"))


def test_pins_are_the_tested_versions_and_small_enough() -> None:
    constraints = dict(
        re.findall(r"^([\w.-]+)==(\S+)$", gpu_bundle.CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    )
    tested = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in constraints.items()}
    pins = dict(re.findall(r"^([\w-]+)==(\S+) ", gpu_bundle.PINS.read_text(encoding="utf-8"), re.MULTILINE))
    names = [name for name, *_ in gpu_bundle._LINE.findall(gpu_bundle.NAMES.read_text(encoding="utf-8"))]
    assert list(pins) == names
    assert {name: version for name, version in pins.items() if name != "onnxruntime-gpu"}.items() <= tested.items()


CHECK = """
import json, os, pathlib, sys, time
import gpu_test_first
steps = [{"step": "first", "result": "passed", "seconds": 1.0, "reason": ""}]
pathlib.Path(os.environ["OUT"], "gpu_check.json").write_text(json.dumps({"steps": steps, "arguments": sys.argv[1:]}))
time.sleep(float(sys.argv[-1]))
"""


def project(folder: Path) -> Path:
    """The archive of a project with the real helpers of `run.sh`, and a check that imports the first wheel."""
    benchmarks = folder / "project" / "benchmarks"
    (benchmarks / "gpu").mkdir(parents=True)
    for name in ("gpu/__init__.py", "gpu/machine.py", "gpu/slices.py", "gpu/times.py", "markdown_table.py"):
        shutil.copy(ROOT / "benchmarks" / name, benchmarks / name)
    (benchmarks / "gpu" / "check.py").write_text(CHECK)
    shutil.copy(ROOT / "pyproject.toml", folder / "project")
    archive = folder / "project.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder / "project", arcname=".")
    return archive


def run_sh(bundle: Path, *options: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHON": sys.executable, "STORE": str(bundle.parent / "store"),
               "OUT": str(bundle.parent / "out"), "PYTHONPATH": str(bundle.parent / "machine")}  # fmt: skip
    command = ["bash", str(bundle / "run.sh"), *options]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_run_sh_receives_slice_by_slice_and_runs_with_the_first(tmp_path: Path, wheels: list[Path]) -> None:
    manifest = cut(wheels, tmp_path / "prepared", 2500)
    bundle = tmp_path / "bundle"
    for number, file in enumerate(manifest.slices[:2], 1):  # the last one is not sent
        bundle.mkdir()
        shutil.copy(gpu_bundle.RUN, bundle)
        shutil.copy(project(tmp_path / f"sent-{number}"), bundle)
        for name in (gpu_slices.MANIFEST, file.name):
            shutil.copy(tmp_path / "prepared" / name, bundle)
        if number == 1:
            with run_sh(bundle, "receive") as process:
                said, _ = process.communicate()
            assert process.returncode == 0, said
            shutil.rmtree(bundle)
    libraries = tmp_path / "machine" / "nvidia" / "cu13" / "lib"  # as a machine's torch has them
    libraries.mkdir(parents=True)
    with run_sh(bundle, "--seconds", "60", "--other", "0") as process:
        said, _ = process.communicate()
    assert process.returncode == 0, said
    assert f"{manifest.slices[2].name} is missing" in said
    assert (tmp_path / "store" / "site" / "nvidia" / "cu13" / "lib").samefile(libraries)  # beside ONNX Runtime
    out = tmp_path / "out"
    _, seconds, *others = json.loads((out / "gpu_check.json").read_text())["arguments"]
    assert 40 < float(seconds) <= 60
    assert others == ["--other", "0"]
    document = json.loads((out / "gpu_times.json").read_text())
    slices = [file.name for file in manifest.slices[:2]]
    steps = [step for name in slices for step in (f"transfer {name}", f"check {name}")]
    assert [row["step"] for row in document["rows"]] == [*steps, "join", "install", "check: first"]
    assert {row["result"] for row in document["rows"]} == {"passed"}
    assert gpu_times.table(document) in said


def test_run_sh_leaves_its_times_where_it_is_ended(tmp_path: Path, wheels: list[Path]) -> None:
    cut(wheels, tmp_path / "bundle", 10**6)
    shutil.copy(gpu_bundle.RUN, tmp_path / "bundle")
    shutil.copy(project(tmp_path / "sent"), tmp_path / "bundle")
    check = tmp_path / "out" / "gpu_check.json"
    with run_sh(tmp_path / "bundle", "60") as process:
        end = time.monotonic() + 30
        while not check.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, said
    rows = json.loads((tmp_path / "out" / "gpu_times.json").read_text())["rows"]
    assert [row["step"] for row in rows[-2:]] == ["install", "check: first"]


def test_a_slice_leaves_room_for_the_repository() -> None:
    tree = gpu_bundle.tree_bytes()
    assert 10**6 < tree < gpu_bundle.CALL_BYTES
    assert gpu_bundle.slice_mb(tree) * 10**6 + tree <= gpu_bundle.CALL_BYTES
    assert gpu_bundle.slice_mb(0) == 58
    with pytest.raises(SystemExit, match=r"66\.9 MB"):
        gpu_bundle.slice_mb(66_900_000)


def test_a_hash_that_differs_ends_the_download(tmp_path: Path, wheels: list[Path]) -> None:
    pins = "gpu-test-first==1.0 \\\n    --hash=sha256:" + "0" * 64 + "\n"
    environ = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels[0].parent)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit, match=r"DO NOT MATCH THE HASHES[\s\S]*gpu-test-first"):
            gpu_bundle.download(pins, PYTHON, tmp_path / "downloads")
        digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
        assert gpu_bundle.download(pins.replace("0" * 64, digest), PYTHON, tmp_path / "downloads") == [
            tmp_path / "downloads" / wheels[0].name
        ]


def test_no_network_ends_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}.items():
        monkeypatch.setenv(name, value)
    pins = "gpu-test-first==1.0 \\\n    --hash=sha256:" + "0" * 64 + "\n"
    with pytest.raises(SystemExit, match=r"gpu-test-first==1\.0[\s\S]*needs a package index"):
        gpu_bundle.download(pins, PYTHON, tmp_path / "downloads")


def test_the_rehearsal_keeps_to_the_limits_of_a_call(tmp_path: Path) -> None:
    limits = gpu_rehearsal.LIMITS
    names = [f"{number}.json" for number in range(limits.files)]
    for name in names:
        (tmp_path / name).write_text("{}")
    assert gpu_rehearsal.results(tmp_path) == names
    (tmp_path / "one-more.log").touch()
    with pytest.raises(SystemExit, match=f"result files: {limits.files + 1}"):
        gpu_rehearsal.results(tmp_path)
    (tmp_path / "one-more.log").unlink()
    with (tmp_path / names[0]).open("wb") as file:
        file.truncate(limits.file_bytes + 1)
    with pytest.raises(SystemExit, match=r"bytes of 0\.json"):
        gpu_rehearsal.results(tmp_path)
    assert gpu_rehearsal.sent_bytes(tmp_path, [names[0]], []) == limits.file_bytes + 1
    with (tmp_path / names[1]).open("wb") as file:
        file.truncate(limits.sent_bytes - limits.file_bytes)
    with pytest.raises(SystemExit, match="bytes sent"):
        gpu_rehearsal.sent_bytes(tmp_path, [names[0]], [names[1]])


def test_what_a_gpu_machine_imports_does_not_draw_charts() -> None:
    run(sys.executable, "-c", "import sys, common; sys.exit('matplotlib' in sys.modules)",
        PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}")  # fmt: skip


def test_run_sh_is_sound() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck")
    subprocess.run(["shellcheck", gpu_bundle.RUN], check=True)
