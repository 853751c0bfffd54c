"""Rehearse a run on a GPU machine, on this one without a GPU: a fresh clone, a bundle, slices one by one, `run.sh`.

A bare machine is played by a new virtual environment with the packages that such a machine has, an environment without
variables and a namespace without a network. Each call copies the tracked files and one slice, and must keep to LIMITS.
There is no CPU build of torch for 3.12 on the index: that machine has none, and shows the installation alone.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common import document, parser, save

from gpu.bundle import contents
from gpu.slices import MANIFEST, read_manifest
from gpu.times import gpu_rehearsal

ROOT = Path(__file__).parents[2]
COMMON = ("numpy", "pillow", "onnx", "onnxruntime", "cuda-bindings")
PACKAGES = {"3.12": COMMON, "3.11": (*COMMON, "torch", "transformers")}  # of the machine itself
CARRIED = ("run.sh", MANIFEST)  # with each slice
NETWORK = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"  # a documentation address of RFC 5737
# Scripts of the steps, tried on the CPU of the machine that has torch: its packages must do for all of their code.
ON_CPU = {
    "agreement": "--models embedded --bundles {bundles}",
    "tests": "",
    "latency": "--models vit-tiny-patch16-32 --precisions fp32 --batch-sizes 1 2 --matrix-size 64 "
    "--seconds-a-figure 0.01 --bundles {bundles}",
}
VERSIONS = """
import json, onnxruntime, sys, tensorrt_rtx
print(json.dumps({"python": sys.version.split()[0], "tensorrt_rtx": tensorrt_rtx.__version__,
                  "onnxruntime": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}))
"""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a call: bytes and paths that travel, characters and seconds of a command, files that come back."""

    sent_bytes: int = 64 * 2**20
    carried_paths: int = 8
    command_characters: int = 2000
    command_seconds: int = 600
    files: int = 8
    file_bytes: int = 16 * 2**20
    folders: int = 2


LIMITS = Limits()


class Machine:
    """A bare machine.

    Args:
        folder: Its files: python, repository, store and home.
        interpreter: Python that it is made with.
        log: File that gets each command and its output.
    """

    def __init__(self, folder: Path, interpreter: str, log: Path) -> None:
        self._folder, self._log, self.longest_seconds, self.largest_bytes = folder, log, 0.0, 0
        self.python, self.repository, self.out = folder / "python", folder / "repository", folder / "out"
        for path in (folder / "home", self.repository, self.out):
            path.mkdir(parents=True)
        self.version = _output(interpreter, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
        _output(interpreter, "-m", "venv", str(self.python))
        pip = (str(self.python / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install")
        _output(*pip, "-c", str(ROOT / "constraints.txt"), *PACKAGES[self.version])

    def call(self, clone: Path, carried: Iterable[str], command: str) -> int:
        """Copy the tracked files of `clone` and the carried ones, and run a command; its exit code."""
        names = [f"gpu-bundle/{name}" for name in carried]
        tracked = _output("git", "-C", str(clone), "ls-files", "-z").rstrip("\0").split("\0")
        _within("characters of the command", len(command), LIMITS.command_characters)
        self.largest_bytes = max(self.largest_bytes, sent_bytes(clone, tracked, names))
        for name in [*tracked, *names]:
            target = self.repository / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.is_symlink():
                shutil.copy(clone / name, target, follow_symlinks=False)
        shutil.rmtree(self.out)
        self.out.mkdir()
        start = time.monotonic()
        code = self._run(f"timeout --kill-after=1 {LIMITS.command_seconds} {command}")
        self.longest_seconds = max(self.longest_seconds, time.monotonic() - start)
        return code

    def try_on_cpu(self, script: str, arguments: str) -> dict[str, Any]:
        """Run the script of a step on the CPU; its time, and how many of its rows passed, were skipped or failed."""
        results = self._folder / f"{script}.json"
        words = arguments.format(bundles=self._folder / "bundles")
        start = time.monotonic()
        command = f"timeout 300 python3 -m gpu.{script} --device cpu --json {results} {words}"
        # Beside other work, two threads of torch wait for each other longer than they compute.
        self._run(f"OMP_NUM_THREADS=1 PYTHONPATH=$PWD:$PWD/benchmarks:$STORE/site {command} 2>&1 | tail -n 15")
        seconds = round(time.monotonic() - start, 1)
        if not results.exists():
            raise SystemExit(f"{script} left no results on the CPU of the machine")
        attempts = json.loads(results.read_text(encoding="utf-8"))["attempts"].values()
        return {"step": script, "seconds": seconds, **collections.Counter(attempt["result"] for attempt in attempts)}

    def ask(self, code: str) -> tuple[int, str]:
        """Exit code of a Python program there, with the bundle's packages, and the last line of its output."""
        environ = {**self._environ(), "PYTHONPATH": str(self._folder / "store" / "site")}
        command = ["unshare", "--map-root-user", "--net", "python3", "-c", code]
        result = subprocess.run(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return result.returncode, result.stdout.decode(errors="replace").strip().splitlines()[-1]

    def _environ(self) -> dict[str, str]:
        return {
            "PATH": f"{self.python / 'bin'}:/usr/bin:/bin",
            "HOME": str(self._folder / "home"),
            "STORE": str(self._folder / "store"),
            "OUT": str(self.out),
        }

    def _run(self, command: str) -> int:
        with self._log.open("ab") as log:
            log.write(f"\n[Python {self.version}] $ {command}\n".encode())
            log.flush()
            words = ["unshare", "--map-root-user", "--net", "bash", "-c", command]
            options: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT, "check": False}
            return subprocess.run(words, cwd=self.repository, env=self._environ(), **options).returncode


def rehearse(clone: Path, machine: Machine) -> dict[str, Any]:
    """Prepare a bundle in `clone`, send it slice by slice, and run it."""
    start = time.monotonic()
    _output(sys.executable, "-m", "gpu.bundle", "--python", machine.version, path=str(clone / "benchmarks"))
    prepared = time.monotonic() - start
    manifest = read_manifest(clone / "gpu-bundle")
    slices = [file.name for file in manifest.slices]
    code, reason = machine.ask(NETWORK)
    if code == 0:
        raise SystemExit("the machine has a network, and the rehearsal would prove nothing")
    for name in slices[:-1]:
        if machine.call(clone, (*CARRIED, name), "bash gpu-bundle/run.sh receive"):
            raise SystemExit(f"{name} was not received")
    code = machine.call(clone, (*CARRIED, slices[-1]), "bash gpu-bundle/run.sh --seconds 570")
    files = results(machine.out)
    check = json.loads((machine.out / "gpu_check.json").read_text(encoding="utf-8"))
    for step in check["steps"]:
        module = re.search(r"No module named '(\w+)", step["reason"])
        if module and module[1] not in check["missing"]:
            raise SystemExit(f"step {step['step']} needs {module[1]}, which neither the machine nor the bundle has")
    tried = [machine.try_on_cpu(*script) for script in ON_CPU.items() if "torch" not in check["missing"]]
    imported, versions = machine.ask(VERSIONS)
    if imported:
        raise SystemExit(f"the installed packages cannot be imported: {versions}")
    return {
        "python": machine.version,
        "versions": json.loads(versions),
        "network": reason,
        "prepare_seconds": round(prepared, 1),
        "largest_transfer_bytes": machine.largest_bytes,
        "longest_command_seconds": round(machine.longest_seconds, 1),
        "exit_code": code,
        "files": files,
        "missing": check["missing"],
        "models": [{"model": name, **attempt} for name, attempt in check["models"].items()],
        "on_cpu": tried,
        "wheels": contents(manifest),
        **json.loads((machine.out / "gpu_times.json").read_text(encoding="utf-8")),
    }


def sent_bytes(clone: Path, tracked: Sequence[str], carried: Sequence[str]) -> int:
    """Size of what a call sends, if it may."""
    _within("carried paths", len(carried), LIMITS.carried_paths)
    size = sum((clone / name).lstat().st_size for name in (*tracked, *carried))
    _within("bytes sent", size, LIMITS.sent_bytes)
    return size


def results(out: Path) -> list[str]:
    """Names of the files under `out`, if all of them can be sent back."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    _within("result files", len(files), LIMITS.files)
    for path in files:
        name = path.relative_to(out)
        _within(f"bytes of {name}", path.stat().st_size, LIMITS.file_bytes)
        _within(f"folders above {name}", len(name.parts) - 1, LIMITS.folders)
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", str(name), re.ASCII):
            raise SystemExit(f"the name {name} cannot be sent back")
    return [str(path.relative_to(out)) for path in files]


def _within(what: str, found: float, limit: float) -> None:
    if found > limit:
        raise SystemExit(f"{what}: {found}, at most {limit} allowed")


def _output(*command: str, path: str = "") -> str:
    environ = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    if result.returncode:
        raise SystemExit(f"exit code {result.returncode} from: {' '.join(command)}\n{result.stderr[-2000:]}")
    return result.stdout.strip()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--interpreters", nargs="+", type=Path, default=[Path("python3.12"), Path("python3.11")],
                         help="interpreters that the machines are made with")  # fmt: skip
    options.add_argument("--log", type=Path, help="write the machines' commands and their output")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpu-rehearsal-") as name:
        folder = Path(name)
        _output("git", "clone", "--quiet", "--no-local", str(ROOT), str(folder / "clone"))
        machines: list[dict[str, Any]] = []
        for interpreter in arguments.interpreters:
            machine = Machine(folder / f"machine-{len(machines)}", str(interpreter), folder / "log")
            machines.append(rehearse(folder / "clone", machine))
            shutil.rmtree(folder / f"machine-{len(machines) - 1}")
        log = (folder / "log").read_text(encoding="utf-8", errors="replace").replace(name, "")
    if arguments.log is not None:
        arguments.log.write_text(log, encoding="utf-8")
    found = document(arguments, {"limits": dataclasses.asdict(LIMITS), "machines": machines})
    print(gpu_rehearsal(found))
    save(arguments, found)


if __name__ == "__main__":
    main()
